"""The same hypervisor scenes on the fake driver and on libvirt."""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import Any

from kilonova.clock import SystemClock
from kilonova.model.host import Inventory
from kilonova.rpc.messages import GuestSpec
from kilonova.virt.driver import Driver
from kilonova.virt.fake.driver import FakeDriver
from tests.real import tiny_guest
from tests.unit.virt.sources import Images, guest

SOFT_REBOOT_TIMEOUT = 1.0


class Rig:
    """A driver that is open, and what it tells.  ``starts`` counts a guest's starts on its console."""

    driver: Driver

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.images = Images()
        self.events: list[tuple[str, int]] = []
        self.compute_id = str(uuid.uuid4())

    def new_driver(self) -> Driver:
        raise NotImplementedError

    async def open(self) -> None:
        self.driver = self.new_driver()
        await self.driver.open(lambda uuid, state: self.events.append((uuid, state)))

    async def reopen(self) -> None:
        """As when the agent is restarted."""
        await self.driver.close()
        await self.open()

    async def close(self) -> None:
        for uuid_ in await self.driver.guests():
            await self.driver.undefine(uuid_)
            await self.driver.discard(uuid_)
        await self.driver.close()

    def guest(self, kind: int = 0, **more: Any) -> GuestSpec:
        """``kind``: DEAF and QUITS of the tiny guest."""
        raise NotImplementedError

    async def prepared(self, kind: int = 0, **more: Any) -> GuestSpec:
        made = self.guest(kind, **more)
        await self.driver.prepare(made, self.images)
        return made

    async def running(self, kind: int = 0, **more: Any) -> GuestSpec:
        made = await self.prepared(kind, **more)
        await self.driver.start(made, paused=False)
        return made

    async def is_up(self, spec: GuestSpec) -> bool:
        """Whether the guest's own program runs."""
        return await self.starts(spec) > 0

    async def starts(self, spec: GuestSpec) -> int:
        raise NotImplementedError

    async def quit(self, spec: GuestSpec) -> None:
        """A paused guest of the kind QUITS goes on, and off."""
        raise NotImplementedError


class FakeRig(Rig):
    driver: FakeDriver

    def new_driver(self) -> Driver:
        capacity = {
            "VCPU": Inventory(total=8),
            "MEMORY_MB": Inventory(total=8192),
            "DISK_GB": Inventory(total=100),
        }
        return FakeDriver("here", self.compute_id, self.directory, SystemClock(), capacity)

    def guest(self, kind: int = 0, **more: Any) -> GuestSpec:
        made = guest(self.images.add(b"x"), **more)
        if kind & tiny_guest.DEAF:
            self.driver.ignores_shutdown.add(made.uuid)
        return made

    async def starts(self, spec: GuestSpec) -> int:
        return self.driver.guest_file.starts(spec.uuid)[0]

    async def quit(self, spec: GuestSpec) -> None:
        await self.driver.resume(spec.uuid)
        self.driver.turn_off(spec.uuid)


class LibvirtRig(Rig):
    def new_driver(self) -> Driver:
        from kilonova.virt.libvirt.driver import LibvirtDriver
        from kilonova.virt.libvirt.options import LibvirtOptions

        assert os.environ.get("KILONOVA_SANDBOX"), "run this with tools/sandbox.sh"
        options = LibvirtOptions(virt_type="qemu", soft_reboot_timeout=SOFT_REBOOT_TIMEOUT)
        return LibvirtDriver(options, "here", self.compute_id, self.directory / "instances", SystemClock())

    def guest(self, kind: int = 0, **more: Any) -> GuestSpec:
        return guest(self.images.add(tiny_guest.image(kind)), **more)

    async def starts(self, spec: GuestSpec) -> int:
        return (await self.driver.console_output(spec.uuid, 1 << 20)).count(tiny_guest.UP)

    async def quit(self, spec: GuestSpec) -> None:
        await self.driver.resume(spec.uuid)
