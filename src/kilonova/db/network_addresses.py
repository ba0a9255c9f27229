"""Fixed addresses: who has which, and which is the next one to give."""

from __future__ import annotations

from sqlalchemy import bindparam, delete, func, select, update

from kilonova.db.engine import Statement, Tx, insert_into
from kilonova.db.network_records import ADDRESSES, Address
from kilonova.db.tables import network as t

a, c = t.port_addresses.c, t.subnet_cursors.c

WINDOW = 64  # positions that are looked at in one go

_INSERT = insert_into(t.port_addresses)
_DELETE_OF_PORT = Statement(delete(t.port_addresses).where(a.port_id == bindparam("the_port")))
_OF_PORT = Statement(select(t.port_addresses).where(a.port_id == bindparam("the_port")).order_by(a.ordinal))
_HOLDER = Statement(
    select(a.port_id).where(a.subnet_id == bindparam("the_subnet"), a.position == bindparam("the_position"))
)
_FROM = Statement(
    select(a.position)
    .where(
        a.subnet_id == bindparam("the_subnet"),
        a.position >= bindparam("first"),
        a.position <= bindparam("last"),
    )
    .order_by(a.position)
    .limit(WINDOW)
)
_CURSOR = Statement(select(c.next).where(c.subnet_id == bindparam("the_subnet")).with_for_update())
_INSERT_CURSOR = insert_into(t.subnet_cursors)
_MOVE = Statement(
    update(t.subnet_cursors).where(c.subnet_id == bindparam("the_subnet")).values(next=bindparam("to"))
)
_DELETE_CURSOR = Statement(delete(t.subnet_cursors).where(c.subnet_id == bindparam("the_subnet")))
_IN_USE = Statement(
    select(func.count()).select_from(t.port_addresses).where(a.subnet_id == bindparam("the_subnet"))
)
_FIND = Statement(
    select(t.ports.c.device_id)
    .select_from(t.port_addresses.join(t.ports, t.ports.c.id == a.port_id))
    .where(
        a.network_id == bindparam("the_network"),
        a.address == bindparam("the_address"),
        t.ports.c.nic_index.is_not(None),  # what users write into device_id makes no server of a port
    )
)


def of_port(tx: Tx, port_id: str) -> list[Address]:
    return [ADDRESSES.record(row) for row in tx.all(_OF_PORT, the_port=port_id)]


def of_ports(tx: Tx, port_ids: list[str]) -> dict[str, list[Address]]:
    """The addresses of each of these ports."""
    result: dict[str, list[Address]] = {each: [] for each in port_ids}
    for start in range(0, len(port_ids), 1000):
        part = port_ids[start : start + 1000]
        for row in tx.all(select(t.port_addresses).where(a.port_id.in_(part)).order_by(a.ordinal)):
            record = ADDRESSES.record(row)
            result[record.port_id].append(record)
    return result


def give(tx: Tx, record: Address) -> None:
    """Raises UniqueViolation when somebody has the address."""
    tx.run(_INSERT, **ADDRESSES.row(record))


def free_port(tx: Tx, port_id: str) -> None:
    """Take all addresses of a port back."""
    tx.run(_DELETE_OF_PORT, the_port=port_id)


def free_in_subnet(tx: Tx, port_id: str, subnet_id: str) -> None:
    """Take back the addresses that a port has in one subnet."""
    tx.run(delete(t.port_addresses).where(a.port_id == port_id, a.subnet_id == subnet_id))


def holder(tx: Tx, subnet_id: str, position: str) -> str | None:
    """The port that has the address, if one has."""
    found = tx.scalar(_HOLDER, the_subnet=subnet_id, the_position=position)
    return None if found is None else str(found)


def used_from(tx: Tx, subnet_id: str, first: str, last: str) -> list[str]:
    """At most WINDOW used positions between two positions, both included, in order."""
    return [row[0] for row in tx.all(_FROM, the_subnet=subnet_id, first=first, last=last)]


def locked_cursor(tx: Tx, subnet_id: str) -> str | None:
    """Where to look for the next address; whoever else asks waits for the end of this transaction."""
    found = tx.scalar(_CURSOR, the_subnet=subnet_id)
    return None if found is None else str(found)


def move_cursor(tx: Tx, subnet_id: str, to: str) -> None:
    tx.run(_MOVE, the_subnet=subnet_id, to=to)


def insert_cursor(tx: Tx, subnet_id: str, at: str) -> None:
    tx.run(_INSERT_CURSOR, subnet_id=subnet_id, next=at)


def delete_cursor(tx: Tx, subnet_id: str) -> None:
    tx.run(_DELETE_CURSOR, the_subnet=subnet_id)


def used(tx: Tx, subnet_id: str) -> int:
    """How many addresses of the subnet are taken."""
    return int(tx.scalar(_IN_USE, the_subnet=subnet_id))


def used_by_subnet(tx: Tx, network_ids: list[str]) -> dict[str, int]:
    """How many addresses are taken, for each subnet that has any."""
    statement = select(a.subnet_id, func.count()).where(a.network_id.in_(network_ids)).group_by(a.subnet_id)
    return dict(tx.all(statement)) if network_ids else {}


def instance_at(tx: Tx, network_id: str, address: str) -> str | None:
    """The server that has this address on this network."""
    found = tx.scalar(_FIND, the_network=network_id, the_address=address)
    return None if found is None else str(found)
