"""Volumes of servers that move while one is attached or detached, and hosts that die meanwhile."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kilonova.errors import Conflict
from kilonova.model.instance import Instance
from kilonova.model.states import Vm
from kilonova.operations import attach_volume, delete, detach_volume, resize, revert_resize
from kilonova.operations.attach_volume import ATTACH_VOLUME, Wish
from kilonova.operations.detach_volume import DETACH_VOLUME
from kilonova.testing.embedded import member, server, settled
from tests.crash.broken import Gate
from tests.operations.dead_hosts import Hosts, opened
from tests.operations.live_hosts import Live, live
from tests.operations.resized import confirmed, migrated
from tests.operations.with_volumes import attached, had, new_volume

POINTS = [
    (operation.name, step.name) for operation in (ATTACH_VOLUME, DETACH_VOLUME) for step in operation.steps
]
SECONDS = 45.0


@pytest.fixture
async def three(tmp_path: Path) -> AsyncIterator[Hosts]:
    async with opened(tmp_path / "state") as made:
        yield made


@pytest.fixture
async def moving(tmp_path: Path) -> AsyncIterator[Live]:
    async with live(tmp_path / "state", "h2") as made:
        yield made


async def begin(three: Hosts, name: str, uuid: str) -> str:
    """Ask for it; the volume."""
    cloud, context = three.cloud, member(three.cloud)
    if name == "attach_volume":
        volume = await new_volume(cloud)
        await attach_volume.submit(cloud.cloud, context, uuid, Wish(volume_id=volume))
        return volume
    (mine,) = (await server(cloud, uuid)).volumes
    await detach_volume.submit(cloud.cloud, context, uuid, mine.volume_id)
    return mine.volume_id


async def booted(three: Hosts, name: str) -> str:
    """A server, which has a volume if that is to be detached."""
    uuid = await three.boot()
    if name == "detach_volume":
        await attached(three.cloud, uuid)
    return uuid


async def agreed(three: Hosts, uuid: str, count: int) -> Instance:
    """The server in rest has so many volumes, and so have its guest and the volume service."""
    found = await settled(three.cloud, uuid, SECONDS)
    assert len(found.volumes) == count, found.fault
    assert await three.misplaced_volumes() == []
    return found


@pytest.mark.parametrize("name", ["attach_volume", "detach_volume"])
@pytest.mark.parametrize("kind", ["live", "cold"])
async def test_a_move_that_waits_for_it_takes_the_volumes_that_there_are_then(
    moving: Live, name: str, kind: str
) -> None:
    uuid = await booted(moving, name)
    gate = Gate(moving.cloud, name, "attach" if name == "attach_volume" else "release")
    await begin(moving, name, uuid)
    await gate.wait()
    if kind == "live":
        await moving.begin(uuid)
    else:
        await resize.migrate(moving.cloud.cloud, moving.admin(), await server(moving.cloud, uuid))
    gate.open()
    found = await settled(moving.cloud, uuid, SECONDS)
    assert found.host == "h2", found.fault
    if kind == "cold":
        assert found.vm_state == Vm.RESIZED
        await confirmed(moving, uuid)
    await agreed(moving, uuid, 1 if name == "attach_volume" else 0)
    assert await moving.nothing_left() == []


@pytest.mark.parametrize("end", ["confirm", "revert"])
async def test_while_a_resize_waits_to_be_confirmed(moving: Live, end: str) -> None:
    uuid = await moving.boot()
    first = await attached(moving.cloud, uuid)
    await migrated(moving, uuid)
    second = await attached(moving.cloud, uuid)
    await begin_detach(moving, uuid, first)
    found = await agreed(moving, uuid, 1)
    assert (found.vm_state, found.volumes[0].volume_id) == (Vm.RESIZED, second)
    if end == "confirm":
        await confirmed(moving, uuid)
    else:
        await revert_resize.submit(moving.cloud.cloud, moving.admin(), uuid)
    found = await agreed(moving, uuid, 1)
    assert (found.vm_state, found.host) == (Vm.ACTIVE, "h2" if end == "confirm" else "h1")
    assert (await had(moving.cloud, first)).volume == "available"
    assert (await had(moving.cloud, second)).by == ((found.host, "attached"),)
    await begin_detach(moving, uuid, second)
    await agreed(moving, uuid, 0)
    assert await moving.nothing_left() == []


async def begin_detach(three: Hosts, uuid: str, volume: str) -> None:
    await detach_volume.submit(three.cloud.cloud, member(three.cloud), uuid, volume)
    await settled(three.cloud, uuid, SECONDS)


# ---- hosts that die ----


async def dead_at(three: Hosts, name: str, step: str) -> tuple[str, str]:
    """A server whose host has lost its power when the operation was at the step, and the volume."""
    uuid = await booted(three, name)
    gate = Gate(three.cloud, name, step)
    volume = await begin(three, name, uuid)
    await gate.wait()
    await three.lose_power("h1")
    gate.open()
    return uuid, volume


async def assert_nothing_left(three: Hosts) -> None:
    await three.come_back("h1")
    await three.cleared()
    await three.cloud.network.deliver_pending()
    assert await three.complaints() == []


@pytest.mark.parametrize(("name", "step"), POINTS)
async def test_a_server_is_deleted_whose_host_dies(three: Hosts, name: str, step: str) -> None:
    uuid, volume = await dead_at(three, name, step)
    await delete.submit(three.cloud.cloud, member(three.cloud), uuid)
    assert (await settled(three.cloud, uuid, SECONDS)).vm_state == Vm.DELETED
    assert (await had(three.cloud, volume)).volume == "available"
    await assert_nothing_left(three)


@pytest.mark.parametrize(("name", "step"), POINTS)
async def test_a_server_is_evacuated_whose_host_dies(three: Hosts, name: str, step: str) -> None:
    uuid, volume = await dead_at(three, name, step)
    found = await three.evacuate(uuid)
    assert (found.vm_state, found.host, found.fault) == (Vm.ACTIVE, "h2", None)
    there = await had(three.cloud, volume)
    if volume in {each.volume_id for each in found.volumes}:
        assert (there.volume, there.by) == ("in-use", (("h2", "attached"),))
    else:
        assert (there.volume, there.by) == ("available", ())
    await assert_nothing_left(three)


async def test_a_host_that_comes_back_goes_on(three: Hosts) -> None:
    """Nobody waits for its end, so the host is waited for."""
    uuid = await three.boot()
    gate = Gate(three.cloud, "attach_volume", "attach")
    await begin(three, "attach_volume", uuid)
    await gate.wait()
    three.silence("h1")
    gate.open()
    await three.come_back("h1")
    await agreed(three, uuid, 1)


@pytest.mark.capability("API-46")
async def test_nothing_is_detached_at_a_host_that_is_down(three: Hosts) -> None:
    uuid = await booted(three, "detach_volume")
    await three.lose_power("h1")
    with pytest.raises(Conflict, match="is down"):
        await begin(three, "detach_volume", uuid)
    assert len((await server(three.cloud, uuid)).volumes) == 1
