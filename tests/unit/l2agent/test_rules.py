"""Security group rules as matches, against what a rule means."""

from __future__ import annotations

import ipaddress
import itertools

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kilonova.errors import Invalid
from kilonova.l2agent.rules import port_masks, rule_matches
from kilonova.model.wiring import FilterRule
from tests.unit.l2agent.pipeline import IPV4, IPV6, Packet, _matches, _State, parse

PORTS = st.integers(0, 65535)


@given(PORTS, PORTS)
def test_the_masks_of_a_range_are_the_range_and_each_port_once(one: int, other: int) -> None:
    low, high = sorted((one, other))
    covered: list[tuple[int, int]] = []
    for text in port_masks(low, high):
        value, mask = (int(part, 16) for part in text.split("/"))
        assert value & mask == value
        size = 65536 - mask
        assert size & (size - 1) == 0
        covered.append((value, value + size - 1))
    assert covered[0][0] == low and covered[-1][1] == high
    assert all(after[0] == before[1] + 1 for before, after in itertools.pairwise(covered))
    assert len(covered) <= 30  # the most that a range of 16 bits needs


@pytest.mark.parametrize(("low", "high"), [(-1, 5), (5, 4), (0, 65536)])
def test_what_is_no_range(low: int, high: int) -> None:
    with pytest.raises(Invalid):
        port_masks(low, high)


NAMES = {
    "tcp": 6,
    "udp": 17,
    "sctp": 132,
    "icmp": 1,
    "icmpv6": 58,
    "ipv6-icmp": 58,
    "6": 6,
    "17": 17,
    "58": 58,
}
NAMES |= {"gre": 47, "esp": 50, "vrrp": 112, "ospf": 89, "89": 89, "132": 132, "1": 1}
ADDRESSES = {
    "IPv4": ["10.0.0.1", "10.0.0.2", "10.0.1.1", "192.168.0.1"],
    "IPv6": ["fd00::1", "fd00::2", "fd00:1::1", "fe80::1"],
}
CIDRS = ["10.0.0.1/32", "10.0.0.0/24", "10.0.0.7", "0.0.0.0/0", "fd00::1/128", "fd00::/64", "::/0", "fd00::2"]


SMALL = st.integers(0, 9)
PROTOCOLS = st.none() | st.sampled_from([*NAMES, "any", ""])
DIRECTIONS = st.sampled_from(["ingress", "egress"])
FAMILIES = st.sampled_from(["IPv4", "IPv6"])
REMOTES = st.none() | st.lists(st.sampled_from(CIDRS), max_size=3).map(tuple)
WITH_PORTS = st.sampled_from(["neither", "low", "both"])


@st.composite
def rules(draw: st.DrawFn) -> FilterRule:
    low, high = sorted((draw(SMALL), draw(SMALL)))
    with_ports = draw(WITH_PORTS)
    return FilterRule(
        direction=draw(DIRECTIONS),
        ethertype=draw(FAMILIES),
        protocol=draw(PROTOCOLS),
        port_min=None if with_ports == "neither" else low,
        port_max=high if with_ports == "both" else None,
        remote=draw(REMOTES),
    )


@st.composite
def packets(draw: st.DrawFn) -> Packet:
    family = draw(st.sampled_from(["IPv4", "IPv6"]))
    fragment = draw(st.sampled_from(["", "", "first", "later"]))
    proto = draw(st.sampled_from([1, 6, 17, 58, 132, 47, 50, 89, 112]))
    if family == "IPv6" and fragment == "later":
        proto = 44  # all that a switch sees of it
    return Packet(
        in_port=1,
        dl_src="fa:16:3e:00:00:01",
        dl_dst="fa:16:3e:00:00:02",
        kind=IPV4 if family == "IPv4" else IPV6,
        src=draw(st.sampled_from(ADDRESSES[family])),
        dst=draw(st.sampled_from(ADDRESSES[family])),
        proto=proto,
        sport=draw(st.integers(0, 10)),
        dport=draw(st.integers(0, 10)),
        fragment=fragment,
    )


def means(rule: FilterRule, packet: Packet) -> bool:
    """What a rule says, written down independently of flows.  Later fragments are given the benefit."""
    if packet.kind != {"IPv4": IPV4, "IPv6": IPV6}[rule.ethertype]:
        return False
    if rule.remote is not None:
        peer = ipaddress.ip_address(packet.src if rule.direction == "ingress" else packet.dst)
        if not any(peer in ipaddress.ip_network(text) for text in rule.remote):
            return False
    if rule.protocol in (None, "", "any"):
        return True
    number = NAMES[rule.protocol or ""]
    if number in (1, 58):
        number = 58 if rule.ethertype == "IPv6" else 1
    if packet.fragment == "later":
        return rule.ethertype == "IPv6" or packet.proto == number
    if packet.proto != number:
        return False
    if number in (1, 58):
        return rule.port_min in (None, packet.sport) and (
            rule.port_min is None or rule.port_max in (None, packet.dport)
        )
    if number in (6, 17, 132) and rule.port_min is not None:
        high = rule.port_min if rule.port_max is None else rule.port_max
        return rule.port_min <= packet.dport <= high
    return True


@given(rules(), packets())
def test_a_packet_matches_a_rule_exactly_if_the_rule_means_it(rule: FilterRule, packet: Packet) -> None:
    flows = [parse(f"cookie=0x1,table=0,priority=1,{match},actions=drop") for match in rule_matches(rule)]
    assert any(_matches(flow, packet, _State()) for flow in flows) == means(rule, packet)


@pytest.mark.parametrize(
    ("family", "protocol", "low", "proto"),
    [("IPv4", "udp", 53, 17), ("IPv4", "tcp", 80, 6), ("IPv4", "icmp", 8, 1), ("IPv6", "udp", 53, 44),
     ("IPv6", "icmpv6", 128, 44), ("IPv6", "esp", None, 44), ("IPv4", "esp", None, 50)],
)  # fmt: skip
def test_later_fragments_follow_the_first(family: str, protocol: str, low: int | None, proto: int) -> None:
    """They tell no ports, and in IPv6 no protocol; those of other protocols and senders are not meant."""
    remote = ("10.0.0.1/32", "fd00::1/128")
    rule = FilterRule(direction="ingress", ethertype=family, protocol=protocol, port_min=low, remote=remote)
    flows = [parse(f"cookie=0x1,table=0,priority=1,{match},actions=drop") for match in rule_matches(rule)]
    mine, other = ADDRESSES[family][:2]
    later = Packet(in_port=1, dl_src="", dl_dst="", kind=IPV4 if family == "IPv4" else IPV6, fragment="later")
    later = msgspec.structs.replace(later, src=mine, dst=other, proto=proto)

    def passes(**more: object) -> bool:
        packet = msgspec.structs.replace(later, **more)
        return any(_matches(flow, packet, _State()) for flow in flows)

    assert passes()
    assert not passes(src=other)
    assert not passes(proto=99) or family == "IPv6"
    assert not passes(fragment="", proto=99)


@pytest.mark.parametrize(
    "wrong",
    [
        {"ethertype": "IPX"},
        {"direction": "sideways"},
        {"protocol": "carrier-pigeon"},
        {"protocol": "256"},
        {"protocol": "-1"},
        {"remote": ("nonsense",)},
        {"remote": ("10.0.0.0/33",)},
        {"protocol": "icmp", "port_min": 256},
        {"protocol": "tcp", "port_min": 5, "port_max": 4},
        {"protocol": "tcp", "port_min": 1, "port_max": 70000},
    ],
)
def test_rules_that_make_no_sense_are_refused(wrong: dict[str, object]) -> None:
    values = {"direction": "ingress", "ethertype": "IPv4", **wrong}
    with pytest.raises(Invalid):
        rule_matches(FilterRule(**values))  # type: ignore[arg-type]
