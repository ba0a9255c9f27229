"""Measure live migrations of a real guest between two hosts of the lab, ours and libvirt's own, in one run.

    KILONOVA_SANDBOX_BARE=1 tools/sandbox.sh .venv/bin/python -m bench.live --image .demo/kn-guest.qcow2

The same guest goes there and back by the Compute API, then, with both agents stopped, by ``virsh migrate``
with the same flags.  A neighbour that stays where it is pings it every 20 ms all the time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from kilonova.cli.demo import boot_server, ensure_image, ensure_network, open_the_group
from kilonova.cli.demo_client import DemoClient
from kilonova.testing.lab.cloud import LabCloud
from kilonova.testing.lab.host import Host
from kilonova.testing.lab.inside import STATE
from kilonova.testing.lab.station import Station, StationPort, pings, said

VIRSH = ("virsh", "-q", "-c", "qemu:///system")
XML = "/run/bare.xml"
POLL, AFTER, PATIENCE = 0.02, 3.0, 300.0


class Bench:
    """One guest, a neighbour on each host, and what moves the guest."""

    def __init__(self, cloud: LabCloud, image: Path) -> None:
        self.cloud = cloud
        yaml = cloud.fleet.clouds_yaml()
        self.admin, client = DemoClient(yaml, "kilonova-admin"), DemoClient(yaml, "kilonova")
        image_id = ensure_image(client, cloud.directory, image, "libvirt")
        self.network_id, _ = ensure_network(client)
        open_the_group(client)
        self.server = boot_server(client, image_id, self.network_id)
        self.uuid = str(self.server["id"])
        self.address = str(next(iter(self.server["addresses"].values()))[0]["addr"])
        # One on each host: so the network stays on both, whoever moves.
        self.stations = {host.name: self._station(host) for host in cloud.lab.hosts}
        self._wait_until_it_answers()
        ports = self.admin.call("network", "GET", f"/v2.0/ports?device_id={self.uuid}")["ports"]
        self.tap = f"tap{ports[0]['id'][:11]}"

    def _station(self, host: Host) -> Station:
        network = self.admin.call("network", "GET", f"/v2.0/networks/{self.network_id}")["network"]
        wanted = {
            "network_id": self.network_id,
            "project_id": network["project_id"],
            "binding:host_id": host.name,
            "device_owner": "compute:nova",
        }
        port = self.admin.call("network", "POST", "/v2.0/ports", {"port": wanted})["port"]
        about = StationPort(
            port_id=port["id"],
            mac=port["mac_address"],
            address=f"{port['fixed_ips'][0]['ip_address']}/24",
            mtu=int(network["mtu"]),
        )
        made = Station(host, about)
        made.plug()
        made.wait_wired()
        return made

    def _wait_until_it_answers(self) -> None:
        deadline = time.monotonic() + PATIENCE
        while not all(each.page(self.address) for each in self.stations.values()):
            if time.monotonic() > deadline:
                raise TimeoutError("The guest does not answer.")

    @property
    def source(self) -> Host:
        answer = self.admin.call("compute", "GET", f"/servers/{self.uuid}")
        return self.cloud.host(str(answer["server"]["OS-EXT-SRV-ATTR:host"]))

    # ---- ours ----

    def ours(self) -> dict[str, Any]:
        """To the other host by the Compute API."""
        target = self.cloud.other(self.source.name)
        began = time.monotonic()
        wish = {"os-migrateLive": {"host": target.name, "block_migration": "auto"}}
        self.admin.call("compute", "POST", f"/servers/{self.uuid}/action", wish)
        status = ""
        while status not in ("completed", "failed", "error", "cancelled"):
            _pass(POLL)
            found = self.admin.call("compute", "GET", f"/os-migrations?instance_uuid={self.uuid}")
            status = found["migrations"][0]["status"]
            if time.monotonic() - began > PATIENCE:
                raise TimeoutError(f"The migration is {status}.")
        if status != "completed":
            raise RuntimeError(f"The migration has ended as {status}.")
        return {"total": time.monotonic() - began, **_job(target, self.uuid)}

    # ---- libvirt's own ----

    def prepare_bare(self, source: Host, target: Host) -> None:
        """Files to be filled and a port at the target, as a script would make them."""
        here, there = (host.path(f"{STATE}/instances/{self.uuid}") for host in (source, target))
        shutil.rmtree(there, ignore_errors=True)
        there.mkdir(parents=True)
        for file in here.iterdir():
            if file.name not in ("disk", "console.log"):
                shutil.copy2(file, there / file.name)
        disk = f"{STATE}/instances/{self.uuid}/disk"
        info = json.loads(source.run("qemu-img", "info", "-U", "--output=json", disk))
        backing = ("-F", info["backing-filename-format"], "-b", info["backing-filename"])
        target.run("qemu-img", "create", "-q", "-f", "qcow2", *backing, disk, str(info["virtual-size"]))
        if self.tap not in target.run("ovs-vsctl", "list-ports", "br-int").split():
            self._port(source, target)

    def _port(self, source: Host, target: Host) -> None:
        tag = source.run("ovs-vsctl", "get", "Port", self.tap, "tag").strip()
        target.run("ip", "tuntap", "add", "dev", self.tap, "mode", "tap", "vnet_hdr")
        target.run("ip", "link", "set", "dev", self.tap, "up")
        target.run("ovs-vsctl", "--timeout=30", "add-port", "br-int", self.tap, f"tag={tag}")
        number = target.run("ovs-vsctl", "get", "Interface", self.tap, "ofport").strip()
        target.run("ovs-ofctl", "add-flow", "br-int", f"priority=65535,in_port={number},actions=NORMAL")

    def bare(self, source: Host, target: Host) -> dict[str, Any]:
        xml = source.run(*VIRSH, "dumpxml", "--migratable", self.uuid)
        source.path(XML).write_text(xml.replace(source.address, target.address))  # where VNC listens
        began = time.monotonic()
        flags = ("--live", "--p2p", "--persistent", "--copy-storage-inc", "--migrate-disks", "vda")
        flags += ("--xml", XML, "--persistent-xml", XML)
        ends = (f"qemu+tcp://{target.address}/system", f"tcp://{target.address}")
        source.run(*VIRSH, "migrate", *flags, self.uuid, *ends, timeout=PATIENCE)
        total = time.monotonic() - began
        found = _job(target, self.uuid)
        source.run(*VIRSH, "undefine", self.uuid)
        return {"total": total, **found}

    # ---- the neighbour ----

    def watched(self, move: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What ``move`` gives, and what the neighbour at the guest's former host missed meanwhile."""
        station = self.stations[self.source.name]
        probe = station.probe("ping", self.address, "0.02")
        asyncio.run(probe.start(b"{"))
        while not any("answered" in line for line in said(probe)):
            _pass(POLL)
        began = time.monotonic()  # what the lines have, too
        found = move()
        _pass(AFTER)
        asyncio.run(probe.kill())
        silence = pings([line for line in said(probe) if line["at"] >= began])
        return {**found, "lost": silence.lost, "silence": silence.longest}


def _pass(seconds: float) -> None:
    time.sleep(seconds)


def _job(host: Host, uuid: str) -> dict[str, float]:
    """What libvirt says of the migration that has come here, in seconds."""
    text = host.run(*VIRSH, "domjobinfo", uuid, "--completed")
    found = {}
    for name, line in (("libvirt total", "Time elapsed"), ("libvirt downtime", "Total downtime")):
        match = re.search(rf"^{line}:\s+(\d+)\s+ms", text, re.MULTILINE)
        if match is not None:
            found[name] = int(match[1]) / 1000
    return found


def summary(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians, in milliseconds but for counts."""
    found: dict[str, Any] = {"rounds": len(rounds)}
    for name in rounds[0]:
        values = [each[name] for each in rounds if name in each]
        middle = statistics.median(values)
        found[name if name == "lost" else f"{name} ms"] = middle if name == "lost" else round(middle * 1000)
    return found


def measure(cloud: LabCloud, image: Path, rounds: int) -> None:
    asyncio.run(cloud.up(2))
    bench = Bench(cloud, image)
    ours = [bench.watched(bench.ours) for _ in range(2 * rounds)]
    print(json.dumps({"ours": summary(ours)}), flush=True)
    source = bench.source
    target = cloud.other(source.name)
    for agent in cloud.agents.values():
        asyncio.run(agent.stop())
    bare = []
    for _ in range(rounds):
        for ends in ((source, target), (target, source)):
            bench.prepare_bare(*ends)
            bare.append(bench.watched(partial(bench.bare, *ends)))
    print(json.dumps({"virsh migrate": summary(bare)}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--image", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="kn-live-"))
    cloud = LabCloud(directory)
    try:
        measure(cloud, chosen.image, chosen.rounds)
    finally:
        asyncio.run(cloud.down())
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
