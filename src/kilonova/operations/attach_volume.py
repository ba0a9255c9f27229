"""Attaching a volume: it is reserved for the server, connected to its host, given to the guest, and is in
use.

The server's row has it from the beginning, so that nobody else takes the name of its disk.  Of a server that
is on no host it is only reserved: it is connected when the server comes to one (`unshelve`).
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec.structs import replace

from kilonova.db import instances
from kilonova.db.engine import Tx
from kilonova.errors import Invalid
from kilonova.journal.model import DONE, Done, Operation, Run, Step
from kilonova.model.context import RequestContext
from kilonova.model.instance import Instance
from kilonova.model.states import Vm
from kilonova.model.volume import Attachment, Connection
from kilonova.operations import begin, device_names, guards
from kilonova.operations.attachments import (
    VolumeParams,
    asker,
    given,
    let_go,
    noted,
    put,
    taken,
    unattached,
)
from kilonova.operations.cloud import Cloud
from kilonova.operations.interfaces import host_of_server
from kilonova.operations.steps import apply, host_of, plainly
from kilonova.services.volume.port import VolumeInfo


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked for.  ``device``: ``/dev/vdb``, None for the next that is free."""

    volume_id: str
    device: str | None = None
    tag: str | None = None
    delete_on_termination: bool = False
    multiattach: bool = True  # whether who asks knows of volumes that several servers have


async def submit(cloud: Cloud, context: RequestContext, uuid: str, wish: Wish) -> tuple[int, Attachment]:
    """The number of the action, and what the server is about to have.

    Raises NotFound for the server or the volume, Conflict for the server's state or a device that is taken,
    Invalid for a volume that is not to be had, Forbidden when there are disks enough.
    """
    instance = await cloud.db.read(lambda tx: begin.found(tx, uuid))
    guards.check("attach_volume", instance, context)
    volume = await cloud.volume.check(context, wish.volume_id)
    _check_server(instance, volume, wish)
    _check_volume(instance, volume, wish)
    made = Attachment(
        id=cloud.new_uuid(),
        volume_id=volume.id,
        attachment_id=cloud.new_uuid(),
        size_gb=volume.size_gb,
        tag=wish.tag,
        delete_on_termination=wish.delete_on_termination,
        multiattach=volume.multiattach,
    )

    def write(tx: Tx) -> tuple[int, Attachment]:
        _, guard = begin.taken(tx, context, uuid, "attach_volume")
        instance = instances.locked(tx, uuid)
        assert instance is not None, "it has just been changed"
        _check_server(instance, volume, wish)
        mine = _named(cloud, instance, made, wish)
        put(tx, instance, (*instance.volumes, mine))
        params = VolumeParams(attachment=mine, roles=tuple(sorted(context.roles)))
        operation = ATTACH_VOLUME if instance.host else ATTACH_VOLUME_OFFLOADED
        known = {"instance": replace(instance, volumes=(*instance.volumes, mine))}
        return cloud.journal.submit(tx, context, operation, uuid, guard.action, params, known), mine

    return await cloud.db.write(write)


def _check_volume(instance: Instance, volume: VolumeInfo, wish: Wish) -> None:
    """Raises Invalid for a volume that somebody else has, or this server itself, or that who asks would not
    understand."""
    if instance.uuid in volume.servers:
        raise _has_it(instance, volume)
    if volume.status not in ("available", "in-use" if volume.multiattach else "available"):
        whose = f", attached to instances {', '.join(volume.servers)}" if volume.servers else ""
        raise Invalid(
            f"Invalid volume: volume {volume.id} is {volume.status}{whose}; it has to be available to be "
            "attached."
        )
    if volume.multiattach and not wish.multiattach:
        raise Invalid(
            f"Volume {volume.id} may be attached to several instances: ask for it with microversion 2.60."
        )


def _has_it(instance: Instance, volume: VolumeInfo) -> Invalid:
    return Invalid(f"Invalid volume: volume {volume.id} is already attached to instance {instance.uuid}.")


def _check_server(instance: Instance, volume: VolumeInfo, wish: Wish) -> None:
    """Raises Invalid for a server that has the volume, or cannot have such a one while it is shelved."""
    if any(each.volume_id == volume.id for each in instance.volumes):
        raise _has_it(instance, volume)
    if instance.vm_state != Vm.SHELVED_OFFLOADED:
        return
    if volume.multiattach:
        raise Invalid(
            f"Volume {volume.id} may be attached to several instances, and a shelved one cannot get such a "
            "volume: unshelve it first."
        )
    if wish.tag is not None:
        raise Invalid("A shelved instance cannot get a volume with a tag: unshelve it first.")


def _named(cloud: Cloud, instance: Instance, made: Attachment, wish: Wish) -> Attachment:
    """With the name of its disk, which one on no host gets only when it comes to one (API-119)."""
    most = cloud.settings.number("max_disk_devices_to_attach", "compute")
    device = device_names.choose(instance, wish.device, most)
    return made if instance.host is None else replace(made, device=device)


async def _reserve(run: Run) -> Done:
    """Raises NotFound, or Conflict when somebody else was faster."""
    mine: Attachment = run.params.attachment
    with plainly():
        await run.cloud.volume.reserve(asker(run), mine.volume_id, run.instance_uuid, mine.attachment_id)
    return DONE


async def _release(run: Run) -> Done:
    return await let_go(run)


async def _connect(run: Run) -> Done:
    mine: Attachment = run.params.attachment
    host = await host_of_server(run)
    connection = await run.cloud.volume.connect(mine.attachment_id, host, mine.device)
    return Done(output=msgspec.to_builtins(connection), host=host)


def _connected(run: Run) -> Attachment:
    """The attachment as the host gets at it; without a connection if it was not even looked for."""
    output: Any = run.output("connect")
    connection = None if output is None else msgspec.convert(output, Connection)
    mine: Attachment = run.params.attachment
    return replace(mine, connection=connection)


async def _attach(run: Run) -> Done:
    return await given(run, _connected(run), "attach")


async def _detach(run: Run) -> Done:
    return await taken(run, _connected(run), "detach")


async def _complete(run: Run) -> Done:
    await run.cloud.volume.complete(run.params.attachment.attachment_id)
    mine = _connected(run)
    return Done(write=lambda tx: noted(tx, run, mine))


ATTACH_VOLUME = Operation(
    name="attach_volume",
    steps=(
        Step("reserve", _reserve, _release, event="compute_reserve_volume"),
        Step("connect", _connect, event="compute_connect_volume"),
        Step("attach", _attach, _detach, event="compute_attach_volume"),
        Step("complete", _complete, event="compute_complete_volume"),
    ),
    params=VolumeParams,
    apply=apply,
    failed=unattached,
    deadline=600.0,
    host_of=host_of,
)

ATTACH_VOLUME_OFFLOADED = Operation(
    name="attach_volume_offloaded",
    steps=(
        Step("reserve", _reserve, _release, event="api_reserve_volume"),
        Step("complete", _complete, event="api_attach_volume"),
    ),
    params=VolumeParams,
    apply=apply,
    failed=unattached,
    deadline=600.0,
    host_of=host_of,
)
