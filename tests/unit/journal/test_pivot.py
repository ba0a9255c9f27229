"""The step after which there is no way back: what is known of it decides, and not time."""

from __future__ import annotations

import pytest

from kilonova.db.engine import Database, DatabaseUnavailable
from kilonova.errors import Failed, TryAgain
from kilonova.journal.failure import Undecided
from kilonova.journal.model import Operation
from kilonova.testing.clock import VirtualClock
from tests.unit.journal.toy import World, crash_at, lab, toy

FAILURES = 1000


def patient(operation: Operation, patience: float) -> Operation:
    values = {field: getattr(operation, field) for field in operation.__dataclass_fields__}
    return Operation(**{**values, "patience": patience})


async def test_a_pivot_that_fails_is_undone_with_all_before_it(db: Database, clock: VirtualClock) -> None:
    world = World(faults={"b": [Failed("it stays")]})
    async with lab(db, clock, toy(world, pivot="b")) as made:
        row = await made.ended(await made.submit())
    assert (row["state"], world.things) == ("failed", {"b"})  # the toy's pivot has no undo
    assert world.done == ["a", "b", "-a"]


@pytest.mark.parametrize("error", [TryAgain("not known"), Undecided("not known")])
async def test_one_that_is_undecided_is_neither_done_nor_undone(
    db: Database, clock: VirtualClock, error: Exception
) -> None:
    """Whatever its deadline: an operator is asked for, and it is looked at again each minute."""
    world = World(faults={"b": [error] * FAILURES})
    async with lab(db, clock, toy(world, pivot="b", deadline=20.0)) as made:
        action = await made.submit()
        row = await made.state(action, "attention")
        assert row["open"] and row["why"].endswith("not known")
        assert "-a" not in world.done and world.verdict is None
        tries = world.done.count("b")
        await made.until(lambda: world.done.count("b") > tries)  # by itself
        assert "-a" not in world.done
        world.faults["b"].clear()
        assert not (await made.state(action, "done"))["open"]
    assert world.done[-1] == "c" and "-a" not in world.done


async def test_one_that_has_been_undecided_may_still_turn_out_to_have_failed(
    db: Database, clock: VirtualClock
) -> None:
    world = World(faults={"b": [Undecided("not known"), Undecided("not known"), Failed("it stays")]})
    async with lab(db, clock, toy(world, pivot="b")) as made:
        row = await made.state(await made.submit(), "failed")
    assert row["state"] == "failed" and world.done == ["a", "b", "b", "b", "-a"]
    assert world.verdict is not None and world.verdict.message == "it stays"


async def test_patience_is_shorter_than_the_deadline_from_the_pivot_on(
    db: Database, clock: VirtualClock
) -> None:
    for step in ("b", "c"):
        world = World(faults={step: [TryAgain("not now")] * FAILURES})
        async with lab(db, clock, patient(toy(world, pivot="b", deadline=10_000.0), 30.0)) as made:
            start = clock.now()
            action = await made.submit(step)
            await made.state(action, "attention")
            assert 30.0 <= (clock.now() - start) / 1e6 < 60.0
            assert "-a" not in world.done
            world.faults[step].clear()
            await made.state(action, "done")


async def test_patience_does_not_count_before_the_pivot(db: Database, clock: VirtualClock) -> None:
    world = World(faults={"a": [TryAgain("not now")] * FAILURES})
    async with lab(db, clock, patient(toy(world, pivot="b", deadline=500.0), 30.0)) as made:
        start = clock.now()
        row = await made.ended(await made.submit())
        assert row["state"] == "failed"
        assert (clock.now() - start) / 1e6 >= 500.0


async def test_patience_begins_anew_after_it_went_well_for_long(db: Database, clock: VirtualClock) -> None:
    """A pivot may take hours: what failed before it went well does not count against what fails after."""
    world = World(faults={"b": [TryAgain("once"), TryAgain("after hours"), TryAgain("again")]})

    async def enter(run: object, step: str) -> None:
        if step == "b" and world.done.count("b") == 1:
            await clock.sleep(600.0)

    world.enter = enter  # type: ignore[method-assign, assignment]
    async with lab(db, clock, patient(toy(world, pivot="b", deadline=100_000.0), 30.0)) as made:
        row = await made.ended(await made.submit())
    assert (row["state"], world.done) == ("done", ["a", "b", "b", "b", "b", "c"])


async def test_one_that_is_done_is_not_undone_because_of_its_commit(
    db: Database, clock: VirtualClock
) -> None:
    """A fault of ours in the commit; it is done again, as every step may be, when it can be written down."""
    world, faults = World(), [RuntimeError("a fault of ours")]
    operation = toy(world, pivot="b")
    values = {field: getattr(operation, field) for field in operation.__dataclass_fields__}

    def apply(tx: object, run: object, changes: dict[str, object]) -> None:
        if changes.get("last") == "b" and faults:
            raise faults.pop()
        world.changes.append(changes)

    async with lab(db, clock, Operation(**{**values, "apply": apply})) as made:
        action = await made.submit()
        row = await made.state(action, "attention")
        assert "is done and cannot be written down: a fault of ours" in row["why"]
        await made.state(action, "done")
    assert world.done == ["a", "b", "b", "c"]


async def test_a_cancel_comes_too_late_for_one_that_was_begun_by_another(
    db: Database, clock: VirtualClock
) -> None:
    world = World()
    async with lab(db, clock, toy(world, pivot="b")) as made:
        died = crash_at(made.runner, "b", "do")
        action = await made.submit()
        await made.until(died.is_set)
        await made.kill()
        await made.raw.write(lambda tx: made.journal.cancel(tx, "i"))
        found = await made.raw.read(lambda tx: made.journal.is_cancelled(tx, action))
        assert found
    async with lab(db, clock, toy(world, pivot="b"), owner="two") as made:
        row = await made.ended(action)
    assert (row["state"], world.done) == ("done", ["a", "b", "c"])


async def test_an_outage_of_the_database_decides_nothing(db: Database, clock: VirtualClock) -> None:
    world = World(faults={"b": [DatabaseUnavailable("away")] * 5})
    async with lab(db, clock, toy(world, pivot="b")) as made:
        row = await made.ended(await made.submit())
    assert row["state"] == "done" and "-a" not in world.done
