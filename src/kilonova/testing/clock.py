"""Time that moves when a test says so."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable

from kilonova.clock import SECOND, SystemClock


class VirtualClock:
    """A Clock that starts at the machine's time and then stands still until ``advance``."""

    def __init__(self) -> None:
        self._start = self._now = SystemClock().now()
        self._sleepers: list[tuple[int, int, asyncio.Future[None]]] = []
        self._number = 0
        self._listeners: list[Callable[[int], None]] = []

    def now(self) -> int:
        return self._now

    async def sleep(self, seconds: float) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._number += 1
        heapq.heappush(self._sleepers, (self._now + int(seconds * SECOND), self._number, future))
        await future

    def on_advance(self, listener: Callable[[int], None]) -> None:
        """Tell ``listener`` by how many microseconds the clock has moved in all."""
        self._listeners.append(listener)

    def advance(self, seconds: float) -> None:
        """Move on and wake whoever's time has come."""
        self._move_to(self._now + int(seconds * SECOND))

    def advance_to_next(self) -> bool:
        """Move on to when the next sleeper wakes; False if nobody sleeps."""
        while self._sleepers and self._sleepers[0][2].done():
            heapq.heappop(self._sleepers)
        if not self._sleepers:
            return False
        self._move_to(max(self._sleepers[0][0], self._now))
        return True

    def _move_to(self, moment: int) -> None:
        self._now = moment
        for listener in self._listeners:
            listener(self._now - self._start)
        while self._sleepers and self._sleepers[0][0] <= self._now:
            future = heapq.heappop(self._sleepers)[2]
            if not future.done():
                future.set_result(None)


class FastClock:
    """A Clock that runs ``factor`` times as fast as the machine's: for waits with real sockets in them."""

    def __init__(self, factor: float = 20.0) -> None:
        self._factor = factor
        self._clock = SystemClock()
        self._start = self._clock.now()
        self.wrong = 0  # microseconds by which it is wrong

    def now(self) -> int:
        passed = int((self._clock.now() - self._start) * self._factor)
        return self._start + passed + self.wrong

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds / self._factor)


async def until(condition: Callable[[], object], clock: VirtualClock, *, step: float = 0.05) -> None:
    """Let the loop run, and the clock with it, until ``condition()`` holds.

    Raises TimeoutError after some five real seconds.
    """
    for _ in range(5000):
        if condition():
            return
        await asyncio.sleep(0.001)
        clock.advance(step)
    raise TimeoutError("the condition did not come true")
