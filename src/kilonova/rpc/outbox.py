"""What an agent has seen and no controller has taken over yet: the last word on each guest, told again and
again until it is heard."""

from __future__ import annotations

import asyncio

import structlog

from kilonova.clock import Clock
from kilonova.errors import KilonovaError
from kilonova.rpc.desk import Desk
from kilonova.rpc.messages import Observed

log = structlog.get_logger("kilonova.agent")

PAUSE = 0.5  # seconds before what was not heard is told again; doubled up to
LONGEST_PAUSE = 10.0
MOST = 500  # guests in one message


class Outbox:
    def __init__(self, desk: Desk, clock: Clock) -> None:
        self._desk = desk
        self._clock = clock
        self._last: dict[str, Observed] = {}
        self._some = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def put(self, seen: Observed) -> None:
        """Have it told; an older word on the same guest need not be told any more."""
        known = self._last.get(seen.uuid)
        if known is None or known.generation < seen.generation:
            self._last[seen.uuid] = seen
            self._some.set()

    def start(self) -> None:
        self._task = asyncio.create_task(self._tell(), name="outbox")

    async def stop(self) -> None:
        """What was not heard is seen again at the next start."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _tell(self) -> None:
        pause = PAUSE
        while True:
            await self._some.wait()
            batch = tuple(self._last.values())[:MOST]
            try:
                await self._desk.observed(batch)
            except KilonovaError as error:
                log.info("what was seen was not heard", guests=len(batch), error=str(error))
                await self._clock.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
                continue
            pause = PAUSE
            for each in batch:
                if self._last.get(each.uuid) is each:
                    del self._last[each.uuid]
            if not self._last:
                self._some.clear()
