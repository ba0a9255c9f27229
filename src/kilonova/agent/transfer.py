"""Files of guests on their way from one agent to another (cold moves): who may send, who sends, how far."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from kilonova.rpc.messages import GuestSpec
from kilonova.rpc.moves import Inbox, Progress
from kilonova.settings import Settings
from kilonova.threads import in_own_thread

if TYPE_CHECKING:  # TLS and its certificates are not what a start has to wait for
    from kilonova.agent.transfer_inbox import FileInbox
    from kilonova.agent.transfer_send import FileSender


GIB = 1 << 30
MIB = 1 << 20
CONSOLE = 64 * MIB  # what a guest's console log may have, at most
UNBOUNDED = 1 << 60  # a root disk that its flavor does not bound: the space there is does
NOTHING = Inbox(address="", port=0, token="", fingerprint="")


class TransferOptions(msgspec.Struct, frozen=True, kw_only=True):
    """``address`` is where others reach this host; ``ports`` empty: any; ``bandwidth`` in bytes a second, 0:
    as much as there is."""

    address: str = "127.0.0.1"
    ports: range = range(0)
    bandwidth: int = 0


LOCAL = TransferOptions()


def transfer_options(settings: Settings) -> TransferOptions:
    """Raises ValueError for a range of ports that is none."""
    first, dash, last = settings.text("cold_migration_ports", "libvirt").partition("-")
    ports = range(int(first), int(last if dash else first) + 1) if first else range(0)
    return TransferOptions(
        address=settings.text("live_migration_inbound_addr", "libvirt") or settings.text("my_ip"),
        ports=ports,
        bandwidth=settings.number("cold_migration_bandwidth", "libvirt") * MIB,
    )


class Transfers:
    """All transfers that this host takes part in."""

    def __init__(self, options: TransferOptions) -> None:
        self._options = options
        self._inboxes: dict[str, FileInbox] = {}
        self._senders: dict[str, FileSender] = {}

    async def open(self, guest: GuestSpec, directory: Path | None) -> Inbox:
        """The inbox for a guest's files; None: it has none.  Raises HostFault."""
        if directory is None:
            return NOTHING
        known = self._inboxes.get(guest.uuid)
        if known is None:
            from kilonova.agent.transfer_inbox import FileInbox

            options = self._options
            known = FileInbox(directory, most_of(guest), options.address, options.ports)
            self._inboxes[guest.uuid] = known
        return known.inbox

    async def close(self, uuid: str) -> None:
        """Take in nothing more; when this returns nothing is written any more."""
        known = self._inboxes.pop(uuid, None)
        if known is not None:
            await in_own_thread("inbox end", known.close)

    async def send(self, uuid: str, paths: tuple[Path, ...], inbox: Inbox) -> None:
        """As `FileSender.send`.  Ends with its caller."""
        if not paths:
            return
        from kilonova.agent.transfer_send import FileSender

        sender = FileSender(uuid, paths, inbox, self._options.bandwidth)
        self._senders[uuid] = sender
        try:
            await in_own_thread("file sender", sender.send, sender.stop)
        finally:
            if self._senders.get(uuid) is sender:
                del self._senders[uuid]

    def stop_sending(self, uuid: str) -> None:
        sender = self._senders.get(uuid)
        if sender is not None:
            sender.stop()

    def progress(self, uuid: str) -> Progress | None:
        """None: nothing of that guest is sent."""
        sender = self._senders.get(uuid)
        return None if sender is None else sender.progress()

    async def shut_down(self) -> None:
        for uuid in tuple(self._senders):
            self.stop_sending(uuid)
        for uuid in tuple(self._inboxes):
            await self.close(uuid)


def most_of(guest: GuestSpec) -> int:
    """How many bytes the files of a guest can have: its disks, with a little for their format, its image
    and its console."""
    flavor, image = guest.flavor, guest.image
    disks = flavor.ephemeral_gb * GIB + flavor.swap_mb * MIB + 2 * (64 * MIB) + CONSOLE
    root = flavor.root_gb * GIB * 65 // 64 if flavor.root_gb else UNBOUNDED
    return disks + root + (image.size if image else 0)
