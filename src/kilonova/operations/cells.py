"""A deployment with several cells: each is a Cloud with a database and a journal of its own.

A server stays in the cell for which it was made, unless it is moved (`operations/rehome.py`).  Servers of the
first cell, whose database is the top database, are those that no mapping names: a deployment becomes one of
several cells by adding one, and what only the first cell has costs what it always did.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import structlog

from kilonova.clock import SECOND
from kilonova.db import hosts, instance_mappings, scheduling
from kilonova.db.cell_mappings import FIRST_CELL, FIRST_CELL_NAME
from kilonova.db.cells import Cell, PatientDatabase
from kilonova.db.engine import Database, DatabaseUnavailable, Tx
from kilonova.errors import Unreachable
from kilonova.operations.cloud import Cloud
from kilonova.operations.hosts_of_cells import HostsOfCells
from kilonova.rpc.host import HostDirectory

log = structlog.get_logger("kilonova.cells")

T = TypeVar("T")

AT_ONCE = 3.0  # seconds in which a cell has to answer that is to take a new server
LEFT_ALONE = 30 * SECOND  # for how long one that did not gets none
AT_HOME = 60 * SECOND  # for how long a host is taken to be in the cell where it was


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
        self._hosts: dict[str, HostDirectory] = {FIRST_CELL: first.hosts}
        self._homes: dict[str, tuple[str, int]] = {}  # host -> its cell, until when that need not be asked
        first.hosts = HostsOfCells(self._directory)
        first.cells = self

    def add(self, cell: Cell, cloud: Cloud) -> None:
        """From now on servers may be there.  What is in the top database is not asked of the cell's own."""
        cloud.cells = self
        cloud.cell_uuid = cell.uuid
        cloud.claims = self.first.claims
        self._hosts[cell.uuid] = cloud.hosts
        cloud.hosts = HostsOfCells(self._directory)
        self._cells[cell.uuid] = (cell, cloud)

    def forget(self, uuid: str) -> None:
        self._cells.pop(uuid, None)
        self._hosts.pop(uuid, None)

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

    async def cell_of_host(self, host: str) -> str:
        """The uuid of the cell that a host is in, for as long as it is there.  Raises Unreachable."""
        now = self.first.clock.now()
        known, until = self._homes.get(host, ("", 0))
        if now >= until:
            found = await self.top.read(lambda tx: hosts.show(tx, host))
            if found is None:
                raise Unreachable(f"No agent has reported for the host '{host}'.")
            known = found.cell_uuid or FIRST_CELL
            self._homes[host] = (known, now + AT_HOME)
        return known

    async def _directory(self, host: str) -> HostDirectory:
        cell = await self.cell_of_host(host)
        if cell not in self._hosts:
            raise Unreachable(f"The cell {cell} is not known to this controller (yet).")
        return self._hosts[cell]

    async def open_to(self, uuid: str) -> frozenset[str]:
        """The cells to which a server of a cell may move: its own, and those that take new servers."""
        others = [cell.uuid for cell in self.all if not cell.disabled and cell.uuid != uuid]
        return frozenset({uuid, *[other for other in others if await self.answers(other)]})

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


async def in_each_cell(cloud: Cloud, look: Callable[[Cloud], Awaitable[object]], what: str) -> None:
    """``look`` in all cells; one that does not answer keeps none of the others waiting for long.

    ``what`` is said not to be done in such a cell.
    """
    for each in [cloud] if cloud.cells is None else cloud.cells.clouds:
        try:
            await look(each)
        except DatabaseUnavailable as error:
            log.warning("a cell is left out", what=what, cell=each.cell_uuid, error=str(error))
