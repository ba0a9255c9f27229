"""The plugger, with a library and a database that do as they are told."""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import AsyncIterator, Callable

import msgspec
import pytest

from kilonova.errors import HostFault, TryAgain, Unreachable
from kilonova.model.port import Vif
from kilonova.vif.library import OsVif, OsVifSettings
from kilonova.vif.ovs import OsVifPlugger

DATABASE = "unix:/nonexistent/db.sock"


def new_vif(**more: object) -> Vif:
    vif = Vif(port_id=str(uuid.uuid4()), mac="fa:16:3e:00:00:01", network_id="net", network_name="net")
    return msgspec.structs.replace(vif, **more)


class Host:
    """What is plugged, and what goes wrong next: as os-vif and the switch's database would say it."""

    def __init__(self) -> None:
        self.rows: set[str] = set()
        self.calls: list[tuple[str, str]] = []
        self.loaded: list[OsVifSettings] = []
        self.wrong: Exception | None = None  # of the next call of the library
        self.half = False  # whether it has done a part before it went wrong
        self.bridges = {"br-int"}
        self.isolated: list[tuple[str, int]] = []  # port, and how many calls of the library were before
        self.deaf = False  # whether the library does nothing and says nothing of it
        self.gate = threading.Event()
        self.gate.set()
        self.silent: Unreachable | None = None
        self.lookers = 0
        self.down: set[str] = set()  # devices that are not up
        self.refused = ""  # why the switch does not take devices

    # the library

    def load(self, settings: OsVifSettings) -> OsVif:
        self.loaded.append(settings)
        return self  # type: ignore[return-value]

    def plug(self, vif: Vif, instance_uuid: str, instance_name: str) -> None:
        self._call("plug", vif, lambda: self.rows.add(vif.port_id))

    def unplug(self, vif: Vif, instance_uuid: str, instance_name: str) -> None:
        self._call("unplug", vif, lambda: self.rows.discard(vif.port_id))

    def _call(self, verb: str, vif: Vif, effect: Callable[[], None]) -> None:
        self.calls.append((verb, vif.port_id))
        self.gate.wait()
        wrong, self.wrong = self.wrong, None
        if not self.deaf and (wrong is None or self.half):
            effect()
        if wrong is not None:
            raise wrong

    # the database

    async def check_switch(self, bridge: str) -> None:
        assert bridge in self.bridges
        self.lookers += 1
        assert self.lookers == 1, "a switch accepts few connections at a time"
        await asyncio.sleep(0.001)
        self.lookers -= 1
        if self.silent:
            raise self.silent

    async def has_port(self, vif: Vif) -> bool:
        if self.silent:
            raise self.silent
        return vif.port_id in self.rows

    async def isolate_idle(self, vif: Vif) -> None:
        self.isolated.append((vif.port_id, len(self.calls)))

    async def device_is_taken(self, name: str) -> None:
        if self.refused:
            raise HostFault(self.refused)

    # devices

    def is_up(self, name: str) -> bool:
        return name not in self.down

    async def set_up(self, name: str) -> None:
        self.down.discard(name)


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    host = Host()
    monkeypatch.setattr("kilonova.vif.ovs.link", host)
    return host


@pytest.fixture
async def plugger(host: Host) -> AsyncIterator[OsVifPlugger]:
    plugger = new_plugger(host)
    yield plugger
    host.gate.set()
    await plugger.close()


def new_plugger(host: Host, timeout: float = 30) -> OsVifPlugger:
    plugger = OsVifPlugger(DATABASE, datapath_type="netdev", timeout=timeout, load=host.load)
    plugger._database = host  # type: ignore[assignment]
    return plugger


async def test_the_library_is_loaded_once_with_what_it_has_to_know(host: Host, plugger: OsVifPlugger) -> None:
    assert host.loaded == []
    for vif in (new_vif(), new_vif()):
        await plugger.plug(vif, "i", "i")
    assert host.loaded == [
        OsVifSettings(
            ovsdb_connection=DATABASE, datapath_type="netdev", mtu=1500, timeout=20, create_tap=True
        )
    ]


async def test_many_at_once_are_plugged_one_after_the_other(host: Host, plugger: OsVifPlugger) -> None:
    vifs = [new_vif() for _ in range(50)]
    await asyncio.gather(*(plugger.plug(vif, "i", "i") for vif in vifs))
    assert host.rows == {vif.port_id for vif in vifs}
    await asyncio.gather(*(plugger.unplug(vif, "i", "i") for vif in vifs))
    assert host.rows == set()


@pytest.mark.parametrize("kind", ["unbound", "bridge", "vhostuser", ""])
async def test_what_is_not_for_this_switch_is_refused(host: Host, plugger: OsVifPlugger, kind: str) -> None:
    for verb in (plugger.plug, plugger.unplug):
        with pytest.raises(HostFault, match=f"bound as '{kind}'"):
            await verb(new_vif(vif_type=kind), "i", "i")
    assert host.calls == []


async def test_a_silent_switch_is_a_fault_before_anything_is_begun(host: Host, plugger: OsVifPlugger) -> None:
    host.silent = Unreachable("The switch does not answer.")
    vif = new_vif()
    with pytest.raises(HostFault, match=r"cannot be plugged into br-int: The switch does not answer\."):
        await plugger.plug(vif, "i", "i")
    with pytest.raises(TryAgain, match=r"cannot be unplugged from br-int: The switch does not answer\."):
        await plugger.unplug(vif, "i", "i")
    assert host.calls == []


async def test_a_new_port_that_fails_by_half_is_taken_back(host: Host, plugger: OsVifPlugger) -> None:
    vif = new_vif()
    host.wrong, host.half = RuntimeError("no tap"), True
    with pytest.raises(HostFault, match="RuntimeError: no tap"):
        await plugger.plug(vif, "i", "i")
    assert host.rows == set()
    assert host.calls == [("plug", vif.port_id), ("unplug", vif.port_id)]


async def test_a_port_that_was_there_is_not_taken_from_its_guest(host: Host, plugger: OsVifPlugger) -> None:
    vif = new_vif()
    await plugger.plug(vif, "i", "i")
    host.wrong = RuntimeError("not now")
    with pytest.raises(HostFault, match="not now"):
        await plugger.plug(vif, "i", "i")
    assert host.rows == {vif.port_id}


async def test_silence_of_the_library_is_not_taken_for_success(host: Host, plugger: OsVifPlugger) -> None:
    vif = new_vif()
    host.deaf = True
    with pytest.raises(HostFault, match="Open vSwitch does not have the port"):
        await plugger.plug(vif, "i", "i")
    await plugger.plug(new_vif(delegate_create=False), "i", "i")  # of this one only the bridge is made
    host.rows.add(vif.port_id)
    with pytest.raises(TryAgain, match="Open vSwitch still has the port"):
        await plugger.unplug(vif, "i", "i")
    hybrid = new_vif(delegate_create=False, details={"ovs_hybrid_plug": True})
    with pytest.raises(HostFault, match="Open vSwitch does not have the port"):
        await plugger.plug(hybrid, "i", "i")


async def test_a_tap_that_the_switch_has_set_down_is_set_up(host: Host, plugger: OsVifPlugger) -> None:
    vif, hybrid = new_vif(), new_vif(details={"ovs_hybrid_plug": True})
    host.down = {vif.devname, hybrid.devname}
    await plugger.plug(vif, "i", "i")
    await plugger.plug(hybrid, "i", "i")  # which has no tap of os-vif's
    assert host.down == {hybrid.devname}


async def test_a_device_that_the_switch_does_not_take_is_a_fault_and_taken_back(
    host: Host, plugger: OsVifPlugger
) -> None:
    host.refused = "Open vSwitch did not take the device: no buffers."
    with pytest.raises(HostFault, match=r"cannot be plugged into br-int: Open vSwitch .*no buffers"):
        await plugger.plug(new_vif(), "i", "i")
    assert host.rows == set()
    libvirts = OsVifPlugger(DATABASE, create_tap=False, load=host.load)  # the hypervisor makes the tap later
    libvirts._database = host  # type: ignore[assignment]
    await libvirts.plug(new_vif(), "i", "i")
    await libvirts.close()


async def test_a_plug_that_comes_too_late_leaves_nothing(host: Host) -> None:
    plugger, vif = new_plugger(host, timeout=0.2), new_vif()
    host.gate.clear()
    with pytest.raises(HostFault, match=r"was not plugged into br-int within 0\.2 seconds"):
        await plugger.plug(vif, "i", "i")
    host.gate.set()
    async with asyncio.timeout(30):
        while ("unplug", vif.port_id) not in host.calls or host.rows:
            await asyncio.sleep(0.01)
    assert len(host.loaded) == 1
    other = new_vif()
    await plugger.plug(other, "i", "i")
    assert len(host.loaded) == 2 and host.rows == {other.port_id}  # by a new connection
    await plugger.close()


async def test_a_plug_that_is_late_is_kept_if_it_is_wanted_again(host: Host) -> None:
    plugger, vif = new_plugger(host, timeout=0.2), new_vif()
    host.gate.clear()
    with pytest.raises(HostFault):
        await plugger.plug(vif, "i", "i")
    again = asyncio.ensure_future(plugger.plug(vif, "i", "i"))
    async with asyncio.timeout(30):
        while host.calls.count(("plug", vif.port_id)) < 2:
            await asyncio.sleep(0.001)
    host.gate.set()
    await again
    await plugger.close()
    assert host.rows == {vif.port_id}


@pytest.mark.capability("OVS-11")
async def test_a_port_that_is_there_is_looked_at_before_it_gets_a_device(
    host: Host, plugger: OsVifPlugger
) -> None:
    """It may be one of before the host was booted, and still in its network."""
    new, known, trunk = new_vif(), new_vif(), new_vif(bridge="tbr-1")
    host.rows |= {known.port_id, trunk.port_id}
    host.bridges.add("tbr-1")
    for vif in (new, known, trunk):
        await plugger.plug(vif, "i", "i")
    assert host.isolated == [(known.port_id, 1)]  # only the plug of the new one was before
    assert [port for _, port in host.calls] == [new.port_id, known.port_id, trunk.port_id]


async def test_an_unplug_that_hangs_is_to_be_tried_again(host: Host) -> None:
    plugger, vif = new_plugger(host, timeout=0.2), new_vif()
    await plugger.plug(vif, "i", "i")
    host.gate.clear()
    with pytest.raises(TryAgain, match=r"was not unplugged from br-int within 0\.2 seconds"):
        await plugger.unplug(vif, "i", "i")
    host.gate.set()
    await plugger.unplug(vif, "i", "i")
    assert host.rows == set()
    await plugger.close()


async def test_a_caller_that_goes_away_leaves_the_port_and_the_thread(
    host: Host, plugger: OsVifPlugger
) -> None:
    vif, other = new_vif(), new_vif()
    host.gate.clear()
    task = asyncio.ensure_future(plugger.plug(vif, "i", "i"))
    async with asyncio.timeout(30):
        while not host.calls:
            await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    host.gate.set()
    await plugger.plug(other, "i", "i")
    assert len(host.loaded) == 2  # two threads never share the library
    await plugger.plug(vif, "i", "i")  # whoever repeats it finds it
    assert host.rows == {vif.port_id, other.port_id}
