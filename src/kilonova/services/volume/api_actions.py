"""/v3/volumes/{id}/action: what is done to a volume by a word."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from starlette.responses import Response

from kilonova.db import volume_attachments as attachments
from kilonova.db.engine import Tx
from kilonova.db.volume_attachments import StoredAttachment
from kilonova.db.volumes import StoredVolume
from kilonova.errors import Invalid
from kilonova.services.volume import api_volumes, fields
from kilonova.services.volume.answers import Lacking, LiveAttachment
from kilonova.services.volume.call import Call
from kilonova.services.volume.records import AttachmentNotFound, InvalidVolume
from kilonova.web.json import JsonResponse, read_object

_RESETTABLE = ("available", "in-use", "reserved", "error")

_Action = Callable[[Call, dict[str, Any]], Awaitable[Response]]


async def act(call: Call) -> Response:
    """The one action that the body names."""
    document = await read_object(call.request)
    if len(document) != 1:
        raise Invalid("The body must name one action.")
    ((name, given),) = document.items()
    if name in _LACKING:
        raise Lacking(_LACKING[name])
    if name not in _ACTIONS:
        raise Invalid(f"There is no such action: {name:.80}.")
    if given is not None and not isinstance(given, dict):
        raise fields.invalid(name, given, "An object is expected")
    await api_volumes.found(call)
    return await _ACTIONS[name](call, given or {})


async def _set_bootable(call: Call, given: dict[str, Any]) -> Response:
    bootable = fields.flag("bootable", _needed(given, "bootable"))
    await call.service.change(call.context, call.volume_id, lambda _: {"bootable": bootable})
    return Response(status_code=200)


async def _reset_status(call: Call, given: dict[str, Any]) -> Response:
    call.check_admin("volume_extension:volume_admin_actions:reset_status")
    fields.only(given, ("status", "attach_status", "migration_status"), "os-reset_status")
    status = str(_needed(given, "status"))
    if status not in _RESETTABLE:
        raise fields.invalid("status", status, f"One of {', '.join(_RESETTABLE)} is expected")

    def change(volume: StoredVolume) -> dict[str, Any]:
        if volume.status in ("creating", "downloading", "extending", "deleting"):
            raise InvalidVolume(f"volume {volume.id} is {volume.status}, which ends by itself.")
        return {"status": status, "fault": None}

    await call.service.change(call.context, call.volume_id, change)
    return Response(status_code=202)


async def _extend(call: Call, given: dict[str, Any]) -> Response:
    size = fields.whole("new_size", _needed(given, "new_size"))
    await call.service.extend(call.context, call.volume_id, size)
    return Response(status_code=202)


async def _begin_detaching(call: Call, given: dict[str, Any]) -> Response:
    await call.service.begin_detaching(call.context, call.volume_id)
    return Response(status_code=202)


async def _roll_detaching(call: Call, given: dict[str, Any]) -> Response:
    await call.service.roll_detaching(call.volume_id)
    return Response(status_code=202)


async def _reserve(call: Call, given: dict[str, Any]) -> Response:
    await call.service.attaching.set_reserved(call.context, call.volume_id, reserved=True)
    return Response(status_code=202)


async def _unreserve(call: Call, given: dict[str, Any]) -> Response:
    await call.service.attaching.set_reserved(call.context, call.volume_id, reserved=False)
    return Response(status_code=202)


async def _detach(call: Call, given: dict[str, Any]) -> Response:
    """Forget an attachment: the one that is named, or the only one."""
    there = await _attachments(call)
    wanted = given.get("attachment_id")
    chosen = [each for each in there if wanted in (None, each.id)]
    if wanted is not None and not chosen:
        raise AttachmentNotFound(str(wanted)[:80])
    if len(chosen) > 1:
        raise InvalidVolume("it is attached to several servers: name the attachment_id.")
    for each in chosen:
        check_may_release(call, each)
        await call.service.release(each.id)
    return Response(status_code=202)


async def _force_detach(call: Call, given: dict[str, Any]) -> Response:
    call.check_admin("volume_extension:volume_admin_actions:force_detach")
    return await _detach(call, given)


async def _force_delete(call: Call, given: dict[str, Any]) -> Response:
    call.check_admin("volume_extension:volume_admin_actions:force_delete")
    await call.service.remove(call.context, call.volume_id, force=True)
    return Response(status_code=202)


async def _set_image_metadata(call: Call, given: dict[str, Any]) -> Response:
    wanted = fields.metadata(_needed(given, "metadata"))

    def change(volume: StoredVolume) -> dict[str, Any]:
        return {"image_metadata": {**(volume.image_metadata or {}), **wanted}}

    volume = await call.service.change(call.context, call.volume_id, change)
    return JsonResponse({"metadata": volume.image_metadata})


async def _unset_image_metadata(call: Call, given: dict[str, Any]) -> Response:
    key = fields.text("key", _needed(given, "key"), least=1)

    def change(volume: StoredVolume) -> dict[str, Any]:
        kept = dict(volume.image_metadata or {})
        api_volumes.value_of(kept, key)
        del kept[key]
        return {"image_metadata": kept}

    await call.service.change(call.context, call.volume_id, change)
    return Response(status_code=200)


async def _show_image_metadata(call: Call, given: dict[str, Any]) -> Response:
    return JsonResponse({"metadata": (await api_volumes.found(call)).image_metadata or {}})


def _needed(given: dict[str, Any], name: str) -> Any:
    if name not in given:
        raise Invalid(f"Invalid input: '{name}' is a required property.")
    return given[name]


async def _attachments(call: Call) -> list[StoredAttachment]:
    volume_id = call.volume_id

    def read(tx: Tx) -> list[StoredAttachment]:
        return attachments.of_volume(tx, volume_id)

    return await call.service.db.read(read)


def check_may_release(call: Call, attachment: StoredAttachment) -> None:
    """Raises Conflict when a user takes away what a server uses: its host would go on with the disk, which
    others could be given (Cinder's rule since CVE-2023-2088)."""
    if attachment.status != "reserved" and not call.by_service:
        raise LiveAttachment(attachment.id, attachment.instance_uuid)


_ACTIONS: dict[str, _Action] = {
    "os-set_bootable": _set_bootable,
    "os-reset_status": _reset_status,
    "os-extend": _extend,
    "os-begin_detaching": _begin_detaching,
    "os-roll_detaching": _roll_detaching,
    "os-reserve": _reserve,
    "os-unreserve": _unreserve,
    "os-detach": _detach,
    "os-force_detach": _force_detach,
    "os-force_delete": _force_delete,
    "os-set_image_metadata": _set_image_metadata,
    "os-unset_image_metadata": _unset_image_metadata,
    "os-show_image_metadata": _show_image_metadata,
}
_LACKING = {
    "os-attach": "attachments without a record: use /v3/attachments",
    "os-initialize_connection": "connections without a record: use /v3/attachments",
    "os-terminate_connection": "connections without a record: use /v3/attachments",
    "os-volume_upload_image": "upload of volumes as images",
    "os-retype": "change of a volume's type",
    "os-migrate_volume": "second place to migrate volumes to",
    "os-update_readonly_flag": "read-only volumes",
    "os-unmanage": "management of foreign volumes",
    "os-reimage": "way to put another image on a volume",
    "revert": "snapshots",
}

ROUTES = (("/v3/volumes/{id}/action", "POST", act, 0),)
