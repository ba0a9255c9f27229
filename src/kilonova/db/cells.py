"""Handles of cells: a database each, and what is asked when a cell must be found."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

import msgspec

from kilonova.clock import Clock, ends_within
from kilonova.db.engine import Database, DatabaseUnavailable, Tx

T = TypeVar("T")


class Cell(msgspec.Struct, frozen=True):
    """A part of the deployment with hosts, servers and a database of its own."""

    uuid: str
    name: str
    db: Database
    disabled: bool = False  # takes no new servers


class PatientDatabase:
    """A Database that may be far away: whoever reads has an answer, or an error, within ``patience`` seconds.

    A write is waited for: what became of it is only known when it is over.
    """

    def __init__(self, db: Database, cell: str, clock: Clock, patience: float) -> None:
        self.name = db.name
        self._db = db
        self._cell = cell
        self._clock = clock
        self._patience = patience

    async def read(self, fn: Callable[[Tx], T]) -> T:
        reading = asyncio.ensure_future(self._db.read(fn))
        try:
            if not await ends_within(self._patience, self._clock, reading):
                raise DatabaseUnavailable(f"The cell {self._cell} did not respond in time.")
            return reading.result()
        finally:
            reading.cancel()

    async def write(self, fn: Callable[[Tx], T]) -> T:
        return await self._db.write(fn)

    async def close(self) -> None:
        await self._db.close()
