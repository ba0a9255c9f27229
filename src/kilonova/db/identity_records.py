"""What the identity tables hold, as records, and how rows become them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import msgspec
from sqlalchemy import Column, Table, bindparam, delete, select, update

from kilonova.db.engine import Row, Statement, Tx, insert_into
from kilonova.db.tables import identity as tables
from kilonova.errors import Conflict, NotFound

Extra = dict[str, Any]
"""Attributes that users may put on what they make; any JSON."""


class Domain(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    name: str
    description: str = ""
    enabled: bool = True
    extra: Extra = {}
    generation: int = 0


class Project(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    name: str
    domain_id: str
    parent_id: str
    description: str = ""
    enabled: bool = True
    tags: tuple[str, ...] = ()
    extra: Extra = {}
    generation: int = 0


class User(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    name: str
    domain_id: str
    default_project_id: str | None = None
    enabled: bool = True
    extra: Extra = {}
    password_hash: str | None = None
    generation: int = 0

    def __repr__(self) -> str:
        return f"User(id={self.id!r}, name={self.name!r})"  # never the hash


class Group(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    name: str
    domain_id: str
    description: str = ""
    extra: Extra = {}


class Role(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    name: str
    description: str | None = None
    extra: Extra = {}


R = TypeVar("R", Domain, Project, User, Group, Role)

_JSON: dict[str, Callable[[Any], Any]] = {
    "extra": msgspec.json.Decoder(Extra).decode,
    "tags": msgspec.json.Decoder(tuple[str, ...]).decode,
    "enabled": bool,
}
_encode = msgspec.json.Encoder().encode


class Shelf(msgspec.Struct, frozen=True):
    """The statements on one kind of record.  ``what`` is its name in messages."""

    kind: type
    table: Table
    what: str
    show: Statement
    add: Statement
    change: Statement
    drop: Statement


def _shelf(kind: type[R], table: Table) -> Shelf:
    names = kind.__struct_fields__
    assert [column.name for column in table.columns] == list(names)
    of = table.c.id == bindparam("of")
    return Shelf(
        kind,
        table,
        kind.__name__.lower(),
        Statement(select(table).where(of)),
        insert_into(table),
        Statement(update(table).where(of).values({f: bindparam("new_" + f) for f in names if f != "id"})),
        Statement(delete(table).where(of)),
    )


SHELVES: dict[type, Shelf] = {
    Domain: _shelf(Domain, tables.domains),
    Project: _shelf(Project, tables.projects),
    User: _shelf(User, tables.users),
    Group: _shelf(Group, tables.groups),
    Role: _shelf(Role, tables.roles),
}


def from_row(kind: type[R], row: Row) -> R:
    values = dict(zip(kind.__struct_fields__, row, strict=True))
    for name, decode in _JSON.items():
        if name in values:
            values[name] = decode(values[name])
    return kind(**values)


def _to_row(record: R) -> dict[str, Any]:
    values = msgspec.structs.asdict(record)
    for name in ("extra", "tags"):
        if name in values:
            values[name] = _encode(values[name]).decode()
    return values


def not_found(kind: type, id: str) -> NotFound:
    return NotFound(f"Could not find {SHELVES[kind].what}: {id}.")


def find(tx: Tx, kind: type[R], id: str) -> R | None:
    row = tx.one(SHELVES[kind].show, of=id)
    return None if row is None else from_row(kind, row)


def show(tx: Tx, kind: type[R], id: str) -> R:
    """The record of an id.  Raises NotFound."""
    found = find(tx, kind, id)
    if found is None:
        raise not_found(kind, id)
    return found


def find_named(tx: Tx, kind: type[R], name: str, domain_id: str | None = None) -> R | None:
    """The record of a name, in its domain if it is of a kind that has one."""
    table = SHELVES[kind].table
    conditions = [table.c.name == name]
    if domain_id is not None:
        conditions.append(table.c.domain_id == domain_id)
    row = tx.one(select(table).where(*conditions))
    return None if row is None else from_row(kind, row)


def add(tx: Tx, record: R) -> R:
    """Raises Conflict for a name that is taken."""
    _check_name(tx, record)
    tx.run(SHELVES[type(record)].add, **_to_row(record))
    return record


def change(tx: Tx, record: R) -> R:
    """Make the row of its id that record.  Raises NotFound, and Conflict for a name that is taken."""
    _check_name(tx, record)
    values = {"new_" + name: value for name, value in _to_row(record).items() if name != "id"}
    if not tx.run(SHELVES[type(record)].change, of=record.id, **values):
        raise not_found(type(record), record.id)
    return record


def _check_name(tx: Tx, record: R) -> None:
    domain_id: str | None = getattr(record, "domain_id", None)
    other = find_named(tx, type(record), record.name, domain_id)
    if other is not None and other.id != record.id:
        what = SHELVES[type(record)].what
        raise Conflict(
            f"Conflict occurred attempting to store {what} - it is not permitted to have two {what}s with "
            f"the same name{' in the same domain' if domain_id else ''}: {record.name}."
        )


def drop(tx: Tx, kind: type, id: str) -> None:
    """Raises NotFound."""
    if not tx.run(SHELVES[kind].drop, of=id):
        raise not_found(kind, id)


def select_all(
    tx: Tx,
    kind: type[R],
    equal: dict[str, object],
    *,
    ids: Iterable[str] | None = None,
    marker: str | None = None,
    limit: int | None = None,
) -> list[R]:
    """Records in the order of their ids whose columns are as given, after the one of id ``marker``."""
    table = SHELVES[kind].table
    clause = select(table).where(*(_column(table, name) == value for name, value in equal.items()))
    if ids is not None:
        clause = clause.where(table.c.id.in_(sorted(ids)))
    if marker is not None:
        clause = clause.where(table.c.id > marker)
    return [from_row(kind, row) for row in tx.all(clause.order_by(table.c.id).limit(limit))]


def _column(table: Table, name: str) -> Column[Any]:
    return table.c[name]
