"""Every flow that we can make is one that Open vSwitch understands."""

from __future__ import annotations

import subprocess

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kilonova.l2agent import flows
from kilonova.model.wiring import DhcpSubnet, FilterRule, NetworkDetails, PortDetails
from tests.unit.l2agent.test_rules import rules

pytestmark = pytest.mark.real

PORT = PortDetails(
    port_id="p", network_id="net", vlan=10, mac="fa:16:3e:00:00:01", addresses=("10.0.0.11", "fd00::11")
)
WIDE = FilterRule(direction="ingress", ethertype="IPv4", protocol="tcp", port_min=1, port_max=65534)
PAIRS = st.lists(
    st.tuples(
        st.sampled_from(["fa:16:3e:00:00:01", "00:00:5e:00:01:07"]),
        st.sampled_from(["10.0.0.7", "10.9.0.0/16", "0.0.0.0/0", "fd00:7::/64", "::/0"]),
    ),
    max_size=4,
)


def understood(lines: list[str]) -> None:
    done = subprocess.run(
        ["ovs-ofctl", "-O", "OpenFlow14", "parse-flows", "/dev/stdin"],
        input="\n".join(lines) + "\n",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("OFPT_FLOW_MOD") == len(lines)


@settings(max_examples=40)
@given(st.lists(rules(), max_size=12), PAIRS, st.booleans(), st.integers(1, 65535), st.integers(1, 4094))
def test_the_flows_of_any_port(
    some: list[FilterRule], pairs: list[tuple[str, str]], secure: bool, zone: int, vlan: int
) -> None:
    port = msgspec.structs.replace(
        PORT, rules=(*some, WIDE), allowed_pairs=tuple(pairs), port_security=secure, vlan=vlan
    )
    understood(flows.port_flows(port, 65279, zone))


def test_the_flows_of_the_bridge_of_tunnels_and_of_networks() -> None:
    subnets = tuple(
        DhcpSubnet(cidr=cidr, server="", gateway=None)
        for cidr in ("10.0.0.0/24", "10.1.0.0/31", "10.2.0.1/32", "fd00::/64")
    )
    network = NetworkDetails(network_id="net", vlan=4094, mtu=1500, subnets=subnets, hosts=())
    understood(flows.base_flows() + flows.trunk_flows(7) + flows.network_flows(network, 9))
