"""Network ports of a server, as compute sees them."""

from __future__ import annotations

import msgspec

DELEGATION = "os_vif_delegation"
"""In a binding's profile: whether os-vif makes the OVS port at that host (True), or libvirt (False)."""

Profiles = dict[str, dict[str, str | bool | int]]
"""Port -> what its binding's profile is to say."""


class FixedIp(msgspec.Struct, frozen=True, kw_only=True):
    subnet_id: str
    address: str
    version: int = 4


class SubnetInfo(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    cidr: str
    gateway: str | None = None
    version: int = 4
    dns: tuple[str, ...] = ()
    routes: tuple[tuple[str, str], ...] = ()  # (destination, next hop)
    dhcp: bool = True


class Vif(msgspec.Struct, frozen=True, kw_only=True):
    """A port bound (or to be bound) to a host: what the agent needs to plug it and the API to show it.

    ``vif_type`` is ``ovs`` or ``unbound``; ``details`` are the binding's vif_details
    (``datapath_type``, ``ovs_hybrid_plug`` ...); ``preserve_on_delete`` marks a port that the user made,
    ``delegate_create`` one whose OVS port os-vif makes, and not the hypervisor.
    """

    port_id: str
    mac: str
    network_id: str
    network_name: str
    fixed_ips: tuple[FixedIp, ...] = ()
    subnets: tuple[SubnetInfo, ...] = ()
    mtu: int = 1500
    bridge: str = "br-int"
    vif_type: str = "ovs"
    vnic_type: str = "normal"
    details: dict[str, str | bool | int] = {}
    profile: dict[str, str | bool | int] = {}
    security_groups: tuple[str, ...] = ()
    preserve_on_delete: bool = False
    delegate_create: bool = True
    tag: str | None = None

    @property
    def devname(self) -> str:
        """The tap's name: as Neutron's, "tap" and eleven characters of the port's id."""
        return "tap" + self.port_id[:11]


class RequestedNetwork(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of ``networks`` in a create request: a network, or a port, perhaps with an address."""

    network_id: str | None = None
    port_id: str | None = None
    fixed_ip: str | None = None
    tag: str | None = None
