"""``network_data.json``: how a guest sets up its interfaces, in the form that Nova and cloud-init share."""

from __future__ import annotations

import ipaddress
from typing import Any

from kilonova.model.port import FixedIp, SubnetInfo, Vif

# Kinds of port whose name Nova shows as the kind of link; any other looks like a physical one.
_SHOWN_TYPES = frozenset({"ovs", "bridge", "tap", "vhostuser", "macvtap", "hostdev_physical"})
_ANYWHERE = {4: ("0.0.0.0", "0.0.0.0"), 6: ("::", "::")}


def network_data(vifs: tuple[Vif, ...]) -> dict[str, list[dict[str, Any]]]:
    """The document: ``links``, ``networks`` and ``services``.

    As in Nova, of IPv4 only the first address of a port is told, of IPv6 one in each subnet; a port
    without an address has no link.
    """
    links: list[dict[str, Any]] = []
    networks: list[dict[str, Any]] = []
    services: list[dict[str, Any]] = []
    for vif in vifs:
        found = _addresses(vif)
        if not found:
            continue
        links.append(_link(vif))
        for address, subnet in found:
            networks.append(_network(vif, address, subnet, len(networks)))
            services += [each for each in _dns(subnet) if each not in services]
    return {"links": links, "networks": networks, "services": services}


def _addresses(vif: Vif) -> list[tuple[FixedIp, SubnetInfo]]:
    subnets = {subnet.id: subnet for subnet in vif.subnets}
    found: list[tuple[FixedIp, SubnetInfo]] = []
    seen: set[str] = set()
    for address in vif.fixed_ips:
        subnet = subnets.get(address.subnet_id)
        key = "IPv4" if address.version == 4 else address.subnet_id
        if subnet is not None and key not in seen:
            seen.add(key)
            found.append((address, subnet))
    return sorted(found, key=lambda pair: pair[0].version)


def _link(vif: Vif) -> dict[str, Any]:
    return {
        "id": vif.devname,
        "vif_id": vif.port_id,
        "type": vif.vif_type if vif.vif_type in _SHOWN_TYPES else "phy",
        "mtu": vif.mtu,
        "ethernet_mac_address": vif.mac,
    }


def _network(vif: Vif, address: FixedIp, subnet: SubnetInfo, number: int) -> dict[str, Any]:
    kind = f"ipv{address.version}"
    common = {"id": f"network{number}", "link": vif.devname, "network_id": vif.network_id}
    if subnet.dhcp:
        return {**common, "type": kind + "_dhcp"}
    return {
        **common,
        "type": kind,
        "ip_address": address.address,
        "netmask": str(ipaddress.ip_network(subnet.cidr, strict=False).netmask),
        "routes": _routes(address.version, subnet),
        "services": _dns(subnet),
    }


def _routes(version: int, subnet: SubnetInfo) -> list[dict[str, str]]:
    routes = []
    if subnet.gateway:
        network, netmask = _ANYWHERE[version]
        routes.append({"network": network, "netmask": netmask, "gateway": subnet.gateway})
    for destination, next_hop in subnet.routes:
        target = ipaddress.ip_network(destination, strict=False)
        routes.append(
            {"network": str(target.network_address), "netmask": str(target.netmask), "gateway": next_hop}
        )
    return routes


def _dns(subnet: SubnetInfo) -> list[dict[str, str]]:
    return [{"type": "dns", "address": address} for address in subnet.dns]
