"""Giving addresses to ports."""

from __future__ import annotations

import ipaddress

import msgspec

from kilonova.db import network_addresses as addresses
from kilonova.db.network_networks import Joined
from kilonova.db.network_records import Address, Subnet
from kilonova.services.network import ranges
from kilonova.services.network.faults import (
    InvalidInput,
    InvalidIpForNetwork,
    InvalidIpForSubnet,
    IpAddressGenerationFailure,
    IpAddressInUse,
)
from kilonova.services.network.work import Work

STATELESS = ("slaac", "dhcpv6-stateless")


class Wanted(msgspec.Struct, frozen=True):
    """One address that a port shall have: that one, any one of a subnet, or the first of both known."""

    subnet_id: str | None = None
    address: str | None = None


class Place(msgspec.Struct, frozen=True):
    """A subnet and an address in it that a port is going to have."""

    subnet: Subnet
    position: str


def places_for(
    work: Work, joined: Joined, wanted: tuple[Wanted, ...] | None, mac: str, keep: str | None = None
) -> list[Place]:
    """Where a port shall be: as wanted, or (None) one address of each IP version that the network has.

    ``keep`` is a port that may have the addresses already.  Raises InvalidIpForNetwork, InvalidIpForSubnet,
    InvalidInput, IpAddressInUse, IpAddressGenerationFailure.
    """
    if wanted is None:
        return _one_of_each(work, joined, mac)
    result: list[Place] = []
    for each in wanted:
        if each.address is not None:
            place = _exactly(work, joined, each, keep)
        else:
            subnet = subnet_of(joined, each.subnet_id)
            place = _any_of(work, joined, [subnet], mac)
        if any(other.subnet.id == place.subnet.id and other.position == place.position for other in result):
            raise InvalidInput(f"The address {ranges.address_at(place.position)} is given twice.")
        result.append(place)
    return result


def occupy(work: Work, places: list[Place], port_id: str) -> None:
    """Give the addresses to a port, which has none yet.  Raises UniqueViolation when a race is lost."""
    for ordinal, place in enumerate(places):
        address = ranges.address_at(place.position)
        subnet = place.subnet
        addresses.give(
            work.tx, Address(subnet.id, place.position, subnet.network_id, address, port_id, ordinal)
        )


def subnet_of(joined: Joined, subnet_id: str | None) -> Subnet:
    """The network's subnet of that id.  Raises InvalidInput."""
    for subnet in joined.subnets:
        if subnet.id == subnet_id:
            return subnet
    raise InvalidInput(f"The subnet {subnet_id} is not one of network {joined.network.id}.")


def containing(joined: Joined, address: str, subnet_id: str | None = None) -> Subnet:
    """The subnet in which the address may be used.  Raises InvalidIpForNetwork, InvalidIpForSubnet."""
    ip = ipaddress.ip_address(address)
    if subnet_id is not None:
        subnet = subnet_of(joined, subnet_id)
        if not ranges.usable(ranges.parse_cidr(subnet.cidr), ip):
            raise InvalidIpForSubnet(address)
        return subnet
    for subnet in joined.subnets:
        if ranges.usable(ranges.parse_cidr(subnet.cidr), ip):
            return subnet
    raise InvalidIpForNetwork(address)


def _exactly(work: Work, joined: Joined, wanted: Wanted, keep: str | None) -> Place:
    assert wanted.address is not None
    subnet = containing(joined, wanted.address, wanted.subnet_id)
    where = ranges.position(ipaddress.ip_address(wanted.address))
    if addresses.holder(work.tx, subnet.id, where) not in (None, keep):
        raise IpAddressInUse(joined.network.id, wanted.address)
    return Place(subnet, where)


def _one_of_each(work: Work, joined: Joined, mac: str) -> list[Place]:
    result = []
    for version in (4, 6):
        subnets = [subnet for subnet in joined.subnets if subnet.ip_version == version]
        if subnets:
            result.append(_any_of(work, joined, subnets, mac))
    return result


def _any_of(work: Work, joined: Joined, subnets: list[Subnet], mac: str) -> Place:
    for subnet in subnets:
        if subnet.ipv6_address_mode in STATELESS:
            return Place(subnet, ranges.position(eui64(subnet.cidr, mac)))
        found = next_free(work, subnet)
        if found is not None:
            return Place(subnet, found)
    raise IpAddressGenerationFailure(joined.network.id)


def next_free(work: Work, subnet: Subnet) -> str | None:
    """The next free position after the one given last, coming round at the end of the pools."""
    cursor = addresses.locked_cursor(work.tx, subnet.id)
    if cursor is None:
        return None  # the subnet has just been deleted
    for first, last in ranges.spans_from(subnet.pools, cursor):
        where: str | None = first
        while where is not None and where <= last:
            used = addresses.used_from(work.tx, subnet.id, where, last)
            free, where = ranges.first_free(used, where, last, len(used) == addresses.WINDOW)
            if free is not None:
                addresses.move_cursor(work.tx, subnet.id, ranges.after(free))
                return free
    return None


def eui64(cidr: str, mac: str) -> ipaddress.IPv6Address:
    """The address that a guest gives itself by SLAAC (RFC 4291, appendix A)."""
    octets = bytes.fromhex(mac.replace(":", ""))
    identifier = bytes([octets[0] ^ 2]) + octets[1:3] + b"\xff\xfe" + octets[3:]
    network = ipaddress.IPv6Network(cidr, strict=False)
    return network.network_address + int.from_bytes(identifier)
