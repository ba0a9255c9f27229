"""What a guest may say of itself: its own MAC and addresses, those that it is allowed besides, no others."""

from __future__ import annotations

import socket

import pytest

from kilonova.l2agent import flows
from kilonova.model.wiring import FilterRule
from tests.real.frames import (
    ALL_NODES,
    BROADCAST,
    advertisement_frame,
    arp_frame,
    ethernet,
    icmp6_frame,
    ipv4,
    mac_bytes,
    udp_frame,
)
from tests.real.guests import Guest, Wiretap, eventually
from tests.real.l2lab import Lab
from tests.real.memory_cloud import ANY_EGRESS, rule_in, tcp_in

pytestmark = pytest.mark.real

STRANGE = "fa:16:3e:99:99:99"
VMAC = "00:00:5e:00:01:07"
UDP = rule_in("udp")
SIX = (
    FilterRule(direction="ingress", ethertype="IPv6", protocol="udp"),
    FilterRule(direction="ingress", ethertype="IPv6", protocol="icmpv6"),
)


def datagram(guest: Guest, to: Guest, mark: bytes, **more: object) -> bytes:
    values = {
        "src_mac": guest.vif.mac,
        "dst_mac": to.vif.mac,
        "src": guest.address,
        "dst": to.address,
        "sport": 9,
        "dport": 9,
        "data": mark,
    }
    return udp_frame(**{**values, **more})  # type: ignore[arg-type]


async def all_seen(wire: Wiretap, *marks: bytes) -> None:
    await eventually(lambda: all(wire.saw(mark) for mark in marks))


async def test_spoofed_frames_are_dropped(lab: Lab) -> None:
    network = lab.cloud.network(vlan=10)
    liar, victim = await lab.boot(network, "10.0.0.11"), await lab.boot(network, "10.0.0.12", UDP)
    mac = liar.vif.mac
    fragment = ipv4("10.0.0.13", "10.0.0.12", 17, b"spoofed fragment", fragment=100)
    packet = datagram(liar, victim, b"spoofed inside")[14:]
    lies = [
        datagram(liar, victim, b"spoofed mac", src_mac=STRANGE),
        datagram(liar, victim, b"spoofed victim", src_mac=victim.vif.mac),
        datagram(liar, victim, b"spoofed address", src="10.0.0.13"),
        datagram(liar, victim, b"spoofed server", src="10.0.0.2"),
        datagram(liar, victim, b"spoofed nobody", src="0.0.0.0"),
        datagram(liar, victim, b"spoofed tag", vlan=10),
        datagram(liar, victim, b"spoofed other tag", vlan=11),
        datagram(liar, victim, b"spoofed group", dst_mac="01:00:5e:00:00:01"),
        datagram(liar, victim, b"spoofed broadcast", dst_mac=BROADCAST),
        ethernet(src_mac=mac, dst_mac=victim.vif.mac, kind=0x0800, body=fragment),
        ethernet(src_mac=mac, dst_mac=victim.vif.mac, kind=0x88B5, body=b"spoofed type"),
        ethernet(src_mac=mac, dst_mac=victim.vif.mac, kind=0x8847, body=b"\0\0\x11\xff" + packet),
        ethernet(src_mac=mac, dst_mac="01:80:c2:00:00:00", kind=0x0026, body=b"\x42\x42\3spoofed bridge"),
    ]
    async with victim.tap_wire() as wire:
        await liar.send(*lies)
        await liar.send(datagram(liar, victim, b"honest"))
        await all_seen(wire, b"honest")
        assert not wire.saw(b"spoofed")


async def test_nobody_answers_arp_for_another(lab: Lab) -> None:
    network = lab.cloud.network(vlan=10)
    liar, victim = await lab.boot(network, "10.0.0.11"), await lab.boot(network, "10.0.0.12")
    mac, at_victim = liar.vif.mac, {"target": "10.0.0.12"}
    async with victim.tap_wire() as wire:
        await liar.send(
            arp_frame(src_mac=mac, sender_mac=mac, sender="10.0.0.66", **at_victim),
            arp_frame(src_mac=STRANGE, sender_mac=mac, sender="10.0.0.11", **at_victim),
            arp_frame(src_mac=mac, sender_mac=STRANGE, sender="10.0.0.11", **at_victim),
            arp_frame(src_mac=mac, sender_mac=mac, sender="10.0.0.1", op=2, **at_victim),
            arp_frame(src_mac=mac, sender_mac=mac, sender="10.0.0.12", op=2, **at_victim),
            arp_frame(src_mac=mac, sender_mac=mac, sender="0.0.0.0", op=2, **at_victim),
        )
        await liar.send(arp_frame(src_mac=mac, sender_mac=mac, sender="10.0.0.11", **at_victim))
        await eventually(lambda: len(wire.frames) > 0)
        assert await victim.pings("10.0.0.11")
        arps = [frame for frame in wire.frames if frame[12:14] == b"\x08\x06"]
        assert {frame[28:32] for frame in arps} == {socket.inet_aton("10.0.0.11")}
        assert {frame[22:28] for frame in arps} == {mac_bytes(mac)}


async def test_a_probe_for_a_free_address_and_the_news_of_a_move_pass(lab: Lab) -> None:
    """RFC 5227's probe names no sender; QEMU tells the switches by RARP where a guest has moved to."""
    network = lab.cloud.network(vlan=10)
    guest, peer = await lab.boot(network, "10.0.0.11"), await lab.boot(network, "10.0.0.12")
    mac = guest.vif.mac
    moved = {"sender": "0.0.0.0", "target": "0.0.0.0", "op": 3, "kind": 0x8035}
    async with peer.tap_wire() as wire:
        await guest.send(
            arp_frame(src_mac=STRANGE, sender_mac=STRANGE, **moved),
            arp_frame(src_mac=mac, sender_mac=STRANGE, **moved),
            arp_frame(src_mac=mac, sender_mac=mac, **{**moved, "sender": "10.0.0.12", "op": 4}),
            arp_frame(src_mac=mac, sender_mac=mac, **moved),
            arp_frame(src_mac=mac, sender_mac=mac, sender="0.0.0.0", target="10.0.0.11"),
        )
        await eventually(lambda: any(frame[12:14] == b"\x08\x06" for frame in wire.frames))
        assert [frame[22:28] for frame in wire.frames if frame[12:14] == b"\x80\x35"] == [mac_bytes(mac)]


async def test_ipv6_neighbours_say_only_what_is_theirs(lab: Lab) -> None:
    network = lab.cloud.network(vlan=10)
    one = await lab.boot(network, "10.0.0.11", *SIX, addresses=("10.0.0.11", "fd00::11"))
    two = await lab.boot(network, "10.0.0.12", *SIX, addresses=("10.0.0.12", "fd00::12"))
    deaf = await lab.boot(network, "10.0.0.13", addresses=("10.0.0.13", "fd00::13"))
    for guest in (one, two, deaf):
        await guest.add_addresses(f"fd00::{guest.address[-2:] if guest.address else ''}/64")
    assert await one.pings("fd00::12")
    assert not await one.pings("fd00::13", 0.5)
    await two.add_addresses("fd00::66/64")
    assert not await one.pings("fd00::66", 0.5)  # not its own

    mac, local = one.vif.mac, str(flows.link_local(one.vif.mac).network_address)
    ends = {"src_mac": mac, "dst_mac": two.vif.mac, "dst": "fd00::12"}
    async with two.tap_wire() as wire:
        await one.send(
            advertisement_frame(src_mac=mac, src=local, target="fd00::1", says_mac=STRANGE),
            advertisement_frame(src_mac=mac, src="fd00::11", target="fd00::12", says_mac=STRANGE),
            advertisement_frame(src_mac=STRANGE, src="fd00::11", target="fd00::11", says_mac=STRANGE),
            icmp6_frame(
                **{**ends, "src": "fd00::66"}, kind=135, body=bytes(4) + bytes(12) + b"spoofed asker"
            ),
            icmp6_frame(**ends, src="fd00::66", kind=128, body=b"spoofed echo"),
            udp_frame(**ends, src="fd00::66", sport=9, dport=9, data=b"spoofed datagram"),
            udp_frame(
                **{**ends, "dst_mac": ALL_NODES}, src="fd00::11", sport=9, dport=9, data=b"spoofed group"
            ),
            advertisement_frame(src_mac=mac, src=local, target=local),
            udp_frame(**ends, src="fd00::11", sport=9, dport=9, data=b"honest"),
        )
        await all_seen(wire, b"honest")
        assert not wire.saw(b"spoofed") and not wire.saw(mac_bytes(STRANGE))
        assert [frame[62:78] for frame in wire.frames if frame[54:55] == b"\x88"] == [
            flows.link_local(mac).network_address.packed
        ]


async def test_pairs_that_are_allowed_may_be_used_and_taken_back(lab: Lab) -> None:
    network = lab.cloud.network(vlan=10)
    pairs = (
        (VMAC, "10.0.0.7/32"),
        ("fa:16:3e:00:00:01", "192.168.7.0/24"),
        ("FA:16:3E:00:00:01", "fd00:7::/64"),
    )
    router = await lab.boot(network, "10.0.0.11", allowed_pairs=pairs)
    peer = await lab.boot(network, "10.0.0.12", UDP, *SIX)
    six = {"src_mac": router.vif.mac, "dst_mac": peer.vif.mac, "dst": "fd00::12", "sport": 9, "dport": 9}
    async with peer.tap_wire() as wire:
        await router.send(
            datagram(router, peer, b"spoofed pair", src_mac=VMAC),
            datagram(router, peer, b"spoofed pair", src="10.0.0.7"),
            datagram(router, peer, b"spoofed pair", src="192.168.8.1"),
            udp_frame(**six, src="fd00:8::1", data=b"spoofed pair"),
            datagram(router, peer, b"shared address", src_mac=VMAC, src="10.0.0.7"),
            datagram(router, peer, b"routed address", src="192.168.7.77"),
            udp_frame(**six, src="fd00:7::7", data=b"routed six"),
            arp_frame(src_mac=VMAC, sender_mac=VMAC, sender="10.0.0.7", target="10.0.0.7", op=2),
        )
        await all_seen(
            wire, b"shared address", b"routed address", b"routed six", b"\x00\x02" + mac_bytes(VMAC)
        )
        assert not wire.saw(b"spoofed pair")
    async with router.tap_wire() as wire:  # and what is sent to the shared MAC is filtered as well
        await peer.send(datagram(peer, router, b"unwanted", dst_mac=VMAC, dst="10.0.0.7", sport=5))
        assert await peer.pings("10.0.0.11")
        assert not wire.saw(b"unwanted")

    lab.cloud.change(router, allowed_pairs=())
    await eventually(lambda: not any("192.168.7" in line for line in lab.flows_of(router)))
    async with peer.tap_wire() as wire:
        await router.send(
            datagram(router, peer, b"routed address", src="192.168.7.77"),
            datagram(router, peer, b"shared address", src_mac=VMAC, src="10.0.0.7"),
            datagram(router, peer, b"honest"),
        )
        await all_seen(wire, b"honest")
        assert not wire.saw(b"routed address") and not wire.saw(b"shared address")


async def test_without_port_security_nothing_is_filtered_until_it_is_back(lab: Lab) -> None:
    network, other = lab.cloud.network(vlan=10), lab.cloud.network(vlan=11)
    appliance = await lab.boot(network, "10.0.0.11", port_security=False, egress=())
    peer = await lab.boot(network, "10.0.0.12", tcp_in(7))
    spy = await lab.boot(other, "10.0.0.13", UDP)
    async with appliance.echo_server(80), peer.echo_server(8):
        assert await peer.connects("10.0.0.11", 80)
        assert not await appliance.connects("10.0.0.12", 8, 0.4)  # the peer still has its filter
    anything = {"src_mac": STRANGE, "dst_mac": BROADCAST, "src": "1.2.3.4", "dst": "255.255.255.255"}
    async with peer.tap_wire() as wire, spy.tap_wire() as elsewhere:
        # tagged frames stay what they are: no port chooses its network
        await appliance.send(datagram(appliance, spy, b"tagged", **anything, vlan=11))
        await appliance.send(datagram(appliance, peer, b"tagged", **anything, vlan=10))
        await appliance.send(datagram(appliance, peer, b"anything", **anything))
        await all_seen(wire, b"anything")
        assert not wire.saw(b"tagged") and not elsewhere.saw(b"tagged") and not elsewhere.saw(b"anything")

        lab.cloud.change(appliance, port_security=True, rules=ANY_EGRESS)
        await eventually(lambda: len(lab.flows_of(appliance)) > 2)
        await appliance.send(
            datagram(appliance, peer, b"no longer", **anything),
            datagram(appliance, peer, b"honest", dst_mac=BROADCAST, dst="255.255.255.255"),
        )
        await all_seen(wire, b"honest")
        assert not wire.saw(b"no longer")
    async with appliance.echo_server(80):
        assert not await peer.connects("10.0.0.11", 80, 0.4)
