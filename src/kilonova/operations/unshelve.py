"""Bringing a shelved server back: by a start where it still is, or on a host that is found for it.

The row keeps the image that the server was made of; the one that it was shelved into is only what its disk is
made of anew.  So a failure has nothing to restore (MG-SHV-7): what was begun is undone, and it can be tried
again.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET, UnsetType
from msgspec.structs import replace

from kilonova.db import hosts
from kilonova.db.engine import Tx
from kilonova.errors import Conflict, Failed, Invalid, NotFound
from kilonova.journal.model import DONE, Done, Kind, Operation, Run, Step, StoredError
from kilonova.model.context import RequestContext
from kilonova.model.instance import ImageMeta, Instance
from kilonova.model.states import Task, Vm
from kilonova.operations import create_checks, guards, host_steps, shelved_image
from kilonova.operations.begin import found, taken
from kilonova.operations.cloud import Cloud
from kilonova.operations.create import image_meta
from kilonova.operations.device_names import named
from kilonova.operations.leftovers import another_if_down, owing
from kilonova.operations.placing import place, request_of
from kilonova.operations.steps import (
    agent_of,
    apply,
    command,
    guest_for,
    guest_of,
    host_of,
    idle_again,
    in_error,
    instance_of,
    most_hosts,
)
from kilonova.operations.volumes import STEP, connected, reserved, seconds_kept, seconds_released, volumes_of

Zone = str | UnsetType | None
"""A zone, None for "in any", UNSET for "as it was"."""


class UnshelveParams(msgspec.Struct, frozen=True, kw_only=True):
    """``image_id``: what it was shelved into; ``host``: where the user wants it."""

    image_id: str | None = None
    host: str | None = None


class ShelvedImageGone(Failed):
    """The image that a server was shelved into is no more: nothing can bring the server back."""


async def submit(
    cloud: Cloud, context: RequestContext, uuid: str, *, zone: Zone = UNSET, host: str | None = None
) -> None:
    """Raises NotFound; Conflict for a state or a host that does not fit; Invalid for no such host or zone."""
    placed = zone is not UNSET or host is not None
    first = await cloud.db.read(lambda tx: found(tx, uuid))
    guards.check("unshelve", first, context)
    _check_placed(first, placed)
    await _check_target(cloud, first, zone, host)

    def write(tx: Tx) -> None:
        changes = {} if isinstance(zone, UnsetType) else {"pinned_availability_zone": zone}
        instance, guard = taken(
            tx,
            context,
            uuid,
            "unshelve",
            also=lambda tx, instance: _check_placed(instance, placed),
            **changes,
        )
        operation = UNSHELVE if instance.vm_state == Vm.SHELVED else UNSHELVE_OFFLOADED
        params = UnshelveParams(image_id=shelved_image.shelved_image(instance), host=host)
        cloud.journal.submit(tx, context, operation, uuid, guard.action, params, {"instance": instance})

    await cloud.db.write(write)


def _check_placed(instance: Instance, placed: bool) -> None:
    if placed and instance.vm_state != Vm.SHELVED_OFFLOADED:
        raise Conflict(
            "Specifying an availability zone or a host when unshelving server "
            f"'{instance.uuid}' with status '{instance.vm_state.upper()}' is not supported, it must be "
            "'SHELVED_OFFLOADED'."
        )


async def _check_target(cloud: Cloud, instance: Instance, zone: Zone, host: str | None) -> None:
    """The zone must have a host that takes servers, the host must be there, and in the server's zone."""
    if isinstance(zone, str):
        await create_checks.check_zone(cloud, zone, False)
    if host is None:
        return
    named = await cloud.top.read(lambda tx: hosts.show(tx, host))
    if named is None:
        raise Invalid(f"Compute host {host} could not be found.")
    wanted = instance.pinned_availability_zone if isinstance(zone, UnsetType) else zone
    its_own = named.availability_zone or cloud.settings.text("default_availability_zone")
    if wanted is not None and wanted != its_own:
        raise Conflict(f'Host "{host}" is not in the availability zone "{wanted}".')


# ---- where it still is ----


async def _plug(run: Run) -> Done:
    instance = await instance_of(run)
    assert instance.host is not None
    await agent_of(run, instance.host).plug(command(run, "plug"), await guest_of(run, instance))
    return Done(host=instance.host, changes={"task_state": Task.POWERING_ON})


async def _power_on(run: Run) -> Done:
    instance = await instance_of(run)
    assert instance.host is not None
    guest = await guest_of(run, instance)
    observed = await agent_of(run, instance.host).start(command(run, "power_on"), guest, paused=False)
    return _active(run, instance.host, observed=observed)


async def _power_off(run: Run) -> Done:
    """Undo: a shelved server does not run."""
    instance = await instance_of(run)
    assert instance.host is not None
    observed = await agent_of(run, instance.host).shut_down(
        command(run, "power_off"), instance.uuid, timeout=0, clean=False
    )
    return Done(host=instance.host, changes={"observed": observed})


def _active(run: Run, host: str, **more: Any) -> Done:
    """It runs, and is not shelved any more."""
    changes = {"vm_state": Vm.ACTIVE, "task_state": None, "fault": None, **more}
    return Done(host=host, changes=changes, write=lambda tx: shelved_image.forget(tx, run))


async def _image(run: Run) -> Done:
    """Nobody needs what it was shelved into any more, and its volumes are in use."""
    await seconds_kept(run, STEP)
    if run.params.image_id is not None:
        await run.cloud.image.remove_snapshot(run.params.image_id)
    return DONE


# ---- elsewhere ----


async def _shelved(run: Run) -> ImageMeta:
    """The image as it is now.  Raises ShelvedImageGone, and Failed for one that cannot be used."""
    cloud: Cloud = run.cloud
    instance, image_id = await instance_of(run), run.params.image_id
    gone = f"Error during unshelve instance {instance.uuid}: its shelved image {image_id} is gone."
    if image_id is None:
        raise ShelvedImageGone(gone)
    try:
        image = await cloud.image.show(shelved_image.owner_of(run, instance), image_id)
    except NotFound:
        raise ShelvedImageGone(gone) from None
    if image.status != "active":
        raise Failed(f"The shelved image {image_id} is {image.status}, and cannot be used.")
    return image_meta(image)


async def _place(run: Run) -> Done:
    cloud: Cloud = run.cloud
    instance = await instance_of(run)
    image = await _shelved(run)
    if run.action.epoch > 1 or run.known.get("placing"):
        await cloud.claims.release_server(instance)  # what a former try may have claimed
    run.known["placing"] = True
    request = request_of(
        cloud,
        replace(instance, image=image),
        requested_host=run.params.host,
        tried=run.action.outputs.get("tried", {}),
        ignored=await owing(cloud, instance.uuid),
    )
    selection = await place(cloud, instance, request)
    return Done(
        output={"host": selection.host, "rejected": selection.reasons, "removed": selection.removed},
        changes={
            "host": selection.host,
            "node": selection.node,
            "availability_zone": selection.availability_zone,
        },
    )


async def _unplace(run: Run) -> Done:
    cloud: Cloud = run.cloud
    await cloud.claims.release_server(await instance_of(run))
    nowhere = {"host": None, "node": None, "availability_zone": None}
    return Done(changes={**nowhere, "task_state": Task.UNSHELVING})


async def _bind(run: Run) -> Done:
    cloud: Cloud = run.cloud
    instance = await instance_of(run)
    assert instance.host is not None
    details = await cloud.scheduler.details(instance.host)
    vifs = await cloud.network.bind(instance.uuid, instance.host, details)
    return Done(changes={"vifs": vifs, "task_state": Task.SPAWNING})


async def _unbind(run: Run) -> Done:
    return Done(changes={"vifs": await run.cloud.network.unbind(run.instance_uuid)})


async def _volumes(run: Run) -> Done:
    """Its volumes are connected to its host; those that it had been left with stay until it runs."""
    instance, volumes = await instance_of(run), await volumes_of(run)
    if not volumes:
        return DONE
    assert instance.host is not None
    wanted = named(replace(instance, volumes=volumes))
    here = await connected(run, await reserved(run, wanted), instance.host, another_if_down)
    return Done(host=instance.host, changes={"volumes": here}, output=msgspec.to_builtins(volumes))


async def _disconnect(run: Run) -> Done:
    return Done(changes={"volumes": await seconds_released(run)})


async def _prepare(run: Run) -> Done:
    """The guest's disk from what it was shelved into, without its key: that is in there (MG-SHV-8)."""
    instance = await instance_of(run)
    assert instance.host is not None
    as_shelved = replace(instance, image=await _shelved(run), key_data=None)
    guest = await guest_for(run, as_shelved, holder=instance.uuid)
    async with another_if_down(run, instance.host):
        await agent_of(run, instance.host).prepare(command(run, "prepare"), replace(guest, flat_root=True))
    return Done(host=instance.host)


async def _resume(run: Run) -> Done:
    host, observed = await host_steps.resumed(run)
    return _active(run, host, observed=observed, launched_at=run.cloud.clock.now())


def _still_offloaded(tx: Tx, run: Run, error: StoredError) -> None:
    """It can be tried again, unless its image is gone (MG-SHV-5, MG-SHV-6)."""
    if error.kind == ShelvedImageGone.__name__:
        in_error(tx, run, error)
    else:
        idle_again(tx, run, error)


_IMAGE = Step("image", _image, kind=Kind.RETRIABLE, event="api_delete_image")

UNSHELVE = Operation(
    name="unshelve",
    steps=(
        Step("plug", _plug, event="compute_plug_vifs"),
        Step("power_on", _power_on, _power_off, event="compute_start_instance"),
        _IMAGE,
    ),
    params=UnshelveParams,
    apply=apply,
    failed=idle_again,
    deadline=600.0,
    host_of=host_of,
)

UNSHELVE_OFFLOADED = Operation(
    name="unshelve_offloaded",
    steps=(
        Step("place", _place, _unplace, event="schedule_instances"),
        Step("volumes", _volumes, _disconnect, event="compute_connect_volumes"),
        Step("bind", _bind, _unbind, event="compute_bind_ports"),
        Step("prepare", _prepare, host_steps.discard, event="compute_prepare_disks"),
        Step("plug", host_steps.plug, host_steps.unplug, event="compute_plug_vifs"),
        Step("start", host_steps.start, host_steps.destroy, event="compute_unshelve_instance"),
        Step("wired", host_steps.wired, event="compute_wait_for_vif_plugged"),
        Step("resume", _resume, event="compute_resume_guest"),
        _IMAGE,
    ),
    params=UnshelveParams,
    apply=apply,
    failed=_still_offloaded,
    deadline=3600.0,
    retry_from="place",
    max_rounds=lambda run: most_hosts(run, run.params.host),
    host_of=host_of,
)
