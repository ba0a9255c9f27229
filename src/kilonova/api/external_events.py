"""``POST /os-server-external-events``: what other services tell compute of servers (API-122 to API-124)."""

from __future__ import annotations

from typing import Any

from kilonova.api.call import Answer, Call
from kilonova.api.routes import Route
from kilonova.api.schema.server_actions import Event, Events
from kilonova.db import instances
from kilonova.db.engine import Tx
from kilonova.errors import Invalid
from kilonova.model.instance import Instance
from kilonova.operations import external_event

SINCE = {
    "network-changed": 1,
    "network-vif-plugged": 1,
    "network-vif-unplugged": 1,
    "network-vif-deleted": 1,
    "volume-extended": 51,
    "power-update": 76,
    "accelerator-request-bound": 82,
    "volume-reimaged": 93,
}
TAGGED = frozenset({"volume-extended", "power-update", "accelerator-request-bound", "volume-reimaged"})


async def create(call: Call) -> Answer:
    body: Events = call.body
    for event in body.events:
        if SINCE[event.name] > call.version:
            raise Invalid(f"Invalid input for field/attribute name. Value: {event.name}. It is unknown here.")
    known = await _known(call, body.events)
    shown = []
    for event in body.events:
        code = _code(event, known.get(event.server_uuid))
        if code == 200:
            await external_event.deliver(
                call.cloud, event.server_uuid, event.name, event.tag or "", event.status or "completed"
            )
        shown.append(_shown(event, code))
    failed = any(each["code"] != 200 for each in shown)
    return Answer({"events": shown}, status=207 if failed else 200)


async def _known(call: Call, events: list[Event]) -> dict[str, Instance | None]:
    """The servers that the events name, each read in its cell."""
    uuids = {event.server_uuid for event in events}

    def read(tx: Tx) -> dict[str, Instance | None]:
        return {uuid: instances.show(tx, uuid) for uuid in uuids}

    cells = call.cloud.cells
    if cells is None:
        return await call.cloud.db.read(read)
    told = await cells.each(read)
    return {uuid: found for each in told for uuid, found in (each.answer or {}).items() if found is not None}


def _code(event: Event, instance: Instance | None) -> int:
    if instance is None:
        return 404
    if event.name in TAGGED and not event.tag:
        return 400
    return 422 if instance.host is None else 200


def _shown(event: Event, code: int) -> dict[str, Any]:
    """``status`` says what became of the event here, not what the event says (API-124)."""
    status = "completed" if code == 200 else "failed"
    shown = {"name": event.name, "server_uuid": event.server_uuid, "status": status, "code": code}
    if event.tag is not None:
        shown["tag"] = event.tag
    return shown


ROUTES = (
    Route(
        "POST",
        "/os-server-external-events",
        create,
        "os_compute_api:os-server-external-events:create",
        body=Events,
    ),
)
