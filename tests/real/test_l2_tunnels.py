"""Networks that span hosts: VXLAN between the switches of three hosts."""

from __future__ import annotations

import asyncio
import socket

import pytest

from kilonova.l2agent.flows import server_mac
from kilonova.l2agent.namespace import device_name
from kilonova.l2agent.tunnels import tunnel_name
from tests.real.dhcp_client import Lease
from tests.real.frames import BROADCAST, arp_frame, udp_frame
from tests.real.guests import eventually
from tests.real.l2_hosts import (
    Hosts,
    start_agent,
    stop_agent,
)
from tests.real.l2_machines import has_heard, have_tunnels, hosts, machines
from tests.real.l2_work import (
    clean_host,
    end_echo,
    heard,
    learnt,
    lease,
    listen,
    metadata,
    number_of,
    restart_switch,
    send,
    serve_echo,
    vsctl,
)
from tests.real.l2lab import BRIDGE, PREFIX
from tests.unit.network.conftest import BOB
from tests.unit.network.test_wiring import add, group, rule

pytestmark = pytest.mark.real

__all__ = ["hosts", "machines"]


async def test_guests_of_a_network_reach_each_other_from_host_to_host(hosts: Hosts) -> None:
    one, two, three = hosts.all
    network = await hosts.cloud.network()
    a = await hosts.boot(network, one)
    assert await one.tunnels() == {}
    b = await hosts.boot(network, two)
    assert a.vif.mtu == 1450
    assert await a.pings(b) and await b.pings(a)
    assert await a.pings(b, size=1400), "a packet as long as the network's MTU"
    await have_tunnels((one, {two.local_ip: [1]}), (two, {one.local_ip: [1]}), (three, {}))


# ---- tunnels come and go ----


async def test_tunnels_lead_only_to_hosts_with_a_common_network(hosts: Hosts) -> None:
    one, two, three = hosts.all
    red, blue = await hosts.cloud.network(), await hosts.cloud.network()
    a, b = await hosts.boot(red, one), await hosts.boot(red, two)
    c, d = await hosts.boot(blue, two), await hosts.boot(blue, three)
    e = await hosts.boot(blue, one)
    await have_tunnels(
        (one, {two.local_ip: [1, 2], three.local_ip: [2]}),
        (two, {one.local_ip: [1, 2], three.local_ip: [2]}),
        (three, {one.local_ip: [2], two.local_ip: [2]}),
    )
    assert await c.pings(d) and await d.pings(e) and await a.pings(b)
    await hosts.remove(b)
    await have_tunnels((one, {two.local_ip: [2], three.local_ip: [2]}))
    await hosts.remove(e)
    await have_tunnels((one, {}), (two, {three.local_ip: [2]}), (three, {two.local_ip: [2]}))
    assert await c.pings(d)


async def test_only_hosts_of_the_network_are_told_and_only_of_its_first_and_last_port(hosts: Hosts) -> None:
    one, two, _ = hosts.all
    network = await hosts.cloud.network()
    a = await hosts.boot(network, one)
    b = await hosts.boot(network, two)
    await have_tunnels((one, {two.local_ip: [1]}), (two, {one.local_ip: [1]}))
    hosts.news.clear()
    c = await hosts.boot(network, two)
    await hosts.remove(b)
    assert await a.pings(c)
    assert ("network", network) not in hosts.news
    await hosts.remove(c)
    assert hosts.news.count(("network", network)) == 1
    await have_tunnels((one, {}), (two, {}))


async def test_tunnels_outlive_the_agent_and_change_when_it_is_back(hosts: Hosts) -> None:
    one, two, three = hosts.all
    red, blue = await hosts.cloud.network(), await hosts.cloud.network()
    a, b = await hosts.boot(red, one), await hosts.boot(red, two)
    c, d = await hosts.boot(blue, one), await hosts.boot(blue, three)
    await have_tunnels((one, {two.local_ip: [1], three.local_ip: [2]}))
    name = tunnel_name(two.local_ip)
    before = await one.run(number_of, name)
    await one.run(stop_agent)
    assert await a.pings(b)
    await hosts.remove(c)
    hosts.news.clear()
    await one.run(start_agent)
    await have_tunnels((one, {two.local_ip: [1]}))
    assert await one.run(number_of, name) == before, "it was not made anew"
    assert ("network", red) not in hosts.news, "nobody has to look again because an agent was restarted"
    assert await b.pings(a)
    await hosts.remove(d)


async def test_tunnels_come_back_whatever_becomes_of_them(hosts: Hosts) -> None:
    one, two, _ = hosts.all
    network = await hosts.cloud.network()
    a, b = await hosts.boot(network, one), await hosts.boot(network, two)
    assert await a.pings(b)
    name = tunnel_name(two.local_ip)
    await one.run(vsctl, "del-port", BRIDGE, name)
    await have_tunnels((one, {two.local_ip: [1]}))
    assert await a.pings(b)
    await one.run(vsctl, "set", "interface", name, "options:remote_ip=10.198.0.77")
    await have_tunnels((one, {two.local_ip: [1]}))
    assert await a.pings(b)
    await one.run(vsctl, "clear", "port", name, "trunks")
    await have_tunnels((one, {two.local_ip: [1]}))
    await one.run(restart_switch)
    assert await a.pings(b, 60) and await b.pings(a)


async def test_a_host_that_is_left_keeps_no_tunnel(hosts: Hosts) -> None:
    one, two, _ = hosts.all
    network = await hosts.cloud.network()
    await hosts.boot(network, one)
    await hosts.boot(network, two)
    await have_tunnels((one, {two.local_ip: [1]}), (two, {one.local_ip: [1]}))
    await one.run(stop_agent)
    removed: list[str] = await one.run(clean_host)
    assert f"tunnel to {two.local_ip} ({tunnel_name(two.local_ip)})" in removed
    await have_tunnels((one, {}))
    await one.run(start_agent)


# ---- one network, one server on each host ----


async def test_each_host_serves_its_own_guests_only(hosts: Hosts) -> None:
    network = await hosts.cloud.network()
    guests = [await hosts.boot(network, host) for host in hosts.all]
    await asyncio.gather(*(guest.pings(other) for guest in guests for other in guests if other is not guest))
    for guest in guests:
        await guest.run(listen)
        found: Lease | None = await guest.run(lease, 30.0)
        assert found is not None and (found.address, found.server) == (guest.address, "10.0.0.2")
        assert await guest.run(metadata, "10.0.0.2") == f"{network} {guest.address}"
        frames: list[bytes] = await guest.run(heard)
        answers = [frame for frame in frames if frame[12:14] == b"\x08\x00" and frame[34:38] == b"\0C\0D"]
        assert len(answers) == 2, "one offer and one lease, from one server"
        assert {frame[6:12].hex(":") for frame in answers} == {server_mac(network)}
    for host in hosts.all:
        places = await host.run(learnt, server_mac(network))
        assert places == [str(await host.run(number_of, device_name(network, PREFIX)))]


async def test_a_guest_without_port_security_cannot_pose_as_the_server(hosts: Hosts) -> None:
    one, two, _ = hosts.all
    network = await hosts.cloud.network(port_security_enabled=False)
    liar, victim, near = [await hosts.boot(network, host) for host in (one, two, one)]
    assert await liar.pings(victim) and await liar.pings(near)
    mac = server_mac(network)
    for guest in (victim, near):
        await guest.run(listen)
    truth = arp_frame(src_mac=liar.vif.mac, sender_mac=liar.vif.mac, sender="10.0.0.99", target="10.0.0.99")
    lie = arp_frame(src_mac=mac, sender_mac=mac, sender="10.0.0.98", target="10.0.0.98")
    await liar.run(send, lie, truth)
    for guest in (victim, near):
        await eventually(lambda guest=guest: has_heard(guest, socket.inet_aton("10.0.0.99")))  # type: ignore[misc]
        assert not await has_heard(guest, socket.inet_aton("10.0.0.98"))
    for host in (one, two):
        assert await host.run(learnt, mac) in (
            [],
            [str(await host.run(number_of, device_name(network, PREFIX)))],
        )


async def test_what_is_sent_to_all_comes_to_each_once(hosts: Hosts) -> None:
    """Three hosts are a circle: nothing may run round in it."""
    network = await hosts.cloud.network()
    guests = [await hosts.boot(network, host) for host in hosts.all]
    assert all(await asyncio.gather(*(guests[0].pings(other) for other in guests[1:])))
    sender = guests[0]
    for guest in guests:
        await guest.run(listen)
    frames = [
        udp_frame(
            src_mac=sender.vif.mac,
            dst_mac=BROADCAST,
            src=sender.address,
            dst="10.0.0.255",
            sport=9,
            dport=9,
            data=b"number %d." % number,
        )
        for number in range(20)
    ]
    await sender.run(send, *frames)
    for guest in guests[1:]:
        await eventually(lambda guest=guest: has_heard(guest, b"number 19."))  # type: ignore[misc]
        found = [frame for frame in await guest.run(heard) if b"number " in frame]
        assert len(found) == 20
    assert not await has_heard(sender, b"number ")


# ---- who may reach whom ----


async def test_two_tenants_with_the_same_addresses_stay_apart(hosts: Hosts) -> None:
    one, two, _ = hosts.all
    mine, yours = await hosts.cloud.network(), await hosts.cloud.network(BOB)
    a, b = await hosts.boot(mine, one), await hosts.boot(mine, two)
    x, y = await hosts.boot(yours, one, project="beta"), await hosts.boot(yours, two, project="beta")
    assert (a.address, b.address) == (x.address, y.address)
    assert await a.pings(b) and await x.pings(y)
    for guest in (a, b, y):
        await guest.run(listen)
    said = {"src": x.address, "sport": 9, "dport": 9}
    honest = {**said, "src_mac": x.vif.mac}
    await x.run(
        send,
        udp_frame(**honest, dst_mac=b.vif.mac, dst=b.address, data=b"wrong guest"),
        udp_frame(**honest, dst_mac=b.vif.mac, dst=b.address, data=b"wrong network", vlan=1),
        udp_frame(**honest, dst_mac=BROADCAST, dst="10.0.0.255", data=b"wrong all", vlan=1),
        udp_frame(**honest, dst_mac=y.vif.mac, dst=y.address, data=b"tagged", vlan=2),
        udp_frame(**honest, dst_mac=BROADCAST, dst="10.0.0.255", data=b"to all"),
    )
    await eventually(lambda: has_heard(y, b"to all"))
    for guest in (a, b):
        assert not await has_heard(guest, b"wrong") and not await has_heard(guest, b"to all")
    assert not await has_heard(y, b"tagged")


async def test_a_hostile_guest_cannot_speak_for_others_through_a_tunnel(hosts: Hosts) -> None:
    one, two, _ = hosts.all
    network = await hosts.cloud.network()
    liar, honest, victim = [await hosts.boot(network, host) for host in (one, one, two)]
    assert await liar.pings(victim) and await honest.pings(victim)
    await victim.run(listen)
    to = {"dst_mac": victim.vif.mac, "dst": victim.address, "sport": 9, "dport": 9}
    await liar.run(
        send,
        udp_frame(**to, src_mac=honest.vif.mac, src=honest.address, data=b"lie with another's MAC"),
        udp_frame(**to, src_mac=liar.vif.mac, src=honest.address, data=b"lie with another's address"),
        udp_frame(**to, src_mac=server_mac(network), src="10.0.0.2", data=b"lie as the server"),
        arp_frame(src_mac=liar.vif.mac, sender_mac=liar.vif.mac, sender=honest.address, target="10.0.0.1"),
        udp_frame(**{**to, "dport": 68}, src_mac=liar.vif.mac, src=liar.address, data=b"lie as DHCP"),
        udp_frame(**to, src_mac=liar.vif.mac, src=liar.address, data=b"truth"),
    )
    await eventually(lambda: has_heard(victim, b"truth"))
    frames: list[bytes] = await victim.run(heard)
    assert not any(b"lie " in frame for frame in frames)
    told = liar.vif.mac.replace(":", "")
    assert not any(bytes.fromhex(told) + socket.inet_aton(honest.address) in frame for frame in frames)
    assert await two.run(learnt, honest.vif.mac) == [str(await two.run(number_of, tunnel_name(one.local_ip)))]


async def test_security_groups_hold_from_host_to_host(hosts: Hosts) -> None:
    one, two, _ = hosts.all
    network = await hosts.cloud.network()
    web = await group(hosts.cloud, "web", rule("", protocol="tcp", port_range_min=80, port_range_max=80))
    client = await hosts.boot(network, one)
    server = await hosts.boot(network, two, security_groups=(web,))
    for port in (80, 81):
        await server.run(serve_echo, port)
        assert await client.connects(server, port, 30 if port == 80 else 1.0) == (port == 80)
        await server.run(end_echo)
    assert not await client.pings(server, 1.0)
    await add(hosts.cloud, rule(web, protocol="icmp"))
    assert await client.pings(server)
    await client.run(serve_echo, 22)
    assert not await server.connects(client, 22, 1.0), "only members of the default group are let in"
    await client.run(end_echo)
