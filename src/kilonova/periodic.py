"""Jobs that are done again and again, as Nova's periodic tasks are."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from kilonova.clock import Clock

log = structlog.get_logger("kilonova.periodic")


def spacing(option: int) -> int | None:
    """Seconds between two runs by Nova's rule for such options: 0 is a minute, a negative one never."""
    return None if option < 0 else option or 60


class Periodic:
    """Runs jobs in the event loop, each alone with its interval, until ``stop``."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._tasks: list[asyncio.Task[None]] = []

    def every(self, seconds: float | None, name: str, job: Callable[[], Awaitable[object]]) -> None:
        """Have ``job`` done every so many seconds, the first time after that long; None: never.

        One that fails is logged, and done again when its time comes.
        """
        if seconds is not None:
            self._tasks.append(asyncio.create_task(self._repeat(seconds, name, job), name=name))

    async def _repeat(self, seconds: float, name: str, job: Callable[[], Awaitable[object]]) -> None:
        while True:
            await self._clock.sleep(seconds)
            try:
                await job()
            except Exception:
                log.error("a periodic job failed", job=name, exc_info=True)

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
