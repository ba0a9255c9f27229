"""Ports on a real Open vSwitch, through os-vif."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kilonova.clock import SystemClock
from kilonova.errors import HostFault, TryAgain
from kilonova.l2agent.ovsdb import Ovsdb
from kilonova.l2agent.switch import TABLES, Switch, SwitchPort
from kilonova.model.port import Vif
from kilonova.vif.ovs import OsVifPlugger
from tests.real.guests import Guest, eventually

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
        await eventually(lambda: guests[0].pings("10.0.0.11", 0.5))
        assert await guests[0].pings("10.0.0.12", 0.5)
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
    server = int(Path("/run/openvswitch/ovsdb-server.pid").read_text())
    vif = new_vif()
    os.kill(server, signal.SIGSTOP)
    try:
        begun = time.perf_counter()
        with pytest.raises(HostFault, match=r"within 1\.5 seconds"):
            await plugger.plug(vif, INSTANCE, "i")
        assert time.perf_counter() - begun < 5
    finally:
        os.kill(server, signal.SIGCONT)
    other = new_vif(2)
    late = OsVifPlugger(DATABASE, datapath_type="netdev", timeout=30)
    await late.plug(other, INSTANCE, "i")
    await late.unplug(other, INSTANCE, "i")
    # what was given up leaves nothing, or is removed by the undo of whoever gave up
    await late.unplug(vif, INSTANCE, "i")
    await asyncio.sleep(0)
    await eventually(lambda: vif.devname not in switch.ports())
    await plugger.close()
    await late.close()


async def test_many_ports_at_once(switch: Switch, plugger: OsVifPlugger) -> None:
    vifs = [new_vif(number) for number in range(10)]
    begun = time.perf_counter()
    await asyncio.gather(*(plugger.plug(vif, INSTANCE, "i") for vif in vifs))
    print(f"plug of 10: {(time.perf_counter() - begun) * 100:.0f} ms each")
    for vif in vifs:
        await shows(switch, vif)
        assert seen(switch, vif).is_dead
    begun = time.perf_counter()
    await asyncio.gather(*(plugger.unplug(vif, INSTANCE, "i") for vif in vifs))
    print(f"unplug of 10: {(time.perf_counter() - begun) * 100:.0f} ms each")
    await eventually(lambda: not any(vif.devname in switch.ports() for vif in vifs))
