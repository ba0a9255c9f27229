"""Moves of servers whose volumes cannot follow, are gone, or whose service says nothing: another host is
taken, or the server is as before and its user hears which volume it is."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from kilonova.db import volumes as volumes_db
from kilonova.db.engine import Tx
from kilonova.errors import Failed, HostFault, Invalid, TryAgain, Unreachable
from kilonova.model.instance import Instance
from kilonova.model.migration import Status
from kilonova.model.states import Power, Vm
from kilonova.operations import attach_volume, delete, detach_volume, live_migrate
from kilonova.operations.attach_volume import Wish
from kilonova.testing.embedded import member, server, settled
from tests.crash.broken import Gate
from tests.operations.live_hosts import Live, live
from tests.operations.resized import (
    ask_resize,
    assert_both_sides,
    assert_settled,
    migrated,
    parked,
    resized,
    reverted,
)
from tests.operations.test_moved_volumes import assert_at, back, put_away, with_two
from tests.operations.with_volumes import Had, attached, file_of, had, new_volume


@pytest.fixture
async def three(tmp_path: Path) -> AsyncIterator[Live]:
    async with live(tmp_path / "state") as made:
        yield made


async def _live(three: Live, uuid: str) -> Instance:
    return (await three.move(uuid))[0]


async def _evacuated(three: Live, uuid: str) -> Instance:
    if "h1" not in three._off:
        await three.lose_power("h1")
    return await three.evacuate(uuid)


MOVES: dict[str, Callable[[Live, str], Awaitable[Instance]]] = {
    "live": _live,
    "evacuation": _evacuated,
    "cold": migrated,
    "unshelve": back,
}
HOMES = {"unshelve": None}  # where it is before, if not on h1


async def ready(three: Live, kind: str) -> tuple[str, list[str]]:
    uuid, volumes = await with_two(three)
    if kind == "unshelve":
        await put_away(three, uuid)
        await three.fill("h1")
    return uuid, volumes


async def as_before(three: Live, kind: str, uuid: str, volumes: list[str], before: Instance) -> Instance:
    """But for the fault, and what Nova makes of a failed evacuation."""
    found = await server(three.cloud, uuid)
    if kind == "evacuation":
        await three.come_back("h1")
        assert (found.vm_state, found.task_state, found.host) == (Vm.ERROR, None, "h1")
    else:
        assert (found.vm_state, found.task_state) == (before.vm_state, None)
    assert (found.host, found.volumes, found.vifs) == (before.host, before.volumes, before.vifs)
    for each in volumes:
        assert await had(three.cloud, each) == Had("in-use", ((HOMES.get(kind, "h1"), "attached"),))
    assert await three.misplaced_volumes() == []
    return found


@pytest.mark.parametrize("kind", MOVES)
async def test_another_host_is_taken_if_one_does_not_see_a_volume(three: Live, kind: str) -> None:
    uuid, volumes = await ready(three, kind)
    three.driver("h2").unreachable.add(volumes[1])
    found = await MOVES[kind](three, uuid)
    assert found.host == "h3", found.fault
    if kind == "evacuation":
        await three.come_back("h1")
        await three.cleared()
    await assert_at(three, uuid, volumes, "h3")
    assert three.hosts["h2"].empty


@pytest.mark.parametrize("kind", MOVES)
async def test_where_no_host_sees_a_volume_nothing_is_changed(three: Live, kind: str) -> None:
    uuid, volumes = await ready(three, kind)
    before = await server(three.cloud, uuid)
    for name in ("h2", "h3"):
        three.driver(name).unreachable.add(volumes[1])
    stopped = three.driver("h1").guest_file.starts(uuid)
    await MOVES[kind](three, uuid)
    found = await as_before(three, kind, uuid, volumes, before)
    assert found.fault is not None and volumes[1] in found.fault.details
    assert three.hosts["h2"].empty and three.hosts["h3"].empty
    assert three.driver("h1").guest_file.starts(uuid) == stopped  # nobody has turned it off to find that out


async def test_a_user_that_names_the_host_hears_of_it_before_anything_is_moved(three: Live) -> None:
    """As the failed check of a live migration, which an old client waits for."""
    uuid, volumes = await with_two(three)
    three.driver("h2").unreachable.add(volumes[0])
    migration = await three.begin(uuid, host="h2")
    with pytest.raises(Invalid, match=f"pre-check error.*{volumes[0]}.*{file_of(three.cloud, volumes[0])}"):
        await live_migrate.checked(three.cloud.cloud, migration)
    found = await settled(three.cloud, uuid)
    assert found.fault is not None and volumes[0] in found.fault.message
    assert (await three.migration(migration)).status == Status.ERROR
    await three.assert_as_before(uuid)


async def test_hosts_that_share_guests_files_and_not_the_volume(tmp_path: Path) -> None:
    async with live(tmp_path / "state", "h2", shared=True) as three:
        uuid, volumes = await with_two(three)
        three.driver("h2").unreachable.add(volumes[0])
        found = await migrated(three, uuid)
        assert (found.vm_state, found.host) == (Vm.ACTIVE, "h1")
        assert found.fault is not None and volumes[0] in found.fault.message
        assert three.driver("h1").guest_file.starts(uuid)[0] == 1
        await assert_at(three, uuid, volumes, "h1")


async def test_a_resize_is_not_reverted_to_a_host_that_does_not_see_a_new_volume(three: Live) -> None:
    uuid = await three.boot()
    volumes = [await attached(three.cloud, uuid)]
    await resized(three, uuid)
    volumes.append(await attached(three.cloud, uuid))
    three.driver("h1").unreachable.add(volumes[1])
    found = await reverted(three, uuid)
    assert (found.vm_state, found.task_state, found.host) == (Vm.RESIZED, None, "h2")
    assert found.fault is not None and volumes[1] in found.fault.message
    await assert_both_sides(three, uuid, "h1", "h2")
    await assert_at(three, uuid, volumes, "h2")
    three.driver("h1").unreachable.clear()
    assert (await reverted(three, uuid)).host == "h1"
    await assert_at(three, uuid, volumes, "h1")


@pytest.mark.parametrize("kind", MOVES)
async def test_a_volume_whose_file_is_gone_is_named(three: Live, kind: str) -> None:
    uuid, volumes = await ready(three, kind)
    before = await server(three.cloud, uuid)
    file_of(three.cloud, volumes[0]).unlink()
    await MOVES[kind](three, uuid)
    found = await as_before(three, kind, uuid, volumes, before)
    assert found.fault is not None and volumes[0] in found.fault.details


@pytest.mark.parametrize("kind", MOVES)
async def test_a_volume_that_was_deleted_by_force_is_named(three: Live, kind: str) -> None:
    """Its records with it.  The server is where it was, with what it has."""
    uuid, volumes = await ready(three, kind)
    before = await server(three.cloud, uuid)
    await three.cloud.volume.release_all(volumes[0], uuid)
    await three.cloud.volume.remove(three.admin(), volumes[0], force=True)
    await three.cloud.volume.idle()
    await MOVES[kind](three, uuid)
    found = await server(three.cloud, uuid)
    assert (found.host, found.volumes) == (before.host, before.volumes)
    assert found.fault is not None and volumes[0] in found.fault.message
    assert await had(three.cloud, volumes[1]) == Had("in-use", ((HOMES.get(kind, "h1"), "attached"),))


async def test_one_that_is_deleted_by_force_amid_a_move_holds_up_nobody(three: Live) -> None:
    uuid, volumes = await with_two(three)
    gate = Gate(three.cloud, "live_migrate", "finish")
    await three.begin(uuid)
    await gate.wait()
    await three.cloud.volume.release_all(volumes[0], uuid)
    gate.open()
    found = await settled(three.cloud, uuid)
    assert (found.vm_state, found.task_state, found.host) == (Vm.ACTIVE, None, "h2")
    assert await had(three.cloud, volumes[1]) == Had("in-use", (("h2", "attached"),))


# ---- a service that says nothing ----


SILENCE = TryAgain("the volume service does not answer")


def silent(
    three: Live, monkeypatch: pytest.MonkeyPatch, verb: str, error: Exception = SILENCE
) -> list[object]:
    """The next two calls of a verb are not answered, after or before they have done their work."""
    service, asked = three.cloud.volume, []
    real: Callable[..., Awaitable[Any]] = getattr(service, verb)

    async def answer(*given: Any) -> Any:
        asked.append(given)
        if len(asked) <= 2:
            if len(asked) == 1:
                await real(*given)
            raise error
        return await real(*given)

    monkeypatch.setattr(service, verb, answer)
    return asked


@pytest.mark.parametrize("verb", ["reserve", "connect", "complete", "release"])
@pytest.mark.parametrize("kind", MOVES)
async def test_a_volume_service_is_waited_for(
    three: Live, monkeypatch: pytest.MonkeyPatch, kind: str, verb: str
) -> None:
    uuid, volumes = await ready(three, kind)
    asked = silent(three, monkeypatch, verb)
    found = await MOVES[kind](three, uuid)
    assert found.host == "h2" and len(asked) > 2, found.fault
    if kind == "evacuation":
        await three.come_back("h1")
        await three.cleared()
    await assert_at(three, uuid, volumes, "h2")


async def test_it_is_waited_for_while_a_move_is_undone(three: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    uuid, volumes = await with_two(three)
    asked = silent(three, monkeypatch, "release")
    for name in ("h2", "h3"):
        three.driver(name).faults.add("check_arrival", Failed("no"))
    await three.move(uuid)
    assert len(asked) > 2
    await three.assert_as_before(uuid)
    await assert_at(three, uuid, volumes, "h1")


# ---- amid a move ----


@pytest.mark.parametrize("after", [False, True], ids=["before its work", "after its work"])
@pytest.mark.parametrize("step", ["volumes", "prepare", "run"])
async def test_a_delete_amid_an_evacuation(three: Live, step: str, after: bool) -> None:
    uuid, volumes = await with_two(three)
    gate = Gate(three.cloud, "evacuate", step, after=after)
    await three.lose_power("h1")
    await three.ask(uuid)
    await gate.wait()
    await delete.submit(three.cloud.cloud, member(three.cloud), uuid)
    gate.open()
    await assert_free(three, uuid, volumes)


@pytest.mark.parametrize("after", [False, True], ids=["before its work", "after its work"])
@pytest.mark.parametrize("step", ["volumes", "prepare", "migrate", "switch", "finish"])
async def test_a_delete_amid_a_live_migration(three: Live, step: str, after: bool) -> None:
    uuid, volumes = await with_two(three)
    gate = Gate(three.cloud, "live_migrate", step, after=after)
    await three.begin(uuid)
    await gate.wait()
    await delete.submit(three.cloud.cloud, member(three.cloud), uuid)
    gate.open()
    await assert_free(three, uuid, volumes)
    assert await three.nothing_left() == []


async def assert_free(three: Live, uuid: str, volumes: list[str]) -> None:
    assert (await settled(three.cloud, uuid, 60)).vm_state == Vm.DELETED
    for each in volumes:
        assert await had(three.cloud, each) == Had("available", ())


@pytest.mark.capability("MG-LM-11", "MG-LM-28")
async def test_an_aborted_migration_leaves_them_where_they_are(three: Live) -> None:
    uuid, volumes = await with_two(three)
    before = (await server(three.cloud, uuid)).volumes
    three.live("h1").rate = 1.0
    migration = await three.begin(uuid)
    await three.at(migration, Status.RUNNING)
    assert {len((await had(three.cloud, each)).by) for each in volumes} == {2}
    await three.abort(migration)
    assert (await settled(three.cloud, uuid, 60)).volumes == before
    await three.assert_as_before(uuid)
    await assert_at(three, uuid, volumes, "h1")


async def test_a_host_that_dies_before_it_has_looked_is_given_up(three: Live) -> None:
    uuid, volumes = await with_two(three)
    three.driver("h2").faults.add("check_volumes", HostFault("it has just gone down"))
    await ask_resize(three, uuid)
    found = await settled(three.cloud, uuid, 60)
    assert (found.vm_state, found.host) == (Vm.RESIZED, "h3"), found.fault
    assert parked(three, uuid) == {"h1"}
    await assert_at(three, uuid, volumes, "h3")
    await reverted(three, uuid)
    await assert_settled(three, uuid, "h1", Power.RUNNING)


async def test_what_a_silent_service_is_to_release_is_not_left_to_a_host_that_is_down(
    three: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A live migration that an evacuation has cancelled is undone, and its source cannot be asked."""
    uuid, volumes = await with_two(three)
    gate = Gate(three.cloud, "live_migrate", "prepare")
    await three.begin(uuid)
    await gate.wait()
    await three.lose_power("h1")
    asked = silent(three, monkeypatch, "release", error=Unreachable("the volume service does not answer"))
    await three.ask(uuid)
    gate.open()
    found = await settled(three.cloud, uuid, 60)
    assert (found.vm_state, found.host) == (Vm.ACTIVE, "h2") and len(asked) > 2, found.fault
    await three.come_back("h1")
    await three.cleared()
    await assert_at(three, uuid, volumes, "h2")


@pytest.mark.parametrize("name", ["attach_volume", "detach_volume"])
async def test_nor_is_what_it_is_to_undo_of_an_attach_or_a_detach(
    three: Live, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    cloud, context, uuid = three.cloud, member(three.cloud), await three.boot()
    if name == "attach_volume":
        volume = await new_volume(cloud)
        gate = Gate(cloud, name, "attach")
        await attach_volume.submit(cloud.cloud, context, uuid, Wish(volume_id=volume))
    else:
        volume = await attached(cloud, uuid)
        gate = Gate(cloud, name, "detach")
        await detach_volume.submit(cloud.cloud, context, uuid, volume)
    await gate.wait()
    await three.lose_power("h1")
    verb = {"attach_volume": "release", "detach_volume": "roll_detaching"}[name]
    asked = silent(three, monkeypatch, verb, error=Unreachable("the volume service does not answer"))
    await three.ask(uuid)
    gate.open()
    found = await settled(cloud, uuid, 60)
    assert (found.vm_state, found.host) == (Vm.ACTIVE, "h2") and len(asked) > 2, found.fault
    await three.come_back("h1")
    await three.cleared()
    await assert_at(three, uuid, [volume] if found.volumes else [], "h2")
    assert (await had(cloud, volume)).volume == ("in-use" if found.volumes else "available")


@pytest.mark.parametrize(("step", "verb"), [("prepare", "release"), ("finish", "complete")])
async def test_a_deletion_that_waits_for_a_move_does_not_wait_for_the_volume_service(
    three: Live, monkeypatch: pytest.MonkeyPatch, step: str, verb: str
) -> None:
    async def nothing(*given: object) -> None:
        raise TryAgain("the volume service does not answer")

    uuid, volumes = await with_two(three)
    gate = Gate(three.cloud, "live_migrate", step)
    await three.begin(uuid)
    await gate.wait()
    monkeypatch.setattr(three.cloud.volume, verb, nothing)
    await delete.submit(three.cloud.cloud, member(three.cloud), uuid)
    gate.open()
    await assert_free(three, uuid, volumes)
    assert await three.nothing_left() == []


@pytest.mark.parametrize(("status", "after"), [("error", "error"), ("detaching", "in-use")])
async def test_whatever_else_is_done_with_a_volume_its_server_moves(
    three: Live, status: str, after: str
) -> None:
    """Another server that has it as well lets go of it, or somebody has set its status."""
    uuid, volumes = await with_two(three)

    def write(tx: Tx) -> None:
        found = volumes_db.show(tx, volumes[0])
        assert found is not None
        volumes_db.save(tx, replace(found, status=status))

    await three.cloud.db.write(write)
    await three.move(uuid)
    await three.assert_moved(uuid, "h2")
    assert await had(three.cloud, volumes[0]) == Had(after, (("h2", "attached"),))
