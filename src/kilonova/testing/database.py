"""A database that a test watches, and takes away."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from kilonova.clock import SECOND
from kilonova.db.engine import Database, DatabaseUnavailable, Tx
from kilonova.db.fence import within_fence
from kilonova.testing.clock import VirtualClock

T = TypeVar("T")

SPINS = 30  # turns of the loop after which whoever can run has run
LONG = 3600 * SECOND  # of virtual time: nothing takes longer


class WatchedDatabase:
    """A Database that knows whether it has work, and can be ``gone``.

    ``fail`` is asked at each write, by the name of its function, whether that one fails.
    """

    def __init__(self, db: Database) -> None:
        self.name = db.name
        self.gone = False
        self.fail: Callable[[str], bool] = lambda name: False
        self.raw = db
        self._working = 0

    async def write(self, fn: Callable[[Tx], T]) -> T:
        if self.gone or self.fail(fn.__name__):
            raise DatabaseUnavailable("A test has taken the database away.")
        return await self._counted(self.raw.write(within_fence(self, fn)))

    async def read(self, fn: Callable[[Tx], T]) -> T:
        if self.gone:
            raise DatabaseUnavailable("A test has taken the database away.")
        return await self._counted(self.raw.read(fn))

    async def close(self) -> None:
        await self.raw.close()

    async def _counted(self, work: Awaitable[T]) -> T:
        self._working += 1
        try:
            return await work
        finally:
            self._working -= 1

    async def quiet(self) -> None:
        """Come back when nobody uses the database and everybody waits for something else."""
        turns = 0
        while turns < SPINS:
            turns = 0 if self._working else turns + 1
            await asyncio.sleep(0.0005 if self._working else 0)


async def settle(condition: Callable[[], Awaitable[bool]], db: WatchedDatabase, clock: VirtualClock) -> None:
    """Let everything run, and time pass only when all wait for it, until ``condition()`` holds.

    How fast the machine is makes no difference.  Raises TimeoutError after an hour of virtual time, or when
    nobody waits for anything.
    """
    end = clock.now() + LONG
    while True:
        await db.quiet()
        if await condition():
            return
        if clock.now() > end or not clock.advance_to_next():
            raise TimeoutError("the condition did not come true")
