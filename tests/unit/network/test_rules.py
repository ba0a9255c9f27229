"""Which security group rules make sense."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kilonova.errors import Invalid
from kilonova.services.network import faults, rules


def rule(**values: Any) -> dict[str, Any]:
    return {
        "ethertype": "IPv4",
        "protocol": None,
        "port_range_min": None,
        "port_range_max": None,
        "remote_ip_prefix": None,
        "remote_group_id": None,
        **values,
    }


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"ethertype": "IPv5"}, faults.SecurityGroupRuleInvalidEtherType),
        (
            {"remote_ip_prefix": "10.0.0.0/8", "remote_group_id": "g"},
            faults.SecurityGroupRemoteGroupAndRemoteIpPrefix,
        ),
        ({"remote_ip_prefix": "fd00::/8"}, faults.SecurityGroupRuleParameterConflict),
        (
            {"remote_ip_prefix": "10.0.0.0/8", "ethertype": "IPv6"},
            faults.SecurityGroupRuleParameterConflict,
        ),
        ({"protocol": "ipv6-icmp"}, faults.SecurityGroupEthertypeConflictWithProtocol),
        ({"port_range_min": 1, "port_range_max": 2}, faults.SecurityGroupProtocolRequiredWithPorts),
        ({"protocol": "tcp", "port_range_min": 2, "port_range_max": 1}, faults.SecurityGroupInvalidPortRange),
        ({"protocol": "tcp", "port_range_min": 2}, faults.SecurityGroupInvalidPortRange),
        ({"protocol": "udp", "port_range_min": 0, "port_range_max": 1}, faults.SecurityGroupInvalidPortValue),
        (
            {"protocol": "tcp", "port_range_min": 1, "port_range_max": 65536},
            faults.SecurityGroupInvalidPortValue,
        ),
        ({"protocol": "icmp", "port_range_min": 256}, faults.SecurityGroupInvalidIcmpValue),
        (
            {"protocol": "icmp", "port_range_min": 8, "port_range_max": -1},
            faults.SecurityGroupInvalidIcmpValue,
        ),
        ({"protocol": "1", "port_range_max": 0}, faults.SecurityGroupMissingIcmpType),
        ({"protocol": "gre", "port_range_min": 1, "port_range_max": 1}, faults.SecurityGroupInvalidPortRange),
    ],
)
def test_what_makes_no_sense_is_refused_by_its_name(values: dict[str, Any], fault: type[Exception]) -> None:
    with pytest.raises(fault):
        rules.check_rule(rule(**values))


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"protocol": "tcp"},
        {"protocol": "tcp", "port_range_min": 22, "port_range_max": 22},
        {"protocol": "17", "port_range_min": 1, "port_range_max": 65535},
        {"protocol": "icmp", "port_range_min": 8, "port_range_max": 0},
        {"protocol": "icmp", "port_range_min": 8},
        {"protocol": "ipv6-icmp", "ethertype": "IPv6", "port_range_min": 128},
        {"remote_ip_prefix": "192.0.2.7/24"},
        {"protocol": "112", "remote_group_id": "g"},
    ],
)
def test_what_makes_sense_passes(values: dict[str, Any]) -> None:
    rules.check_rule(rule(**values))


def test_a_prefix_is_brought_to_its_canonical_form() -> None:
    values = rule(remote_ip_prefix="192.0.2.7/24")
    rules.check_rule(values)
    assert values["remote_ip_prefix"] == "192.0.2.0/24"


@pytest.mark.parametrize(
    ("given_value", "normal"),
    [("TCP", "tcp"), ("6", "6"), (6, "6"), ("any", None), (None, None), ("255", "255"), ("0", "0")],
)
def test_protocols_have_one_form(given_value: Any, normal: str | None) -> None:
    assert rules.normal_protocol(given_value) == normal


@pytest.mark.parametrize("value", ["256", "-1", "tpc", True, 6.0, {}, ["tcp"], "\uff16"])
def test_other_protocols_are_refused(value: Any) -> None:
    with pytest.raises(faults.SecurityGroupRuleInvalidProtocol):
        rules.normal_protocol(value)


@given(
    st.sampled_from([*rules.PROTOCOLS, "0", "6", "58", "255", None]),
    st.sampled_from(["IPv4", "IPv6"]),
    st.one_of(st.none(), st.integers(-2, 70000)),
    st.one_of(st.none(), st.integers(-2, 70000)),
    st.one_of(st.none(), st.ip_addresses().map(str)),
)
def test_every_rule_is_either_right_or_refused(
    protocol: str | None, ethertype: str, low: int | None, high: int | None, prefix: str | None
) -> None:
    values = rule(
        protocol=protocol,
        ethertype=ethertype,
        port_range_min=low,
        port_range_max=high,
        remote_ip_prefix=prefix,
    )
    try:
        rules.check_rule(values)
    except Invalid:
        return
    number = rules.number_of(protocol)
    if low is not None or high is not None:
        assert number in rules.WITH_PORTS or number in rules.ICMP
        assert low is not None
        assert 0 <= low <= 65535
        if number in rules.WITH_PORTS:
            assert high is not None and low <= high <= 65535
