"""Resizes, confirmations and reverts: where they begin, how, and what is there in the end or when undone."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import msgspec

from kilonova.journal.model import Kind, Operation
from kilonova.model.migration import Status
from kilonova.model.states import Power, Vm
from kilonova.model.volume import Attachment
from kilonova.operations import confirm_resize, revert_resize
from kilonova.operations.confirm_resize import CONFIRM_RESIZE
from kilonova.operations.resize import RESIZE_SERVER
from kilonova.operations.revert_resize import REVERT_RESIZE
from kilonova.testing.embedded import member, server, settled
from tests.crash.world import log_of
from tests.operations.dead_hosts import Everywhere, Hosts
from tests.operations.resized import ask_resize, bound_besides, parked, resized, stopped, used
from tests.operations.with_volumes import attached


class World(msgspec.Struct, frozen=True, kw_only=True):
    """All that concerns the server, but for its fault, its times and its log."""

    vm_state: str
    place: tuple[str | None, str | None, str | None]
    flavor: str
    vifs: frozenset[str]
    power_state: int
    there: Everywhere
    parked: frozenset[str]
    besides: frozenset[str]  # hosts to which ports are bound, but not active
    used: dict[str, int]
    migrations: tuple[str, ...]
    volumes: tuple[Attachment, ...]


async def world(three: Hosts, uuid: str) -> World:
    found = await server(three.cloud, uuid)
    return World(
        vm_state=found.vm_state,
        place=(found.host, found.node, found.availability_zone),
        flavor=found.flavor.name,
        vifs=frozenset(vif.port_id for vif in found.vifs),
        power_state=found.power_state,
        there=await three.everywhere(uuid),
        parked=frozenset(parked(three, uuid)),
        besides=frozenset(await bound_besides(three, uuid)),
        used=await used(three),
        migrations=tuple(each.status for each in await three.migrations(uuid)),
        volumes=found.volumes,
    )


async def begin_confirm(three: Hosts, uuid: str) -> None:
    await confirm_resize.submit(three.cloud.cloud, member(three.cloud), uuid)


async def begin_revert(three: Hosts, uuid: str) -> None:
    await revert_resize.submit(three.cloud.cloud, member(three.cloud), uuid)


async def booted(three: Hosts) -> str:
    """A server that runs, and has a volume."""
    uuid = await three.boot()
    await attached(three.cloud, uuid)
    return uuid


async def _off(three: Hosts) -> str:
    uuid = await booted(three)
    await stopped(three, uuid)
    return uuid


async def resized_one(three: Hosts) -> str:
    uuid = await booted(three)
    assert (await resized(three, uuid)).vm_state == Vm.RESIZED
    return uuid


async def _off_and_resized(three: Hosts) -> str:
    uuid = await _off(three)
    assert (await resized(three, uuid)).vm_state == Vm.RESIZED
    return uuid


@dataclass(frozen=True)
class Scene:
    """``undone``: the statuses of the server's migrations when it was undone."""

    operation: Operation
    action: str
    before: Callable[[Hosts], Awaitable[str]]
    begin: Callable[[Hosts, str], Awaitable[None]]
    vm: str
    host: str
    power: int
    flavor: str
    waits: bool  # both sides are kept
    migration: str
    undone: tuple[str, ...] = ()


SCENES = {
    "resize": Scene(
        RESIZE_SERVER,
        "resize",
        booted,
        ask_resize,
        Vm.RESIZED,
        "h2",
        Power.RUNNING,
        "m1.tiny",
        True,
        Status.FINISHED,
        (Status.ERROR,),
    ),
    "resize of one that is off": Scene(
        RESIZE_SERVER,
        "resize",
        _off,
        ask_resize,
        Vm.RESIZED,
        "h2",
        Power.SHUTDOWN,
        "m1.tiny",
        True,
        Status.FINISHED,
        (Status.ERROR,),
    ),
    "confirm": Scene(
        CONFIRM_RESIZE,
        "confirmResize",
        resized_one,
        begin_confirm,
        Vm.ACTIVE,
        "h2",
        Power.RUNNING,
        "m1.tiny",
        False,
        Status.CONFIRMED,
    ),
    "revert": Scene(
        REVERT_RESIZE,
        "revertResize",
        resized_one,
        begin_revert,
        Vm.ACTIVE,
        "h1",
        Power.RUNNING,
        "m1.nano",
        False,
        Status.REVERTED,
        (Status.FINISHED,),
    ),
    "revert of one that is off": Scene(
        REVERT_RESIZE,
        "revertResize",
        _off_and_resized,
        begin_revert,
        Vm.STOPPED,
        "h1",
        Power.SHUTDOWN,
        "m1.nano",
        False,
        Status.REVERTED,
        (Status.FINISHED,),
    ),
}
STEPS = [(name, step.name) for name, scene in SCENES.items() for step in scene.operation.steps]
UNDOS = [
    (name, step.name)
    for name, scene in SCENES.items()
    for step in scene.operation.steps
    if step.undo is not None
]


def bound(scene: Scene, step_name: str) -> bool:
    """Whether a failure of the step comes too late to undo anything."""
    return scene.operation.step(step_name).kind is Kind.RETRIABLE


FAILING = [(name, step) for name, step in STEPS if not bound(SCENES[name], step)]
WAYS_BACK = [
    (name, step, after)
    for name, step in FAILING
    for after in (False, True)
    if not (after and SCENES[name].operation.step(step).kind is Kind.PIVOT)
]
"""Where an operation turns back: before a step or after it, but not after its pivot."""
REPEATED = [(name, step) for name, step in STEPS if bound(SCENES[name], step)]


def last_of(operation: Operation) -> str:
    """The last step whose failure undoes all."""
    return [step.name for step in operation.steps if step.kind is not Kind.RETRIABLE][-1]


async def assert_success(three: Hosts, name: str, uuid: str, *, died: bool = False) -> None:
    """``died``: the switches have forgotten their ports with the process."""
    scene = SCENES[name]
    found = await settled(three.cloud, uuid, 60)
    assert (found.vm_state, found.task_state, found.host) == (scene.vm, None, scene.host), found.fault
    assert (found.flavor.name, found.power_state, found.fault) == (scene.flavor, scene.power, None)
    assert len(found.volumes) == 1  # where it is, `complaints` looks
    there = await three.everywhere(uuid)
    assert there.guests == {scene.host: scene.power}
    assert died or there.plugged == {scene.host: 1}
    assert (there.bound, there.held) == ({scene.host}, {scene.host})
    assert there.held_by_moves == ({"h1"} if scene.waits else set())
    assert parked(three, uuid) == ({"h1"} if scene.waits else set())
    assert await bound_besides(three, uuid) == ({"h1"} if scene.waits else set())
    (migration,) = await three.migrations(uuid)
    assert migration.status == scene.migration
    assert await used(three) == {"instances": 1, "cores": 1, "ram": found.flavor.memory_mb}
    steps = [(step.name, "do", 1, "Success") for step in scene.operation.steps]
    assert await log_of(three.cloud, uuid, scene.action) == steps
    assert await three.complaints() == []


async def assert_undone(three: Hosts, name: str, uuid: str, before: World, *, died: bool = False) -> None:
    found = await settled(three.cloud, uuid, 60)
    assert found.task_state is None and found.fault is not None
    now = await world(three, uuid)
    expected = msgspec.structs.replace(before, migrations=SCENES[name].undone)
    if died:
        there = msgspec.structs.replace(expected.there, plugged=now.there.plugged)
        expected = msgspec.structs.replace(expected, there=there)
    assert now == expected
    assert await three.complaints() == []
