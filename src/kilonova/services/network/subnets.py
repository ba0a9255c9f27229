"""Subnets: what may be made, changed and deleted, and the DHCP port that serves them."""

from __future__ import annotations

import ipaddress
from typing import Any

from kilonova.db import network_addresses as addresses
from kilonova.db import network_ledger as ledger
from kilonova.db import network_networks as networks
from kilonova.db import network_ports as ports
from kilonova.db.network_records import Address, Network, Port, Subnet
from kilonova.model.context import RequestContext
from kilonova.services.network import ranges
from kilonova.services.network.addressing import next_free
from kilonova.services.network.faults import (
    GatewayIpInUse,
    InvalidInput,
    IpAddressGenerationFailure,
    PolicyNotAuthorized,
    SubnetInUse,
    SubnetNotFound,
)
from kilonova.services.network.networks import changeable_network, owns, sees
from kilonova.services.network.work import DHCP_DEVICE, DHCP_OWNER, Work, owner_of


def visible_subnet(work: Work, context: RequestContext, subnet_id: str) -> Subnet:
    """Raises SubnetNotFound."""
    found = networks.subnet(work.tx, subnet_id)
    if found is not None:
        network = networks.network(work.tx, found.network_id)
        if owns(context, found.project_id) or (network is not None and sees(context, network)):
            return found
    raise SubnetNotFound(subnet_id)


def _changeable(work: Work, context: RequestContext, subnet_id: str) -> Subnet:
    found = visible_subnet(work, context, subnet_id)
    networks.locked_network(work.tx, found.network_id)
    again = networks.subnet(work.tx, subnet_id)
    if again is None:
        raise SubnetNotFound(subnet_id)
    if not owns(context, again.project_id):
        raise PolicyNotAuthorized(f"Only the owner of subnet {subnet_id} may do this.")
    return again


def create_subnet(work: Work, context: RequestContext, values: dict[str, Any]) -> Subnet:
    """Raises NetworkNotFound, InvalidInput, OverQuota and the faults of allocation pools."""
    network = changeable_network(work, context, values["network_id"])
    cidr = ranges.parse_cidr(values["cidr"])
    _check_cidr(work, network, cidr, values)
    gateway = values["gateway_ip"]
    if gateway is Ellipsis:
        gateway = ranges.default_gateway(cidr)
    if gateway is not None:
        check_gateway(cidr, gateway)
    if values["pools"] is None:
        pools = ranges.default_pools(cidr, gateway)
    else:
        pools = values["pools"]
        ranges.check_pools(cidr, pools, gateway)
    check_versions(cidr, values)
    project_id = owner_of(context, values) if values.get("project_id") else network.project_id
    work.use(project_id, "subnet", 1)
    record = Subnet(
        id=work.new_uuid(),
        network_id=network.id,
        project_id=project_id,
        name=values["name"],
        description=values["description"],
        ip_version=cidr.version,
        cidr=str(cidr),
        gateway_ip=gateway,
        enable_dhcp=values["enable_dhcp"],
        pools=pools,
        dns_nameservers=values["dns_nameservers"],
        host_routes=values["host_routes"],
        ipv6_ra_mode=values["ipv6_ra_mode"],
        ipv6_address_mode=values["ipv6_address_mode"],
        revision=1,
        created_at=work.now,
        updated_at=work.now,
    )
    networks.insert_subnet(work.tx, record)
    addresses.insert_cursor(work.tx, record.id, _first_position(cidr, pools))
    if record.enable_dhcp:
        serve(work, network, record)
    work.networks.add(network.id)
    return record


def _first_position(cidr: ranges.Cidr, pools: tuple[ranges.Pool, ...]) -> str:
    starts = [ipaddress.ip_address(first) for first, _ in pools]
    return min((ranges.position(each) for each in starts), default=ranges.position(cidr.network_address))


def _check_cidr(work: Work, network: Network, cidr: ranges.Cidr, values: dict[str, Any]) -> None:
    if cidr.version != values["ip_version"]:
        raise InvalidInput(f"The cidr {cidr} does not match the ip_version {values['ip_version']}.")
    if cidr.prefixlen == 0:
        raise InvalidInput(f"The cidr {cidr} holds all addresses there are: give one with a prefix length.")
    if values["enable_dhcp"] and cidr.version == 4 and cidr.prefixlen > 30:
        raise InvalidInput(f"The cidr {cidr} is too small for DHCP: give a /30 or larger, or disable DHCP.")
    if cidr.is_multicast or cidr.is_loopback:
        raise InvalidInput(f"The cidr {cidr} is not for hosts: it is a multicast or loopback range.")
    for other in networks.subnets(work.tx, network.id):
        theirs = ranges.parse_cidr(other.cidr)
        if theirs.version == cidr.version and theirs.overlaps(cidr):
            raise InvalidInput(
                f"Requested subnet with cidr: {cidr} for network: {network.id} overlaps with another subnet: "
                f"{other.id} has {other.cidr}."
            )
    mode = values["ipv6_address_mode"] or values["ipv6_ra_mode"]
    if mode is not None and cidr.version == 4:
        raise InvalidInput("ipv6_ra_mode and ipv6_address_mode are not for IPv4 subnets.")
    if mode in ("slaac", "dhcpv6-stateless") and cidr.prefixlen != 64:
        raise InvalidInput(f"Guests can only give themselves addresses in a /64, and {cidr} is none.")


def check_gateway(cidr: ranges.Cidr, gateway: str) -> None:
    """Raises InvalidInput for a gateway of the other IP version, or a network or broadcast address."""
    ip = ipaddress.ip_address(gateway)
    if ip.version != cidr.version:
        raise InvalidInput(f"The gateway {gateway} is of another IP version than {cidr}.")
    if ip in cidr and not ranges.usable(cidr, ip) and cidr.version == 4:
        raise InvalidInput(f"The gateway {gateway} is the network or broadcast address of {cidr}.")


def check_versions(cidr: ranges.Cidr, values: dict[str, Any]) -> None:
    """Raises InvalidInput when a route is of another IP version than the subnet."""
    for destination, nexthop in values.get("host_routes", ()):
        if (ranges.parse_cidr(destination).version, ipaddress.ip_address(nexthop).version) != (
            cidr.version,
            cidr.version,
        ):
            raise InvalidInput(f"The route {destination} via {nexthop} is not for IPv{cidr.version}.")


def update_subnet(work: Work, context: RequestContext, subnet_id: str, values: dict[str, Any]) -> Subnet:
    """Raises SubnetNotFound, PolicyNotAuthorized, InvalidInput, GatewayIpInUse, faults of pools."""
    subnet = _changeable(work, context, subnet_id)
    cidr = ranges.parse_cidr(subnet.cidr)
    values = {name: value for name, value in values.items() if getattr(subnet, name) != value}
    gateway = values.get("gateway_ip", subnet.gateway_ip)
    if "gateway_ip" in values and gateway is not None:
        check_gateway(cidr, gateway)
        ip = ipaddress.ip_address(gateway)
        if addresses.holder(work.tx, subnet_id, ranges.position(ip)) is not None:
            raise GatewayIpInUse(f"The address {gateway} cannot be the gateway: a port has it.")
    if "pools" in values or "gateway_ip" in values:
        ranges.check_pools(cidr, values.get("pools", subnet.pools), gateway)
    check_versions(cidr, values)
    if values.get("enable_dhcp") and cidr.version == 4 and cidr.prefixlen > 30:
        raise InvalidInput(f"The cidr {cidr} is too small for DHCP.")
    if not values:
        return subnet
    result = networks.update_subnet(work.tx, subnet_id, work.now, values)
    if "enable_dhcp" in values:
        network = networks.network(work.tx, subnet.network_id)
        assert network is not None
        (serve if result.enable_dhcp else unserve)(work, network, result)
    work.networks.add(subnet.network_id)
    return result


def delete_subnet(work: Work, context: RequestContext, subnet_id: str) -> None:
    """Raises SubnetNotFound, PolicyNotAuthorized, SubnetInUse."""
    subnet = _changeable(work, context, subnet_id)
    network = networks.network(work.tx, subnet.network_id)
    assert network is not None
    addresses.locked_cursor(work.tx, subnet_id)  # boots that are taking an address are done now
    unserve(work, network, subnet)
    if addresses.used(work.tx, subnet_id):
        raise SubnetInUse(subnet_id)
    networks.delete_subnet(work.tx, subnet_id)
    addresses.delete_cursor(work.tx, subnet_id)
    ledger.delete_tags(work.tx, subnet_id)
    work.use(subnet.project_id, "subnet", -1)
    work.networks.add(subnet.network_id)


def serve(work: Work, network: Network, subnet: Subnet) -> None:
    """Reserve an address for the DHCP server in a subnet, on the network's one DHCP port.

    Raises IpAddressGenerationFailure.
    """
    position = next_free(work, subnet)
    if position is None:
        raise IpAddressGenerationFailure(network.id)
    found = ports.owned_on_network(work.tx, network.id, DHCP_OWNER)
    port_id = found[0] if found else _dhcp_port(work, network)
    ordinal = len(addresses.of_port(work.tx, port_id))
    address = ranges.address_at(position)
    addresses.give(work.tx, Address(subnet.id, position, network.id, address, port_id, ordinal))


def unserve(work: Work, network: Network, subnet: Subnet) -> None:
    """Take the DHCP server's address in a subnet back, and its port with the last one."""
    for port_id in ports.owned_on_network(work.tx, network.id, DHCP_OWNER):
        mine = addresses.of_port(work.tx, port_id)
        if any(each.subnet_id == subnet.id for each in mine):
            addresses.free_in_subnet(work.tx, port_id, subnet.id)
            if len(mine) == 1:
                ports.erase(work.tx, port_id)


def _dhcp_port(work: Work, network: Network) -> str:
    record = Port(
        id=work.new_uuid(),
        network_id=network.id,
        project_id=network.project_id,
        name="",
        description="",
        mac_address=work.new_mac(),
        admin_state_up=True,
        status="ACTIVE",
        device_id=DHCP_DEVICE,
        device_owner=DHCP_OWNER,
        nic_index=None,
        made_by_compute=False,
        nic_tag=None,
        hostname="",
        host="",
        vnic_type="normal",
        vif_type="unbound",
        vif_details={},
        profile={},
        port_security_enabled=False,
        allowed_pairs=(),
        revision=1,
        created_at=work.now,
        updated_at=work.now,
    )
    ports.insert_port(work.tx, record)
    return record.id
