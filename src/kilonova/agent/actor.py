"""One actor for each guest: one verb at a time, and an end interrupts what is going on."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from kilonova.errors import TryAgain

T = TypeVar("T")


class Actor:
    """Serialises the verbs of one guest.

    ``urgent`` verbs (destroy, discard) do not wait for a verb in progress, they end it; its caller hears
    TryAgain, since whoever wants the guest gone has also cancelled the operation that asked.
    """

    __slots__ = ("_current", "_lock", "waiting")

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._current: asyncio.Task[object] | None = None
        self.waiting = 0

    async def run(self, verb: Callable[[], Awaitable[T]], *, urgent: bool = False) -> T:
        self.waiting += 1
        try:
            if urgent and self._current is not None:
                self._current.cancel()
            async with self._lock:
                if urgent:
                    return await verb()
                return await self._interruptible(verb)
        finally:
            self.waiting -= 1

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
