"""One host of the lab: namespaces, files that outlive a power cut, and the daemons of a compute host."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from kilonova.testing.fleet.daemon import PATIENCE, Daemon, DidNotStart
from kilonova.testing.lab.daemon import HostDaemon, entering
from kilonova.testing.lab.inside import STATE

CAPABILITIES = Path("/var/cache/libvirt/qemu/capabilities")
FILLER = "filler"
MTU = 1600  # of both networks: a guest's packet of 1500 bytes fits into a tunnel

LIBVIRTD = """\
listen_tls = 0
listen_tcp = 1
listen_addr = "{address}"
auth_tcp = "none"
auth_unix_rw = "none"
unix_sock_group = "root"
host_uuid = "{uuid}"
max_clients = 500
max_workers = 20
keepalive_interval = 5
"""
# As in tools/sandbox.sh, which says why.  Without the address a host would ask the other one for its name.
QEMU = """\
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
cgroup_controllers = [ ]
namespaces = [ ]
migration_address = "{address}"
migration_host = "{address}"
capability_filters = [ "cpu-unavailable-features" ]
"""


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where a host is: its number from 1, its files, and what all hosts see."""

    number: int
    files: Path
    hosts: Path  # as /etc/hosts
    shared: Path | None = None

    @property
    def name(self) -> str:
        return f"host{self.number}"

    @property
    def address(self) -> str:
        """On the management network, where libvirtd listens, too."""
        return f"10.199.0.{10 + self.number}"

    @property
    def tunnel_address(self) -> str:
        return f"10.198.0.{10 + self.number}"

    @property
    def uuid(self) -> str:
        return f"4b494c4f-4e4f-5641-8000-0000000000{self.number:02x}"


class Host:
    """``power_on``, ``power_off``; ``daemons`` are its libvirtd, virtlogd, ovsdb-server and ovs-vswitchd."""

    def __init__(self, place: Place, connect: Callable[[Host], None]) -> None:
        """``connect`` plugs the host, which has just been powered on, into the networks."""
        self.place = place
        self.name = place.name
        self.address = place.address
        self.tunnel_address = place.tunnel_address
        self._connect = connect
        self.logs = place.files / "logs"
        self.logs.mkdir(parents=True, exist_ok=True)
        self._machine = Daemon(self.name, self._machine_command(), self.logs / "init.log")
        self.daemons: dict[str, HostDaemon] = {}
        self._disk: Path | None = None
        self._define_daemons()

    def _machine_command(self) -> list[str]:
        namespaces = ["--net", "--mount", "--uts", "--ipc", "--pid", "--fork", "--mount-proc", "--kill-child"]
        inside = [sys.executable, "-m", "kilonova.testing.lab.inside", self.name]
        files = [self.place.files, self.place.hosts, *([self.place.shared] if self.place.shared else [])]
        command = ["setpriv", "--pdeathsig", "KILL", "unshare", *namespaces, *inside]
        return [*command, *(str(file) for file in files)]

    def _define_daemons(self) -> None:
        quiet = "-vconsole:off"
        self.spawn("virtlogd", "virtlogd", "--pid-file", "/run/libvirt/virtlogd.pid")
        self.spawn("libvirtd", "libvirtd", "--listen", "--pid-file", "/run/libvirt/libvirtd.pid")
        self.spawn(
            "ovsdb-server",
            *("ovsdb-server", "/etc/openvswitch/conf.db", "--remote=punix:/run/openvswitch/db.sock"),
            *("--pidfile", "--log-file", quiet),
        )
        switch = ("ovs-vswitchd", "unix:/run/openvswitch/db.sock", "--pidfile", "--log-file", quiet)
        self.spawn("ovs-vswitchd", *switch)

    # ---- power ----

    @property
    def alive(self) -> bool:
        return self._machine.alive

    @property
    def init(self) -> int:
        """The pid of its first process, as we see it.  Raises DidNotStart for a host that is off."""
        found = self._machine.children()
        if not found:
            raise DidNotStart(f"{self.name} is off.")
        return found[0]

    async def power_on(self) -> None:
        """With the disks that it has; returns when libvirt and Open vSwitch answer.  Raises DidNotStart."""
        shutil.rmtree(self.place.files / "run", ignore_errors=True)
        self._configure()
        await self._machine.start(b"ready")
        self._connect(self)
        await asyncio.gather(self._start_libvirt(), self._start_switch())

    async def power_off(self) -> None:
        """At once: SIGKILL to everything on it."""
        if self.alive:
            os.kill(self.init, signal.SIGKILL)
        for each in self.daemons.values():  # first of all: the kernel waits until everybody is buried
            await each.buried()
        await self._machine.ended()

    def _configure(self) -> None:
        libvirt = self.path("/etc/libvirt")
        libvirt.mkdir(parents=True, exist_ok=True)
        (libvirt / "libvirtd.conf").write_text(LIBVIRTD.format(address=self.address, uuid=self.place.uuid))
        (libvirt / "qemu.conf").write_text(QEMU.format(address=self.address))
        _copy_capabilities(CAPABILITIES, self.path(str(CAPABILITIES)))

    # ---- its disk ----

    def insert_disk(self, mib: int) -> None:
        """Before it is powered on; what is on it outlives a power cut."""
        self._disk = self.path(str(STATE.parent))
        self._disk.mkdir(parents=True, exist_ok=True)
        _run("mount", "-t", "tmpfs", "-o", f"size={mib}m", f"{self.name}-disk", str(self._disk))

    def remove_disk(self) -> None:
        if self._disk is not None:
            _run("umount", "--lazy", str(self._disk))
            self._disk = None

    def fill_disk(self) -> None:
        """Nothing more can be written to it."""
        assert self._disk is not None, "it has no disk of its own"
        free = os.statvfs(self._disk).f_bavail * os.statvfs(self._disk).f_frsize
        _run("fallocate", "--length", str(free), str(self._disk / FILLER))

    def free_disk(self) -> None:
        assert self._disk is not None, "it has no disk of its own"
        (self._disk / FILLER).unlink(missing_ok=True)

    # ---- its daemons ----

    async def _start_libvirt(self) -> None:
        await self.start_virtlogd()
        await self.start_libvirtd()
        _copy_capabilities(self.path(str(CAPABILITIES)), CAPABILITIES)  # they hold for the next one, too

    async def start_virtlogd(self) -> None:
        await self.daemons["virtlogd"].start()
        await self._until(lambda: self._listens("/run/libvirt/virtlogd-sock"), "virtlogd")

    async def start_libvirtd(self) -> None:
        await self.daemons["libvirtd"].start()
        await self._until(
            lambda: self._succeeds("virsh", "-q", "-c", "qemu:///system", "version"), "libvirtd"
        )

    async def _start_switch(self) -> None:
        await self.start_ovsdb()
        await self.start_vswitchd()
        await asyncio.to_thread(self._make_underlay)
        await self._until(lambda: self._succeeds("ip", "link", "show", "dev", "br-phy"), "ovs-vswitchd")
        self.run("ip", "address", "replace", f"{self.tunnel_address}/24", "dev", "br-phy")
        self.run("ip", "link", "set", "br-phy", "mtu", str(MTU), "up")

    async def start_ovsdb(self) -> None:
        if not self.path("/etc/openvswitch/conf.db").exists():
            self.run("ovsdb-tool", "create", "/etc/openvswitch/conf.db")
        await self.daemons["ovsdb-server"].start()
        await self._until(lambda: self._listens("/run/openvswitch/db.sock"), "ovsdb-server")
        names = (f"external_ids:system-id={self.name}", f"external_ids:hostname={self.name}")
        self.run(*_VSCTL, "--no-wait", "init", "--", "set", "Open_vSwitch", ".", *names)

    async def start_vswitchd(self) -> None:
        await self.daemons["ovs-vswitchd"].start()
        answers = ("ovs-appctl", "--timeout=5", "-t", "ovs-vswitchd", "version")
        await self._until(lambda: self._succeeds(*answers), "ovs-vswitchd")

    def _make_underlay(self) -> None:
        """The address of tunnels has to be on a bridge of the same datapath as the integration bridge."""
        bridge = ("--may-exist", "add-br", "br-phy", "--", "set", "bridge", "br-phy", "datapath_type=netdev")
        port = ("--may-exist", "add-port", "br-phy", "eth1")
        self.run(*_VSCTL, *bridge, "--", *port, "--", "set", "Interface", "br-phy", f"mtu_request={MTU}")

    async def _until(self, check: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not await asyncio.to_thread(check):
            if time.monotonic() > deadline or not self.daemons[what].alive:
                log = self.daemons[what].log.read_text()[-2000:]
                raise DidNotStart(f"{what} of {self.name} does not answer: {log}")
            await asyncio.sleep(0.02)

    def _listens(self, path: str) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(self.path(path))) == 0

    def _succeeds(self, *command: str) -> bool:
        done = subprocess.run(
            entering(self.init, command), capture_output=True, check=False, timeout=PATIENCE
        )
        return done.returncode == 0

    # ---- what is done on it ----

    def path(self, inside: str) -> Path:
        """Where we find what is ``inside`` there on the host: a file, or a socket."""
        return self.place.files / inside.lstrip("/")

    def run(self, *command: str, timeout: float = PATIENCE) -> str:
        """What a command prints.  Raises CalledProcessError, with what it has said, and TimeoutExpired."""
        done = subprocess.run(
            entering(self.init, command), capture_output=True, text=True, check=False, timeout=timeout
        )
        if done.returncode:
            raise Complaint(done.returncode, [self.name, *command], done.stdout, done.stderr)
        return done.stdout

    def spawn(self, name: str, *command: str) -> HostDaemon:
        """A process of the host, not started yet; it ends when the power does."""
        made = HostDaemon(name, command, self.logs / f"{name}.log", lambda: self.init)
        self.daemons[name] = made
        return made


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


def _copy_capabilities(source: Path, target: Path) -> None:
    """What libvirt has found out about QEMU, which takes it seconds."""
    target.mkdir(parents=True, exist_ok=True)
    for file in source.glob("*.xml"):
        shutil.copy2(file, target)


_VSCTL = ("ovs-vsctl", "--timeout=30")


class Complaint(subprocess.CalledProcessError):
    """A command that has failed, with what it said."""

    def __str__(self) -> str:
        return f"{super().__str__()} {self.stderr[-1000:]}"
