"""Time as a parameter.  Everything that tells or spends time takes a Clock.

Moments are whole microseconds since 1970 (UTC): one number in records, on the bus and in the database.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

SECOND = 1_000_000

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Clock(Protocol):
    def now(self) -> int:
        """Microseconds since 1970, UTC."""

    async def sleep(self, seconds: float) -> None: ...


class SystemClock:
    """The machine's clock."""

    def now(self) -> int:
        return time.time_ns() // 1000

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


async def ends_within(seconds: float, clock: Clock, work: asyncio.Future[Any]) -> bool:
    """Wait for work, but not longer than that; it goes on, also when the caller is cancelled.

    A cancellation is never lost, as it is in ``asyncio.wait_for`` of Python 3.11 at the moment of the end.
    """
    pause = asyncio.ensure_future(clock.sleep(max(seconds, 0.0)))
    both: set[asyncio.Future[Any]] = {work, pause}
    try:
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
    finally:
        pause.cancel()
    return work.done()


async def end_within(seconds: float, clock: Clock, tasks: Collection[asyncio.Task[Any]]) -> None:
    """Wait for tasks, but not longer than that; those that are late are cancelled."""
    if not tasks:
        return
    ended = asyncio.ensure_future(asyncio.wait(tasks))
    await ends_within(seconds, clock, ended)
    for task in tasks:
        task.cancel()
    await ended


async def set_within(seconds: float, clock: Clock, event: asyncio.Event) -> bool:
    """Wait for an event, but not longer than that; whether it is set."""
    wait = asyncio.ensure_future(event.wait())
    try:
        await ends_within(seconds, clock, wait)
    finally:
        wait.cancel()
    return event.is_set()


def iso_z(moment: int) -> str:
    """``2026-11-24T01:02:03Z``, as Nova renders times."""
    return (_EPOCH + timedelta(seconds=moment // SECOND)).strftime("%Y-%m-%dT%H:%M:%SZ")


def iso_micro(moment: int) -> str:
    """``2026-11-24T01:02:03.000000``, as Nova's extensions render times (no zone)."""
    return (_EPOCH + timedelta(microseconds=moment)).strftime("%Y-%m-%dT%H:%M:%S.%f")


def parse_iso(text: str) -> int:
    """The moment that an ISO 8601 text names; a text without a zone is UTC.

    Raises ValueError.
    """
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return (moment - _EPOCH) // timedelta(microseconds=1)
