"""The tests that a journal owes (each was once somebody's bug)."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import update

from kilonova.clock import SECOND
from kilonova.db.engine import Database, Tx
from kilonova.db.tables.journal import actions
from kilonova.errors import Failed, HostFault, TryAgain
from kilonova.journal.model import Run
from kilonova.testing.clock import VirtualClock
from kilonova.testing.database import WatchedDatabase
from tests.unit.journal.toy import CONTEXT, Params, World, crash_at, lab, toy


async def test_steps_run_in_order_and_end_in_one_row(db: Database, clock: VirtualClock) -> None:
    world = World()
    async with lab(db, clock, toy(world)) as it:
        action = await it.submit()
        row = await it.ended(action)
        assert (row["state"], row["open"], row["cursor"], row["message"]) == ("done", False, 3, None)
        assert row["finish_time"] is not None
        assert world.done == ["a", "b", "c"]
        assert world.changes == [{"last": "a"}, {"last": "b"}, {"last": "c"}]
        assert await it.events(action) == [(name, "do", 1, "Success") for name in "abc"]


@pytest.mark.parametrize("failing", "abc")
async def test_a_failing_step_undoes_itself_and_those_before(
    db: Database, clock: VirtualClock, failing: str
) -> None:
    world = World(faults={failing: [Failed("no")]})
    async with lab(db, clock, toy(world)) as it:
        action = await it.submit()
        row = await it.ended(action)
        assert (row["state"], row["message"]) == ("failed", "Error")
        assert world.things == set()
        assert world.verdict is not None and world.verdict.step == failing and world.verdict.message == "no"
        done = "abc"[: "abc".index(failing) + 1]
        assert world.done == [*done, *(f"-{name}" for name in reversed(done))]
        assert (failing, "do", 1, "Error") in await it.events(action)


@pytest.mark.parametrize("failing", "abc")
async def test_what_is_only_the_moment_is_repeated(db: Database, clock: VirtualClock, failing: str) -> None:
    world = World(faults={failing: [TryAgain("busy"), TryAgain("busy")]})
    async with lab(db, clock, toy(world)) as it:
        assert (await it.ended(await it.submit()))["state"] == "done"
        assert world.done.count(failing) == 3


@pytest.mark.parametrize("what", ["do", "done"])
@pytest.mark.parametrize("step", "abc")
async def test_a_dead_controller_costs_one_repeat_at_most(
    db: Database, clock: VirtualClock, step: str, what: str
) -> None:
    world = World()
    operation = toy(world)
    async with lab(db, clock, operation) as it:
        died = crash_at(it.runner, step, what)
        action = await it.submit()
        await it.until(died.is_set)
        await it.kill()
        assert (await it.row(action))["state"] in ("running", "done")
    began = clock.now()
    async with lab(db, clock, operation, owner="two") as it:
        row = await it.ended(action)
        assert row["state"] == "done"
        assert clock.now() - began < 2 * SECOND  # who is alone need not wait for a lease to end
        assert world.things == {"a", "b", "c"}
        assert await it.events(action) == [(name, "do", 1, "Success") for name in "abc"]


@pytest.mark.parametrize("what", ["undo", "undone"])
@pytest.mark.parametrize("step", "abc")
async def test_unwinding_goes_on_where_it_was_interrupted(
    db: Database, clock: VirtualClock, step: str, what: str
) -> None:
    world = World(faults={"c": [Failed("no")]})
    operation = toy(world)
    async with lab(db, clock, operation) as it:
        died = crash_at(it.runner, step, what)
        action = await it.submit()
        await it.until(died.is_set)
        await it.kill()
        assert (await it.row(action))["state"] == "unwinding"
    async with lab(db, clock, operation, owner="two") as it:
        row = await it.ended(action)
        assert row["state"] == "failed"
        assert world.things == set()
        assert world.verdict is not None and world.verdict.step == "c"


async def test_a_slow_old_owner_writes_nothing_after_a_takeover(db: Database, clock: VirtualClock) -> None:
    world = World(gates={"b": asyncio.Event()})
    operation = toy(world)
    shared = WatchedDatabase(db)
    async with lab(shared, clock, operation) as old:
        old.runner._loops[1].cancel()  # it does not renew its lease: the process is stopped
        action = await old.submit()
        await old.until(lambda: "b" in world.entered)
        old.runner._loops[0].cancel()
        slow = old.runner._running[action][1]
        clock.advance(31)
        gate = world.gates.pop("b")
        async with lab(shared, clock, operation, sole=False, owner="two") as new:
            row = await new.ended(action)
            assert (row["state"], row["epoch"]) == ("done", 2)
            gate.set()
            await asyncio.gather(slow, return_exceptions=True)
            assert await new.row(action) == row
            assert await new.events(action) == [(name, "do", 1, "Success") for name in "abc"]


async def test_a_living_owner_is_left_alone(db: Database, clock: VirtualClock) -> None:
    world = World(gates={"b": asyncio.Event()})
    operation = toy(world)
    db = WatchedDatabase(db)
    async with lab(db, clock, operation) as one, lab(db, clock, operation, sole=False, owner="two") as two:
        action = await one.submit()
        await one.until(lambda: "b" in world.entered)
        later = clock.now() + 100 * SECOND
        await one.until(lambda: clock.now() > later)
        assert (await one.row(action))["owner"] == "one"
        assert two.runner._running == {}
        world.gates.pop("b").set()
        assert (await one.ended(action))["epoch"] == 1


async def test_controllers_whose_clocks_differ_by_a_lease_do_not_steal(
    db: Database, clock: VirtualClock
) -> None:
    world = World(gates={"b": asyncio.Event()})
    operation = toy(world)
    late = VirtualClock()
    late.advance(45)
    db = WatchedDatabase(db)
    async with (
        lab(db, clock, operation) as one,
        lab(db, clock, operation, sole=False, owner="two", own_clock=late) as two,
    ):
        action = await one.submit()
        await one.until(lambda: "b" in world.entered)
        await two.runner._claim()
        assert (await one.row(action))["owner"] == "one"
        world.gates.pop("b").set()
        assert (await one.ended(action))["epoch"] == 1


@pytest.mark.parametrize("when", ["before the first step", "during a step", "while waiting"])
async def test_a_signal_is_never_lost(db: Database, clock: VirtualClock, when: str) -> None:
    world = World(gates={"a": asyncio.Event()})
    async with lab(db, clock, toy(world, waits=True)) as it:
        journal = it.journal

        def submit(tx: Tx) -> int:
            action = journal.submit(tx, CONTEXT, it.operation, "i", "toy", Params())
            if when == "before the first step":
                journal.signal(tx, "i", "plugged", "2")
            return action

        action = await it.db.write(submit)
        await it.until(lambda: "a" in world.entered)
        if when == "during a step":
            await it.db.write(lambda tx: journal.signal(tx, "i", "plugged", "2"))
        world.gates.pop("a").set()
        row = await it.state(action, "waiting")
        assert (row["state"], row["owner"]) == ("waiting", None)
        if when == "while waiting":
            await it.db.write(lambda tx: journal.signal(tx, "i", "plugged", "2"))
        await it.db.write(lambda tx: journal.signal(tx, "i", "plugged", "1"))
        assert (await it.ended(action))["state"] == "done"
        assert world.things == {"a", "b", "c"}


@pytest.mark.parametrize("when", ["before it", "late", "twice", "while it is undone"])
async def test_no_operation_takes_the_signals_of_an_earlier_one(
    db: Database, clock: VirtualClock, when: str
) -> None:
    world = World(gates={"c": asyncio.Event()}, faults={"c": [Failed("no")] if "undone" in when else []})
    async with lab(db, clock, toy(world, waits=True)) as it:

        async def say(*tags: str) -> None:
            for tag in tags:
                await it.db.write(lambda tx, tag=tag: it.journal.signal(tx, "i", "plugged", tag))

        if when == "before it":
            await say("1", "2")
        action = await it.submit()
        if when == "before it":
            await it.state(action, "waiting")
        await say("1", "2", *("12" if when == "twice" else ""))
        await it.until(lambda: "c" in world.entered)
        if when in ("late", "while it is undone"):
            await say("1", "2")
        world.gates.pop("c").set()
        await it.ended(action)
        second = await it.submit()
        assert (await it.state(second, "waiting", "done"))["state"] == "waiting"
        await say("1", "2")
        assert (await it.ended(second))["state"] == "done"


async def test_a_wait_that_is_too_long_fails_with_what_is_missing(db: Database, clock: VirtualClock) -> None:
    world = World()
    async with lab(db, clock, toy(world, waits=True)) as it:
        action = await it.submit()
        await it.db.write(lambda tx: it.journal.signal(tx, "i", "plugged", "1"))
        row = await it.ended(action)
        assert row["state"] == "failed"
        assert world.verdict is not None and "'2'" in world.verdict.message
        assert "'1'" not in world.verdict.message


async def test_a_failed_signal_fails_the_wait_at_once(db: Database, clock: VirtualClock) -> None:
    world = World()
    async with lab(db, clock, toy(world, waits=True)) as it:
        action = await it.submit()
        await it.db.write(lambda tx: it.journal.signal(tx, "i", "plugged", "1", "failed"))
        row = await it.ended(action)
        assert row["state"] == "failed"
        assert row["finish_time"] - row["start_time"] < 30_000_000


async def test_the_deadline_holds_though_the_first_step_keeps_failing(
    db: Database, clock: VirtualClock
) -> None:
    world = World(faults={"a": [TryAgain("never")] * 1000})
    async with lab(db, clock, toy(world)) as it:
        row = await it.ended(await it.submit())
        assert row["state"] == "failed"
        assert world.verdict is not None and "deadline" in world.verdict.message
        assert world.things == set()


async def test_another_host_is_tried_and_the_bad_ones_are_remembered(
    db: Database, clock: VirtualClock
) -> None:
    world = World(faults={"c": [HostFault("bad disk"), HostFault("no power")]})
    async with lab(db, clock, toy(world, retry="b")) as it:
        action = await it.submit()
        row = await it.ended(action)
        assert (row["state"], row["round"]) == ("done", 3)
        assert '"tried":{"host1":"bad disk","host2":"no power"}' in row["outputs"]
        assert world.done == ["a", "b", "c", "-c", "-b", "b", "c", "-c", "-b", "b", "c"]
        assert ("c", "do", 2, "Error") in await it.events(action)


async def test_a_round_knows_what_was_before_the_group_and_waits_for_its_own_signals(
    db: Database, clock: VirtualClock
) -> None:
    outputs: list[tuple[str, object, object]] = []

    class Looking(World):
        async def enter(self, run: Run, step: str) -> None:
            if step == "b":
                outputs.append((run.output("a"), run.output("b"), run.output("c")))

    world = Looking(faults={"c": [HostFault("bad")]})
    async with lab(db, clock, toy(world, waits=True, retry="wait")) as it:
        action = await it.submit()
        for number in (1, 2):
            row = await it.state(action, "waiting")
            assert row["round"] == number
            for tag in "12":
                await it.db.write(lambda tx, tag=tag: it.journal.signal(tx, "i", "plugged", tag))
            await it.until(lambda number=number: len(outputs) == number)
        assert (await it.ended(action))["state"] == "done"
        assert outputs == [("a1", None, None), ("a1", None, None)]


async def test_when_no_round_is_left_everything_is_undone(db: Database, clock: VirtualClock) -> None:
    world = World(faults={"c": [HostFault("bad")] * 3})
    async with lab(db, clock, toy(world, retry="b")) as it:
        row = await it.ended(await it.submit())
        assert (row["state"], row["round"]) == ("failed", 3)
        assert world.things == set()
        assert world.done[-3:] == ["-c", "-b", "-a"]


@pytest.mark.parametrize("crash", [("c", "failed"), ("c", "undone"), ("b", "undone")])
async def test_a_crash_on_the_way_to_the_next_host(
    db: Database, clock: VirtualClock, crash: tuple[str, str]
) -> None:
    world = World(faults={"c": [HostFault("bad")]})
    operation = toy(world, retry="b")
    async with lab(db, clock, operation) as it:
        died = crash_at(it.runner, *crash)
        action = await it.submit()
        await it.until(died.is_set)
        await it.kill()
    async with lab(db, clock, operation, owner="two") as it:
        row = await it.ended(action)
        assert (row["state"], row["round"]) == ("done", 2)
        assert world.things == {"a", "b", "c"}


async def test_a_cancel_interrupts_a_long_step_and_undoes(db: Database, clock: VirtualClock) -> None:
    world = World(gates={"b": asyncio.Event()})
    async with lab(db, clock, toy(world)) as it:
        action = await it.submit()
        await it.until(lambda: "b" in world.entered)
        assert await it.db.write(lambda tx: it.journal.cancel(tx, "i"))
        row = await it.ended(action)
        assert row["state"] == "failed"
        assert world.things == set()
        assert world.verdict is not None and world.verdict.cancelled


async def test_a_cancel_of_what_waits(db: Database, clock: VirtualClock) -> None:
    world = World()
    async with lab(db, clock, toy(world, waits=True)) as it:
        action = await it.submit()
        await it.state(action, "waiting")
        await it.db.write(lambda tx: it.journal.cancel(tx, "i"))
        assert (await it.ended(action))["state"] == "failed"
        assert world.things == set()


async def test_after_the_pivot_a_cancel_comes_too_late(db: Database, clock: VirtualClock) -> None:
    world = World(gates={"c": asyncio.Event()})
    async with lab(db, clock, toy(world, pivot="b")) as it:
        action = await it.submit()
        await it.until(lambda: "c" in world.entered)
        await it.db.write(lambda tx: it.journal.cancel(tx, "i"))
        world.gates.pop("c").set()
        assert (await it.ended(action))["state"] == "done"


async def test_after_the_pivot_any_failure_is_repeated(db: Database, clock: VirtualClock) -> None:
    world = World(faults={"c": [Failed("x"), ValueError("y")]})
    async with lab(db, clock, toy(world, pivot="b")) as it:
        assert (await it.ended(await it.submit()))["state"] == "done"
        assert world.done == ["a", "b", "c", "c", "c"]


async def test_operations_of_one_instance_run_one_after_the_other(db: Database, clock: VirtualClock) -> None:
    world = World(gates={"b": asyncio.Event()})
    async with lab(db, clock, toy(world)) as it:
        first, other = await it.submit("i"), await it.submit("j")
        second = await it.submit("i")
        await it.until(lambda: world.done.count("b") == 2)
        assert (await it.row(second))["owner"] is None
        assert world.done.count("a") == 2
        world.gates.pop("b").set()
        assert (await it.ended(first))["state"] == (await it.ended(other))["state"] == "done"
        assert (await it.ended(second))["state"] == "done"


async def test_what_is_finished_is_never_claimed(db: Database, clock: VirtualClock) -> None:
    world = World()
    async with lab(db, clock, toy(world)) as it:
        action = await it.submit()
        row = await it.ended(action)
        clock.advance(10_000)
        assert await it.runner._claim() is False
        assert await it.row(action) == row


async def test_the_plan_of_an_earlier_release_runs_as_it_was_stored(
    db: Database, clock: VirtualClock
) -> None:
    world = World()
    async with lab(db, clock, toy(world)) as it:
        it.runner._loops[0].cancel()
        it.runner._stopping = True
        action = await it.submit()
        await db.write(
            lambda tx: tx.run(update(actions).where(actions.c.id == action).values(plan='["a","c"]'))
        )
    async with lab(db, clock, toy(world, "xabc"), owner="two") as it:
        assert (await it.ended(action))["state"] == "done"
        assert world.done == ["a", "c"]


async def test_a_plan_whose_step_has_lost_its_code_asks_for_an_operator(
    db: Database, clock: VirtualClock
) -> None:
    world = World()
    async with lab(db, clock, toy(world)) as it:
        it.runner._loops[0].cancel()
        it.runner._stopping = True
        action = await it.submit()
    async with lab(db, clock, toy(world, "ab"), owner="two") as it:
        assert (await it.ended(action))["state"] == "attention"
        assert world.things == {"a", "b"}


async def test_what_is_submitted_while_it_stops_is_for_the_next_start(
    db: Database, clock: VirtualClock
) -> None:
    world = World()
    operation = toy(world)
    async with lab(db, clock, operation) as it:

        def submit(tx: Tx) -> int:
            action = it.journal.submit(tx, CONTEXT, operation, "i", "toy", Params())
            it.runner._stopping = True
            return action

        action = await it.db.write(submit)
        await it.db.quiet()
        assert world.done == []
    assert it.runner._running == {}
    async with lab(db, clock, operation, owner="two") as it:
        assert (await it.ended(action))["state"] == "done"


@pytest.mark.parametrize("held", ["b", "-b"])
async def test_a_stop_lets_the_step_under_way_end_and_begins_no_other(
    db: Database, clock: VirtualClock, held: str
) -> None:
    world = World(faults={"c": [Failed("no")] if held == "-b" else []}, gates={held: asyncio.Event()})
    operation = toy(world)
    async with lab(db, clock, operation) as it:
        action = await it.submit()
        await it.until(lambda: held in world.entered)
        before, began = len(world.done), clock.now()
        stop = asyncio.create_task(it.runner.stop())
        await it.db.quiet()
        world.gates.pop(held).set()
        await stop
        assert len(world.done) == before and clock.now() == began
        row = await it.row(action)
        assert (row["cursor"], row["owner"]) == (2 if held == "b" else 0, None)
        it.killed = True  # it has been stopped
    async with lab(db, clock, operation, owner="two") as it:
        await it.ended(action)
        assert world.done == (["a", "b", "c"] if held == "b" else ["a", "b", "c", "-c", "-b", "-a"])


async def test_an_orderly_stop_gives_the_work_back(db: Database, clock: VirtualClock) -> None:
    world = World(gates={"b": asyncio.Event()})
    operation = toy(world)
    async with lab(db, clock, operation) as it:
        action = await it.submit()
        await it.until(lambda: "b" in world.entered)
    async with lab(db, clock, operation, sole=False, owner="two") as it:
        assert (await it.row(action))["owner"] in (None, "two")
        world.gates.pop("b").set()
        row = await it.ended(action)
        assert (row["state"], row["epoch"]) == ("done", 2)
