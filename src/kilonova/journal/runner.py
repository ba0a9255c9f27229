"""Running operations: claim, walk, commit, unwind.

One task an operation.  A step's record, the cursor and the change of the instance are one commit, made
only if this runner still holds the lease.  What a crash interrupts is repeated by whoever claims it next.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from operator import itemgetter
from typing import Any

import msgspec
import structlog

from kilonova.clock import SECOND, Clock, end_within, set_within
from kilonova.db.engine import Database, DatabaseUnavailable, Row, Tx
from kilonova.errors import KilonovaError, LostLease
from kilonova.journal import statements as sql
from kilonova.journal.model import ABANDONED, ActionRow, Done, Operation, Run
from kilonova.journal.walk import UNASKED, Walk

log = structlog.get_logger("kilonova.journal")

SCAN = 1.0  # seconds between looks for work that nobody hinted at
DRAIN = 3.0  # seconds that steps under way have to end at a shutdown
PAGE = 64


LetGo = Callable[[Run, Exception], Awaitable[Done | None]]
"""Whether an undo that fails with that error, of an operation that is cancelled, may be left to somebody."""


class Runner:
    """Runs the operations of one process.  ``owner`` is unique to it."""

    def __init__(
        self,
        db: Database,
        clock: Clock,
        owner: str,
        operations: Mapping[str, Operation],
        *,
        lease: float = 30.0,
        concurrency: int = 256,
    ) -> None:
        self.db = db
        self.clock = clock
        self.owner = owner
        self.operations = operations
        self.lease = int(lease * SECOND)
        self.cloud: Any = None  # set by the composition root, once the collaborators know each other
        self.let_go: LetGo | None = None  # likewise
        self._concurrency = concurrency
        self._running: dict[int, tuple[Run, asyncio.Task[None]]] = {}
        self._dropped: dict[int, int] = {}  # what we own and walk no more -> its epoch
        self._claiming = 0  # places that are kept for a claim under way
        self._blind = False  # the database does not answer
        self._renewed = 0
        self._hint = asyncio.Event()
        self._stopping = False
        self.sole = False  # no other runner can be alive
        self._loops: list[asyncio.Task[None]] = []
        self.on_step: Callable[[ActionRow, str, str], None] | None = None  # crash points of tests

    def takes_more(self) -> bool:
        """Whether a new operation may start here at once."""
        room = self._concurrency - len(self._running) - self._claiming
        return bool(self._loops) and not self._stopping and room > 0

    async def start(self, *, sole: bool) -> None:
        """Begin to claim.  ``sole``: no other runner can be alive, so every lease is a dead one's."""
        self.sole = sole
        if sole:
            await self.db.write(lambda tx: tx.run(sql.RELEASE_ALL))
        self._loops = [
            asyncio.create_task(self._scan(), name="journal-scan"),
            asyncio.create_task(self._heartbeat(), name="journal-heartbeat"),
        ]

    async def stop(self) -> None:
        """Stop claiming, let steps end for a moment, give the rest back for the next start."""
        self._stopping = True
        for loop in self._loops:
            loop.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)
        self._loops = []
        await end_within(DRAIN, self.clock, [task for _, task in self._running.values()])
        try:
            await self.db.write(lambda tx: tx.run(sql.RELEASE, me=self.owner))
        except DatabaseUnavailable as error:
            log.warning("leases not given back; they end by themselves", error=str(error))

    @property
    def stopping(self) -> bool:
        return self._stopping

    def wake(self) -> None:
        """There may be work."""
        self._hint.set()

    def adopt(self, run: Run) -> None:
        """Run an operation that this process has just claimed."""
        former = self._running.get(run.action.id)
        if former is not None:  # it has lost its lease, to us
            former[1].cancel()
        task = asyncio.create_task(self._walk(run), name=f"operation-{run.action.id}")
        self._running[run.action.id] = (run, task)

    def interrupt(self, action_ids: list[int]) -> None:
        """A cancel was committed for these: do not let a long step run to its end first."""
        for action_id in action_ids:
            found = self._running.get(action_id)
            if found is not None:
                run, task = found
                run.action.cancel = True
                if run.interruptible and not run.interrupted:
                    run.interrupted = True
                    task.cancel()
        self.wake()

    async def left(self, run: Run, error: Exception) -> Done | None:
        """What becomes of an undo that fails while somebody waits for its operation's end; None: again."""
        if not run.action.cancel or self.let_go is None:
            return None
        try:
            return await self.let_go(run, error)
        except KilonovaError as new:
            log.warning("an undo cannot be left either", action=run.action.id, error=repr(new))
            return None

    async def _walk(self, run: Run) -> None:
        action = run.action
        try:
            await Walk(self, run).go()
        except LostLease:
            log.warning("lease lost", action=action.id, operation=action.operation)
        except DatabaseUnavailable as error:
            # The step is repeated as soon as the database is back, here or elsewhere.
            log.error("operation interrupted", action=action.id, error=str(error))
            self._dropped[action.id] = action.epoch
        except asyncio.CancelledError:
            if not self._stopping:
                self._dropped[action.id] = action.epoch
                raise
        except Exception as error:
            log.error("operation broke off", action=action.id, exc_info=True)
            await self._refuse(action, f"A fault of ours: {error!r}")
        finally:
            full = len(self._running) >= self._concurrency
            if (current := self._running.get(action.id)) is not None and current[0] is run:
                del self._running[action.id]
            if full:
                self.wake()

    async def _refuse(self, action: ActionRow, reason: str) -> None:
        """What cannot be run is left to an operator, and closed when one has abandoned it."""
        abandoned = action.error is not None and action.error.kind == ABANDONED
        if not abandoned:
            say = log.critical if action.why is None else log.warning
            say(
                "operation needs attention",
                action=action.id,
                operation=action.operation,
                instance=action.instance_uuid,
                reason=reason,
            )
        now = self.clock.now()
        try:
            await self.db.write(
                lambda tx: tx.run(
                    sql.REFUSE,
                    action_id=action.id,
                    me=self.owner,
                    my_epoch=action.epoch,
                    new_state="failed" if abandoned else "attention",
                    still_open=not abandoned,
                    new_why=None if abandoned else reason,
                    finished=now if abandoned else None,
                    new_message="Error" if abandoned else action.message,
                    new_wake_at=now + UNASKED * SECOND,
                    now=now,
                )
            )
        except DatabaseUnavailable as error:
            log.error("operation interrupted", action=action.id, error=str(error))
            self._dropped[action.id] = action.epoch

    async def _scan(self) -> None:
        while True:
            self._hint.clear()
            full = await self._look()
            if not full and not self._hint.is_set():
                await set_within(SCAN, self.clock, self._hint)

    async def _look(self) -> bool:
        """Claim what is ready; True if there may be more.  Nothing that goes wrong ends the looking."""
        try:
            full = await self._claim()
        except DatabaseUnavailable as error:
            if not self._blind:
                log.error("cannot look for work", error=str(error))
            self._blind = True
            return False
        except Exception:
            log.critical("cannot look for work", exc_info=True)
            return False
        if self._blind:
            log.warning("can look for work again")
            self._blind = False
        return full

    async def _claim(self) -> bool:
        """Claim what is ready; True if there may be more."""
        room = min(PAGE, self._concurrency - len(self._running))
        dropped = dict(self._dropped)

        def claim(tx: Tx) -> list[Row]:
            if self._running and self.clock.now() - self._renewed > self.lease // 2:
                self._renew(tx)  # we have slept: nobody took our leases, so they are ours still
            for action_id, epoch in dropped.items():
                tx.run(sql.GIVE_BACK, action_id=action_id, me=self.owner, my_epoch=epoch)
            if room <= 0:
                return []
            return tx.all(sql.CLAIM, new_owner=self.owner, lease=self.lease, limit=room)

        self._claiming = max(room, 0)
        try:
            rows = await self.db.write(claim)
        finally:
            self._claiming = 0
        for action_id in dropped:
            self._dropped.pop(action_id, None)
        for row in sorted(rows, key=itemgetter(0)):  # what an UPDATE returns comes in any order
            try:
                action = sql.row_to_action(row)
            except msgspec.DecodeError:
                log.critical("an operation cannot be read", action=row[0], exc_info=True)
                self._dropped[row[0]] = row[sql.EPOCH]
            else:
                await self._take(action)
        return 0 < room == len(rows)

    async def _take(self, action: ActionRow) -> None:
        """Run what was claimed, if this release can."""
        operation = self.operations.get(action.operation)
        if operation is None:
            await self._refuse(action, f"This release has no operation '{action.operation}'.")
            return
        try:
            params: Any = msgspec.json.decode(action.params, type=operation.params)
        except msgspec.DecodeError as error:
            await self._refuse(action, f"This release cannot read its parameters: {error}")
            return
        self.adopt(Run(action=action, cloud=self.cloud, params=params))

    async def _heartbeat(self) -> None:
        while True:
            await self.clock.sleep(self.lease / SECOND / 3)
            if self._running:
                try:
                    await self.db.write(self._renew)
                except DatabaseUnavailable as error:
                    log.error("leases not renewed", error=str(error))
                except Exception:
                    log.critical("leases not renewed", exc_info=True)

    def _renew(self, tx: Tx) -> None:
        """Renew the leases of what is really walked: whatever else we own shall be taken over."""
        walked = [run.action for run, _ in tuple(self._running.values())]
        mine = {"me": self.owner, "lease": self.lease}
        tx.run_many(sql.HEARTBEAT, [{"action_id": row.id, "my_epoch": row.epoch, **mine} for row in walked])
        self._renewed = self.clock.now()
