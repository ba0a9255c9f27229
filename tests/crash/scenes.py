"""For each operation: how to bring a server to where it can begin, and how it begins."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

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


async def boot(cloud: EmbeddedCloud, name: str = "s") -> str:
    """Ask for a server; its uuid."""
    request = CreateServer(name=name, flavor_id="42", image_id=cloud.example_image)
    return (await create.submit(cloud.cloud, member(cloud), request))[0].uuid


async def _nothing(cloud: EmbeddedCloud) -> str:
    return ""


async def _active(cloud: EmbeddedCloud) -> str:
    uuid = await boot(cloud)
    assert (await settled(cloud, uuid)).vm_state == Vm.ACTIVE
    return uuid


async def _stopped(cloud: EmbeddedCloud) -> str:
    uuid = await _active(cloud)
    await stop.submit(cloud.cloud, member(cloud), uuid)
    assert (await settled(cloud, uuid)).vm_state == Vm.STOPPED
    return uuid


async def _after_a_boot(cloud: EmbeddedCloud) -> str:
    uuid = await _active(cloud)
    fake_driver(cloud).guest_file.lose_power()
    return uuid


async def _create(cloud: EmbeddedCloud, uuid: str) -> str:
    return await boot(cloud)


async def _delete(cloud: EmbeddedCloud, uuid: str) -> str:
    await delete.submit(cloud.cloud, member(cloud), uuid)
    return uuid


async def _stop(cloud: EmbeddedCloud, uuid: str) -> str:
    await stop.submit(cloud.cloud, member(cloud), uuid)
    return uuid


async def _start(cloud: EmbeddedCloud, uuid: str) -> str:
    await start.submit(cloud.cloud, member(cloud), uuid)
    return uuid


async def _reboot(cloud: EmbeddedCloud, uuid: str) -> str:
    await reboot.submit(cloud.cloud, member(cloud), uuid, hard=True)
    return uuid


async def _resume_guest(cloud: EmbeddedCloud, uuid: str) -> str:
    assert await resume_guests(cloud.cloud, (await server(cloud, uuid)).host or "") == 1
    return uuid


@dataclass(frozen=True)
class Scene:
    """``vm`` and ``power`` are those after a success; None: the server is gone."""

    operation: Operation
    before: Callable[[EmbeddedCloud], Awaitable[str]]
    begin: Callable[[EmbeddedCloud, str], Awaitable[str]]
    vm: str
    power: int | None
    vm_failed: str
    undone: bool = False  # a failure leaves nothing behind


SCENES = {
    "create": Scene(CREATE, _nothing, _create, Vm.ACTIVE, Power.RUNNING, Vm.ERROR, undone=True),
    "delete": Scene(DELETE, _active, _delete, Vm.DELETED, None, Vm.DELETED),
    "stop": Scene(STOP, _active, _stop, Vm.STOPPED, Power.SHUTDOWN, Vm.ACTIVE),
    "start": Scene(START, _stopped, _start, Vm.ACTIVE, Power.RUNNING, Vm.STOPPED),
    "resume_guest": Scene(RESUME_GUEST, _after_a_boot, _resume_guest, Vm.ACTIVE, Power.RUNNING, Vm.ERROR),
    "reboot": Scene(REBOOT, _active, _reboot, Vm.ACTIVE, Power.RUNNING, Vm.ACTIVE),
}

STEPS = [(name, step.name) for name, scene in SCENES.items() for step in scene.operation.steps]
UNDOS = [
    (name, step.name)
    for name, scene in SCENES.items()
    for step in scene.operation.steps
    if step.undo is not None
]
