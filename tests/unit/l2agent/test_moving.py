"""The flows of a guest that is bound to two hosts, seen by the switches of both."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kilonova.l2agent import flows
from kilonova.l2agent.announcing import announcements
from kilonova.model.wiring import FilterRule
from tests.real.frames import advertisement_frame, arp_frame
from tests.unit.l2agent.pipeline import ARP, Packet, Pipeline
from tests.unit.l2agent.test_flows import (
    BROADCAST,
    DHCP,
    MAC_A,
    MAC_B,
    NETWORK,
    PORT_B,
    STRANGE,
    TUNNEL,
    A,
    B,
    port,
)

OTHER_TUNNEL = 5
WEB = FilterRule(direction="ingress", ethertype="IPv4", protocol="tcp", port_min=80, port_max=80)
ANY_EGRESS = FilterRule(direction="egress", ethertype="IPv4")


def switch(*, active: bool, moving: bool = True, port_security: bool = True) -> Pipeline:
    """A host with A, which moves, B and two tunnels."""
    moved = port(
        MAC_A, "10.0.0.11", rules=(WEB, ANY_EGRESS), moving=moving, active=active, port_security=port_security
    )
    return Pipeline(
        [
            *flows.base_flows(),
            *flows.network_flows(NETWORK, DHCP),
            *flows.trunk_flows(TUNNEL),
            *flows.trunk_flows(OTHER_TUNNEL),
            *flows.all_trunks_flows([TUNNEL, OTHER_TUNNEL]),
            *flows.port_flows(moved, A, 101),
            *flows.port_flows(PORT_B, B, 102),
        ]
    )


def to_a(dport: int = 80, source: int = B) -> Packet:
    return Packet(
        in_port=source,
        dl_src=MAC_B if source == B else STRANGE,
        dl_dst=MAC_A,
        src="10.0.0.12" if source == B else "10.0.0.50",
        dst="10.0.0.11",
        proto=6,
        dport=dport,
        sport=4000,
        tag=None if source == B else 10,
    )


def from_a(source: int = A) -> Packet:
    """A's announcement, from here or by a tunnel."""
    return Packet(
        in_port=source,
        dl_src=MAC_A,
        dl_dst=BROADCAST,
        kind=ARP,
        src="10.0.0.11",
        arp_sha=MAC_A,
        tag=None if source == A else 10,
    )


def test_a_guest_that_runs_elsewhere_is_filtered_there() -> None:
    here = switch(active=False)
    for dport in (80, 22):
        assert not here.forwards(to_a(dport))
        assert here.outputs(to_a(dport)) == {TUNNEL, OTHER_TUNNEL}


@pytest.mark.parametrize("active", [True, False])
@pytest.mark.parametrize("dport", [80, 22])
def test_what_comes_by_a_tunnel_for_it_is_filtered_here(active: bool, dport: int) -> None:
    here = switch(active=active)
    assert here.forwards(to_a(dport, TUNNEL)) == (dport == 80)
    assert here.outputs(to_a(dport, TUNNEL)) == set(), "what came by a tunnel goes into none"


@given(active=st.booleans(), sent=st.lists(st.sampled_from([A, TUNNEL, OTHER_TUNNEL]), max_size=5))
def test_it_runs_where_it_has_sent_something_last(active: bool, sent: list[int]) -> None:
    here = switch(active=active)
    for source in sent:
        assert here.forwards(from_a(source))
    runs_here = sent[-1] == A if sent else active
    assert here.forwards(to_a(80)) == runs_here
    assert not here.forwards(to_a(22))
    assert bool(here.outputs(to_a(22))) == (not runs_here)


def test_others_cannot_tell_where_it_runs() -> None:
    """A guest's tagged frame is not one of a tunnel, and a name that is not its own is nobody's."""
    for liar in (
        msgspec.structs.replace(from_a(B), tag=10),
        msgspec.structs.replace(from_a(B), tag=None),
        msgspec.structs.replace(from_a(TUNNEL), tag=11),
        msgspec.structs.replace(from_a(99), tag=10),
    ):
        here = switch(active=True)
        here.forwards(liar)
        assert here.forwards(to_a(80)) and not here.outputs(to_a(80)), liar


def test_a_guest_that_stays_leaves_no_trace_of_moves() -> None:
    still = flows.port_flows(port(MAC_A, "10.0.0.11", rules=(WEB,)), A, 101)
    assert not any("learn" in line or "table=63" in line for line in still)


def test_without_tunnels_a_guest_that_is_elsewhere_is_not_reached() -> None:
    assert flows.all_trunks_flows([]) == []


# ---- the networks' servers ----


@pytest.mark.parametrize("source", [TUNNEL, OTHER_TUNNEL])
def test_no_other_hosts_server_is_heard(source: int) -> None:
    here = switch(active=True)
    server = flows.server_mac("net")
    packet = Packet(in_port=source, dl_src=server, dl_dst=BROADCAST, kind=ARP, tag=10, arp_sha=server)
    assert not here.forwards(packet)
    assert here.forwards(msgspec.structs.replace(packet, dl_src=STRANGE, arp_sha=STRANGE))
    assert here.forwards(msgspec.structs.replace(packet, in_port=DHCP, tag=None))


def test_a_guest_that_may_call_itself_anything_may_not_be_the_server() -> None:
    here = switch(active=True, moving=False, port_security=False)
    server = flows.server_mac("net")
    assert not here.forwards(Packet(in_port=A, dl_src=server, dl_dst=BROADCAST, kind=ARP, arp_sha=server))
    assert here.forwards(Packet(in_port=A, dl_src=STRANGE, dl_dst=BROADCAST, kind=ARP, arp_sha=STRANGE))


# ---- announcing ----


def test_each_address_is_announced_as_its_owner_would() -> None:
    four, six = announcements(port(MAC_A, "10.0.0.11", "fd00::11"))
    said = arp_frame(src_mac=MAC_A, sender_mac=MAC_A, sender="10.0.0.11", target="10.0.0.11")
    assert four == said.ljust(60, b"\0")
    assert six == advertisement_frame(src_mac=MAC_A, src="fd00::11", target="fd00::11")


def test_a_guest_without_addresses_is_announced_too() -> None:
    (frame,) = announcements(port(MAC_A))
    asked = arp_frame(src_mac=MAC_A, sender_mac=MAC_A, sender="0.0.0.0", target="0.0.0.0", op=3, kind=0x8035)
    assert frame == asked.ljust(60, b"\0")
