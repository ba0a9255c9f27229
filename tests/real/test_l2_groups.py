"""Security groups: what rules let in and out, and what becomes of connections when rules change."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable

import pytest

from kilonova.l2agent.reach import open_connection_in
from kilonova.model.wiring import FilterRule
from tests.real.frames import tcp_frame, udp_frame
from tests.real.guests import eventually
from tests.real.l2lab import Lab
from tests.real.memory_cloud import PING_IN, rule_in, tcp_in
from tests.real.udp import answers, udp_echo

pytestmark = pytest.mark.real

SOON = 0.4  # seconds in which what is forbidden would have come


async def ends(works: Callable[[], Awaitable[bool]]) -> None:
    """Wait until something works no longer.  The switch takes a moment to forget what it decided before."""

    async def fails() -> bool:
        return not await works()

    await eventually(fails)


async def test_nothing_comes_in_by_default_and_answers_do(lab: Lab) -> None:
    network = lab.cloud.network(vlan=10)
    closed = await lab.boot(network, "10.0.0.11", rule_in("tcp", 1))
    server = await lab.boot(network, "10.0.0.12", rule_in(None))
    async with closed.echo_server(80), server.echo_server(80), udp_echo(closed, 53), udp_echo(server, 53):
        assert await closed.connects("10.0.0.12", 80)
        assert await answers(closed, "10.0.0.12", 53)
        assert await closed.pings("10.0.0.12")
        assert not await server.connects("10.0.0.11", 80, SOON)
        assert not await answers(server, "10.0.0.11", 53, SOON)
        assert not await server.pings("10.0.0.11", SOON)
    ack = {"src_mac": server.vif.mac, "dst_mac": closed.vif.mac, "src": "10.0.0.12", "dst": "10.0.0.11"}
    async with closed.tap_wire() as wire:  # nor what only looks like an answer
        await server.send(
            tcp_frame(**ack, sport=80, dport=4444, flags=0x10, data=b"unasked"),
            tcp_frame(**ack, sport=80, dport=4444, flags=0x12, data=b"unasked"),
            udp_frame(**ack, sport=53, dport=4444, data=b"unasked"),
        )
        assert await closed.pings("10.0.0.12")
        assert not wire.saw(b"unasked")


async def test_protocols_ports_and_ranges(lab: Lab) -> None:
    network = lab.cloud.network(vlan=10)
    echo_request = rule_in("icmp", 8, port_max=0)
    server = await lab.boot(
        network,
        "10.0.0.11",
        rule_in("tcp", 80, 83),
        rule_in("udp", 53),
        rule_in("17", 1000, 1006),
        echo_request,
    )
    client = await lab.boot(network, "10.0.0.12")
    async with server.echo_server(79, 80, 83, 84, 53), udp_echo(server, 53, 54, 80, 999, 1000, 1006, 1007):
        tcp = [
            port
            for port in (79, 80, 83, 84, 53)
            if await client.connects("10.0.0.11", port, 30 * (port in (80, 83)) or SOON)
        ]
        udp = [
            port
            for port in (53, 54, 80, 999, 1000, 1006, 1007)
            if await answers(client, "10.0.0.11", port, 30 if port in (53, 1000, 1006) else SOON)
        ]
        assert (tcp, udp) == ([80, 83], [53, 1000, 1006])
    assert await client.pings("10.0.0.11")
    lab.cloud.rules(server, rule_in("icmp", 13, port_max=0))
    await ends(lambda: client.pings("10.0.0.11", SOON))


async def test_packets_in_pieces_pass_where_whole_ones_do(lab: Lab) -> None:
    """Only the first fragment says the port: the others must neither be lost nor open a way by themselves."""
    network = lab.cloud.network(vlan=10)
    echo_request = rule_in("icmp", 8, port_max=0)
    icmp6 = FilterRule(direction="ingress", ethertype="IPv6", protocol="icmpv6", port_min=128, port_max=0)
    addresses = {"addresses": ("10.0.0.11", "fd00::11")}
    server = await lab.boot(network, "10.0.0.11", rule_in("udp", 53), echo_request, icmp6, **addresses)
    client = await lab.boot(network, "10.0.0.12", addresses=("10.0.0.12", "fd00::12"))
    await server.add_addresses("fd00::11/64")
    await client.add_addresses("fd00::12/64")
    async with udp_echo(server, 53, 54):
        assert await answers(client, "10.0.0.11", 53, size=5000)
        assert not await answers(client, "10.0.0.11", 54, SOON, size=5000)
    assert await client.pings("10.0.0.11", size=5000)
    assert await client.pings("fd00::11", size=5000)


async def test_a_remote_group_is_its_members(lab: Lab) -> None:
    network = lab.cloud.network(vlan=10)
    members = ("10.0.0.12/32", "10.0.1.0/24", "fd00::12/128")
    server = await lab.boot(network, "10.0.0.11", tcp_in(80, remote=members))
    member, stranger = await lab.boot(network, "10.0.0.12"), await lab.boot(network, "10.0.0.13")
    async with server.echo_server(80):
        assert await member.connects("10.0.0.11", 80)
        assert not await stranger.connects("10.0.0.11", 80, SOON)
        lab.cloud.rules(server, tcp_in(80, remote=("10.0.0.13/32",)))  # one left the group, another came
        assert await stranger.connects("10.0.0.11", 80)
        await ends(lambda: member.connects("10.0.0.11", 80, SOON))
        lab.cloud.rules(server, tcp_in(80, remote=()), PING_IN)  # a group without members lets nobody in
        await ends(lambda: stranger.connects("10.0.0.11", 80, SOON))
        assert await stranger.pings("10.0.0.11")


async def test_egress_rules_hold_what_they_do_not_name(lab: Lab) -> None:
    network = lab.cloud.network(vlan=10)
    out = FilterRule(direction="egress", ethertype="IPv4", protocol="tcp", port_min=80, port_max=89)
    near = FilterRule(direction="egress", ethertype="IPv4", protocol="udp", remote=("10.0.0.12/32",))
    prisoner = await lab.boot(network, "10.0.0.11", PING_IN, egress=(out, near))
    server, other = [await lab.boot(network, f"10.0.0.1{n}", rule_in(None)) for n in (2, 3)]
    async with server.echo_server(81, 90), udp_echo(server, 53), udp_echo(other, 53):
        assert await prisoner.connects("10.0.0.12", 81)
        assert not await prisoner.connects("10.0.0.12", 90, SOON)
        assert await answers(prisoner, "10.0.0.12", 53)
        assert not await answers(prisoner, "10.0.0.13", 53, SOON)
        assert not await prisoner.pings("10.0.0.12", SOON)
        assert await server.pings("10.0.0.11")  # its answers go out
    async with other.tap_wire() as wire:  # broadcasts are held as well
        ends = {"src_mac": prisoner.vif.mac, "dst_mac": "ff:ff:ff:ff:ff:ff", "src": "10.0.0.11"}
        await prisoner.send(udp_frame(**ends, dst="255.255.255.255", sport=9, dport=9, data=b"let me out"))
        assert await other.pings("10.0.0.11")
        assert not wire.saw(b"let me out")


async def test_rules_for_ipv6_are_rules_for_ipv6_only(lab: Lab) -> None:
    network = lab.cloud.network(vlan=10)
    six = FilterRule(direction="ingress", ethertype="IPv6", protocol="icmpv6", remote=("fd00::12/128",))
    server = await lab.boot(network, "10.0.0.11", six, addresses=("10.0.0.11", "fd00::11"))
    one = await lab.boot(network, "10.0.0.12", addresses=("10.0.0.12", "fd00::12"))
    two = await lab.boot(network, "10.0.0.13", addresses=("10.0.0.13", "fd00::13"))
    for guest in (server, one, two):
        await guest.add_addresses(f"fd00::{(guest.address or '')[-2:]}/64")
    assert await one.pings("fd00::11")
    assert not await two.pings("fd00::11", SOON)
    assert not await one.pings("10.0.0.11", SOON)


async def test_a_changed_rule_spares_what_it_still_allows_and_ends_the_rest(lab: Lab) -> None:
    network = lab.cloud.network(vlan=10)
    server = await lab.boot(network, "10.0.0.11", tcp_in(80), tcp_in(81))
    client = await lab.boot(network, "10.0.0.12")
    async with server.echo_server(80, 81):
        kept = await open_connection_in(client.namespace, "10.0.0.11", 80, timeout=30)
        ended = await open_connection_in(client.namespace, "10.0.0.11", 81, timeout=30)
        rounds = 0

        async def talk() -> None:
            nonlocal rounds
            while True:
                kept[1].write(b"x")
                assert await kept[0].readexactly(1) == b"x"
                rounds += 1

        talking = asyncio.create_task(talk())
        for number in range(5):  # rules change again and again under a connection
            lab.cloud.rules(server, tcp_in(80), tcp_in(1000 + number))
            await eventually(
                lambda number=number: any(f"tp_dst={1000 + number} " in line for line in lab.flows_of(server))  # type: ignore[misc]
            )
            before = rounds
            await eventually(lambda before=before: rounds > before + 10)  # type: ignore[misc]
        talking.cancel()
        await asyncio.gather(talking, return_exceptions=True)
        ended[1].write(b"y")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(SOON):
                await ended[0].readexactly(1)
        lab.cloud.rules(server, tcp_in(80), tcp_in(81))  # it comes back: the connection lives again
        async with asyncio.timeout(60):
            assert await ended[0].readexactly(1) == b"y"
        kept[1].close()
        ended[1].close()


async def test_a_connection_whose_rule_went_is_silent_in_both_directions(lab: Lab) -> None:
    """Also for a guest that may send anything: its answers were only let out as answers."""
    network = lab.cloud.network(vlan=10)
    server = await lab.boot(network, "10.0.0.11", rule_in("udp", 53), PING_IN)
    client = await lab.boot(network, "10.0.0.12")
    at_server, at_client = await server.udp(53), await client.udp(4444)
    loop = asyncio.get_running_loop()

    async def heard(link: socket.socket, wait: float) -> bytes:
        try:
            async with asyncio.timeout(wait):
                return await loop.sock_recv(link, 100)
        except TimeoutError:
            return b"nothing"

    at_client.sendto(b"hello", ("10.0.0.11", 53))
    assert await heard(at_server, 30) == b"hello"
    at_server.sendto(b"answer", ("10.0.0.12", 4444))
    assert await heard(at_client, 30) == b"answer"
    lab.cloud.rules(server, PING_IN)

    async def still_talks() -> bool:
        at_client.sendto(b"again", ("10.0.0.11", 53))
        return await heard(at_server, SOON) == b"again"

    await ends(still_talks)
    for _ in range(3):
        at_server.sendto(b"still here", ("10.0.0.12", 4444))
        assert await server.pings("10.0.0.2")
    assert await heard(at_client, SOON) == b"nothing"
    for link in (at_server, at_client):
        link.close()
