"""A server's ports as compute sees them, put together from one statement's rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from kilonova.db import network_bindings as bindings
from kilonova.db import network_ports as ports
from kilonova.db.engine import Row, Tx
from kilonova.db.network_records import PORTS, Binding
from kilonova.model.port import DELEGATION, FixedIp, SubnetInfo, Vif

_PAIRS = msgspec.json.Decoder(tuple[tuple[str, str], ...])
_TEXTS = msgspec.json.Decoder(tuple[str, ...])


class _Gathered:
    """What the rows of one port have said so far."""

    __slots__ = ("addresses", "groups", "row", "subnets")

    def __init__(self, row: Row) -> None:
        self.row = row
        self.addresses: dict[str, FixedIp] = {}
        self.subnets: dict[str, SubnetInfo] = {}
        self.groups: dict[str, str] = {}

    def hear(self, row: Row) -> None:
        _, _, address, _, subnet_id, *subnet, group_id, group_name = row[PORTS.width :]
        if address is not None and address not in self.addresses:
            self.addresses[address] = FixedIp(subnet_id=subnet_id, address=address, version=subnet[2])
            if subnet_id not in self.subnets:
                self.subnets[subnet_id] = _subnet(subnet_id, subnet)
        if group_id is not None:
            self.groups[group_id] = group_name

    def vif(self, bridge: str, bound: Mapping[str, Binding]) -> Vif:
        port = PORTS.record(self.row)
        at = bound.get(port.id, port)
        name, mtu = self.row[PORTS.width : PORTS.width + 2]
        return Vif(
            port_id=port.id,
            mac=port.mac_address,
            network_id=port.network_id,
            network_name=name,
            fixed_ips=tuple(self.addresses.values()),
            subnets=tuple(self.subnets.values()),
            mtu=mtu,
            bridge=bridge,
            vif_type=at.vif_type,
            vnic_type=port.vnic_type,
            details={k: v for k, v in at.vif_details.items() if isinstance(v, (str, int))},
            profile={k: v for k, v in at.profile.items() if isinstance(v, (str, int))},
            security_groups=tuple(self.groups.values()),
            preserve_on_delete=not port.made_by_compute,
            delegate_create=bool(at.profile.get(DELEGATION, True)),
            tag=port.nic_tag,
        )


def _subnet(subnet_id: str, values: list[Any]) -> SubnetInfo:
    cidr, gateway, version, dns, routes, dhcp = values
    return SubnetInfo(
        id=subnet_id,
        cidr=cidr,
        gateway=gateway,
        version=version,
        dns=_TEXTS.decode(dns),
        routes=_PAIRS.decode(routes),
        dhcp=bool(dhcp),
    )


def vifs_of(tx: Tx, instance_uuid: str, bridge: str, host: str | None = None) -> tuple[Vif, ...]:
    """The ports of a server, in the order of its network cards.

    As they are at ``host``, if that is given and they have bindings to it that are not active.
    """
    bound = {} if host is None else bindings.of_device(tx, instance_uuid, host)
    gathered: dict[str, _Gathered] = {}
    for row in ports.vif_rows(tx, instance_uuid):
        found = gathered.get(row[0])
        if found is None:
            found = gathered[row[0]] = _Gathered(row)
        found.hear(row)
    indexed = sorted(gathered.values(), key=lambda each: _order(each.row))
    return tuple(each.vif(bridge, bound) for each in indexed)


_INDEX = PORTS.kind.__struct_fields__.index("nic_index")


def _order(row: Row) -> tuple[bool, int]:
    """Ports without a place come last, whatever the database thinks of NULL."""
    return row[_INDEX] is None, row[_INDEX] or 0
