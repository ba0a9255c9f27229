"""A libvirt driver on the sandbox's host, and the daemons and devices around it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import tempfile
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from kilonova.clock import SystemClock
from kilonova.errors import TryAgain
from kilonova.model.port import Vif
from kilonova.model.states import Power
from kilonova.model.volume import Attachment, Connection
from kilonova.rpc.messages import GuestSpec
from kilonova.virt.libvirt.driver import LibvirtDriver
from kilonova.virt.libvirt.options import LibvirtOptions
from tests.real import tiny_guest
from tests.real.guests import eventually
from tests.unit.virt.sources import Images, guest

PATIENCE = 120.0  # seconds
LIBVIRTD_PID = Path("/run/kilonova/daemons/libvirtd.pid")
HUGE = Path("/sys/devices/system/node/node0/hugepages/hugepages-2048kB/nr_hugepages")
DAEMONS = Path(__file__).parents[2] / "tools/host-daemons.sh"


class Host:
    """``told`` has the power events."""

    def __init__(self, instances: Path, **options: Any) -> None:
        assert os.environ.get("KILONOVA_SANDBOX"), "run this with tools/sandbox.sh"
        self.instances = instances
        self.volumes = instances.parent / "volumes"
        self.compute_id = str(uuid.uuid4())
        self.images = Images()
        self.told: list[tuple[str, int]] = []
        self.options = LibvirtOptions(**{"virt_type": "qemu", "tb_cache_mib": 32, **options})
        self.driver = self.new_driver()

    def new_driver(self) -> LibvirtDriver:
        return LibvirtDriver(
            self.options, "here", self.compute_id, self.instances, SystemClock(), self.volumes
        )

    async def open(self) -> None:
        await self.driver.open(lambda guest_uuid, state: self.told.append((guest_uuid, state)))

    async def close(self) -> None:
        for guest_uuid in await self.driver.guests():
            await self.driver.undefine(guest_uuid)
        await self.driver.close()

    def tiny(self, flags: int = 0, **more: Any) -> GuestSpec:
        properties = more.pop("properties", {})
        return guest(self.images.add(tiny_guest.image(flags), properties=properties), **more)

    async def prepared(self, flags: int = 0, **more: Any) -> GuestSpec:
        spec = self.tiny(flags, **more)
        await self.driver.prepare(spec, self.images)
        return spec

    async def running(self, flags: int = 0, **more: Any) -> GuestSpec:
        """A tiny guest that is up."""
        spec = await self.prepared(flags, **more)
        await self.driver.start(spec, paused=False)
        await self.says(spec, tiny_guest.UP)
        return spec

    async def says(self, spec: GuestSpec, line: bytes, times: int = 1) -> bytes:
        """The console once the guest has written something so many times."""
        output = b""

        async def there() -> bool:
            nonlocal output
            output = await self.driver.console_output(spec.uuid, 1 << 20)
            return output.count(line) >= times

        await eventually(there, PATIENCE)
        return output

    async def comes_to(self, spec: GuestSpec, state: int) -> None:
        async def there() -> bool:
            return await self.driver.power_state(spec.uuid) == state

        await eventually(there, PATIENCE)

    async def sees(self, guests: dict[str, int]) -> bool:
        """Whether these are the guests now; no, while libvirtd does not answer."""
        try:
            return await self.driver.guests() == guests
        except TryAgain:
            return False

    async def is_told(self, spec: GuestSpec, state: int) -> None:
        await eventually(lambda: (spec.uuid, state) in self.told, PATIENCE)

    async def domain_xml(self, spec: GuestSpec) -> str:
        text: str = await self.driver._connection.call(
            lambda link: link.lookupByUUIDString(spec.uuid).XMLDesc()
        )
        return text

    def files(self, spec: GuestSpec) -> Path:
        return self.instances / spec.uuid


@contextlib.asynccontextmanager
async def opened(instances: Path, **options: Any) -> AsyncIterator[Host]:
    host = Host(instances, **options)
    await host.open()
    try:
        yield host
    finally:
        await host.close()


def new_volume(directory: Path, device: str = "/dev/vdb", size: int = 1 << 20) -> Attachment:
    """A volume of zeros, in a directory of volumes."""
    directory.mkdir(mode=0o711, exist_ok=True)
    path = directory / str(uuid.uuid4())
    path.touch(mode=0o600)
    os.truncate(path, size)
    return Attachment(
        id=str(uuid.uuid4()),
        volume_id=path.name,
        attachment_id=str(uuid.uuid4()),
        device=device,
        connection=Connection(kind="file", path=str(path)),
    )


def qemu_pid(spec: GuestSpec) -> int:
    return int(Path(f"/run/libvirt/qemu/{spec.uuid}.pid").read_text())


@contextlib.contextmanager
def large_pages(count: int) -> Iterator[None]:
    """So many more pages of 2 MiB, if the kernel has them.  They are the machine's: one test at a time."""
    with Path(tempfile.gettempdir(), "kilonova-large-pages.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        before = int(HUGE.read_text()) if HUGE.exists() else 0
        try:
            HUGE.write_text(str(before + count))
        except OSError as error:
            pytest.skip(f"no large pages on this machine: {error}")
        try:
            if int(HUGE.read_text()) < before + count:
                pytest.skip("the kernel has no room for large pages")
            yield
        finally:
            HUGE.write_text(str(before))


def threads(uuid: str) -> dict[str, set[int]]:
    """QEMU's threads by name ("CPU 0/TCG"), and the CPUs on which they may run."""
    pid = Path(f"/run/libvirt/qemu/{uuid}.pid").read_text()
    tasks = Path(f"/proc/{int(pid)}/task")
    return {
        (each / "comm").read_text().strip(): os.sched_getaffinity(int(each.name)) for each in tasks.iterdir()
    }


def kill_process(pid: int) -> None:
    """Kill one process and wait for its end."""
    handle = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(handle, signal.SIGKILL)
    finally:
        os.close(handle)
    wait_for_end(pid)


def wait_for_end(pid: int) -> None:
    """Of a process that is no child of ours."""
    stat = Path(f"/proc/{pid}/stat")
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        while stat.read_text().rsplit(")", 1)[1].split()[0] not in "ZX":
            pass


def kill_libvirtd() -> None:
    kill_process(int(LIBVIRTD_PID.read_text()))


def start_libvirtd() -> None:
    subprocess.run([DAEMONS, "up"], check=True, capture_output=True, timeout=300)


@contextlib.contextmanager
def tap(vif: Vif, *options: str, address: str = "") -> Iterator[str]:
    """The tap that os-vif would have made."""
    name = vif.devname
    subprocess.run(["ip", "tuntap", "add", "dev", name, "mode", "tap", *options], check=True)
    try:
        subprocess.run(["ip", "link", "set", name, "up", "mtu", str(vif.mtu)], check=True)
        if address:
            subprocess.run(["ip", "address", "add", address, "dev", name], check=True)
        yield name
    finally:
        subprocess.run(["ip", "tuntap", "del", "dev", name, "mode", "tap", *options], check=True)


def port(number: int = 1, **more: Any) -> Vif:
    fields: dict[str, Any] = {
        "port_id": str(uuid.uuid4()),
        "mac": f"fa:16:3e:00:02:{number:02x}",
        "network_id": str(uuid.uuid4()),
        "network_name": "net",
        "mtu": 1442,
        "details": {"datapath_type": "netdev"},
    }
    return Vif(**{**fields, **more})


RUNNING, PAUSED, SHUTDOWN = Power.RUNNING, Power.PAUSED, Power.SHUTDOWN
