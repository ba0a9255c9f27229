"""A hostile guest that is on a host before its port is wired there reaches nobody and hears nobody: it came
live while the host's layer-2 agent could not wire it, or its host was booted and started it again.

The recorders are those of `test_two_hosts_isolation`: all that happened, not one look.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kilonova.l2agent.switch import DEAD_VLAN
from kilonova.testing.lab.host import Host
from kilonova.testing.lab.station import PROBE, lines_of
from tests.real.real_cloud import SDKS_OWN, wait_until
from tests.real.test_cloud import Project, image_file
from tests.real.test_two_hosts_isolation import UNWIRED, Hostile, Scene, gate_by_gate, history_of, judge
from tests.real.two_hosts import TwoHosts, two_hosts

pytestmark = [pytest.mark.real, *SDKS_OWN]

__all__ = ["image_file"]

RESUMING = UNWIRED.replace("[DEFAULT]", "[DEFAULT]\nresume_guests_state_on_host_boot = True")
DEAD = (DEAD_VLAN, "trunk", (DEAD_VLAN,))
OFCTL = "/usr/bin/ovs-ofctl"  # with which the layer-2 agent writes flows; ports get their VLAN after these


@pytest.fixture(scope="module")
def cloud() -> Iterator[TwoHosts]:
    with two_hosts(more=RESUMING) as made:
        yield made


@pytest.fixture(scope="module")
def project(cloud: TwoHosts, image_file: Path) -> Project:
    return Project(cloud, image_file)


@pytest.fixture(scope="module")
def scene(cloud: TwoHosts, project: Project) -> Iterator[Scene]:
    made = Scene(cloud, project)
    yield made
    made.close()


@pytest.fixture(scope="module")
def hostile(cloud: TwoHosts, project: Project, scene: Scene) -> Hostile:
    """It floods, and its port is wired; everybody around it asks for its address."""
    made = Hostile(cloud, project, scene)
    wire(project, made, up=True)
    reaches_its_own(scene, made, 0.0)
    for stations in (scene.own, scene.dead):
        for station in stations.values():
            asyncio.run(station.probe("ping", made.address, "0.2").start())
    return made


def wire(project: Project, hostile: Hostile, *, up: bool) -> None:
    project.client.network.update_port(hostile.port.id, admin_state_up=up)


def reaches_its_own(scene: Scene, hostile: Hostile, since: float) -> None:
    wait_until(lambda: scene.heard(scene.own, hostile.macs, since), 60, "it does not even reach its own")


def all_heard(scene: Scene, hostile: Hostile, since: float) -> list[dict[str, Any]]:
    """What anybody has heard of it, on whatever host, and what has left its host."""
    found = [
        line
        for stations in (scene.own, scene.others, scene.dead)
        for line in scene.heard(stations, hostile.macs, since)
    ]
    wire = (line for tap in scene.wire for line in lines_of(tap.log) if line["at"] >= since)
    return found + [line for line in wire if tunnelled_from(line) in hostile.macs]


def tunnelled_from(line: dict[str, Any]) -> str:
    """The source of a frame that is in another one, between the hosts."""
    return bytes.fromhex(line.get("data", ""))[42:48].hex(":") if line.get("kind") == "0800" else ""


def opened(host: Host, hostile: Hostile) -> list[tuple[int, str, tuple[int, ...]]]:
    """How its port was on a host whenever it had a device, one after the other."""
    found: list[tuple[int, str, tuple[int, ...]]] = []
    for line in history_of(host, hostile):
        if has_device(line):
            row = line["wiring"]
            wiring = (row["tag"], row["vlan_mode"], tuple(row["trunks"]))
            found += [wiring] if found[-1:] != [wiring] else []
    return found


def has_device(line: dict[str, Any]) -> bool:
    return bool(line["wiring"]) and line["wiring"]["number"] is not None


def got(host: Host, hostile: Hostile) -> int:
    """Frames that the switch has given to it."""
    name = "tap" + hostile.port.id[:11]
    return int(host.run("ovs-vsctl", "get", "Interface", name, "statistics:tx_packets"))


@pytest.mark.capability("OVS-10", "OVS-11", "MG-LM-15", "MG-VIF-4")
def test_a_guest_that_comes_live_before_its_port_is_wired(
    cloud: TwoHosts, project: Project, scene: Scene, hostile: Hostile
) -> None:
    source = cloud.host_of(hostile.server)
    target = cloud.cloud.other(source.name)
    target.run("mount", "--bind", "/bin/false", OFCTL)
    try:
        cloud.admin.compute.live_migrate_server(hostile.server.id, host=None, block_migration="auto")
        assert cloud.wait_migrated(hostile.server, "completed", "error", "failed").status == "completed"
        cloud.at_rest(hostile.server)
        assert cloud.host_of(hostile.server) is target
        came = time.monotonic()
        hostile.floods(100)
        assert opened(target, hostile) == [DEAD]
        assert all_heard(scene, hostile, came) == []
        assert got(target, hostile) == 0
    finally:
        target.run("umount", OFCTL)
    project.client.network.update_port(hostile.port.id, name="looked at again")
    reaches_its_own(scene, hostile, came)
    hostile.floods()
    assert got(target, hostile) > 0
    judge(scene, hostile)


@pytest.mark.capability("MG-INIT-20", "OVS-10", "OVS-11")
def test_a_guest_that_runs_again_after_its_host_was_booted(
    cloud: TwoHosts, project: Project, scene: Scene, hostile: Hostile
) -> None:
    host = cloud.host_of(hostile.server)
    asyncio.run(host.power_off())
    wire(project, hostile, up=False)
    asyncio.run(host.power_on())
    booted = time.monotonic()
    _listen_again(scene, host)
    asyncio.run(cloud.cloud.start_agent(host))
    wait_until(lambda: cloud.running_on(hostile.server) == [host.name], 60, "it does not run again")
    server = cloud.at_rest(hostile.server)
    assert (server.status, server.power_state) == ("ACTIVE", 1)
    wait_until(lambda: hostile.sent() > 100, 120, "the hostile guest sends nothing")
    assert opened(host, hostile) == [DEAD]
    assert all_heard(scene, hostile, booted) == []
    assert got(host, hostile) == 0

    wire(project, hostile, up=True)
    reaches_its_own(scene, hostile, booted)
    hostile.floods()
    dead, wired = opened(host, hostile)
    assert dead == DEAD and wired[1:] == ("access", ()) and wired[0] != DEAD_VLAN
    gate_by_gate(host, [line for line in history_of(host, hostile) if has_device(line)])
    assert got(host, hostile) > 0
    assert scene.heard(scene.others, hostile.macs, booted) == []
    assert scene.heard(scene.dead, hostile.macs, booted) == []
    own = {line["source"] for line in scene.heard(scene.own, hostile.macs, booted)}
    assert own == {hostile.port.mac_address}, "it lied, and was heard"
    actions = [each.action for each in project.client.compute.server_actions(hostile.server)]
    assert sorted(actions) == ["create", "live-migration", "start"]


def _listen_again(scene: Scene, host: Host) -> None:
    """Recorders and listeners of a host that was booted, before its agent runs."""
    for stations in (scene.own, scene.others, scene.dead):
        station = stations[host.name]
        host.run("ovs-vsctl", "--timeout=30", "del-port", "br-int", station.device)
        station.plug()
    for name, what in (("tags", "/run/openvswitch/db.sock"), ("flows", "br-int")):
        recorder = host.spawn(f"{name} of another life", *PROBE, name, what)
        asyncio.run(recorder.start(b"{" if name == "tags" else b""))  # there are no flows yet
        host.daemons[name] = recorder
    for stations in (scene.own, scene.others, scene.dead):
        station = stations[host.name]
        capture = scene._heard[id(station)] = station.probe("capture", station.device)
        asyncio.run(capture.start(b"{"))
    for stations in (scene.own, scene.dead):
        asyncio.run(stations[host.name].probe("ping", "10.30.0.77", "0.2").start())
