"""The process dies before and after each commit of a resize, a confirmation, a revert, done or undone."""

from __future__ import annotations

import asyncio

import pytest

from kilonova.errors import Failed
from kilonova.testing.embedded import kill
from tests.crash.broken import crash_at, failing
from tests.crash.conftest import Stage, crash_points
from tests.crash.resize_scenes import (
    SCENES,
    STEPS,
    UNDOS,
    assert_success,
    assert_undone,
    last_of,
    world,
)
from tests.operations.dead_hosts import opened


@pytest.mark.capability("MG-INIT-11", "MG-INIT-16", "MG-INIT-18")
@pytest.mark.parametrize(("stage", "what"), crash_points("do", "done"), indirect=["stage"])
@pytest.mark.parametrize(("name", "step_name"), STEPS)
async def test_the_process_dies_before_or_after_a_commit(
    stage: Stage, name: str, step_name: str, what: str
) -> None:
    scene = SCENES[name]
    async with opened(stage.state_dir, database=stage.database) as three:
        uuid = await scene.before(three)
        died = crash_at(three.cloud, scene.operation.name, step_name, what)
        await scene.begin(three, uuid)
        await asyncio.wait_for(died.wait(), 60)
        await kill(three.cloud)
    async with opened(stage.state_dir, database=stage.database) as three:
        await assert_success(three, name, uuid, died=True)


@pytest.mark.parametrize(("stage", "what"), crash_points("failed", "undo", "undone"), indirect=["stage"])
@pytest.mark.parametrize(("name", "step_name"), UNDOS)
async def test_the_process_dies_while_unwinding(stage: Stage, name: str, step_name: str, what: str) -> None:
    scene = SCENES[name]
    async with opened(stage.state_dir, database=stage.database) as three:
        uuid = await scene.before(three)
        before = await world(three, uuid)
        failed = step_name if what == "failed" else last_of(scene.operation)
        failing(three.cloud, scene.operation.name, failed, Failed("ordered"), after=what == "failed")
        died = crash_at(three.cloud, scene.operation.name, step_name, what)
        await scene.begin(three, uuid)
        await asyncio.wait_for(died.wait(), 60)
        await kill(three.cloud)
    async with opened(stage.state_dir, database=stage.database) as three:
        await assert_undone(three, name, uuid, before, died=True)
