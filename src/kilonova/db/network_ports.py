"""Ports, with what belongs to them: addresses and security groups."""

from __future__ import annotations

from typing import Any

import msgspec
from sqlalchemy import bindparam, delete, exists, func, select, union, update

from kilonova.db.engine import Row, Statement, Tx, insert_into
from kilonova.db.network_records import PORTS, Port
from kilonova.db.tables import network as t
from kilonova.db.tables.compute import hosts
from kilonova.model.host import TUNNELING_IP

p = t.ports.c
a = t.port_addresses.c
s = t.subnets.c
n = t.networks.c
b = t.port_bindings.c
pg = t.port_security_groups.c
g = t.security_groups.c

_INSERT = insert_into(t.ports)
_details = msgspec.json.Decoder(dict[str, Any]).decode
SOME = 500  # ids in one statement

_PORT = Statement(select(t.ports).where(p.id == bindparam("the_id")))
_PORT_AND_MOVE = Statement(
    select(t.ports, exists().where(b.port_id == p.id)).where(p.id == bindparam("the_id"))
)
_LOCKED = Statement(select(t.ports).where(p.id == bindparam("the_id")).with_for_update())
_OF_DEVICE = Statement(
    select(t.ports)
    .where(p.device_id == bindparam("the_device"), p.nic_index.is_not(None))
    .order_by(p.nic_index, p.id)
    .with_for_update()
)
_DELETE = Statement(delete(t.ports).where(p.id == bindparam("the_id")))
_BIND = Statement(
    update(t.ports)
    .where(p.id == bindparam("the_id"))
    .values(
        device_id=bindparam("to_device"),
        device_owner=bindparam("to_owner"),
        nic_index=bindparam("to_index"),
        nic_tag=bindparam("to_tag"),
        hostname=bindparam("to_hostname"),
        host=bindparam("to_host"),
        vif_type=bindparam("to_type"),
        vif_details=bindparam("to_details"),
        profile=bindparam("to_profile"),
        status=bindparam("to_status"),
        updated_at=bindparam("now"),
        revision=p.revision + 1,
    )
)
_TURN = Statement(
    update(t.ports)
    .where(
        p.id == bindparam("the_id"),
        p.host == bindparam("the_host"),
        p.status != bindparam("to_status"),
    )
    .values(status=bindparam("to_status"), updated_at=bindparam("now"), revision=p.revision + 1)
    .returning(p.device_id, p.nic_index)
)
_SERVING = Statement(
    select(p.id, p.device_id, p.device_owner).where(
        p.network_id == bindparam("the_network"), p.device_owner == bindparam("the_owner")
    )
)
_COUNT_OTHERS = Statement(
    select(func.count())
    .select_from(t.ports)
    .where(p.network_id == bindparam("the_network"), p.device_owner != bindparam("the_owner"))
)
_INSERT_GROUP = insert_into(t.port_security_groups)
_DELETE_ADDRESSES = Statement(delete(t.port_addresses).where(a.port_id == bindparam("the_port")))
_DELETE_BINDINGS = Statement(delete(t.port_bindings).where(b.port_id == bindparam("the_port")))
_DELETE_GROUPS = Statement(delete(t.port_security_groups).where(pg.port_id == bindparam("the_port")))
_GROUPS = Statement(select(pg.group_id).where(pg.port_id == bindparam("the_port")).order_by(pg.group_id))
_VIFS = Statement(
    select(
        t.ports,
        n.name,
        n.mtu,
        a.address,
        a.ordinal,
        s.id,
        s.cidr,
        s.gateway_ip,
        s.ip_version,
        s.dns_nameservers,
        s.host_routes,
        s.enable_dhcp,
        g.id,
        g.name,
    )
    .select_from(
        t.ports.join(t.networks, n.id == p.network_id)
        .outerjoin(t.port_addresses, a.port_id == p.id)
        .outerjoin(t.subnets, s.id == a.subnet_id)
        .outerjoin(t.port_security_groups, pg.port_id == p.id)
        .outerjoin(t.security_groups, g.id == pg.group_id)
    )
    .where(p.device_id == bindparam("the_device"), p.nic_index.is_not(None))
    .order_by(p.nic_index, p.id, a.ordinal, g.name, g.id)
)
_HOSTS = Statement(
    select(p.mac_address, a.address, p.hostname, a.subnet_id)
    .select_from(t.ports.join(t.port_addresses, a.port_id == p.id))
    .where(p.network_id == bindparam("the_network"), p.device_owner != bindparam("the_owner"))
    .order_by(a.position)
)
_bound = union(
    select(p.host).where(p.network_id == bindparam("the_network"), p.host != ""),
    select(b.host).where(b.network_id == bindparam("the_network")),
)
_HOSTS_OF_NETWORK = Statement(_bound)
_BOUND = _bound.subquery()
_DETAILS_OF_HOSTS = Statement(
    select(_BOUND.c.host, hosts.c.details).select_from(_BOUND.outerjoin(hosts, hosts.c.host == _BOUND.c.host))
)
_LEFT_BY = Statement(
    select(hosts.c.details).where(
        hosts.c.host == bindparam("the_host"),
        ~exists().where(p.network_id == bindparam("the_network"), p.host == bindparam("the_host")),
        ~exists().where(b.network_id == bindparam("the_network"), b.host == bindparam("the_host")),
    )
)
_DHCP_ADDRESSES = Statement(
    select(a.subnet_id, a.address)
    .select_from(t.ports.join(t.port_addresses, a.port_id == p.id))
    .where(p.network_id == bindparam("the_network"), p.device_owner == bindparam("the_owner"))
)


def port(tx: Tx, port_id: str) -> Port | None:
    row = tx.one(_PORT, the_id=port_id)
    return None if row is None else PORTS.record(row)


def port_and_move(tx: Tx, port_id: str) -> tuple[Port, bool] | None:
    """The port, and whether it is bound to further hosts."""
    row = tx.one(_PORT_AND_MOVE, the_id=port_id)
    return None if row is None else (PORTS.record(row), bool(row[PORTS.width]))


def locked_port(tx: Tx, port_id: str) -> Port | None:
    """The port, which nobody else changes until the end of the transaction."""
    row = tx.one(_LOCKED, the_id=port_id)
    return None if row is None else PORTS.record(row)


def of_device(tx: Tx, device_id: str) -> list[Port]:
    """The ports that compute gave to a server, locked, in the order of its network cards."""
    return [PORTS.record(row) for row in tx.all(_OF_DEVICE, the_device=device_id)]


def insert_port(tx: Tx, record: Port) -> None:
    """Raises UniqueViolation when the network has the MAC address, or the server the place, already."""
    tx.run(_INSERT, **PORTS.row(record))


def update_port(tx: Tx, port_id: str, now: int, values: dict[str, Any]) -> Port:
    """Raises UniqueViolation when the network has the MAC address already."""
    tx.run(
        update(t.ports)
        .where(p.id == port_id)
        .values(**PORTS.columns_of(values), updated_at=now, revision=p.revision + 1)
    )
    row = tx.one(_PORT, the_id=port_id)
    assert row is not None
    return PORTS.record(row)


def bind_port(tx: Tx, port_id: str, now: int, **to: Any) -> None:
    """Give a port to a server on a host, or (all empty) take it back; the keys are those of ``_BIND``."""
    tx.run(_BIND, the_id=port_id, now=now, **to)


def turn(tx: Tx, port_id: str, host: str, status: str, now: int) -> Row | None:
    """Change the status of a port on its host.

    Returns its device id and its place among the server's ports; None when there is no such port there, or
    it had that status.
    """
    return tx.one(_TURN, the_id=port_id, the_host=host, to_status=status, now=now)


def erase(tx: Tx, port_id: str) -> None:
    """The port with its addresses, its places in groups, and its further bindings."""
    tx.run(_DELETE_ADDRESSES, the_port=port_id)
    tx.run(_DELETE_GROUPS, the_port=port_id)
    tx.run(_DELETE_BINDINGS, the_port=port_id)
    tx.run(_DELETE, the_id=port_id)


def foreign_ports(tx: Tx, network_id: str, project_id: str, device_owner: str) -> int:
    """How many ports of other projects are on the network, those of this owner left out."""
    statement = (
        select(func.count())
        .select_from(t.ports)
        .where(p.network_id == network_id, p.project_id != project_id, p.device_owner != device_owner)
    )
    return int(tx.scalar(statement))


def mac_taken(tx: Tx, network_id: str, mac: str) -> bool:
    statement = select(p.id).where(p.network_id == network_id, p.mac_address == mac)
    return tx.one(statement) is not None


def on_network(tx: Tx, network_id: str) -> list[str]:
    """Ids of the network's ports that are bound to a host."""
    return [row[0] for row in tx.all(select(p.id).where(p.network_id == network_id, p.host != ""))]


def join_groups(tx: Tx, port_id: str, group_ids: list[str]) -> None:
    tx.run_many(_INSERT_GROUP, [{"port_id": port_id, "group_id": each} for each in group_ids])


def leave_groups(tx: Tx, port_id: str) -> None:
    tx.run(_DELETE_GROUPS, the_port=port_id)


def hosts_of_network(tx: Tx, network_id: str) -> set[str]:
    """The hosts to which ports of a network are bound, active or not."""
    return {row[0] for row in tx.all(_HOSTS_OF_NETWORK, the_network=network_id)}


def tunnels_of_network(tx: Tx, network_id: str) -> dict[str, str]:
    """The same hosts, each with the address where tunnels to it end; empty if it has none."""
    rows = tx.all(_DETAILS_OF_HOSTS, the_network=network_id)
    return {host: "" if details is None else _tunneling_ip(details) for host, details in rows}


def has_left(tx: Tx, network_id: str, host: str) -> bool:
    """Whether a host to which there are tunnels has no port of the network (any more)."""
    row = tx.one(_LEFT_BY, the_network=network_id, the_host=host)
    return row is not None and bool(_tunneling_ip(row[0]))


def _tunneling_ip(details: str) -> str:
    return str(_details(details).get(TUNNELING_IP, ""))


def hosts_of_ports(tx: Tx, port_ids: list[str]) -> dict[str, set[str]]:
    """Port -> the hosts to which it is bound, active or not, for those that are."""
    found: dict[str, set[str]] = {}
    for first in range(0, len(port_ids), SOME):
        some = port_ids[first : first + SOME]
        bound = select(p.id, p.host).where(p.id.in_(some), p.host != "")
        also = select(b.port_id, b.host).where(b.port_id.in_(some))
        for port_id, host in tx.all(union(bound, also)):
            found.setdefault(port_id, set()).add(host)
    return found


def groups_of(tx: Tx, port_id: str) -> list[str]:
    return [row[0] for row in tx.all(_GROUPS, the_port=port_id)]


def groups_of_ports(tx: Tx, port_ids: list[str]) -> dict[str, list[str]]:
    """The security groups' ids of each of these ports."""
    result: dict[str, list[str]] = {each: [] for each in port_ids}
    for start in range(0, len(port_ids), 1000):
        part = port_ids[start : start + 1000]
        statement = select(pg.port_id, pg.group_id).where(pg.port_id.in_(part)).order_by(pg.group_id)
        for port_id, group_id in tx.all(statement):
            result[port_id].append(group_id)
    return result


def owned_on_network(tx: Tx, network_id: str, device_owner: str) -> list[str]:
    """Ids of the network's ports that have this owner."""
    return [row[0] for row in tx.all(_SERVING, the_network=network_id, the_owner=device_owner)]


def count_others(tx: Tx, network_id: str, device_owner: str) -> int:
    """How many ports of the network have another owner than this one."""
    return int(tx.scalar(_COUNT_OTHERS, the_network=network_id, the_owner=device_owner))


def vif_rows(tx: Tx, device_id: str) -> list[Row]:
    """A row for each port, address and group of a server: see ``_VIFS`` for the columns."""
    return tx.all(_VIFS, the_device=device_id)


def dhcp_hosts(tx: Tx, network_id: str, dhcp_owner: str) -> list[Row]:
    """(MAC, address, host name, subnet) of each address on the network that is not the DHCP server's."""
    return tx.all(_HOSTS, the_network=network_id, the_owner=dhcp_owner)


def dhcp_servers(tx: Tx, network_id: str, dhcp_owner: str) -> dict[str, str]:
    """The DHCP server's address in each subnet."""
    return dict(tx.all(_DHCP_ADDRESSES, the_network=network_id, the_owner=dhcp_owner))
