"""A toy operation on a toy world, to watch the journal at work."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec
from sqlalchemy import select

from kilonova.db.engine import Database, Tx
from kilonova.db.tables.journal import action_events, actions
from kilonova.errors import Failed
from kilonova.journal import attention
from kilonova.journal.journal import Journal
from kilonova.journal.model import ActionRow, Done, Kind, Operation, Run, Step, StoredError, Wait
from kilonova.journal.runner import Runner
from kilonova.model.context import RequestContext
from kilonova.testing.clock import VirtualClock
from kilonova.testing.database import WatchedDatabase, settle

CONTEXT = RequestContext(request_id="req-1", user_id="u", project_id="p")


class Params(msgspec.Struct):
    word: str = "x"


@dataclass
class World:
    """What the steps have done to it; ``faults`` and ``gates`` decide how they fare."""

    things: set[str] = field(default_factory=set)
    done: list[str] = field(default_factory=list)
    faults: dict[str, list[Exception]] = field(default_factory=dict)
    gates: dict[str, asyncio.Event] = field(default_factory=dict)
    entered: dict[str, asyncio.Event] = field(default_factory=dict)
    verdict: StoredError | None = None
    changes: list[dict[str, Any]] = field(default_factory=list)

    async def enter(self, run: Run, step: str) -> None:
        """Hears of each step that begins."""

    async def visit(self, what: str) -> None:
        self.done.append(what)
        self.entered.setdefault(what, asyncio.Event()).set()
        if what in self.gates:
            await self.gates[what].wait()
        if self.faults.get(what):
            raise self.faults[what].pop(0)


def toy(
    world: World,
    names: str = "abc",
    *,
    waits: bool = False,
    pivot: str = "",
    retry: str = "",
    deadline: float = 120.0,
) -> Operation:
    def make(name: str) -> Step:
        async def do(run: Run) -> Done:
            await world.enter(run, name)
            world.things.add(name)
            await world.visit(name)
            return Done(output=f"{name}{run.action.round}", changes={"last": name})

        async def undo(run: Run) -> Done:
            await world.visit(f"-{name}")
            world.things.discard(name)
            return Done()

        kind = Kind.COMPENSATABLE
        if pivot and name >= pivot:
            kind = Kind.PIVOT if name == pivot else Kind.RETRIABLE
        return Step(
            name, do, None if kind is not Kind.COMPENSATABLE else undo, kind=kind, event=f"compute_{name}"
        )

    async def wait(run: Run) -> Wait:
        return Wait(
            frozenset({("plugged", "1"), ("plugged", "2")}), 60.0, lambda missing: Failed(f"{missing}")
        )

    steps = [make(name) for name in names]
    if waits:
        steps.insert(1, Step("wait", wait))

    def failed(tx: Tx, run: Run, error: StoredError) -> None:
        world.verdict = error

    return Operation(
        name="toy",
        steps=tuple(steps),
        params=Params,
        apply=lambda tx, run, changes: world.changes.append(changes),
        failed=failed,
        deadline=deadline,
        retry_from=retry or None,
        max_rounds=lambda run: 3,
        host_of=lambda run: f"host{run.action.round}",
    )


class Crash(asyncio.CancelledError):
    """The process dies here: nothing after this point happens."""


@dataclass
class Lab:
    db: WatchedDatabase
    raw: Database  # to look with, also when the other is gone
    clock: VirtualClock
    runner: Runner
    journal: Journal
    operation: Operation
    killed: bool = False

    async def submit(self, instance: str = "i", params: Params | None = None) -> int:
        return await self.db.write(
            lambda tx: self.journal.submit(tx, CONTEXT, self.operation, instance, "toy", params or Params())
        )

    async def row(self, action_id: int) -> dict[str, Any]:
        found = await self.raw.read(
            lambda tx: tx.one(select(*actions.columns).where(actions.c.id == action_id))
        )
        assert found is not None
        return dict(zip([column.name for column in actions.columns], found, strict=True))

    async def events(self, action_id: int) -> list[tuple[str, str, int, str]]:
        query = (
            select(action_events.c.step, action_events.c.phase, action_events.c.round, action_events.c.result)
            .where(action_events.c.action_id == action_id)
            .order_by(action_events.c.id)
        )
        return await self.raw.read(lambda tx: tx.all(query))

    async def until(self, condition: Callable[[], object]) -> None:
        """Let time pass, when all wait for it, until the condition holds."""

        async def holds() -> bool:
            return bool(condition())

        await settle(holds, self.db, self.clock)

    async def state(self, action_id: int, *states: str) -> dict[str, Any]:
        """The row, once the operation is in one of these states."""

        async def reached() -> bool:
            return (await self.row(action_id))["state"] in states

        try:
            await settle(reached, self.db, self.clock)
        except TimeoutError as error:
            raise TimeoutError(f"{await self.row(action_id)}") from error
        return await self.row(action_id)

    async def ended(self, action_id: int) -> dict[str, Any]:
        """The row, once the operation is closed or needs attention."""
        row = await self.state(action_id, "done", "failed", "attention")
        assert row["open"] == (row["state"] == "attention")
        return row

    async def resolve(self, action_id: int, verb: str) -> None:
        """What an operator called ann decides."""
        await self.raw.write(lambda tx: attention.resolve(tx, action_id, verb, "ann", self.clock.now()))

    async def kill(self) -> None:
        """End the runner as SIGKILL would: nothing is given back, no lease released."""
        tasks = [*self.runner._loops, *(task for _, task in self.runner._running.values())]
        self.killed = self.runner._stopping = True
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def crash_at(runner: Runner, step: str, what: str) -> asyncio.Event:
    """Have the runner die right after ``what`` (do, done, failed, undo, undone) of a step; the event is set
    then."""
    died = asyncio.Event()

    def look(row: ActionRow, name: str, happened: str) -> None:
        if (name, happened) == (step, what):
            died.set()
            raise Crash

    runner.on_step = look
    return died


@contextlib.asynccontextmanager
async def lab(
    db: Database,
    clock: VirtualClock,
    operation: Operation,
    *,
    sole: bool = True,
    owner: str = "one",
    own_clock: VirtualClock | None = None,
    concurrency: int = 256,
) -> AsyncIterator[Lab]:
    """A runner with its journal.  Several in one test share a WatchedDatabase."""
    watched = db if isinstance(db, WatchedDatabase) else WatchedDatabase(db)
    runner = Runner(
        watched,
        own_clock or clock,
        owner,
        {operation.name: operation},
        lease=30.0,
        concurrency=concurrency,
    )
    await runner.start(sole=sole)
    made = Lab(watched, watched.raw, clock, runner, Journal(own_clock or clock, runner), operation)
    try:
        yield made
    finally:
        watched.gone, watched.fail = False, lambda name: False
        if own_clock is not None:
            made.clock = own_clock
        if not made.killed:
            stop = asyncio.create_task(runner.stop())
            await made.until(stop.done)
            await stop
