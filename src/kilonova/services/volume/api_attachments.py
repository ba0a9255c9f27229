"""/v3/attachments, microversion 3.27: how compute takes volumes, and how others see who has them."""

from __future__ import annotations

from functools import partial
from typing import Any

from starlette.responses import Response

from kilonova.db import volume_attachments as attachments
from kilonova.db import volumes
from kilonova.db.engine import Tx
from kilonova.db.volume_attachments import StoredAttachment
from kilonova.errors import Invalid
from kilonova.services.volume import fields, views
from kilonova.services.volume.api_actions import check_may_release
from kilonova.services.volume.call import Call
from kilonova.services.volume.files import is_volume_id
from kilonova.services.volume.records import AttachmentNotFound, new_id
from kilonova.web.json import JsonResponse, read_object

MODES = ("rw", "ro")


async def found(call: Call) -> StoredAttachment:
    """The attachment of the path, if its volume is the caller's.  Raises NotFound."""
    attachment_id = call.part("id")

    def read(tx: Tx) -> StoredAttachment:
        attachment = attachments.show(tx, attachment_id) if is_volume_id(attachment_id) else None
        volume = None if attachment is None else volumes.show(tx, attachment.volume_id)
        if attachment is None or volume is None or call.seen not in (None, volume.project_id):
            raise AttachmentNotFound(attachment_id)
        return attachment

    return await call.service.db.read(read)


async def index(call: Call, *, detail: bool) -> Response:
    query = call.request.query_params
    everything = call.context.is_admin and fields.flag("all_tenants", query.get("all_tenants", "0") or "1")
    project = None if everything else call.own_project()
    given = {name: fields.text(name, query[name]) for name in _FILTERS if name in query}
    wanted: dict[str, str | None] = {_FILTERS[name]: value for name, value in given.items()}
    limit = fields.whole("limit", query.get("limit", 1000), least=0)
    offset = fields.whole("offset", query.get("offset", 0), least=0)
    every = await call.service.db.read(lambda tx: attachments.page(tx, project, **wanted))
    shown = every[offset : offset + limit]
    return JsonResponse({"attachments": [views.attachment(each, whole=detail) for each in shown]})


_FILTERS = {"volume_id": "volume_id", "instance_id": "instance_uuid", "status": "status"}


async def create(call: Call) -> Response:
    given = await call.body("attachment")
    fields.only(given, ("volume_uuid", "instance_uuid", "connector", "mode"), "attachment")
    volume_id = fields.identifier("volume_uuid", given.get("volume_uuid"))
    instance_uuid = fields.identifier("instance_uuid", given.get("instance_uuid"))
    mode = given.get("mode", "rw") if call.version >= 54 else "rw"
    if mode not in MODES:
        raise fields.invalid("mode", mode, "rw or ro is expected")
    connector = _host(given["connector"]) if given.get("connector") else None
    attachment_id = new_id()
    await call.service.attaching.reserve(call.context, volume_id, instance_uuid, attachment_id, mode)
    if connector is not None:
        await call.service.connect(attachment_id, *connector)
    made = await call.service.attaching.show(attachment_id)
    return JsonResponse({"attachment": views.attachment(made, whole=True)})


async def show(call: Call) -> Response:
    return JsonResponse({"attachment": views.attachment(await found(call), whole=True)})


async def update(call: Call) -> Response:
    """Connect it: a host is to use the volume."""
    host, device = _host((await call.body("attachment")).get("connector"))
    attachment = await found(call)
    check_may_release(call, attachment)  # it would be taken from the host that has it
    await call.service.connect(attachment.id, host, device)
    changed = await call.service.attaching.show(attachment.id)
    return JsonResponse({"attachment": views.attachment(changed, whole=True)})


def _host(connector: Any) -> tuple[str, str | None]:
    """The host that a connector is of, and the name that the disk is to have there.  Raises Invalid."""
    if not isinstance(connector, dict):
        raise Invalid("Invalid input: 'connector' with an object is needed.")
    host = fields.text("connector.host", connector.get("host"), least=1)
    return host, fields.optional_text("connector.mountpoint", connector.get("mountpoint"))


async def delete(call: Call) -> Response:
    attachment = await found(call)
    check_may_release(call, attachment)
    await call.service.release(attachment.id)
    left = await call.service.db.read(lambda tx: attachments.of_volume(tx, attachment.volume_id))
    return JsonResponse({"attachments": [views.attachment(each, whole=False) for each in left]})


async def act(call: Call) -> Response:
    document = await read_object(call.request)
    if set(document) != {"os-complete"}:
        raise Invalid("The body must name the action os-complete.")
    await call.service.complete((await found(call)).id)
    return Response(status_code=204)


ROUTES = (
    ("/v3/attachments", "GET", partial(index, detail=False), 27),
    ("/v3/attachments", "POST", create, 27),
    ("/v3/attachments/detail", "GET", partial(index, detail=True), 27),
    ("/v3/attachments/{id}", "GET", show, 27),
    ("/v3/attachments/{id}", "PUT", update, 27),
    ("/v3/attachments/{id}", "DELETE", delete, 27),
    ("/v3/attachments/{id}/action", "POST", act, 44),
)
