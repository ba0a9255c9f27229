"""One actor for each guest: one verb at a time, and an end interrupts what is going on."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from kilonova.errors import TryAgain

T = TypeVar("T")


class Actor:
    """Serialises the verbs of one guest.

    ``urgent`` verbs (destroy, discard) wait for no other: they end the verb in progress and those that
    queue for their turn.  Their callers hear TryAgain, since whoever wants the guest gone has also
    cancelled the operation that asked.
    """

    __slots__ = ("_current", "_lock", "_urgent", "waiting")

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._current: asyncio.Task[object] | None = None
        self._urgent = 0  # urgent verbs that run or wait
        self.waiting = 0

    async def run(self, verb: Callable[[], Awaitable[T]], *, urgent: bool = False) -> T:
        self.waiting += 1
        try:
            return await (self._end_it(verb) if urgent else self._in_turn(verb))
        finally:
            self.waiting -= 1

    async def _end_it(self, verb: Callable[[], Awaitable[T]]) -> T:
        self._urgent += 1
        try:
            if self._current is not None:
                self._current.cancel()
            async with self._lock:
                return await verb()
        finally:
            self._urgent -= 1

    async def _in_turn(self, verb: Callable[[], Awaitable[T]]) -> T:
        queued = self._lock.locked()
        async with self._lock:
            if queued and self._urgent:
                raise TryAgain("The guest is being removed.")
            return await self._interruptible(verb)

    async def _interruptible(self, verb: Callable[[], Awaitable[T]]) -> T:
        """Run the verb so that an urgent one can end it, and our caller's end ends it too."""
        task: asyncio.Task[T] = asyncio.ensure_future(_as_coroutine(verb))
        self._current = task
        try:
            return await task
        except asyncio.CancelledError:
            if task.cancelled() and not _being_cancelled():
                raise TryAgain("The guest is being removed.") from None
            task.cancel()
            await asyncio.wait({task})
            raise
        finally:
            self._current = None


async def _as_coroutine(verb: Callable[[], Awaitable[T]]) -> T:
    return await verb()


def _being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
