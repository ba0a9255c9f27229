"""What was asked of a server and what was done for it."""

from __future__ import annotations

from functools import partial
from typing import Any

from kilonova.api.call import Call
from kilonova.api.paging import next_link, page_of
from kilonova.api.query import NO_KEYS, Keys
from kilonova.api.routes import Route
from kilonova.api.server_filters import moment
from kilonova.api.server_found import server_of
from kilonova.api.shape import since
from kilonova.api.view import Item, View
from kilonova.api.views.servers import host_id
from kilonova.clock import iso_micro
from kilonova.errors import Invalid, NotFound
from kilonova.journal import actions as journal
from kilonova.model.action import Action, ActionEvent

RULE = "os_compute_api:os-instance-actions"
EVENTS = f"{RULE}:events"
DETAILS = f"{RULE}:events:details"
MAX_DETAILS = 255  # characters, as in Nova; `kilonova explain` has them all

KEYS = Keys(
    {"limit": since(58), "marker": since(58), "changes-since": since(58), "changes-before": since(66)},
    strict_since=58,
)


def _when(value: int | None) -> str | None:
    return None if value is None else iso_micro(value)


ACTION = View(
    Item("action", lambda action: action.action),
    Item("instance_uuid", lambda action: action.instance_uuid),
    Item("request_id", lambda action: action.request_id),
    Item("user_id", lambda action: action.user_id),
    Item("project_id", lambda action: action.project_id),
    Item("start_time", lambda action: iso_micro(action.start_time)),
    Item("message", lambda action: action.message),
    Item("updated_at", lambda action: _when(action.updated_at or action.start_time), since=58),
)
EVENT = View(
    Item("event", lambda event: event.event),
    Item("start_time", lambda event: iso_micro(event.start_time)),
    Item("finish_time", lambda event: _when(event.finish_time)),
    Item("result", lambda event: event.result),
    Item("traceback", lambda event: event.traceback, rule=EVENTS),
    Item("hostId", bind=lambda call: partial(_host_id, call), since=62),
    Item("host", lambda event: event.host or "", since=62, rule=EVENTS),
    Item("details", lambda event: event.details and event.details[:MAX_DETAILS], since=84, rule=DETAILS),
)


def _host_id(call: Call, event: ActionEvent) -> str:
    return host_id(call.context.project_id or "", event.host)


async def index(call: Call) -> dict[str, Any]:
    instance = await server_of(call, deleted=call.version >= 21)
    limit, marker, first, last = None, None, None, None
    if call.version >= 58:
        limit, marker = page_of(call.query, call.cloud.settings.number("max_limit", "api"))
        first, last = _changes(call)
    try:
        found = await call.cloud.db.read(
            lambda tx: journal.list_actions(
                tx, instance.uuid, limit=limit, marker=marker, changes_since=first, changes_before=last
            )
        )
    except NotFound as error:  # the marker: a wrong query, not a missing resource
        raise Invalid(str(error)) from error
    render = ACTION.bind(call)
    result: dict[str, Any] = {"instanceActions": [render(action) for action in found]}
    if found and limit is not None and len(found) == limit:
        result["links"] = next_link(call.url, call.query, limit, found[-1].request_id)
    return result


def _changes(call: Call) -> tuple[int | None, int | None]:
    texts = ((key, call.query.last(key)) for key in ("changes-since", "changes-before"))
    first, last = (None if text is None else moment(key, text) for key, text in texts)
    if first is not None and last is not None and first > last:
        raise Invalid("The value of changes-since must be less than or equal to changes-before.")
    return first, last


async def show(call: Call) -> dict[str, Any]:
    instance = await server_of(call, deleted=call.version >= 21)
    request_id = call.path["id"]

    def read(tx: Any) -> tuple[Action, list[ActionEvent]] | None:
        action = journal.show_action(tx, instance.uuid, request_id)
        return None if action is None else (action, journal.events(tx, action.id))

    found = await call.cloud.db.read(read)
    if found is None:
        raise NotFound(f"Action for request_id {request_id} on instance {instance.uuid} not found")
    action, events = found
    shown = ACTION.bind(call)(action)
    if call.version >= 51 or call.may(EVENTS):
        render = EVENT.bind(call)
        shown["events"] = [render(event) for event in events]
    return {"instanceAction": shown}


_ALL = "/servers/{server_id}/os-instance-actions"
ROUTES = (
    Route("GET", _ALL, index, f"{RULE}:list", query=KEYS, late=True),
    Route("GET", f"{_ALL}/{{id}}", show, f"{RULE}:show", query=NO_KEYS, late=True),
)
