"""One transaction of the network service, and what has to be told when it is committed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from kilonova.db import network_ledger as ledger
from kilonova.db.engine import Tx
from kilonova.db.network_records import Event
from kilonova.model.context import RequestContext
from kilonova.services.network.faults import OverQuota

DHCP_OWNER = "network:dhcp"
DHCP_DEVICE = "reserved_dhcp_port"  # Neutron's name for a DHCP port that no agent has claimed
FIRST_VLAN, LAST_VLAN = 1, 4000

TUNNEL_OVERHEAD = 50  # bytes that VXLAN over IPv4 puts before a packet, Neutron's number

DEFAULT_QUOTAS = {
    "network": 100,
    "subnet": 100,
    "port": 500,
    "security_group": 10,
    "security_group_rule": 100,
}
"""Neutron's own defaults."""


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What an operator may choose."""

    physical_network: str = "physnet1"
    mtu: int = 1500  # of the physical network
    tunnels: bool = False  # whether hosts carry networks to each other in VXLAN
    quotas: dict[str, int] = msgspec.field(default_factory=DEFAULT_QUOTAS.copy)
    auto_cidr: str = "10.64.0.0/20"  # of networks that are made for a project by themselves
    default_zone: str = "nova"
    bridge: str = "br-int"

    @property
    def largest_mtu(self) -> int:
        """That a network may have."""
        return self.mtu - (TUNNEL_OVERHEAD if self.tunnels else 0)


class Work:
    """An open transaction with the moment, the ids and the choices that its functions need.

    ``ports``, ``networks`` and ``groups`` collect the ids of what changed: subscribers are told of the first
    two, and of the ports whose rules name one of the groups.  ``events`` are for compute.
    """

    __slots__ = (
        "events",
        "groups",
        "listening",
        "networks",
        "new_mac",
        "new_uuid",
        "now",
        "options",
        "ports",
        "tx",
    )

    def __init__(
        self,
        tx: Tx,
        now: int,
        new_uuid: Callable[[], str],
        new_mac: Callable[[], str],
        options: Options,
        listening: bool = True,
    ) -> None:
        self.tx = tx
        self.now = now
        self.new_uuid = new_uuid
        self.new_mac = new_mac
        self.options = options
        self.listening = listening  # whether there is a compute to tell
        self.ports: set[str] = set()
        self.networks: set[str] = set()
        self.groups: set[str] = set()
        self.events: list[Event] = []

    def use(self, project_id: str, resource: str, count: int) -> None:
        """Count things of a project.  Raises OverQuota."""
        used, limit = ledger.use(self.tx, project_id, resource, count)
        if limit is None:
            limit = self.options.quotas[resource]
        if count > 0 and 0 <= limit < used:
            raise OverQuota(f"Quota exceeded for resources: ['{resource}'].")

    def tell(self, instance_uuid: str, name: str, port_id: str) -> None:
        """Have compute told of an event, once this is committed and until it was heard."""
        if self.listening:
            self.events.append(ledger.insert_event(self.tx, instance_uuid, name, port_id))


def privileged(context: RequestContext) -> bool:
    """Whether the caller sees and may do everything: an administrator, or another service."""
    return not context.roles.isdisjoint(("admin", "service"))


def owner_of(context: RequestContext, values: dict[str, Any]) -> str:
    """The project that a new thing shall belong to: the one given, or the caller's."""
    return str(values.pop("project_id", None) or context.project_id or "")
