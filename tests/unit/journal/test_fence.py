"""What a step writes elsewhere than in its own commit is written only while its runner has the operation."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from kilonova.db.engine import Database, Tx
from kilonova.errors import LostLease
from kilonova.journal.model import Run
from kilonova.journal.statements import SIGNAL, SIGNALS_OF
from kilonova.testing.clock import VirtualClock
from tests.unit.journal.toy import World, lab, toy


@dataclass
class Writing(World):
    """Its step ``b`` writes to another table when it is let; ``errors`` has what it was told then."""

    db: Any = None
    errors: list[Exception] = field(default_factory=list)
    starts: asyncio.Event | None = None  # it starts a task instead, which writes when this is set
    started: asyncio.Task[None] | None = None

    async def visit(self, what: str) -> None:
        await super().visit(what)
        if what == "b":
            try:
                await self._write()
            except LostLease as error:
                self.errors.append(error)
                raise

    async def _write(self) -> None:
        def write(tx: Tx) -> None:
            tx.run(SIGNAL, instance_uuid="elsewhere", name="n", tag="t", status="s", created_at=0)

        async def later(starts: asyncio.Event) -> None:
            await starts.wait()
            await self.db.write(write)

        if self.starts is not None:
            self.started = asyncio.create_task(later(self.starts))
        else:
            await self.db.write(write)

    async def enter(self, run: Run, step: str) -> None:
        self.db = run.cloud


async def written(db: Database) -> int:
    return len(await db.read(lambda tx: tx.all(SIGNALS_OF, uuid="elsewhere")))


async def test_a_slow_old_owner_cannot_write_elsewhere(db: Database, clock: VirtualClock) -> None:
    slow_world = Writing(gates={"b": asyncio.Event()})
    async with lab(db, clock, toy(slow_world), sole=False) as old:
        old.runner.cloud = old.db
        action = await old.submit()
        await old.until(lambda: "b" in slow_world.done)
        slow = old.runner._running[action][1]
        for loop in old.runner._loops:  # it sleeps on, and renews nothing
            loop.cancel()
        fast_world = Writing()
        async with lab(db, clock, toy(fast_world), sole=False, owner="new") as new:
            new.runner.cloud = new.db
            await new.ended(action)
            assert await written(db) == 1
            slow_world.gates["b"].set()
            await asyncio.gather(slow, return_exceptions=True)
    assert len(slow_world.errors) == 1 and not fast_world.errors
    assert await written(db) == 1


async def test_who_has_it_may(db: Database, clock: VirtualClock) -> None:
    world = Writing()
    async with lab(db, clock, toy(world), sole=False) as it:
        it.runner.cloud = it.db
        assert (await it.ended(await it.submit()))["state"] == "done"
    assert await written(db) == 1 and not world.errors


async def test_what_a_step_has_started_may_outlive_it(db: Database, clock: VirtualClock) -> None:
    world = Writing(starts=asyncio.Event())
    async with lab(db, clock, toy(world), sole=False) as it:
        it.runner.cloud = it.db
        assert (await it.ended(await it.submit()))["state"] == "done"
        assert await written(db) == 0 and world.started is not None and world.starts is not None
        world.starts.set()
        await world.started
    assert await written(db) == 1
