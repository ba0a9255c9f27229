"""Calls of a library that blocks, one at a time, none waited for for ever."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import AsyncIterator

import pytest

from kilonova.errors import TryAgain
from kilonova.vif import worker as module
from kilonova.vif.worker import MOST_ABANDONED, Worker


@pytest.fixture
async def worker() -> AsyncIterator[Worker]:
    worker = Worker("library")
    yield worker
    await worker.close()


def nothing() -> None:
    """Nobody minds a late call."""


async def test_calls_give_and_raise_what_the_work_does_in_one_thread(worker: Worker) -> None:
    threads = {await worker.call(threading.get_ident, 30, nothing) for _ in range(5)}
    assert len(threads) == 1 and threads != {threading.get_ident()}

    def fails() -> None:
        raise ZeroDivisionError("of the library")

    with pytest.raises(ZeroDivisionError, match="of the library"):
        await worker.call(fails, 30, nothing)
    assert await worker.call(threading.get_ident, 30, nothing) in threads


async def test_calls_do_not_overlap(worker: Worker) -> None:
    inside = 0

    def work() -> int:
        nonlocal inside
        inside += 1
        seen = inside
        time.sleep(0.005)
        inside -= 1
        return seen

    assert await asyncio.gather(*(worker.call(work, 30, nothing) for _ in range(10))) == [1] * 10


async def test_a_call_that_hangs_is_given_up_and_says_so_when_it_is_late(worker: Worker) -> None:
    go, late = threading.Event(), threading.Event()
    with pytest.raises(TimeoutError):
        await worker.call(go.wait, 0.05, late.set)
    assert await worker.call(lambda: "next", 30, nothing) == "next"  # others are not held up
    assert not late.is_set()
    go.set()
    assert await asyncio.to_thread(late.wait, 30)


async def test_too_many_that_hang_are_refused_until_one_comes_back(worker: Worker) -> None:
    go = threading.Event()
    for _ in range(MOST_ABANDONED):
        with pytest.raises(TimeoutError):
            await worker.call(go.wait, 0.02, nothing)
    with pytest.raises(TryAgain, match=f"{MOST_ABANDONED} calls of library hang"):
        await worker.call(lambda: None, 30, nothing)
    go.set()
    async with asyncio.timeout(30):
        while True:
            try:
                assert await worker.call(lambda: 7, 30, nothing) == 7
                break
            except TryAgain:
                await asyncio.sleep(0.01)


async def test_a_caller_that_goes_away_leaves_the_thread_to_its_work(worker: Worker) -> None:
    go, begun, late = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        go.wait()

    task = asyncio.ensure_future(worker.call(work, 30, late.set))
    await asyncio.to_thread(begun.wait, 30)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await worker.call(lambda: 1, 30, nothing) == 1
    go.set()
    assert await asyncio.to_thread(late.wait, 30)


async def test_an_outcome_is_either_given_or_late_and_never_neither(worker: Worker) -> None:
    """Whichever of the two comes first decides, however close they are."""
    given = 0
    lates: list[int] = []
    for number in range(60):
        work = lambda number=number: time.sleep(0.001 * (number % 5))  # noqa: E731
        try:
            await worker.call(work, 0.002, lambda number=number: lates.append(number))
            given += 1
        except TimeoutError:
            pass
        except TryAgain:  # too many at a time hang
            await asyncio.sleep(0.02)
            lates.append(-1)
    async with asyncio.timeout(30):
        while given + len(lates) < 60:
            await asyncio.sleep(0.01)
    assert given + len(lates) == 60


async def test_close_waits_for_the_thread_and_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker("library")
    done = threading.Event()
    await worker.call(nothing, 30, nothing)
    await worker.close()
    await worker.close()
    monkeypatch.setattr(module, "CLOSE", 0.05)
    with pytest.raises(TimeoutError):
        await worker.call(done.wait, 0.05, nothing)
    await worker.close()  # what was given up is not waited for
    done.set()


async def test_close_is_quick_although_eventlet_hides_the_end_of_the_thread(worker: Worker) -> None:
    """os-vif imports eventlet, which runs a second copy of ``threading`` in the thread that imports it."""

    def second_copy() -> None:
        old = sys.modules.pop("threading")
        try:
            __import__("threading")
        finally:
            sys.modules["threading"] = old

    await worker.call(second_copy, 30, nothing)
    async with asyncio.timeout(module.CLOSE / 2):
        await worker.close()
