"""A hostile guest reaches nobody before its port is wired, and only its own network after, whatever is done
to it: booted, wired, rebooted hard, left by the agent, live-migrated.

It floods from its first second.  What is heard on every other port of both hosts is captured all the time,
and what goes through the underlay; every change of its port's row and of the flows is recorded: not one look,
but all that happened.
"""

from __future__ import annotations

import asyncio
import base64
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kilonova.l2agent.switch import DEAD_VLAN
from kilonova.testing.fleet.daemon import Daemon
from kilonova.testing.lab.host import Host
from kilonova.testing.lab.station import PROBE, Station, lines_of, said
from tests.real.real_cloud import SDKS_OWN, wait_until
from tests.real.test_cloud import Project, image_file
from tests.real.two_hosts import TwoHosts, two_hosts

pytestmark = [pytest.mark.real, *SDKS_OWN]

__all__ = ["image_file"]

JITTER = 1.0  # seconds: two processes have written the two records, on a busy machine
LIE = "02:ba:ad:ba:ad:01"  # the address that the guest sometimes says it has
UNWIRED = """
[DEFAULT]
vif_plugging_is_fatal = False
vif_plugging_timeout = 2
"""  # so that a guest runs although nobody has wired its port

FLOOD = """#!/bin/sh
flood() {
    ping -i 0.1 255.255.255.255 >/dev/null 2>&1 &
    for peer in $PEERS; do
        ip route replace $peer/32 dev eth0
        ping -i 0.2 $peer >/dev/null 2>&1 &
    done
    for peer in $PEERS; do
        while :; do
            ip addr add ADDRESS/24 dev eth0 2>/dev/null
            arping -U -c 1 -w 1 ADDRESS
            arping -b -c 2 -w 1 $peer
            arping -b -c 1 -w 1 -s $peer 10.30.0.2
            usleep 100000
        done >/dev/null 2>&1 &
    done
    while :; do
        usleep 900000
        mac=$(cat /sys/class/net/eth0/address)
        ip link set eth0 address LIE
        arping -b -c 1 -w 1 10.30.0.2 >/dev/null 2>&1
        ip link set eth0 address $mac
    done
}
PEERS="PEERLIST"
{
ip link set eth0 up
flood
} >/dev/null 2>&1 &
"""


AWAIT = """while ! ip link set eth0 up 2>/dev/null; do
    usleep 100000
done
"""  # a card that comes later


@pytest.fixture(scope="module")
def cloud() -> Iterator[TwoHosts]:
    with two_hosts(more=UNWIRED) as made:
        yield made


@pytest.fixture(scope="module")
def project(cloud: TwoHosts, image_file: Path) -> Project:
    return Project(cloud, image_file)


class Dead(Station):
    """A port that is plugged and that nobody ever wires, beside which an unwired guest is."""

    def wait_wired(self) -> None:
        pass


class Scene:
    """Listeners of both networks and one of none, on both hosts, and the records of both switches."""

    def __init__(self, cloud: TwoHosts, project: Project) -> None:
        self.cloud = cloud
        first, second = project.networks
        self.own = {host.name: cloud.station(first, host) for host in cloud.hosts}
        self.others = {host.name: cloud.station(second, host) for host in cloud.hosts}
        self.dead = {host.name: _dead(host, self.own[host.name]) for host in cloud.hosts}
        for host in cloud.hosts:
            for probe in (("tags", "/run/openvswitch/db.sock"), ("flows", "br-int")):
                asyncio.run(host.spawn(probe[0], *PROBE, *probe).start(b"{"))
        self._heard = {
            id(station): station.probe("capture", station.device)
            for stations in (self.own, self.others, self.dead)
            for station in stations.values()
        }
        for capture in self._heard.values():
            asyncio.run(capture.start(b"{"))
        self.wire = [self._tapped(f"u{number}") for number in (1, 2)]

    def _tapped(self, device: str) -> Daemon:
        command = [sys.executable, "-m", "kilonova.testing.lab.probe", "capture", device]
        made = Daemon(device, command, self.cloud.cloud.directory / f"{device}.log")
        asyncio.run(made.start(b"{"))
        return made

    def heard(self, stations: dict[str, Station], macs: set[str], since: float = 0.0) -> list[dict[str, Any]]:
        """Frames from these addresses that reached any of the stations."""
        lines = [line for each in stations.values() for line in said(self._heard[id(each)])]
        return [line for line in lines if line.get("source") in macs and line["at"] >= since]

    def tunnelled(self, macs: set[str]) -> set[tuple[str, int]]:
        """The source and VLAN of frames in VXLAN between the hosts."""
        found = set()
        for line in (line for tap in self.wire for line in lines_of(tap.log)):
            frame = bytes.fromhex(line.get("data", ""))
            if line.get("kind") == "0800" and frame[9:10] == b"\x11" and frame[22:24] == b"\x12\xb5":
                inner = frame[36:]
                source, tagged = inner[6:12].hex(":"), inner[12:14] == b"\x81\x00"
                if source in macs:
                    found.add((source, int.from_bytes(inner[14:16]) & 0xFFF if tagged else 0))
        return found

    def close(self) -> None:
        for tap in self.wire:
            asyncio.run(tap.kill())


def _dead(host: Host, like: Station) -> Station:
    port = type(like.port)(
        port_id=str(uuid.uuid4()), mac="02:00:00:de:ad:01", address="10.30.0.250/24", mtu=like.port.mtu
    )
    made = Dead(host, port)
    made.plug()
    return made


@pytest.fixture(scope="module")
def scene(cloud: TwoHosts, project: Project) -> Iterator[Scene]:
    made = Scene(cloud, project)
    yield made
    made.close()


class Hostile:
    """The guest, and what it has sent.  With ``late`` it is made without its port, and floods with it."""

    def __init__(self, cloud: TwoHosts, project: Project, scene: Scene, *, late: bool = False) -> None:
        self.cloud = cloud
        self.port = project.client.network.create_port(
            network_id=project.networks[0].id, admin_state_up=False, name="hostile"
        )
        self.address = self.port.fixed_ips[0]["ip_address"]
        self.macs = {self.port.mac_address, LIE}
        peers = [each.port.address.split("/")[0] for each in (*scene.own.values(), *scene.others.values())]
        script = FLOOD.replace("PEERLIST", " ".join(peers)).replace("LIE", LIE)
        script = script.replace("ADDRESS", self.address).replace("ip link set eth0 up\n", AWAIT)
        self.server = project.active(
            project.client.compute.create_server(
                name="hostile",
                image_id=project.image.id,
                flavor_id="42",
                networks="none" if late else [{"port": self.port.id}],
                config_drive=True,
                user_data=base64.b64encode(script.encode()).decode(),
            )
        )

    def sent(self) -> int:
        """Frames that its host has had from it since it was powered on or came."""
        host = self.cloud.host_of(self.server)
        found = host.run("ovs-vsctl", "--columns=name", "--bare", "find", "Interface", self._mine)
        text = host.run("ovs-vsctl", "get", "Interface", found.strip(), "statistics:rx_packets")
        return int(text)

    @property
    def _mine(self) -> str:
        return f"external_ids:iface-id={self.port.id}"

    def floods(self, more: int = 60) -> None:
        """Let it send so many frames more."""
        begin = self.sent()
        wait_until(lambda: self.sent() >= begin + more, 120, "the hostile guest sends nothing")


@pytest.mark.capability("OVS-7", "OVS-11", "MG-VIF-3")
def test_a_hostile_guest_reaches_its_own_network_only_and_only_when_it_is_wired(
    cloud: TwoHosts, project: Project, scene: Scene
) -> None:
    hostile = Hostile(cloud, project, scene)
    server, client = hostile.server, project.client
    try:
        # It runs, and its port is not wired.
        hostile.floods(200)
        assert wirings(scene, hostile) == {(DEAD_VLAN, "trunk", (DEAD_VLAN,))}
        for stations in (scene.own, scene.others, scene.dead):
            assert scene.heard(stations, hostile.macs) == []
        assert scene.tunnelled(hostile.macs) == set()

        client.network.update_port(hostile.port.id, admin_state_up=True)
        wait_until(lambda: scene.heard(scene.own, hostile.macs), 60, "it does not even reach its own network")
        hostile.floods()

        client.compute.reboot_server(server, "HARD")
        client.compute.wait_for_server(server, status="ACTIVE", wait=180, interval=0.2)
        cloud.wait_for_line(client, server, " ready", times=2)
        hostile.floods()

        source = cloud.host_of(server)
        asyncio.run(cloud.cloud.agents[source.name].kill())
        hostile.floods()
        asyncio.run(cloud.cloud.start_agent(source))
        hostile.floods()
        for target in (cloud.cloud.other(source.name), source):
            cloud.admin.compute.live_migrate_server(server.id, host=None, block_migration="auto")
            assert cloud.wait_migrated(server, "completed", "error", "failed").status == "completed"
            cloud.at_rest(server)
            assert cloud.host_of(server) is target
            hostile.floods()
        judge(scene, hostile)
    finally:
        client.compute.delete_server(server)


def judge(scene: Scene, hostile: Hostile) -> None:
    """What was recorded from its first second to now."""
    assert scene.heard(scene.others, hostile.macs) == []
    assert scene.heard(scene.dead, hostile.macs) == []
    own = scene.heard(scene.own, hostile.macs)
    assert {line["source"] for line in own} == {hostile.port.mac_address}, "it lied, and was heard"
    (vlan,) = {tag for tag, mode, _ in wirings(scene, hostile) if mode == "access"}
    assert wirings(scene, hostile) == {(DEAD_VLAN, "trunk", (DEAD_VLAN,)), (vlan, "access", ())}
    assert scene.tunnelled(hostile.macs) == {(hostile.port.mac_address, vlan)}
    for host in scene.cloud.hosts:
        history = history_of(host, hostile)
        assert history, f"it has been on {host.name}"
        gate_by_gate(host, history)


def history_of(host: Host, hostile: Hostile) -> list[dict[str, Any]]:
    """What its port's row was on a host, from when it was made; None in between when it was gone."""
    lines = [line for line in said(host.daemons["tags"]) if "port" in line]
    names = {line["port"] for line in lines if (line["wiring"] or {}).get("port_id") == hostile.port.id}
    return [line for line in lines if line["port"] in names]


def wirings(scene: Scene, hostile: Hostile) -> set[tuple[int, str, tuple[int, ...]]]:
    rows = [line["wiring"] for host in scene.cloud.hosts for line in history_of(host, hostile)]
    return {(row["tag"], row["vlan_mode"], tuple(row["trunks"])) for row in rows if row}


def gate_by_gate(host: Host, history: list[dict[str, Any]]) -> None:
    """Whenever the port got its VLAN it was isolated before, and its flows were in."""
    before: dict[str, Any] | None = None
    for line in history:
        now = line["wiring"]
        if now is not None and now["vlan_mode"] == "access" and (before or {}).get("vlan_mode") != "access":
            assert before is not None and before["tag"] == DEAD_VLAN, "it was open when it was made"
            assert flows_at(host, line["at"] + JITTER, now["number"]), (
                "it was in its network before its flows were"
            )
        before = now


def flows_at(host: Host, moment: float, number: int) -> set[str]:
    """The flows that classify what comes from a port, as they were at that moment."""
    there: set[str] = set()
    for line in said(host.daemons["flows"]):
        if line["at"] > moment:
            break
        flow = line["flow"].split(" actions=")[0]
        words = flow.replace(" ", ",").split(",")
        if f"in_port={number}" in words and "table=0" in words:
            (there.discard if line["event"] == "DELETED" else there.add)(_key(flow))
    return there


def _key(flow: str) -> str:
    return " ".join(part for part in flow.split() if not part.startswith(("cookie=", "reason=")))


@pytest.mark.capability("OVS-3", "OVS-7", "OVS-8", "OVS-11", "OVS-25", "MG-DEV-7", "MG-DEV-8")
def test_a_port_that_is_attached_to_a_hostile_guest_is_isolated_until_it_is_wired(
    cloud: TwoHosts, project: Project, scene: Scene
) -> None:
    """It runs without a port, gets one by hot plug, goes to the other host with it, and loses it again."""
    hostile = Hostile(cloud, project, scene, late=True)
    server, client = hostile.server, project.client
    try:
        cloud.wait_for_line(client, server, " ready")
        assert project.client.compute.get_server(server.id).addresses == {}
        made = client.compute.create_server_interface(server.id, port_id=hostile.port.id)
        assert (made.port_id, made.mac_addr) == (hostile.port.id, hostile.port.mac_address)
        cloud.wait_for_line(client, server, "hotplug net add")
        hostile.floods()
        assert wirings(scene, hostile) == {(DEAD_VLAN, "trunk", (DEAD_VLAN,))}
        for stations in (scene.own, scene.others, scene.dead):
            assert scene.heard(stations, hostile.macs) == []
        assert scene.tunnelled(hostile.macs) == set()

        client.network.update_port(hostile.port.id, admin_state_up=True)
        wait_until(lambda: scene.heard(scene.own, hostile.macs), 60, "it does not even reach its own network")
        hostile.floods(20)
        source = cloud.host_of(server)
        cloud.admin.compute.live_migrate_server(server.id, host=None, block_migration="auto")
        assert cloud.wait_migrated(server, "completed", "error", "failed").status == "completed"
        cloud.at_rest(server)
        assert cloud.host_of(server) is cloud.cloud.other(source.name)
        hostile.floods(20)
        card = ("ethernet", "-", hostile.port.mac_address)
        assert cards_of(cloud, server) == [[card], [card]], "as it runs, and as it is stored"

        client.compute.delete_server_interface(hostile.port.id, server=server)
        wait_until(lambda: not list(client.compute.server_interfaces(server)), 60, "it keeps its card")
        cloud.wait_for_line(client, server, "hotplug net remove")
        assert cards_of(cloud, server) == [[], []]
        for host in scene.cloud.hosts:
            assert hostile.port.id not in host.run("ovs-vsctl", "list", "Interface")
            assert f"tap{hostile.port.id[:11]}" not in host.run("ip", "-o", "link")
        port = client.network.get_port(hostile.port.id)
        assert (port.device_id, port.status) == ("", "DOWN")
        assert client.compute.get_server(server.id).addresses == {}
        judge(scene, hostile)
    finally:
        client.compute.delete_server(server)
        client.network.delete_port(hostile.port.id)


def cards_of(cloud: TwoHosts, server: Any) -> list[list[tuple[str, ...]]]:
    """The guest's network cards (type, source, MAC address): as it runs, and as it is stored."""
    host = cloud.host_of(server)
    found = []
    for more in ([], ["--inactive"]):
        text = host.run("virsh", "-q", "-c", "qemu:///system", "domiflist", server.id, *more)
        rows = [line.split() for line in text.splitlines() if line.strip()]
        found.append([(kind, source, mac) for _, kind, source, _, mac in rows])
    return found
