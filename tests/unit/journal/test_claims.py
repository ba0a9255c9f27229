"""Who may run what: eligibility, several controllers, waits and signals that race."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pytest
from sqlalchemy import insert, text, update

from kilonova.clock import SECOND
from kilonova.db.engine import Database, Tx, insert_into
from kilonova.db.schema import schema_version
from kilonova.db.sqlite import SqliteDatabase
from kilonova.db.tables.journal import actions
from kilonova.errors import Failed, HostFault
from kilonova.journal.model import Run
from kilonova.journal.runner import Runner
from kilonova.journal.statements import FOREVER, SIGNALS_OF
from kilonova.testing.clock import VirtualClock
from kilonova.testing.database import WatchedDatabase
from tests.unit.journal.toy import CONTEXT, Lab, Params, World, lab, toy

T = TypeVar("T")

STATES = ("running", "waiting", "unwinding", "done", "failed", "attention")


@dataclass
class Watching(World):
    """Sees to it that no two operations are at one instance at the same time."""

    at: dict[str, int] = field(default_factory=dict)  # instance -> action
    trace: list[tuple[int, str]] = field(default_factory=list)

    async def enter(self, run: Run, step: str) -> None:
        self.trace.append((run.action.id, step))
        holder = self.at.setdefault(run.instance_uuid, run.action.id)
        assert holder == run.action.id, f"{holder} and {run.action.id} are both at {run.instance_uuid}"
        await asyncio.sleep(0)
        if step == "c":
            del self.at[run.instance_uuid]


def stored(choice: random.Random, now: int, number: int) -> dict[str, Any]:
    """The columns of some operation: of any age, owner and state."""
    state = choice.choice(STATES)
    closed = state in ("done", "failed")
    owner = None if closed or state == "attention" else choice.choice([None, "dead", "living"])
    wake = FOREVER if state == "attention" else now + choice.choice([-5, 0, 3600]) * SECOND
    return {
        "id": number,
        "action": "toy",
        "instance_uuid": f"i{choice.randrange(25)}",
        "request_id": f"req-{number}",
        "user_id": "u",
        "project_id": "p",
        "start_time": now,
        "updated_at": None,
        "finish_time": now if closed else None,
        "message": None,
        "operation": "toy",
        "plan": '["a","b","c"]',
        "params": "{}",
        "outputs": "{}",
        "state": state,
        "open": not closed,
        "cursor": choice.randrange(3),
        "floor": 0,
        "round": 1,
        "cancel": False,
        "error": '{"kind":"Failed","message":"no","step":"c"}' if state == "unwinding" else None,
        "why": None,
        "owner": owner,
        "epoch": 3,
        "lease_until": now + (3600 if owner == "living" else -1) * SECOND,
        "wake_at": wake,
        "deadline_at": now + 7200 * SECOND,
    }


def ready(rows: list[dict[str, Any]], now: int) -> set[int]:
    """What may be claimed, in other words than the statement's."""
    result: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row["open"]:
            result.setdefault(row["instance_uuid"], row)  # the first of its instance
    return {
        row["id"]
        for row in result.values()
        if row["wake_at"] <= now and (row["owner"] is None or row["lease_until"] < now)
    }


@pytest.mark.parametrize("seed", range(4))
async def test_what_is_claimed_is_what_is_ready(db: Database, clock: VirtualClock, seed: int) -> None:
    choice = random.Random(seed)
    now = clock.now()
    rows = [stored(choice, now, number) for number in range(1, 61)]
    await db.write(lambda tx: [tx.run(insert(actions).values(**row)) for row in rows] and None)
    runner = Runner(db, clock, "one", {"toy": toy(World())}, concurrency=10_000)
    adopted: list[Run] = []
    runner.adopt = adopted.append  # type: ignore[method-assign, assignment]
    clock.advance(1)
    await runner._claim()
    assert {run.action.id for run in adopted} == ready(rows, now + SECOND)
    assert all((run.action.owner, run.action.epoch) == ("one", 4) for run in adopted)
    assert {run.action.state for run in adopted} <= {"running", "unwinding"}
    more = [*adopted]
    await runner._claim()
    assert adopted == more


@pytest.mark.parametrize(("number", "room"), [(5, 2), (40, 3), (150, 64)])
async def test_no_more_is_claimed_than_there_is_room_for(
    db: Database, clock: VirtualClock, number: int, room: int
) -> None:
    """Whatever plan the database makes of the statement: it knows nothing of the table, and then all."""
    now = clock.now()
    ready_now = {"open": True, "owner": None, "wake_at": 0, "finish_time": None, "error": None}
    rows = [
        {
            **stored(random.Random(0), now, index),
            **ready_now,
            "instance_uuid": f"i{index}",
            "state": "running",
        }
        for index in range(1, number + 1)
    ]
    await db.write(lambda tx: [tx.run(insert(actions).values(**row)) for row in rows] and None)
    taken: list[int] = []
    for owner in ("one", "two"):
        runner = Runner(db, clock, owner, {"toy": toy(World())}, concurrency=room)
        adopted: list[Run] = []
        runner.adopt = adopted.append  # type: ignore[method-assign, assignment]
        assert await runner._claim() is (number - len(taken) >= room)
        assert len(adopted) == min(room, number - len(taken))
        taken += [run.action.id for run in adopted]
        await db.write(lambda tx: tx.run(text("ANALYZE")))
    assert taken == sorted(set(taken)), "the oldest first, and each once"


async def test_a_full_house_takes_the_next_one_as_soon_as_one_ends(db: Database, clock: VirtualClock) -> None:
    world = World(gates={"b": asyncio.Event()})
    async with lab(db, clock, toy(world), concurrency=2) as it:
        actions = [await it.submit(f"i{number}") for number in range(5)]
        await it.until(lambda: world.done.count("b") == 2)
        assert len(it.runner._running) == 2
        assert [(await it.row(action))["owner"] for action in actions[2:]] == [None] * 3
        began = clock.now()
        world.gates.pop("b").set()
        for action in actions:
            assert (await it.ended(action))["state"] == "done"
        assert clock.now() == began  # no look of the clock's was needed


async def test_controllers_and_submitters_at_the_same_instances(db: Database, clock: VirtualClock) -> None:
    """Each operation runs once, those of one instance one after the other, whoever takes them."""
    world = Watching()
    shared = WatchedDatabase(db)
    operation = toy(world)
    async with (
        lab(shared, clock, operation) as one,
        lab(shared, clock, operation, sole=False, owner="two") as two,
    ):
        names = [f"i{number}" for number in range(5)]
        await db.write(lambda tx: tx.run_many(insert_into(schema_version), [{"revision": n} for n in names]))

        def submit(it: Lab, name: str) -> Awaitable[int]:
            def write(tx: Tx) -> int:
                # as every operation does, change the instance's row first: that is the lock
                tx.run(update(schema_version).where(schema_version.c.revision == name).values(revision=name))
                return it.journal.submit(tx, CONTEXT, operation, name, "toy", Params())

            return shared.write(write)

        submitted = await asyncio.gather(
            *(submit((one, two)[number % 2], names[number % 5]) for number in range(30))
        )
        for action in submitted:
            row = await one.ended(action)
            assert (row["state"], row["epoch"]) == ("done", 1), row["error"]
        assert len(world.trace) == 90
        for action in submitted:
            assert [step for owner, step in world.trace if owner == action] == ["a", "b", "c"]


async def test_a_signal_that_is_being_committed_while_the_wait_is_written_down(
    db: Database, clock: VirtualClock
) -> None:
    """Neither sees the other's change yet; all the same the wait ends, and not at its timeout."""
    world = World(gates={"a": asyncio.Event()})
    async with lab(db, clock, toy(world, waits=True)) as it:
        action = await it.submit()
        await it.until(lambda: "a" in world.entered)
        await db.write(lambda tx: it.journal.signal(tx, "i", "plugged", "1"))
        told, commit = threading.Event(), threading.Event()

        def slow(tx: Tx) -> None:
            it.journal.signal(tx, "i", "plugged", "2")
            told.set()
            assert commit.wait(60)

        signalling = asyncio.create_task(db.write(slow))
        await asyncio.to_thread(told.wait, 60)
        world.gates.pop("a").set()
        if not isinstance(db, SqliteDatabase):  # whose one writer cannot do anything else now
            await _waits_for_a_lock(db)
        began = clock.now()
        commit.set()
        await signalling
        assert (await it.ended(action))["state"] == "done"
        assert clock.now() - began < 5 * SECOND


class Slow(Tx):
    """A transaction that stops after it has looked for signals, until ``go`` is set."""

    looked: threading.Event
    go: threading.Event

    def all(self, statement: Any, **values: Any) -> list[Any]:
        rows = super().all(statement, **values)
        if statement is SIGNALS_OF and not self.looked.is_set():
            self.looked.set()
            assert self.go.wait(60)
        return rows


class Holding(WatchedDatabase):
    """Makes the first look for signals a slow one."""

    def __init__(self, db: Database) -> None:
        super().__init__(db)
        self.looked, self.go = threading.Event(), threading.Event()

    async def write(self, fn: Callable[[Tx], T]) -> T:
        def held(tx: Tx) -> T:
            slow = Slow(tx._cursor, tx._dialect)
            slow.after_commit, slow.looked, slow.go = tx.after_commit, self.looked, self.go
            return fn(slow)

        return await super().write(held)


async def test_a_signal_that_comes_while_the_wait_is_being_written_down(
    db: Database, clock: VirtualClock
) -> None:
    holding = Holding(db)
    async with lab(holding, clock, toy(World(), waits=True)) as it:

        def submit(tx: Tx) -> int:
            action = it.journal.submit(tx, CONTEXT, it.operation, "i", "toy", Params())
            it.journal.signal(tx, "i", "plugged", "1")
            return action

        action = await db.write(submit)
        await asyncio.to_thread(holding.looked.wait, 60)
        signalling = asyncio.create_task(db.write(lambda tx: it.journal.signal(tx, "i", "plugged", "2")))
        if not isinstance(db, SqliteDatabase):
            await _waits_for_a_lock(db, signalling)
        began = clock.now()
        holding.go.set()
        await signalling
        assert (await it.ended(action))["state"] == "done"
        assert clock.now() - began < 5 * SECOND


async def _waits_for_a_lock(db: Database, or_ends: asyncio.Task[None] | None = None) -> None:
    """Come back when a session of PostgreSQL waits for another one's lock."""
    query = text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
    async with asyncio.timeout(60):
        while not await db.read(lambda tx: tx.scalar(query)):
            if or_ends is not None and or_ends.done():
                return
            await asyncio.sleep(0.01)


async def test_a_wait_ends_with_the_operations_time(db: Database, clock: VirtualClock) -> None:
    world = World()
    operation = toy(world, waits=True, deadline=20.0)
    async with lab(db, clock, operation) as it:
        action = await it.submit()
        row = await it.ended(action)
        assert row["state"] == "failed"
        assert 20 <= (row["finish_time"] - row["start_time"]) / SECOND < 25
        assert row["epoch"] == 2  # it slept once, and was not looked at again and again


@pytest.mark.parametrize("state", ["waiting", "unwinding", "running"])
async def test_whatever_was_under_way_goes_on_after_a_restart(
    db: Database, clock: VirtualClock, state: str
) -> None:
    faults: dict[str, list[Exception]] = {"c": [HostFault("no")]} if state == "unwinding" else {}
    world = World(faults=faults, gates={"-b" if state == "unwinding" else "b": asyncio.Event()})
    operation = toy(world, waits=state == "waiting", retry="b")
    async with lab(db, clock, operation) as it:
        action = await it.submit()
        await it.state(action, state)
        await it.kill()
    world.gates.clear()
    async with lab(db, clock, operation, owner="two") as it:
        for tag in "12":
            await it.db.write(lambda tx, tag=tag: it.journal.signal(tx, "i", "plugged", tag))
        row = await it.ended(action)
        assert row["state"] == "done"
        assert world.things == {"a", "b", "c"}


async def test_an_error_of_one_host_does_not_outlive_the_deadline(db: Database, clock: VirtualClock) -> None:
    world = World(gates={"c": asyncio.Event()}, faults={"c": [HostFault("slow and bad"), Failed("never")]})
    async with lab(db, clock, toy(world, retry="b")) as it:
        action = await it.submit()
        await it.until(lambda: "c" in world.entered)
        later = clock.now() + 200 * SECOND
        await it.until(lambda: clock.now() > later)
        world.gates.pop("c").set()
        row = await it.ended(action)
        assert (row["state"], row["round"]) == ("failed", 1)
        assert world.things == set()
