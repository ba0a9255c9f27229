"""What a hypervisor driver does, in the domain's words.  Nothing here knows of operations or databases."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Protocol

from kilonova.model.host import HostReport
from kilonova.model.port import Vif
from kilonova.model.volume import Attachment
from kilonova.rpc.messages import Diagnostics, GuestSpec
from kilonova.virt.moving import MovingDriver


class ImageSource(Protocol):
    """Where a host gets image data from."""

    def read(self, image_id: str) -> AsyncIterator[bytes]:
        """The stored bytes of an image, in pieces.  Raises NotFound or Unreachable."""


class SnapshotData(Protocol):
    """What a snapshot has in it.  ``size`` in bytes; ``disk_format`` is raw or qcow2."""

    size: int
    disk_format: str

    async def read(self, offset: int, size: int) -> bytes:
        """At most so many bytes from there on."""


PowerEvent = Callable[[str, int], None]
"""Called in the event loop with a guest's uuid and its new power state."""


class Driver(MovingDriver, Protocol):
    """A hypervisor on this host.  Each method converges when repeated.

    Raises HostFault for what another host might manage, Failed for what none could, TryAgain when the
    hypervisor does not answer for the moment.
    """

    name: str  # "libvirt", "fake": shown in diagnostics
    hypervisor_type: str  # "QEMU", "fake"
    stopped_delay: float  # seconds for which a guest that goes off may be one that is being restarted

    async def open(self, on_power_event: PowerEvent) -> None:
        """Connect; from then on power changes are reported."""

    async def close(self) -> None:
        """Let go.  Guests run on."""

    async def report(self) -> HostReport:
        """What this host has: all of it, with nothing kept back for the host (that is the agent's).

        ``providers`` are those below the compute node's own, which has ``inventories``.
        """

    async def cpu_stats(self) -> dict[str, int]:
        """Nanoseconds since boot that all of the host's CPUs have spent together: ``user``, ``kernel``,
        ``idle``, ``iowait``; and ``frequency`` in MHz.  What is not known is left out."""

    async def guests(self) -> dict[str, int]:
        """The power state of every guest of ours on this host, by uuid."""

    async def prepare(self, guest: GuestSpec, images: ImageSource) -> None:
        """Disks and config drive.  What is there already and right is kept.

        Raises Failed for an image or a flavor that no host can use, HostFault, Unreachable.
        """

    async def discard(self, uuid: str) -> None:
        """Remove all files of a guest."""

    async def snapshot(self, uuid: str, image_id: str) -> None:
        """Put what the guest's root disk holds into a file of its own that needs no other one.

        One that runs goes on, and is copied as it is at one moment.  A snapshot for that image that is there
        and complete is kept.  Raises HostFault.
        """

    async def snapshot_data(self, uuid: str, image_id: str) -> SnapshotData:
        """Raises HostFault if there is no such snapshot."""

    async def drop_snapshot(self, uuid: str, image_id: str) -> None:
        """Remove it; none is no error."""

    async def start(self, guest: GuestSpec, *, paused: bool) -> None:
        """Define the guest as ``guest`` says and start it.

        One that runs already is left alone; one that is paused goes on, unless ``paused``.
        Raises HostFault if it was not prepared or does not start.
        """

    async def attach_interface(self, guest: GuestSpec, vif: Vif) -> None:
        """Give the guest a network card for that port, unless it has it: now if it runs or is paused, and in
        its definition.  One that is not defined gets it when it is started.

        Raises HostFault if there is no place for it.
        """

    async def detach_interface(self, guest: GuestSpec, vif: Vif) -> None:
        """Take the port's network card from the guest and its definition; none is no error.

        It is gone then: the guest was asked and has let go of it.  Raises HostFault if it does not; then it
        has it still.
        """

    async def attach_volume(self, guest: GuestSpec, volume: Attachment) -> None:
        """Give the guest that volume as a disk, unless it has it: now if it runs or is paused, and in its
        definition.  One that is not defined gets it when it is started.

        Raises HostFault if this host does not see the volume, or there is no place for it.
        """

    async def detach_volume(self, guest: GuestSpec, volume: Attachment) -> None:
        """Take the volume from the guest and its definition; none is no error.

        It is gone then: the guest was asked and has let go of it.  Raises HostFault if it does not; then it
        has it still.  Whether this host sees the volume does not matter.
        """

    async def resume(self, uuid: str) -> None:
        """Let a paused guest go on.  Raises NotFound, and HostFault if it is off."""

    async def request_shutdown(self, uuid: str) -> None:
        """Press the power button (ACPI).  Returns at once; a guest that does not run is no error."""

    async def request_reboot(self, uuid: str) -> bool:
        """Ask the guest to restart itself and wait until it has.

        False if it did not in time, or does not run.  Raises NotFound.
        """

    async def power_off(self, uuid: str) -> None:
        """End the guest at once; its definition stays.  A guest that is off, or none, is no error."""

    async def undefine(self, uuid: str) -> None:
        """End the guest if it runs and forget its definition; its files stay."""

    async def power_state(self, uuid: str) -> int:
        """0 if there is no such guest."""

    async def console_output(self, uuid: str, limit: int) -> bytes:
        """At most the last ``limit`` bytes of its serial console.  Raises NotFound."""

    async def diagnostics(self, uuid: str) -> Diagnostics:
        """Raises NotFound."""

    async def remove_unused_images(self, age: float) -> list[str]:
        """Forget cached images that no guest uses and nobody has asked for in ``age`` seconds.

        Gives the names of what was removed.
        """
