"""Doing something right before and right after each write with which a server changes its cell."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager
from typing import Any
from unittest.mock import patch

from kilonova.journal.model import ActionRow
from kilonova.journal.runner import Runner
from kilonova.operations.rehome import STEP
from tests.operations.two_cells import CELL, Between

WRITES = 7  # is it still here; leaving; arrived; mapped; unpacked; told to lists; removed
POINTS = [(number, after) for number in range(WRITES) for after in (False, True)]

Act = Callable[[], Awaitable[None]]


def runner_of(cells: Between, host: str) -> Runner:
    """Who runs the operations of a server that is on that host, and its cell's."""
    return cells.two.whole.runner if host == "h1" else cells.two.parts._parts[CELL].runner


class _Acting:
    """Counts the writes of operations that are at the step, and acts once."""

    def __init__(self, number: int, after: bool, act: Act) -> None:
        self.at_it: set[str] = set()
        self.begun = False
        self.done = asyncio.Event()
        self._wanted = (number, after)
        self._act = act
        self._seen = 0

    def look(self, row: ActionRow, step: str, what: str) -> None:
        if (step, what) == (STEP, "do"):
            self.at_it.add(f"operation-{row.id}")

    async def at(self, number: int, after: bool) -> None:
        if (number, after) != self._wanted:
            return
        self.begun = True
        try:
            await self._act()
        finally:
            self.done.set()

    def wrapped(self, write: Any) -> Any:
        async def counted(fn: Any) -> Any:
            task = asyncio.current_task()
            if task is None or task.get_name() not in self.at_it or self.begun:
                return await write(fn)
            number, self._seen = self._seen, self._seen + 1
            await self.at(number, False)
            result = await write(fn)
            await self.at(number, True)
            return result

        return counted


@asynccontextmanager
async def acting(cells: Between, host: str, number: int, after: bool, act: Act) -> AsyncIterator[None]:
    """Once, at that write of a server that leaves the cell of ``host``."""
    runner, acts = runner_of(cells, host), _Acting(number, after, act)
    runner.on_step = acts.look
    watched = ExitStack()
    for db in (runner_of(cells, name).db for name in ("h1", "far")):
        watched.enter_context(patch.object(db, "write", acts.wrapped(db.write)))
    try:
        yield
        async with asyncio.timeout(10):  # after the last write nothing is seen of it any more
            await acts.done.wait()
    finally:
        runner.on_step = None
        watched.close()
