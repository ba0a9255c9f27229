"""Lists of images: filters, what a project may see, order, and pages that start after a marker."""

from __future__ import annotations

from typing import Any

import msgspec
from sqlalchemy import ColumnElement, and_, exists, false, or_, select, true

from kilonova.db.engine import Tx
from kilonova.db.images import DELETED, StoredImage, from_row
from kilonova.db.json_columns import JsonHolds, JsonMaps
from kilonova.db.keyset import OPERATORS, Keyset, Sort
from kilonova.db.tables.image import image_members, images

# Where a value may be missing, it sorts as this one; the same on every database.
_NULLS: dict[str, Any] = {
    "name": "",
    "owner": "",
    "disk_format": "",
    "container_format": "",
    "size": 0,
}
_KEYSET = Keyset(images, _NULLS)


class Comparison(msgspec.Struct, frozen=True):
    column: str
    operator: str  # "eq", "neq", "gt", "gte", "lt", "lte"
    value: int | bool


class ImageQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Which images a caller asks for.  ``equals`` has for a column the values that will do."""

    project: str | None
    everything: bool = False  # an administrator
    visibility: str | None = None  # also "all"; None: what is one's own, shared and accepted, or public
    member_status: str = "accepted"  # also "all"
    hidden: bool = False
    equals: dict[str, tuple[str | int, ...]] = {}
    comparisons: tuple[Comparison, ...] = ()
    tags: tuple[str, ...] = ()
    properties: dict[str, str] = {}
    sorts: tuple[Sort, ...] = (Sort("created_at", True), Sort("id", True))
    limit: int = 25
    marker: StoredImage | None = None


def page(tx: Tx, query: ImageQuery) -> list[StoredImage]:
    """At most ``limit`` images that come after the marker."""
    conditions = [images.c.status != DELETED, images.c.hidden == query.hidden, _visible(query)]
    for name, allowed in query.equals.items():
        conditions.append(images.c[name].in_(allowed))
    for each in query.comparisons:
        conditions.append(OPERATORS[each.operator](images.c[each.column], each.value))
    conditions.extend(JsonHolds(images.c.tags, tag) for tag in query.tags)
    conditions.extend(JsonMaps(images.c.properties, *item) for item in query.properties.items())
    if query.marker is not None:
        conditions.append(_KEYSET.after(query.sorts, query.marker))
    order = _KEYSET.order(query.sorts)
    statement = select(images).where(*conditions).order_by(*order).limit(query.limit)
    return [from_row(row) for row in tx.all(statement)]


def _visible(query: ImageQuery) -> ColumnElement[bool]:
    visibility = images.c.visibility
    mine: ColumnElement[bool] = false() if query.project is None else images.c.owner == query.project
    if query.everything:
        if query.visibility is None:
            return or_(visibility != "community", mine)
        return true() if query.visibility == "all" else visibility == query.visibility
    shared = and_(visibility == "shared", or_(mine, _is_member(query)))
    if query.visibility is None:
        return or_(visibility == "public", mine, shared)
    if query.visibility == "all":
        return or_(visibility.in_(("public", "community")), mine, shared)
    return {
        "public": visibility == "public",
        "community": visibility == "community",
        "private": and_(visibility == "private", mine),
        "shared": shared,
    }[query.visibility]


def _is_member(query: ImageQuery) -> ColumnElement[bool]:
    if query.project is None:
        return false()
    conditions = [image_members.c.image_id == images.c.id, image_members.c.member == query.project]
    if query.member_status != "all":
        conditions.append(image_members.c.status == query.member_status)
    return exists().where(*conditions)
