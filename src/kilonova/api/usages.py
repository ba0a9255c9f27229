"""``/os-simple-tenant-usage``: what projects used in a period, deleted servers included."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from kilonova.api.call import Call
from kilonova.api.paging import next_link, page_of
from kilonova.api.query import Keys
from kilonova.api.routes import Route
from kilonova.api.shape import Span, since
from kilonova.api.views.usages import by_project, nothing
from kilonova.clock import parse_iso
from kilonova.db import usages
from kilonova.db.engine import Tx
from kilonova.db.usages import ServerUsage
from kilonova.errors import Invalid

_RULE = "os_compute_api:os-simple-tenant-usage"
_PATH = "/os-simple-tenant-usage"
_PAGED_SINCE = 40
_PAGES = {"start": Span(), "end": Span(), "limit": since(40), "marker": since(40)}
_LIST = Keys({**_PAGES, "detailed": Span()}, strict_since=75)
_SHOW = Keys(_PAGES, strict_since=75)

# 2026-11-24T01:02:03, with a fraction if wanted, and then a blank may stand for the T; always UTC
_MOMENT = re.compile(r"\d{4}-\d\d-\d\d(T\d\d:\d\d:\d\d(\.\d{1,6})?| \d\d:\d\d:\d\d\.\d{1,6})", re.ASCII)


@dataclass(frozen=True, slots=True)
class _Period:
    start: int
    stop: int
    now: int


def _moment(text: str | None, now: int) -> int:
    if not text:
        return now
    if not _MOMENT.fullmatch(text):
        raise Invalid(f"Datetime is in invalid format: '{text[:100]}'. Use YYYY-MM-DDTHH:MM:SS.")
    try:
        return parse_iso(text)
    except ValueError as error:
        raise Invalid(f"Datetime is in invalid format: {error}.") from error


def _period(call: Call) -> _Period:
    now = call.cloud.clock.now()
    first, last = call.query.last("start"), call.query.last("end")
    start, stop = _moment(first, now), _moment(last, now)
    if start > stop or (start == stop and (first or last)):  # without both it is this very moment
        raise Invalid("Invalid start time. The start time cannot occur after the end time.")
    return _Period(start, min(stop, now), now)


async def _servers(
    call: Call, period: _Period, project_id: str | None
) -> tuple[list[ServerUsage], list[dict[str, str]] | None]:
    """The servers of one page and, if there may be more, the link to the next."""
    limit, marker = None, None
    if call.version >= _PAGED_SINCE:
        limit, marker = page_of(call.query, call.cloud.settings.number("max_limit", "api"))
    found = await _found(call, period, project_id, marker, limit)
    if limit is None or not found or len(found) < limit:
        return found, None
    return found, next_link(call.url, call.query, limit, found[-1].uuid)


async def _found(
    call: Call, period: _Period, project_id: str | None, marker: str | None, limit: int | None
) -> list[ServerUsage]:
    """Of all cells, those that do not answer left out (as in Nova).  Raises Invalid for the marker."""
    cells = call.cloud.cells
    after: tuple[str, str] | None = None
    if cells is not None and marker is not None:
        uuid, marker = marker, None
        owners = [one.answer for one in await cells.each(lambda tx: usages.owner_of(tx, uuid)) if one.answer]
        if not owners:
            raise Invalid(f"marker [{uuid}] not found")
        after = owners[0], uuid

    def read(tx: Tx) -> list[ServerUsage]:
        return usages.in_period(
            tx, period.start, period.stop, project_id=project_id, marker=marker, after=after, limit=limit
        )

    if cells is None:
        return await call.cloud.db.read(read)
    every = [server for one in await cells.each(read) for server in one.answer or ()]
    return sorted(every, key=lambda server: (server.project_id, server.uuid))[:limit]


def _detailed(call: Call) -> bool:
    """Nova knows ``1`` only; openstacksdk sends ``True``, and means it."""
    return (call.query.last("detailed") or "").lower() in ("1", "true")


async def index(call: Call) -> dict[str, Any]:
    period, detailed = _period(call), _detailed(call)
    found, links = await _servers(call, period, None)
    shown = by_project(found, period.start, period.stop, period.now, detailed=detailed)
    answer: dict[str, Any] = {"tenant_usages": shown}
    if links:
        answer["tenant_usages_links"] = links
    return answer


async def show(call: Call) -> dict[str, Any]:
    project_id = call.path["project_id"]
    call.allow(target={"project_id": project_id, "user_id": call.context.user_id})
    period = _period(call)
    found, links = await _servers(call, period, project_id)
    shown = by_project(found, period.start, period.stop, period.now, detailed=True)
    # Where Nova gives an empty object, `openstack usage show` breaks: nothing used is a sum, too.
    usage = shown[0] if shown else {**nothing(project_id, period.start, period.stop), "server_usages": []}
    answer: dict[str, Any] = {"tenant_usage": usage}
    if links:
        answer["tenant_usage_links"] = links
    return answer


ROUTES = (
    Route("GET", _PATH, index, policy=f"{_RULE}:list", query=_LIST),
    Route("GET", _PATH + "/{project_id}", show, policy=f"{_RULE}:show", query=_SHOW, late=True),
)
