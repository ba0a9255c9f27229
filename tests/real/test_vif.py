"""Ports on a real Open vSwitch, through os-vif."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from kilonova.clock import SystemClock
from kilonova.errors import HostFault, TryAgain
from kilonova.l2agent.ovsdb import Ovsdb
from kilonova.l2agent.switch import TABLES, Switch, SwitchPort
from kilonova.model.port import Vif
from kilonova.vif.library import OsVif
from kilonova.vif.ovs import OsVifPlugger
from tests.real.guests import Guest, eventually
from tests.real.l2lab import daemon_pid, kill_daemon, start_database, start_vswitchd

pytestmark = pytest.mark.real

DATABASE = "unix:/run/openvswitch/db.sock"
INSTANCE = "11111111-2222-4333-8444-555555555555"


@pytest.fixture
async def switch() -> AsyncIterator[Switch]:
    ovsdb = Ovsdb(DATABASE, SystemClock())
    switch = Switch(ovsdb, "br-int", lambda names: None)
    await ovsdb.open(TABLES, switch)
    await switch.ensure("netdev")
    yield switch
    await ovsdb.close()


@pytest.fixture
async def plugger() -> AsyncIterator[OsVifPlugger]:
    plugger = OsVifPlugger(DATABASE, datapath_type="netdev")
    yield plugger
    await plugger.close()


def new_vif(number: int = 1, **more: Any) -> Vif:
    vif = Vif(
        port_id=str(uuid.uuid4()),
        mac=f"fa:16:3e:00:01:{number:02x}",
        network_id=str(uuid.uuid4()),
        network_name="net",
        mtu=1442,
        details={"datapath_type": "netdev"},
    )
    return msgspec.structs.replace(vif, **more)


async def interface(switch: Switch, name: str) -> dict[str, Any]:
    columns = ["name", "external_ids", "type", "mtu", "error"]
    found = await switch.ovsdb.transact(
        {"op": "select", "table": "Interface", "where": [["name", "==", name]], "columns": columns}
    )
    return found[0]["rows"][0] if found[0]["rows"] else {}


def seen(switch: Switch, vif: Vif) -> SwitchPort:
    return switch.ports()[vif.devname]


async def shows(switch: Switch, vif: Vif) -> None:
    await eventually(lambda: vif.devname in switch.ports())


def link(name: str) -> str:
    done = subprocess.run(["ip", "-d", "link", "show", name], capture_output=True, text=True, check=False)
    return done.stdout


@pytest.mark.capability("OVS-1", "OVS-2", "OVS-6", "OVS-7", "OVS-8", "OVS-11", "OVS-12")
async def test_a_plugged_port_is_made_isolated_and_unplug_leaves_nothing(
    switch: Switch, plugger: OsVifPlugger
) -> None:
    vif = new_vif()
    begun = time.perf_counter()
    await plugger.plug(vif, INSTANCE, "instance-1")
    print(f"first plug, with the import of os-vif: {(time.perf_counter() - begun) * 1e3:.0f} ms")
    await shows(switch, vif)

    port = seen(switch, vif)
    assert port.iface_id == vif.port_id
    assert (port.tag, port.vlan_mode, port.trunks) == (4095, "trunk", (4095,))
    assert port.is_dead
    row = await interface(switch, vif.devname)
    assert dict(row["external_ids"][1]) == {
        "iface-id": vif.port_id,
        "iface-status": "active",
        "attached-mac": vif.mac,
        "vm-uuid": INSTANCE,
    }
    shown = link(vif.devname)
    assert "tun type tap" in shown and "mtu 1442" in shown and vif.mac in shown
    assert "multi_queue" not in shown
    assert switch.datapath_type == "netdev"

    await plugger.unplug(vif, INSTANCE, "instance-1")
    await eventually(lambda: vif.devname not in switch.ports())
    assert link(vif.devname) == ""


@pytest.mark.capability("OVS-11", "OVS-28")
async def test_plugging_again_does_not_isolate_a_wired_port(switch: Switch, plugger: OsVifPlugger) -> None:
    vif = new_vif()
    await plugger.plug(vif, INSTANCE, "i")
    await shows(switch, vif)
    await switch.wire([(seen(switch, vif), 7, 1)])
    await plugger.plug(vif, INSTANCE, "i")
    assert seen(switch, vif).is_access(7)
    await plugger.unplug(vif, INSTANCE, "i")
    await plugger.unplug(vif, INSTANCE, "i")  # what is not there is no error


@pytest.mark.capability("OVS-11")
async def test_a_port_of_before_the_host_was_booted_is_isolated_before_its_tap_is_there(
    switch: Switch, plugger: OsVifPlugger
) -> None:
    """The switch's database outlives a boot: the port is still in its VLAN, and its device is not there."""
    vif = new_vif()
    await plugger.plug(vif, INSTANCE, "i")
    await shows(switch, vif)
    await switch.wire([(seen(switch, vif), 7, 1)])
    await kill_daemon("ovs-vswitchd")
    subprocess.run(["ip", "link", "del", vif.devname], check=True)
    start_vswitchd()
    await eventually(lambda: seen(switch, vif).ofport is None)
    assert seen(switch, vif).is_access(7)
    history: list[SwitchPort] = []
    changed, switch._on_change = switch._on_change, lambda names: history.append(seen(switch, vif))
    await plugger.plug(vif, INSTANCE, "i")
    await eventually(lambda: seen(switch, vif).ofport is not None)
    switch._on_change = changed
    assert history and all(port.is_dead for port in history if port.ofport is not None)
    await plugger.unplug(vif, INSTANCE, "i")


@pytest.mark.capability("OVS-7", "OVS-11")
async def test_two_unwired_guests_reach_neither_each_other_nor_a_wired_one(
    switch: Switch, plugger: OsVifPlugger
) -> None:
    """The bridge forwards everything here (no flows of ours): isolation is the ports' own."""
    subprocess.run(["ovs-ofctl", "add-flow", "br-int", "priority=0,actions=NORMAL"], check=True)
    vifs = [new_vif(number) for number in (1, 2, 3)]
    guests = [Guest(vif, f"10.0.0.1{number}") for number, vif in enumerate(vifs)]
    try:
        for vif, guest in zip(vifs, guests, strict=True):
            await plugger.plug(vif, INSTANCE, "i")
            await guest.open()
        await shows(switch, vifs[2])
        await switch.wire([(seen(switch, vifs[2]), 7, 1)])
        await switch.applied()
        async with guests[1].tap_wire() as wire:
            assert not await guests[0].pings("10.0.0.11", 0.5)
            assert not await guests[0].pings("10.0.0.12", 0.5)
            assert not wire.saw(bytes.fromhex(vifs[0].mac.replace(":", "")))

        # and when both are wired they do: the test above has seen isolation, not a broken guest
        await switch.wire([(seen(switch, vif), 7, 1) for vif in vifs[:2]])
        await switch.applied()
        assert await guests[0].pings("10.0.0.11")
        assert await guests[0].pings("10.0.0.12")
    finally:
        for guest, vif in zip(guests, vifs, strict=True):
            await guest.close()
            await plugger.unplug(vif, INSTANCE, "i")


@pytest.mark.capability("OVS-12")
async def test_a_tap_with_several_queues(switch: Switch, plugger: OsVifPlugger) -> None:
    vif = new_vif(details={"datapath_type": "netdev", "multiqueue": True})
    await plugger.plug(vif, INSTANCE, "i")
    assert "multi_queue" in link(vif.devname)
    await plugger.unplug(vif, INSTANCE, "i")


@pytest.mark.capability("OVS-9")
async def test_a_network_without_mtu_gives_the_devices_own(switch: Switch, plugger: OsVifPlugger) -> None:
    vif = new_vif(mtu=0)
    await plugger.plug(vif, INSTANCE, "i")
    assert "mtu 1500" in link(vif.devname)
    await plugger.unplug(vif, INSTANCE, "i")


@pytest.mark.capability("OVS-11")
async def test_trunk_bridges_are_not_isolated(plugger: OsVifPlugger) -> None:
    """Their tags are the trunk's own; the bridge goes with its port."""
    vif = new_vif(bridge="tbr-12345678")
    await plugger.plug(vif, INSTANCE, "i")
    command = ["ovs-vsctl", "get", "port", vif.devname, "tag", "trunks"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True)
    assert shown.stdout.split() == ["[]", "[]"]
    await plugger.unplug(vif, INSTANCE, "i")
    assert subprocess.run(["ovs-vsctl", "br-exists", "tbr-12345678"], check=False).returncode == 2


@pytest.mark.capability("OVS-1", "OVS-2", "OVS-7")
async def test_without_delegation_the_hypervisor_makes_the_port(
    switch: Switch, plugger: OsVifPlugger
) -> None:
    vif = new_vif(delegate_create=False)
    await plugger.plug(vif, INSTANCE, "i")
    await switch.applied()
    assert vif.devname not in switch.ports()
    assert link(vif.devname) == ""
    assert switch.exists
    await plugger.unplug(vif, INSTANCE, "i")


@pytest.mark.capability("OVS-2", "OVS-6", "OVS-8")
async def test_hybrid_plug_has_a_bridge_between_and_isolates_its_end(
    switch: Switch, plugger: OsVifPlugger
) -> None:
    vif = new_vif(details={"datapath_type": "netdev", "ovs_hybrid_plug": True})
    short = vif.port_id[:11]
    await plugger.plug(vif, INSTANCE, "i")
    await eventually(lambda: f"qvo{short}" in switch.ports())
    port = switch.ports()[f"qvo{short}"]
    assert port.iface_id == vif.port_id
    assert port.is_dead
    assert "bridge" in link(f"qbr{short}") and f"master qbr{short}" in link(f"qvb{short}")
    assert vif.devname not in switch.ports()
    await plugger.unplug(vif, INSTANCE, "i")
    await eventually(lambda: f"qvo{short}" not in switch.ports())
    assert link(f"qbr{short}") == link(f"qvb{short}") == ""


async def test_a_bridge_that_is_not_there_is_made(switch: Switch, plugger: OsVifPlugger) -> None:
    vif = new_vif(bridge="br-other", details={})
    await plugger.plug(vif, INSTANCE, "i")
    kind = subprocess.run(
        ["ovs-vsctl", "get", "bridge", "br-other", "datapath_type"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert kind.stdout.strip() == "netdev"  # the constructor's, as the port named none
    await plugger.unplug(vif, INSTANCE, "i")
    subprocess.run(["ovs-vsctl", "del-br", "br-other"], check=True)


async def test_other_kinds_of_binding_are_refused(plugger: OsVifPlugger) -> None:
    with pytest.raises(HostFault, match="bound as 'unbound'"):
        await plugger.plug(new_vif(vif_type="unbound"), INSTANCE, "i")


async def test_no_switch_is_a_fault_of_the_host_that_says_why() -> None:
    plugger = OsVifPlugger("unix:/nonexistent/db.sock", datapath_type="netdev", timeout=6)
    with pytest.raises(HostFault, match=r"cannot be plugged into br-int: .*nonexistent"):
        await plugger.plug(new_vif(), INSTANCE, "i")
    with pytest.raises(TryAgain, match="cannot be unplugged"):
        await plugger.unplug(new_vif(), INSTANCE, "i")
    await plugger.close()


async def test_a_switch_that_hangs_holds_nobody_up_for_ever(switch: Switch) -> None:
    plugger = OsVifPlugger(DATABASE, datapath_type="netdev", timeout=1.5)
    vif = new_vif()
    for daemon, words in (
        ("ovsdb-server", r"did not answer in 1\.5 seconds"),
        ("ovs-vswitchd", r"said nothing within 1\.5 seconds"),
    ):
        os.kill(daemon_pid(daemon), signal.SIGSTOP)
        try:
            with pytest.raises(HostFault, match=f"cannot be plugged into br-int: .*{words}"):
                async with asyncio.timeout(30):
                    await plugger.plug(vif, INSTANCE, "i")
        finally:
            os.kill(daemon_pid(daemon), signal.SIGCONT)
    assert not has_port(vif) and link(vif.devname) == ""
    patient = OsVifPlugger(DATABASE, datapath_type="netdev", timeout=60)
    await patient.plug(vif, INSTANCE, "i")
    await shows(switch, vif)
    await patient.unplug(vif, INSTANCE, "i")
    await plugger.close()
    await patient.close()


def has_port(vif: Vif) -> bool:
    """Whether the database has it now, whatever a mirror of it says."""
    done = subprocess.run(["ovs-vsctl", "--no-wait", "list-ports", "br-int"], capture_output=True, text=True)
    return vif.devname in done.stdout.split()


@pytest.mark.capability("OVS-8")
async def test_a_database_that_dies_is_a_fault_and_not_a_success(
    switch: Switch, plugger: OsVifPlugger
) -> None:
    """os-vif itself returns as if all were well when it cannot remove a port."""
    plugged, new = new_vif(1), new_vif(2)
    await plugger.plug(plugged, INSTANCE, "i")
    await kill_daemon("ovsdb-server")
    with pytest.raises(HostFault, match="cannot be plugged into br-int: No connection to the switch's"):
        await plugger.plug(new, INSTANCE, "i")
    with pytest.raises(TryAgain, match="cannot be unplugged from br-int: No connection to the switch's"):
        await plugger.unplug(plugged, INSTANCE, "i")
    start_database()
    assert has_port(plugged) and link(plugged.devname)  # nothing was taken by half
    assert not has_port(new) and not link(new.devname)
    await plugger.unplug(plugged, INSTANCE, "i")
    assert not has_port(plugged) and not link(plugged.devname)
    await plugger.plug(new, INSTANCE, "i")
    assert has_port(new)
    await plugger.unplug(new, INSTANCE, "i")


async def test_a_switch_that_died_takes_no_port(switch: Switch, plugger: OsVifPlugger) -> None:
    vif = new_vif()
    await kill_daemon("ovs-vswitchd")
    with pytest.raises(HostFault, match="Is ovs-vswitchd running"):
        await plugger.plug(vif, INSTANCE, "i")
    start_vswitchd()
    assert not has_port(vif) and not link(vif.devname)
    await plugger.plug(vif, INSTANCE, "i")
    assert has_port(vif)
    await plugger.unplug(vif, INSTANCE, "i")


@pytest.mark.capability("OVS-28")
async def test_a_tap_that_the_switch_sets_down_is_up_in_the_end(switch: Switch) -> None:
    """The switch reads a new tap's flags, adds one and writes them back, and os-vif sets it up meanwhile."""

    class Unlucky(OsVif):
        def plug(self, vif: Vif, instance_uuid: str, instance_name: str) -> None:
            super().plug(vif, instance_uuid, instance_name)
            subprocess.run(["ip", "link", "set", "dev", vif.devname, "down"], check=True)

    plugger, vif = OsVifPlugger(DATABASE, datapath_type="netdev", load=Unlucky), new_vif()
    await plugger.plug(vif, INSTANCE, "i")
    assert ",UP" in link(vif.devname)
    assert seen(switch, vif).ofport
    await plugger.unplug(vif, INSTANCE, "i")
    await plugger.close()


async def test_a_device_that_the_switch_cannot_open_is_a_fault_that_says_why(switch: Switch) -> None:
    class Broken(OsVif):
        def plug(self, vif: Vif, instance_uuid: str, instance_name: str) -> None:
            super().plug(vif, instance_uuid, instance_name)
            command = ["ovs-vsctl", "--timeout=60", "set", "interface", vif.devname, "type=nonsense"]
            subprocess.run(command, check=True)

    plugger, vif = OsVifPlugger(DATABASE, datapath_type="netdev", timeout=2, load=Broken), new_vif()
    with pytest.raises(
        HostFault, match=f"did not take the device {vif.devname}: could not open network device"
    ):
        await plugger.plug(vif, INSTANCE, "i")
    assert not has_port(vif)
    await plugger.close()


async def test_many_ports_at_once(switch: Switch, plugger: OsVifPlugger) -> None:
    vifs = [new_vif(number) for number in range(10)]
    begun = time.perf_counter()
    await asyncio.gather(*(plugger.plug(vif, INSTANCE, "i") for vif in vifs))
    print(f"plug of 10: {(time.perf_counter() - begun) * 100:.0f} ms each")
    for vif in vifs:
        await shows(switch, vif)
        assert seen(switch, vif).is_dead
        assert ",UP" in link(vif.devname)
    begun = time.perf_counter()
    await asyncio.gather(*(plugger.unplug(vif, INSTANCE, "i") for vif in vifs))
    print(f"unplug of 10: {(time.perf_counter() - begun) * 100:.0f} ms each")
    await eventually(lambda: not any(vif.devname in switch.ports() for vif in vifs))
