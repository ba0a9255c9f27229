"""``/os-migrations``: moves of servers between hosts, over all cells."""

from __future__ import annotations

from typing import Any

from kilonova.api.call import Call
from kilonova.api.paging import next_link, page_of
from kilonova.api.query import Keys
from kilonova.api.routes import Route
from kilonova.api.schema.kinds import read_flag
from kilonova.api.server_filters import moment
from kilonova.api.shape import Span, since
from kilonova.api.views.migrations import HOST, MIGRATION
from kilonova.db import migrations
from kilonova.errors import Forbidden, Invalid, NotFound
from kilonova.listing.migrations import list_migrations
from kilonova.listing.options import ListOptions
from kilonova.model.migration import Migration

_RULE = "os_compute_api:os-migrations:index"
PAGED_SINCE = 59
KEYS = Keys(
    {
        **dict.fromkeys(
            ("hidden", "host", "instance_uuid", "source_compute", "status", "migration_type"), Span()
        ),
        **dict.fromkeys(("limit", "marker", "changes-since"), since(PAGED_SINCE)),
        "changes-before": since(66),
        **dict.fromkeys(("user_id", "project_id"), since(80)),
    },
    strict_since=PAGED_SINCE,
)
_AS_GIVEN = ("host", "instance_uuid", "source_compute", "status", "migration_type", "user_id", "project_id")


async def index(call: Call) -> dict[str, Any]:
    filters = _filters(call)
    if call.version < PAGED_SINCE:
        return {"migrations": _shown(call, await _found(call, filters, newest_first=False))}
    limit, marker = page_of(call.query, call.cloud.settings.number("max_limit", "api"))
    try:
        found = await _found(call, filters, newest_first=True, limit=limit, marker=marker)
    except NotFound as error:  # a marker: a wrong query, not a missing resource
        raise Invalid(str(error)) from error
    answer: dict[str, Any] = {"migrations": _shown(call, found)}
    if found and len(found) == limit:
        answer["migrations_links"] = next_link(call.url, call.query, limit, found[-1].uuid)
    return answer


def _shown(call: Call, found: list[Migration]) -> list[dict[str, Any]]:
    render = MIGRATION.bind(call)
    return [render(migration) for migration in found]


async def _found(
    call: Call,
    filters: dict[str, Any],
    *,
    newest_first: bool,
    limit: int | None = None,
    marker: str | None = None,
) -> list[Migration]:
    cloud = call.cloud
    if cloud.cells is not None:
        return await list_migrations(
            cloud.cells.all,
            filters,
            clock=cloud.clock,
            options=ListOptions.of(cloud.settings),
            newest_first=newest_first,
            limit=limit,
            marker=marker,
        )

    def read(tx: Any) -> list[Migration]:
        after = None
        if marker is not None:
            begin = migrations.show(tx, marker)
            if begin is None:
                raise NotFound(f"marker [{marker}] not found")
            after = migrations.values_of(begin)
        return migrations.page(tx, filters, newest_first=newest_first, limit=limit, after=after)

    return await cloud.db.read(read)


def _filters(call: Call) -> dict[str, Any]:
    """Raises Invalid, or Forbidden for what the caller may not ask."""
    known = KEYS.at(call.version)
    given = {key: call.query.last(key) or "" for key in call.query.keys() if key in known}  # noqa: SIM118
    if not call.may(HOST) and ("host" in given or "source_compute" in given):
        raise Forbidden("Policy doesn't allow you to list migrations by their hosts.")
    filters: dict[str, Any] = {key: value for key, value in given.items() if key in _AS_GIVEN}
    if "hidden" in given:
        try:
            filters["hidden"] = read_flag(given["hidden"])
        except ValueError as error:
            raise Invalid(f"Invalid input for query parameters hidden: {error}.") from error
    for key in ("changes-since", "changes-before"):
        if key in given:
            filters[key.replace("-", "_")] = moment(key, given[key])
    if filters.get("changes_since", 0) > filters.get("changes_before", 2**62):
        raise Invalid("The value of changes-since must be less than or equal to changes-before.")
    _restrict(call, filters)
    return filters


def _restrict(call: Call, filters: dict[str, Any]) -> None:
    """Only those who may see all projects' migrations see others than their own project's."""
    if call.may(f"{_RULE}:all_projects"):
        return
    own = call.context.project_id
    if filters.get("project_id", own) != own:
        raise Forbidden("Policy doesn't allow you to list the migrations of other projects.")
    filters["project_id"] = own


ROUTES = (Route("GET", "/os-migrations", index, _RULE, query=KEYS),)
