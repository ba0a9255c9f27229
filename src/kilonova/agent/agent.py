"""The agent of one host: hands, without database or credentials.

Guests outlive it; when it starts it finds them again in the hypervisor and reports what they do.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import msgspec
import structlog

from kilonova.agent.actor import Actor
from kilonova.agent.ledger import Generations, Ledger
from kilonova.agent.mover import HostMover
from kilonova.agent.snapshots import ImageStore, Snapshots
from kilonova.agent.transfer import LOCAL, TransferOptions
from kilonova.clock import SECOND, Clock, set_within
from kilonova.errors import Conflict, HostFault, KilonovaError, NotFound
from kilonova.model.host import HostReport
from kilonova.model.port import Vif
from kilonova.model.states import Power
from kilonova.model.volume import Attachment
from kilonova.rpc.messages import Command, Diagnostics, GuestSpec, Observed
from kilonova.rpc.moves import Progress
from kilonova.vif.plugger import VifPlugger
from kilonova.virt.driver import Driver

log = structlog.get_logger("kilonova.agent")

T = TypeVar("T")

CONSOLE_LIMIT = 256 * 1024
RETRY_SHUTDOWN = 10.0  # seconds between presses of the power button; Nova's shutdown_retry_interval

Report = Callable[[Observed], Awaitable[None]]


class AgentOptions(msgspec.Struct, frozen=True, kw_only=True):
    """``max_concurrent_builds`` 0: any number.  Without ``hears_events`` what guests do by themselves is
    found by looking only.  ``live_plug_tries``: how often a port of a guest that comes live is plugged."""

    max_concurrent_builds: int = 10
    hears_events: bool = True
    live_plug_tries: int = 30
    transfer: TransferOptions = LOCAL


_DEFAULTS = AgentOptions()


@dataclass
class _Quiet:
    """Verbs that are changing a guest's power, and the last event that they have kept to themselves."""

    verbs: int = 0
    last: int | None = None


class Agent:
    """Implements rpc.host.HostAgent on a driver and a plugger."""

    def __init__(
        self,
        driver: Driver,
        plugger: VifPlugger,
        images: ImageStore,
        ledger: Ledger,
        clock: Clock,
        report: Report,
        options: AgentOptions = _DEFAULTS,
    ) -> None:
        self.driver = driver
        self._plugger = plugger
        self._images = images
        self._ledger = ledger
        self._clock = clock
        self._report = report
        self._builds = asyncio.Semaphore(options.max_concurrent_builds or 1_000_000)
        self._generations = Generations(clock, ledger)
        self._actors: dict[str, Actor] = {}
        self._quiet: dict[str, _Quiet] = {}  # guests whose power changes are our own doing
        self._reports: set[asyncio.Task[None]] = set()
        self._off: dict[str, asyncio.Event] = {}
        self._hears_events = options.hears_events
        self._stopping: dict[str, asyncio.Task[None]] = {}  # guests that went off, and may be starting again
        self._snapshots = Snapshots(driver, images)
        self.mover = HostMover(
            driver, plugger, self, images, options.transfer, clock, options.live_plug_tries
        )

    async def start_up(self, look: Callable[[], Awaitable[HostReport]] | None = None) -> HostReport:
        """Connect to the hypervisor and say what the host has: what ``look`` finds, by default just what the
        driver tells.  When that was heard, `tell_of_guests` is to follow."""
        await self.driver.open(self._power_event)
        return await (look or self.driver.report)()

    async def tell_of_guests(self) -> None:
        """Report what the guests do that were found in the hypervisor: who hears it knows of the host, and
        whether it was booted, already."""
        seen, _ = await self.survey()
        await asyncio.gather(*(self._report(each) for each in seen))

    async def survey(self) -> tuple[tuple[Observed, ...], int]:
        """What all guests do, and a generation: whoever is not among them was not there at that."""
        generation = self._generations.next()
        guests = await self.driver.guests()
        seen = tuple(
            Observed(uuid=uuid, power_state=state, generation=generation) for uuid, state in guests.items()
        )
        return seen, generation

    async def shut_down_agent(self) -> None:
        """Let go of the hypervisor; guests run on."""
        for task in self._stopping.values():
            task.cancel()
        await asyncio.gather(*self._reports, *self._stopping.values(), return_exceptions=True)
        await self.mover.transfers.shut_down()
        await self.driver.close()
        self._ledger.close()

    # ---- verbs ----

    async def prepare(self, command: Command, guest: GuestSpec) -> None:
        async def verb() -> None:
            async with self._builds:
                await self.driver.prepare(guest, self._images)

        await self.in_turn(guest.uuid, verb)

    async def plug(self, command: Command, guest: GuestSpec) -> None:
        async def verb() -> None:
            for vif in guest.vifs:
                await self._plugger.plug(vif, guest.uuid, guest.name)

        await self.in_turn(guest.uuid, verb)

    async def start(self, command: Command, guest: GuestSpec, *, paused: bool) -> Observed:
        async def verb() -> Observed:
            await self.driver.start(guest, paused=paused)
            return await self.look(guest.uuid)

        return await self.quietly(guest.uuid, verb)

    async def resume(self, command: Command, uuid: str) -> Observed:
        async def verb() -> Observed:
            await self.driver.resume(uuid)
            return await self.look(uuid)

        return await self.quietly(uuid, verb)

    async def shut_down(self, command: Command, uuid: str, *, timeout: float, clean: bool) -> Observed:
        async def verb() -> Observed:
            if clean and timeout > 0:
                await self._ask_to_shut_down(uuid, timeout)
            await self.driver.power_off(uuid)
            return await self.look(uuid)

        return await self.quietly(uuid, verb)

    async def reboot(self, command: Command, guest: GuestSpec, *, hard: bool, timeout: float) -> Observed:
        done = self._ledger.result(command.id)
        if done is not None:
            return done

        async def verb() -> Observed:
            if hard or not await self._soft_reboot(guest.uuid):
                await self._hard_reboot(guest)
            observed = await self.look(guest.uuid)
            self._ledger.record(command.id, observed)
            return observed

        return await self.quietly(guest.uuid, verb)

    async def destroy(self, command: Command, uuid: str) -> None:
        await self.quietly(uuid, lambda: self.driver.undefine(uuid), urgent=True)

    async def unplug(self, command: Command, uuid: str, vifs: tuple[Vif, ...]) -> None:
        async def verb() -> None:
            for vif in vifs:
                await self._plugger.unplug(vif, uuid, "")

        await self.in_turn(uuid, verb)

    async def attach_interface(self, command: Command, guest: GuestSpec, vif: Vif) -> None:
        await self.in_turn(guest.uuid, lambda: self.driver.attach_interface(guest, vif))

    async def detach_interface(self, command: Command, guest: GuestSpec, vif: Vif) -> None:
        await self.in_turn(guest.uuid, lambda: self.driver.detach_interface(guest, vif))

    async def attach_volume(self, command: Command, guest: GuestSpec, attachment: Attachment) -> None:
        await self.in_turn(guest.uuid, lambda: self.driver.attach_volume(guest, attachment))

    async def detach_volume(self, command: Command, guest: GuestSpec, attachment: Attachment) -> None:
        await self.in_turn(guest.uuid, lambda: self.driver.detach_volume(guest, attachment))

    async def discard(self, command: Command, uuid: str) -> None:
        await self.mover.transfers.close(uuid)
        await self.in_turn(uuid, lambda: self.driver.discard(uuid), urgent=True)

    async def snapshot(self, command: Command, uuid: str, image_id: str) -> None:
        await self.in_turn(uuid, lambda: self.driver.snapshot(uuid, image_id))

    async def upload_snapshot(self, command: Command, uuid: str, image_id: str) -> None:
        await self.in_turn(uuid, lambda: self._snapshots.upload(uuid, image_id))

    async def drop_snapshot(self, command: Command, uuid: str, image_id: str) -> None:
        await self.in_turn(uuid, lambda: self.driver.drop_snapshot(uuid, image_id), urgent=True)

    def handing_in(self, uuid: str) -> Progress | None:
        return self._snapshots.progress(uuid)

    async def observe(self, uuid: str) -> Observed:
        return await self.look(uuid)

    async def console_output(self, uuid: str) -> bytes:
        return await self.driver.console_output(uuid, CONSOLE_LIMIT)

    async def diagnostics(self, uuid: str) -> Diagnostics:
        state = await self.driver.power_state(uuid)
        if state != Power.RUNNING:
            raise Conflict(f"Cannot 'get_diagnostics' instance {uuid} while it is in power state {state}")
        return await self.driver.diagnostics(uuid)

    # ---- inside ----

    async def _ask_to_shut_down(self, uuid: str, timeout: float) -> None:
        """Press the power button until the guest is off or its time is up (Nova's graceful shutdown)."""
        off = self._off.setdefault(uuid, asyncio.Event())
        off.clear()
        until = self._clock.now() + int(timeout * SECOND)
        try:
            while self._clock.now() < until:
                if await self.driver.power_state(uuid) not in (Power.RUNNING, Power.PAUSED):
                    return
                await self.driver.request_shutdown(uuid)
                pause = min(RETRY_SHUTDOWN, (until - self._clock.now()) / SECOND)
                if await set_within(pause, self._clock, off):
                    return
            log.info("guest did not shut down in time and is turned off", instance=uuid, timeout=timeout)
        finally:
            self._off.pop(uuid, None)

    async def _soft_reboot(self, uuid: str) -> bool:
        if await self.driver.power_state(uuid) != Power.RUNNING:
            return False
        if await self.driver.request_reboot(uuid):
            return True
        log.info("guest did not reboot by itself and is reset", instance=uuid)
        return False

    async def _hard_reboot(self, guest: GuestSpec) -> None:
        await self.driver.power_off(guest.uuid)
        for vif in guest.vifs:
            await self._plugger.plug(vif, guest.uuid, guest.name)
        await self.driver.start(guest, paused=False)

    async def look(self, uuid: str) -> Observed:
        return self._observed(uuid, await self.driver.power_state(uuid))

    def _observed(self, uuid: str, state: int) -> Observed:
        return Observed(uuid=uuid, power_state=state, generation=self._generations.next())

    async def in_turn(self, uuid: str, verb: Callable[[], Awaitable[T]], *, urgent: bool = False) -> T:
        actor = self._actors.get(uuid)
        if actor is None:
            actor = self._actors[uuid] = Actor()
        try:
            return await actor.run(verb, urgent=urgent)
        except NotFound as error:
            raise HostFault(str(error)) from error
        except KilonovaError:
            raise
        except Exception as error:
            log.error("unforeseen fault on this host", instance=uuid, exc_info=True)
            raise HostFault(f"Unexpected fault on this host: {type(error).__name__}.") from error
        finally:
            if actor.waiting == 0:
                self._actors.pop(uuid, None)

    async def quietly(self, uuid: str, verb: Callable[[], Awaitable[T]], *, urgent: bool = False) -> T:
        """Run a verb that changes the power itself: its events say nothing new.

        Unless the last of them is not what the verb found at its end: then somebody else was at it, too.
        """
        quiet = self._quiet.setdefault(uuid, _Quiet())
        quiet.verbs += 1
        expected: int | None = None
        try:
            result = await self.in_turn(uuid, verb, urgent=urgent)
            expected = result.power_state if isinstance(result, Observed) else quiet.last
            return result
        finally:
            quiet.verbs -= 1
            if not quiet.verbs:
                del self._quiet[uuid]
                if quiet.last != expected and quiet.last is not None:
                    self._look_and_report(uuid, known=expected)

    def _power_event(self, uuid: str, state: int) -> None:
        """The hypervisor says that a guest's power has changed."""
        if state not in (Power.RUNNING, Power.PAUSED) and uuid in self._off:
            self._off[uuid].set()
        if (stopping := self._stopping.pop(uuid, None)) is not None:
            stopping.cancel()
        if uuid in self._quiet:
            self._quiet[uuid].last = state
        elif self._hears_events and state == Power.SHUTDOWN and self.driver.stopped_delay:
            self._stopping[uuid] = asyncio.create_task(self._report_stop(uuid))
        elif self._hears_events:
            self._look_and_report(uuid)

    async def _report_stop(self, uuid: str) -> None:
        """A guest that is restarted by others goes off and on again, which is no stop of its server."""
        await self._clock.sleep(self.driver.stopped_delay)
        del self._stopping[uuid]
        if uuid not in self._quiet:
            self._look_and_report(uuid)

    def _look_and_report(self, uuid: str, known: int | None = None) -> None:
        task = asyncio.create_task(self._report_change(uuid, known))
        self._reports.add(task)
        task.add_done_callback(self._reports.discard)

    async def _report_change(self, uuid: str, known: int | None) -> None:
        """Report what is so now, unless it is ``known``: an event that was overtaken is worth nothing."""
        try:
            seen = await self.look(uuid)
            if seen.power_state == Power.SHUTDOWN and uuid in self._stopping:
                return
            if seen.power_state != known:
                await self._report(seen)
        except Exception:
            log.error("power change not reported; the next look will tell", instance=uuid, exc_info=True)
