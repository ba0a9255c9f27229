"""What the journal cannot decide by itself is left to an operator: never silently, and never for good.

Meanwhile it is tried again.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any

import pytest
from sqlalchemy import select, update

from kilonova.clock import SECOND
from kilonova.db.engine import Database, Tx
from kilonova.db.tables.journal import action_events, actions
from kilonova.errors import Conflict, Failed, HostFault, NotFound, TryAgain
from kilonova.journal import attention
from kilonova.journal.model import Operation
from kilonova.journal.walk import UNASKED
from kilonova.testing.clock import VirtualClock
from kilonova.testing.database import settle
from tests.unit.journal.toy import Lab, World, crash_at, lab, toy

NEVER = [TryAgain("gone")] * 30


@dataclass
class Timed(World):
    """Knows when each thing was first done."""

    clock: VirtualClock = field(default_factory=VirtualClock)
    times: dict[str, int] = field(default_factory=dict)

    async def visit(self, what: str) -> None:
        self.times.setdefault(what, self.clock.now())
        await super().visit(what)


async def stopped(it: Lab, action: int) -> dict[str, Any]:
    async def rests() -> bool:
        row = await it.row(action)
        return row["state"] not in ("running", "unwinding") and row["owner"] is None

    await settle(rests, it.db, it.clock)
    row = await it.row(action)
    assert (row["state"], row["open"]) == ("attention", True)
    assert [each.id for each in await it.raw.read(attention.needing_attention)] == [action]
    return row


async def details(it: Lab, action: int) -> list[str]:
    query = select(action_events.c.details).where(
        action_events.c.action_id == action, action_events.c.phase == "operator"
    )
    return [row[0] for row in await it.raw.read(lambda tx: tx.all(query))]


async def test_an_undo_that_keeps_failing_says_why(db: Database, clock: VirtualClock) -> None:
    world = World(faults={"b": [Failed("no")], "-b": list(NEVER)})
    async with lab(db, clock, toy(world)) as it:
        action = await it.submit()
        row = await stopped(it, action)
        assert row["why"] == "undoing 'b': gone"
        assert row["cursor"] == 1
        assert world.done.count("-b") == 30
        clock.advance(UNASKED / 2)
        await it.db.quiet()
        assert (await it.row(action)) == row  # nobody touches it
        await it.resolve(action, "retry")
        row = await it.ended(action)
        assert (row["state"], row["why"]) == ("failed", None)
        assert world.things == set()
        assert world.verdict is not None and world.verdict.message == "no"
        assert await details(it, action) == ["ann chose to retry the step 'b'."]


@pytest.mark.parametrize("pivot", ["", "b"])
async def test_it_is_tried_again_unasked_and_stays_listed_meanwhile(
    db: Database, clock: VirtualClock, pivot: str
) -> None:
    """What was in the way may go by itself, and then nobody need have decided anything."""
    faults: dict[str, list[Exception]]
    if pivot:
        faults = {"c": [Failed("never")] * 100}
    else:
        faults = {"b": [Failed("no")], "-b": [TryAgain("gone")] * 100, "-a": [TryAgain("gone")]}
    world = Timed(faults=faults, clock=clock)
    async with lab(db, clock, toy(world, pivot=pivot, deadline=15.0)) as it:
        action = await it.submit()
        await stopped(it, action)
        for _ in range(3):
            tries, began = len(world.done), clock.now()
            await it.until(lambda tries=tries: len(world.done) > tries)
            assert UNASKED / 2 < (clock.now() - began) / SECOND < UNASKED + 5
            await stopped(it, action)
            assert len(world.done) == tries + 1  # once, and not as often as at first
        world.faults.pop("c" if pivot else "-b")
        row = await it.state(action, "done", "failed")
        assert (row["state"], row["why"]) == (("done" if pivot else "failed"), None)
        assert world.things == ({"a", "b", "c"} if pivot else set())
        if not pivot:  # from there on it is patient again
            assert world.done.count("-a") == 2
            assert row["finish_time"] - world.times["-a"] < 5 * SECOND
        assert await details(it, action) == []


async def test_it_needs_attention_no_more_as_soon_as_a_step_succeeds(
    db: Database, clock: VirtualClock
) -> None:
    world = World(faults={"c": [Failed("no")], "-c": list(NEVER)}, gates={"-b": asyncio.Event()})
    async with lab(db, clock, toy(world)) as it:
        action = await it.submit()
        await stopped(it, action)
        await it.until(lambda: "-b" in world.entered)
        row = await it.row(action)
        assert (row["state"], row["why"], row["cursor"]) == ("unwinding", None, 1)
        assert await db.read(attention.needing_attention) == []
        world.gates.pop("-b").set()
        await it.state(action, "failed")


async def test_an_operator_may_decide_while_it_is_tried_again(db: Database, clock: VirtualClock) -> None:
    world = World(faults={"c": [Failed("no")], "-c": NEVER * 2})
    async with lab(db, clock, toy(world)) as it:
        action = await it.submit()
        await stopped(it, action)
        world.gates["-c"] = asyncio.Event()
        tried = world.done.count("-c")
        await it.until(lambda: world.done.count("-c") > tried)
        assert (await it.row(action))["owner"] == "one"
        await it.resolve(action, "abandon")
        world.gates.pop("-c").set()
        row = await it.state(action, "failed")
        assert not row["open"]
        assert "-b" not in world.done and "-a" not in world.done


async def test_a_step_after_the_pivot_that_keeps_failing(db: Database, clock: VirtualClock) -> None:
    world = World(faults={"c": [Failed("never")] * 100})
    async with lab(db, clock, toy(world, pivot="b", deadline=15.0)) as it:
        action = await it.submit()
        row = await stopped(it, action)
        assert row["cursor"] == 2 and "never" in row["why"]
        world.faults.clear()
        await it.resolve(action, "retry")
        assert (await it.ended(action))["state"] == "done"
        assert world.things == {"a", "b", "c"}


async def test_an_instance_whose_operation_needs_attention_is_busy(db: Database, clock: VirtualClock) -> None:
    world = World(faults={"b": [Failed("no")], "-b": NEVER * 100})
    async with lab(db, clock, toy(world)) as it:
        first = await it.submit()
        await stopped(it, first)
        second = await it.submit()
        clock.advance(3600)
        await it.db.quiet()
        await it.state(first, "attention")
        assert (await it.row(second))["owner"] is None
        await it.resolve(first, "abandon")
        assert (await it.ended(first))["state"] == "failed"
        assert (await it.ended(second))["state"] == "done"


async def test_skipping_the_last_step_ends_the_operation(db: Database, clock: VirtualClock) -> None:
    world = World(faults={"c": [Failed("never")] * 100})
    async with lab(db, clock, toy(world, pivot="b", deadline=15.0)) as it:
        action = await it.submit()
        await stopped(it, action)
        other = await it.submit()
        await it.resolve(action, "skip")
        row = await it.ended(action)
        assert (row["state"], row["open"], row["cursor"]) == ("done", False, 3)
        assert row["finish_time"] is not None
        world.faults.clear()
        assert (await it.ended(other))["state"] == "done"


async def test_skipping_an_undo_goes_on_with_the_one_before(db: Database, clock: VirtualClock) -> None:
    world = World(faults={"c": [Failed("no")], "-b": list(NEVER)})
    async with lab(db, clock, toy(world)) as it:
        action = await it.submit()
        await stopped(it, action)
        await it.resolve(action, "skip")
        assert (await it.ended(action))["state"] == "failed"
        assert world.things == {"b"}
        assert world.done[-1] == "-a"


@pytest.mark.parametrize("where", ["unwinding", "retry round", "after the pivot"])
async def test_abandoning_undoes_no_more_and_leaves_the_instance_as_a_failure_does(
    db: Database, clock: VirtualClock, where: str
) -> None:
    if where == "after the pivot":
        world = World(faults={"c": [Failed("never")] * 100})
        operation = toy(world, pivot="b", deadline=15.0)
    else:
        first: Exception = HostFault("no") if where == "retry round" else Failed("no")
        world = World(faults={"c": [first], "-c": list(NEVER)})
        operation = toy(world, retry="b" if where == "retry round" else "")
    async with lab(db, clock, operation) as it:
        action = await it.submit()
        await stopped(it, action)
        before = list(world.done)
        await it.resolve(action, "abandon")
        row = await it.ended(action)
        assert (row["state"], row["open"], row["message"]) == ("failed", False, "Error")
        assert row["finish_time"] is not None
        assert world.done == before
        assert world.things == {"a", "b", "c"}
        assert world.verdict is not None
        if where == "after the pivot":
            assert world.verdict.kind == "Abandoned"
            assert "ann abandoned the operation 'toy' at 'c'" in world.verdict.message
        else:
            assert world.verdict.message == "no"
        assert await details(it, action) == ["ann chose to abandon the step 'c'."]


async def test_only_what_needs_attention_can_be_decided(db: Database, clock: VirtualClock) -> None:
    async with lab(db, clock, toy(World())) as it:
        with pytest.raises(NotFound):
            await it.resolve(4711, "retry")
        action = await it.submit()
        await it.ended(action)
        for verb in attention.VERBS:
            with pytest.raises(Conflict):
                await it.resolve(action, verb)
        assert await details(it, action) == []


# ---- what this release cannot run ----


async def left_behind(db: Database, clock: VirtualClock, **changes: Any) -> int:
    """An operation that an earlier release wrote down, and did not begin."""
    async with lab(db, clock, toy(World())) as it:
        it.runner._loops[0].cancel()
        it.runner._stopping = True
        action = await it.submit()
        if changes:
            await db.write(lambda tx: tx.run(update(actions).where(actions.c.id == action).values(**changes)))
    return action


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"operation": "frobnicate"}, "This release has no operation 'frobnicate'."),
        ({"params": '{"word":7}'}, "This release cannot read its parameters"),
        ({"plan": '["a","gone","c"]'}, "This release has no code for that step."),
    ],
)
async def test_what_this_release_cannot_run_is_not_touched(
    db: Database, clock: VirtualClock, changes: dict[str, str], why: str
) -> None:
    action = await left_behind(db, clock, **changes)
    world = World()
    async with lab(db, clock, toy(world), owner="two") as it:
        row = await stopped(it, action)
        assert row["why"].startswith(why)
        other = await it.submit("j")
        assert (await it.ended(other))["state"] == "done"  # the runner lives
        await it.resolve(action, "retry")
        await stopped(it, action)
        await it.resolve(action, "abandon")
        row = await it.ended(action)
        assert (row["state"], row["open"]) == ("failed", False)


async def test_an_undo_that_has_lost_its_code_is_not_passed_over(db: Database, clock: VirtualClock) -> None:
    world = World(faults={"c": [Failed("no")]})
    async with lab(db, clock, toy(world)) as it:
        died = crash_at(it.runner, "c", "undone")
        action = await it.submit()
        await it.until(died.is_set)
        await it.kill()
    async with lab(db, clock, toy(world, "ac"), owner="two") as it:
        row = await stopped(it, action)
        assert (row["cursor"], row["why"]) == (1, "This release has no code for that step.")
        assert world.things == {"a", "b"}


async def test_a_row_that_cannot_be_read_stops_nothing_else(db: Database, clock: VirtualClock) -> None:
    action = await left_behind(db, clock, outputs="no json")
    world = World()
    async with lab(db, clock, toy(world), owner="two") as it:
        others = [await it.submit(f"j{number}") for number in range(3)]
        for other in others:
            assert (await it.ended(other))["state"] == "done"
        await db.write(lambda tx: tx.run(update(actions).where(actions.c.id == action).values(outputs="{}")))
        assert (await it.ended(action))["state"] == "done"


# ---- a fault of ours ----


def faulty(world: World, operation: Operation, broken: dict[str, bool]) -> Operation:
    """The operation, whose commits fail as long as ``broken`` says so."""

    def apply(tx: Tx, run: object, changes: dict[str, Any]) -> None:
        if broken["apply"]:
            raise ZeroDivisionError("in apply")

    def failed(tx: Tx, run: object, error: object) -> None:
        if broken["failed"]:
            raise ZeroDivisionError("in failed")

    values = {name: getattr(operation, name) for name in operation.__dataclass_fields__}
    return Operation(**{**values, "apply": apply, "failed": failed})


async def test_a_commit_that_breaks_while_unwinding_asks_for_an_operator(
    db: Database, clock: VirtualClock
) -> None:
    world = World(faults={"b": [Failed("no")]})
    broken = {"apply": False, "failed": True}
    async with lab(db, clock, faulty(world, toy(world), broken)) as it:
        action = await it.submit()
        row = await stopped(it, action)
        assert "ZeroDivisionError" in row["why"]
        broken["failed"] = False
        await it.resolve(action, "retry")
        assert (await it.ended(action))["state"] == "failed"
        assert world.things == set()


async def test_a_commit_that_breaks_forwards_is_a_failure_of_its_step(
    db: Database, clock: VirtualClock
) -> None:
    world = World()
    broken = {"apply": True, "failed": False}
    async with lab(db, clock, faulty(world, toy(world), broken)) as it:
        action = await it.submit()
        row = await it.ended(action)
        assert row["state"] == "failed"
        assert json.loads(row["error"])["message"] == "Unexpected fault in 'a': ZeroDivisionError."
        assert world.things == set()
