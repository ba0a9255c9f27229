"""Lists of images: filters, what a project may see, order, and pages that start after a marker."""

from __future__ import annotations

from typing import Any

import msgspec
from sqlalchemy import Boolean, ColumnElement, and_, exists, false, func, or_, select, true
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from kilonova.db.engine import Tx
from kilonova.db.images import DELETED, StoredImage, from_row
from kilonova.db.tables.image import image_members, images

# Where a value may be missing, it sorts as this one; the same on every database.
_NULLS: dict[str, Any] = {
    "name": "",
    "owner": "",
    "disk_format": "",
    "container_format": "",
    "size": 0,
}
_OPERATORS = {
    "eq": lambda column, value: column == value,
    "neq": lambda column, value: column != value,
    "gt": lambda column, value: column > value,
    "gte": lambda column, value: column >= value,
    "lt": lambda column, value: column < value,
    "lte": lambda column, value: column <= value,
}


class Sort(msgspec.Struct, frozen=True):
    key: str  # a column of images
    descending: bool


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


class json_holds(FunctionElement[bool]):  # noqa: N801 - named like an SQL function
    """Whether a JSON list of texts, stored as text, holds a text."""

    type = Boolean()
    inherit_cache = True


@compiles(json_holds, "sqlite")
def _holds_on_sqlite(element: json_holds, compiler: Any, **kw: Any) -> str:
    column, value = (compiler.process(each, **kw) for each in element.clauses)
    return f"EXISTS (SELECT 1 FROM json_each({column}) WHERE json_each.value = {value})"  # noqa: S608 - compiled parts


@compiles(json_holds, "postgresql")
def _holds_on_postgresql(element: json_holds, compiler: Any, **kw: Any) -> str:
    column, value = (compiler.process(each, **kw) for each in element.clauses)
    return f"jsonb_exists(({column})::jsonb, ({value})::text)"


class json_maps(FunctionElement[bool]):  # noqa: N801
    """Whether a JSON object of texts, stored as text, maps a name to a value."""

    type = Boolean()
    inherit_cache = True


@compiles(json_maps, "sqlite")
def _maps_on_sqlite(element: json_maps, compiler: Any, **kw: Any) -> str:
    column, name, value = (compiler.process(each, **kw) for each in element.clauses)
    rows = f"SELECT 1 FROM json_each({column})"  # noqa: S608 - compiled parts
    return f"EXISTS ({rows} WHERE json_each.key = {name} AND json_each.value = {value})"


@compiles(json_maps, "postgresql")
def _maps_on_postgresql(element: json_maps, compiler: Any, **kw: Any) -> str:
    column, name, value = (compiler.process(each, **kw) for each in element.clauses)
    return f"coalesce((({column})::jsonb ->> ({name})::text) = ({value})::text, false)"


def page(tx: Tx, query: ImageQuery) -> list[StoredImage]:
    """At most ``limit`` images that come after the marker."""
    conditions = [images.c.status != DELETED, images.c.hidden == query.hidden, _visible(query)]
    for name, allowed in query.equals.items():
        conditions.append(images.c[name].in_(allowed))
    for each in query.comparisons:
        conditions.append(_OPERATORS[each.operator](images.c[each.column], each.value))
    conditions.extend(json_holds(images.c.tags, tag) for tag in query.tags)
    conditions.extend(json_maps(images.c.properties, *item) for item in query.properties.items())
    if query.marker is not None:
        conditions.append(_after(query.sorts, query.marker))
    order = [_key(each.key).desc() if each.descending else _key(each.key).asc() for each in query.sorts]
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


def _key(name: str) -> ColumnElement[Any]:
    column = images.c[name]
    return func.coalesce(column, _NULLS[name]) if name in _NULLS else column


def _after(sorts: tuple[Sort, ...], marker: StoredImage) -> ColumnElement[bool]:
    """Strictly after the marker: equal in the first n keys and beyond it in the next."""
    equal: list[ColumnElement[bool]] = []
    choices: list[ColumnElement[bool]] = []
    for each in sorts:
        value = getattr(marker, each.key)
        value = _NULLS[each.key] if value is None else value
        key = _key(each.key)
        choices.append(and_(*equal, key < value if each.descending else key > value))
        equal.append(key == value)
    return or_(*choices)
