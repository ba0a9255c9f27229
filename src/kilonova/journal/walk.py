"""One walk over an operation's steps, forwards and, when one fails, backwards."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import structlog

from kilonova import errors
from kilonova.clock import SECOND
from kilonova.db.engine import DatabaseUnavailable, Tx
from kilonova.journal import statements as sql
from kilonova.journal.failure import CANCELLED, Cancelled, Undecided, pause, stored
from kilonova.journal.held import while_held
from kilonova.journal.model import SIGNAL_FAILED, Done, Kind, Run, Step, Wait

if TYPE_CHECKING:
    from kilonova.journal.runner import Runner

log = structlog.get_logger("kilonova.journal")

T = TypeVar("T")

UNDO_ATTEMPTS = 30  # about four minutes; then an operator is asked for
UNASKED = 60  # seconds after which it is tried again without an operator's word

LOST_CODE = "This release has no code for that step."

_AGAIN = (errors.TryAgain, DatabaseUnavailable)


class Walk:
    """Takes a claimed operation as far as it goes: to its end, to a wait, or to a lost lease."""

    def __init__(self, runner: Runner, run: Run) -> None:
        self.runner = runner
        self.run = run
        self.row = run.action
        self.operation = runner.operations[run.action.operation]
        self.attempts = UNDO_ATTEMPTS  # of the undo that comes next
        self.begun = run.action.epoch > 1  # whether the pivot where we are may have been begun

    async def go(self) -> None:
        """Raises LostLease when another runner has taken over.

        An operation that needs attention stays listed as such until a step of it has succeeded.
        """
        if self.row.state == "attention":
            self.attempts = 1
            self.row.state = "running" if self.row.error is None else "unwinding"
        while self.row.open:
            if self.row.state == "unwinding":
                again = await self._unwind()
            else:
                again = await self._forward()
            if not again:
                return

    # ---- forwards ----

    async def _forward(self) -> bool:
        """Do steps until the end, a failure (True: unwind it), a wait or a stop of the runner (False)."""
        while self.row.cursor < len(self.row.plan):
            if self.runner.stopping:
                return False
            step = self._step(self.row.plan[self.row.cursor])
            if step is None:
                await self._attention(LOST_CODE)
                return False
            started = self.runner.clock.now()
            try:
                if self.row.cancel and not self._bound():
                    raise Cancelled(CANCELLED)
                result = await self._do(step)
                if isinstance(result, Wait):
                    if not await self._wait(step, result, started):
                        return False
                    self._tell(step.name, "done")
                    continue
                await self._passed(step, result, started)
            except (errors.LostLease, DatabaseUnavailable):
                raise
            except Exception as error:  # noqa: BLE001 - whatever a step raises is the reason to unwind
                return await self._fail(step, error, started)
            self._tell(step.name, "done")
        if self.row.open:  # an operator skipped the last step
            await self._close()
        return False

    async def _close(self) -> None:
        now = self.runner.clock.now()
        await self.runner.db.write(lambda tx: self._settle_last(tx, now))
        self.row.open, self.row.state = False, "done"

    def _settle_last(self, tx: Tx, now: int) -> bool:
        cancel = self._settle(tx, now, cursor=len(self.row.plan), state="done", open=False)
        self._leave(tx)
        return cancel

    def _leave(self, tx: Tx) -> None:
        """Leave no signal that a later wait would take for its own; the operations behind us may begin."""
        tx.run(sql.DROP_SIGNALS, uuid=self.row.instance_uuid)
        if tx.one(sql.OPEN_OF, uuid=self.row.instance_uuid) is not None:
            tx.call_after_commit(self.runner.wake)

    def _step(self, name: str) -> Step | None:
        try:
            return self.operation.step(name)
        except KeyError:
            return None

    async def _do(self, step: Step) -> Done | Wait:
        """The step's ``do``, repeated with back-off while only the moment is wrong.

        After the pivot any failure is repeated: there is no way back.  At it, who cannot tell is Undecided.
        """
        attempt, failing_since = 0, None
        self.begun = self.begun or step.kind is Kind.PIVOT
        self._tell(step.name, "do")
        while True:
            began = self.runner.clock.now()
            try:
                with while_held(self.runner, self.row):
                    return await self._interruptibly(step, lambda: step.do(self.run))
            except (errors.LostLease, Cancelled):
                raise
            except Exception as error:
                if not isinstance(error, _AGAIN) and not self._past_pivot():
                    raise
                if failing_since is None or not self._is_patient(began):  # it went well for a long time
                    failing_since = self.runner.clock.now()
                if self._expired() or not self._is_patient(failing_since):
                    if step.kind is Kind.PIVOT:
                        raise Undecided(f"'{step.name}' does not yet know its outcome: {error}") from error
                    raise errors.Failed(
                        f"'{step.name}' did not succeed before the deadline: {error}"
                    ) from error
                log.info("step is repeated", action=self.row.id, step=step.name, error=repr(error))
            await self._interruptibly(step, partial(self.runner.clock.sleep, pause(attempt)))
            attempt += 1
            if self.row.cancel and not self._bound():
                raise Cancelled(CANCELLED)

    async def _interruptibly(self, step: Step, work: Callable[[], Awaitable[T]]) -> T:
        """Await ``work``, which a cancel of the operation may end.  Raises Cancelled then."""
        run = self.run
        if not step.interruptible or step.kind is Kind.PIVOT or self._past_pivot():
            return await work()
        run.interruptible = True
        try:
            return await work()
        except asyncio.CancelledError:
            if not run.interrupted or self.runner.stopping:
                raise
            raise Cancelled(CANCELLED) from None
        finally:
            if run.interrupted and not self.runner.stopping:
                task = asyncio.current_task()
                assert task is not None
                task.uncancel()
            run.interruptible = False
            run.interrupted = False

    async def _passed(self, step: Step, done: Done, started: int) -> None:
        """Commit a finished step; a pivot that is done is not unwound because of its commit."""
        try:
            await self._advance(step, done, started)
        except (errors.LostLease, DatabaseUnavailable):
            raise
        except Exception as error:
            if step.kind is not Kind.PIVOT:
                raise
            raise Undecided(f"'{step.name}' is done and cannot be written down: {error}") from error

    async def _advance(self, step: Step, done: Done, started: int) -> None:
        """Commit a finished step; the last one ends the operation in the same commit."""
        row, now = self.row, self.runner.clock.now()
        last = done.gone or row.cursor + 1 == len(row.plan)
        if done.output is not None:
            row.outputs[step.name] = done.output

        def commit(tx: Tx) -> None:
            if done.gone:
                self._lock(tx)
            else:
                settle(tx)
            if done.write is not None:
                done.write(tx)

        def settle(tx: Tx) -> None:
            cancel = self._settle_last(tx, now) if last else self._move(tx, now, row.cursor + 1)
            row.cancel = row.cancel or cancel
            if done.changes:
                self.operation.apply(tx, self.run, done.changes)
            self._log(tx, step, "do", (started, now), host=done.host)

        await self.runner.db.write(commit)
        row.cursor += 1
        if last:
            row.open, row.state = False, "done"

    def _log(self, tx: Tx, step: Step, phase: str, times: tuple[int, int], **more: Any) -> None:
        """Write down that something was done (``phase`` do or undo) from when to when."""
        event = step.event or step.name
        sql.add_event(
            tx,
            self.row,
            sql.Event(
                step=step.name,
                phase=phase,
                event=event if phase == "do" else f"{event}_undo",
                started=times[0],
                finished=times[1],
                **more,
            ),
        )

    def _lock(self, tx: Tx) -> None:
        """Nobody else changes the operation until this commit.  Raises LostLease."""
        mine = {"action_id": self.row.id, "me": self.runner.owner, "my_epoch": self.row.epoch}
        if tx.one(sql.LOCK, **mine) is None:
            raise errors.LostLease(f"operation {self.row.id}")

    def _move(self, tx: Tx, now: int, cursor: int) -> bool:
        """Move the cursor and renew the lease; says whether a cancel has come.  Raises LostLease."""
        row = self.row
        found = tx.one(
            sql.ADVANCE,
            action_id=row.id,
            me=self.runner.owner,
            my_epoch=row.epoch,
            new_cursor=cursor,
            new_outputs=sql.encode(row.outputs),
            new_state=row.state,
            now=now,
            lease=self.runner.lease,
        )
        if found is None:
            raise errors.LostLease(f"operation {row.id}")
        return bool(found[0])

    def _settle(self, tx: Tx, now: int, **new: Any) -> bool:
        """Write the operation's whole position.  Raises LostLease."""
        row = self.row
        still_open = new.get("open", True)
        error = new.get("error", row.error)
        found = tx.one(
            sql.SETTLE,
            action_id=row.id,
            me=self.runner.owner,
            my_epoch=row.epoch,
            new_cursor=new.get("cursor", row.cursor),
            new_floor=new.get("floor", row.floor),
            new_round=new.get("round", row.round),
            new_state=new.get("state", row.state),
            still_open=still_open,
            new_error=None if error is None else sql.encode(error),
            new_why=new.get("why"),
            new_outputs=sql.encode(row.outputs),
            new_message=new.get("message", row.message),
            finished=None if still_open else now,
            now=now,
            keep=new.get("keep", still_open),
            lease=self.runner.lease,
            new_wake_at=new.get("wake_at", 0),
        )
        if found is None:
            raise errors.LostLease(f"operation {row.id}")
        return bool(found[0])

    async def _wait(self, step: Step, wait: Wait, started: int) -> bool:
        """Consume the signals if they are all there, else sleep until one comes (False)."""
        row, now = self.row, self.runner.clock.now()
        since = row.outputs.setdefault(f"{step.name}.since.{row.round}", started)
        until = min(since + int(wait.timeout * SECOND), row.deadline_at)
        again = until if wait.every is None else min(until, now + int(wait.every * SECOND))

        def look(tx: Tx) -> tuple[bool, set[tuple[str, str]], bool]:
            self._lock(tx)  # no signal comes between our look and our lying down
            delivered: dict[tuple[str, str], str] = {}
            for _, name, tag, status in tx.all(sql.SIGNALS_OF, uuid=row.instance_uuid):
                delivered[(name, tag)] = status
            bad = {key for key in wait.signals if delivered.get(key) == SIGNAL_FAILED}
            missing = {key for key in wait.signals if key not in delivered}
            if bad or (missing and now >= until):
                return False, bad or missing, True
            if missing:
                self._settle(tx, now, state="waiting", keep=False, wake_at=again)
                return False, missing, False
            tx.run(sql.DROP_SIGNALS, uuid=row.instance_uuid)
            self._move(tx, now, row.cursor + 1)
            self._log(tx, step, "do", (since, now))
            return True, set(), False

        complete, missing, late = await self.runner.db.write(look)
        if complete:
            row.cursor += 1
            return True
        if not late:
            return False
        problem = wait.late(missing)
        if problem is not None:
            raise problem
        await self._advance(step, Done(), since)
        return True

    # ---- failing ----

    async def _fail(self, step: Step, error: Exception, started: int) -> bool:
        """Record why the step failed and turn round; True if there is something to unwind or to retry."""
        row, now = self.row, self.runner.clock.now()
        if isinstance(error, Undecided):
            await self._attention(str(error))
            return False
        if self._past_pivot():
            log.error(
                "a step after the point of no return fails", action=row.id, step=step.name, exc_info=error
            )
            await self._attention(str(error) or repr(error))
            return False
        why = stored(error, step, self.operation.host_of(self.run))
        floor = self._floor_for(error)
        if not isinstance(error, errors.KilonovaError):
            log.error("step failed unexpectedly", action=row.id, step=step.name, exc_info=error)

        def commit(tx: Tx) -> None:
            self._settle(tx, now, state="unwinding", error=why, floor=floor)
            self._log(
                tx,
                step,
                "do",
                (started, now),
                result="Error",
                traceback=why.traceback,
                host=why.host,
                details=why.message,
            )

        await self.runner.db.write(commit)
        row.state, row.error, row.floor = "unwinding", why, floor
        self._tell(step.name, "failed")
        return True

    def _floor_for(self, error: Exception) -> int:
        """Where unwinding stops: at the retry group, if another host may still do, else at the start."""
        operation, row = self.operation, self.row
        if not isinstance(error, errors.HostFault) or operation.retry_from is None or row.cancel:
            return 0
        if row.round >= operation.max_rounds(self.run) or self._expired():
            return 0
        return row.plan.index(operation.retry_from) + 1  # 0 is kept for "to the start"

    def _past_pivot(self) -> bool:
        for name in self.row.plan[: self.row.cursor + 1]:
            step = self._step(name)
            if step is not None and step.kind is Kind.RETRIABLE:
                return True
            if step is not None and step.kind is Kind.PIVOT and self.row.plan.index(name) < self.row.cursor:
                return True
        return False

    def _bound(self) -> bool:
        """Whether a cancel comes too late: also at a pivot that was begun, perhaps by a former owner."""
        step = self._step(self.row.plan[self.row.cursor])
        begun = step is not None and step.kind is Kind.PIVOT and self.begun
        return begun or self._past_pivot()

    def _expired(self) -> bool:
        return self.runner.clock.now() >= self.row.deadline_at

    def _is_patient(self, since: int) -> bool:
        """Whether a step that fails ``since`` then is still only repeated."""
        patience = self.operation.patience
        if patience is None or not (self._bound() or self._past_pivot()):
            return True
        return self.runner.clock.now() - since < patience * SECOND

    async def _attention(self, reason: str) -> None:
        """Ask for an operator: listed, logged, and tried again meanwhile, as it may go by itself."""
        row, now = self.row, self.runner.clock.now()
        say = log.critical if row.why is None else log.warning
        say(
            "operation needs attention",
            action=row.id,
            operation=row.operation,
            instance=row.instance_uuid,
            step=row.plan[row.cursor],
            reason=reason,
        )
        await self.runner.db.write(
            lambda tx: self._settle(
                tx, now, state="attention", why=reason, keep=False, wake_at=now + UNASKED * SECOND
            )
        )
        row.open = False  # for this walk

    # ---- backwards ----

    async def _unwind(self) -> bool:
        """Undo from the cursor down to the floor; True if steps are then to be tried again."""
        row = self.row
        lowest = max(row.floor - 1, 0)
        while row.cursor >= lowest:
            if self.runner.stopping:
                return False
            step = self._step(row.plan[row.cursor])
            if step is None:
                await self._attention(LOST_CODE)
                return False
            if step.undo is not None:
                started = self.runner.clock.now()
                done = await self._undo(step)
                if done is None:
                    return False
                await self._retreat(step, done, started)
                self._tell(step.name, "undone")
            else:
                row.cursor -= 1
        if row.floor:
            await self._next_round(lowest)
            return True
        await self._give_up()
        return False

    async def _undo(self, step: Step) -> Done | None:
        """The step's ``undo``, repeated with back-off; None when it needs an operator."""
        assert step.undo is not None
        self._tell(step.name, "undo")
        for attempt in range(self.attempts):
            if attempt:
                await self.runner.clock.sleep(pause(attempt - 1))
            try:
                with while_held(self.runner, self.row):
                    done = await step.undo(self.run)
                self.attempts = UNDO_ATTEMPTS
                return done
            except errors.LostLease:
                raise
            except Exception as error:  # noqa: BLE001 - an undo is repeated whatever went wrong
                if (left := await self.runner.left(self.run, error)) is not None:
                    return left
                log.warning("undo is repeated", action=self.row.id, step=step.name, error=repr(error))
                reason = str(error) or repr(error)
        await self._attention(f"undoing '{step.name}': {reason}")
        return None

    async def _retreat(self, step: Step, done: Done, started: int) -> None:
        row, now = self.row, self.runner.clock.now()

        def commit(tx: Tx) -> None:
            row.cancel = self._move(tx, now, row.cursor - 1) or row.cancel
            if done.changes:
                self.operation.apply(tx, self.run, done.changes)
            if done.write is not None:
                done.write(tx)
            self._log(tx, step, "undo", (started, now), host=done.host)

        await self.runner.db.write(commit)
        row.cursor -= 1

    async def _next_round(self, start: int) -> None:
        row, now = self.row, self.runner.clock.now()
        tried = row.outputs.setdefault("tried", {})
        assert row.error is not None
        if row.error.host:
            tried[row.error.host] = row.error.message
        for name in row.plan[start:]:
            row.outputs.pop(name, None)

        def commit(tx: Tx) -> None:
            self._settle(tx, now, cursor=start, floor=0, round=row.round + 1, state="running", error=None)

        await self.runner.db.write(commit)
        row.cursor, row.floor, row.state, row.error = start, 0, "running", None
        row.round += 1

    async def _give_up(self) -> None:
        """All is undone: leave the instance as it shall be and close the operation, in one commit."""
        row, now = self.row, self.runner.clock.now()
        assert row.error is not None
        error = row.error

        def commit(tx: Tx) -> None:
            cancel = self._settle(tx, now, cursor=0, state="failed", open=False, message="Error")
            error.cancelled = error.cancelled or cancel
            self.operation.failed(tx, self.run, error)
            self._leave(tx)

        await self.runner.db.write(commit)
        row.open, row.state = False, "failed"

    def _tell(self, step: str, what: str) -> None:
        if self.runner.on_step is not None:
            self.runner.on_step(self.row, step, what)
