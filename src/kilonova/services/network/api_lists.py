"""The query of a list: filters, fields, sorting and paging, in Neutron's words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode

import msgspec

from kilonova.db import network_listing as listing
from kilonova.db.network_listing import Condition, Page
from kilonova.db.network_records import Stored
from kilonova.model.context import RequestContext
from kilonova.services.network.api_fields import boolean
from kilonova.services.network.faults import HTTPBadRequest, PolicyNotAuthorized
from kilonova.services.network.work import privileged

Special = Callable[[list[str]], Condition]

_PAGING = ("fields", "sort_key", "sort_dir", "limit", "marker", "page_reverse")
_TAGS = {
    "tags": (True, False),
    "tags-any": (False, False),
    "not-tags": (True, True),
    "not-tags-any": (False, True),
}
MOMENTS = ("created_at", "updated_at")


class Filters(msgspec.Struct, frozen=True):
    """What a list of one kind can be filtered by: attribute -> column, and attribute -> special condition."""

    stored: Stored[Any]
    columns: dict[str, str]
    special: dict[str, Special] = {}
    admin: frozenset[str] = frozenset()


class ListQuery(msgspec.Struct, frozen=True):
    """A list's query, understood."""

    conditions: list[Condition]
    page: Page
    fields: frozenset[str]
    filters: dict[str, list[str]]


def read_query(pairs: list[tuple[str, str]], known: Filters, context: RequestContext) -> ListQuery:
    """Raises HTTPBadRequest for what is not known, PolicyNotAuthorized for what is for administrators."""
    given: dict[str, list[str]] = {}
    for name, value in pairs:
        if "\x00" in value:
            raise HTTPBadRequest(f"A null character is not allowed in '{name}'.")
        given.setdefault(name, []).append(value)
    page = _page(given, known)
    filters = {name: values for name, values in given.items() if name not in _PAGING}
    conditions = [_condition(name, values, known, context) for name, values in filters.items()]
    project = None if privileged(context) else context.project_id or ""
    conditions.append(listing.visible(known.stored.table, project))
    return ListQuery(conditions, page, frozenset(given.get("fields", ())), filters)


def _condition(name: str, values: list[str], known: Filters, context: RequestContext) -> Condition:
    if name in known.admin and not privileged(context):
        raise PolicyNotAuthorized(f"Only administrators may filter by {name}.")
    if name in _TAGS:
        every, negated = _TAGS[name]
        names = [tag for value in values for tag in value.split(",")]
        return listing.tagged(known.stored.table, names, every, negated)
    if name in known.special:
        return known.special[name](values)
    if name not in known.columns or name in MOMENTS:
        raise HTTPBadRequest(f"['{name}'] is invalid attribute for filtering")
    try:
        return listing.equal(known.stored.table, known.columns[name], values)
    except ValueError as error:
        raise HTTPBadRequest(f"Invalid input for {name}. Reason: {error}.") from error


def _page(given: dict[str, list[str]], known: Filters) -> Page:
    keys, directions = given.get("sort_key", []), given.get("sort_dir", [])
    if directions and len(keys) != len(directions):
        raise HTTPBadRequest("The number of sort_keys and sort_dirs must be same")
    sort = []
    for index, key in enumerate(keys):
        if key not in known.columns or key in known.admin:
            raise HTTPBadRequest(f"['{key}'] is invalid attribute for sort key")
        direction = directions[index] if directions else "asc"
        if direction not in ("asc", "desc"):
            raise HTTPBadRequest(f"'{direction}' is an invalid sort_dir: it must be 'asc' or 'desc'")
        sort.append((known.columns[key], direction == "desc"))
    return Page(
        sort=tuple(sort),
        limit=_limit(given),
        marker=given.get("marker", [None])[-1] or None,
        reverse=_flag(given, "page_reverse"),
    )


def _limit(given: dict[str, list[str]]) -> int | None:
    text = given.get("limit", [""])[-1]
    if text == "":
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise HTTPBadRequest(f"Limit must be an integer 0 or greater and not '{text[:32]}'")
    return int(text) or None


def _flag(given: dict[str, list[str]], name: str) -> bool:
    try:
        return boolean(given.get(name, ["false"])[-1])
    except ValueError as error:
        raise HTTPBadRequest(f"Invalid input for {name}. Reason: {error}.") from error


def links(url: str, pairs: list[tuple[str, str]], page: Page, ids: list[str]) -> list[dict[str, str]]:
    """Links to the next and the previous page."""
    if page.limit is None or not ids:
        return []
    kept = [(name, value) for name, value in pairs if name not in ("marker", "page_reverse")]
    result = []
    full = len(ids) == page.limit
    if full or page.reverse:
        result.append({"rel": "next", "href": f"{url}?{urlencode([*kept, ('marker', ids[-1])])}"})
    if (full and page.reverse) or (page.marker is not None and not page.reverse):
        back = [*kept, ("marker", ids[0]), ("page_reverse", "True")]
        result.append({"rel": "previous", "href": f"{url}?{urlencode(back)}"})
    return result


def only(view: dict[str, Any], fields: frozenset[str]) -> dict[str, Any]:
    """The wanted fields of a view; all if none is named."""
    return {name: value for name, value in view.items() if name in fields} if fields else view
