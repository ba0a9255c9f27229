"""The verbs of a host's agent.  Every one converges: asking twice does no more than asking once."""

from __future__ import annotations

from typing import Protocol

from kilonova.model.port import Vif
from kilonova.model.volume import Attachment
from kilonova.rpc.messages import Command, Diagnostics, GuestSpec, Observed
from kilonova.rpc.mover import Mover


class HostAgent(Protocol):
    """One compute host, near (same process) or far (over the bus).

    All verbs raise Unreachable when the agent does not answer, HostFault when this host cannot do it but
    another may, Failed when no host could, NotFound for a guest that is not there (where one must be).
    """

    async def prepare(self, command: Command, guest: GuestSpec) -> None:
        """Put the guest's disks and config drive in place; its image comes through the cache."""

    async def plug(self, command: Command, guest: GuestSpec) -> None:
        """Create the ports on the switch, isolated until the network service wires them."""

    async def start(self, command: Command, guest: GuestSpec, *, paused: bool) -> Observed:
        """Define and start the guest; ``paused`` leaves its CPUs stopped."""

    async def resume(self, command: Command, uuid: str) -> Observed:
        """Let a paused guest run."""

    async def shut_down(self, command: Command, uuid: str, *, timeout: float, clean: bool) -> Observed:
        """Turn the guest off: ask it first if ``clean``, force it after ``timeout`` seconds."""

    async def reboot(self, command: Command, guest: GuestSpec, *, hard: bool, timeout: float) -> Observed:
        """Soft: ask the guest, and fall back to hard after ``timeout`` seconds.

        Hard: stop it, define it anew, plug its ports again and start it.  Done once per command id.
        """

    async def destroy(self, command: Command, uuid: str) -> None:
        """End the guest at once and forget its definition; its disks stay."""

    async def unplug(self, command: Command, uuid: str, vifs: tuple[Vif, ...]) -> None:
        """Take the ports off the switch."""

    async def attach_interface(self, command: Command, guest: GuestSpec, vif: Vif) -> None:
        """Give the guest a network card for a port that is plugged: at once if it runs, and at each start."""

    async def detach_interface(self, command: Command, guest: GuestSpec, vif: Vif) -> None:
        """Take the network card of a port from the guest and wait until it has let go of it; the port stays
        plugged.

        Raises HostFault for a guest that does not let go of it.
        """

    async def attach_volume(self, command: Command, guest: GuestSpec, attachment: Attachment) -> None:
        """Give the guest a volume that is connected to this host: at once if it runs, and at each start.

        Raises HostFault, with the volume's id and where it was looked for, if this host does not see it.
        """

    async def detach_volume(self, command: Command, guest: GuestSpec, attachment: Attachment) -> None:
        """Take the volume from the guest and wait until it has let go of it; what is on it stays.

        Raises HostFault for a guest that does not let go of it.
        """

    async def discard(self, command: Command, uuid: str) -> None:
        """Remove all of the guest's files.  Interrupts whatever is being done for that guest."""

    async def snapshot(self, command: Command, uuid: str, image_id: str) -> None:
        """Put what the root disk of a guest holds into a file, which stays until it is dropped."""

    async def upload_snapshot(self, command: Command, uuid: str, image_id: str) -> None:
        """Hand that file in as the data of the image, which an operation has opened for this host.

        A repeat goes on where a former try has ended.  `Mover.progress` tells how far it is.  Raises
        HostFault if there is no such file, or the image is wanted no more.
        """

    async def drop_snapshot(self, command: Command, uuid: str, image_id: str) -> None:
        """Remove that file.  Interrupts whatever is being done for that guest."""

    async def observe(self, uuid: str) -> Observed:
        """What the guest is doing now; power state 0 if it is not there."""

    async def console_output(self, uuid: str) -> bytes:
        """What the guest wrote to its serial console, at most the last 256 KiB."""

    async def diagnostics(self, uuid: str) -> Diagnostics:
        """The guest's counters.  Raises Conflict if it does not run."""


class HostDirectory(Protocol):
    """Finds the hands of a host by its name."""

    def agent(self, host: str) -> HostAgent:
        """Raises Unreachable for a host that nobody has heard of."""

    def mover(self, host: str) -> Mover:
        """Who takes part in moves there.  Raises as ``agent`` does."""
