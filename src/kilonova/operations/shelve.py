"""Shelving a server: it is turned off, its disk becomes an image, and, if the operator has it so, its host is
rid of it at once.

A failure before the image is complete leaves the server as it was, but off, as in Nova.
"""

from __future__ import annotations

from typing import Any

import msgspec

from kilonova.db.engine import Tx
from kilonova.errors import Invalid
from kilonova.journal.model import Done, Kind, Operation, Run, Step
from kilonova.model.context import RequestContext
from kilonova.model.instance import Instance
from kilonova.model.states import Task, Vm
from kilonova.operations import shelved_image
from kilonova.operations.begin import taken
from kilonova.operations.cloud import Cloud
from kilonova.operations.offload import LEAVE_STEPS
from kilonova.operations.snapshot_steps import check_host, drop_file, drop_image, make_file, upload
from kilonova.operations.steps import apply, host_of, idle_again, instance_of
from kilonova.operations.stop import shut_down


class ShelveParams(msgspec.Struct, frozen=True, kw_only=True):
    """``roles`` are those of the user who asked, which Nova keeps with the image."""

    image_id: str
    roles: tuple[str, ...] = ()


async def submit(cloud: Cloud, context: RequestContext, uuid: str) -> None:
    """Raises NotFound, Conflict for a state that does not allow it, Invalid for a server that cannot be."""
    await check_host(cloud, context, uuid, "shelve")
    at_once = cloud.settings.number("shelved_offload_time") == 0
    params = ShelveParams(image_id=cloud.new_uuid(), roles=tuple(sorted(context.roles)))

    def write(tx: Tx) -> None:
        instance, guard = taken(tx, context, uuid, "shelve", also=_check)
        operation = SHELVE_AND_OFFLOAD if at_once else SHELVE
        cloud.journal.submit(tx, context, operation, uuid, guard.action, params, {"instance": instance})

    await cloud.db.write(write)


def _check(tx: Tx, instance: Instance) -> None:
    if instance.image is None or instance.image.disk_format == "iso":
        raise Invalid(
            f"Instance {instance.uuid} cannot be shelved: it runs from a medium that a snapshot of its disk "
            "does not have."
        )


async def _image(run: Run) -> Done:
    cloud: Cloud = run.cloud
    params: ShelveParams = run.params
    instance = await instance_of(run)
    own = {"user_id": run.action.user_id or instance.user_id, "boot_roles": ",".join(params.roles)}
    name = shelved_image.name_of(instance)
    await cloud.image.add_snapshot(
        shelved_image.snapshot_of(cloud.settings, instance, params.image_id, name, own)
    )
    return Done(output=params.image_id)


async def _shut_down(run: Run) -> Done:
    instance = await instance_of(run)
    clean = instance.vm_state != Vm.PAUSED  # who does not run hears no button
    return await shut_down(run, instance, clean=clean, task_state=Task.SHELVING_IMAGE_PENDING_UPLOAD)


async def _snapshot(run: Run) -> Done:
    return await make_file(run, Task.SHELVING_IMAGE_UPLOADING)


def _shelved(task_state: str | None) -> Any:
    async def shelved(run: Run) -> Done:
        await instance_of(run)
        image_id: str = run.params.image_id
        return Done(
            changes={"vm_state": Vm.SHELVED, "task_state": task_state, "fault": None},
            write=lambda tx: shelved_image.remember(tx, run, image_id),
        )

    return shelved


_STEPS = (
    Step("image", _image, drop_image, event="api_create_image"),
    Step("shut_down", _shut_down, event="compute_power_off"),
    Step("snapshot", _snapshot, drop_file, event="compute_snapshot_disk"),
    Step("upload", upload, event="compute_upload_image"),
)

SHELVE = Operation(
    name="shelve",
    steps=(*_STEPS, Step("shelved", _shelved(None), event="compute_shelve_instance")),
    params=ShelveParams,
    apply=apply,
    failed=idle_again,
    deadline=3600.0,
    host_of=host_of,
)

SHELVE_AND_OFFLOAD = Operation(
    name="shelve_and_offload",
    steps=(
        *_STEPS,
        Step(
            "shelved",
            _shelved(Task.SHELVING_OFFLOADING),
            kind=Kind.PIVOT,
            event="compute_shelve_instance",
        ),
        *LEAVE_STEPS,
    ),
    params=ShelveParams,
    apply=apply,
    failed=idle_again,
    deadline=3600.0,
    host_of=host_of,
)
