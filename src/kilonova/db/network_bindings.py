"""Bindings of ports to hosts that do not have them: for moves, as Neutron's extended port bindings.

The binding to the host that has a port stands in the port's own row, so that a boot has nothing to do here.
"""

from __future__ import annotations

from sqlalchemy import bindparam, delete, exists, or_, select, update

from kilonova.db.engine import Statement, Tx, insert_into
from kilonova.db.network_records import BINDINGS, Binding, encoded
from kilonova.db.tables import network as t

b = t.port_bindings.c
p = t.ports.c

_INSERT = insert_into(t.port_bindings)
_ONE = Statement(
    select(t.port_bindings).where(b.port_id == bindparam("the_port"), b.host == bindparam("the_host"))
)
_OF_PORT = Statement(select(t.port_bindings).where(b.port_id == bindparam("the_port")).order_by(b.host))
_OF_DEVICE = Statement(
    select(t.port_bindings)
    .select_from(t.port_bindings.join(t.ports, p.id == b.port_id))
    .where(
        p.device_id == bindparam("the_device"),
        p.nic_index.is_not(None),
        b.host == bindparam("the_host"),
    )
)
_SET = Statement(
    update(t.port_bindings)
    .where(b.port_id == bindparam("the_port"), b.host == bindparam("the_host"))
    .values(
        vif_type=bindparam("to_type"),
        vif_details=bindparam("to_details"),
        profile=bindparam("to_profile"),
    )
)
_TURN = Statement(
    update(t.port_bindings)
    .where(
        b.port_id == bindparam("the_port"),
        b.host == bindparam("the_host"),
        b.status != bindparam("to_status"),
    )
    .values(status=bindparam("to_status"))
)
_DELETE = Statement(
    delete(t.port_bindings).where(b.port_id == bindparam("the_port"), b.host == bindparam("the_host"))
)
_FORGET = Statement(delete(t.port_bindings).where(b.port_id == bindparam("the_port")))
_HAS_PORT = Statement(
    select(p.id)
    .where(
        p.device_id == bindparam("the_device"),
        p.nic_index.is_not(None),
        or_(
            p.host == bindparam("the_host"),
            exists().where(b.port_id == p.id, b.host == bindparam("the_host")),
        ),
    )
    .limit(1)
)


def one(tx: Tx, port_id: str, host: str) -> Binding | None:
    row = tx.one(_ONE, the_port=port_id, the_host=host)
    return None if row is None else BINDINGS.record(row)


def of_port(tx: Tx, port_id: str) -> list[Binding]:
    return [BINDINGS.record(row) for row in tx.all(_OF_PORT, the_port=port_id)]


def of_device(tx: Tx, device_id: str, host: str) -> dict[str, Binding]:
    """Port -> its binding to the host, for those of a server's ports that have one."""
    found = [BINDINGS.record(row) for row in tx.all(_OF_DEVICE, the_device=device_id, the_host=host)]
    return {each.port_id: each for each in found}


def has_port_of(tx: Tx, device_id: str, host: str) -> bool:
    """Whether a port of a server is bound to the host, active or not."""
    return tx.one(_HAS_PORT, the_device=device_id, the_host=host) is not None


def insert(tx: Tx, record: Binding) -> None:
    """Raises UniqueViolation when the port is bound there already."""
    tx.run(_INSERT, **BINDINGS.row(record))


def change(tx: Tx, record: Binding) -> None:
    """Its type, details and profile."""
    tx.run(
        _SET,
        the_port=record.port_id,
        the_host=record.host,
        to_type=record.vif_type,
        to_details=encoded(record.vif_details),
        to_profile=encoded(record.profile),
    )


def turn(tx: Tx, port_id: str, host: str, status: str) -> bool:
    """Change whether the port is wired there; False when it has no such binding, or that status."""
    return tx.run(_TURN, the_port=port_id, the_host=host, to_status=status) == 1


def remove(tx: Tx, port_id: str, host: str) -> bool:
    return tx.run(_DELETE, the_port=port_id, the_host=host) == 1


def forget(tx: Tx, port_id: str) -> None:
    """All bindings of a port that are not active."""
    tx.run(_FORGET, the_port=port_id)
