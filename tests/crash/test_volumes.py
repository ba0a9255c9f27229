"""The four tests of every operation, for attaching and detaching a volume, also of a server that is on no
host.

In the end row, volume service and guest agree: the volume is in all of them or in none.  And what comes in
the middle: a delete, a stop, another attach, a guest that keeps its disk, a volume service that fails.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import msgspec
import pytest

from kilonova.app import EmbeddedCloud
from kilonova.db import instances, volume_attachments, volumes
from kilonova.db.volume_attachments import StoredAttachment
from kilonova.errors import Conflict, HostFault, Invalid, NotFound, Unreachable
from kilonova.journal.ending import passed
from kilonova.journal.model import Operation
from kilonova.model.states import Power, Vm
from kilonova.model.volume import Attachment
from kilonova.operations import attach_volume, delete, detach_volume, shelve, stop
from kilonova.operations.attach_volume import ATTACH_VOLUME, ATTACH_VOLUME_OFFLOADED, Wish
from kilonova.operations.detach_volume import DETACH_VOLUME, DETACH_VOLUME_OFFLOADED
from kilonova.testing.embedded import fake_driver, kill, member, server, settled
from tests.crash import generated
from tests.crash.broken import Gate, crash_at
from tests.crash.conftest import Stage, crash_points
from tests.crash.generated import Case, Points
from tests.crash.test_interfaces import active
from tests.crash.world import World, assert_sound, log_of, world
from tests.operations.with_volumes import had, new_volume


class Scene(msgspec.Struct, frozen=True):
    """A server in rest, and the volume that it gets or loses."""

    uuid: str
    volume: str


class Everything(msgspec.Struct, frozen=True):
    world: World
    row: tuple[Attachment, ...]
    guest: tuple[Attachment, ...]
    status: str | None  # of the volume
    attachments: tuple[StoredAttachment, ...]


async def look(cloud: EmbeddedCloud, scene: Scene) -> Everything:
    found = await cloud.db.read(lambda tx: volumes.show(tx, scene.volume))
    there = await cloud.db.read(lambda tx: volume_attachments.of_volume(tx, scene.volume))
    return Everything(
        await world(cloud, scene.uuid),
        (await server(cloud, scene.uuid)).volumes,
        fake_driver(cloud).guest_file.volumes(scene.uuid),
        None if found is None else found.status,
        tuple(there),
    )


async def with_a_volume(cloud: EmbeddedCloud) -> Scene:
    """Of the project, and nobody's."""
    return Scene(await active(cloud), await new_volume(cloud))


async def with_its_volume(cloud: EmbeddedCloud) -> Scene:
    scene = await with_a_volume(cloud)
    await attach(cloud, scene)
    assert len((await settled(cloud, scene.uuid)).volumes) == 1
    return scene


async def shelved(cloud: EmbeddedCloud, scene: Scene) -> Scene:
    await shelve.submit(cloud.cloud, member(cloud), scene.uuid)
    found = await settled(cloud, scene.uuid)
    assert (found.vm_state, found.host) == (Vm.SHELVED_OFFLOADED, None)
    return scene


async def away_with_a_volume(cloud: EmbeddedCloud) -> Scene:
    return await shelved(cloud, await with_a_volume(cloud))


async def away_with_its_volume(cloud: EmbeddedCloud) -> Scene:
    return await shelved(cloud, await with_its_volume(cloud))


async def attach(cloud: EmbeddedCloud, scene: Scene, **wish: Any) -> None:
    wanted = Wish(volume_id=scene.volume, **wish)
    await attach_volume.submit(cloud.cloud, member(cloud), scene.uuid, wanted)


async def detach(cloud: EmbeddedCloud, scene: Scene) -> None:
    await detach_volume.submit(cloud.cloud, member(cloud), scene.uuid, scene.volume)


async def ends_with_its_server(cloud: EmbeddedCloud, scene: Scene, ends: bool) -> None:
    """What becomes of its volumes when the server is deleted."""
    changed = tuple(
        msgspec.structs.replace(each, delete_on_termination=ends)
        for each in (await server(cloud, scene.uuid)).volumes
    )
    await cloud.db.write(
        lambda tx: instances.update(tx, scene.uuid, expect_task=instances.ANY, volumes=changed)
    )


async def agreed(cloud: EmbeddedCloud, scene: Scene) -> Everything:
    """Row, volume service and guest know the same."""
    found, now = await server(cloud, scene.uuid), await look(cloud, scene)
    mine = tuple(each for each in now.row if each.volume_id == scene.volume)
    assert now.status == ("in-use" if mine else "available")
    assert [each.attachment_id for each in mine] == [each.id for each in now.attachments]
    for known, there in zip(mine, now.attachments, strict=True):
        assert (there.instance_uuid, there.status, there.host) == (scene.uuid, "attached", found.host)
        assert there.connection == known.connection
        assert there.device == (known.device if found.host else None)
    assert now.guest == (now.row if found.host else ())
    assert all((each.connection is None) == (found.host is None) for each in now.row)
    await assert_sound(cloud)
    return now


async def assert_success(
    operation: Operation, had: bool, vm: str, cloud: EmbeddedCloud, scene: Scene, died: bool
) -> None:
    """``had``: the server has it after it."""
    found = await settled(cloud, scene.uuid)
    assert (found.vm_state, found.task_state, found.fault) == (vm, None, None)
    steps = [(step.name, "do", 1, "Success") for step in operation.steps]
    assert await log_of(cloud, scene.uuid, operation.name) == steps
    now = await agreed(cloud, scene)
    assert [each.volume_id for each in now.row] == ([scene.volume] if had else [])
    assert [each.device for each in now.row if each.connection] == (
        ["/dev/vdb"] if had and found.host else []
    )


async def assert_undone(cloud: EmbeddedCloud, scene: Scene, before: Everything, died: bool = False) -> None:
    found = await settled(cloud, scene.uuid)
    assert found.fault is not None
    now = await agreed(cloud, scene)
    plugged = msgspec.structs.replace(now.world, plugged=before.world.plugged) if died else now.world
    assert msgspec.structs.replace(now, world=plugged) == before


def case(
    operation: Operation,
    before: Callable[[EmbeddedCloud], Awaitable[Scene]],
    begin: Callable[[EmbeddedCloud, Scene], Awaitable[None]],
    had: bool,
    vm: str = Vm.ACTIVE,
) -> Case[Scene]:
    return Case(operation, before, begin, look, partial(assert_success, operation, had, vm), assert_undone)


AWAY = Vm.SHELVED_OFFLOADED
CASES = {
    "attach": case(ATTACH_VOLUME, with_a_volume, attach, True),
    "detach": case(DETACH_VOLUME, with_its_volume, detach, False),
    "attach away": case(ATTACH_VOLUME_OFFLOADED, away_with_a_volume, attach, True, AWAY),
    "detach away": case(DETACH_VOLUME_OFFLOADED, away_with_its_volume, detach, False, AWAY),
}
POINTS = Points(CASES)


@pytest.mark.capability("MG-DEV-2", "MG-DEV-3", "MG-GEN-1")
@pytest.mark.parametrize("after", [False, True], ids=["before it did anything", "when it had done all"])
@pytest.mark.parametrize(("name", "step_name"), POINTS.back)
async def test_a_step_that_fails_is_undone_with_all_before_it(
    cloud: EmbeddedCloud, name: str, step_name: str, after: bool
) -> None:
    await generated.fails(cloud, CASES[name], step_name, after=after)


@pytest.mark.parametrize(("name", "step_name"), POINTS.forward)
async def test_a_step_past_the_guest_is_repeated(cloud: EmbeddedCloud, name: str, step_name: str) -> None:
    await generated.is_repeated(cloud, CASES[name], step_name)


@pytest.mark.parametrize(("name", "step_name"), POINTS.all)
async def test_a_step_that_runs_twice_does_no_more_than_once(
    cloud: EmbeddedCloud, name: str, step_name: str
) -> None:
    await generated.runs_twice(cloud, CASES[name], step_name)


@pytest.mark.parametrize(("name", "step_name"), POINTS.undos)
async def test_an_undo_that_runs_twice_does_no_more_than_once(
    cloud: EmbeddedCloud, name: str, step_name: str
) -> None:
    await generated.undo_runs_twice(cloud, CASES[name], step_name, POINTS.last_back(name))


@pytest.mark.parametrize(("stage", "what"), crash_points("do", "done"), indirect=["stage"])
@pytest.mark.parametrize(("name", "step_name"), POINTS.all)
async def test_the_process_dies_before_or_after_a_commit(
    stage: Stage, name: str, step_name: str, what: str
) -> None:
    await generated.dies(stage, CASES[name], step_name, what)


@pytest.mark.parametrize(("stage", "what"), crash_points("failed", "undo", "undone"), indirect=["stage"])
@pytest.mark.parametrize(("name", "step_name"), POINTS.undos)
async def test_the_process_dies_while_unwinding(stage: Stage, name: str, step_name: str, what: str) -> None:
    await generated.dies_unwinding(stage, CASES[name], step_name, what, POINTS.last_back(name))


# ---- what comes in the middle ----


@pytest.mark.parametrize("ends", [False, True], ids=["outlives it", "ends with it"])
@pytest.mark.parametrize(("name", "step_name"), POINTS.all)
async def test_a_delete_in_the_middle(cloud: EmbeddedCloud, name: str, step_name: str, ends: bool) -> None:
    """A volume that is to end with its server ends with it only if it was the server's."""
    case = CASES[name]
    scene = await case.before(cloud)
    gate = Gate(cloud, case.operation.name, step_name, after=True)
    if case.begin is attach:
        await attach(cloud, scene, delete_on_termination=ends)
    else:
        await ends_with_its_server(cloud, scene, ends)
        await detach(cloud, scene)
    await gate.wait()
    await delete.submit(cloud.cloud, member(cloud), scene.uuid)
    gate.open()
    assert (await settled(cloud, scene.uuid)).vm_state == Vm.DELETED
    await cloud.volume.idle()
    now = await look(cloud, scene)
    assert (now.row, now.guest, now.attachments) == ((), (), ())
    gone = ends and step_name in ("begin", "detach")
    assert now.status == (None if gone else "available")
    await assert_sound(cloud)


@pytest.mark.capability("API-118")
async def test_what_is_asked_meanwhile_waits_for_its_turn(cloud: EmbeddedCloud) -> None:
    """Each has a disk of its own, also while the first is not yet there."""
    scene = await with_a_volume(cloud)
    gate = Gate(cloud, "attach_volume", "attach")
    await attach(cloud, scene)
    await gate.wait()
    another = Scene(scene.uuid, await new_volume(cloud))
    await attach(cloud, another)
    assert [each.device for each in (await server(cloud, scene.uuid)).volumes] == ["/dev/vdb", "/dev/vdc"]
    with pytest.raises(Conflict, match="/dev/vdc"):
        await attach(cloud, Scene(scene.uuid, await new_volume(cloud)), device="/dev/vdc")
    with pytest.raises(Invalid, match="already attached"):
        await attach(cloud, scene)
    await stop.submit(cloud.cloud, member(cloud), scene.uuid)
    with pytest.raises(Conflict, match="task_state powering-off"):
        await attach(cloud, Scene(scene.uuid, await new_volume(cloud)))
    gate.open()
    found = await settled(cloud, scene.uuid)
    assert (found.vm_state, found.power_state) == (Vm.STOPPED, Power.SHUTDOWN)
    assert [each.volume_id for each in found.volumes] == [scene.volume, another.volume]
    await agreed(cloud, scene)


async def test_two_detach_one_volume(cloud: EmbeddedCloud) -> None:
    """Both were asked for before it was begun: the second finds it gone, and takes it from nobody else."""
    scene = await with_its_volume(cloud)
    gate = Gate(cloud, "detach_volume", "begin")
    await detach(cloud, scene)
    await gate.wait()
    await detach(cloud, scene)
    gate.open()
    found = await settled(cloud, scene.uuid)
    assert found.fault is not None and "is not attached" in found.fault.message
    assert (await agreed(cloud, scene)).row == ()


@pytest.mark.capability("MG-DEV-3")
async def test_a_guest_that_keeps_its_disk_keeps_the_volume(cloud: EmbeddedCloud) -> None:
    scene = await with_its_volume(cloud)
    before = await look(cloud, scene)
    fake_driver(cloud).keeps_devices.add(scene.uuid)
    await detach(cloud, scene)
    await assert_undone(cloud, scene, before)
    fake_driver(cloud).keeps_devices.clear()
    await detach(cloud, scene)
    assert (await settled(cloud, scene.uuid)).volumes == ()
    await agreed(cloud, scene)


@pytest.mark.capability("MG-DEV-2")
async def test_a_host_that_does_not_see_it_leaves_nothing(cloud: EmbeddedCloud) -> None:
    scene = await with_a_volume(cloud)
    before = await look(cloud, scene)
    fake_driver(cloud).unreachable.add(scene.volume)
    await attach(cloud, scene)
    await assert_undone(cloud, scene, before)
    found = await server(cloud, scene.uuid)
    assert found.fault is not None and scene.volume in found.fault.message
    fake_driver(cloud).unreachable.clear()
    await attach(cloud, scene)
    await settled(cloud, scene.uuid)
    assert (await agreed(cloud, scene)).status == "in-use"


@pytest.mark.capability("MG-DEV-2")
async def test_of_two_servers_one_gets_it(cloud: EmbeddedCloud) -> None:
    """Both were told that it is free; the volume service decides."""
    first = await with_a_volume(cloud)
    second = Scene(await active(cloud), first.volume)
    gates = [Gate(cloud, "attach_volume", "reserve")]
    for each in (first, second):
        await attach(cloud, each)
    await gates[0].wait()
    gates[0].open()
    found = [await settled(cloud, each.uuid) for each in (first, second)]
    assert sorted(len(each.volumes) for each in found) == [0, 1]
    (loser,) = (each for each in found if not each.volumes)
    assert loser.fault is not None and "must be available" in loser.fault.message
    assert (await had(cloud, first.volume)).volume == "in-use"
    await assert_sound(cloud)


# ---- a volume service that fails ----


@pytest.mark.capability("MG-DEL-6")
@pytest.mark.parametrize("ends", [False, True], ids=["outlives it", "ends with it"])
async def test_a_volume_service_that_fails_holds_up_no_deletion(
    cloud: EmbeddedCloud, monkeypatch: pytest.MonkeyPatch, ends: bool
) -> None:
    """Nothing is left of the volume either, once the service answers."""
    scene = await with_its_volume(cloud)
    other = Scene(scene.uuid, await new_volume(cloud))
    await attach(cloud, other)
    await settled(cloud, scene.uuid)
    for each in (scene, other):
        await ends_with_its_server(cloud, each, ends)
    release_all, works = cloud.volume.release_all, False

    async def late(volume_id: str, instance_uuid: str) -> None:
        if not works:
            raise Unreachable("the volume service does not answer")
        await release_all(volume_id, instance_uuid)

    monkeypatch.setattr(cloud.volume, "release_all", late)
    gate = Gate(cloud, "free_volumes", "free")
    await delete.submit(cloud.cloud, member(cloud), scene.uuid)
    await gate.wait()
    found = await server(cloud, scene.uuid)
    assert (found.vm_state, found.fault) == (Vm.DELETED, None)
    assert (await had(cloud, scene.volume)).volume == "in-use"
    works = True
    gate.open()
    await settled(cloud, scene.uuid)
    await cloud.volume.idle()
    for each in (scene, other):
        now = await look(cloud, each)
        assert (now.status, now.attachments) == (None if ends else "available", ())
    await assert_sound(cloud)


@pytest.mark.parametrize(("stage", "what"), crash_points("do", "done"), indirect=["stage"])
async def test_what_is_freed_later_is_freed_by_whoever_lives(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    async def late(volume_id: str, instance_uuid: str) -> None:
        raise Unreachable("the volume service does not answer")

    async with stage.cloud() as cloud:
        scene = await with_its_volume(cloud)
        await ends_with_its_server(cloud, scene, True)
        release_all = cloud.volume.release_all
        monkeypatch.setattr(cloud.volume, "release_all", late)
        gate = Gate(cloud, "free_volumes", "free")
        died = crash_at(cloud, "free_volumes", "free", what)
        await delete.submit(cloud.cloud, member(cloud), scene.uuid)
        if what == "done":
            await gate.wait()
            monkeypatch.setattr(cloud.volume, "release_all", release_all)
            gate.open()
        await asyncio.wait_for(died.wait(), 60)
        await kill(cloud)
    async with stage.cloud() as cloud:
        assert (await settled(cloud, scene.uuid)).vm_state == Vm.DELETED
        await cloud.volume.idle()
        now = await look(cloud, scene)
        assert (now.status, now.attachments) == (None, ())
        await assert_sound(cloud)


VERBS = ("reserve", "connect", "complete", "release", "release_all", "begin_detaching", "roll_detaching")


@pytest.mark.capability("MG-DEL-6")
@pytest.mark.parametrize(("name", "step_name"), POINTS.all)
async def test_nor_does_one_that_fails_while_a_volume_comes_or_goes(
    cloud: EmbeddedCloud, monkeypatch: pytest.MonkeyPatch, name: str, step_name: str
) -> None:
    """The deletion is through although the service says nothing from that step on."""
    case = CASES[name]
    scene = await case.before(cloud)
    silent, answers = False, {verb: getattr(cloud.volume, verb) for verb in VERBS}

    def asked(verb: str) -> Callable[..., Awaitable[object]]:
        async def answer(*given: object) -> object:
            if silent:
                raise Unreachable("the volume service does not answer")
            return await answers[verb](*given)

        return answer

    for verb in VERBS:
        monkeypatch.setattr(cloud.volume, verb, asked(verb))
    gate, later = Gate(cloud, case.operation.name, step_name), Gate(cloud, "free_volumes", "free")
    await case.begin(cloud, scene)
    await gate.wait()
    silent = True
    await delete.submit(cloud.cloud, member(cloud), scene.uuid)
    gate.open()
    await later.wait()
    assert (await server(cloud, scene.uuid)).vm_state == Vm.DELETED
    silent = False
    later.open()
    await settled(cloud, scene.uuid)
    now = await look(cloud, scene)
    assert (now.status, now.attachments, now.guest) == ("available", (), ())
    await assert_sound(cloud)


@pytest.mark.capability("MG-DEL-6")
@pytest.mark.parametrize("error", [NotFound("no volume"), Conflict("it has snapshots")])
async def test_what_the_volume_service_refuses_to_delete_stays(
    cloud: EmbeddedCloud, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    scene = await with_its_volume(cloud)
    await ends_with_its_server(cloud, scene, True)

    async def refuse(volume_id: str) -> None:
        raise error

    monkeypatch.setattr(cloud.volume, "delete", refuse)
    await delete.submit(cloud.cloud, member(cloud), scene.uuid)
    assert (await settled(cloud, scene.uuid)).vm_state == Vm.DELETED
    assert await log_of(cloud, scene.uuid, "free_volumes") == [], "there is nothing to be done later"
    assert (await had(cloud, scene.volume)).by == ()
    await assert_sound(cloud)


async def test_one_server_asks_at_once(staged: EmbeddedCloud) -> None:
    """Twice for the same volume, which the volume service would give it a second time, as it does for moves;
    and for two others: each has a disk of its own."""
    scene = await with_a_volume(staged)
    others = [Scene(scene.uuid, await new_volume(staged)) for _ in range(2)]
    asked = (attach(staged, each) for each in (scene, scene, *others))
    results = await asyncio.gather(*asked, return_exceptions=True)
    assert sorted(type(each).__name__ for each in results) == ["Invalid", *["NoneType"] * 3], results
    volumes = (await settled(staged, scene.uuid)).volumes
    assert sorted(str(each.device) for each in volumes) == ["/dev/vdb", "/dev/vdc", "/dev/vdd"]
    for each in (scene, *others):
        await agreed(staged, each)


async def test_who_waits_for_one_step_hears_of_that_only(cloud: EmbeddedCloud) -> None:
    scene = await with_a_volume(cloud)
    fake_driver(cloud).faults.add("attach_volume", HostFault("no place"))
    wish = Wish(volume_id=scene.volume)
    action, _ = await attach_volume.submit(cloud.cloud, member(cloud), scene.uuid, wish)
    await settled(cloud, scene.uuid)
    assert await passed(cloud.db, cloud.cloud.clock, action, "reserve", 1) is None
    error = await passed(cloud.db, cloud.cloud.clock, action, "attach", 1)
    assert error is not None and error.message == "no place"
