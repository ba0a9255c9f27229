"""What hosts may still have of servers that are not theirs any more, because they could not be asked when the
servers left: a guest, its ports, its files.  It is taken away when they are back."""

from __future__ import annotations

import msgspec
from sqlalchemy import bindparam, delete, select

from kilonova.db.engine import Row, Statement, Tx, insert_into
from kilonova.db.tables.cells import leftovers
from kilonova.model.port import Vif


class Leftover(msgspec.Struct, frozen=True, kw_only=True):
    """``vifs`` as they were bound there; ``keep_files``: they are on storage that others share.

    ``migration_uuid`` holds what the host has given until then, if it was a move.  ``action`` is the number
    of the operation that has left it: what later ones have brought to the host is not meant.
    """

    id: int = 0
    host: str
    instance_uuid: str
    migration_uuid: str | None = None
    action: int = 0
    vifs: tuple[Vif, ...] = ()
    keep_files: bool = False
    created_at: int


_t = leftovers
_names = Leftover.__struct_fields__

_INSERT = insert_into(_t)
_DELETE = Statement(
    delete(_t).where(
        _t.c.host == bindparam("host"),
        _t.c.instance_uuid == bindparam("of"),
        _t.c.action == bindparam("action"),
        _t.c.id == bindparam("id"),
    )
)
_OF_HOST = Statement(
    select(*(_t.c[name] for name in _names)).where(_t.c.host == bindparam("host")).order_by(_t.c.id)
)
_OF = Statement(
    select(*(_t.c[name] for name in _names)).where(
        _t.c.host == bindparam("host"), _t.c.instance_uuid == bindparam("of")
    )
)
_OWING = Statement(select(_t.c.host).where(_t.c.instance_uuid == bindparam("of")).order_by(_t.c.host))
_HOSTS = Statement(select(_t.c.host).distinct().order_by(_t.c.host))

_encode = msgspec.json.Encoder().encode
_vifs = msgspec.json.Decoder(tuple[Vif, ...]).decode


def owe(tx: Tx, leftover: Leftover) -> None:
    """The host has to be rid of this as soon as it can be asked.

    What was noted of the same server there before is kept with it: its ports, and what a move holds.
    """
    before = find(tx, leftover.host, leftover.instance_uuid)
    if before is not None:
        settle(tx, before)
        leftover = _together(before, leftover)
    values = {name: getattr(leftover, name) for name in _names if name != "id"}
    tx.run(_INSERT, **{**values, "vifs": _encode(leftover.vifs).decode()})


def _together(before: Leftover, now: Leftover) -> Leftover:
    known = {vif.port_id for vif in now.vifs}
    return msgspec.structs.replace(
        now,
        migration_uuid=now.migration_uuid or before.migration_uuid,
        vifs=(*now.vifs, *(vif for vif in before.vifs if vif.port_id not in known)),
    )


def settle(tx: Tx, leftover: Leftover) -> bool:
    """The host is rid of it; False if that was noted before, or something else is owed by now."""
    of = {"host": leftover.host, "of": leftover.instance_uuid}
    return tx.run(_DELETE, **of, action=leftover.action, id=leftover.id) == 1


def find(tx: Tx, host: str, instance_uuid: str) -> Leftover | None:
    row = tx.one(_OF, host=host, of=instance_uuid)
    return None if row is None else _from_row(row)


def owing(tx: Tx, instance_uuid: str) -> list[str]:
    """The hosts that may still have something of a server, by name."""
    return [row[0] for row in tx.all(_OWING, of=instance_uuid)]


def of_host(tx: Tx, host: str) -> list[Leftover]:
    """What a host has to be rid of, oldest first."""
    return [_from_row(row) for row in tx.all(_OF_HOST, host=host)]


def hosts(tx: Tx) -> list[str]:
    """The hosts that owe anything, by name."""
    return [row[0] for row in tx.all(_HOSTS)]


def _from_row(row: Row) -> Leftover:
    values = dict(zip(_names, row, strict=True))
    return Leftover(**{**values, "vifs": _vifs(values["vifs"]), "keep_files": bool(values["keep_files"])})
