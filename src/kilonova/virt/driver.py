"""What a hypervisor driver does, in the domain's words.  Nothing here knows of operations or databases."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Protocol

from kilonova.model.host import HostReport
from kilonova.rpc.messages import Diagnostics, GuestSpec


class ImageSource(Protocol):
    """Where a host gets image data from."""

    def read(self, image_id: str) -> AsyncIterator[bytes]:
        """The stored bytes of an image, in pieces.  Raises NotFound or Unreachable."""


PowerEvent = Callable[[str, int], None]
"""Called in the event loop with a guest's uuid and its new power state."""


class Driver(Protocol):
    """A hypervisor on this host.  Each method converges when repeated.

    Raises HostFault for what another host might manage, Failed for what none could, TryAgain when the
    hypervisor does not answer for the moment.
    """

    name: str  # "libvirt", "fake": shown in diagnostics
    hypervisor_type: str  # "QEMU", "fake"

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

    async def start(self, guest: GuestSpec, *, paused: bool) -> None:
        """Define the guest as ``guest`` says and start it.

        One that runs already is left alone; one that is paused goes on, unless ``paused``.
        Raises HostFault if it was not prepared or does not start.
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
