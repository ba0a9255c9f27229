"""What the agent has to look at, under a clock that the test moves."""

from __future__ import annotations

import asyncio

import pytest

from kilonova.l2agent.todo import EVERYTHING, Key, Todo
from kilonova.testing.clock import VirtualClock

A: Key = ("port", "a")
B: Key = ("port", "b")


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


async def settled() -> None:
    """Let everything run that can, without time passing."""
    for _ in range(10):
        await asyncio.sleep(0)


async def taken(todo: Todo, clock: VirtualClock, seconds: float) -> set[Key] | None:
    """What is taken when so much time has passed; None if nothing is due."""
    task = asyncio.ensure_future(todo.take(60))
    await settled()
    clock.advance(seconds)
    await settled()
    if task.done():
        return task.result()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return None


async def test_keys_are_kept_once_and_taken_all_at_once(clock: VirtualClock) -> None:
    todo = Todo(clock)
    todo.add(*A)
    todo.add(*A)
    todo.add(*B)
    assert await todo.take(60) == {A, B}
    assert await taken(todo, clock, 1) is None


async def test_the_wait_doubles_with_each_failure_until_it_succeeds(clock: VirtualClock) -> None:
    todo = Todo(clock)
    for wait in (0.2, 0.4, 0.8, 1.6):
        todo.again({A})
        assert await taken(todo, clock, wait * 0.9) is None
        assert await taken(todo, clock, wait * 0.11) == {A}
    todo.done({A})
    todo.again({A})
    assert await taken(todo, clock, 0.21) == {A}


async def test_no_wait_is_longer_than_half_a_minute(clock: VirtualClock) -> None:
    todo = Todo(clock)
    for _ in range(100):
        todo.again({A})
    assert await taken(todo, clock, 29.9) is None
    assert await taken(todo, clock, 0.2) == {A}


async def test_everything_comes_at_its_interval(clock: VirtualClock) -> None:
    todo = Todo(clock)
    assert await taken(todo, clock, 59) is None
    todo.add(*A)
    assert await todo.take(60) == {A}
    assert await taken(todo, clock, 1.1) == {EVERYTHING}
    assert await taken(todo, clock, 59) is None
    todo.everything()
    assert await todo.take(60) == {EVERYTHING}
    assert await taken(todo, clock, 59) is None  # counted from when it was taken last


async def test_whoever_waits_is_woken_by_what_comes_and_by_hurry(clock: VirtualClock) -> None:
    todo = Todo(clock)
    todo.again({A})
    todo.later(B, 20)
    task = asyncio.ensure_future(todo.take(60))
    await asyncio.sleep(0)
    todo.hurry()
    assert await asyncio.wait_for(task, 10) == {A, B}
    assert await taken(todo, clock, 25) is None  # they do not come a second time
    task = asyncio.ensure_future(todo.take(60))
    await asyncio.sleep(0)
    todo.add(*B)
    assert await asyncio.wait_for(task, 10) == {B}


@pytest.mark.parametrize("turns", range(6))
async def test_who_waits_can_be_cancelled_at_every_moment(clock: VirtualClock, turns: int) -> None:
    """Also while it is woken: the agent would never end."""
    todo = Todo(clock)

    async def work() -> None:
        while True:
            await todo.take(60)

    task = asyncio.create_task(work())
    for _ in range(3):
        await asyncio.sleep(0)
    todo.add("port", "p")
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    _, pending = await asyncio.wait({task}, timeout=1)
    task.cancel()
    assert not pending
