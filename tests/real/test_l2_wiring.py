"""Ports are wired in an order that never opens one too early, and networks are apart."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import re
from collections.abc import AsyncIterator, Callable

import msgspec
import pytest

from kilonova.clock import SystemClock
from kilonova.l2agent import flows, namespace
from kilonova.l2agent.ovsdb import Ovsdb
from kilonova.l2agent.switch import TABLES, Switch
from kilonova.vif.null import NullPlugger
from tests.real.dhcp_client import ask_dhcp
from tests.real.frames import BROADCAST, advertisement_frame, arp_frame, mac_bytes, udp_frame
from tests.real.guests import Guest, Wiretap, eventually
from tests.real.l2lab import BRIDGE, DATABASE, INSTANCE, Lab, dump, settle
from tests.real.memory_cloud import PING_IN

pytestmark = pytest.mark.real

STRANGE_MAC = "fa:16:3e:99:99:99"


def shouts(guest: Guest, mark: str, **more: object) -> bytes:
    """A broadcast of the guest with a mark in it."""
    values = {
        "src_mac": guest.vif.mac,
        "dst_mac": BROADCAST,
        "src": guest.address or "10.0.0.66",
        "dst": "255.255.255.255",
        "sport": 9,
        "dport": 9,
        "data": mark.encode(),
    }
    return udp_frame(**{**values, **more})  # type: ignore[arg-type]


def everything_a_guest_can_try(guest: Guest, other: Guest) -> list[bytes]:
    """Frames of every kind, with and without tags, each with the guest's MAC in it."""
    mac, address = guest.vif.mac, guest.address or ""
    ends = {"src_mac": mac, "sender_mac": mac, "sender": address, "target": other.address or ""}
    frames = [arp_frame(**ends, vlan=vlan) for vlan in (0, 10, 11, 4095)]
    frames += [shouts(guest, "to all", vlan=vlan) for vlan in (0, 10, 11, 4095)]
    frames += [
        shouts(guest, "to one", dst_mac=other.vif.mac, dst=other.address, vlan=vlan) for vlan in (0, 10, 4095)
    ]
    local = str(flows.link_local(mac).network_address)
    frames.append(advertisement_frame(src_mac=mac, src=local, target=local))
    priority_tag = b"\x81\x00\x00\x00"
    plain = shouts(guest, "to all")
    return [*frames, plain[:12] + priority_tag + plain[12:], plain[:12] + b"\x88\xa8\x00\x0a" + plain[12:]]


@pytest.mark.capability("OVS-7", "OVS-11")
async def test_an_unwired_guest_reaches_nobody_and_nobody_reaches_it(lab: Lab) -> None:
    network = lab.cloud.network(vlan=10)
    wired = [await lab.boot(network, f"10.0.0.1{number}") for number in (1, 2)]
    vifs = [lab.cloud.port(network, f"10.0.0.2{number}") for number in (1, 2)]
    bind = [lab.cloud.withdraw(vif) for vif in vifs]
    unwired = [await lab.plug(vif, f"10.0.0.2{number}") for number, vif in enumerate(vifs, 1)]
    async with contextlib.AsyncExitStack() as stack:
        wires = [await stack.enter_async_context(guest.tap_wire()) for guest in (*wired, *unwired)]
        for one, other in itertools.permutations((*unwired, wired[0]), 2):
            await one.send(*everything_a_guest_can_try(one, other))
        assert not await unwired[0].pings("10.0.0.22", 0.4)
        assert not await unwired[0].pings("10.0.0.11", 0.4)
        assert not await wired[0].pings("10.0.0.21", 0.4)
        assert await ask_dhcp(unwired[0], 0.5) is None
        assert await wired[0].pings("10.0.0.12")  # whoever is wired goes on; all frames above have passed
        for guest, wire in zip((*wired, *unwired), wires, strict=True):
            assert not {each.vif.mac for each in unwired} & wire.senders(), guest.address
            if guest in unwired:
                assert wire.frames == [], guest.address
    assert all(lab.port(guest).is_dead for guest in unwired)
    for again in bind:
        again()
    await lab.cloud.up(*vifs)
    assert await unwired[0].pings("10.0.0.22")  # it was isolation, not broken guests
    assert await wired[0].pings("10.0.0.21")


@contextlib.asynccontextmanager
async def hammering(guest: Guest, frames: Callable[[int], list[bytes]]) -> AsyncIterator[Callable[[], int]]:
    """The guest sends without end; gives how many rounds it has sent."""
    rounds = 0

    async def hammer() -> None:
        nonlocal rounds
        while True:
            await guest.send(*frames(rounds))
            rounds += 1
            await asyncio.sleep(0.004)

    task = asyncio.create_task(hammer())
    try:
        yield lambda: rounds
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def truths_and_lies(guest: Guest, number: int) -> list[bytes]:
    return [
        shouts(guest, f"honest<{number}>"),
        shouts(guest, f"liar<{number}>", src_mac=STRANGE_MAC),
        shouts(guest, f"liar<{number}>", src="10.0.0.99"),
        *(shouts(guest, f"tagged<{number}>", vlan=vlan) for vlan in (10, 11, 4095)),
    ]


def wanted_and_unwanted(peer: Guest, guest: Guest, number: int) -> list[bytes]:
    to_guest = {"dst_mac": guest.vif.mac, "dst": guest.address}
    return [shouts(peer, f"unwanted<{number}>", **to_guest), shouts(peer, f"hello<{number}>")]


class Rounds:
    """In which rounds of whom frames with a mark came; each frame is looked at once."""

    def __init__(self, wire: Wiretap) -> None:
        self._frames = wire.frames
        self._looked_at = 0
        self._seen: dict[bytes, set[int]] = {}

    def of(self, mark: bytes) -> set[int]:
        for frame in self._frames[self._looked_at :]:
            for found in re.finditer(rb"(honest|liar|tagged|unwanted|hello|secret)<(\d+)>", frame):
                self._seen.setdefault(found[1], set()).add(int(found[2]))
        self._looked_at = len(self._frames)
        return self._seen.get(mark, set())


@pytest.mark.capability("OVS-7", "OVS-11")
async def test_nothing_wrong_passes_at_any_moment_of_wiring(lab: Lab) -> None:
    """A guest and its neighbours send all the time, what they may and what they may not, while its port is
    wired, unwired and wired again; what the switch was told is looked at whenever the agent reports."""
    network, other = lab.cloud.network(vlan=10), lab.cloud.network(vlan=11)
    peer = await lab.boot(network, "10.0.0.12")
    spy = await lab.boot(other, "10.0.0.13")
    vif = lab.cloud.port(network, "10.0.0.11", (PING_IN,))
    bind = lab.cloud.withdraw(vif)
    guest = await lab.plug(vif, "10.0.0.11")
    leases: list[str] = []

    async def look(kind: str, port_id: str) -> None:
        if kind == "down":
            return
        assert lab.port(guest).is_access(10)
        flows_in = lab.flows_of(guest)
        details = lab.cloud.ports[port_id]
        assert len(flows_in) == len(flows.port_flows(details, lab.port(guest).ofport or 0, 1))
        settle()
        lease = await ask_dhcp(guest, every=60)  # asked once: the lease is there
        leases.append(lease.address if lease else "none")

    lab.cloud.on_news = look
    async with guest.tap_wire() as guests, peer.tap_wire() as peers, spy.tap_wire() as spies:
        at_guest, at_peer, at_spy = Rounds(guests), Rounds(peers), Rounds(spies)
        async with (
            hammering(guest, lambda number: truths_and_lies(guest, number)) as sent,
            hammering(peer, lambda number: wanted_and_unwanted(peer, guest, number)),
            hammering(spy, lambda number: [shouts(spy, f"secret<{number}>")]),
        ):
            bind()
            for _ in range(3):
                await lab.cloud.up(vif)
                begun = sent()
                await eventually(lambda begun=begun: max(at_peer.of(b"honest"), default=-1) > begun)  # type: ignore[misc]
                lab.cloud.change(vif, admin_state_up=False)
                await eventually(lambda: not lab.cloud.is_up[vif.port_id].is_set())
                assert lab.port(guest).is_dead
                settle()
                ended = sent() + 1
                await eventually(lambda ended=ended: sent() > ended + 10)  # type: ignore[misc]
                begun = sent()
                lab.cloud.change(vif, admin_state_up=True)
                dead = set(range(ended, begun))
                assert not dead & at_peer.of(b"honest")
            await lab.cloud.up(vif)
        assert at_guest.of(b"hello")
        assert not at_guest.of(b"unwanted") | at_guest.of(b"secret")
        assert not at_peer.of(b"liar") | at_peer.of(b"tagged") | at_peer.of(b"secret")
        marks = (b"honest", b"liar", b"tagged", b"unwanted", b"hello")
        assert [mark for mark in marks if at_spy.of(mark)] == []
    assert leases == ["10.0.0.11"] * 4


async def test_the_filter_is_in_before_the_vlan_and_goes_after_it(lab: Lab) -> None:
    """What the switch has at each change of the tag, as a monitor of its database sees it."""
    network = lab.cloud.network(vlan=10)
    seen: list[tuple[int | None, bool]] = []
    vif = lab.cloud.port(network, "10.0.0.12")

    def note(names: set[str]) -> None:
        port = watcher.ports().get(vif.devname)
        if port is not None and port.zone is not None:
            seen.append((port.tag, bool(dump(flows.port_cookie(port.zone)))))

    ovsdb = Ovsdb(DATABASE, SystemClock())
    watcher = Switch(ovsdb, BRIDGE, note)
    await ovsdb.open(TABLES, watcher)
    await lab.plug(vif, "10.0.0.12")
    await lab.cloud.up(vif)
    lab.cloud.change(vif, admin_state_up=False)
    await eventually(lambda: ("down", vif.port_id) in lab.cloud.news)
    lab.cloud.change(vif, admin_state_up=True)
    await lab.cloud.up(vif)
    await ovsdb.close()
    assert (10, True) in seen
    assert (4095, True) in seen
    assert (10, False) not in seen


async def test_networks_with_the_same_addresses_are_apart(lab: Lab) -> None:
    one, two = lab.cloud.network(vlan=10), lab.cloud.network(vlan=11)
    here, peer = await lab.boot(one, "10.0.0.11"), await lab.boot(one, "10.0.0.12")
    there, lonely = await lab.boot(two, "10.0.0.11"), await lab.boot(two, "10.0.0.13")
    async with lonely.tap_wire() as wire:
        assert await here.pings("10.0.0.12")
        assert await peer.pings("10.0.0.11")
        assert not await here.pings("10.0.0.13", 0.4)
        await here.send(*everything_a_guest_can_try(here, lonely))
        assert await there.pings("10.0.0.13")
        assert not await there.pings("10.0.0.12", 0.4)
        assert await here.pings("10.0.0.2") and await lonely.pings("10.0.0.2")  # each its own DHCP server
        assert not wire.saw(mac_bytes(here.vif.mac))
    assert lab.agent.namespace(one) != lab.agent.namespace(two)


async def test_a_port_that_moves_to_another_network_leaves_the_first(lab: Lab) -> None:
    one, two = lab.cloud.network(vlan=10), lab.cloud.network(vlan=11)
    mover, old = await lab.boot(one, "10.0.0.11"), await lab.boot(one, "10.0.0.12")
    new = await lab.boot(two, "10.0.0.13")
    assert await mover.pings("10.0.0.12")
    lab.cloud.change(mover, network_id=two, vlan=11)
    await eventually(lambda: lab.port(mover).is_access(11))
    assert await mover.pings("10.0.0.13")
    assert not await old.pings("10.0.0.11", 0.4)
    assert await new.pings("10.0.0.11")


@pytest.mark.capability("OVS-8")
async def test_after_the_last_port_nothing_is_left(lab: Lab) -> None:
    network = lab.cloud.network(vlan=10)
    first, second = await lab.boot(network, "10.0.0.11"), await lab.boot(network, "10.0.0.12")
    space = lab.agent.namespace(network)
    assert space is not None and namespace.exists(space)
    zone = lab.port(first).zone
    assert zone is not None and lab.flows_of(first)
    hosts = next(lab.directory.glob("networks/*/hosts"))
    assert len(lab.dnsmasqs()) == 1

    await lab.unplug(first)
    await eventually(lambda: ("down", first.vif.port_id) in lab.cloud.news)
    await eventually(lambda: "10.0.0.11" not in hosts.read_text())
    assert dump(flows.port_cookie(zone)) == []
    assert await second.pings("10.0.0.2")
    await lab.plugger.unplug(first.vif, INSTANCE, "i")  # once more is no error

    await lab.unplug(second)
    await eventually(lambda: not namespace.exists(space))
    await eventually(lambda: set(lab.switch.ports()) == {BRIDGE})
    await eventually(lambda: lab.agent.namespace(network) is None)
    assert lab.dnsmasqs() == []
    assert list(lab.directory.glob("networks/*")) == []
    assert dump(flows.network_cookie(10)) == []


async def test_a_port_that_is_deleted_under_its_guest_is_dead(lab: Lab) -> None:
    network = lab.cloud.network(vlan=10)
    guest, other = await lab.boot(network, "10.0.0.11"), await lab.boot(network, "10.0.0.12")
    assert await other.pings("10.0.0.11")
    lab.cloud.withdraw(guest)
    await eventually(lambda: ("down", guest.vif.port_id) in lab.cloud.news)
    assert lab.port(guest).is_dead
    assert lab.flows_of(guest) == []
    async with other.tap_wire() as wire:
        await guest.send(*everything_a_guest_can_try(guest, other))
        assert not await other.pings("10.0.0.11", 0.4)
        assert not wire.saw(mac_bytes(guest.vif.mac))


async def test_one_port_that_makes_no_sense_holds_up_no_other(lab: Lab) -> None:
    network = lab.cloud.network(vlan=10)
    bad = lab.cloud.port(network, "10.0.0.66", addresses=("nonsense",))
    bad_guest = await lab.plug(bad, "10.0.0.66")
    good = await lab.boot(network, "10.0.0.11")
    assert await good.pings("10.0.0.2")
    assert lab.port(bad).is_dead
    await lab.restart_agent()  # nor does it keep what a former life left from being removed
    left = lab.cloud.network(vlan=12)
    gone = await lab.boot(left, "10.0.0.13")
    space = lab.agent.namespace(left) or ""
    await lab.agent.stop()
    await lab.unplug(gone)
    lab.agent = lab.new_agent()
    await lab.agent.start()
    await eventually(lambda: not namespace.exists(space))

    lab.cloud.change(bad, addresses=("10.0.0.66",))
    await lab.cloud.up(bad)
    assert await good.pings("10.0.0.66")
    lab.cloud.change(bad, addresses=("10.0.0.66", "nonsense"))  # and what was right may become wrong
    await eventually(lambda: lab.port(bad_guest).is_dead)
    assert await good.pings("10.0.0.2")


async def test_many_ports_at_once_are_all_wired(lab: Lab) -> None:
    network = lab.cloud.network(vlan=10)
    vifs = [lab.cloud.port(network, f"10.0.0.{number}") for number in range(30, 50)]
    await asyncio.gather(*(lab.plugger.plug(vif, INSTANCE, "i") for vif in vifs))
    await lab.cloud.up(*vifs)
    assert all(lab.port(vif).is_access(10) for vif in vifs)
    assert len({lab.port(vif).zone for vif in vifs}) == 20
    for vif in vifs:
        await lab.plugger.unplug(vif, INSTANCE, "i")


async def test_a_host_without_a_switch_says_at_once_that_a_port_is_plugged(lab: Lab) -> None:
    """The fake driver's plugger keeps the same promise without a switch."""
    heard: list[str] = []

    async def plugged(vif: object) -> None:
        heard.append(getattr(vif, "port_id", ""))

    plugger = NullPlugger(plugged)
    vif = lab.cloud.port(lab.cloud.network(vlan=10), "10.0.0.11")
    await plugger.plug(vif, INSTANCE, "i")
    assert heard == [vif.port_id] == list(plugger.plugged())
    await plugger.plug(msgspec.structs.replace(vif, mac=STRANGE_MAC), INSTANCE, "i")
    assert len(plugger.plugged()) == 1
    await plugger.unplug(vif, INSTANCE, "i")
    await plugger.unplug(vif, INSTANCE, "i")
    assert plugger.plugged() == {}
