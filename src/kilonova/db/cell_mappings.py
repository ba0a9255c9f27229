"""Which cells there are: their databases and buses.  Rows are in the top database.

The first cell is the top database itself and needs no row; a deployment without rows has no other cell.
"""

from __future__ import annotations

import msgspec
from sqlalchemy import bindparam, delete, func, or_, select, update

from kilonova.db.engine import Row, Statement, Tx, insert_into
from kilonova.db.tables.cells import cell_mappings, instance_mappings

FIRST_CELL = "00000000-0000-0000-0000-000000000001"
FIRST_CELL_NAME = "cell1"
_t = cell_mappings


class CellMapping(msgspec.Struct, frozen=True, kw_only=True):
    """``database_connection`` and ``transport_url`` may hold passwords: see ``masked``."""

    uuid: str
    name: str
    database_connection: str
    transport_url: str
    disabled: bool = False
    created_at: int = 0
    updated_at: int | None = None
    id: int = 0


_names = CellMapping.__struct_fields__
_columns = [_t.c[name] for name in _names]
INSERT = insert_into(_t, returning="id")
ALL = Statement(select(*_columns).order_by(_t.c.id))
FIND = Statement(select(*_columns).where(or_(_t.c.uuid == bindparam("word"), _t.c.name == bindparam("word"))))
UPDATE = Statement(
    update(_t)
    .where(_t.c.uuid == bindparam("of"))
    .values({name: bindparam(f"new_{name}") for name in _names if name not in ("id", "uuid", "created_at")})
)
DELETE = Statement(delete(_t).where(_t.c.uuid == bindparam("of")))
IN_USE = Statement(
    select(func.count())
    .select_from(instance_mappings)
    .where(instance_mappings.c.cell_uuid == bindparam("of"), instance_mappings.c.state != "gone")
)


def _from_row(row: Row) -> CellMapping:
    values = dict(zip(_names, row, strict=True))
    values["disabled"] = bool(values["disabled"])
    return CellMapping(**values)


def list_all(tx: Tx) -> list[CellMapping]:
    """The cells besides the first, oldest first."""
    return [_from_row(row) for row in tx.all(ALL)]


def find(tx: Tx, word: str) -> CellMapping | None:
    """By uuid or name."""
    row = tx.one(FIND, word=word)
    return None if row is None else _from_row(row)


def insert(tx: Tx, mapping: CellMapping) -> int:
    """Raises UniqueViolation for a known uuid or name."""
    return int(tx.scalar(INSERT, **{name: getattr(mapping, name) for name in _names if name != "id"}))


def update_to(tx: Tx, mapping: CellMapping) -> bool:
    """Write all that can be changed; False for a cell that is not there.  Raises UniqueViolation."""
    values = {f"new_{name}": getattr(mapping, name) for name in _names}
    for name in ("id", "uuid", "created_at"):
        del values[f"new_{name}"]
    return tx.run(UPDATE, of=mapping.uuid, **values) == 1


def remove(tx: Tx, uuid: str) -> bool:
    return tx.run(DELETE, of=uuid) == 1


def servers_in(tx: Tx, uuid: str) -> int:
    """How many servers are mapped there whose quota is still booked."""
    return int(tx.scalar(IN_USE, of=uuid))
