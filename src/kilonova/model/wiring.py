"""How ports and networks are wired: what a switch and a DHCP server need to know of them."""

from __future__ import annotations

import msgspec


class FilterRule(msgspec.Struct, frozen=True, kw_only=True):
    """One security group rule, resolved: a remote group is the list of its members' addresses."""

    direction: str  # "ingress" or "egress"
    ethertype: str  # "IPv4" or "IPv6"
    protocol: str | None = None  # "tcp", "udp", "icmp", "icmpv6", a number as text, or None for any
    port_min: int | None = None  # for icmp: the type
    port_max: int | None = None  # for icmp: the code
    remote: tuple[str, ...] | None = None  # CIDRs; None: from anywhere, (): from nowhere


class PortDetails(msgspec.Struct, frozen=True, kw_only=True):
    """All that a switch needs to know of a port that is bound to this host."""

    port_id: str
    network_id: str
    vlan: int
    mac: str
    addresses: tuple[str, ...]  # fixed addresses
    allowed_pairs: tuple[tuple[str, str], ...] = ()  # further (mac, cidr) that the guest may use
    port_security: bool = True  # False: neither anti-spoofing nor filter
    admin_state_up: bool = True
    rules: tuple[FilterRule, ...] = ()
    moving: bool = False  # bound to another host, too
    active: bool = True  # False: the other host has it
    up: bool = True  # whether the network service knows that it is wired here


class DhcpHost(msgspec.Struct, frozen=True, kw_only=True):
    mac: str
    address: str
    hostname: str


class DhcpSubnet(msgspec.Struct, frozen=True, kw_only=True):
    cidr: str
    server: str  # the address of the DHCP server in this subnet
    gateway: str | None
    dns: tuple[str, ...] = ()
    routes: tuple[tuple[str, str], ...] = ()
    dhcp: bool = True


class NetworkDetails(msgspec.Struct, frozen=True, kw_only=True):
    """A network that has ports on this host."""

    network_id: str
    vlan: int
    mtu: int
    subnets: tuple[DhcpSubnet, ...]
    hosts: tuple[DhcpHost, ...]
    peers: tuple[str, ...] = ()  # where tunnels to the other hosts of the network end there
