"""DHCP by dnsmasq: who gets what, who gets nothing, and what survives."""

from __future__ import annotations

import os
import signal
import socket

import msgspec
import pytest

from kilonova.l2agent.flows import server_mac
from kilonova.model.wiring import DhcpHost, DhcpSubnet
from tests.real.dhcp_client import ask_dhcp
from tests.real.frames import ALL_NODES, BROADCAST, icmp6_frame, udp_frame
from tests.real.guests import eventually
from tests.real.l2lab import Lab, settle
from tests.real.memory_cloud import rule_in

pytestmark = pytest.mark.real


async def test_a_guest_gets_its_address_and_every_option(lab: Lab) -> None:
    network = lab.cloud.network(vlan=10)
    vif = lab.cloud.port(network, "10.0.0.11")
    guest = await lab.plug(vif)
    await lab.cloud.up(vif)
    lease = await ask_dhcp(guest)
    assert lease is not None
    assert (lease.address, lease.server) == ("10.0.0.11", "10.0.0.2")
    assert lease.options[1] == socket.inet_aton("255.255.255.0")
    assert lease.options[3] == socket.inet_aton("10.0.0.1")
    assert lease.options[6] == socket.inet_aton("9.9.9.9")
    assert lease.options[12] == b"guest1"
    assert lease.options[15] == b"novalocal"
    assert lease.options[26] == (1442).to_bytes(2, "big")
    assert lease.options[51] == (86400).to_bytes(4, "big")
    metadata = b"\x20" + socket.inet_aton("169.254.169.254") + socket.inet_aton("10.0.0.2")
    assert lease.options[121] == metadata + b"\x00" + socket.inet_aton("10.0.0.1")

    later = lab.cloud.port(network, "10.0.0.12")  # a lease that is added while it runs
    second = await lab.plug(later)
    await lab.cloud.up(later)
    settle()
    lease = await ask_dhcp(second, every=60)  # asked once
    assert lease is not None and lease.address == "10.0.0.12"
    assert len(lab.dnsmasqs()) == 1


async def test_what_a_subnet_has_not_is_not_sent_and_what_it_has_is(lab: Lab) -> None:
    network = lab.cloud.network(vlan=10)
    bare = DhcpSubnet(
        cidr="10.0.0.0/24", server="10.0.0.2", gateway=None, routes=(("192.168.7.0/24", "10.0.0.77"),)
    )
    lab.cloud.networks[network] = msgspec.structs.replace(
        lab.cloud.networks[network], subnets=(bare,), mtu=1300
    )
    guest = await lab.boot(network, "10.0.0.11")
    lease = await ask_dhcp(guest)
    assert lease is not None
    assert 3 not in lease.options and 6 not in lease.options
    assert lease.options[26] == (1300).to_bytes(2, "big")
    metadata = b"\x20" + socket.inet_aton("169.254.169.254") + socket.inet_aton("10.0.0.2")
    assert lease.options[121] == metadata + b"\x18\xc0\xa8\x07" + socket.inet_aton("10.0.0.77")


async def test_a_changed_network_is_served_as_it_is_now(lab: Lab) -> None:
    network = lab.cloud.network(vlan=10)
    guest = await lab.boot(network, "10.0.0.11")
    assert (await ask_dhcp(guest)) is not None
    (subnet,) = lab.cloud.networks[network].subnets
    lab.cloud.change_network(
        network, mtu=1400, subnets=(msgspec.structs.replace(subnet, dns=("8.8.4.4", "8.8.8.8")),)
    )

    async def is_new() -> bool:
        lease = await ask_dhcp(guest, 1)
        wanted = {6: socket.inet_aton("8.8.4.4") + socket.inet_aton("8.8.8.8"), 26: b"\x05\x78"}
        return lease is not None and wanted.items() <= lease.options.items()

    await eventually(is_new)
    lab.cloud.change_network(network, subnets=(msgspec.structs.replace(subnet, dhcp=False),))
    await eventually(lambda: lab.dnsmasqs() == [])
    assert await ask_dhcp(guest, 1) is None
    assert await guest.pings("10.0.0.2")  # the host's address in it stays, for metadata
    lab.cloud.change_network(network, subnets=(msgspec.structs.replace(subnet, dhcp=False, server=""),))
    second = await lab.boot(network, "10.0.0.12")  # a subnet that nobody serves is no obstacle
    assert await second.pings("10.0.0.11")
    lab.cloud.change_network(network, subnets=(subnet,))
    assert await ask_dhcp(guest) is not None


async def test_several_subnets_of_one_network_and_one_range_on_two_networks(lab: Lab) -> None:
    one, two = lab.cloud.network(vlan=10), lab.cloud.network(vlan=11)
    more = DhcpSubnet(cidr="10.9.0.0/16", server="10.9.0.2", gateway="10.9.0.1", dns=())
    six = DhcpSubnet(cidr="fd00::/64", server="fd00::2", gateway="fd00::1", dns=("fd00::53",))
    old = lab.cloud.networks[one]
    lab.cloud.networks[one] = msgspec.structs.replace(old, subnets=(*old.subnets, more, six))
    here, wide = await lab.boot(one, "10.0.0.11"), await lab.boot(one, "10.9.3.3")
    there = await lab.boot(two, "10.0.0.11")
    leases = [await ask_dhcp(guest) for guest in (here, wide, there)]
    assert [lease and (lease.address, lease.server) for lease in leases] == [
        ("10.0.0.11", "10.0.0.2"),
        ("10.9.3.3", "10.9.0.2"),
        ("10.0.0.11", "10.0.0.2"),
    ]
    assert leases[1] is not None and leases[1].options[1] == socket.inet_aton("255.255.0.0")
    assert leases[1].options[3] == socket.inet_aton("10.9.0.1") and 6 not in leases[1].options
    assert len(lab.dnsmasqs()) == 2


async def test_strangers_and_guests_of_other_hosts_get_no_lease(lab: Lab) -> None:
    network = lab.cloud.network(vlan=10)
    appliance = await lab.boot(network, "10.0.0.11", port_security=False)
    lab.cloud.port(network, "10.0.0.99")  # bound to another host
    assert [path.read_text() for path in lab.directory.glob("networks/*/hosts")] == [
        "fa:16:3e:00:00:01,10.0.0.11,guest1\n"
    ]
    await appliance.ip("link set dev eth0 down", "link set dev eth0 address 02:00:00:00:00:99")
    await appliance.ip("link set dev eth0 up")
    own = appliance.vif
    appliance.vif = msgspec.structs.replace(own, mac="02:00:00:00:00:99")
    assert await ask_dhcp(appliance, 2) is None
    appliance.vif = own  # the question comes from the strange MAC, but asks for the right one's lease
    assert await ask_dhcp(appliance) is not None


async def test_a_server_that_dies_is_started_again(lab: Lab) -> None:
    network = lab.cloud.network(vlan=10)
    guest = await lab.boot(network, "10.0.0.11")
    for number in (signal.SIGKILL, signal.SIGTERM):
        (old,) = lab.dnsmasqs()
        os.kill(old, number)
        await eventually(lambda old=old: lab.dnsmasqs() not in ([], [old]))  # type: ignore[misc]
        lease = await ask_dhcp(guest)
        assert lease is not None and lease.address == "10.0.0.11"
    await lab.restart_agent()  # one that was adopted is watched as well
    (old,) = lab.dnsmasqs()
    await eventually(lambda: lab.agent.namespace(network) is not None)
    os.kill(old, signal.SIGKILL)
    await eventually(lambda: lab.dnsmasqs() not in ([], [old]))
    assert await ask_dhcp(guest) is not None


async def test_no_guest_plays_the_dhcp_server_or_the_router(lab: Lab) -> None:
    network = lab.cloud.network(vlan=10)
    rogue = await lab.boot(network, "10.0.0.11", addresses=("10.0.0.11", "fd00::11"))
    victim = await lab.boot(network, "10.0.0.12", rule_in("udp"), addresses=("10.0.0.12", "fd00::12"))
    four = {"src_mac": rogue.vif.mac, "src": "10.0.0.11", "data": b"rogue offer"}
    six = {"src_mac": rogue.vif.mac, "src": "fd00::11", "data": b"rogue offer"}
    forged = [
        udp_frame(**four, dst_mac=mac, dst=address, sport=sport, dport=68)
        for mac, address in ((BROADCAST, "255.255.255.255"), (victim.vif.mac, "10.0.0.12"))
        for sport in (67, 1067)  # raw sockets of DHCP clients look at their own port only
    ]
    forged += [
        udp_frame(**six, dst_mac=ALL_NODES, dst="ff02::1", sport=sport, dport=546) for sport in (547, 1547)
    ]
    ends = {
        "src_mac": rogue.vif.mac,
        "dst_mac": ALL_NODES,
        "dst": "ff02::1",
        "body": b"\x40\0\7\x08rogue advert",
    }
    local = "fe80::f816:3eff:fe00:1"
    forged += [icmp6_frame(**ends, src=src, kind=kind) for src in (local, "fd00::11") for kind in (134, 137)]
    honest = {**four, "data": b"honest broadcast"}
    async with victim.tap_wire() as wire:
        await rogue.send(*forged)
        await rogue.send(udp_frame(**honest, dst_mac=BROADCAST, dst="10.0.0.255", sport=9, dport=9))
        await eventually(lambda: wire.saw(b"honest broadcast"))
        assert not wire.saw(b"rogue")


async def test_hosts_are_read_from_the_service_as_they_are_spelt_there(lab: Lab) -> None:
    """MAC addresses in capitals, names that are none, addresses of IPv6 beside those of IPv4."""
    network = lab.cloud.network(vlan=10)
    vif = lab.cloud.port(network, "10.0.0.11")
    old = lab.cloud.networks[network]
    hosts = (
        DhcpHost(mac=vif.mac.upper(), address="10.0.0.11", hostname="not a name"),
        DhcpHost(mac=vif.mac.upper(), address="fd00::11", hostname="name"),
    )
    lab.cloud.networks[network] = msgspec.structs.replace(old, hosts=hosts)
    guest = await lab.plug(vif)
    await lab.cloud.up(vif)
    lease = await ask_dhcp(guest)
    assert lease is not None and lease.address == "10.0.0.11" and 12 not in lease.options


def test_the_server_has_one_mac_everywhere() -> None:
    """A guest that is moved finds its server where it was."""
    assert server_mac("net-1") == server_mac("net-1") != server_mac("net-2")
    assert int(server_mac("net-1")[:2], 16) & 3 == 2  # locally administered, for one station
