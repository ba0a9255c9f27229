"""A cancel before, in and after the pivot, in a back-off, at a commit, and while unwinding."""

from __future__ import annotations

import asyncio

import pytest

from kilonova.clock import SECOND
from kilonova.db.engine import Database
from kilonova.errors import Failed, HostFault, TryAgain
from kilonova.testing.clock import VirtualClock
from kilonova.testing.database import WatchedDatabase
from tests.unit.journal.toy import CONTEXT, Lab, Params, World, crash_at, lab, toy


async def cancel(it: Lab) -> bool:
    return await it.db.write(lambda tx: it.journal.cancel(tx, "i"))


def undone(world: World) -> bool:
    return world.things == set() and world.verdict is not None and world.verdict.cancelled


@pytest.mark.parametrize(
    ("held", "what"), [("a", "undone"), ("b", "finished"), ("c", "finished"), ("d", "finished")]
)
async def test_a_cancel_before_in_and_after_the_pivot(
    db: Database, clock: VirtualClock, held: str, what: str
) -> None:
    """The pivot is b: what is at it may have done it already, so it goes on."""
    world = World(gates={held: asyncio.Event()})
    async with lab(db, clock, toy(world, "abcd", pivot="b")) as it:
        action = await it.submit()
        await it.until(lambda: held in world.entered)
        assert await cancel(it)
        world.gates.pop(held).set()
        row = await it.ended(action)
        if what == "undone":
            assert row["state"] == "failed" and undone(world)
        else:
            assert row["state"] == "done"
            assert world.things == {"a", "b", "c", "d"}
            assert world.verdict is None


async def test_a_cancel_after_a_crash_in_the_pivot(db: Database, clock: VirtualClock) -> None:
    world = World(gates={"b": asyncio.Event()})
    operation = toy(world, pivot="b")
    async with lab(db, clock, operation) as it:
        action = await it.submit()
        await it.until(lambda: "b" in world.entered)
        await it.kill()
    world.gates.clear()
    async with lab(db, clock, operation, sole=False, owner="two") as it:
        await cancel(it)
        assert (await it.ended(action))["state"] == "done"
        assert world.things == {"a", "b", "c"}


async def test_a_cancel_after_a_crash_before_the_pivot(db: Database, clock: VirtualClock) -> None:
    world = World()
    operation = toy(world, pivot="c")
    async with lab(db, clock, operation) as it:
        died = crash_at(it.runner, "a", "done")
        action = await it.submit()
        await it.until(died.is_set)
        await it.kill()
        await cancel(it)
    async with lab(db, clock, operation, owner="two") as it:
        assert (await it.ended(action))["state"] == "failed"
        assert undone(world)


async def test_a_cancel_before_the_first_step(db: Database, clock: VirtualClock) -> None:
    world = World()
    async with lab(db, clock, toy(world)) as it:

        def submit_and_cancel(tx: object) -> int:
            action = it.journal.submit(tx, CONTEXT, it.operation, "i", "toy", Params())  # type: ignore[arg-type]
            it.journal.cancel(tx, "i")  # type: ignore[arg-type]
            return action

        action = await it.db.write(submit_and_cancel)
        assert (await it.ended(action))["state"] == "failed"
        assert undone(world)
        assert "b" not in world.done and "c" not in world.done


async def test_nobody_waits_for_a_back_off_to_end(db: Database, clock: VirtualClock) -> None:
    world = World(faults={"b": [TryAgain("busy")] * 1000})
    async with lab(db, clock, toy(world)) as it:
        action = await it.submit()
        await it.until(lambda: world.done.count("b") >= 8)  # the pauses are ten seconds by now
        began = clock.now()
        await cancel(it)
        row = await it.ended(action)
        assert row["state"] == "failed" and undone(world)
        assert clock.now() - began < SECOND


async def test_a_step_that_cleans_up_when_it_is_cancelled_leaves_no_trace_of_that(
    db: Database, clock: VirtualClock
) -> None:
    """A step may catch the cancel and end well; what comes after it must not think that it is cancelled."""
    world = World()
    cancelling: list[int] = []

    class Stubborn(World):
        async def visit(self, what: str) -> None:
            if what == "b":
                self.entered.setdefault("b", asyncio.Event()).set()
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    self.done.append("b ended itself")
                return
            await super().visit(what)
            if what == "-a":
                task = asyncio.current_task()
                assert task is not None
                cancelling.append(task.cancelling())

    world = Stubborn()
    async with lab(db, clock, toy(world)) as it:
        action = await it.submit()
        await it.until(lambda: "b" in world.entered)
        await cancel(it)
        assert (await it.ended(action))["state"] == "failed"
        assert "b ended itself" in world.done
        assert undone(world)
        assert cancelling == [0]


@pytest.mark.parametrize("during", ["-c", "-b"])
async def test_a_cancel_on_the_way_to_the_next_host_ends_the_search(
    db: Database, clock: VirtualClock, during: str
) -> None:
    world = World(faults={"c": [HostFault("bad")]}, gates={during: asyncio.Event()})
    async with lab(db, clock, toy(world, retry="b")) as it:
        action = await it.submit()
        await it.until(lambda: during in world.entered)
        await cancel(it)
        world.gates.pop(during).set()
        row = await it.ended(action)
        assert row["state"] == "failed" and undone(world)
        assert world.done.count("c") == 1


async def test_a_cancel_of_another_controller_on_the_way_to_the_next_host(
    db: Database, clock: VirtualClock
) -> None:
    world = World(faults={"c": [HostFault("bad")]}, gates={"-c": asyncio.Event()})
    shared, operation = WatchedDatabase(db), toy(world, retry="b")
    async with (
        lab(shared, clock, operation) as it,
        lab(shared, clock, operation, sole=False, owner="two") as other,
    ):
        action = await it.submit()
        await it.until(lambda: "-c" in world.entered)
        await cancel(other)
        world.gates.pop("-c").set()
        row = await it.ended(action)
        assert row["state"] == "failed" and undone(world)
        assert world.done == ["a", "b", "c", "-c", "-b", "-b", "-a"]  # no step forwards any more


async def test_a_cancel_while_everything_is_unwound_changes_nothing(
    db: Database, clock: VirtualClock
) -> None:
    world = World(faults={"c": [Failed("no")]}, gates={"-b": asyncio.Event()})
    async with lab(db, clock, toy(world)) as it:
        action = await it.submit()
        await it.until(lambda: "-b" in world.entered)
        await cancel(it)
        world.gates.pop("-b").set()
        assert (await it.ended(action))["state"] == "failed"
        assert world.things == set()
        assert world.done == ["a", "b", "c", "-c", "-b", "-a"]
        assert world.verdict is not None
        assert (world.verdict.step, world.verdict.cancelled) == ("c", True)


async def test_what_comes_after_a_cancelled_operation_runs_when_that_is_undone(
    db: Database, clock: VirtualClock
) -> None:
    world = World(gates={"b": asyncio.Event()})
    async with lab(db, clock, toy(world)) as it:
        first = await it.submit()
        await it.until(lambda: "b" in world.entered)
        await cancel(it)
        second = await it.submit()
        world.gates.pop("b", None)
        assert (await it.ended(first))["state"] == "failed"
        assert (await it.ended(second))["state"] == "done"
        assert world.done.index("-a") < len(world.done) - 1 - world.done[::-1].index("a")
