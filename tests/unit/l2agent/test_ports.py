"""The order in which ports are wired, with a switch that fails anywhere, before or after it has obeyed."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kilonova.errors import HostFault, Invalid, KilonovaError, NotFound, TryAgain, Unreachable
from kilonova.l2agent.ports import LocalPorts
from kilonova.l2agent.switch import DEAD_VLAN, SwitchPort
from kilonova.model.wiring import NetworkDetails, PortDetails

NAMES = ("a", "b", "c")


def details(name: str, **more: object) -> PortDetails:
    number = NAMES.index(name) + 1
    found = PortDetails(
        port_id=name,
        network_id="net",
        vlan=10,
        mac=f"fa:16:3e:00:00:{number:02x}",
        addresses=(f"10.0.0.{number}",),
    )
    return msgspec.structs.replace(found, **more)


def plugged(name: str, ofport: int | None = None) -> SwitchPort:
    """As os-vif makes it."""
    return SwitchPort(
        row=name,
        name=f"tap{name}",
        type="",
        ofport=ofport or NAMES.index(name) + 1,
        iface_id=name,
        owner=None,
        network_id=None,
        zone=None,
        tag=DEAD_VLAN,
        vlan_mode="trunk",
        trunks=(DEAD_VLAN,),
    )


class World:
    """Switch, flow table, networks and network service in one; checks the promises at every step.

    ``luck`` says of each call that changes something whether it fails, before or after its effect.
    """

    def __init__(self, luck: Iterable[str] = ()) -> None:
        self.luck = iter(luck)
        self.rows: dict[str, SwitchPort] = {}
        self.flows: dict[int, list[str]] = {}  # by zone
        self.confirmed: dict[str, SwitchPort] = {}  # the rows that the switch has taken up
        self.known: dict[str, PortDetails] = {}
        self.news: list[tuple[str, str]] = []
        self.leases: set[str] = set()
        self.flushed: list[int] = []
        self.sent: list[tuple[str, str]] = []
        self.bad_network: KilonovaError | None = None
        self.restart()

    def restart(self) -> None:
        """A new agent, which knows nothing."""
        self.tunnels = False
        self.agent = LocalPorts(self, self, self, self, "here", self.reach_peers)  # type: ignore[arg-type]

    def _fate(self, *kinds: str) -> str:
        fate = next(self.luck, "")
        return fate if fate != "unplug" or fate in kinds else ""

    # the switch

    def guest_ports(self) -> dict[str, SwitchPort]:
        return {port.iface_id: port for port in self.rows.values() if port.iface_id}

    def ports(self) -> dict[str, SwitchPort]:
        return {port.name: port for port in self.rows.values()}

    async def wire(self, ports: list[tuple[SwitchPort, int, int]]) -> None:
        fate = self._fate()
        if fate == "before":
            raise Unreachable("no database")
        for port, vlan, zone in ports:
            if port.row not in self.rows:
                continue  # the database changes what it finds
            assert self.flows.get(zone), f"{port.name} gets its VLAN without filters"
            assert port.iface_id in self.leases, f"{port.name} gets its VLAN without a lease"
            assert self.tunnels, f"{port.name} gets its VLAN before the network's tunnels"
            assert vlan == self.known[port.iface_id or ""].vlan
            self.rows[port.row] = msgspec.structs.replace(
                port, tag=vlan, vlan_mode="access", trunks=(), zone=zone
            )
        if fate == "after":
            raise Unreachable("done, but the answer was lost")

    async def kill(self, ports: list[SwitchPort]) -> None:
        fate = self._fate()
        if fate == "before":
            raise Unreachable("no database")
        for port in ports:
            dead = {"tag": DEAD_VLAN, "vlan_mode": "trunk", "trunks": (DEAD_VLAN,)}
            self.rows[port.row] = msgspec.structs.replace(self.rows[port.row], **dead)
        if fate == "after":
            raise TryAgain("the switch did not take it up")
        await self.applied()

    async def applied(self) -> None:
        if self._fate():
            raise TryAgain("the switch hangs")
        self.confirmed = dict(self.rows)

    async def remove_port(self, name: str) -> None:
        self.rows = {row: port for row, port in self.rows.items() if port.name != name}

    # the flow table

    async def change(self, lines: list[str]) -> None:
        if not lines:
            return
        fate = self._fate("unplug")
        if fate == "before":
            raise TryAgain("ovs-ofctl hangs")
        for line in lines:
            verb, _, rest = line.partition(" ")
            zone = int(rest.split("cookie=")[1].split("/")[0].split(",")[0], 16) & 0xFFFF
            if verb == "delete":
                live = [port for port in self.rows.values() if port.zone == zone and port.is_access(10)]
                self.flows.pop(zone, None)
                replaced = any(each.startswith("add") and f"{zone:#x}"[2:] in each for each in lines)
                assert replaced or not live, "a live port loses its filters"
            else:
                self.flows.setdefault(zone, []).append(rest)
        if fate == "after":
            raise TryAgain("done, but ovs-ofctl hangs")
        if fate == "unplug":  # in the middle of the wiring, when the agent does not yet count them as its own
            self.rows = {row: port for row, port in self.rows.items() if not port.is_dead}

    async def forget_connections(self, zone: int) -> None:
        if self._fate():
            raise HostFault("ovs-ofctl failed")
        self.flushed.append(zone)

    async def send_from(self, ofport: int, frame: bytes) -> None:
        if self._fate():
            raise HostFault("ovs-ofctl failed")
        (port,) = [port for port in self.rows.values() if port.ofport == ofport]
        assert self.confirmed.get(port.row) == port and port.is_access(10)
        self.sent.append((port.name, frame[6:12].hex(":")))

    # networks

    async def converge(
        self, network_ids: Iterable[str], ports: Collection[PortDetails]
    ) -> dict[str, KilonovaError]:
        if not set(network_ids):
            return {}
        if self.bad_network or self._fate():
            return {"net": self.bad_network or HostFault("dnsmasq does not start")}
        self.leases = {port.port_id for port in ports}
        return {}

    async def reach_peers(self) -> None:
        if self._fate():
            raise TryAgain("the switch hangs")
        self.tunnels = True

    # the network service

    async def port(self, port_id: str, host: str) -> PortDetails | None:
        assert host == "here"
        if self._fate():
            raise Unreachable("no network service")
        return self.known.get(port_id)

    async def network(self, network_id: str) -> NetworkDetails | None:
        raise AssertionError("asked by the networks only")

    async def tell_peers(self, network_id: str, host: str) -> None:
        raise AssertionError("there are no tunnels")

    async def port_up(self, port_id: str, host: str) -> None:
        port = self.guest_ports()[port_id]
        assert self.confirmed.get(port.row) == port, "told before the switch has confirmed"
        assert port.is_access(10) and port.zone is not None and self.flows[port.zone]
        await self._tell("up", port_id)

    async def port_down(self, port_id: str, host: str) -> None:
        port = self.guest_ports().get(port_id)
        assert port is None or port.is_dead
        await self._tell("down", port_id)

    async def _tell(self, kind: str, port_id: str) -> None:
        if self._fate():
            raise Unreachable("no network service")
        self.news.append((kind, port_id))

    async def look(self, *names: str) -> dict[str, KilonovaError]:
        return await self.agent.converge(names)

    async def until_done(self, *names: str) -> None:
        """As the agent: what failed comes again."""
        left = set(names)
        for _ in range(200):
            if not left:
                return
            try:
                left = set(await self.agent.converge(left))
            except KilonovaError:
                continue
        raise AssertionError(f"{left} never done")


FATES = st.lists(st.sampled_from(["", "", "before", "after", "unplug"]), max_size=40)
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["plug", "unplug", "bind", "unbind", "rules", "off", "on", "replug"]),
        st.sampled_from(NAMES),
    ),
    min_size=1,
    max_size=12,
)


def happens(here: World, verb: str, name: str) -> None:
    if verb == "plug":
        here.rows.setdefault(name, plugged(name))
    elif verb == "unplug":
        here.rows.pop(name, None)
    elif verb == "replug":
        here.rows[name] = plugged(name, ofport=50 + NAMES.index(name))
    elif verb == "bind":
        here.known[name] = details(name)
    elif verb == "unbind":
        here.known.pop(name, None)
    elif name in here.known:
        changes: dict[str, dict[str, object]] = {
            "rules": {"addresses": (f"10.0.1.{NAMES.index(name) + 1}",)},
            "off": {"admin_state_up": False},
            "on": {"admin_state_up": True},
        }
        here.known[name] = msgspec.structs.replace(here.known[name], **changes[verb])


@settings(max_examples=300)
@given(STEPS, FATES)
async def test_the_promises_hold_whatever_fails_and_all_is_right_in_the_end(
    steps: list[tuple[str, str]], luck: list[str]
) -> None:
    here = World(luck)
    for verb, name in steps:
        happens(here, verb, name)
        await here.until_done(name)
    seen = here.guest_ports()
    told: dict[str, str] = {}
    for kind, name in here.news:
        told[name] = kind
    for name in NAMES:
        wanted = name in seen and name in here.known and here.known[name].admin_state_up
        assert (name in seen and seen[name].is_access(10)) == wanted
        assert told.get(name, "down") == ("up" if wanted else "down")
        if wanted:
            flows = here.flows[seen[name].zone or 0]
            assert any(f"in_port={seen[name].ofport}," in line for line in flows)
            assert any(here.known[name].addresses[0] in line for line in flows)
    assert len(here.flows) == sum(port.is_access(10) for port in seen.values())


async def test_an_unconfirmed_wiring_is_asked_for_again_before_it_is_told() -> None:
    """The database has the VLAN, and the switch has not said so: the second try must not take it for done."""
    works = [""] * 6  # service, lease, tunnels, connections, flows, VLAN; then comes the confirmation
    here = World([*works, "fails", "fails"])
    here.rows["a"], here.known["a"] = plugged("a"), details("a")
    assert isinstance((await here.look("a"))["a"], TryAgain)
    assert here.rows["a"].is_access(10) and here.confirmed == {} and here.news == []
    assert await here.look("a") == {}
    assert here.news == [("up", "a")]


async def test_a_guest_that_arrives_is_announced_once() -> None:
    here = World()
    here.rows["a"], here.known["a"] = plugged("a"), details("a", moving=True, active=False)
    await here.until_done("a")
    assert here.sent == [] and here.news == [("up", "a")]
    here.known["a"] = details("a", moving=True)
    await here.until_done("a")
    said = [("tapa", "fa:16:3e:00:00:01")]
    assert here.sent == said
    here.known["a"] = details("a")
    await here.until_done("a")
    assert here.sent == said and here.news == [("up", "a")]


async def test_a_guest_that_could_not_be_announced_is_announced_later() -> None:
    here = World()
    here.rows["a"], here.known["a"] = plugged("a"), details("a", moving=True, active=False)
    await here.until_done("a")
    here.known["a"] = details("a", moving=True)
    here.luck = iter(["", "", "", "fails", "fails"])  # service, tunnels, flows; then alone once more
    assert set(await here.look("a")) == {"a"}
    await here.until_done("a")
    assert here.sent == [("tapa", "fa:16:3e:00:00:01")]


async def test_a_guest_that_was_here_all_the_time_is_not_announced() -> None:
    here = World()
    await here.until_done("b")
    here.rows["a"], here.known["a"] = plugged("a"), details("a")
    await here.until_done("a")
    here.restart()
    await here.until_done("a")
    assert here.sent == []


@pytest.mark.parametrize("fates", [["fails"], ["", "", "fails"], ["", "", "", "", *["before"] * 4]])
async def test_a_guest_that_came_before_its_port_could_be_wired_is_announced(fates: list[str]) -> None:
    """It may have come live, and say nothing by itself: the switches of others know it elsewhere."""
    here = World()
    await here.until_done("b")
    here.rows["a"], here.known["a"] = plugged("a"), details("a")
    here.luck = iter(fates)
    with contextlib.suppress(TryAgain):
        await here.look("a")
    assert here.sent == [] and here.rows["a"].is_dead
    await here.until_done("a")
    said = [("tapa", "fa:16:3e:00:00:01")]
    assert here.sent == said
    await here.until_done("a")
    assert here.sent == said


async def test_a_guest_that_came_while_the_agent_was_away_is_announced() -> None:
    here = World()
    here.rows["a"], here.known["a"] = plugged("a"), details("a")
    here.rows["b"], here.known["b"] = plugged("b"), details("b", moving=True, active=False)
    await here.until_done("a", "b")
    assert here.sent == [("tapa", "fa:16:3e:00:00:01")]


async def test_who_has_not_heard_that_a_port_is_wired_is_told_again() -> None:
    """Its binding may be another than the one of which it was told."""
    here = World()
    here.rows["a"], here.known["a"] = plugged("a"), details("a")
    await here.until_done("a")
    await here.until_done("a")
    assert here.news == [("up", "a")]
    here.known["a"] = details("a", up=False)
    await here.until_done("a")
    assert here.news == 2 * [("up", "a")]


async def test_a_port_that_goes_while_it_is_wired_is_not_told_to_be_up() -> None:
    here = World(["", "", "", "", "unplug"])  # when its flows are put in
    here.rows["a"], here.known["a"] = plugged("a"), details("a")
    assert isinstance((await here.look("a"))["a"], TryAgain)
    assert here.news == []
    assert await here.look("a") == {}
    assert here.news == [] and here.flows == {} and here.agent.details() == []


async def test_a_port_that_makes_no_sense_is_cut_and_the_others_are_wired() -> None:
    here = World()
    for name in NAMES:
        here.rows[name], here.known[name] = plugged(name), details(name)
    await here.until_done(*NAMES)
    here.known["b"] = details("b", addresses=("nonsense",))
    failed = await here.look(*NAMES)
    assert list(failed) == ["b"] and isinstance(failed["b"], Invalid)
    assert here.rows["b"].is_dead and here.rows["a"].is_access(10)
    assert here.news[-1] == ("down", "b")


async def test_a_network_that_fails_keeps_its_ports_out() -> None:
    here = World()
    here.rows["a"], here.known["a"] = plugged("a"), details("a")
    here.bad_network = HostFault("no dnsmasq")
    assert await here.look("a") == {"a": here.bad_network}
    assert here.rows["a"].is_dead and here.flows == {}
    assert [port.port_id for port in here.agent.details()] == ["a"]  # its network is not to be removed
    here.bad_network = None
    assert await here.look("a") == {}
    assert here.news == [("up", "a")]


async def test_faults_of_the_service_are_those_of_one_port() -> None:
    here = World()
    here.rows["a"], here.rows["b"] = plugged("a"), plugged("b")
    here.known["a"], here.known["b"] = details("a"), details("b")
    ask = here.port

    async def broken(port_id: str, host: str) -> PortDetails | None:
        if port_id == "a":
            raise ZeroDivisionError("a fault in the service")
        return await ask(port_id, host)

    here.port = broken  # type: ignore[method-assign]
    failed = await here.look("a", "b")
    assert list(failed) == ["a"] and "ZeroDivisionError" in str(failed["a"])
    assert here.news == [("up", "b")]


async def test_a_service_that_has_forgotten_the_port_needs_no_news() -> None:
    here = World()
    here.rows["a"], here.known["a"] = plugged("a"), details("a")
    await here.until_done("a")

    async def gone(port_id: str, host: str) -> None:
        raise NotFound("no such port")

    here.port_down = gone  # type: ignore[method-assign]
    del here.rows["a"]
    assert await here.look("a") == {}
    assert await here.look("a") == {}
    assert here.flows == {} and here.agent.ids() == set()


async def test_a_new_holder_of_a_zone_inherits_no_connections_and_an_old_one_keeps_its_own() -> None:
    here = World()
    here.rows["a"], here.known["a"] = plugged("a"), details("a")
    await here.until_done("a")
    assert here.flushed == [1]
    here.restart()
    await here.until_done("a")
    assert here.flushed == [1] and here.rows["a"].zone == 1
    here.rows["c"], here.known["c"] = plugged("c"), details("c")
    await here.until_done("c")
    here.rows["b"], here.known["b"] = plugged("b"), details("b")
    await here.until_done("b")
    assert here.flushed == [1, 2, 3]
    here.restart()
    await here.until_done(*NAMES)
    assert [here.rows[name].zone for name in NAMES] == [1, 3, 2] and here.flushed == [1, 2, 3]


async def test_rows_without_device_and_owner_go_when_they_were_seen_twice() -> None:
    here = World()
    lost = {"ofport": None}
    here.rows["a"] = msgspec.structs.replace(plugged("a"), **lost)
    here.rows["b"] = msgspec.structs.replace(plugged("b"), **lost)
    here.known["b"] = details("b")
    here.rows["c"] = plugged("c")
    await here.agent.remove_stale()
    assert sorted(here.rows) == ["a", "b", "c"]
    await here.agent.remove_stale()
    assert sorted(here.rows) == ["b", "c"]


@pytest.mark.parametrize("name", ["src/kilonova/l2agent", "src/kilonova/vif"])
def test_programs_are_run_without_a_shell(name: str) -> None:
    for path in Path(name).glob("*.py"):
        text = path.read_text()
        for word in ("shell=", "create_subprocess_shell", "os.system", "os.popen", "subprocess."):
            assert word not in text.replace("asyncio.subprocess.PIPE", ""), f"{path}: {word}"
