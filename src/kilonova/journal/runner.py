"""Running operations: claim, walk, commit, unwind.

One task an operation.  A step's record, the cursor and the change of the instance are one commit, made
only if this runner still holds the lease.  What a crash interrupts is repeated by whoever claims it next.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import structlog

from kilonova.clock import SECOND, Clock
from kilonova.db.engine import Database, DatabaseUnavailable, Tx
from kilonova.errors import LostLease
from kilonova.journal import statements as sql
from kilonova.journal.model import ActionRow, Operation, Run
from kilonova.journal.walk import Walk

log = structlog.get_logger("kilonova.journal")

SCAN = 1.0  # seconds between looks for work that nobody hinted at
DRAIN = 3.0  # seconds that steps have to end at a shutdown
PAGE = 64


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
        self._concurrency = concurrency
        self._running: dict[int, tuple[Run, asyncio.Task[None]]] = {}
        self._hint = asyncio.Event()
        self._stopping = False
        self._loops: list[asyncio.Task[None]] = []
        self.on_step: Callable[[ActionRow, str, str], None] | None = None  # crash points of tests

    def takes_more(self) -> bool:
        """Whether a new operation may start here at once."""
        return bool(self._loops) and not self._stopping and len(self._running) < self._concurrency

    async def start(self, *, sole: bool) -> None:
        """Begin to claim.  ``sole``: no other runner can be alive, so every lease is a dead one's."""
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
        tasks = [task for _, task in self._running.values()]
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=DRAIN)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
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

    async def _walk(self, run: Run) -> None:
        try:
            await Walk(self, run).go()
        except LostLease:
            log.warning("lease lost", action=run.action.id, operation=run.action.operation)
        except DatabaseUnavailable as error:
            # The lease ends by itself and the step is repeated then, here or elsewhere.
            log.error("operation interrupted", action=run.action.id, error=str(error))
        except asyncio.CancelledError:
            if not self._stopping:
                raise
        except Exception:
            log.error("operation broke off", action=run.action.id, exc_info=True)
        finally:
            del self._running[run.action.id]

    async def _scan(self) -> None:
        while True:
            self._hint.clear()
            try:
                full = await self._claim()
            except DatabaseUnavailable as error:
                log.error("cannot look for work", error=str(error))
                full = False
            if not full and not self._hint.is_set():
                hint = asyncio.ensure_future(self._hint.wait())
                pause = asyncio.ensure_future(self.clock.sleep(SCAN))
                try:
                    await asyncio.wait({hint, pause}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    hint.cancel()
                    pause.cancel()

    async def _claim(self) -> bool:
        """Claim what is ready; True if there may be more."""
        room = min(PAGE, self._concurrency - len(self._running))
        if room <= 0:
            return False
        rows = await self.db.write(
            lambda tx: tx.all(sql.CLAIM, new_owner=self.owner, lease=self.lease, limit=room)
        )
        for row in rows:
            action = sql.row_to_action(row)
            operation = self.operations.get(action.operation)
            if operation is None:
                log.error("unknown operation", action=action.id, operation=action.operation)
                continue
            params: Any = msgspec.json.decode(action.params, type=operation.params)
            self.adopt(Run(action=action, cloud=self.cloud, params=params))
        return len(rows) == room

    async def _heartbeat(self) -> None:
        while True:
            await self.clock.sleep(self.lease / SECOND / 3)
            if self._running:
                try:
                    await self.db.write(self._renew)
                except DatabaseUnavailable as error:
                    log.error("leases not renewed", error=str(error))

    def _renew(self, tx: Tx) -> None:
        tx.run(sql.HEARTBEAT, me=self.owner, lease=self.lease)
