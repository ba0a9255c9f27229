"""A deployment with several cells: each is a Cloud with a database and a journal of its own.

A server stays in the cell for which it was made.  Servers of the first cell, whose database is the top
database, are those that no mapping names: a deployment becomes one of several cells by adding one, and what
only the first cell has costs what it always did.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import structlog

from kilonova.clock import SECOND
from kilonova.db import instance_mappings, scheduling
from kilonova.db.cell_mappings import FIRST_CELL, FIRST_CELL_NAME
from kilonova.db.cells import Cell, PatientDatabase
from kilonova.db.engine import Database, DatabaseUnavailable, Tx
from kilonova.errors import Unreachable
from kilonova.operations.cloud import Cloud

log = structlog.get_logger("kilonova.cells")

T = TypeVar("T")

AT_ONCE = 3.0  # seconds in which a cell has to answer that is to take a new server
LEFT_ALONE = 30 * SECOND  # for how long one that did not gets none


@dataclass(frozen=True, slots=True)
class Told(Generic[T]):
    """What one cell answered; ``error`` is why it did not."""

    cell: Cell
    cloud: Cloud
    answer: T | None = None
    error: Exception | None = None


class Cells:
    """The cells that this process knows, the first one first."""

    def __init__(self, first: Cloud) -> None:
        self.top: Database = first.db
        self.first = first
        self._cells: dict[str, tuple[Cell, Cloud]] = {
            FIRST_CELL: (Cell(FIRST_CELL, FIRST_CELL_NAME, first.db), first)
        }
        self._silent_until: dict[str, int] = {}
        first.cells = self

    def add(self, cell: Cell, cloud: Cloud) -> None:
        """From now on servers may be there.  What is in the top database is not asked of the cell's own."""
        cloud.cells = self
        cloud.cell_uuid = cell.uuid
        cloud.claims = self.first.claims
        self._cells[cell.uuid] = (cell, cloud)

    def forget(self, uuid: str) -> None:
        self._cells.pop(uuid, None)

    @property
    def several(self) -> bool:
        return len(self._cells) > 1

    @property
    def all(self) -> list[Cell]:
        return [cell for cell, _ in self._cells.values()]

    @property
    def clouds(self) -> list[Cloud]:
        return [cloud for _, cloud in self._cells.values()]

    def cloud(self, uuid: str | None) -> Cloud:
        """The cell's cloud; None: the first's.  Raises Unreachable for a cell that is unknown here."""
        found = self._cells.get(uuid or FIRST_CELL)
        if found is None:
            raise Unreachable(f"The cell {uuid} is not known to this controller (yet).")
        return found[1]

    async def of_server(self, uuid: str) -> Cloud:
        return self.cloud(await self.top.read(lambda tx: instance_mappings.cell_of(tx, uuid)))

    async def answers(self, uuid: str) -> bool:
        """Whether a cell answers at once; one that did not is not asked again for a while."""
        if uuid == FIRST_CELL:
            return True  # or nothing does
        now = self.first.clock.now()
        if now < self._silent_until.get(uuid, 0):
            return False
        cell = self._cells[uuid][0]
        patient = PatientDatabase(cell.db, cell.name, self.first.clock, AT_ONCE)
        try:
            await patient.read(instance_mappings.now)
        except DatabaseUnavailable as error:
            log.warning("a cell takes no new servers: it does not answer", cell=cell.name, error=str(error))
            self._silent_until[uuid] = self.first.clock.now() + LEFT_ALONE
            return False
        return True

    async def each(self, fn: Callable[[Tx], T]) -> list[Told[T]]:
        """Ask the databases of all cells at once; cells that do not answer in time say why."""
        return list(await asyncio.gather(*(self._ask(cell, cloud, fn) for cell, cloud in self._pairs())))

    async def look_at_loads(self) -> None:
        """Tell the scheduler which hosts of other cells are busy, which only these cells' servers tell."""
        told = await self.each(scheduling.heavy_operations)
        others = [one.answer or {} for one in told if one.cell.uuid != FIRST_CELL]
        self.first.scheduler.view.heavy_elsewhere = {
            host: count for some in others for host, count in some.items()
        }

    def _pairs(self) -> list[tuple[Cell, Cloud]]:
        return list(self._cells.values())

    async def _ask(self, cell: Cell, cloud: Cloud, fn: Callable[[Tx], T]) -> Told[T]:
        try:
            return Told(cell, cloud, answer=await cell.db.read(fn))
        except DatabaseUnavailable as error:
            if cell.uuid == FIRST_CELL:
                raise  # without it nothing is known of the others
            log.warning("a cell does not answer", cell=cell.name, error=str(error))
            return Told(cell, cloud, error=error)
