"""What attaching and detaching of a volume share: the server's row, which has the volume from the moment that
it was asked for until it is gone; its host; and how a deleted server is rid of its volumes.

Neither sets a task_state, as in Nova: what is asked of the server meanwhile waits for its turn in the
journal.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import structlog
from msgspec.structs import replace

from kilonova.db import instances
from kilonova.db.engine import Tx
from kilonova.errors import NotFound, Refused
from kilonova.journal.model import Done, Kind, Operation, Run, Step, StoredError
from kilonova.model.context import RequestContext
from kilonova.model.instance import Instance
from kilonova.model.volume import Attachment
from kilonova.operations.cloud import Cloud
from kilonova.operations.interfaces import bare_guest, failed, host_of_server
from kilonova.operations.steps import agent_of, apply, command, instance_of
from kilonova.operations.volumes import released, unless_deleted

log = structlog.get_logger("kilonova.volumes")


class VolumeParams(msgspec.Struct, frozen=True, kw_only=True):
    """The volume as the row had it when it was asked for; ``roles`` are those of who asked.

    ``gone``: its service does not know it any more, and it is only still in the guest and in the row.
    """

    attachment: Attachment
    roles: tuple[str, ...] = ()
    gone: bool = False


def asker(run: Run) -> RequestContext:
    """Who has asked for it, as far as the volume service wants to know."""
    return RequestContext(
        request_id=run.action.request_id,
        user_id=run.action.user_id or "",
        project_id=run.action.project_id,
        roles=frozenset(run.params.roles),
    )


def of_volume(instance: Instance, volume_id: str) -> Attachment:
    """The server's attachment of a volume.  Raises NotFound."""
    for each in instance.volumes:
        if each.volume_id == volume_id:
            return each
    raise NotFound(f"Volume {volume_id} is not attached to instance {instance.uuid}.")


# ---- the row ----


def put(tx: Tx, instance: Instance, volumes: tuple[Attachment, ...]) -> None:
    """Write the volumes of a server, whose row is locked."""
    instances.update(tx, instance.uuid, expect_task=instances.ANY, even_leaving=True, volumes=volumes)


def noted(tx: Tx, run: Run, change: Attachment | None) -> None:
    """The row has the attachment of the run's volume as it is now, if it still has it; None: not any more.

    What others have changed of it meanwhile stays.
    """
    mine: Attachment = run.params.attachment
    instance = instances.locked(tx, run.instance_uuid)
    if instance is None:
        return
    kept = tuple(each for each in instance.volumes if each.id != mine.id)
    if change is not None:
        kept = tuple(
            replace(each, connection=change.connection) if each.id == mine.id else each
            for each in instance.volumes
        )
    put(tx, instance, kept)
    if "instance" in run.known:
        run.known["instance"] = replace(run.known["instance"], volumes=kept)


# ---- the guest ----


async def given(run: Run, attachment: Attachment, step: str) -> Done:
    """The guest has the volume, and has it at each start."""
    host = await host_of_server(run)
    await agent_of(run, host).attach_volume(command(run, step), await bare_guest(run), attachment)
    return Done(host=host)


async def taken(run: Run, attachment: Attachment, step: str) -> Done:
    """The guest has let go of the volume, if it had it."""
    host = await host_of_server(run)
    await agent_of(run, host).detach_volume(command(run, step), await bare_guest(run), attachment)
    return Done(host=host)


def unattached(tx: Tx, run: Run, error: StoredError) -> None:
    """It is not the server's after all."""
    failed(tx, run, error)
    noted(tx, run, None)


# ---- of a server that is deleted ----


class LeftVolumes(msgspec.Struct, frozen=True, kw_only=True):
    volumes: tuple[Attachment, ...]


async def parted(run: Run, attachment: Attachment) -> None:
    """The server has the volume no more, by no attachment that a move may have made; the volume is deleted if
    it was to end with it.  Converges.

    Raises TryAgain.  That the volume service refuses to delete it concerns no server (MG-DEL-6).
    """
    cloud: Cloud = run.cloud
    await cloud.volume.release_all(attachment.volume_id, run.instance_uuid)
    if attachment.delete_on_termination:
        try:
            await cloud.volume.delete(attachment.volume_id)
        except Refused as error:
            log.error("a volume outlives its server", volume=attachment.volume_id, reason=str(error))


async def free_volumes(run: Run) -> Done:
    """Part a server that is being deleted from its volumes.

    What the volume service cannot do now holds up no deletion (MG-DEL-6): another operation does it later.
    """
    left = []
    for each in (await instance_of(run)).volumes:
        try:
            await parted(run, each)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is tried again, and listed if it stays
            log.warning("a volume is freed later", volume=each.volume_id, error=repr(error))
            left.append(each)

    return Done(changes={"volumes": ()}, write=lambda tx: _free_later(tx, run, tuple(left)))


def _free_later(tx: Tx, run: Run, volumes: tuple[Attachment, ...]) -> None:
    if volumes:
        context = RequestContext(
            request_id=run.action.request_id,
            user_id=run.action.user_id or "",
            project_id=run.action.project_id,
        )
        cloud: Cloud = run.cloud
        params = LeftVolumes(volumes=volumes)
        cloud.journal.submit(tx, context, FREE_VOLUMES, run.instance_uuid, FREE_VOLUMES.name, params)


async def let_go(run: Run, also: Callable[[Tx], None] = lambda tx: None) -> Done:
    """The server has the run's volume no more; ``also`` is in the commit.  Converges.

    A deletion, which waits for our end and will not find the volume in the row, is not held up either.
    """
    mine: Attachment = run.params.attachment
    left: tuple[Attachment, ...] = (replace(mine, delete_on_termination=False),)
    async with unless_deleted(run):
        await released(run, (mine.attachment_id,))
        left = ()

    def write(tx: Tx) -> None:
        also(tx)
        _free_later(tx, run, left)

    return Done(write=write)


async def _free(run: Run) -> Done:
    for each in run.params.volumes:
        await parted(run, each)
    return Done()


FREE_VOLUMES = Operation(
    name="free_volumes",
    steps=(Step("free", _free, kind=Kind.RETRIABLE, event="compute_free_volumes"),),
    params=LeftVolumes,
    apply=apply,
    failed=lambda tx, run, error: None,  # nobody is there to be told
    deadline=600.0,
)
