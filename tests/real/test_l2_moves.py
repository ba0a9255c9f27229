"""Guests that go from one host to another, step by step as a live migration does it."""

from __future__ import annotations

import pytest

from kilonova.db import network_ports as ports
from kilonova.l2agent.tunnels import tunnel_name
from tests.real.frames import BROADCAST, udp_frame
from tests.real.guests import eventually
from tests.real.l2_hosts import (
    FarGuest,
    FarHost,
    Hosts,
    begin,
    end,
    plug,
    start_agent,
    stop_agent,
    unplug,
)
from tests.real.l2_machines import has_heard, have_tunnels, hosts, machines
from tests.real.l2_work import (
    end_echo,
    forget_macs,
    heard,
    heard_at_tap,
    learnt,
    leave_tap,
    listen,
    listen_at_tap,
    number_of,
    send,
    serve_echo,
)
from tests.unit.network.test_wiring import group, rule

pytestmark = pytest.mark.real

__all__ = ["hosts", "machines"]


class Move:
    """A guest that goes from one host to another, step by step as a live migration does it."""

    def __init__(self, hosts: Hosts, guest: FarGuest, to: FarHost) -> None:
        self.hosts = hosts
        self.guest = guest
        self.source, self.to = guest.at, to

    async def prepare(self) -> None:
        """It runs at the source, and its port is wired at both."""
        self.hosts.cloud.events.clear()
        details = {"datapath_type": "netdev"}
        (there,) = await self.hosts.cloud.service.add_bindings(self.guest.instance, self.to.name, details)
        await self.to.run(plug, there)
        await eventually(lambda: self.hosts.heard(there))

    async def switch(self) -> None:
        """It runs at the destination from now on; nobody knows yet."""
        await self.guest.run(end)
        await self.to.run(begin, self.guest.vif, self.guest.address)
        self.guest.at = self.to

    async def activate(self) -> None:
        await self.hosts.cloud.service.activate_bindings(self.guest.instance, self.to.name)

    async def leave(self) -> None:
        """The source lets go."""
        await self.source.run(unplug, self.guest.vif)
        await self.hosts.cloud.service.remove_bindings(self.guest.instance, self.source.name)


@pytest.mark.capability("MG-LM-5")
async def test_a_guest_that_moves_is_reached_where_it_is_at_every_moment(hosts: Hosts) -> None:
    one, two, three = hosts.all
    network = await hosts.cloud.network()
    guest, near, there, far = [await hosts.boot(network, host) for host in (one, one, two, three)]
    others = (near, there, far)

    async def reached() -> None:
        for other in others:
            assert await other.pings(guest, 10.0) and await guest.pings(other, 10.0)

    await reached()
    move = Move(hosts, guest, two)
    await move.prepare()
    await reached()
    await move.switch()
    await reached()
    await move.activate()
    await reached()
    await move.leave()
    await reached()
    for host in hosts.all:
        places = await host.run(learnt, guest.vif.mac)
        assert len(places) == 1
    back = Move(hosts, guest, one)
    await back.prepare()
    await back.switch()
    await back.activate()
    await back.leave()
    await reached()


async def test_the_network_learns_where_a_guest_is_although_it_says_nothing(hosts: Hosts) -> None:
    one, two, three = hosts.all
    network = await hosts.cloud.network()
    guest, near, far = [await hosts.boot(network, host) for host in (one, one, three)]
    assert await far.pings(guest) and await near.pings(guest)
    assert await three.run(learnt, guest.vif.mac) == [
        str(await three.run(number_of, tunnel_name(one.local_ip)))
    ]
    move = Move(hosts, guest, two)
    await move.prepare()
    await guest.run(end)
    guest.at = two
    await move.activate()
    for host in (one, three):
        to_two = [str(await host.run(number_of, tunnel_name(two.local_ip)))]
        await eventually(lambda host=host, to_two=to_two: _learnt(host, guest, to_two))  # type: ignore[misc]
    await two.run(begin, guest.vif, guest.address)
    await move.leave()
    assert await far.pings(guest) and await near.pings(guest)


async def _learnt(host: FarHost, guest: FarGuest, places: list[str]) -> bool:
    return bool(await host.run(learnt, guest.vif.mac) == places)


async def test_what_a_guest_opened_goes_on_while_its_port_is_wired_at_two_hosts(hosts: Hosts) -> None:
    """The destination must not filter what is for the source, whose connections it does not know."""
    one, two, _ = hosts.all
    network = await hosts.cloud.network()
    closed = await group(hosts.cloud, "closed")
    guest = await hosts.boot(network, one, security_groups=(closed,))
    open_ = await group(hosts.cloud, "open", rule("", protocol="tcp"))
    there = await hosts.boot(network, two, security_groups=(open_,))
    await there.run(serve_echo, 7)
    assert await guest.connects(there, 7)
    move = Move(hosts, guest, two)
    await move.prepare()
    assert await guest.connects(there, 7)
    await move.switch()
    assert await guest.connects(there, 7)
    await move.activate()
    assert await guest.connects(there, 7)
    await move.leave()
    await there.run(end_echo)


async def test_nothing_passes_the_filter_of_a_guest_by_way_of_its_second_binding(hosts: Hosts) -> None:
    """What waits in the tap when the guest arrives is read by it, so it has to be filtered, too."""
    one, two, three = hosts.all
    network = await hosts.cloud.network()
    closed = await group(hosts.cloud, "closed", rule("", protocol="icmp"))
    guest = await hosts.boot(network, one, security_groups=(closed,))
    near, far = await hosts.boot(network, two), await hosts.boot(network, three)
    move = Move(hosts, guest, two)
    await move.prepare()
    await two.run(listen_at_tap, guest.vif)
    await guest.run(listen)

    async def attack(mark: bytes) -> None:
        for attacker in (near, far):
            common = {"src_mac": attacker.vif.mac, "src": attacker.address, "sport": 9, "dport": 9}
            to = {**common, "dst_mac": guest.vif.mac, "dst": guest.address}
            await attacker.run(send, *(udp_frame(**to, data=mark) for _ in range(3)))
            everyone = {**common, "dst_mac": BROADCAST, "dst": "10.0.0.255"}
            await attacker.run(send, udp_frame(**everyone, data=b"end of " + mark))

    await two.run(forget_macs)
    await attack(b"unwanted")
    await eventually(lambda: has_heard(guest, b"end of unwanted"))
    waiting: list[bytes] = []

    async def told(mark: bytes) -> bool:
        waiting.extend(await two.run(heard_at_tap, guest.vif))
        return any(mark in frame for frame in waiting)

    await eventually(lambda: told(b"end of unwanted"))
    assert not any(b"unwanted" in frame and b"end of" not in frame for frame in waiting)
    frames: list[bytes] = await guest.run(heard)
    assert not any(b"unwanted" in frame and b"end of" not in frame for frame in frames)
    await two.run(leave_tap, guest.vif)
    await move.switch()
    await guest.run(listen)
    assert await near.pings(guest) and await far.pings(guest)  # it runs there, and nobody was told
    await attack(b"not wanted")
    await eventually(lambda: has_heard(guest, b"end of not wanted"))
    frames = await guest.run(heard)
    assert not any(b"not wanted" in frame and b"end of" not in frame for frame in frames)
    await move.activate()
    await move.leave()


async def test_a_move_that_is_given_up_leaves_nothing_at_the_destination(hosts: Hosts) -> None:
    one, two, _ = hosts.all
    network = await hosts.cloud.network()
    guest, near = await hosts.boot(network, one), await hosts.boot(network, one)
    move = Move(hosts, guest, two)
    await move.prepare()
    await have_tunnels((one, {two.local_ip: [1]}), (two, {one.local_ip: [1]}))
    await two.run(unplug, guest.vif)
    await hosts.cloud.service.remove_bindings(guest.instance, "host2")
    await have_tunnels((one, {}), (two, {}))
    assert await near.pings(guest)


async def test_an_agent_that_starts_in_the_middle_of_a_move_finishes_it(hosts: Hosts) -> None:
    one, two, three = hosts.all
    network = await hosts.cloud.network()
    guest, near, far = [await hosts.boot(network, host) for host in (one, one, three)]
    move = Move(hosts, guest, two)
    await move.prepare()
    await two.run(stop_agent)
    await move.switch()
    await move.activate()
    assert await far.pings(guest) and await near.pings(guest)
    hosts.cloud.events.clear()
    await two.run(start_agent)
    await eventually(lambda: hosts.heard(guest.vif) or _is_up(hosts, guest))
    await move.leave()
    assert await far.pings(guest) and await near.pings(guest)


async def _is_up(hosts: Hosts, guest: FarGuest) -> bool:
    port = await hosts.database.read(lambda tx: ports.port(tx, guest.vif.port_id))
    return port is not None and port.status == "ACTIVE"
