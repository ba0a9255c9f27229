"""The same hypervisor scenes on the fake driver and on libvirt."""

from __future__ import annotations

import contextlib
import os
import uuid
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from kilonova.clock import SystemClock
from kilonova.model.host import Inventory
from kilonova.model.port import Vif
from kilonova.model.volume import Attachment
from kilonova.rpc.messages import GuestSpec
from kilonova.virt.driver import Driver
from kilonova.virt.fake.driver import FakeDriver
from tests.real import tiny_guest
from tests.real.libvirt_host import new_volume, tap
from tests.unit.virt.sources import Images, guest

SOFT_REBOOT_TIMEOUT = 1.0


class Rig(ABC):
    """A driver that is open, and what it tells.  ``starts`` counts a guest's starts on its console."""

    driver: Driver

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.volumes = directory / "volumes"
        self.images = Images()
        self.events: list[tuple[str, int]] = []
        self.compute_id = str(uuid.uuid4())

    @abstractmethod
    def new_driver(self) -> Driver: ...

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

    @abstractmethod
    def guest(self, kind: int = 0, **more: Any) -> GuestSpec:
        """``kind``: DEAF and QUITS of the tiny guest."""

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

    @abstractmethod
    async def starts(self, spec: GuestSpec) -> int: ...

    @abstractmethod
    async def quit(self, spec: GuestSpec) -> None:
        """A paused guest of the kind QUITS goes on, and off."""

    def volume(self, device: str = "/dev/vdb") -> Attachment:
        """A volume that this host sees."""
        return new_volume(self.volumes, device)

    @abstractmethod
    def hide(self, volume: Attachment) -> None:
        """This host does not see it any more."""

    @abstractmethod
    def keeps_devices(self, spec: GuestSpec) -> None:
        """The guest does not let go of what is to be unplugged."""

    def plugged(self, vif: Vif) -> contextlib.AbstractContextManager[object]:
        """The port is on this host's switch."""
        return contextlib.nullcontext()


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

    def hide(self, volume: Attachment) -> None:
        self.driver.unreachable.add(volume.volume_id)

    def keeps_devices(self, spec: GuestSpec) -> None:
        self.driver.keeps_devices.add(spec.uuid)


class LibvirtRig(Rig):
    def new_driver(self) -> Driver:
        from kilonova.virt.libvirt.driver import LibvirtDriver
        from kilonova.virt.libvirt.options import LibvirtOptions

        assert os.environ.get("KILONOVA_SANDBOX"), "run this with tools/sandbox.sh"
        options = LibvirtOptions(
            virt_type="qemu",
            soft_reboot_timeout=SOFT_REBOOT_TIMEOUT,
            detach_attempts=2,
            detach_timeout=0.5,
        )
        instances = self.directory / "instances"
        return LibvirtDriver(options, "here", self.compute_id, instances, SystemClock(), self.volumes)

    def guest(self, kind: int = 0, **more: Any) -> GuestSpec:
        return guest(self.images.add(tiny_guest.image(kind)), **more)

    async def starts(self, spec: GuestSpec) -> int:
        return (await self.driver.console_output(spec.uuid, 1 << 20)).count(tiny_guest.UP)

    async def quit(self, spec: GuestSpec) -> None:
        await self.driver.resume(spec.uuid)

    def hide(self, volume: Attachment) -> None:
        (self.volumes / volume.volume_id).rename(self.directory / volume.volume_id)

    def keeps_devices(self, spec: GuestSpec) -> None:
        """It is a boot sector that knows nothing of such."""

    def plugged(self, vif: Vif) -> contextlib.AbstractContextManager[object]:
        return tap(vif)
