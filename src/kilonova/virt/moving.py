"""What a hypervisor driver does in moves."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from kilonova.model.volume import Attachment
from kilonova.rpc.messages import GuestSpec
from kilonova.rpc.moves import ArrivalFacts, LiveOutcome, LivePlan, LiveWish, Located, Progress

if TYPE_CHECKING:
    from kilonova.virt.driver import ImageSource


class MovingDriver(Protocol):
    """A part of `virt.driver.Driver`.  The verbs of `rpc.mover` say what each is for; those not described
    here do what the verb of the same name says.  Each converges when repeated."""

    async def locate(self, uuid: str) -> Located: ...

    async def live_progress(self, uuid: str) -> Progress:
        """Of a guest that is being sent live; phase "none" of any other."""

    async def check_volumes(self, volumes: tuple[Attachment, ...]) -> None: ...

    async def put_probe(self) -> str: ...
    async def see_probe(self, probe: str) -> bool: ...
    async def remove_probe(self, probe: str) -> None: ...

    async def check_room(self, guest: GuestSpec) -> None: ...
    async def park(self, uuid: str) -> None: ...
    async def unpark(self, uuid: str) -> None: ...
    async def drop_parked(self, uuid: str) -> None: ...
    async def adopt_parked(self, guest: GuestSpec) -> None: ...

    async def parked_files(self, uuid: str) -> tuple[Path, ...]:
        """What is to be sent of a guest that was put aside: files of one directory.  Raises HostFault."""

    async def begin_receiving(self, guest: GuestSpec) -> Path | None:
        """The directory for the files of a guest that comes, made if need be; None: it has no files.

        What this host has already of what will come is put there: it need not be sent."""

    async def fit_disks(self, guest: GuestSpec) -> None: ...

    async def check_arrival(self, guest: GuestSpec, wish: LiveWish) -> ArrivalFacts: ...
    async def check_departure(self, guest: GuestSpec, wish: LiveWish, facts: ArrivalFacts) -> LivePlan: ...

    async def receive_live(self, guest: GuestSpec, plan: LivePlan, images: ImageSource) -> LivePlan:
        """As `rpc.mover.Mover.receive_live`, without the ports: they are plugged after it."""

    async def send_live(self, guest: GuestSpec, plan: LivePlan) -> LiveOutcome:
        """As `rpc.mover.Mover.send_live`.  When the task that waits for it is cancelled, what is under way
        goes on; the next call takes it over."""

    async def steer_live(self, uuid: str, wish: str) -> bool: ...
    async def settle_live(self, guest: GuestSpec) -> None: ...

    async def leave_live(self, uuid: str, plan: LivePlan) -> None:
        """As `rpc.mover.Mover.leave_live`, without the ports."""
