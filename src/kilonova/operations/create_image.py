"""Making an image of a server, whether it runs or not (Nova's snapshot)."""

from __future__ import annotations

import msgspec
import structlog
from msgspec.structs import replace

from kilonova.db import instances
from kilonova.db.engine import Tx
from kilonova.errors import HostFault, NotFound
from kilonova.journal.model import DONE, Done, Operation, Run, Step
from kilonova.model.context import RequestContext
from kilonova.model.states import Task
from kilonova.operations import create_checks
from kilonova.operations.begin import taken
from kilonova.operations.cloud import Cloud
from kilonova.operations.shelved_image import owner_of, snapshot_of
from kilonova.operations.snapshot_steps import check_host, drop_file, drop_image, make_file, upload
from kilonova.operations.steps import apply, host_of, idle_again, instance_of

log = structlog.get_logger("kilonova.snapshot")

PATIENCE = 5.0  # seconds in which the image should be there
LOOK = 0.01


class CreateImageParams(msgspec.Struct, frozen=True, kw_only=True):
    """``metadata`` are properties that count before those of the base image."""

    image_id: str
    name: str
    metadata: dict[str, str] = {}
    roles: tuple[str, ...] = ()


async def submit(
    cloud: Cloud, context: RequestContext, uuid: str, name: str, metadata: dict[str, str]
) -> str:
    """The id of the image, which is made at once and gets its data later.

    Raises NotFound, or Conflict for a state that does not allow it.
    """
    await check_host(cloud, context, uuid, "snapshot")
    params = CreateImageParams(
        image_id=cloud.new_uuid(), name=name, metadata=metadata, roles=tuple(sorted(context.roles))
    )

    def write(tx: Tx) -> None:
        instance, guard = taken(tx, context, uuid, "snapshot")
        known = {"instance": instance}
        cloud.journal.submit(tx, context, CREATE_IMAGE, uuid, guard.action, params, known)

    await cloud.db.write(write)
    await _made(cloud, context, uuid, params.image_id)
    return params.image_id


async def _made(cloud: Cloud, context: RequestContext, uuid: str, image_id: str) -> None:
    """Wait a moment for the first step, so that who has the id finds the image.

    The image is not made here: what dies between that and the operation would leave it for ever.
    """
    instance = await cloud.db.read(lambda tx: instances.show(tx, uuid))
    if instance is None:
        return
    owner = replace(context, project_id=instance.project_id, roles=frozenset({"member"}))
    until = cloud.clock.now() + int(PATIENCE * 1_000_000)
    while cloud.clock.now() < until:
        try:
            await cloud.image.show(owner, image_id)
        except NotFound:
            if not await cloud.db.read(lambda tx: cloud.journal.is_busy(tx, uuid)):
                return  # it has failed already
            await cloud.clock.sleep(LOOK)
        else:
            return


async def _image(run: Run) -> Done:
    cloud: Cloud = run.cloud
    params: CreateImageParams = run.params
    instance = await instance_of(run)
    own = {
        **params.metadata,
        "user_id": run.action.user_id or instance.user_id,
        "boot_roles": ",".join(params.roles),
    }
    await cloud.image.add_snapshot(snapshot_of(cloud.settings, instance, params.image_id, params.name, own))
    return Done(output=params.image_id, changes={"task_state": Task.IMAGE_SNAPSHOT})


async def _drop_image(run: Run) -> Done:
    """What is complete is the user's, also when the server is deleted in that moment (MG-SNP-3)."""
    return DONE if await _status(run) == "active" else await drop_image(run)


async def _snapshot(run: Run) -> Done:
    cloud: Cloud = run.cloud
    await instance_of(run)
    pending = {"task_state": Task.IMAGE_PENDING_UPLOAD}
    await cloud.db.write(lambda tx: apply(tx, run, pending))
    return await make_file(run, Task.IMAGE_UPLOADING)


async def _upload(run: Run) -> Done:
    """An image that its user has deleted meanwhile is not wanted: that is no failure (MG-SNP-4)."""
    try:
        done = await upload(run)
    except (HostFault, NotFound) as error:
        if await _status(run) is not None:
            raise
        log.warning(
            "an image was deleted while it was made",
            instance=run.instance_uuid,
            image=run.params.image_id,
            error=str(error),
        )
        done = await drop_file(run)
    return Done(host=done.host, changes={"task_state": None, "progress": 0})


async def _status(run: Run) -> str | None:
    """Of the image; None if it is gone."""
    cloud: Cloud = run.cloud
    try:
        image = await cloud.image.show(owner_of(run, await instance_of(run)), run.params.image_id)
    except NotFound:
        return None
    return image.status


def check_metadata(cloud: Cloud, metadata: dict[str, str]) -> None:
    """As many as a server may have; not looked at from 2.39 on.  Raises Forbidden."""
    limit = cloud.settings.number("metadata_items", "quota")
    create_checks.check_metadata(metadata, limit)


CREATE_IMAGE = Operation(
    name="create_image",
    steps=(
        Step("image", _image, _drop_image, event="api_create_image"),
        Step("snapshot", _snapshot, drop_file, event="compute_snapshot_disk"),
        Step("upload", _upload, event="compute_snapshot_instance"),
    ),
    params=CreateImageParams,
    apply=apply,
    failed=idle_again,
    deadline=3600.0,
    host_of=host_of,
)
