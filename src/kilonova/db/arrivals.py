"""Servers that come from another cell: packed, and of no effect, until their mapping names this cell."""

from __future__ import annotations

import msgspec
from sqlalchemy import bindparam, delete, select

from kilonova.db import belongings
from kilonova.db.engine import Row, Statement, Tx, insert_into
from kilonova.db.tables.cells import arrivals


class Arrival(msgspec.Struct, frozen=True, kw_only=True):
    """``residence`` is what the server's mapping says once it is here; ``action`` and ``epoch`` tell who has
    packed it, in the numbers of the cell that it leaves."""

    instance_uuid: str
    residence: int
    action: int
    epoch: int
    content: str
    created_at: int

    @property
    def age(self) -> tuple[int, int, int]:
        """Of two that pack the same server, the one with the higher numbers is right."""
        return self.residence, self.action, self.epoch


_t = arrivals
_names = Arrival.__struct_fields__
_INSERT = insert_into(_t)
_of = select(*(_t.c[name] for name in _names)).where(_t.c.instance_uuid == bindparam("of"))
_FIND = Statement(_of)
_LOCKED = Statement(_of.with_for_update())
_ALL = Statement(select(_t.c.instance_uuid, _t.c.residence).order_by(_t.c.created_at))
_DROP = Statement(
    delete(_t).where(_t.c.instance_uuid == bindparam("of"), _t.c.residence == bindparam("known"))
)


def put(tx: Tx, arrival: Arrival) -> bool:
    """Keep it, instead of what an earlier one has packed; False if this one comes too late."""
    here = belongings.residence(tx, arrival.instance_uuid)
    if here is not None and here >= arrival.residence:
        return False
    known = find(tx, arrival.instance_uuid)
    if known is not None and known.age > arrival.age:
        return False
    if known is not None:
        drop(tx, known.instance_uuid, known.residence)
    tx.run(_INSERT, **{name: getattr(arrival, name) for name in _names})
    return True


def find(tx: Tx, uuid: str) -> Arrival | None:
    return _found(tx.one(_FIND, of=uuid))


def taken(tx: Tx, uuid: str) -> Arrival | None:
    """The same for who unpacks it: whoever else would waits, and finds it gone."""
    return _found(tx.one(_LOCKED, of=uuid))


def _found(row: Row | None) -> Arrival | None:
    return None if row is None else Arrival(**dict(zip(_names, row, strict=True)))


def drop(tx: Tx, uuid: str, residence: int) -> None:
    tx.run(_DROP, of=uuid, known=residence)


def waiting(tx: Tx) -> list[tuple[str, int]]:
    """(server, residence) of each, the oldest first."""
    return [(row[0], row[1]) for row in tx.all(_ALL)]
