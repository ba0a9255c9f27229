"""Small things: zones, services, extensions, messages; and what this service lacks and says so."""

from __future__ import annotations

import uuid
from functools import partial
from typing import Any

from starlette.responses import Response

from kilonova.clock import SECOND, iso_micro
from kilonova.db import volume_listing as listing
from kilonova.db.volumes import StoredVolume
from kilonova.errors import NotFound
from kilonova.services.volume import views
from kilonova.services.volume.answers import Lacking
from kilonova.services.volume.call import Call
from kilonova.web.json import JsonResponse

KEPT = 30 * 86_400 * SECOND  # how long Cinder keeps messages

_EXTENSIONS = (
    ("os-volume-actions", "VolumeActions", "Enable volume actions."),
    ("os-types-manage", "TypesManage", "Types management support."),
    ("os-types-extra-specs", "TypesExtraSpecs", "Type extra specs support."),
    ("os-admin-actions", "AdminActions", "Enable admin actions."),
    ("os-quota-sets", "Quotas", "Quota management support."),
    ("os-quota-class-sets", "QuotaClasses", "Quota classes support."),
    ("os-availability-zone", "AvailabilityZones", "Describe Availability Zones."),
    ("os-services", "Services", "Services support."),
    ("os-vol-image-meta", "VolumeImageMetadata", "Show image metadata associated with the volume."),
    ("os-vol-tenant-attr", "VolumeTenantAttribute", "Expose the internal project_id as an attribute."),
    ("os-vol-host-attr", "VolumeHostAttribute", "Expose host as an attribute of a volume."),
    ("os-used-limits", "UsedLimits", "Provide data on limited resources that are being used."),
)


async def zones(call: Call) -> Response:
    zone = {"zoneName": call.service.options.zone, "zoneState": {"available": True}}
    return JsonResponse({"availabilityZoneInfo": [zone]})


async def extensions(call: Call) -> Response:
    return JsonResponse({"extensions": [_extension(*each) for each in _EXTENSIONS]})


async def extension(call: Call) -> Response:
    alias = call.part("id")
    for each in _EXTENSIONS:
        if each[0] == alias:
            return JsonResponse({"extension": _extension(*each)})
    raise NotFound(f"There is no extension {alias}.")


def _extension(alias: str, name: str, description: str) -> dict[str, Any]:
    updated = "2023-08-31T00:00:00+00:00"
    return {"alias": alias, "name": name, "description": description, "updated": updated, "links": []}


async def services(call: Call) -> Response:
    call.check_admin("volume_extension:services:index")
    query = call.request.query_params
    one: dict[str, Any] = {
        "binary": "cinder-volume",
        "host": views.HOST.partition("#")[0],
        "zone": call.service.options.zone,
        "status": "enabled",
        "state": "up",
        "updated_at": iso_micro(call.now()),
        "disabled_reason": None,
        "replication_status": "disabled",
        "active_backend_id": None,
        "frozen": False,
    }
    if call.version >= 7:
        one["cluster"] = None
    if call.version >= 49:
        one["backend_state"] = "up" if call.service.keeps_volumes else "down"
    shown = all(query.get(name) in (None, one[name]) for name in ("binary", "host"))
    return JsonResponse({"services": [one] if shown else []})


# ---- messages: why a volume is in error ----


def _message(volume: StoredVolume) -> dict[str, Any]:
    return {
        "id": str(uuid.uuid5(uuid.UUID(volume.id), str(volume.updated_at))),
        "event_id": "VOLUME_000001",
        "message_level": "ERROR",
        "request_id": None,
        "resource_type": "VOLUME",
        "resource_uuid": volume.id,
        "user_message": volume.fault,
        "created_at": iso_micro(volume.updated_at),
        "guaranteed_until": iso_micro(volume.updated_at + KEPT),
        "links": [],
    }


async def _messages(call: Call) -> list[dict[str, Any]]:
    every = call.seen if call.request.query_params.get("all_tenants") else call.own_project()
    return [_message(each) for each in await call.service.db.read(lambda tx: listing.faulty(tx, every))]


async def messages(call: Call) -> Response:
    wanted = call.request.query_params.get("resource_uuid")
    found = [each for each in await _messages(call) if wanted in (None, each["resource_uuid"])]
    return JsonResponse({"messages": found})


async def message(call: Call) -> Response:
    message_id = call.part("id")
    for each in await _messages(call):
        if each["id"] == message_id:
            return JsonResponse({"message": each})
    raise NotFound(f"Message {message_id} could not be found.")


# ---- what is not there ----


async def none(call: Call, *, kind: str) -> Response:
    """An empty list: there are none, and cannot be."""
    return JsonResponse({kind: []})


async def no_such(call: Call, *, word: str) -> Response:
    raise NotFound(f"{word} {call.part('id')} could not be found.")


async def lacking(call: Call, *, what: str) -> Response:
    raise Lacking(what)


def _absent(kind: str, word: str) -> list[tuple[str, str, Any, int]]:
    at = f"/v3/{kind}"
    return [
        (at, "GET", partial(none, kind=kind), 0),
        (at, "POST", partial(lacking, what=kind), 0),
        (at + "/detail", "GET", partial(none, kind=kind), 0),
        (at + "/{id}", "GET", partial(no_such, word=word), 0),
        (at + "/{id}", "PUT", partial(no_such, word=word), 0),
        (at + "/{id}", "DELETE", partial(no_such, word=word), 0),
    ]


ROUTES = (
    ("/v3/os-availability-zone", "GET", zones, 0),
    ("/v3/extensions", "GET", extensions, 0),
    ("/v3/extensions/{id}", "GET", extension, 0),
    ("/v3/os-services", "GET", services, 0),
    ("/v3/messages", "GET", messages, 3),
    ("/v3/messages/{id}", "GET", message, 3),
    *_absent("snapshots", "Snapshot"),
    *_absent("backups", "Backup"),
)
