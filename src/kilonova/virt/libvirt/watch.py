"""What the guests of this host do by themselves: libvirt's events, and what was missed without them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from kilonova.errors import TryAgain
from kilonova.model.states import Power
from kilonova.virt.driver import PowerEvent

log = structlog.get_logger("kilonova.virt")

# virDomainEventType -> power state; "shutdown" (6) is the guest's way down and says nothing new.
STARTED, SUSPENDED, RESUMED, STOPPED, PM_SUSPENDED, CRASHED = 2, 3, 4, 5, 7, 8
MIGRATED = 3  # virDomainEventStoppedDetailType
STATES = {
    STARTED: Power.RUNNING,
    SUSPENDED: Power.PAUSED,
    RESUMED: Power.RUNNING,
    STOPPED: Power.SHUTDOWN,
    PM_SUSPENDED: Power.SUSPENDED,
    CRASHED: Power.CRASHED,
}


class Removal:
    """A device that a guest was asked to let go of: ``told`` when libvirt has said how that ended, or when
    nothing more will be heard."""

    def __init__(self) -> None:
        self.told = asyncio.Event()
        self.refused = False


class Watch:
    """Implements connection.Listener: knows our guests and tells when their power changes.

    Guests of others in the same libvirt are none of our business.
    """

    def __init__(self, states: Callable[[], Awaitable[dict[str, int]]]) -> None:
        self._look = states
        self._known: dict[str, int] = {}
        self._tell: PowerEvent | None = None
        self._reboots: dict[str, asyncio.Future[bool]] = {}
        self._removals: dict[tuple[str, str], Removal] = {}

    async def open(self, on_power_event: PowerEvent) -> None:
        """Raises TryAgain."""
        self._known = await self._look()
        self._tell = on_power_event

    def close(self) -> None:
        self._tell = None
        self.lost()

    def add(self, uuid: str) -> None:
        """A guest that is about to be ours."""
        self._known.setdefault(uuid, Power.NOSTATE)

    def remove(self, uuid: str) -> None:
        self._known.pop(uuid, None)

    def reboot_of(self, uuid: str) -> asyncio.Future[bool]:
        """True when the guest has restarted, False when it went off in place of that."""
        waiting: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._reboots[uuid] = waiting
        return waiting

    def forget_reboot(self, uuid: str) -> None:
        waiting = self._reboots.pop(uuid, None)
        if waiting is None or waiting.cancelled():
            return
        if waiting.done():
            waiting.exception()  # looked at: whoever asked has failed otherwise
        else:
            waiting.cancel()

    def removal_of(self, uuid: str, alias: str) -> Removal:
        """A device, by libvirt's alias, that is about to be asked for."""
        removal = self._removals[uuid, alias] = Removal()
        return removal

    def forget_removal(self, uuid: str, alias: str) -> None:
        self._removals.pop((uuid, alias), None)

    # ---- what the connection tells ----

    def lifecycle(self, uuid: str, event: int, detail: int) -> None:
        state = STATES.get(event)
        if state is None or uuid not in self._known:
            return
        if state in (Power.SHUTDOWN, Power.CRASHED):
            self._settle_reboot(uuid, restarted=False)
        if (event, detail) == (STOPPED, MIGRATED):  # it is not off: it goes on elsewhere
            self._known[uuid] = Power.NOSTATE
            return
        self._change(uuid, state)

    def rebooted(self, uuid: str) -> None:
        self._settle_reboot(uuid, restarted=True)

    def device_removed(self, uuid: str, alias: str, *, refused: bool) -> None:
        removal = self._removals.get((uuid, alias))
        if removal is not None:
            removal.refused = refused
            removal.told.set()

    def lost(self) -> None:
        for removal in self._removals.values():
            removal.told.set()
        for waiting in self._reboots.values():
            if not waiting.done():
                waiting.set_exception(TryAgain("libvirtd went away while the guest restarted."))

    async def back(self) -> None:
        now = await self._look()
        for uuid, before in list(self._known.items()):
            state = now.get(uuid, Power.NOSTATE)
            if state != before:
                self._change(uuid, state)
        for uuid, state in now.items():
            self._known.setdefault(uuid, state)
        log.info("guests found again", guests=len(now))

    # ---- inside ----

    def _settle_reboot(self, uuid: str, *, restarted: bool) -> None:
        waiting = self._reboots.get(uuid)
        if waiting is not None and not waiting.done():
            waiting.set_result(restarted)

    def _change(self, uuid: str, state: int) -> None:
        self._known[uuid] = state
        if self._tell is not None:
            self._tell(uuid, state)
