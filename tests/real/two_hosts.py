"""A cloud of two real hosts as its users see it, and what stands around its guests."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kilonova.testing.lab.cloud import LabCloud
from kilonova.testing.lab.host import Host
from kilonova.testing.lab.inside import STATE
from kilonova.testing.lab.station import TICKS, Silence, Station, StationPort, pings, said, ticks
from tests.real.real_cloud import RealCloud, wait_until
from tests.real.test_cloud import Project

PEACE = 60.0  # seconds until everything has come to its end


class TwoHosts(RealCloud):
    """``cloud`` has the parts; this has the client's view of them."""

    def __init__(self, directory: Path, **options: Any) -> None:
        super().__init__(directory)
        self.directory = directory
        self.cloud = LabCloud(directory, **options)
        self.shared = bool(options.get("shared"))
        self.state = self.cloud.fleet.directory / "controller-0"
        self.stations: list[Station] = []

    def start(self) -> None:
        asyncio.run(self.cloud.up(2))
        self.admin = self.connect("kilonova-admin")

    def stop(self) -> None:
        asyncio.run(self.cloud.down())

    def keep_logs(self) -> None:
        """Where tools/sandbox.sh puts those of its daemons."""
        if place := os.environ.get("KILONOVA_SANDBOX_LOGS"):
            for log in self.directory.rglob("*.log"):
                if log.is_file() and "instances" not in log.parts:
                    kept = Path(place, self.directory.name, log.relative_to(self.directory))
                    kept.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(log, kept)

    @property
    def hosts(self) -> list[Host]:
        return self.cloud.lab.hosts

    # ---- guests ----

    def host_of(self, server: Any) -> Host:
        return self.cloud.host(self.admin.compute.get_server(server.id).compute_host)

    def presence(self, server: Any) -> dict[str, str]:
        """Host -> the state of the guest in its libvirt, of hosts that are on and have it."""
        found = {}
        for host in self.hosts:
            listed = host.run("virsh", "-q", "-c", "qemu:///system", "list", "--all") if host.alive else ""
            for line in listed.splitlines():
                _, name, state = line.split(maxsplit=2)
                if name == server.id:
                    found[host.name] = state.strip()
        return found

    def running_on(self, server: Any) -> list[str]:
        return [name for name, state in self.presence(server).items() if state == "running"]

    def has_files(self, server: Any) -> list[str]:
        """The hosts that have a directory of the guest, or one that was put aside."""
        files = {host.name: host.path(f"{STATE}/instances") for host in self.hosts}
        return [name for name, path in files.items() if list(path.glob(f"{server.id}*"))]

    def has_ports(self, server: Any) -> list[str]:
        """The hosts on whose switch a port of the guest is."""
        ports = [port.id for port in self.admin.network.ports(device_id=server.id)]
        switches = {
            host.name: host.run("ovs-vsctl", "list", "Interface") for host in self.hosts if host.alive
        }
        return [name for name, text in switches.items() if any(port in text for port in ports)]

    def is_only_on(self, server: Any, host: Host, *, shared: bool = False) -> None:
        """The guest runs there, its ports and disks are there, and nothing of it is elsewhere.

        Raises AssertionError, after a while."""
        where = [host.name]

        def there() -> bool:
            return (self.running_on(server), self.has_ports(server)) == (where, where)

        with contextlib.suppress(TimeoutError):
            wait_until(there, PEACE)
        assert self.presence(server) == {host.name: "running"}
        assert self.has_ports(server) == where
        assert shared or self.has_files(server) == where

    def migration(self, server: Any) -> Any:
        """The newest migration of a server."""
        found = [each for each in self.admin.compute.migrations() if each.server_id == server.id]
        return max(found, key=lambda each: each.id)

    def wait_migrated(self, server: Any, *statuses: str, timeout: float = PEACE) -> Any:
        """The newest migration, when it is at one of these."""

        def look() -> Any:
            migration = self.migration(server)
            return migration if migration.status in statuses else None

        try:
            return wait_until(look, timeout)
        except TimeoutError:
            task = self.admin.compute.get_server(server.id).task_state
            raise TimeoutError(f"the migration is {self.migration(server).status}, task {task}") from None

    def at_rest(self, server: Any) -> Any:
        """The server when nothing is done to it."""

        def look() -> Any:
            now = self.admin.compute.get_server(server.id)
            return now if now.task_state is None else None

        return wait_until(look, PEACE, "something is still being done to the server")

    def boot_ready(self, project: Project, name: str, **more: Any) -> Any:
        """A server whose guest has come up."""
        server = project.active(project.boot(name, project.networks[0], **more))
        self.wait_for_line(project.client, server, " ready")
        return project.client.compute.get_server(server.id)

    # ---- what stands around them ----

    def station(self, network: Any, host: Host) -> Station:
        """A stand-in guest of a network on a host, wired."""
        port = self.admin.network.create_port(
            network_id=network.id,
            binding_host_id=host.name,
            project_id=network.project_id,
            device_owner="compute:nova",
            name=f"station-{len(self.stations)}",
        )
        address = f"{port.fixed_ips[0]['ip_address']}/24"
        mtu = self.admin.network.get_network(network.id).mtu
        about = StationPort(port_id=port.id, mac=port.mac_address, address=address, mtu=mtu)
        made = Station(host, about)
        made.plug()
        made.wait_wired()
        self.stations.append(made)
        return made

    def remove_station(self, station: Station) -> None:
        asyncio.run(station.unplug())
        self.admin.network.delete_port(station.port.port_id)
        self.stations.remove(station)


@contextlib.contextmanager
def two_hosts(**options: Any) -> Iterator[TwoHosts]:
    directory = Path(tempfile.mkdtemp(prefix="kn-two-"))  # short: sockets are below it
    made = TwoHosts(directory, **options)
    try:
        made.start()
        yield made
    finally:
        made.stop()
        made.keep_logs()
        shutil.rmtree(directory, ignore_errors=True)


KEEP = "dd if=/dev/urandom of=/data/kept bs=64k count=64 2>/dev/null; sync; sha256sum /data/kept"
KEPT = "sha256sum /data/kept"


def ask(station: Station, server: Any, script: str) -> str:
    """What a script prints in the guest, once that answers."""
    to = address(server)
    until = time.monotonic() + 2 * PEACE
    while not (said := station.page(to, "/cgi-bin/sh", script)).endswith("rc=0\n"):
        if time.monotonic() > until:
            raise TimeoutError(f"{to} is to do {script}, and says {said!r}")
        time.sleep(0.05)
    return said


def address(server: Any) -> str:
    return str(next(iter(server.addresses.values()))[0]["addr"])


class Watch:
    """A ping and an open TCP connection to a guest, from a station that stays."""

    def __init__(self, station: Station, server: Any) -> None:
        self.station = station
        self.to = address(server)
        self._ping = station.probe("ping", self.to, "0.02")
        self._stream = station.probe("stream", self.to, TICKS)

    def begin(self) -> None:
        """When both get answers."""
        wait_until(lambda: self.station.page(self.to), PEACE, f"{self.to} is not reached")
        for probe in (self._ping, self._stream):
            asyncio.run(probe.start(b"{"))
        time.sleep(1)

    def end(self) -> tuple[Silence, Silence]:
        """What became of pings and of the lines of the connection, which is open until now.

        Raises AssertionError for a connection that broke.
        """
        lines = said(self._stream)
        wait_until(lambda: len(said(self._stream)) > len(lines) + 20, 30, "nothing more comes")
        time.sleep(1)
        assert not [line for line in said(self._stream) if "closed" in line]
        found = pings(said(self._ping)), ticks(said(self._stream))
        for probe in (self._ping, self._stream):
            asyncio.run(probe.kill())
        return found
