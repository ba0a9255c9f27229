"""A whole cloud on the lab: PostgreSQL, NATS and a controller outside, an agent with libvirt on each host."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path

from kilonova.testing.fleet.daemon import Daemon
from kilonova.testing.fleet.fleet import NORMAL, Fleet, Pace
from kilonova.testing.lab.daemon import HostDaemon
from kilonova.testing.lab.host import Host
from kilonova.testing.lab.inside import STATE
from kilonova.testing.lab.lab import CONTROLLER, Lab

HOST_OPTIONS = """
[libvirt]
virt_type = qemu
tb_cache_size = 32
live_migration_unsafe = {shared}
{libvirt}
[vnc]
server_listen = {address}
[ovs]
local_ip = {tunnel_address}
[volume]
directory = {volumes}
"""
CONTROLLER_OPTIONS = """
[controllers]
[agent]
tunnel_types = vxlan
"""


class LabCloud:
    """``up``, ``down``; `Lab` and `Fleet` have the rest.

    ``shared``: the hosts have one directory of guests' files, on a file system that libvirt does not know as
    shared.  ``libvirt`` are more options of that section, ``more`` are sections for hosts and controllers.
    ``disk_mib``: as in `Lab`.
    """

    def __init__(
        self,
        directory: Path,
        *,
        shared: bool = False,
        libvirt: str = "",
        more: str = "",
        disk_mib: int | None = None,
        pace: Pace = NORMAL,
    ) -> None:
        self.directory = directory
        directory.chmod(0o755)  # PostgreSQL does not run as root
        self.lab = Lab(directory / "lab", shared=shared, disk_mib=disk_mib)
        self._options = {"shared": shared, "libvirt": libvirt}
        self.fleet = Fleet(
            directory / "fleet",
            controllers=1,
            safe=False,
            bus_address=CONTROLLER,
            pace=pace,
            more=more + CONTROLLER_OPTIONS,
        )
        self.agents: dict[str, HostDaemon] = {}

    async def up(self, hosts: int = 2, progress: Callable[[str], None] = lambda text: None) -> None:
        """Raises DidNotStart."""
        progress(f"{hosts} hosts with libvirt and Open vSwitch")
        await self.lab.up(hosts)
        await self.fleet.up(progress)
        progress("the agents of the hosts")
        await asyncio.gather(*(self.start_agent(host) for host in self.lab.hosts))

    async def down(self) -> None:
        await self.lab.down()
        await self.fleet.down()

    # ---- its parts ----

    @property
    def controller(self) -> Daemon:
        return self.fleet.controllers[0]

    @property
    def volumes(self) -> Path:
        """The directory that controllers and hosts share."""
        return self.fleet.directory / "volumes"

    def host(self, name: str) -> Host:
        return next(host for host in self.lab.hosts if host.name == name)

    def other(self, name: str) -> Host:
        """The other one of two."""
        return next(host for host in self.lab.hosts if host.name != name)

    async def start_agent(self, host: Host) -> HostDaemon:
        """When it is ready: its host has reported."""
        if host.name not in self.agents:
            command = ["-m", "kilonova.cli", "agent", "--driver", "libvirt", "--state-dir", str(STATE)]
            command += ["--config-file", str(self._agent_config(host))]
            self.agents[host.name] = host.spawn("agent", sys.executable, *command)
        await self.agents[host.name].start(b"ready")
        return self.agents[host.name]

    def _agent_config(self, host: Host) -> Path:
        about = {"address": host.address, "tunnel_address": host.tunnel_address, **self._options}
        about["volumes"] = self.volumes
        own = f"[DEFAULT]\nhost = {host.name}\nmy_ip = {host.address}"
        text = self.fleet.host_config.read_text().replace("[DEFAULT]", own, 1)
        path = self.directory / f"{host.name}.conf"
        path.write_text(text + HOST_OPTIONS.format(**about))
        path.chmod(0o600)
        return path
