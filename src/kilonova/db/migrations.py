"""Moves of servers between hosts: recorded, changed, and listed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from sqlalchemy import ColumnElement, bindparam, func, literal, or_, select, tuple_
from sqlalchemy import update as update_clause

from kilonova.db.engine import Row, Statement, Tx, db_now, insert_into
from kilonova.db.tables.cells import migrations
from kilonova.model.migration import IN_PROGRESS, LIVE, MIGRATION, RESIZE, Migration, Status

_t = migrations
_names = Migration.__struct_fields__
_columns = [_t.c[name] for name in _names]
_flags = [_names.index(name) for name in ("hidden", "cross_cell_move")]

SORT = (("created_at", True), ("id", True), ("uuid", False))
"""(column, descending): the newest first, as Nova has it; the uuid tells cells' equal numbers apart."""
LINE = (Status.ACCEPTED, Status.QUEUED, Status.PREPARING, Status.RUNNING, Status.POSTCOPY)
OLDEST_FIRST = (("created_at", False), ("id", False), ("uuid", False))

INSERT = insert_into(_t, returning="id")
SHOW = Statement(select(*_columns).where(_t.c.uuid == bindparam("uuid")))
BY_NUMBER = Statement(
    select(*_columns).where(_t.c.instance_uuid == bindparam("instance_uuid"), _t.c.id == bindparam("id"))
)
FINISHED_BEFORE = Statement(
    select(*_columns)
    .where(
        _t.c.migration_type.in_([literal(MIGRATION), literal(RESIZE)]),
        _t.c.status == literal(Status.FINISHED),
        _t.c.updated_at < bindparam("moment"),
    )
    .order_by(_t.c.id)
)
LIVE_OF = Statement(
    select(*_columns)
    .where(
        _t.c.instance_uuid == bindparam("instance_uuid"),
        _t.c.migration_type == LIVE,
        _t.c.status.in_([literal(status) for status in sorted(IN_PROGRESS)]),
    )
    .order_by(_t.c.id)
)

_UNDER_WAY = ("accepted", "queued", "preparing", "running", "pre-migrating", "migrating", "post-migrating")
_ARRIVING = Statement(
    select(_t.c.instance_uuid)
    .where(
        _t.c.dest_compute == bindparam("host"), _t.c.status.in_([literal(status) for status in _UNDER_WAY])
    )
    .order_by(_t.c.id)
)

# Locked, always in the same order: of two that look at the same time one sees what the other has done.
LINED_UP = Statement(
    select(*_columns)
    .where(
        _t.c.source_compute == bindparam("host"),
        _t.c.migration_type == LIVE,
        _t.c.status.in_([literal(status) for status in LINE]),
    )
    .order_by(_t.c.id)
    .with_for_update()
)


def from_row(row: Row) -> Migration:
    values = list(row)
    for position in _flags:
        values[position] = bool(values[position])
    return Migration(**dict(zip(_names, values, strict=True)))


def _found(row: Row | None) -> Migration | None:
    return None if row is None else from_row(row)


def insert(tx: Tx, migration: Migration) -> int:
    """Its number.  Raises UniqueViolation for a known uuid."""
    return int(tx.scalar(INSERT, **{name: getattr(migration, name) for name in _names if name != "id"}))


@lru_cache(maxsize=64)
def _update_statement(changed: frozenset[str], expected: int) -> Statement:
    unknown = changed - set(_names)
    if unknown:
        raise TypeError(f"a migration has no {', '.join(sorted(unknown))}")
    values: dict[str, Any] = {name: bindparam(f"new_{name}") for name in changed}
    values.setdefault("updated_at", db_now())
    clause = update_clause(_t).where(_t.c.uuid == bindparam("of")).values(values)
    if expected:
        clause = clause.where(_t.c.status.in_([bindparam(f"status_{number}") for number in range(expected)]))
    return Statement(clause)


def update(tx: Tx, uuid: str, *, expect: Sequence[str] = (), **changes: Any) -> bool:
    """Change a migration whose status is one of ``expect`` (none named: any); False if it is not."""
    values = {f"new_{name}": value for name, value in changes.items()}
    values.update((f"status_{number}", status) for number, status in enumerate(expect))
    return tx.run(_update_statement(frozenset(changes), len(expect)), of=uuid, **values) == 1


def show(tx: Tx, uuid: str) -> Migration | None:
    return _found(tx.one(SHOW, uuid=uuid))


def by_number(tx: Tx, instance_uuid: str, number: int) -> Migration | None:
    """A server's migration by its number."""
    return _found(tx.one(BY_NUMBER, instance_uuid=instance_uuid, id=number))


def in_status(
    tx: Tx, instance_uuid: str, migration_type: str | None, statuses: Sequence[str]
) -> Migration | None:
    """A server's newest migration of a type (None: any) that is at one of the statuses."""
    clause = select(*_columns).where(_t.c.instance_uuid == instance_uuid, _t.c.status.in_(statuses))
    if migration_type is not None:
        clause = clause.where(_t.c.migration_type == migration_type)
    return _found(tx.one(clause.order_by(_t.c.id.desc()).limit(1)))


def arriving(tx: Tx, host: str) -> list[str]:
    """The servers that are on their way to a host."""
    return [row[0] for row in tx.all(_ARRIVING, host=host)]


def finished_before(tx: Tx, moment: int) -> list[Migration]:
    """Resizes and cold migrations that have waited to be confirmed since before ``moment``, oldest first."""
    return [from_row(row) for row in tx.all(FINISHED_BEFORE, moment=moment)]


def live_of(tx: Tx, instance_uuid: str) -> list[Migration]:
    """A server's live migrations that are under way, oldest first."""
    return [from_row(row) for row in tx.all(LIVE_OF, instance_uuid=instance_uuid)]


def lined_up(tx: Tx, host: str) -> list[Migration]:
    """Live migrations that a host is at, or that wait for it to be at them, now or later, oldest first.

    Nobody else changes any of them until this transaction ends: call it before changing one of them."""
    return [from_row(row) for row in tx.all(LINED_UP, host=host)]


_changed_at = func.coalesce(_t.c.updated_at, _t.c.created_at)
_CLAUSES: dict[str, Callable[[], ColumnElement[bool]]] = {
    **{
        name: lambda name=name: _t.c[name] == bindparam(name)  # type: ignore[misc]
        for name in (
            "hidden",
            "instance_uuid",
            "source_compute",
            "status",
            "migration_type",
            "project_id",
            "user_id",
        )
    },
    "host": lambda: or_(_t.c.source_compute == bindparam("host"), _t.c.dest_compute == bindparam("host")),
    "changes_since": lambda: _changed_at >= bindparam("changes_since"),
    "changes_before": lambda: _changed_at <= bindparam("changes_before"),
}
FILTERS = frozenset(_CLAUSES)


def values_of(migration: Migration) -> tuple[Any, ...]:
    """What it is sorted by."""
    return (migration.created_at, migration.id, migration.uuid)


@lru_cache(maxsize=256)
def _page_statement(filters: frozenset[str], newest_first: bool, start: str, limited: bool) -> Statement:
    """``start``: '' at the first, 'after' the bound marks or 'at' them."""
    clause = select(*_columns).where(*(_CLAUSES[name]() for name in sorted(filters)))
    if start:
        clause = clause.where(_beyond(newest_first, start))
    order = [_t.c[name].desc() if down else _t.c[name].asc() for name, down in order_of(newest_first)]
    clause = clause.order_by(*order)
    return Statement(clause.limit(bindparam("page_size")) if limited else clause)


def order_of(newest_first: bool) -> tuple[tuple[str, bool], ...]:
    return SORT if newest_first else OLDEST_FIRST


def _beyond(newest_first: bool, start: str) -> ColumnElement[bool]:
    """Beyond the marks m0, m1, m2; ``at``: or with the same values as they."""
    age = tuple_(_t.c.created_at, _t.c.id)
    marks = tuple_(bindparam("m0", type_=_t.c.created_at.type), bindparam("m1", type_=_t.c.id.type))
    mark = bindparam("m2", type_=_t.c.uuid.type)
    same = age == marks  # the uuid rises in both orders
    uuid = _t.c.uuid >= mark if start == "at" else _t.c.uuid > mark
    return or_(age < marks if newest_first else age > marks, same & uuid)


def page(
    tx: Tx,
    filters: dict[str, Any],
    *,
    newest_first: bool = True,
    limit: int | None = None,
    after: tuple[Any, ...] | None = None,
    inclusive: bool = False,
) -> list[Migration]:
    """Migrations that pass all ``filters`` (names of FILTERS), after the one with the values ``after``."""
    start = "" if after is None else "at" if inclusive else "after"
    values: dict[str, Any] = dict(filters)
    if after is not None:
        values.update((f"m{number}", value) for number, value in enumerate(after))
    if limit is not None:
        values["page_size"] = limit
    statement = _page_statement(frozenset(filters), newest_first, start, limit is not None)
    return [from_row(row) for row in tx.all(statement, **values)]
