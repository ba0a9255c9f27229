"""Transactions that would only wait for each other, one behind the other.

Two boots of one project both change its quota: in two threads the second holds a connection and waits for
the first.  What says that it is of a lane waits without one, and all that wait are made in one commit.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar

from sqlalchemy import text

from kilonova.db.engine import Tx

T = TypeVar("T")

MOST = 16  # transactions of a lane in one commit

_SAVEPOINT = text("SAVEPOINT one")
_RELEASE = text("RELEASE SAVEPOINT one")
_BACK = text("ROLLBACK TO SAVEPOINT one")


class Queued(Generic[T]):
    """A transaction of a lane, for ``db.write``; databases without lanes take it as any other."""

    __slots__ = ("__name__", "fn", "lane")

    def __init__(self, lane: str, fn: Callable[[Tx], T]) -> None:
        self.lane = lane
        self.fn = fn
        self.__name__ = getattr(fn, "__name__", "queued")

    def __call__(self, tx: Tx) -> T:
        return self.fn(tx)


class _Job:
    __slots__ = ("fn", "future")

    def __init__(self, fn: Callable[[Tx], Any], future: asyncio.Future[Any]) -> None:
        self.fn = fn
        self.future = future


Commit = Callable[[Callable[[Tx], list[Any]]], Awaitable[list[Any]]]
"""Runs a function in a transaction of its own."""


class Lanes:
    """``retry`` are the errors for which the whole commit is made again, so that they end it; all others are
    told to their callers in the words of ``understood``."""

    def __init__(
        self,
        commit: Commit,
        retry: tuple[type[Exception], ...],
        understood: Callable[[Exception], Exception],
    ) -> None:
        self._commit = commit
        self._retry = retry
        self._understood = understood
        self._waiting: dict[str, deque[_Job]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def put(self, lane: str, fn: Callable[[Tx], T]) -> asyncio.Future[T]:
        """What ``fn`` gives, once it is committed."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        waiting = self._waiting.get(lane)
        if waiting is None:
            waiting = self._waiting[lane] = deque()
            task = asyncio.create_task(self._go(lane, waiting))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        waiting.append(_Job(fn, future))
        return future

    async def close(self) -> None:
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _go(self, lane: str, waiting: deque[_Job]) -> None:
        while waiting:
            jobs = [waiting.popleft() for _ in range(min(MOST, len(waiting)))]
            try:
                outcomes = await self._commit(lambda tx, jobs=jobs: self._run(tx, jobs))  # type: ignore[misc]
            except BaseException as error:  # noqa: BLE001 - each of them hears of it
                outcomes = [error] * len(jobs)
            for job, outcome in zip(jobs, outcomes, strict=True):
                _settle(job.future, outcome)
        del self._waiting[lane]

    def _run(self, tx: Tx, jobs: list[_Job]) -> list[Any]:
        """The outcome of each; one that fails takes nothing from the others."""
        if len(jobs) == 1:
            return [_Outcome(jobs[0].fn(tx))]
        outcomes: list[Any] = []
        for job in jobs:
            calls = len(tx.after_commit)
            tx.run(_SAVEPOINT)
            try:
                outcomes.append(_Outcome(job.fn(tx)))
            except self._retry:
                raise
            except Exception as error:  # noqa: BLE001 - its caller hears of it
                tx.run(_BACK)
                del tx.after_commit[calls:]
                outcomes.append(self._understood(error))
            else:
                tx.run(_RELEASE)
        return outcomes


class _Outcome:
    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


def _settle(future: asyncio.Future[Any], outcome: Any) -> None:
    if future.done():
        return
    if isinstance(outcome, _Outcome):
        future.set_result(outcome.value)
    else:
        future.set_exception(outcome)
