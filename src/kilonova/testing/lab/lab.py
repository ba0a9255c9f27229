"""Several hosts on one machine, each with libvirt, QEMU and Open vSwitch of its own, and two networks.

A host is a set of namespaces whose first process ends everything on it when it is killed.  All hosts have the
same paths (`inside.PRIVATE`), each with files of its own, as real hosts do.  The management network
(10.199.0.0/24) reaches from `CONTROLLER`, which is where the lab was started, to the hosts: bus, migrations,
copies of files.  The underlay (10.198.0.0/24) carries tunnels between their switches.

It has to be started on a throw-away host itself (tools/sandbox.sh): whatever happens to the process that made
the lab, nothing is left on the machine.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
from pathlib import Path

from kilonova.testing.fleet.daemon import DidNotStart
from kilonova.testing.lab.host import MTU, Host, Place

CONTROLLER = "10.199.0.1"
MANAGEMENT, UNDERLAY = "lab-m", "lab-u"  # bridges; a host's ports are m1 and u1


class Lab:
    """``up``, ``down``; what goes wrong in between is `cut`, `slow` and `Host.power_off`.

    ``shared``: all hosts have one directory of guests' files.  ``disk_mib``: each host keeps the files
    of its agent and its guests on a disk of that size (in memory), which can be full (`Host.fill_disk`).
    """

    def __init__(self, directory: Path, *, shared: bool = False, disk_mib: int | None = None) -> None:
        self.directory = directory
        self._disk_mib = disk_mib
        self._shared = directory / "shared" if shared else None
        self.hosts: list[Host] = []
        self._cuts: list[tuple[str, ...]] = []

    async def up(self, count: int = 2) -> list[Host]:
        """That many hosts, running.  Raises DidNotStart."""
        if "KILONOVA_SANDBOX" not in os.environ:
            raise DidNotStart("The lab's networks would be the machine's: start it with tools/sandbox.sh.")
        self.directory.mkdir(parents=True, exist_ok=True)
        self._make_networks()
        for number in range(1, count + 1):
            self.hosts.append(Host(self._place(number, count), self._connect))
            if self._disk_mib is not None:
                self.hosts[-1].insert_disk(self._disk_mib)
        await self.hosts[0].power_on()  # what it finds out about QEMU the others need not ask
        await asyncio.gather(*(host.power_on() for host in self.hosts[1:]))
        return self.hosts

    async def down(self) -> None:
        """End all hosts, in whatever state they are, and the networks."""
        for host in self.hosts:
            await host.power_off()
            host.remove_disk()
        self.heal()
        for bridge in (MANAGEMENT, UNDERLAY):
            _ip("link", "delete", bridge)

    def _place(self, number: int, count: int) -> Place:
        hosts = self.directory / "hosts"
        names = [
            f"{CONTROLLER} controller",
            *(f"10.199.0.{10 + each} host{each}" for each in range(1, count + 1)),
        ]
        hosts.write_text("".join(f"{line}\n" for line in ("127.0.0.1 localhost", *names)))
        return Place(number=number, files=self.directory / f"host{number}", hosts=hosts, shared=self._shared)

    # ---- networks ----

    def _make_networks(self) -> None:
        for bridge in (MANAGEMENT, UNDERLAY):
            _ip("link", "add", "name", bridge, "type", "bridge", "forward_delay", "0", "mcast_snooping", "0")
            mac = f"02:00:00:00:{ord(bridge[-1]):02x}:00"  # else it changes with the ports, unheard by others
            _ip("link", "set", bridge, "address", mac, "mtu", str(MTU), "up")
        _ip("address", "add", f"{CONTROLLER}/24", "dev", MANAGEMENT)

    def _connect(self, host: Host) -> None:
        for bridge, port, device in self._cables(host):
            _unplug(port)  # of a former life
            mac = f"02:00:00:00:{ord(port[0]):02x}:{host.place.number:02x}"  # as in the former life
            peer = ("peer", "name", device, "address", mac, "mtu", str(MTU), "netns", str(host.init))
            _ip("link", "add", "name", port, "mtu", str(MTU), "type", "veth", *peer)
            _ip("link", "set", port, "master", bridge, "up")
            host.run("ip", "link", "set", device, "up")
        host.run("ip", "address", "add", f"{host.address}/24", "dev", "eth0")

    def _cables(self, host: Host) -> tuple[tuple[str, str, str], ...]:
        number = host.place.number
        return ((MANAGEMENT, f"m{number}", "eth0"), (UNDERLAY, f"u{number}", "eth1"))

    # ---- what networks do to those who rely on them ----

    def cut(self, source: Host | None, target: Host | None, *, both: bool = True) -> None:
        """Lose what ``source`` sends to ``target``, silently, and what comes back; None is the controller."""
        pairs = [(source, target), (target, source)] if both else [(source, target)]
        for one, other in pairs:
            for rule in self._rules(one, other):
                subprocess.run(["ebtables", "-A", *rule], check=True, capture_output=True)
                self._cuts.append(rule)

    def _rules(self, source: Host | None, target: Host | None) -> list[tuple[str, ...]]:
        if source is None and target is not None:
            return [("OUTPUT", "-o", f"m{target.place.number}", "-j", "DROP")]
        if target is None and source is not None:
            return [("INPUT", "-i", f"m{source.place.number}", "-j", "DROP")]
        assert source is not None and target is not None, "there is one controller"
        ends = (source.place.number, target.place.number)
        return [("FORWARD", "-i", f"{net}{ends[0]}", "-o", f"{net}{ends[1]}", "-j", "DROP") for net in "mu"]

    def heal(self) -> None:
        """Mend all that was cut."""
        while self._cuts:
            subprocess.run(["ebtables", "-D", *self._cuts.pop()], check=True, capture_output=True)

    def slow(self, host: Host, mbit: int | None) -> None:
        """Let at most that much a second reach a host over the management network; None: as it was."""
        port = f"m{host.place.number}"
        if mbit is None:
            _run("tc", "qdisc", "del", "dev", port, "root")
        else:
            limit = ("rate", f"{mbit}mbit", "burst", "64k", "latency", "50ms")
            _run("tc", "qdisc", "replace", "dev", port, "root", "tbf", *limit)


def _ip(*arguments: str) -> None:
    _run("ip", *arguments)


def _unplug(port: str) -> None:
    """The kernel removes it by itself, some time after the host has lost its power."""
    subprocess.run(["ip", "link", "delete", port], check=False, capture_output=True)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)
