"""The verbs with which an agent takes part in moves.  Every one converges, as those of `rpc.host`."""

from __future__ import annotations

from typing import Protocol

from kilonova.model.volume import Attachment
from kilonova.rpc.messages import Command, GuestSpec, Observed
from kilonova.rpc.moves import ArrivalFacts, Inbox, LiveOutcome, LivePlan, LiveWish, Located, Progress


class Mover(Protocol):
    """One compute host as the source or the destination of a move.

    ``guest`` is the guest as it is to be on the host that is asked: with the flavor, the ports and the claim
    that it has there.  All verbs raise what those of `HostAgent` raise.
    """

    # ---- looking; no command, and never behind another verb of the guest ----

    async def locate(self, uuid: str) -> Located:
        """Where the guest is, as this host's hypervisor knows.  Raises Unreachable rather than guess."""

    async def progress(self, uuid: str) -> Progress:
        """How far a transfer from this host has come."""

    async def check_volumes(self, uuid: str, volumes: tuple[Attachment, ...]) -> None:
        """Whether this host could give the guest these volumes, as they are connected to it.

        Raises HostFault that names one that it does not see, and where."""

    # ---- storage that both share ----

    async def put_probe(self, command: Command, uuid: str) -> str:
        """Make a file among the guests' files; its name."""

    async def see_probe(self, uuid: str, probe: str) -> bool:
        """Whether a file that another host has made is to be seen here, too."""

    async def remove_probe(self, command: Command, uuid: str, probe: str) -> None: ...

    # ---- cold: the guest is off, its files travel ----

    async def check_room(self, command: Command, guest: GuestSpec) -> None:
        """Whether the guest's files can come here.  Raises HostFault when there is no room, or when there are
        files of it that are not from this command."""

    async def park(self, command: Command, uuid: str) -> None:
        """Forget the guest's definition and put its files aside, as ``UUID_resize``."""

    async def unpark(self, command: Command, uuid: str) -> None:
        """Take back the files that were put aside, instead of those that came after them."""

    async def drop_parked(self, command: Command, uuid: str) -> None:
        """Remove the files that were put aside."""

    async def adopt_parked(self, command: Command, guest: GuestSpec) -> None:
        """Make the guest's files from those that were put aside here, or on storage that is shared."""

    async def open_inbox(self, command: Command, guest: GuestSpec) -> Inbox:
        """Be ready to take in the guest's files; the same inbox at a repeat, while this agent lives."""

    async def send_files(self, command: Command, uuid: str, inbox: Inbox) -> None:
        """Send the files that were put aside; goes on where a former try has ended.  Returns when the
        destination has checked all of them."""

    async def close_inbox(self, command: Command, uuid: str) -> None: ...

    async def fit_disks(self, command: Command, guest: GuestSpec) -> None:
        """Give the disks that have come the sizes that the guest's flavor says; nothing shrinks.

        Raises Failed for a disk that would have to."""

    # ---- live: the guest runs on ----

    async def check_arrival(self, command: Command, guest: GuestSpec, wish: LiveWish) -> ArrivalFacts:
        """Whether the guest could run here (MG-LM-7).  Raises HostFault.  `remove_probe` ends it."""

    async def check_departure(
        self, command: Command, guest: GuestSpec, wish: LiveWish, facts: ArrivalFacts
    ) -> LivePlan:
        """How it could be sent there (MG-LM-8).  Raises HostFault with Nova's reasons."""

    async def receive_live(self, command: Command, guest: GuestSpec, plan: LivePlan) -> LivePlan:
        """Get ready at the destination: directory, disks to be filled, ports, isolated until they are wired
        (MG-LM-11, 12).  The plan, with this host's address.  Raises HostFault if the directory is there."""

    async def send_live(self, command: Command, guest: GuestSpec, plan: LivePlan) -> LiveOutcome:
        """Send the guest while it runs; returns when it has been decided on which side it goes on.

        A repeat takes over what is under way.  The outcome is what QEMU on this host says."""

    async def steer_live(self, uuid: str, wish: str) -> bool:
        """Abort it, or bring it to its end (``abort``, ``force_complete``); False if nothing is sent."""

    async def settle_live(self, command: Command, guest: GuestSpec) -> Observed:
        """The guest has come: have it defined here for good.  Observed as it is."""

    async def leave_live(self, command: Command, uuid: str, plan: LivePlan) -> None:
        """The guest has gone: remove what is left of it here, with the ports as they were (OVS-21)."""
