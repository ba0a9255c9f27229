"""The records of the network service, one a table, and how rows become records and back."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

import msgspec
from sqlalchemy import Boolean, Table

from kilonova.db.engine import Row
from kilonova.db.tables import network as t

R = TypeVar("R", bound=msgspec.Struct)


class Network(msgspec.Struct, frozen=True):
    id: str
    project_id: str
    name: str
    description: str
    status: str
    admin_state_up: bool
    shared: bool
    external: bool
    mtu: int
    port_security_enabled: bool
    network_type: str
    physical_network: str
    segmentation_id: int
    revision: int
    created_at: int
    updated_at: int


class Subnet(msgspec.Struct, frozen=True):
    id: str
    network_id: str
    project_id: str
    name: str
    description: str
    ip_version: int
    cidr: str
    gateway_ip: str | None
    enable_dhcp: bool
    pools: tuple[tuple[str, str], ...]
    dns_nameservers: tuple[str, ...]
    host_routes: tuple[tuple[str, str], ...]
    ipv6_ra_mode: str | None
    ipv6_address_mode: str | None
    revision: int
    created_at: int
    updated_at: int


class Port(msgspec.Struct, frozen=True):
    id: str
    network_id: str
    project_id: str
    name: str
    description: str
    mac_address: str
    admin_state_up: bool
    status: str
    device_id: str
    device_owner: str
    nic_index: int | None
    made_by_compute: bool
    nic_tag: str | None
    hostname: str
    host: str
    vnic_type: str
    vif_type: str
    vif_details: dict[str, Any]
    profile: dict[str, Any]
    port_security_enabled: bool
    allowed_pairs: tuple[tuple[str, str], ...]
    revision: int
    created_at: int
    updated_at: int

    @property
    def serves_instance(self) -> bool:
        """Whether compute gave the port to a server.

        A user may write any device id into a port of their own: that makes it nobody's network card.
        """
        return self.nic_index is not None and bool(self.device_id)


class Binding(msgspec.Struct, frozen=True):
    """A host to which a port is bound without being there; ``status`` ACTIVE says that it is wired there."""

    port_id: str
    host: str
    network_id: str
    vif_type: str
    vif_details: dict[str, Any]
    profile: dict[str, Any]
    status: str


class Address(msgspec.Struct, frozen=True):
    subnet_id: str
    position: str
    network_id: str
    address: str
    port_id: str
    ordinal: int


class SecurityGroup(msgspec.Struct, frozen=True):
    id: str
    project_id: str
    name: str
    description: str
    stateful: bool
    revision: int
    created_at: int
    updated_at: int


class Rule(msgspec.Struct, frozen=True):
    id: str
    security_group_id: str
    project_id: str
    direction: str
    ethertype: str
    protocol: str | None
    port_range_min: int | None
    port_range_max: int | None
    remote_ip_prefix: str | None
    remote_group_id: str | None
    description: str
    revision: int
    created_at: int
    updated_at: int


class Event(msgspec.Struct, frozen=True):
    """Something that compute has still to be told; ``tag`` is the port's id."""

    id: int
    instance_uuid: str
    name: str
    tag: str
    status: str


class Stored(Generic[R]):
    """A table whose rows are records of one kind, field by field in the order of the columns."""

    def __init__(self, table: Table, kind: type[R], **decoded: Any) -> None:
        names = [column.name for column in table.columns]
        assert tuple(names) == kind.__struct_fields__, f"{table.name} and {kind.__name__} differ"
        self.table = table
        self.kind = kind
        self.width = len(names)
        self._booleans = tuple(i for i, c in enumerate(table.columns) if isinstance(c.type, Boolean))
        self._json = tuple((names.index(n), msgspec.json.Decoder(of)) for n, of in decoded.items())
        self._json_names = tuple(decoded)

    def record(self, row: Row, start: int = 0) -> R:
        """The record that stands in ``row`` from column ``start`` on."""
        values = list(row[start : start + self.width])
        for index in self._booleans:
            values[index] = bool(values[index])
        for index, decoder in self._json:
            values[index] = decoder.decode(values[index])
        return self.kind(*values)

    def columns_of(self, values: dict[str, Any]) -> dict[str, Any]:
        """Values of fields, as the columns store them."""
        return {name: encoded(value) if name in self._json_names else value for name, value in values.items()}

    def row(self, record: R) -> dict[str, Any]:
        """All columns of a record by name, as ``insert_into`` binds them."""
        return self.columns_of({name: getattr(record, name) for name in self.kind.__struct_fields__})


def encoded(value: Any) -> str:
    """A value as the text of a JSON column."""
    return msgspec.json.encode(value).decode()


_PAIRS = tuple[tuple[str, str], ...]

NETWORKS = Stored(t.networks, Network)
SUBNETS = Stored(t.subnets, Subnet, pools=_PAIRS, dns_nameservers=tuple[str, ...], host_routes=_PAIRS)
PORTS = Stored(t.ports, Port, vif_details=dict[str, Any], profile=dict[str, Any], allowed_pairs=_PAIRS)
BINDINGS = Stored(t.port_bindings, Binding, vif_details=dict[str, Any], profile=dict[str, Any])
ADDRESSES = Stored(t.port_addresses, Address)
GROUPS = Stored(t.security_groups, SecurityGroup)
RULES = Stored(t.security_group_rules, Rule)
EVENTS = Stored(t.network_events, Event)
