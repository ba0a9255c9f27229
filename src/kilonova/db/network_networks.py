"""Networks and their subnets."""

from __future__ import annotations

from typing import Any

from sqlalchemy import and_, bindparam, delete, false, func, or_, select, true, update

from kilonova.db.engine import Statement, Tx, insert_into
from kilonova.db.network_records import NETWORKS, SUBNETS, Network, Subnet
from kilonova.db.tables import network as t

n, s = t.networks.c, t.subnets.c

_INSERT_NETWORK = insert_into(t.networks)
_INSERT_SUBNET = insert_into(t.subnets)
_NETWORK = Statement(select(t.networks).where(n.id == bindparam("the_id")))
_LOCKED_NETWORK = Statement(select(t.networks).where(n.id == bindparam("the_id")).with_for_update())
_SUBNET = Statement(select(t.subnets).where(s.id == bindparam("the_id")))
_SUBNETS = Statement(
    select(t.subnets).where(s.network_id == bindparam("network_id")).order_by(s.created_at, s.id)
)
_DELETE_NETWORK = Statement(delete(t.networks).where(n.id == bindparam("the_id")))
_DELETE_SUBNET = Statement(delete(t.subnets).where(s.id == bindparam("the_id")))
_TAKEN = Statement(select(n.segmentation_id).order_by(n.segmentation_id))

_WITH_SUBNETS = (
    select(t.networks, t.subnets)
    .select_from(t.networks.outerjoin(t.subnets, s.network_id == n.id))
    .order_by(n.created_at, n.id, s.created_at, s.id)
    # a network that is being used is not deleted under the user's feet
    .with_for_update(read=True, key_share=True, of=t.networks)
)
_ALL = Statement(_WITH_SUBNETS)
_BY_ID = Statement(_WITH_SUBNETS.where(n.id == bindparam("the_id")))
_USABLE = Statement(
    _WITH_SUBNETS.where(
        and_(n.external == false(), or_(n.project_id == bindparam("project_id"), n.shared == true()))
    )
)

_AUTO = Statement(
    select(t.auto_networks.c.network_id).where(t.auto_networks.c.project_id == bindparam("project_id"))
)
_INSERT_AUTO = insert_into(t.auto_networks)
_DELETE_AUTO = Statement(
    delete(t.auto_networks).where(t.auto_networks.c.network_id == bindparam("network_id"))
)


class Joined:
    """A network together with its subnets, in the order in which they were made."""

    __slots__ = ("network", "subnets")

    def __init__(self, network: Network) -> None:
        self.network = network
        self.subnets: list[Subnet] = []


def _joined(rows: list[Any]) -> list[Joined]:
    result: list[Joined] = []
    width = NETWORKS.width
    for row in rows:
        if not result or result[-1].network.id != row[0]:
            result.append(Joined(NETWORKS.record(row)))
        if row[width] is not None:
            result[-1].subnets.append(SUBNETS.record(row, width))
    return result


def network(tx: Tx, network_id: str) -> Network | None:
    row = tx.one(_NETWORK, the_id=network_id)
    return None if row is None else NETWORKS.record(row)


def locked_network(tx: Tx, network_id: str) -> Network | None:
    """The network, which nobody else changes or uses until the end of the transaction."""
    row = tx.one(_LOCKED_NETWORK, the_id=network_id)
    return None if row is None else NETWORKS.record(row)


def with_subnets(tx: Tx, network_id: str) -> Joined | None:
    """The network and its subnets; it will not be deleted before the end of the transaction."""
    found = _joined(tx.all(_BY_ID, the_id=network_id))
    return found[0] if found else None


def all_with_subnets(tx: Tx) -> list[Joined]:
    """Every network with its subnets."""
    return _joined(tx.all(_ALL))


def usable(tx: Tx, project_id: str) -> list[Joined]:
    """The networks that a server of this project can be put on without naming one."""
    return _joined(tx.all(_USABLE, project_id=project_id))


def insert_network(tx: Tx, record: Network) -> None:
    """Raises UniqueViolation when the VLAN or the id is taken."""
    tx.run(_INSERT_NETWORK, **NETWORKS.row(record))


def update_network(tx: Tx, network_id: str, now: int, values: dict[str, Any]) -> Network:
    """Change some fields.  Raises UniqueViolation when the VLAN is taken."""
    tx.run(
        update(t.networks)
        .where(n.id == network_id)
        .values(**NETWORKS.columns_of(values), updated_at=now, revision=n.revision + 1)
    )
    row = tx.one(_NETWORK, the_id=network_id)
    assert row is not None
    return NETWORKS.record(row)


def delete_network(tx: Tx, network_id: str) -> None:
    tx.run(_DELETE_NETWORK, the_id=network_id)
    tx.run(_DELETE_AUTO, network_id=network_id)


def taken_vlans(tx: Tx) -> set[int]:
    return {row[0] for row in tx.all(_TAKEN)}


def subnet(tx: Tx, subnet_id: str) -> Subnet | None:
    row = tx.one(_SUBNET, the_id=subnet_id)
    return None if row is None else SUBNETS.record(row)


def subnets(tx: Tx, network_id: str) -> list[Subnet]:
    return [SUBNETS.record(row) for row in tx.all(_SUBNETS, network_id=network_id)]


def subnet_ids(tx: Tx, network_ids: list[str]) -> dict[str, list[str]]:
    """The subnets' ids of each of these networks."""
    result: dict[str, list[str]] = {each: [] for each in network_ids}
    statement = select(s.network_id, s.id).where(s.network_id.in_(network_ids)).order_by(s.created_at, s.id)
    for network_id, subnet_id in tx.all(statement) if network_ids else []:
        result[network_id].append(subnet_id)
    return result


def insert_subnet(tx: Tx, record: Subnet) -> None:
    tx.run(_INSERT_SUBNET, **SUBNETS.row(record))


def update_subnet(tx: Tx, subnet_id: str, now: int, values: dict[str, Any]) -> Subnet:
    tx.run(
        update(t.subnets)
        .where(s.id == subnet_id)
        .values(**SUBNETS.columns_of(values), updated_at=now, revision=s.revision + 1)
    )
    row = tx.one(_SUBNET, the_id=subnet_id)
    assert row is not None
    return SUBNETS.record(row)


def delete_subnet(tx: Tx, subnet_id: str) -> None:
    tx.run(_DELETE_SUBNET, the_id=subnet_id)


def auto_network(tx: Tx, project_id: str) -> str | None:
    """The id of the network that was made for the project by itself."""
    found = tx.scalar(_AUTO, project_id=project_id)
    return None if found is None else str(found)


def insert_auto_network(tx: Tx, project_id: str, network_id: str) -> None:
    """Raises UniqueViolation when the project has one already."""
    tx.run(_INSERT_AUTO, project_id=project_id, network_id=network_id)


def count_networks(tx: Tx) -> int:
    return int(tx.scalar(select(func.count()).select_from(t.networks)))
