"""Lists of volumes: filters, order, and pages that start after a marker."""

from __future__ import annotations

from typing import Any

import msgspec
from sqlalchemy import ColumnElement, func, select

from kilonova.db.engine import Tx
from kilonova.db.json_columns import JsonMaps
from kilonova.db.keyset import OPERATORS, Keyset, Sort
from kilonova.db.tables.volume import volumes
from kilonova.db.volumes import DELETED, StoredVolume, from_row

# Where a value may be missing, it sorts as this one; the same on every database.
_NULLS: dict[str, Any] = {"name": "", "description": ""}
_KEYSET = Keyset(volumes, _NULLS)


class VolumeQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Which volumes a caller asks for; ``project`` None: those of all."""

    project: str | None
    equals: dict[str, str | int | bool] = {}
    contains: dict[str, str] = {}  # columns that have a text in them
    metadata: dict[str, str] = {}
    image_metadata: dict[str, str] = {}
    moments: tuple[tuple[str, str, int], ...] = ()  # column, operator ("gt", ...), moment
    sorts: tuple[Sort, ...] = (Sort("created_at", True), Sort("id", True))
    limit: int = 1000
    offset: int = 0
    marker: StoredVolume | None = None


def page(tx: Tx, query: VolumeQuery) -> list[StoredVolume]:
    """At most ``limit`` volumes that come after the marker."""
    conditions = _conditions(query)
    if query.marker is not None:
        conditions.append(_KEYSET.after(query.sorts, query.marker))
    order = _KEYSET.order(query.sorts)
    statement = select(volumes).where(*conditions).order_by(*order).limit(query.limit).offset(query.offset)
    return [from_row(row) for row in tx.all(statement)]


def sums(tx: Tx, query: VolumeQuery) -> tuple[int, int]:
    """How many there are, and how many GiB."""
    size = func.coalesce(func.sum(volumes.c.size_gb), 0)
    row = tx.one(select(func.count(), size).select_from(volumes).where(*_conditions(query)))
    return (0, 0) if row is None else (int(row[0]), int(row[1]))


def faulty(tx: Tx, project: str | None) -> list[StoredVolume]:
    """Those with which something went wrong, the newest first."""
    c = volumes.c
    conditions = [c.status != DELETED, c.fault.is_not(None)]
    if project is not None:
        conditions.append(c.project_id == project)
    statement = select(volumes).where(*conditions).order_by(c.updated_at.desc(), c.id).limit(1000)
    return [from_row(row) for row in tx.all(statement)]


def _conditions(query: VolumeQuery) -> list[ColumnElement[bool]]:
    c = volumes.c
    conditions: list[ColumnElement[bool]] = [c.status != DELETED]
    if query.project is not None:
        conditions.append(c.project_id == query.project)
    conditions.extend(c[name] == value for name, value in query.equals.items())
    conditions.extend(c[name].contains(text, autoescape=True) for name, text in query.contains.items())
    conditions.extend(JsonMaps(c.metadata, *item) for item in query.metadata.items())
    conditions.extend(JsonMaps(c.image_metadata, *item) for item in query.image_metadata.items())
    conditions.extend(OPERATORS[op](c[name], moment) for name, op, moment in query.moments)
    return conditions
