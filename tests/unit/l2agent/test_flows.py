"""The flows of two guests on one switch, against what each may say, send and get."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from kilonova.errors import Invalid
from kilonova.l2agent import flows
from kilonova.model.wiring import DhcpSubnet, FilterRule, NetworkDetails, PortDetails
from tests.unit.l2agent.pipeline import ARP, IPV4, IPV6, RARP, Packet, Pipeline, parse
from tests.unit.l2agent.test_rules import means, packets, rules

A, B, DHCP, TUNNEL = 1, 2, 3, 4  # numbers of ports on the switch
MAC_A, MAC_B, VMAC = "fa:16:3e:00:00:01", "fa:16:3e:00:00:02", "00:00:5e:00:01:01"
STRANGE = "fa:16:3e:99:99:99"
BROADCAST = "ff:ff:ff:ff:ff:ff"
LOCAL_A = "fe80::f816:3eff:fe00:1"
NETWORK = NetworkDetails(
    network_id="net",
    vlan=10,
    mtu=1500,
    subnets=(DhcpSubnet(cidr="10.0.0.0/24", server="10.0.0.2", gateway="10.0.0.1"),),
    hosts=(),
)


def port(mac: str, *addresses: str, **more: object) -> PortDetails:
    details = PortDetails(port_id=mac, network_id="net", vlan=10, mac=mac, addresses=addresses)
    return msgspec.structs.replace(details, **more)


ANYTHING = tuple(
    FilterRule(direction=direction, ethertype=family)
    for direction in ("ingress", "egress")
    for family in ("IPv4", "IPv6")
)
PORT_A = port(
    MAC_A,
    "10.0.0.11",
    "fd00::11",
    rules=ANYTHING,
    allowed_pairs=((VMAC, "10.0.0.7"), (MAC_A.upper(), "192.168.0.0/24")),
)
PORT_B = port(MAC_B, "10.0.0.12", "fd00::12", rules=ANYTHING)
IDENTITIES = {
    (MAC_A, "10.0.0.11"),
    (MAC_A, "fd00::11"),
    (MAC_A, LOCAL_A),
    (MAC_A, "192.168.0.5"),
    (VMAC, "10.0.0.7"),
}


def all_flows(one: PortDetails = PORT_A, other: PortDetails = PORT_B) -> list[str]:
    return [
        *flows.base_flows(),
        *flows.network_flows(NETWORK, DHCP),
        *flows.trunk_flows(TUNNEL),
        *flows.port_flows(one, A, 101),
        *flows.port_flows(other, B, 102),
    ]


MACS = st.sampled_from([MAC_A, MAC_B, VMAC, STRANGE])
FOUR = ["10.0.0.11", "10.0.0.12", "10.0.0.7", "10.0.0.1", "192.168.0.5", "192.168.1.5", "0.0.0.0", "10.0.0.2"]
SIX = ["fd00::11", "fd00::12", LOCAL_A, "fe80::1", "::", "fd00::1"]


@given(MACS, st.sampled_from(FOUR + SIX), st.sampled_from([6, 17, 1]), st.integers(0, 9))
def test_a_guest_sends_only_under_its_own_names(mac: str, source: str, proto: int, number: int) -> None:
    six = ":" in source
    packet = Packet(
        in_port=A,
        dl_src=mac,
        dl_dst=MAC_B,
        kind=IPV6 if six else IPV4,
        src=source,
        dst="fd00::12" if six else "10.0.0.12",
        proto=proto,
        sport=number,
        dport=number,
    )
    assert Pipeline(all_flows()).forwards(packet) == ((mac, source) in IDENTITIES)


@given(MACS, MACS, st.sampled_from(FOUR), st.sampled_from([1, 2]))
def test_arp_tells_only_what_is_true(mac: str, says: str, sender: str, op: int) -> None:
    packet = Packet(in_port=A, dl_src=mac, dl_dst=BROADCAST, kind=ARP, src=sender, arp_sha=says, arp_op=op)
    true = mac == says and (mac, sender) in IDENTITIES
    probe = mac == says and mac in (MAC_A, VMAC) and sender == "0.0.0.0" and op == 1
    assert Pipeline(all_flows()).forwards(packet) == (true or probe)


@given(MACS, MACS, MACS, st.sampled_from(FOUR), st.sampled_from([3, 4]))
def test_rarp_tells_where_a_guest_is_and_no_more(mac: str, says: str, to: str, sender: str, op: int) -> None:
    packet = Packet(
        in_port=A, dl_src=mac, dl_dst=BROADCAST, kind=RARP, src=sender, arp_sha=says, arp_tha=to, arp_op=op
    )
    right = mac == says == to and mac in (MAC_A, VMAC) and sender == "0.0.0.0" and op == 3
    assert Pipeline(all_flows()).forwards(packet) == right


@given(MACS, st.sampled_from(SIX), st.sampled_from(SIX), st.integers(128, 145))
def test_icmp6_tells_only_what_is_true(mac: str, source: str, target: str, kind: int) -> None:
    packet = Packet(
        in_port=A,
        dl_src=mac,
        dl_dst="33:33:00:00:00:01",
        kind=IPV6,
        src=source,
        dst="ff02::1",
        proto=58,
        sport=kind,
        nd_target=target if kind in (135, 136) else "",
    )
    own = (mac, source) in IDENTITIES
    local = str(flows.link_local(mac).network_address)
    if kind in (134, 137):
        expected = False  # no guest is a router
    elif kind == 136:
        expected = (mac, target) in IDENTITIES or (mac == VMAC and target == local)
    elif kind == 135 or kind in (131, 132, 133, 143):
        expected = own or (mac in (MAC_A, VMAC) and source in ("::", local))
    else:
        expected = own
    assert Pipeline(all_flows()).forwards(packet) == expected


@pytest.mark.parametrize("sport", [67, 68, 1067])
@pytest.mark.parametrize("dl_dst", [MAC_B, BROADCAST])
def test_no_guest_speaks_to_dhcp_clients_but_the_server_does(sport: int, dl_dst: str) -> None:
    closed = msgspec.structs.replace(PORT_B, rules=())
    pipeline = Pipeline(all_flows(other=closed))
    for source in (A, DHCP):
        for fragment in ("", "first"):
            offer = Packet(
                in_port=source,
                dl_src=MAC_A,
                dl_dst=dl_dst,
                src="10.0.0.11" if source == A else "10.0.0.2",
                dst="255.255.255.255" if dl_dst == BROADCAST else "10.0.0.12",
                proto=17,
                sport=sport,
                dport=68,
                fragment=fragment,
            )
            to_all = dl_dst == BROADCAST
            assert pipeline.forwards(offer) == (source == DHCP and (sport == 67 or to_all))


def test_dhcp_requests_go_out_without_a_rule_and_others_do_not() -> None:
    closed = msgspec.structs.replace(PORT_A, rules=())
    pipeline = Pipeline(all_flows(closed))
    request = Packet(
        in_port=A,
        dl_src=MAC_A,
        dl_dst=BROADCAST,
        src="0.0.0.0",
        dst="255.255.255.255",
        proto=17,
        sport=68,
        dport=67,
    )
    assert pipeline.forwards(request)
    assert pipeline.forwards(
        msgspec.structs.replace(request, src="10.0.0.11", dst="10.0.0.2", dl_dst=STRANGE)
    )
    assert not pipeline.forwards(msgspec.structs.replace(request, dl_src=MAC_B))
    assert not pipeline.forwards(msgspec.structs.replace(request, src="10.0.0.12"))
    assert not pipeline.forwards(msgspec.structs.replace(request, dport=69))
    metadata = {"dst": flows.METADATA_ADDRESS, "dl_dst": STRANGE, "proto": 6, "sport": 999, "dport": 80}
    ask = msgspec.structs.replace(request, src="10.0.0.11", **metadata)
    assert pipeline.forwards(ask)
    assert not pipeline.forwards(msgspec.structs.replace(ask, dport=81))
    assert not pipeline.forwards(msgspec.structs.replace(ask, dst="10.0.0.2"))
    assert not pipeline.forwards(msgspec.structs.replace(ask, src="10.0.0.12"))


@settings(max_examples=150)
@given(st.lists(rules(), max_size=4), st.lists(rules(), max_size=4), packets())
def test_a_packet_needs_a_rule_of_its_sender_and_one_of_its_receiver(
    senders: list[FilterRule], receivers: list[FilterRule], packet: Packet
) -> None:
    assume(packet.src != packet.dst)
    sender = msgspec.structs.replace(PORT_A, rules=tuple(senders), addresses=(packet.src,), allowed_pairs=())
    receiver = msgspec.structs.replace(PORT_B, rules=tuple(receivers), addresses=(packet.dst,))
    going_out = any(means(rule, packet) for rule in senders if rule.direction == "egress")
    coming_in = any(means(rule, packet) for rule in receivers if rule.direction == "ingress")
    pipeline = Pipeline(all_flows(sender, receiver))
    assert pipeline.forwards(packet) == (going_out and coming_in)
    if going_out and coming_in and not packet.fragment:
        back = msgspec.structs.replace(
            packet, in_port=B, dl_src=MAC_B, dl_dst=MAC_A, src=packet.dst, dst=packet.src,
            sport=packet.dport, dport=packet.sport,
        )  # fmt: skip
        if packet.proto not in (1, 58):
            assert pipeline.forwards(back)  # answers need no rule
        elsewhere = msgspec.structs.replace(back, sport=(back.sport + 1) % 11)
        allowed_back = any(means(rule, elsewhere) for rule in receivers if rule.direction == "egress")
        allowed_back &= any(means(rule, elsewhere) for rule in senders if rule.direction == "ingress")
        if packet.proto in (6, 17, 132):
            assert pipeline.forwards(elsewhere) == allowed_back


def test_a_connection_ends_with_its_rule_and_revives_with_it() -> None:
    web = FilterRule(direction="ingress", ethertype="IPv4", protocol="tcp", port_min=80)
    egress = tuple(rule for rule in ANYTHING if rule.direction == "egress")
    opened = msgspec.structs.replace(PORT_B, rules=(*egress, web))
    closed = msgspec.structs.replace(PORT_B, rules=egress)
    there = Packet(
        in_port=A, dl_src=MAC_A, dl_dst=MAC_B, src="10.0.0.11", dst="10.0.0.12", proto=6, sport=999, dport=80
    )
    back = Packet(
        in_port=B, dl_src=MAC_B, dl_dst=MAC_A, src="10.0.0.12", dst="10.0.0.11", proto=6, sport=80, dport=999
    )
    quiet = msgspec.structs.replace(PORT_A, rules=egress)
    pipeline = Pipeline(all_flows(quiet, opened))
    assert [pipeline.forwards(each) for each in (there, back, there)] == [True] * 3
    pipeline.replace(all_flows(quiet, closed))
    assert pipeline.forwards(back)  # until the next packet shows that no rule lets it in any more
    assert [pipeline.forwards(each) for each in (there, back, there, back)] == [False] * 4
    pipeline.replace(all_flows(quiet, opened))
    assert [pipeline.forwards(each) for each in (there, back)] == [True] * 2


def test_a_port_without_security_is_not_filtered_but_keeps_to_its_network() -> None:
    free = msgspec.structs.replace(PORT_A, port_security=False, rules=())
    pipeline = Pipeline(all_flows(free))
    strange = Packet(in_port=A, dl_src=STRANGE, dl_dst=BROADCAST, kind=0x88B5)
    assert pipeline.forwards(strange)
    assert not pipeline.forwards(msgspec.structs.replace(strange, tag=10))
    assert not pipeline.forwards(msgspec.structs.replace(strange, in_port=99))
    to_a = Packet(in_port=B, dl_src=MAC_B, dl_dst=MAC_A, src="10.0.0.12", dst="10.0.0.11", proto=6, dport=22)
    assert pipeline.forwards(to_a)


@given(st.integers(0, 4095), st.sampled_from([A, B, TUNNEL, 99]))
def test_tags_are_for_tunnels_only(tag: int, source: int) -> None:
    packet = Packet(in_port=source, dl_src=MAC_A, dl_dst=BROADCAST, kind=ARP, tag=tag)
    assert Pipeline(all_flows()).forwards(packet) == (source == TUNNEL)


@pytest.mark.parametrize("tag", [10, 11])
def test_what_comes_by_a_tunnel_is_filtered_for_its_network(tag: int) -> None:
    closed = msgspec.structs.replace(PORT_B, rules=())
    packet = Packet(
        in_port=TUNNEL,
        dl_src=STRANGE,
        dl_dst=MAC_B,
        tag=tag,
        src="10.0.0.50",
        dst="10.0.0.12",
        proto=6,
        dport=22,
    )
    # of another network it is not for this guest: the switch keeps it in its VLAN
    assert Pipeline(all_flows(other=closed)).forwards(packet) == (tag == 11)


@pytest.mark.parametrize(
    ("dl_dst", "dst", "passes"),
    [
        (BROADCAST, "255.255.255.255", True),
        (BROADCAST, "10.0.0.255", True),
        (BROADCAST, "10.0.0.12", False),
        (BROADCAST, "10.0.1.255", False),
        ("01:00:5e:00:00:01", "224.0.0.1", True),
        ("01:00:5e:00:00:01", "10.0.0.12", False),
        ("33:33:00:00:00:01", "ff02::1", True),
        ("33:33:00:00:00:01", "fd00::12", False),
    ],
)
def test_to_a_group_goes_only_what_is_for_a_group(dl_dst: str, dst: str, passes: bool) -> None:
    six = ":" in dst
    packet = Packet(
        in_port=A,
        dl_src=MAC_A,
        dl_dst=dl_dst,
        kind=IPV6 if six else IPV4,
        src="fd00::11" if six else "10.0.0.11",
        dst=dst,
        proto=17,
        dport=9,
    )
    assert Pipeline(all_flows()).forwards(packet) == passes


def test_each_flow_tells_whose_it_is_and_none_is_there_twice() -> None:
    cookies = {
        flows.base_cookie(): flows.base_flows(),
        flows.port_cookie(101): flows.port_flows(PORT_A, A, 101),
        flows.network_cookie(10): flows.network_flows(NETWORK, DHCP),
        flows.trunk_cookie(TUNNEL): flows.trunk_flows(TUNNEL),
    }
    for cookie, lines in cookies.items():
        assert lines and all(line.startswith(f"cookie={cookie:#x},table=") for line in lines)
        keys = [(flow.table, flow.priority, flow.match) for flow in map(parse, lines)]
        assert len(keys) == len(set(keys))
        assert flows.delete(cookie) == f"delete cookie={cookie:#x}/-1"
    assert len(cookies) == 4


@pytest.mark.parametrize(
    "wrong",
    [
        {"vlan": 0},
        {"vlan": 4095},
        {"mac": "fa:16:3e:00:00"},
        {"mac": "fa:16:3e:00:00:01,actions=NORMAL"},
        {"addresses": ("10.0.0.300",)},
        {"addresses": ("10.0.0.1\nadd priority=1",)},
        {"allowed_pairs": (("nonsense", "10.0.0.1"),)},
        {"allowed_pairs": ((MAC_A, "10.0.0.0/33"),)},
    ],
)
def test_details_that_make_no_sense_give_no_flows(wrong: dict[str, object]) -> None:
    with pytest.raises(Invalid):
        flows.port_flows(msgspec.structs.replace(PORT_A, **wrong), A, 101)


def test_numbers_that_are_no_ports_give_no_flows() -> None:
    for number in (0, -1, 0xFF00):
        with pytest.raises(Invalid):
            flows.port_flows(PORT_A, number, 101)


def test_a_rule_that_makes_no_sense_admits_nobody_and_spoils_no_other() -> None:
    bad = FilterRule(direction="ingress", ethertype="IPv4", protocol="pigeon")
    ping = FilterRule(direction="ingress", ethertype="IPv4", protocol="icmp")
    pipeline = Pipeline(all_flows(other=msgspec.structs.replace(PORT_B, rules=(bad, ping))))
    packet = Packet(in_port=A, dl_src=MAC_A, dl_dst=MAC_B, src="10.0.0.11", dst="10.0.0.12", proto=1, sport=8)
    assert pipeline.forwards(packet)
    assert not pipeline.forwards(msgspec.structs.replace(packet, proto=17))
