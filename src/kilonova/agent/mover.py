"""An agent's part in moves: the driver's work, and the ports, one verb of a guest at a time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

import structlog

from kilonova.agent.transfer import TransferOptions, Transfers
from kilonova.clock import Clock
from kilonova.errors import HostFault
from kilonova.model.port import Vif
from kilonova.model.volume import Attachment
from kilonova.rpc.messages import Command, GuestSpec, Observed
from kilonova.rpc.moves import ArrivalFacts, Inbox, LiveOutcome, LivePlan, LiveWish, Located, Progress
from kilonova.vif.plugger import VifPlugger
from kilonova.virt.driver import Driver, ImageSource

log = structlog.get_logger("kilonova.agent")

T = TypeVar("T")

PLUG_PAUSE = 1.0  # seconds before a port is plugged again; Nova's


class Turns(Protocol):
    """What the agent lends: turns of a guest, with or without its power events heard, a look at it,
    and how far a snapshot of it has been handed in."""

    async def in_turn(self, uuid: str, verb: Callable[[], Awaitable[T]]) -> T: ...
    async def quietly(self, uuid: str, verb: Callable[[], Awaitable[T]]) -> T: ...
    async def look(self, uuid: str) -> Observed: ...
    def handing_in(self, uuid: str) -> Progress | None: ...


class HostMover:
    """Implements rpc.mover.Mover."""

    def __init__(
        self,
        driver: Driver,
        plugger: VifPlugger,
        turns: Turns,
        images: ImageSource,
        transfer: TransferOptions,
        clock: Clock,
        plug_tries: int = 30,
    ) -> None:
        """``plug_tries``: how often a port of a guest that comes live is plugged until that has failed."""
        self._clock = clock
        self._plug_tries = plug_tries
        self.transfers = Transfers(transfer)
        self._images = images
        self._driver = driver
        self._plugger = plugger
        self._turns = turns

    # ---- looking ----

    async def locate(self, uuid: str) -> Located:
        return await self._driver.locate(uuid)

    async def progress(self, uuid: str) -> Progress:
        known = self._turns.handing_in(uuid) or self.transfers.progress(uuid)
        return known or await self._driver.live_progress(uuid)

    async def check_volumes(self, uuid: str, volumes: tuple[Attachment, ...]) -> None:
        await self._driver.check_volumes(volumes)

    # ---- storage that both share ----

    async def put_probe(self, command: Command, uuid: str) -> str:
        return await self._driver.put_probe()

    async def see_probe(self, uuid: str, probe: str) -> bool:
        return await self._driver.see_probe(probe)

    async def remove_probe(self, command: Command, uuid: str, probe: str) -> None:
        await self._driver.remove_probe(probe)

    # ---- cold ----

    async def check_room(self, command: Command, guest: GuestSpec) -> None:
        await self._turns.in_turn(guest.uuid, lambda: self._driver.check_room(guest))

    async def park(self, command: Command, uuid: str) -> None:
        await self._turns.quietly(uuid, lambda: self._driver.park(uuid))

    async def unpark(self, command: Command, uuid: str) -> None:
        self.transfers.stop_sending(uuid)
        await self._turns.in_turn(uuid, lambda: self._driver.unpark(uuid))

    async def drop_parked(self, command: Command, uuid: str) -> None:
        await self._turns.in_turn(uuid, lambda: self._driver.drop_parked(uuid))

    async def adopt_parked(self, command: Command, guest: GuestSpec) -> None:
        await self._turns.in_turn(guest.uuid, lambda: self._driver.adopt_parked(guest))

    async def open_inbox(self, command: Command, guest: GuestSpec) -> Inbox:
        async def verb() -> Inbox:
            return await self.transfers.open(guest, await self._driver.begin_receiving(guest))

        return await self._turns.in_turn(guest.uuid, verb)

    async def send_files(self, command: Command, uuid: str, inbox: Inbox) -> None:
        async def verb() -> None:
            await self.transfers.send(uuid, await self._driver.parked_files(uuid), inbox)

        await self._turns.in_turn(uuid, verb)

    async def close_inbox(self, command: Command, uuid: str) -> None:
        await self.transfers.close(uuid)

    async def fit_disks(self, command: Command, guest: GuestSpec) -> None:
        await self._turns.in_turn(guest.uuid, lambda: self._driver.fit_disks(guest))

    # ---- live ----

    async def check_arrival(self, command: Command, guest: GuestSpec, wish: LiveWish) -> ArrivalFacts:
        return await self._turns.in_turn(guest.uuid, lambda: self._driver.check_arrival(guest, wish))

    async def check_departure(
        self, command: Command, guest: GuestSpec, wish: LiveWish, facts: ArrivalFacts
    ) -> LivePlan:
        return await self._turns.in_turn(guest.uuid, lambda: self._driver.check_departure(guest, wish, facts))

    async def receive_live(self, command: Command, guest: GuestSpec, plan: LivePlan) -> LivePlan:
        async def verb() -> LivePlan:
            received = await self._driver.receive_live(guest, plan, self._images)
            for vif in guest.vifs:
                await self._plug(vif, guest)
            return received

        return await self._turns.quietly(guest.uuid, verb)

    async def send_live(self, command: Command, guest: GuestSpec, plan: LivePlan) -> LiveOutcome:
        return await self._turns.quietly(guest.uuid, lambda: self._driver.send_live(guest, plan))

    async def steer_live(self, uuid: str, wish: str) -> bool:
        return await self._driver.steer_live(uuid, wish)

    async def settle_live(self, command: Command, guest: GuestSpec) -> Observed:
        async def verb() -> Observed:
            await self._driver.settle_live(guest)
            return await self._turns.look(guest.uuid)

        return await self._turns.quietly(guest.uuid, verb)

    async def leave_live(self, command: Command, uuid: str, plan: LivePlan) -> None:
        async def verb() -> None:
            await self._driver.leave_live(uuid, plan)
            await self._unplug(uuid, plan.old_vifs)

        await self._turns.quietly(uuid, verb)

    async def _plug(self, vif: Vif, guest: GuestSpec) -> None:
        """Raises HostFault when it has failed for the last time."""
        for left in reversed(range(self._plug_tries)):
            try:
                await self._plugger.plug(vif, guest.uuid, guest.name)
            except HostFault as error:
                if not left:
                    raise
                log.warning("a port is plugged again", port=vif.port_id, tries_left=left, error=str(error))
            else:
                return
            await self._clock.sleep(PLUG_PAUSE)

    async def _unplug(self, uuid: str, vifs: tuple[Vif, ...]) -> None:
        for vif in vifs:
            await self._plugger.unplug(vif, uuid, "")
