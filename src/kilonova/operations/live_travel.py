"""The guest moves: the step after which there is no way back.

The source says how it has ended.  If it does not, or says what cannot be, both hypervisors are asked where
the guest is (`live_verdict`), and as long as that cannot be told the step is neither done nor undone.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import structlog

from kilonova.clock import SECOND, ends_within
from kilonova.db import hosts, migrations
from kilonova.db.engine import DatabaseUnavailable, Tx
from kilonova.errors import Failed, KilonovaError, LostLease, TryAgain, Unreachable
from kilonova.journal.failure import CANCELLED, Cancelled
from kilonova.journal.model import Done, Run
from kilonova.model.instance import Instance
from kilonova.model.migration import Status, Wish
from kilonova.model.states import Vm
from kilonova.operations.cloud import Cloud
from kilonova.operations.leftovers import is_down
from kilonova.operations.live_params import plan_of
from kilonova.operations.live_steering import Aborted
from kilonova.operations.live_verdict import FENCED, HERE, Verdict, decide
from kilonova.operations.moving import migration_of, mover_of, note, note_progress, old_guest
from kilonova.operations.steps import agent_of, command, instance_of
from kilonova.rpc.messages import GuestSpec
from kilonova.rpc.moves import LiveOutcome, LivePlan, Presence, Progress

log = structlog.get_logger("kilonova.live")

POLL = 1.0  # seconds between two looks at a guest that moves
NOTED = 5 * SECOND  # between two notes of how far it has come (MG-LM-18)


class GuestDied(Failed):
    """It is nowhere any more, not even off at the source."""


@dataclass
class Travel:
    """One try, by one runner, to have the guest at its destination, or to hear that it stays."""

    run: Run
    instance: Instance
    plan: LivePlan
    guest: GuestSpec
    source: str
    wish: str | None = None
    completing: bool = False  # the source has heard that it is to come to an end
    switched: bool = False  # the ports are the destination's already
    noted: int = 0
    last: Progress | None = field(default=None)

    @property
    def destination(self) -> str:
        return self.plan.destination

    @property
    def cloud(self) -> Cloud:
        cloud: Cloud = self.run.cloud
        return cloud

    # ---- what it is steered by ----

    async def look(self) -> None:
        """Hear what users want by now."""

        def read(tx: Tx) -> tuple[str | None, bool]:
            found = migrations.show(tx, self.run.params.migration)
            cancelled = self.cloud.journal.is_cancelled(tx, self.run.action.id)
            return None if found is None else found.wish, cancelled

        self.wish, cancelled = await self.cloud.db.read(read)
        self.run.action.cancel = self.run.action.cancel or cancelled

    @property
    def called_off(self) -> bool:
        return self.run.action.cancel or self.wish == Wish.ABORT

    def because(self, reason: str = "") -> KilonovaError:
        """Why it does not go on, in the order of who counts more."""
        if self.run.action.cancel:
            return Cancelled(CANCELLED)
        return Aborted(reason or "The live migration was aborted.")

    async def steer(self) -> None:
        """Pass on what users want; what the source does not hear now is said again at the next look."""
        wish = Wish.ABORT if self.called_off else self.wish
        if wish is None or (wish == Wish.FORCE_COMPLETE and self.completing):
            return
        heard = await mover_of(self.run, self.source).steer_live(self.instance.uuid, wish)
        self.completing = self.completing or (heard and wish == Wish.FORCE_COMPLETE)

    # ---- sending ----

    async def send(self) -> LiveOutcome:
        """Have the source send it, or go on with it; meanwhile users are heard and told how far it is."""
        source = mover_of(self.run, self.source)
        call = source.send_live(command(self.run, "migrate"), self.guest, self.plan)
        sending: asyncio.Future[LiveOutcome] = asyncio.ensure_future(call)
        try:
            while not await ends_within(POLL, self.cloud.clock, sending):
                await self._accompany()
            return sending.result()
        finally:
            sending.cancel()
            await asyncio.wait({sending})

    async def _accompany(self) -> None:
        await self.look()
        try:
            await self.steer()
            self.last = await mover_of(self.run, self.source).progress(self.instance.uuid)
        except (LostLease, DatabaseUnavailable):
            raise
        except KilonovaError as error:  # that it is sent is another call, which hears of what matters
            log.info("the source of a live migration is not heard", host=self.source, error=str(error))
            return
        if self.last.phase == "postcopy":
            await self._post_copy()
        if self.cloud.clock.now() - self.noted >= NOTED and self.last.phase != "none":
            await self.note_progress(self.last)

    async def _post_copy(self) -> None:
        """It runs at the destination by now: so are its ports (MG-LCE-3)."""
        if self.switched:
            return
        await self.cloud.db.write(lambda tx: note(tx, self.run, status=Status.POSTCOPY))
        await self.cloud.network.activate_bindings(self.instance.uuid, self.destination)
        self.switched = True

    async def note_progress(self, seen: Progress) -> None:
        await self.cloud.db.write(lambda tx: note_progress(tx, self.run, seen))
        self.noted = self.cloud.clock.now()

    # ---- where it is ----

    async def where(self, host: str) -> str | None:
        """The guest's presence at a host, FENCED, or None for a host that does not say it."""
        try:
            return (await mover_of(self.run, host).locate(self.instance.uuid)).presence
        except DatabaseUnavailable:
            raise
        except TryAgain as error:
            if await _is_fenced(self.cloud, host):
                return FENCED
            log.info("a host cannot say where a guest is", host=host, error=str(error))
            return None

    async def verdict(self) -> tuple[Verdict, str | None]:
        """What both say, and what the source says."""
        at_source = await self.where(self.source)
        return decide(at_source, await self.where(self.destination)), at_source


async def _is_fenced(cloud: Cloud, host: str) -> bool:
    """Whether an operator has said that the host is down, and so has seen to it that nothing runs there."""
    known = await cloud.top.read(lambda tx: hosts.show(tx, host))
    return known is not None and known.forced_down


async def _travel(run: Run) -> Travel:
    instance = await instance_of(run)
    plan, guest = plan_of(run, "prepare"), await old_guest(run)
    return Travel(run, instance, plan, guest, str((await migration_of(run)).source_compute))


# ---- the step ----


async def migrate(run: Run) -> Done:
    """Raises Aborted, Cancelled, Failed when the guest goes on at the source, or has died: all is undone."""
    travel = await _travel(run)
    await travel.look()
    if travel.called_off and await travel.where(travel.source) in HERE:
        raise travel.because()  # nothing is sent (any more)
    started = (Status.RUNNING, Status.POSTCOPY)
    if (await migration_of(run)).status not in started:
        await travel.cloud.db.write(lambda tx: note(tx, run, status=Status.RUNNING))
    try:
        outcome = await travel.send()
    except (LostLease, DatabaseUnavailable):
        raise
    except Exception as error:  # noqa: BLE001 - whatever has happened: the hypervisors know where the guest is
        return await _judged(travel, error)
    return await _ended(travel, outcome)


async def _ended(travel: Travel, outcome: LiveOutcome) -> Done:
    if outcome.state == "completed":
        return _passed(travel, outcome)
    if outcome.state == "cancelled":
        raise travel.because(outcome.reason)
    if outcome.state == "failed":
        if travel.called_off:
            raise travel.because(outcome.reason)
        raise Failed(f"Live migration failed: {outcome.reason}")
    return await _judged(travel, Unreachable(f"{travel.source} has lost the guest: {outcome.reason}"))


async def _judged(travel: Travel, said: Exception) -> Done:
    """What is so when the source did not say it.  Raises as ``migrate``, and TryAgain while it is unknown."""
    verdict, at_source = await travel.verdict()
    if verdict is Verdict.PASSED:
        return _passed(travel, LiveOutcome(state="completed"))
    if verdict is Verdict.DIED:
        kind = Failed if at_source == Presence.OFF else GuestDied
        raise kind(f"The guest has died while it was migrated from {travel.source}: {said}") from said
    if verdict is Verdict.STAYED:
        if travel.called_off:
            raise travel.because() from said
        if not isinstance(said, TryAgain):
            if isinstance(said, KilonovaError):
                raise Failed(f"Live migration failed: {said}") from said
            raise said
    raise TryAgain(f"It is not known yet where the guest is: {said}") from said


def _passed(travel: Travel, outcome: LiveOutcome) -> Done:
    run = travel.run
    names = ("memory_total", "memory_processed", "disk_total", "disk_processed")
    figures = {name: getattr(outcome, name) for name in names if getattr(outcome, name) is not None}
    output = {"downtime": outcome.downtime, "elapsed": outcome.elapsed, "switched": travel.switched}

    def write(tx: Tx) -> None:
        remaining = {f"{kind}_remaining": 0 for kind in ("memory", "disk") if f"{kind}_total" in figures}
        if figures:
            note(tx, run, **figures, **remaining)

    return Done(output=output, write=write, host=travel.source)


async def unmigrate(run: Run) -> Done:
    """The guest goes on at the source (MG-LM-28).  Raises TryAgain while that is not known."""
    travel = await _travel(run)
    source = travel.source
    if run.action.error is None or run.action.error.kind != GuestDied.__name__:
        where = await _still_here(travel)
        if where == Presence.HELD and travel.instance.vm_state == Vm.ACTIVE:
            await agent_of(run, source).resume(command(run, "unmigrate"), travel.instance.uuid)
    if (await migration_of(run)).status == Status.POSTCOPY:  # its ports may have been taken from it
        await agent_of(run, source).plug(command(run, "unmigrate.plug"), travel.guest)
    try:
        observed = await agent_of(run, source).observe(travel.instance.uuid)
    except Unreachable:
        if not await is_down(run, source):
            raise
        return Done(host=source)
    return Done(host=source, changes={"observed": observed})


async def _still_here(travel: Travel) -> str | None:
    """Where the guest is at the source.  Raises TryAgain as long as the destination may have it."""
    where, there = await travel.where(travel.source), await travel.where(travel.destination)
    at_way = where in (Presence.LEFT, Presence.LEAVING, Presence.POSTCOPY)
    if at_way or there in (HERE | {Presence.OFF, Presence.POSTCOPY}):
        raise TryAgain(f"The guest is {where} at its source, {there} at its destination: nothing is undone.")
    if where == Presence.HELD and there not in (Presence.ABSENT, FENCED):
        raise TryAgain("The guest is held at its source, and its destination may have it.")
    if where is None and not await is_down(travel.run, travel.source):
        raise TryAgain("The source of the guest does not say whether it has it.")
    return where
