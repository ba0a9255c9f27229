"""What comes while a volume is attached or detached: a delete, a stop, another attach, a guest that keeps its
disk, a volume service that fails.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from kilonova.app import EmbeddedCloud
from kilonova.errors import Conflict, HostFault, Invalid, NotFound, Unreachable
from kilonova.journal.ending import passed
from kilonova.model.states import Power, Vm
from kilonova.operations import attach_volume, delete, stop
from kilonova.operations.attach_volume import Wish
from kilonova.testing.embedded import fake_driver, kill, member, server, settled
from tests.crash.broken import Gate, crash_at
from tests.crash.conftest import Stage, crash_points
from tests.crash.generated import Points
from tests.crash.scenes import active
from tests.crash.volume_scenes import (
    CASES,
    Scene,
    agreed,
    assert_undone,
    attach,
    detach,
    ends_with_its_server,
    look,
    with_a_volume,
    with_its_volume,
)
from tests.crash.world import assert_sound, log_of
from tests.operations.with_volumes import had, new_volume


@pytest.mark.parametrize("ends", [False, True], ids=["outlives it", "ends with it"])
@pytest.mark.parametrize(("name", "step_name"), Points(CASES).all)
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
@pytest.mark.parametrize(("name", "step_name"), Points(CASES).all)
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
