"""Detaching a volume: the guest lets go of it, and it is anybody's again.

A guest that keeps it keeps the attachment, too.  Once it has let go there is no way back, and none is needed.
"""

from __future__ import annotations

import msgspec
from msgspec.structs import replace

from kilonova.db import instances
from kilonova.db.engine import Tx
from kilonova.errors import Conflict, Invalid, NotFound
from kilonova.journal.model import DONE, Done, Kind, Operation, Run, Step
from kilonova.model.context import RequestContext
from kilonova.model.volume import Attachment
from kilonova.operations import begin, guards, interfaces
from kilonova.operations.attachments import (
    VolumeParams,
    asker,
    given,
    let_go,
    noted,
    of_volume,
    taken,
)
from kilonova.operations.cloud import Cloud
from kilonova.operations.leftovers import host_is_down
from kilonova.operations.steps import apply, host_of, plainly
from kilonova.operations.volumes import of_no_host, unless_deleted


async def submit(cloud: Cloud, context: RequestContext, uuid: str, volume_id: str) -> int:
    """The number of the action.

    Raises NotFound, also for a volume that the server does not have, Conflict for the server's state or a
    host that is down, Invalid for a volume that is not in use.
    """
    instance = await cloud.db.read(lambda tx: begin.found(tx, uuid))
    guards.check("detach_volume", instance, context)
    of_volume(instance, volume_id)
    if instance.host is not None and await host_is_down(cloud, instance.host):
        raise Conflict(f"The host of instance {uuid} is down: the volume can be detached when it is back.")
    gone = await _is_gone(cloud, context, volume_id)

    def write(tx: Tx) -> int:
        _, guard = begin.taken(tx, context, uuid, "detach_volume")
        instance = instances.locked(tx, uuid)
        assert instance is not None, "it has just been changed"
        mine = of_volume(instance, volume_id)
        params = VolumeParams(attachment=mine, roles=tuple(sorted(context.roles)), gone=gone)
        operation = DETACH_VOLUME if instance.host else DETACH_VOLUME_OFFLOADED
        known = {"instance": instance}
        return cloud.journal.submit(tx, context, operation, uuid, guard.action, params, known)

    return await cloud.db.write(write)


async def _is_gone(cloud: Cloud, context: RequestContext, volume_id: str) -> bool:
    """Whether there is no such volume any more, for anybody: then the server is rid of what it has of it.

    Raises NotFound for one that the caller may not use, Invalid for one that is not in use.
    """
    try:
        volume = await cloud.volume.check(context, volume_id)
    except NotFound:
        if await _exists(cloud, context, volume_id):
            raise
        return True
    if volume.status != "in-use":
        raise Invalid(
            f"Invalid volume: volume {volume_id} is {volume.status}; it has to be in use to be detached."
        )
    return False


async def _exists(cloud: Cloud, context: RequestContext, volume_id: str) -> bool:
    try:
        await cloud.volume.check(replace(context, roles=frozenset({"admin"})), volume_id)
    except NotFound:
        return False
    return True


async def _begin(run: Run) -> Done:
    """Raises NotFound when another request has detached it, Conflict for a volume that is not in use."""
    mine: Attachment = run.params.attachment
    now = await run.cloud.db.read(lambda tx: of_volume(begin.found(tx, run.instance_uuid), mine.volume_id))
    if now.attachment_id != mine.attachment_id:
        raise Conflict(f"Volume {mine.volume_id} was attached anew meanwhile; look again and repeat.")
    if not run.params.gone:
        with plainly():
            await run.cloud.volume.begin_detaching(asker(run), mine.volume_id)
    return Done(output=msgspec.to_builtins(now))


async def _stay(run: Run) -> Done:
    """Unless it is not the server's any more, and others may be at it."""
    mine: Attachment = run.params.attachment
    instance = await run.cloud.db.read(lambda tx: begin.found(tx, run.instance_uuid))
    if any(each.attachment_id == mine.attachment_id for each in instance.volumes):
        async with unless_deleted(run):
            with of_no_host():
                await run.cloud.volume.roll_detaching(mine.volume_id)
    return DONE


def _begun(run: Run) -> Attachment:
    """As the server had it when it was our turn."""
    return msgspec.convert(run.output("begin"), Attachment)


async def _detach(run: Run) -> Done:
    return await taken(run, _begun(run), "detach")


async def _reattach(run: Run) -> Done:
    """What the guest may have let go of by now; and its definition, where that has lost it."""
    return await given(run, _begun(run), "attach")


async def _release(run: Run) -> Done:
    return await let_go(run, also=lambda tx: noted(tx, run, None))


DETACH_VOLUME = Operation(
    name="detach_volume",
    steps=(
        Step("begin", _begin, _stay, event="compute_begin_detaching"),
        Step("detach", _detach, _reattach, event="compute_detach_volume"),
        Step("release", _release, kind=Kind.RETRIABLE, event="compute_release_volume"),
    ),
    params=VolumeParams,
    apply=apply,
    failed=interfaces.failed,
    deadline=600.0,
    host_of=host_of,
)

DETACH_VOLUME_OFFLOADED = Operation(
    name="detach_volume_offloaded",
    steps=(
        Step("begin", _begin, _stay, event="api_begin_detaching"),
        Step("release", _release, kind=Kind.RETRIABLE, event="api_detach_volume"),
    ),
    params=VolumeParams,
    apply=apply,
    failed=interfaces.failed,
    deadline=600.0,
    host_of=host_of,
)
