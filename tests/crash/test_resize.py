"""Resizes, confirmations and reverts: each step fails; each step runs twice; each undo runs twice.

In the end everything is as after a success, or as it was before.
"""

from __future__ import annotations

import asyncio

import pytest

from kilonova.errors import Conflict, Failed, Invalid
from kilonova.journal.model import Done, Run, Wait
from kilonova.model.states import Vm
from kilonova.testing.embedded import server, settled
from tests.crash.broken import Gate, changed, failing, replaced
from tests.crash.conftest import Stage
from tests.crash.resize_scenes import (
    REPEATED,
    SCENES,
    STEPS,
    UNDOS,
    WAYS_BACK,
    assert_success,
    assert_undone,
    begin_confirm,
    begin_revert,
    last_of,
    resized_one,
    world,
)
from tests.operations.dead_hosts import opened


@pytest.mark.capability("MG-RSZ-6")
@pytest.mark.parametrize(("name", "step_name", "after"), WAYS_BACK)
async def test_a_step_that_fails_is_undone_with_all_before_it(
    stage: Stage, name: str, step_name: str, after: bool
) -> None:
    scene = SCENES[name]
    async with opened(stage.state_dir, database=stage.database) as three:
        uuid = await scene.before(three)
        before = await world(three, uuid)
        failing(three.cloud, scene.operation.name, step_name, Failed(f"ordered in {step_name}"), after=after)
        await scene.begin(three, uuid)
        await assert_undone(three, name, uuid, before)
        found = await server(three.cloud, uuid)
        assert found.fault is not None and found.fault.message == f"ordered in {step_name}"


@pytest.mark.parametrize(("name", "step_name"), REPEATED)
async def test_a_step_that_cannot_be_undone_is_repeated(stage: Stage, name: str, step_name: str) -> None:
    scene = SCENES[name]
    step, failures = scene.operation.step(step_name), [Failed("once"), RuntimeError("twice")]

    async def fail(run: Run) -> Done | Wait:
        done = await step.do(run)
        if failures:
            raise failures.pop()
        return done

    async with opened(stage.state_dir, database=stage.database) as three:
        uuid = await scene.before(three)
        replaced(three.cloud, scene.operation.name, changed(step, do=fail))
        await scene.begin(three, uuid)
        await assert_success(three, name, uuid)
        assert failures == []


@pytest.mark.parametrize(("name", "step_name"), STEPS)
async def test_a_step_that_runs_twice_does_no_more_than_once(stage: Stage, name: str, step_name: str) -> None:
    scene, calls = SCENES[name], []
    step = scene.operation.step(step_name)

    async def twice(run: Run) -> Done | Wait:
        calls.append(step_name)
        await step.do(run)
        return await step.do(run)

    async with opened(stage.state_dir, database=stage.database) as three:
        uuid = await scene.before(three)
        replaced(three.cloud, scene.operation.name, changed(step, do=twice))
        await scene.begin(three, uuid)
        await assert_success(three, name, uuid)
        assert calls


@pytest.mark.parametrize(("name", "step_name"), UNDOS)
async def test_an_undo_that_runs_twice_does_no_more_than_once(
    stage: Stage, name: str, step_name: str
) -> None:
    scene, calls = SCENES[name], []
    step = scene.operation.step(step_name)

    async def twice(run: Run) -> Done:
        calls.append(step_name)
        assert step.undo is not None
        await step.undo(run)
        return await step.undo(run)

    async with opened(stage.state_dir, database=stage.database) as three:
        uuid = await scene.before(three)
        before = await world(three, uuid)
        failing(three.cloud, scene.operation.name, last_of(scene.operation), Failed("ordered at the end"))
        now = three.cloud.runner.operations[scene.operation.name].step(step_name)  # it may be what fails
        replaced(three.cloud, scene.operation.name, changed(now, undo=twice))
        await scene.begin(three, uuid)
        await assert_undone(three, name, uuid, before)
        assert calls == [step_name]


# ---- decisions ----


@pytest.mark.capability("MG-RSZ-9")
async def test_of_decisions_at_one_moment_one_is_taken(stage: Stage) -> None:
    async with opened(stage.state_dir, database=stage.database) as three:
        uuid = await resized_one(three)
        gates = [Gate(three.cloud, "confirm_resize", "drop"), Gate(three.cloud, "revert_resize", "check")]
        results = await asyncio.gather(
            *(begin(three, uuid) for begin in (begin_confirm, begin_revert) * 4), return_exceptions=True
        )
        assert results.count(None) == 1
        assert all(isinstance(each, Invalid | Conflict) for each in results if each is not None)
        for gate in gates:
            gate.open()
        found = await settled(three.cloud, uuid, 60)
        assert (found.vm_state, found.task_state) == (Vm.ACTIVE, None)
        await three.assert_only_on(uuid, str(found.host))
        assert await three.complaints() == []
