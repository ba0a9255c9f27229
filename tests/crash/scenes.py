"""Cases of the operations that make a server, delete it, and turn it on and off."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

from kilonova.app import EmbeddedCloud
from kilonova.journal.model import Operation
from kilonova.model.states import Power, Vm
from kilonova.operations import create, delete, reboot, start, stop
from kilonova.operations.create_steps import CREATE
from kilonova.operations.delete import DELETE
from kilonova.operations.reboot import REBOOT
from kilonova.operations.requests import CreateServer
from kilonova.operations.resume_guest import RESUME_GUEST, resume_guests
from kilonova.operations.start import START
from kilonova.operations.stop import STOP
from kilonova.testing.embedded import fake_driver, member, server, settled
from tests.crash.generated import Case, Failure, whole_log
from tests.crash.world import NOTHING, World, assert_sound, but, log_of, world


async def boot(cloud: EmbeddedCloud, name: str = "s") -> str:
    """Ask for a server; its uuid."""
    request = CreateServer(name=name, flavor_id="42", image_id=cloud.example_image)
    return (await create.submit(cloud.cloud, member(cloud), request))[0].uuid


@dataclass
class Scene:
    """A server; the one that is to be made gets its uuid when it is asked for."""

    uuid: str = ""


async def active(cloud: EmbeddedCloud) -> str:
    uuid = await boot(cloud)
    assert (await settled(cloud, uuid)).vm_state == Vm.ACTIVE
    return uuid


async def _nothing(cloud: EmbeddedCloud) -> Scene:
    return Scene()


async def _active(cloud: EmbeddedCloud) -> Scene:
    return Scene(await active(cloud))


async def _stopped(cloud: EmbeddedCloud) -> Scene:
    scene = await _active(cloud)
    await stop.submit(cloud.cloud, member(cloud), scene.uuid)
    assert (await settled(cloud, scene.uuid)).vm_state == Vm.STOPPED
    return scene


async def _after_a_boot(cloud: EmbeddedCloud) -> Scene:
    scene = await _active(cloud)
    fake_driver(cloud).guest_file.lose_power()
    return scene


async def _create(cloud: EmbeddedCloud, scene: Scene) -> None:
    scene.uuid = await boot(cloud)


async def _delete(cloud: EmbeddedCloud, scene: Scene) -> None:
    await delete.submit(cloud.cloud, member(cloud), scene.uuid)


async def _stop(cloud: EmbeddedCloud, scene: Scene) -> None:
    await stop.submit(cloud.cloud, member(cloud), scene.uuid)


async def _start(cloud: EmbeddedCloud, scene: Scene) -> None:
    await start.submit(cloud.cloud, member(cloud), scene.uuid)


async def _reboot(cloud: EmbeddedCloud, scene: Scene) -> None:
    await reboot.submit(cloud.cloud, member(cloud), scene.uuid, hard=True)


async def _resume_guest(cloud: EmbeddedCloud, scene: Scene) -> None:
    assert await resume_guests(cloud.cloud, (await server(cloud, scene.uuid)).host or "") == 1


async def _look(cloud: EmbeddedCloud, scene: Scene) -> World:
    return await world(cloud, scene.uuid)


async def _succeeded(
    operation: Operation, vm: str, power: int | None, cloud: EmbeddedCloud, scene: Scene, died: bool
) -> None:
    """``power`` is the guest's; None: the server is gone."""
    found = await settled(cloud, scene.uuid)
    assert (found.vm_state, found.task_state) == (vm, None), found.fault
    assert found.fault is None
    now = await world(cloud, scene.uuid)
    assert now.guest == power
    if power is None:
        assert but(now, plugged=frozenset()) == World(vm_state=Vm.DELETED, deleted=True, place=now.place)
    else:
        assert len(now.claims) == len(now.bindings) == 1
        assert now.vifs == frozenset(now.bindings)
        assert set(now.bindings.values()) == {(found.host, "ACTIVE")}
    assert await log_of(cloud, scene.uuid, operation.name) == whole_log(operation)
    await assert_sound(cloud)


async def _not_made(cloud: EmbeddedCloud, scene: Scene, before: World, failure: Failure) -> None:
    """The world is as it was; the server is only there to say why it is not."""
    assert (await settled(cloud, scene.uuid)).fault is not None
    expected = but(NOTHING, vm_state=Vm.ERROR, plugged=before.plugged)
    assert await world(cloud, scene.uuid) == expected
    await assert_sound(cloud)


async def _as_it_was(cloud: EmbeddedCloud, scene: Scene, before: World, failure: Failure) -> None:
    assert (await settled(cloud, scene.uuid)).fault is not None
    now = await world(cloud, scene.uuid)
    if failure.after:  # the guest has changed, and the next look at it will tell
        before = but(before, guest=now.guest, power_state=now.power_state)
    else:
        await assert_sound(cloud)
    assert now == before


async def _in_error(cloud: EmbeddedCloud, scene: Scene, before: World, failure: Failure) -> None:
    """Whether the guest runs is not known then (Nova's rule)."""
    found = await settled(cloud, scene.uuid)
    assert found.fault is not None and found.vm_state == Vm.ERROR


Before = Callable[[EmbeddedCloud], Awaitable[Scene]]
Begin = Callable[[EmbeddedCloud, Scene], Awaitable[None]]
Undone = Callable[[EmbeddedCloud, Scene, World, Failure], Awaitable[None]]


def _case(
    operation: Operation,
    before: Before,
    begin: Begin,
    vm: str,
    power: int | None,
    undone: Undone = _as_it_was,
) -> Case[Scene]:
    return Case(operation, before, begin, _look, partial(_succeeded, operation, vm, power), undone)


CASES = {
    "create": _case(CREATE, _nothing, _create, Vm.ACTIVE, Power.RUNNING, _not_made),
    "delete": _case(DELETE, _active, _delete, Vm.DELETED, None),
    "stop": _case(STOP, _active, _stop, Vm.STOPPED, Power.SHUTDOWN),
    "start": _case(START, _stopped, _start, Vm.ACTIVE, Power.RUNNING),
    "resume_guest": _case(RESUME_GUEST, _after_a_boot, _resume_guest, Vm.ACTIVE, Power.RUNNING, _in_error),
    "reboot": _case(REBOOT, _active, _reboot, Vm.ACTIVE, Power.RUNNING, _in_error),
}
BOOT_UNDOS = [step.name for step in CREATE.steps if step.undo is not None]
