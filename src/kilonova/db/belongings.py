"""All that a cell's database has of one server but its operations: read as it stands, written into another
cell's, removed.

Rows are dicts by column, of what JSON can hold.  Numbers that a database counts are counted anew.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Boolean, Table, bindparam, delete, select

from kilonova.db.engine import Statement, Tx, insert_into
from kilonova.db.tables.cells import leftovers, migration_contexts, migrations
from kilonova.db.tables.compute import instances
from kilonova.model.instance import Instance

Rows = list[dict[str, Any]]
Belongings = dict[str, Rows]
"""Table -> its rows."""

_OWNED = (instances, migrations, migration_contexts, leftovers)


def _whose(table: Table) -> str:
    return "uuid" if table is instances else "instance_uuid"


def _read(table: Table) -> Statement:
    of = table.c[_whose(table)] == bindparam("of")
    return Statement(select(*table.columns).where(of).order_by(*table.primary_key.columns))


_READ = {table.name: _read(table) for table in _OWNED}
_REMOVE = [Statement(delete(table).where(table.c[_whose(table)] == bindparam("of"))) for table in _OWNED]
_INSERT = {table.name: insert_into(table) for table in _OWNED}


def as_stored(table: Table, row: dict[str, Any]) -> dict[str, Any]:
    """Without what the database counts, and with flags as every dialect takes them."""
    return {
        column.name: bool(row[column.name]) if isinstance(column.type, Boolean) else row[column.name]
        for column in table.columns
        if column.autoincrement is not True
    }


def read(tx: Tx, uuid: str) -> Belongings:
    return {
        table.name: [
            dict(zip(table.columns.keys(), row, strict=True)) for row in tx.all(_READ[table.name], of=uuid)
        ]
        for table in _OWNED
    }


def write(tx: Tx, belongings: Belongings, residence: int) -> None:
    """The server is here.  Raises UniqueViolation if it was so before."""
    for table in _OWNED:
        for row in belongings[table.name]:
            values = as_stored(table, row)
            if table is instances:
                values |= {"residence": residence, "leaving": None}
            tx.run(_INSERT[table.name], **values)


def remove(tx: Tx, uuid: str) -> None:
    for statement in _REMOVE:
        tx.run(statement, of=uuid)


_RESIDENCE = Statement(
    select(instances.c.residence, instances.c.leaving).where(instances.c.uuid == bindparam("of"))
)


def residence(tx: Tx, uuid: str) -> int | None:
    """The number of the server's stay here, deleted or not; None: it is not here."""
    found: int | None = tx.scalar(_RESIDENCE, of=uuid)
    return found


def has_left(tx: Tx, instance: Instance) -> bool:
    """Whether it is still here only because nobody has removed it so far."""
    row = tx.one(_RESIDENCE, of=instance.uuid)
    return row is not None and row[0] == instance.residence and row[1] is not None
