"""What the layer-2 agents of the hosts are told: ports with their filters resolved, networks with DHCP."""

from __future__ import annotations

import ipaddress

import msgspec

from kilonova.db import network_addresses as addresses
from kilonova.db import network_bindings as bindings
from kilonova.db import network_groups as groups
from kilonova.db import network_networks as networks
from kilonova.db import network_ports as ports
from kilonova.db.engine import Tx
from kilonova.db.network_records import Rule
from kilonova.model.wiring import DhcpHost, DhcpSubnet, FilterRule, NetworkDetails, PortDetails
from kilonova.services.network.work import DHCP_OWNER

_PAIRS = msgspec.json.Decoder(tuple[tuple[str, str], ...])


def port_details(tx: Tx, port_id: str, host: str) -> PortDetails | None:
    """None for a port that does not exist or is not bound to the host."""
    found = ports.port_and_move(tx, port_id)
    if found is None or not host:
        return None
    port, moving = found
    at = port if port.host == host else bindings.one(tx, port_id, host)
    if at is None:
        return None
    network = networks.network(tx, port.network_id)
    if network is None:
        return None
    return PortDetails(
        port_id=port.id,
        network_id=network.id,
        vlan=network.segmentation_id,
        mac=port.mac_address,
        addresses=tuple(each.address for each in addresses.of_port(tx, port_id)),
        allowed_pairs=port.allowed_pairs,
        port_security=port.port_security_enabled,
        admin_state_up=port.admin_state_up and network.admin_state_up,
        rules=_resolved(tx, groups.rules_of_port(tx, port_id)) if port.port_security_enabled else (),
        moving=moving,
        active=at is port,
        up=at.status == "ACTIVE",
    )


def _resolved(tx: Tx, rules: list[Rule]) -> tuple[FilterRule, ...]:
    members: dict[str, list[str]] = {}
    result: dict[FilterRule, None] = {}
    for rule in rules:
        remote: tuple[str, ...] | None = None
        if rule.remote_group_id is not None:
            if rule.remote_group_id not in members:
                members[rule.remote_group_id] = member_cidrs(tx, rule.remote_group_id)
            sign = ":" if rule.ethertype == "IPv6" else "."
            remote = tuple(cidr for cidr in members[rule.remote_group_id] if sign in cidr)
        elif rule.remote_ip_prefix is not None:
            remote = (rule.remote_ip_prefix,)
        resolved = FilterRule(
            direction=rule.direction,
            ethertype=rule.ethertype,
            protocol=_protocol(rule),
            port_min=rule.port_range_min,
            port_max=rule.port_range_max,
            remote=remote,
        )
        result[resolved] = None
    return tuple(result)


def _protocol(rule: Rule) -> str | None:
    """One name for each protocol: both spellings of ICMP for IPv6, and "icmp" in a rule for it, are one."""
    if rule.protocol in ("ipv6-icmp", "58"):
        return "icmpv6"
    if rule.protocol in ("icmp", "1"):
        return "icmpv6" if rule.ethertype == "IPv6" else "icmp"
    return {"6": "tcp", "17": "udp"}.get(rule.protocol or "", rule.protocol)


def member_cidrs(tx: Tx, group_id: str) -> list[str]:
    """The addresses of a group's ports, and those that the ports may use besides, as CIDRs."""
    result: dict[str, None] = {}
    for address, pairs in groups.members(tx, group_id):
        result[f"{address}/{128 if ':' in address else 32}"] = None
        if pairs != "[]":
            for _, cidr in _PAIRS.decode(pairs):
                result[str(ipaddress.ip_network(cidr, strict=False))] = None
    return list(result)


def network_details(tx: Tx, network_id: str, host: str | None) -> NetworkDetails | None:
    """As ``host`` is told it; None for a network that does not exist, or has no port there."""
    tunnels = ports.tunnels_of_network(tx, network_id)
    if host is not None and host not in tunnels:
        return None
    network = networks.network(tx, network_id)
    if network is None:
        return None
    servers = ports.dhcp_servers(tx, network_id, DHCP_OWNER)
    subnets = networks.subnets(tx, network_id)
    served = {subnet.id for subnet in subnets if subnet.enable_dhcp}
    return NetworkDetails(
        network_id=network_id,
        vlan=network.segmentation_id,
        mtu=network.mtu,
        subnets=tuple(
            DhcpSubnet(
                cidr=subnet.cidr,
                server=servers.get(subnet.id, ""),
                gateway=subnet.gateway_ip,
                dns=subnet.dns_nameservers,
                routes=subnet.host_routes,
                dhcp=subnet.enable_dhcp,
            )
            for subnet in subnets
        ),
        hosts=tuple(
            DhcpHost(mac=mac, address=address, hostname=hostname or default_hostname(address))
            for mac, address, hostname, subnet_id in ports.dhcp_hosts(tx, network_id, DHCP_OWNER)
            if subnet_id in served
        ),
        peers=tuple(sorted({ip for other, ip in tunnels.items() if ip and other != host})),
    )


def default_hostname(address: str) -> str:
    """``host-10-0-0-7``, as Neutron names who has no name."""
    return "host-" + address.replace(".", "-").replace(":", "-")
