"""A stand-in guest on a host of the lab: a port of the cloud with a kernel's network behind it.

Its port on the switch is made as os-vif makes one, isolated, and is wired by the host's agent.  It stays
where it is: what it sees of a guest that moves is what the guest's peers see.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec

from kilonova.testing.fleet.daemon import PATIENCE
from kilonova.testing.lab.daemon import HostDaemon
from kilonova.testing.lab.host import Complaint, Host

PROBE = (sys.executable, "-m", "kilonova.testing.lab.probe")
TICKS = "i=0; while :; do i=$((i + 1)); echo tick $i; usleep 50000; done"  # twenty a second


class StationPort(msgspec.Struct, frozen=True, kw_only=True):
    """A port that is bound to the station's host."""

    port_id: str
    mac: str
    address: str  # with its prefix length
    mtu: int


class Station:
    """``plug`` and ``unplug``; in between it is wired, pings and listens."""

    def __init__(self, host: Host, port: StationPort) -> None:
        self.host = host
        self.port = port
        self.device = f"st{port.port_id[:11]}"
        self.namespace = f"station-{port.port_id[:8]}"
        self._probes: list[HostDaemon] = []

    def plug(self) -> None:
        """Returns before it is wired."""
        about = {"iface-id": self.port.port_id, "attached-mac": self.port.mac, "iface-status": "active"}
        dead = ("tag=4095", "vlan_mode=trunk", "trunks=4095")
        port = ("add-port", "br-int", self.device, *dead, "--", "set", "Interface", self.device)
        ids = [f'external_ids:{key}="{value}"' for key, value in {**about, "vm-uuid": "station"}.items()]
        self.host.run("ovs-vsctl", "--timeout=30", *port, "type=internal", f'mac="{self.port.mac}"', *ids)
        self.host.run("ip", "netns", "add", self.namespace)
        self.host.run("ip", "link", "set", "dev", self.device, "netns", self.namespace)
        self.inside("ip", "address", "add", self.port.address, "dev", self.device)
        self.inside("ip", "link", "set", "dev", self.device, "mtu", str(self.port.mtu), "up")

    def wait_wired(self) -> None:
        """Raises TimeoutError."""
        deadline = time.monotonic() + PATIENCE
        while self.wiring()["tag"] in (4095, []):
            if time.monotonic() > deadline:
                raise TimeoutError(f"port {self.port.port_id} is not wired on {self.host.name}")

    def wiring(self) -> dict[str, Any]:
        """Columns of its port on the switch."""
        columns = "--columns=tag,vlan_mode,trunks"
        text = self.host.run("ovs-vsctl", "--format=json", columns, "list", "Port", self.device)
        table = json.loads(text)
        return dict(zip(table["headings"], table["data"][0], strict=True))

    async def unplug(self) -> None:
        for each in self._probes:
            await each.kill()
        self.host.run("ovs-vsctl", "--timeout=30", "--if-exists", "del-port", "br-int", self.device)
        self.host.run("ip", "netns", "del", self.namespace)

    def inside(self, *command: str) -> str:
        """What a command prints in its namespace.  Raises CalledProcessError."""
        return self.host.run("ip", "netns", "exec", self.namespace, *command)

    def probe(self, *arguments: str) -> HostDaemon:
        """A probe that runs from here, not started yet; see `probe`."""
        name = f"{self.namespace}-{len(self._probes)}-{arguments[0]}"
        made = self.host.spawn(name, "ip", "netns", "exec", self.namespace, *PROBE, *arguments)
        self._probes.append(made)
        return made

    def page(self, address: str, path: str = "/", body: str = "") -> str:
        """What http://address/path says; "" if nobody answers."""
        try:
            return self.inside(*PROBE, "http", address, path, body).partition("\n\n")[2]
        except (Complaint, subprocess.TimeoutExpired):
            return ""


# ---- what probes have written ----


def said(probe: HostDaemon) -> list[dict[str, Any]]:
    """The lines of a probe so far."""
    return lines_of(probe.log)


def lines_of(log: Path) -> list[dict[str, Any]]:
    whole = log.read_text().rpartition("\n")[0]
    return [json.loads(line) for line in whole.splitlines() if line.startswith("{")]


class Silence(msgspec.Struct, frozen=True, kw_only=True):
    """``sent`` and ``lost`` are pings, or lines; the longest time without any, and when it began."""

    sent: int
    lost: int
    longest: float
    began: float

    @property
    def milliseconds(self) -> int:
        return round(self.longest * 1000)


def pings(lines: list[dict[str, Any]]) -> Silence:
    """Of a ping's lines, from the first that was answered on: until then the way had to be found.

    The last second does not count: answers may be under way.
    """
    end = max((line["at"] for line in lines), default=0.0) - 1.0
    answers = {line["answered"]: line["at"] for line in lines if "answered" in line}
    first = min(answers, default=0)
    sent = {line["sent"] & 0xFFFF for line in lines if "sent" in line and line["at"] < end}
    sent = {number for number in sent if number >= first}
    longest, began = _longest(sorted(answers.values()))
    return Silence(sent=len(sent), lost=len(sent - answers.keys()), longest=longest, began=began)


def ticks(lines: list[dict[str, Any]]) -> Silence:
    """Of a stream of `TICKS`: what is missing of the numbers that were to come."""
    seen = [
        (line["at"], int(line["line"].split()[1]))
        for line in lines
        if line.get("line", "").startswith("tick ")
    ]
    numbers = {number for _, number in seen}
    longest, began = _longest([at for at, _ in seen])
    highest = max(numbers, default=0)
    return Silence(sent=highest, lost=highest - len(numbers), longest=longest, began=began)


def _longest(moments: list[float]) -> tuple[float, float]:
    gaps = [(after - before, before) for before, after in itertools.pairwise(moments)]
    return max(gaps, default=(0.0, 0.0))
