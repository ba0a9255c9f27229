"""Two hosts of the lab, each with a libvirt driver of ours, between which guests are sent.

The drivers run in the test's process, and their guests' files are below one directory of the machine: so each
host has other paths, which real hosts need not have, and the definitions have to be rewritten.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from kilonova.clock import SystemClock
from kilonova.errors import TryAgain
from kilonova.rpc.messages import GuestSpec
from kilonova.rpc.moves import LiveOutcome, LivePlan, LiveWish, Presence
from kilonova.testing.lab.host import Host
from kilonova.testing.lab.lab import Lab
from kilonova.virt.libvirt.driver import LibvirtDriver
from kilonova.virt.libvirt.live_options import LiveOptions
from kilonova.virt.libvirt.options import LibvirtOptions
from tests.real import busy_guest
from tests.real.guests import eventually
from tests.unit.virt.sources import Images, guest

PATIENCE = 120.0  # seconds


class End:
    """One host and its driver; ``told`` has the power events."""

    def __init__(self, host: Host, instances: Path, images: Images) -> None:
        self.host = host
        self.instances = instances
        self.volumes = instances.parent.parent / "volumes"  # both see it
        self.images = images
        self.compute_id = str(uuid.uuid4())
        self.told: list[tuple[str, int]] = []
        self.live: dict[str, Any] = {}
        self.cpu: dict[str, Any] = {}
        self.driver = self.new_driver()

    def new_driver(self, **live: Any) -> LibvirtDriver:
        self.live = live or self.live
        socket = self.host.path("/run/libvirt/libvirt-sock")
        options = LibvirtOptions(
            connection_uri=f"qemu+unix:///system?socket={socket}",
            virt_type="qemu",
            tb_cache_mib=32,
            vnc_listen=self.host.address,
            live=LiveOptions(address=self.host.address, **self.live),
            **self.cpu,
        )
        return LibvirtDriver(
            options, self.host.name, self.compute_id, self.instances, SystemClock(), self.volumes
        )

    async def open(self) -> None:
        await self.driver.open(lambda guest_uuid, state: self.told.append((guest_uuid, state)))

    async def again(self, **live: Any) -> None:
        """An agent that has restarted, with these options, or with those that it had."""
        await self.driver.close()
        self.driver = self.new_driver(**live)
        await self.open()

    async def close(self) -> None:
        for guest_uuid in await self.driver.guests():
            await self.driver.undefine(guest_uuid)
        await self.driver.close()

    async def presence(self, spec: GuestSpec) -> str:
        return (await self.driver.locate(spec.uuid)).presence

    async def comes_to(self, spec: GuestSpec, presence: str) -> None:
        async def there() -> bool:
            try:
                return await self.presence(spec) == presence
            except TryAgain:
                return False

        await eventually(there, PATIENCE)

    async def says(self, spec: GuestSpec, line: bytes, more: int = 1) -> None:
        """Wait until the guest has written something so many times more."""

        async def count() -> int:
            return (await self.driver.console_output(spec.uuid, 1 << 20)).count(line)

        before = await count()

        async def there() -> bool:
            return await count() >= before + more

        await eventually(there, PATIENCE)

    async def sends(self, spec: GuestSpec, plan: LivePlan) -> LiveOutcome:
        async with asyncio.timeout(PATIENCE):
            return await self.driver.send_live(spec, plan)

    def files(self, spec: GuestSpec) -> Path:
        return self.instances / spec.uuid

    async def xml(self, spec: GuestSpec, flags: int = 0) -> str:
        text: str = await self.driver._connection.call(
            lambda link: link.lookupByUUIDString(spec.uuid).XMLDesc(flags)
        )
        return text


async def stayed(spec: GuestSpec, source: End, target: End) -> None:
    """It is at its source alone, and works."""
    await target.comes_to(spec, Presence.ABSENT)
    await source.comes_to(spec, Presence.RUNNING)
    await source.says(spec, busy_guest.ALIVE, 1)


async def gone(spec: GuestSpec, *ends: End) -> None:
    """The end of a test: nothing of the guest is left anywhere."""
    for end in ends:
        await end.driver.undefine(spec.uuid)
        await end.driver.discard(spec.uuid)


class Pair:
    """``one`` and ``two``; ``images`` is the image service of both."""

    def __init__(self, lab: Lab, directory: Path, *, shared: bool) -> None:
        self.lab = lab
        self.images = Images()
        names = ("both", "both") if shared else ("one", "two")
        self.one, self.two = (
            End(host, directory / name / "instances", self.images)
            for host, name in zip(lab.hosts, names, strict=True)
        )

    def spec(self, pages: int, megabytes: int = 40, **more: Any) -> GuestSpec:
        """A guest that dirties so many pages a tick (18.2 a second)."""
        flavor = {"memory_mb": 64, **more.pop("flavor", {})}
        return guest(self.images.add(busy_guest.image(pages, megabytes)), flavor=flavor, **more)

    async def running(self, spec: GuestSpec, end: End | None = None) -> GuestSpec:
        end = end or self.one
        await end.driver.prepare(spec, self.images)
        await end.driver.start(spec, paused=False)
        await end.says(spec, busy_guest.ALIVE, 0)
        await eventually(lambda: busy_guest.ALIVE in _read(end.files(spec) / "console.log"), PATIENCE)
        return spec

    async def count(self, end: End, spec: GuestSpec) -> int:
        """What the guest has written to its disk last, as the files on this host have it."""
        raw = end.instances / f"{spec.uuid}.raw"
        convert = ("qemu-img", "convert", "-U", "-O", "raw", str(end.files(spec) / "disk"), str(raw))
        await asyncio.to_thread(subprocess.check_call, convert)
        try:
            return busy_guest.count(raw.read_bytes())
        finally:
            raw.unlink()

    async def planned(
        self, spec: GuestSpec, source: End, target: End, arriving: GuestSpec | None = None, **wish: Any
    ) -> LivePlan:
        """Checks and what the destination does before: as the operation has it done."""
        wanted = LiveWish(**wish)
        facts = await target.driver.check_arrival(arriving or spec, wanted)
        try:
            plan = await source.driver.check_departure(spec, wanted, facts)
        finally:
            await target.driver.remove_probe(facts.probe)
        return await target.driver.receive_live(arriving or spec, plan, self.images)

    async def begun(self, spec: GuestSpec, **live: Any) -> asyncio.Task[LiveOutcome]:
        """A guest of host one that is on its way to host two; ``live`` are the source's options."""
        await self.one.again(**live)
        plan = await self.planned(spec, self.one, self.two)
        sent = asyncio.create_task(self.one.sends(spec, plan))
        await self.one.comes_to(spec, Presence.LEAVING)
        await self.two.comes_to(spec, Presence.INCOMING)
        return sent

    async def passed(self, spec: GuestSpec, source: End, target: End, plan: LivePlan) -> None:
        """Settle and leave, and be sure that it is there alone and works."""
        assert await source.presence(spec) == Presence.LEFT
        assert await target.presence(spec) == Presence.RUNNING
        await target.driver.settle_live(spec)
        await source.driver.leave_live(spec.uuid, plan)
        assert await source.presence(spec) == Presence.ABSENT
        assert source.files(spec).exists() is plan.shared_path
        await target.says(spec, busy_guest.ALIVE, 2)


def _read(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""


def backing_of(path: Path) -> str | None:
    text = subprocess.check_output(["qemu-img", "info", "-U", "--output=json", path])
    found: str | None = json.loads(text).get("backing-filename")
    return found


@contextlib.asynccontextmanager
async def pair(*, shared: bool = False, **live: Any) -> AsyncIterator[Pair]:
    directory = Path(tempfile.mkdtemp(prefix="kn-live-"))  # short: sockets are below it
    directory.chmod(0o711)  # QEMU may be somebody else
    lab = Lab(directory / "lab")
    try:
        await lab.up(2)
        made = Pair(lab, directory, shared=shared)
        for end in (made.one, made.two):
            end.driver = end.new_driver(**live)
            await end.open()
        yield made
        for end in (made.one, made.two):
            await end.close()
    finally:
        await lab.down()
        shutil.rmtree(directory)
