"""The database goes away, for a moment or a minute; the process sleeps; a host is gone while unwinding."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import update

from kilonova.clock import SECOND
from kilonova.db.engine import Database, DatabaseUnavailable
from kilonova.db.schema import bring_up
from kilonova.db.sqlite import SqliteDatabase
from kilonova.db.tables.journal import actions
from kilonova.errors import Failed, HostFault, Unreachable
from kilonova.testing.clock import VirtualClock
from kilonova.testing.database import WatchedDatabase
from tests.unit.journal.toy import Lab, World, lab, toy

MINUTE = 60 * SECOND


async def gone_for_a_minute(it: Lab) -> None:
    it.db.gone = True
    back = it.clock.now() + MINUTE
    await it.until(lambda: it.clock.now() >= back)
    it.db.gone = False


@pytest.mark.parametrize("step", "abc")
async def test_the_database_is_gone_for_a_minute_in_a_step(
    db: Database, clock: VirtualClock, step: str
) -> None:
    world = World(gates={step: asyncio.Event()})
    async with lab(db, clock, toy(world)) as it:
        action = await it.submit()
        await it.until(lambda: step in world.entered)
        it.db.gone = True
        world.gates.pop(step).set()
        await gone_for_a_minute(it)
        back = clock.now()
        row = await it.ended(action)
        assert row["state"] == "done"
        assert world.done.count(step) == 2  # its end could not be recorded, so it is repeated
        assert await it.events(action) == [(name, "do", 1, "Success") for name in "abc"]
        assert row["finish_time"] - back < 3 * SECOND  # nobody waits for the lease to end


@pytest.mark.parametrize("step", "ab")
async def test_the_database_is_gone_for_a_minute_while_unwinding(
    db: Database, clock: VirtualClock, step: str
) -> None:
    world = World(faults={"c": [Failed("no")]}, gates={f"-{step}": asyncio.Event()})
    async with lab(db, clock, toy(world)) as it:
        action = await it.submit()
        await it.until(lambda: f"-{step}" in world.entered)
        it.db.gone = True
        world.gates.pop(f"-{step}").set()
        await gone_for_a_minute(it)
        assert (await it.ended(action))["state"] == "failed"
        assert world.things == set()
        assert world.verdict is not None and world.verdict.step == "c"


async def test_the_database_is_gone_while_an_operation_waits_for_a_signal(
    db: Database, clock: VirtualClock
) -> None:
    world = World(gates={"a": asyncio.Event()})
    async with lab(db, clock, toy(world, waits=True)) as it:
        action = await it.submit()
        await it.until(lambda: "a" in world.entered)
        for tag in "12":
            await it.db.write(lambda tx, tag=tag: it.journal.signal(tx, "i", "plugged", tag))
        looks: list[str] = []
        it.db.fail = lambda name: name == "look" and not looks.append(name)
        world.gates.pop("a").set()
        await it.until(lambda: looks)
        assert (await it.row(action))["cursor"] == 1
        await gone_for_a_minute(it)
        it.db.fail = lambda name: False
        assert (await it.ended(action))["state"] == "done"
        assert world.done == ["a", "b", "c"]


async def test_what_one_failed_commit_interrupts_goes_on_though_others_keep_the_runner_busy(
    db: Database, clock: VirtualClock
) -> None:
    world = World(gates={"b": asyncio.Event()})
    async with lab(db, clock, toy(world)) as it:
        busy = await it.submit("busy")
        await it.until(lambda: "b" in world.entered)
        gate = world.gates.pop("b")
        world.gates["a"] = asyncio.Event()
        action = await it.submit("i")
        await it.until(lambda: world.done.count("a") == 2)
        failed: list[str] = []
        it.db.fail = lambda name: name == "commit" and not failed and not failed.append(name)
        began = clock.now()
        world.gates.pop("a").set()
        row = await it.ended(action)
        assert (row["state"], row["epoch"]) == ("done", 2)
        assert clock.now() - began < 3 * SECOND  # it is given back, and no lease has to end
        assert (await it.row(busy))["state"] == "running"
        gate.set()
        assert (await it.ended(busy))["epoch"] == 1


async def test_a_commit_of_unknown_fate_is_found_by_its_lease(db: Database, clock: VirtualClock) -> None:
    """The submit was committed, but nobody here knows: the runner owns what it does not walk."""
    world = World(gates={"b": asyncio.Event()})
    async with lab(db, clock, toy(world)) as it:
        await it.submit("busy")
        await it.until(lambda: "b" in world.entered)
        adopt, it.runner.adopt = it.runner.adopt, lambda run: None  # type: ignore[method-assign]
        action = await it.submit("i")
        it.runner.adopt = adopt  # type: ignore[method-assign]
        assert (await it.row(action))["owner"] == "one"
        gate = world.gates.pop("b")
        row = await it.ended(action)
        assert (row["state"], row["epoch"]) == ("done", 2)
        assert len(it.runner._running) == 1  # whose lease is renewed all the time
        gate.set()


async def test_a_process_that_slept_keeps_what_nobody_took(db: Database, clock: VirtualClock) -> None:
    world = World(gates={"b": asyncio.Event()})
    async with lab(db, clock, toy(world)) as it:
        action = await it.submit()
        await it.until(lambda: "b" in world.entered)
        clock.advance(300)  # the laptop was shut: its leases have lapsed
        later = clock.now() + 5 * SECOND
        await it.until(lambda: clock.now() > later)
        world.gates.pop("b").set()
        row = await it.ended(action)
        assert (row["state"], row["epoch"]) == ("done", 1)
        assert world.done == ["a", "b", "c"]


async def test_of_two_walks_of_one_process_only_the_newer_writes(db: Database, clock: VirtualClock) -> None:
    """Its lease has ended unseen, it has claimed its own operation again; the old walk hears no cancel."""

    class Deaf(World):
        async def visit(self, what: str) -> None:
            if what == "b" and "b" not in self.done:
                with contextlib.suppress(asyncio.CancelledError):
                    await super().visit(what)
                await second.wait()
                return
            await super().visit(what)

    second = asyncio.Event()
    world = Deaf(gates={"b": asyncio.Event()})
    async with lab(db, clock, toy(world)) as it:
        action = await it.submit()
        await it.until(lambda: "b" in world.entered)
        old = it.runner._running[action][1]
        lapsed = update(actions).where(actions.c.id == action).values(lease_until=0)
        it.runner._renewed = clock.now()
        await db.write(lambda tx: tx.run(lapsed))
        await it.until(lambda: world.done.count("b") == 2)
        second.set()
        await asyncio.gather(old, return_exceptions=True)
        assert (await it.row(action))["cursor"] == 1
        assert list(it.runner._running) == [action]
        world.gates.pop("b").set()
        row = await it.ended(action)
        assert (row["state"], row["epoch"]) == ("done", 2)
        assert await it.events(action) == [(name, "do", 1, "Success") for name in "abc"]


@pytest.mark.parametrize("away", [1, 5])
async def test_a_host_that_is_gone_while_unwinding_is_waited_for(
    db: Database, clock: VirtualClock, away: int
) -> None:
    gone = [Unreachable("The host does not answer.") for _ in range(away)]
    world = World(faults={"c": [Failed("no")], "-b": list(gone), "-a": list(gone)})
    async with lab(db, clock, toy(world)) as it:
        row = await it.ended(await it.submit())
        assert row["state"] == "failed"
        assert world.things == set()
        assert world.done.count("-b") == world.done.count("-a") == away + 1


async def test_a_host_that_is_gone_on_the_way_to_the_next_one(db: Database, clock: VirtualClock) -> None:
    gone = [Unreachable("The host does not answer.") for _ in range(30)]
    world = World(faults={"c": [HostFault("bad disk")], "-c": gone})
    async with lab(db, clock, toy(world, retry="b")) as it:
        action = await it.submit()
        row = await it.ended(action)
        assert (row["state"], row["cursor"], row["round"]) == ("attention", 2, 1)
        assert "The host does not answer." in row["why"]
        await it.resolve(action, "retry")
        row = await it.ended(action)
        assert (row["state"], row["round"], row["why"]) == ("done", 2, None)
        assert world.things == {"a", "b", "c"}


# ---- the real thing ----


@contextlib.asynccontextmanager
async def locked_out(db: Database) -> AsyncIterator[None]:
    """Nobody but us can use the database."""
    if isinstance(db, SqliteDatabase):
        with contextlib.closing(sqlite3.connect(db.path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            yield
            other.execute("ROLLBACK")
        return
    import psycopg

    conninfo = psycopg.conninfo.conninfo_to_dict(db._conninfo)  # type: ignore[attr-defined]
    name = conninfo.pop("dbname")
    server = psycopg.conninfo.make_conninfo(**conninfo, dbname="postgres")
    with psycopg.connect(server, autocommit=True) as other:
        other.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        other.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,))
        yield
        other.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")


@pytest.fixture
async def impatient(db: Database, tmp_path: Path, clock: VirtualClock) -> AsyncIterator[Database]:
    """The database; an SQLite one that does not wait long for a lock."""
    if db.name != "sqlite":
        yield db
        return
    made = SqliteDatabase(tmp_path / "impatient.db", clock, patience=0.1)
    await bring_up(made)
    yield made
    await made.close()


async def test_a_database_that_refuses_us_for_a_while(impatient: Database, clock: VirtualClock) -> None:
    world = World(gates={"b": asyncio.Event()})
    async with lab(impatient, clock, toy(world)) as it:
        action = await it.submit()
        await it.until(lambda: "b" in world.entered)
        async with locked_out(impatient):
            with pytest.raises(DatabaseUnavailable):
                await it.submit("j")
            world.gates.pop("b").set()
            await it.until(lambda: it.runner._dropped)
        assert (await it.ended(action))["state"] == "done"
        assert world.done.count("b") == 2
        assert await it.events(action) == [(name, "do", 1, "Success") for name in "abc"]


async def test_two_controllers_after_an_outage_repeat_a_step_once(db: Database, clock: VirtualClock) -> None:
    world = World(gates={"b": asyncio.Event()})
    shared, operation = WatchedDatabase(db), toy(world)
    async with lab(shared, clock, operation) as one, lab(shared, clock, operation, sole=False, owner="two"):
        submitted = [await one.submit(f"i{number}") for number in range(8)]
        await one.until(lambda: world.done.count("b") == 8)
        shared.gone = True
        world.gates.pop("b").set()
        await gone_for_a_minute(one)
        for action in submitted:
            row = await one.ended(action)
            assert (row["state"], row["epoch"]) == ("done", 2)
        assert world.done.count("b") == 16
        assert world.done.count("c") == 8
