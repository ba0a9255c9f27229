"""A server is deleted in every phase of a resize, a confirmation, a revert."""

from __future__ import annotations

import pytest

from kilonova.errors import Failed
from kilonova.operations import delete
from kilonova.testing.embedded import member, settled
from tests.crash.broken import Gate, UndoGate, failing
from tests.crash.conftest import Stage
from tests.crash.resize_scenes import (
    SCENES,
    STEPS,
    UNDOS,
    last_of,
)
from tests.operations.dead_hosts import Everywhere, Hosts, opened
from tests.operations.resized import parked, used


async def assert_gone(three: Hosts, uuid: str) -> None:
    found = await settled(three.cloud, uuid, 60)
    assert found.deleted_at is not None
    nothing = Everywhere(
        guests={}, plugged={}, bound=frozenset(), held=frozenset(), held_by_moves=frozenset()
    )
    assert await three.everywhere(uuid) == nothing
    assert parked(three, uuid) == set()
    assert all(host.empty for host in three.hosts.values())
    assert await used(three) == {"instances": 0, "cores": 0, "ram": 0}
    assert await three.complaints() == []


@pytest.mark.capability("API-95")
@pytest.mark.parametrize("after", [False, True], ids=["before its work", "after its work"])
@pytest.mark.parametrize(("name", "step_name"), STEPS)
async def test_a_delete_in_every_phase(stage: Stage, name: str, step_name: str, after: bool) -> None:
    scene = SCENES[name]
    async with opened(stage.state_dir, database=stage.database) as three:
        uuid = await scene.before(three)
        gate = Gate(three.cloud, scene.operation.name, step_name, after=after)
        await scene.begin(three, uuid)
        await gate.wait()
        await delete.submit(three.cloud.cloud, member(three.cloud), uuid)
        gate.open()
        await assert_gone(three, uuid)


@pytest.mark.parametrize(("name", "step_name"), UNDOS)
async def test_a_delete_while_it_is_undone(stage: Stage, name: str, step_name: str) -> None:
    scene = SCENES[name]
    async with opened(stage.state_dir, database=stage.database) as three:
        uuid = await scene.before(three)
        failing(three.cloud, scene.operation.name, last_of(scene.operation), Failed("ordered"))
        gate = UndoGate(three.cloud, scene.operation.name, step_name)
        await scene.begin(three, uuid)
        await gate.wait()
        await delete.submit(three.cloud.cloud, member(three.cloud), uuid)
        gate.open()
        await assert_gone(three, uuid)
