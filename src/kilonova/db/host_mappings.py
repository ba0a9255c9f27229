"""Which host is in which cell, for those that are not in the first; rows are in the top database.

They tell where a host is asked for, and which hosts a cell has that is down.
"""

from __future__ import annotations

from sqlalchemy import bindparam, delete, select, text

from kilonova.db.engine import Statement, Tx
from kilonova.db.tables.cells import host_mappings

_t = host_mappings
PUT = Statement(
    text(
        "INSERT INTO host_mappings (host, cell_uuid, created_at) VALUES (:host, :cell_uuid, :created_at)"
        " ON CONFLICT (host) DO NOTHING"
    )
)
CELL_OF = Statement(select(_t.c.cell_uuid).where(_t.c.host == bindparam("host")))
HOSTS_OF = Statement(select(_t.c.host).where(_t.c.cell_uuid == bindparam("cell_uuid")).order_by(_t.c.host))
REMOVE = Statement(delete(_t).where(_t.c.host == bindparam("host")))


def put(tx: Tx, host: str, cell_uuid: str, now: int) -> str:
    """Know where a host is, unless that is known; the cell that it is in."""
    tx.run(PUT, host=host, cell_uuid=cell_uuid, created_at=now)
    return str(tx.scalar(CELL_OF, host=host))


def cell_of(tx: Tx, host: str) -> str | None:
    """None: in the first cell, or nowhere."""
    found: str | None = tx.scalar(CELL_OF, host=host)
    return found


def hosts_of(tx: Tx, cell_uuid: str) -> list[str]:
    return [row[0] for row in tx.all(HOSTS_OF, cell_uuid=cell_uuid)]


def remove(tx: Tx, host: str) -> bool:
    return tx.run(REMOVE, host=host) == 1
