"""/v3/volumes: lists, volumes, their metadata."""

from __future__ import annotations

from functools import partial
from typing import Any
from urllib.parse import urlencode

import msgspec
from starlette.responses import Response

from kilonova.db import volume_attachments as attachments
from kilonova.db import volume_listing as listing
from kilonova.db import volume_types, volumes
from kilonova.db.engine import Tx
from kilonova.db.volumes import StoredVolume
from kilonova.errors import Invalid, NotFound
from kilonova.services.volume import fields, filters, views
from kilonova.services.volume.call import Call
from kilonova.services.volume.files import is_volume_id
from kilonova.services.volume.records import seen_by
from kilonova.web.json import JsonResponse, read_object


def described(tx: Tx, call: Call, found: list[StoredVolume]) -> list[dict[str, Any]]:
    """The volumes with all that belongs to them."""
    types = {each.id: each.name for each in volume_types.list_all(tx)}
    there = attachments.of_volumes(tx, [each.id for each in found])
    return [
        views.volume(
            each, there[each.id], types, call.version, root_url=call.root_url, admin=call.context.is_admin
        )
        for each in found
    ]


async def described_one(call: Call, volume: StoredVolume) -> dict[str, Any]:
    return (await call.service.db.read(lambda tx: described(tx, call, [volume])))[0]


async def found(call: Call) -> StoredVolume:
    """The volume of the path.  Raises NotFound."""
    volume_id = call.volume_id
    volume = await call.service.db.read(lambda tx: volumes.show(tx, volume_id))
    return seen_by(volume, volume_id, call.context)


async def index(call: Call, *, detail: bool) -> Response:
    asked = filters.parse(call.request.query_params.multi_items(), call)

    def read(tx: Tx) -> dict[str, Any]:
        query = asked.query
        if asked.marker is not None:
            query = msgspec.structs.replace(query, marker=_marker(tx, call, asked.marker))
        more = listing.page(tx, msgspec.structs.replace(query, limit=query.limit + 1))
        shown = more[: query.limit]
        answer: dict[str, Any] = {
            "volumes": described(tx, call, shown) if detail else [_brief(call, each) for each in shown]
        }
        if shown and len(more) > len(shown):
            answer["volumes_links"] = [{"rel": "next", "href": _next(call, shown[-1].id)}]
        if asked.with_count:
            answer["count"] = listing.sums(tx, asked.query)[0]
        return answer

    return JsonResponse(await call.service.db.read(read))


def _brief(call: Call, volume: StoredVolume) -> dict[str, Any]:
    at = views.links(call.root_url, volume.project_id, "volumes", volume.id)
    return {"id": volume.id, "name": volume.name, "links": at}


def _marker(tx: Tx, call: Call, marker: str) -> StoredVolume:
    volume = volumes.show(tx, marker) if is_volume_id(marker) else None
    return seen_by(volume, marker, call.context)


def _next(call: Call, marker: str) -> str:
    items = [each for each in call.request.query_params.multi_items() if each[0] not in ("marker", "offset")]
    return f"{call.root_url.rstrip('/')}{call.request.scope['asked_path']}?" + urlencode(
        [*items, ("marker", marker)]
    )


async def summary(call: Call) -> Response:
    query = filters.parse(call.request.query_params.multi_items(), call).query
    count, size = await call.service.db.read(lambda tx: listing.sums(tx, query))
    shown: dict[str, Any] = {"total_count": count, "total_size": size}
    if call.version >= 36:
        shown["metadata"] = {}
    return JsonResponse({"volume-summary": shown})


async def create(call: Call) -> Response:
    document = await read_object(call.request)
    fields.only(document, ("volume", "OS-SCH-HNT:scheduler_hints"), "body")
    given = document.get("volume")
    if not isinstance(given, dict):
        raise Invalid("Missing required element 'volume' in request body.")
    new = fields.new_volume(given)
    if new.zone not in (None, call.service.options.zone):
        raise Invalid(f"Availability zone '{new.zone}' is invalid.")
    call.own_project()  # a volume belongs to one
    volume = await call.service.create(call.context, new)
    return JsonResponse({"volume": await described_one(call, volume)}, 202)


async def show(call: Call) -> Response:
    return JsonResponse({"volume": await described_one(call, await found(call))})


async def update(call: Call) -> Response:
    changes = fields.changes(await call.body("volume"))
    volume = await call.service.change(call.context, call.volume_id, lambda _: changes)
    return JsonResponse({"volume": await described_one(call, volume)})


async def delete(call: Call) -> Response:
    query = call.request.query_params
    fields.flag("cascade", query.get("cascade", "0"))  # there are no snapshots to go with it
    force = call.version >= 23 and fields.flag("force", query.get("force", "0"))
    if force:
        call.check_admin("volume:force_delete")
    await call.service.remove(call.context, call.volume_id, force=force)
    return Response(status_code=202)


# ---- metadata ----


async def show_metadata(call: Call) -> Response:
    return JsonResponse({"metadata": (await found(call)).metadata})


async def set_metadata(call: Call, *, whole: bool) -> Response:
    """Replace all of it, or add to it."""
    given = fields.metadata(await call.body("metadata"))

    def change(volume: StoredVolume) -> dict[str, Any]:
        return {"metadata": given if whole else {**volume.metadata, **given}}

    volume = await call.service.change(call.context, call.volume_id, change)
    return JsonResponse({"metadata": volume.metadata})


async def show_key(call: Call) -> Response:
    key = call.part("key")
    kept = (await found(call)).metadata
    return JsonResponse({"meta": {key: value_of(kept, key)}})


async def set_key(call: Call) -> Response:
    given = fields.metadata(await call.body("meta"))
    if set(given) != {call.part("key")}:
        raise Invalid("Request body and URI mismatch: the body must have the key of the path, and no other.")
    await call.service.change(
        call.context, call.volume_id, lambda volume: {"metadata": {**volume.metadata, **given}}
    )
    return JsonResponse({"meta": given})


async def delete_key(call: Call) -> Response:
    key = call.part("key")

    def change(volume: StoredVolume) -> dict[str, Any]:
        value_of(volume.metadata, key)
        return {"metadata": {name: value for name, value in volume.metadata.items() if name != key}}

    await call.service.change(call.context, call.volume_id, change)
    return Response(status_code=200)


def value_of(kept: dict[str, str], key: str) -> str:
    if key not in kept:
        raise NotFound(f"Metadata item was not found: {key}.")
    return kept[key]


ROUTES = (
    ("/v3/volumes", "GET", partial(index, detail=False), 0),
    ("/v3/volumes", "POST", create, 0),
    ("/v3/volumes/detail", "GET", partial(index, detail=True), 0),
    ("/v3/volumes/summary", "GET", summary, 12),
    ("/v3/volumes/{id}", "GET", show, 0),
    ("/v3/volumes/{id}", "PUT", update, 0),
    ("/v3/volumes/{id}", "DELETE", delete, 0),
    ("/v3/volumes/{id}/metadata", "GET", show_metadata, 0),
    ("/v3/volumes/{id}/metadata", "POST", partial(set_metadata, whole=False), 0),
    ("/v3/volumes/{id}/metadata", "PUT", partial(set_metadata, whole=True), 0),
    ("/v3/volumes/{id}/metadata/{key}", "GET", show_key, 0),
    ("/v3/volumes/{id}/metadata/{key}", "PUT", set_key, 0),
    ("/v3/volumes/{id}/metadata/{key}", "DELETE", delete_key, 0),
)
