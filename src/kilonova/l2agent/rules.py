"""Security group rules as OpenFlow matches."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator

from kilonova.errors import Invalid
from kilonova.model.wiring import FilterRule

_TCP, _UDP, _SCTP = 6, 17, 132
_PORTED = {"tcp": _TCP, "udp": _UDP, "sctp": _SCTP}
_ICMP = {"icmp", "1"}
_ICMPV6 = {"icmpv6", "ipv6-icmp", "icmp6", "58"}
_LATER_FRAGMENT = "ipv6,nw_frag=later"
_NAMED = {
    "ah": 51,
    "dccp": 33,
    "egp": 8,
    "esp": 50,
    "gre": 47,
    "hopopt": 0,
    "igmp": 2,
    "ip": 4,
    "ipip": 4,
    "ipv6-encap": 41,
    "ospf": 89,
    "pgm": 113,
    "rsvp": 46,
    "udplite": 136,
    "vrrp": 112,
}


def port_masks(low: int, high: int) -> list[str]:
    """A range of ports as the fewest ``value/mask`` pairs, e.g. 1000-1007 -> ``0x3e8/0xfff8``."""
    if not 0 <= low <= high <= 65535:
        raise Invalid(f"{low}-{high} is no range of ports.")
    masks: list[str] = []
    while low <= high:
        size = low & -low or 65536
        while size > high - low + 1:
            size >>= 1
        masks.append(f"{low:#x}/{65536 - size:#x}" if size < 65536 else "0x0/0x0")
        low += size
    return masks


def rule_matches(rule: FilterRule) -> list[str]:
    """The matches that together are this rule, for its direction; none if it admits nobody.

    Only the first fragment of a packet tells ports and types (in IPv6 even the protocol), so the later ones
    are let through by the rest of the rule: they are worth nothing to anybody without the first.  Raises
    Invalid.
    """
    version = {"IPv4": 4, "IPv6": 6}.get(rule.ethertype)
    if version is None:
        raise Invalid(f"A security group rule has the unknown ethertype '{rule.ethertype}'.")
    peers = list(_peers(rule, version))
    return [f"{match}{peer}" for match in _protocol(rule, version) for peer in peers]


def _peers(rule: FilterRule, version: int) -> Iterator[str]:
    """Ingress rules look at the source address, egress rules at the destination."""
    if rule.direction not in ("ingress", "egress"):
        raise Invalid(f"A security group rule has the unknown direction '{rule.direction}'.")
    end = "src" if rule.direction == "ingress" else "dst"
    if rule.remote is None:
        yield ""
        return
    for text in dict.fromkeys(rule.remote):
        network = _network(text)
        if network.version == version:
            field = f"nw_{end}" if version == 4 else f"ipv6_{end}"
            yield "" if network.prefixlen == 0 else f",{field}={network}"


def _protocol(rule: FilterRule, version: int) -> list[str]:
    family = "ip" if version == 4 else "ipv6"
    name = (rule.protocol or "").lower()
    if name in ("", "any", "0") and name != "hopopt":
        return [family]
    if name in _ICMP | _ICMPV6:
        return _icmp(rule, version)
    number = _PORTED.get(name)
    if number is None:
        number = _NAMED.get(name)
    if number is None:
        if not name.isdigit() or int(name) > 255:
            raise Invalid(f"A security group rule has the unknown protocol '{rule.protocol}'.")
        number = int(name)
    match = f"{family},nw_proto={number}"
    if number not in _PORTED.values() or rule.port_min is None:
        return [match] if version == 4 else [match, _LATER_FRAGMENT]
    high = rule.port_min if rule.port_max is None else rule.port_max
    ports = [f"{match},tp_dst={mask}" for mask in port_masks(rule.port_min, high)]
    return [*ports, f"{match},nw_frag=later" if version == 4 else _LATER_FRAGMENT]


def _icmp(rule: FilterRule, version: int) -> list[str]:
    name = match = "icmp" if version == 4 else "icmp6"
    for field, value in (("icmp_type", rule.port_min), ("icmp_code", rule.port_max)):
        if value is None:
            break
        if not 0 <= value <= 255:
            raise Invalid(f"{value} is no {field.replace('_', ' ')}.")
        match += f",{field}={value}"
    if version == 6:
        return [match, _LATER_FRAGMENT]
    return [match] if match == name else [match, f"{name},nw_frag=later"]


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise Invalid(f"A security group rule has the remote '{text}', which is no address.") from None
