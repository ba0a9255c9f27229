"""What makes a security group rule valid.  Pure."""

from __future__ import annotations

from typing import Any

from kilonova.db.network_records import Rule
from kilonova.services.network.faults import (
    SecurityGroupEthertypeConflictWithProtocol,
    SecurityGroupInvalidIcmpValue,
    SecurityGroupInvalidPortRange,
    SecurityGroupInvalidPortValue,
    SecurityGroupMissingIcmpType,
    SecurityGroupProtocolRequiredWithPorts,
    SecurityGroupRemoteGroupAndRemoteIpPrefix,
    SecurityGroupRuleInvalidEtherType,
    SecurityGroupRuleInvalidProtocol,
    SecurityGroupRuleParameterConflict,
)
from kilonova.services.network.ranges import parse_cidr

PROTOCOLS = {
    "ah": 51,
    "dccp": 33,
    "egp": 8,
    "esp": 50,
    "gre": 47,
    "icmp": 1,
    "icmpv6": 58,
    "igmp": 2,
    "ipip": 4,
    "ipv6-encap": 41,
    "ipv6-frag": 44,
    "ipv6-icmp": 58,
    "ipv6-nonxt": 59,
    "ipv6-opts": 60,
    "ipv6-route": 43,
    "ospf": 89,
    "pgm": 113,
    "rsvp": 46,
    "sctp": 132,
    "tcp": 6,
    "udp": 17,
    "udplite": 136,
    "vrrp": 112,
}
WITH_PORTS = {PROTOCOLS[name] for name in ("tcp", "udp", "sctp", "dccp", "udplite")}
ICMP = (PROTOCOLS["icmp"], PROTOCOLS["ipv6-icmp"])
IPV6_ONLY = {"icmpv6", *(name for name in PROTOCOLS if name.startswith("ipv6-"))}


def normal_protocol(value: Any) -> str | None:
    """The name in small letters, or the number as text; None for any.

    Raises SecurityGroupRuleInvalidProtocol.
    """
    if value is None:
        return None
    text = str(value).strip().lower()
    if isinstance(value, (bool, dict, list, float)):
        raise SecurityGroupRuleInvalidProtocol(str(value))
    if text in PROTOCOLS:
        return text
    if text in ("any", ""):
        return None
    if text.isascii() and text.isdigit() and int(text) <= 255:
        return str(int(text))
    raise SecurityGroupRuleInvalidProtocol(str(value))


def number_of(protocol: str | None) -> int | None:
    """The IP protocol number of a name or number; None for any."""
    if protocol is None:
        return None
    return PROTOCOLS[protocol] if protocol in PROTOCOLS else int(protocol)


def check_rule(values: dict[str, Any]) -> None:
    """Whether direction, protocol, ports and remote fit each other; brings ``remote_ip_prefix`` to its
    canonical form.

    Raises the faults of this module.
    """
    if values["ethertype"] not in ("IPv4", "IPv6"):
        raise SecurityGroupRuleInvalidEtherType(values["ethertype"])
    if values["remote_ip_prefix"] is not None and values["remote_group_id"] is not None:
        raise SecurityGroupRemoteGroupAndRemoteIpPrefix
    if values["remote_ip_prefix"] is not None:
        cidr = parse_cidr(values["remote_ip_prefix"])
        if f"IPv{cidr.version}" != values["ethertype"]:
            raise SecurityGroupRuleParameterConflict(values["ethertype"], values["remote_ip_prefix"])
        values["remote_ip_prefix"] = str(cidr)
    protocol = values["protocol"]
    if protocol in IPV6_ONLY and values["ethertype"] == "IPv4":
        raise SecurityGroupEthertypeConflictWithProtocol("IPv4", protocol)
    _check_ports(number_of(protocol), values["port_range_min"], values["port_range_max"])


def _check_ports(protocol: int | None, low: int | None, high: int | None) -> None:
    if low is None and high is None:
        return
    if protocol is None:
        raise SecurityGroupProtocolRequiredWithPorts
    if protocol in ICMP:
        _check_icmp(low, high)
        return
    if protocol not in WITH_PORTS:
        raise SecurityGroupInvalidPortRange
    for value in (low, high):
        if value is not None and not 0 <= value <= 65535:
            raise SecurityGroupInvalidPortValue(value)
    if low is None or high is None or low > high:
        raise SecurityGroupInvalidPortRange
    if low == 0 and protocol in (PROTOCOLS["tcp"], PROTOCOLS["udp"]):
        raise SecurityGroupInvalidPortValue(low)


def _check_icmp(kind: int | None, code: int | None) -> None:
    for value, field, attribute in ((kind, "type", "port_range_min"), (code, "code", "port_range_max")):
        if value is not None and not 0 <= value <= 255:
            raise SecurityGroupInvalidIcmpValue(field, attribute, value)
    if kind is None:
        raise SecurityGroupMissingIcmpType(code)


def same_rule(one: Rule, other: Rule) -> bool:
    """Whether two rules of one group let the same traffic through."""
    return _meaning(one) == _meaning(other)


def _meaning(rule: Rule) -> tuple[object, ...]:
    everywhere = rule.remote_ip_prefix in (None, "0.0.0.0/0", "::/0")
    return (
        rule.direction,
        rule.ethertype,
        _meant(number_of(rule.protocol), rule.ethertype),
        rule.port_range_min,
        rule.port_range_max,
        None if everywhere else rule.remote_ip_prefix,
        rule.remote_group_id,
    )


def _meant(protocol: int | None, ethertype: str) -> int | None:
    return PROTOCOLS["ipv6-icmp"] if protocol == PROTOCOLS["icmp"] and ethertype == "IPv6" else protocol
