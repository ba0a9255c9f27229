"""Cases of attaching and detaching a volume, also of a server that is on no host.

In the end row, volume service and guest agree: the volume is in all of them or in none.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import msgspec

from kilonova.app import EmbeddedCloud
from kilonova.db import instances, volume_attachments, volumes
from kilonova.db.volume_attachments import StoredAttachment
from kilonova.journal.model import Operation
from kilonova.model.states import Vm
from kilonova.model.volume import Attachment
from kilonova.operations import attach_volume, detach_volume, shelve
from kilonova.operations.attach_volume import ATTACH_VOLUME, ATTACH_VOLUME_OFFLOADED, Wish
from kilonova.operations.detach_volume import DETACH_VOLUME, DETACH_VOLUME_OFFLOADED
from kilonova.testing.embedded import fake_driver, member, server, settled
from tests.crash.generated import Case, Failure, whole_log
from tests.crash.scenes import active
from tests.crash.world import World, assert_sound, but, log_of, world
from tests.operations.with_volumes import new_volume


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
    assert await log_of(cloud, scene.uuid, operation.name) == whole_log(operation)
    now = await agreed(cloud, scene)
    assert [each.volume_id for each in now.row] == ([scene.volume] if had else [])
    assert [each.device for each in now.row if each.connection] == (
        ["/dev/vdb"] if had and found.host else []
    )


async def assert_undone(
    cloud: EmbeddedCloud, scene: Scene, before: Everything, failure: Failure | None = None
) -> None:
    found = await settled(cloud, scene.uuid)
    assert found.fault is not None
    now = await agreed(cloud, scene)
    if failure is not None and failure.died:
        now = msgspec.structs.replace(now, world=but(now.world, plugged=before.world.plugged))
    assert now == before


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
    "attach a volume": case(ATTACH_VOLUME, with_a_volume, attach, True),
    "detach a volume": case(DETACH_VOLUME, with_its_volume, detach, False),
    "attach a volume away": case(ATTACH_VOLUME_OFFLOADED, away_with_a_volume, attach, True, AWAY),
    "detach a volume away": case(DETACH_VOLUME_OFFLOADED, away_with_its_volume, detach, False, AWAY),
}
