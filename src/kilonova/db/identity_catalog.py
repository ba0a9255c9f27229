"""Regions, services and endpoints that administrators have added to the catalog of the configuration."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec
from sqlalchemy import Table, bindparam, delete, select, update

from kilonova.db.engine import Row, Statement, Tx, insert_into
from kilonova.db.tables import identity as tables


class Region(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    description: str = ""
    parent_region_id: str | None = None


class Service(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    type: str
    name: str = ""
    description: str = ""
    enabled: bool = True


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """``url`` may have ``$(project_id)s`` and the like in it, which the catalog of a token fills in."""

    id: str
    service_id: str
    interface: str
    region_id: str | None = None
    url: str
    enabled: bool = True


E = TypeVar("E", Region, Service, Endpoint)


class Shelf(msgspec.Struct, frozen=True):
    """The statements on one kind of entry."""

    every: Statement
    add: Statement
    change: Statement
    drop: Statement


def _shelf(kind: type, table: Table) -> Shelf:
    names: tuple[str, ...] = kind.__struct_fields__  # type: ignore[attr-defined]
    assert [column.name for column in table.columns] == list(names)
    of = table.c.id == bindparam("of")
    values: dict[str, Any] = {name: bindparam("new_" + name) for name in names if name != "id"}
    return Shelf(
        Statement(select(table).order_by(table.c.id)),
        insert_into(table),
        Statement(update(table).where(of).values(values)),
        Statement(delete(table).where(of)),
    )


_SHELVES: dict[type, Shelf] = {
    Region: _shelf(Region, tables.regions),
    Service: _shelf(Service, tables.services),
    Endpoint: _shelf(Endpoint, tables.endpoints),
}
_DROP_ENDPOINTS = Statement(
    delete(tables.endpoints).where(tables.endpoints.c.service_id == bindparam("service_id"))
)


def _entry(kind: type[E], row: Row) -> E:
    values: dict[str, Any] = dict(zip(kind.__struct_fields__, row, strict=True))
    if "enabled" in values:
        values["enabled"] = bool(values["enabled"])
    return kind(**values)


def every(tx: Tx, kind: type[E]) -> list[E]:
    """All entries of a kind by id.  There are few of them."""
    return [_entry(kind, row) for row in tx.all(_SHELVES[kind].every)]


def add(tx: Tx, entry: E) -> E:
    tx.run(_SHELVES[type(entry)].add, **msgspec.structs.asdict(entry))
    return entry


def change(tx: Tx, entry: E) -> E:
    values = {"new_" + name: value for name, value in msgspec.structs.asdict(entry).items() if name != "id"}
    tx.run(_SHELVES[type(entry)].change, of=entry.id, **values)
    return entry


def drop(tx: Tx, entry: E) -> None:
    """Take an entry away; a service with its endpoints."""
    tx.run(_SHELVES[type(entry)].drop, of=entry.id)
    if isinstance(entry, Service):
        tx.run(_DROP_ENDPOINTS, service_id=entry.id)
