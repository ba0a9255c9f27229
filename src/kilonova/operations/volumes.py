"""A server's volumes when it moves: each gets a second attachment, connected to the other host, before the
guest is there; when it is decided where the server stays, one of the two is released.

So no volume is without an attachment, and none is anybody else's meanwhile.  The id of the second follows
from the step that makes it and from the first: whoever repeats the step, or undoes it, finds what was made.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager
from uuid import UUID, uuid5

import msgspec
import structlog
from msgspec.structs import replace

from kilonova.db import instances
from kilonova.db.engine import DatabaseUnavailable
from kilonova.errors import Conflict, Failed, HostFault, NotFound, TryAgain, Unreachable
from kilonova.journal.model import DONE, Done, Run
from kilonova.model.context import RequestContext
from kilonova.model.instance import Instance
from kilonova.model.states import Task
from kilonova.model.volume import Attachment
from kilonova.operations.cloud import Cloud
from kilonova.operations.moving import context_of, mover_of, remember
from kilonova.operations.steps import instance_of

log = structlog.get_logger("kilonova.volumes")

Attachments = tuple[Attachment, ...]
STEP = "volumes"

At = Callable[[Run, str], AbstractAsyncContextManager[None]]
"""What a host's faults mean where it is asked."""


async def volumes_of(run: Run) -> Attachments:
    """The server's volumes as they are now: what waited in front of this run may have changed them."""
    found: Instance | None = await run.cloud.db.read(lambda tx: instances.show(tx, run.instance_uuid))
    if found is None:
        raise Failed(f"Instance {run.instance_uuid} has vanished from the database.")
    if "instance" in run.known:
        run.known["instance"] = replace(run.known["instance"], volumes=found.volumes)
    return found.volumes


# ---- the second attachments ----


def second(run: Run, volume: Attachment) -> str:
    """The id of the attachment that this round of the operation makes besides that one."""
    return str(uuid5(UUID(volume.attachment_id), run.command_id(STEP)))


async def reserved(run: Run, volumes: Attachments) -> Attachments:
    """A second attachment of each, to no host so far.  Converges.

    Raises Failed for a volume that is not there any more, or not to be had.
    """
    return tuple([await _reserved(run, each) for each in volumes])


async def _reserved(run: Run, volume: Attachment) -> Attachment:
    cloud: Cloud = run.cloud
    context = await _owner(run)
    made = replace(volume, attachment_id=second(run, volume), connection=None)
    try:
        await cloud.volume.reserve(context, volume.volume_id, run.instance_uuid, made.attachment_id)
    except (NotFound, Conflict) as error:
        raise Failed(f"Volume {volume.volume_id} of the server cannot be taken along: {error}") from error
    return made


async def _owner(run: Run) -> RequestContext:
    """Whoever moves the server, and whoever gave it the volume: it has it."""
    instance = await instance_of(run)
    return RequestContext(
        request_id=run.action.request_id,
        user_id=instance.user_id,
        project_id=instance.project_id,
        roles=frozenset({"admin"}),
    )


async def connected(run: Run, volumes: Attachments, host: str, at: At) -> Attachments:
    """Those as that host gets at them, which says that it can.  Converges.

    Raises HostFault for one that it does not reach, Failed for one that is not there any more.
    """
    if not volumes:
        return ()
    found = tuple([await _connected(run, each, host) for each in volumes])
    async with at(run, host):
        await mover_of(run, host).check_volumes(run.instance_uuid, found)
    return found


async def _connected(run: Run, volume: Attachment, host: str) -> Attachment:
    cloud: Cloud = run.cloud
    try:
        connection = await cloud.volume.connect(volume.attachment_id, host, volume.device)
    except NotFound as error:
        raise Failed(f"Volume {volume.volume_id} of the server is gone: {error}") from error
    except HostFault as error:
        raise HostFault(f"Volume {volume.volume_id} cannot follow to {host}: {error}") from error
    return replace(volume, connection=connection)


@contextlib.contextmanager
def of_no_host() -> Iterator[None]:
    """Undo something at the volume service: that it is Unreachable is no host's fault, so that what is to be
    undone is not left to a host that is down (`leftovers.left_to_dead_hosts`)."""
    try:
        yield
    except DatabaseUnavailable:
        raise
    except Unreachable as error:
        raise TryAgain(str(error)) from error


@contextlib.asynccontextmanager
async def unless_deleted(run: Run) -> AsyncIterator[None]:
    """A deletion that waits for the end of this is not held up by a silent volume service: it releases all
    that the server has of its volumes itself."""
    try:
        yield
    except DatabaseUnavailable:
        raise
    except TryAgain as error:
        found = await run.cloud.db.read(lambda tx: instances.show(tx, run.instance_uuid))
        if found is not None and found.task_state != Task.DELETING:
            raise
        log.warning("a volume is left to a deletion", instance=run.instance_uuid, error=str(error))


async def released(run: Run, attachment_ids: Iterable[str]) -> None:
    """Converges."""
    cloud: Cloud = run.cloud
    for each in attachment_ids:
        with of_no_host():
            await cloud.volume.release(each)


async def kept(run: Run, stay: Attachments, go: Attachments) -> None:
    """It is decided: those that stay are in use, and the others nobody's.  Converges.

    A volume that somebody has deleted by force meanwhile holds up nobody.  Of one of which only the new
    attachment was, the old one is left: nobody else may get what a guest writes to.
    """
    async with unless_deleted(run):
        await _kept(run, stay, go)


async def _kept(run: Run, stay: Attachments, go: Attachments) -> None:
    cloud: Cloud = run.cloud
    other = {each.volume_id: each.attachment_id for each in go}
    for each in stay:
        try:
            await cloud.volume.complete(each.attachment_id)
        except NotFound as error:
            log.error("a volume of a server is gone", instance=run.instance_uuid, error=str(error))
            continue
        if other.get(each.volume_id, each.attachment_id) != each.attachment_id:
            await released(run, (other[each.volume_id],))


def before(run: Run, step: str) -> Attachments:
    """The volumes as that step has found them, if it has."""
    return msgspec.convert(run.output(step) or (), Attachments)


async def seconds_kept(run: Run, step: str) -> None:
    """What that step has made stays, and what the server had before it goes."""
    volumes = before(run, step)
    await kept(run, tuple(replace(each, attachment_id=second(run, each)) for each in volumes), volumes)


async def seconds_released(run: Run) -> Attachments:
    """None of the second attachments is left, whether or not it is known that they were made; the volumes as
    they are without them."""
    volumes = before(run, STEP) or await volumes_of(run)
    async with unless_deleted(run):
        await released(run, (second(run, each) for each in volumes))
    return volumes


# ---- of a server that is shelved ----


async def disconnected(run: Run, volumes: Attachments) -> Attachments:
    """Attachments to no host, to be had instead of these.  Converges.

    One that cannot be had any more leaves the volume with that which it has, which may be gone itself: the
    server can still be shelved away.
    """
    made = []
    for each in volumes:
        try:
            made.append(await _reserved(run, each))
        except Failed as error:
            log.error("a volume stays connected", instance=run.instance_uuid, error=str(error))
            made.append(replace(each, connection=None))
    return tuple(made)


# ---- steps of moves ----


async def brought(run: Run, here: str, host: str, at: At, *, back: bool = False) -> Done:
    """The volumes, which are connected ``here``, are connected to ``host``, too; the move remembers both
    attachments of each.  ``back``: the host is the one that it has come from.
    """
    context, volumes = await context_of(run), await volumes_of(run)
    if not (volumes or context.old_volumes or context.new_volumes):
        return DONE
    there = volumes
    if here != host:
        there = await connected(run, await reserved(run, volumes), host, at)
    old, new = (there, volumes) if back else (volumes, there)
    remembered = replace(context, old_volumes=old, new_volumes=new)
    output = msgspec.to_builtins(volumes)
    return Done(host=host, output=output, write=lambda tx: remember(tx, run, remembered))


async def taken_back(run: Run) -> Done:
    """The undo of that."""
    await seconds_released(run)
    return DONE


async def at_new_host(run: Run) -> None:
    """The server stays where it has come to."""
    context = await context_of(run)
    await kept(run, context.new_volumes, context.old_volumes)
