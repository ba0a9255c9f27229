"""Cases of what makes images of servers, and servers of them again."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

from sqlalchemy import select

from kilonova.app import EmbeddedCloud
from kilonova.db.tables.image import images
from kilonova.journal.model import Operation
from kilonova.model.states import Power, Vm
from kilonova.operations import create_image, offload, shelve, unshelve
from kilonova.testing.embedded import fake_driver, leaks, member, settled
from tests.crash.generated import Case, Failure, whole_log
from tests.crash.scenes import Scene, active
from tests.crash.world import World, but, log_of, world
from tests.operations.with_volumes import attached

CONTENT = b"written by the guest " * 50_000


@dataclass(frozen=True)
class End:
    """How it is after a success; ``power`` is the guest's (None: it is gone), ``kept``: the image is there.
    ``vm_failed`` is where a failure leaves it; "": as it was."""

    operation: Operation
    vm: str
    power: int | None
    kept: bool = True
    vm_failed: str = ""
    image: str = "s-shelved"


# ---- before ----


async def _active(cloud: EmbeddedCloud) -> Scene:
    uuid = await active(cloud)
    fake_driver(cloud).disks.write(uuid, CONTENT)
    await attached(cloud, uuid)
    return Scene(uuid)


async def _shelved(cloud: EmbeddedCloud) -> Scene:
    scene = await _active(cloud)
    await _shelve(-1, cloud, scene)
    assert (await settled(cloud, scene.uuid)).vm_state == Vm.SHELVED
    return scene


async def _offloaded(cloud: EmbeddedCloud) -> Scene:
    scene = await _active(cloud)
    await _shelve(0, cloud, scene)
    assert (await settled(cloud, scene.uuid)).vm_state == Vm.SHELVED_OFFLOADED
    return scene


# ---- begin ----


async def _shelve(stays: int, cloud: EmbeddedCloud, scene: Scene) -> None:
    """``stays``: for how many seconds on its host; -1: until it is offloaded."""
    cloud.settings.options["DEFAULT"]["shelved_offload_time"] = stays
    await shelve.submit(cloud.cloud, member(cloud), scene.uuid)


async def _offload(cloud: EmbeddedCloud, scene: Scene) -> None:
    await offload.submit(cloud.cloud, member(cloud), scene.uuid)


async def _unshelve(cloud: EmbeddedCloud, scene: Scene) -> None:
    await unshelve.submit(cloud.cloud, member(cloud), scene.uuid)


async def _create_image(cloud: EmbeddedCloud, scene: Scene) -> None:
    await create_image.submit(cloud.cloud, member(cloud), scene.uuid, "snap", {})


# ---- after ----


async def _look(cloud: EmbeddedCloud, scene: Scene) -> World:
    return await world(cloud, scene.uuid)


async def _stored(cloud: EmbeddedCloud) -> list[tuple[str, str]]:
    """(name, status) of all images but the example; each active one has its data, and there are no others."""
    rows = await cloud.db.read(lambda tx: tx.all(select(images.c.id, images.c.name, images.c.status)))
    files = {path.name for path in cloud.places.images.iterdir() if path.name != ".lock"}
    assert files == {row[0] for row in rows}
    return [(row[1], row[2]) for row in rows if row[0] != cloud.example_image]


async def _succeeded(end: End, cloud: EmbeddedCloud, scene: Scene, died: bool) -> None:
    found = await settled(cloud, scene.uuid)
    assert (found.vm_state, found.task_state, found.fault) == (end.vm, None, None)
    now = await world(cloud, scene.uuid)
    assert now.guest == end.power
    assert now.vifs == frozenset(now.bindings) and len(now.vifs) == 1
    nowhere = end.power is None
    assert len(now.volumes) == 1 and now.disks == (() if nowhere else now.volumes)
    assert set(now.bindings.values()) == {("", "DOWN") if nowhere else (found.host, "ACTIVE")}
    assert len(now.claims) == (0 if nowhere else 1)
    assert (found.host is None) == nowhere
    assert await _stored(cloud) == ([(end.image, "active")] if end.kept else [])
    remembered = end.kept and end.operation is not create_image.CREATE_IMAGE
    assert ("shelved_image_id" in found.system_metadata) == remembered
    assert fake_driver(cloud).disks.snapshots() == []
    if not nowhere:
        assert fake_driver(cloud).disks.content(scene.uuid) == CONTENT
    assert await log_of(cloud, scene.uuid, end.operation.name) == whole_log(end.operation)
    assert await leaks(cloud) == []


async def _undone(end: End, cloud: EmbeddedCloud, scene: Scene, before: World, failure: Failure) -> None:
    """As it was; but a server that was turned off to be shelved stays off, as in Nova."""
    found = await settled(cloud, scene.uuid)
    assert found.fault is not None
    now = await world(cloud, scene.uuid)
    if now.vm_state == end.vm_failed:
        assert now.guest == now.power_state == Power.SHUTDOWN
        before = but(before, vm_state=end.vm_failed, guest=now.guest, power_state=now.power_state)
    if failure == Failure("shut_down", after=True):  # the guest is off, and nobody has been told yet
        assert (now.guest, now.power_state) == (Power.SHUTDOWN, Power.RUNNING)
        before = but(before, guest=now.guest)
    elif end.operation is offload.OFFLOAD:  # its guest may have been forgotten, and is known again by a start
        before = but(
            before, guest=now.guest, power_state=now.power_state, plugged=now.plugged, disks=now.disks
        )
        assert now.guest in (Power.SHUTDOWN, -1)
    else:
        assert await leaks(cloud) == []
    # What a process knew of the switch died with it; and a shelved server's ports may be plugged.
    unknown = failure.died or end.operation.name.startswith("unshelve")
    assert now == but(before, plugged=now.plugged if unknown else before.plugged)
    fresh = end.operation is create_image.CREATE_IMAGE or end.operation.name.startswith("shelve_and")
    fresh = fresh or end.operation is shelve.SHELVE  # before it there was no image
    whole = failure.after and failure.step == "upload"  # which is not taken from its user then
    left = [("snap", "active")] if whole and end.operation is create_image.CREATE_IMAGE else []
    assert await _stored(cloud) == (left if fresh else [("s-shelved", "active")])
    assert fake_driver(cloud).disks.snapshots() == []


Before = Callable[[EmbeddedCloud], Awaitable[Scene]]
Begin = Callable[[EmbeddedCloud, Scene], Awaitable[None]]


def _case(before: Before, begin: Begin, end: End) -> Case[Scene]:
    return Case(end.operation, before, begin, _look, partial(_succeeded, end), partial(_undone, end))


CASES = {
    "shelve": _case(
        _active,
        partial(_shelve, -1),
        End(shelve.SHELVE, Vm.SHELVED, Power.SHUTDOWN, vm_failed=Vm.STOPPED),
    ),
    "shelve_and_offload": _case(
        _active,
        partial(_shelve, 0),
        End(shelve.SHELVE_AND_OFFLOAD, Vm.SHELVED_OFFLOADED, None, vm_failed=Vm.STOPPED),
    ),
    "create_image": _case(
        _active, _create_image, End(create_image.CREATE_IMAGE, Vm.ACTIVE, Power.RUNNING, image="snap")
    ),
    "shelve_offload": _case(_shelved, _offload, End(offload.OFFLOAD, Vm.SHELVED_OFFLOADED, None)),
    "unshelve": _case(_shelved, _unshelve, End(unshelve.UNSHELVE, Vm.ACTIVE, Power.RUNNING, kept=False)),
    "unshelve_offloaded": _case(
        _offloaded, _unshelve, End(unshelve.UNSHELVE_OFFLOADED, Vm.ACTIVE, Power.RUNNING, kept=False)
    ),
}
