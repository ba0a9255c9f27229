"""The cells of a deployment besides the first: opened by their mappings, and kept in step with these."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import structlog

from kilonova.clock import Clock
from kilonova.control_plane import ControlPlane
from kilonova.db import cell_mappings
from kilonova.db.cell_mappings import CellMapping
from kilonova.db.cells import Cell, PatientDatabase
from kilonova.db.engine import Database, DatabaseUnavailable
from kilonova.db.postgresql import PostgresqlDatabase
from kilonova.db.schema import check
from kilonova.db.sqlite import SqliteDatabase
from kilonova.errors import Failed
from kilonova.journal.journal import Journal
from kilonova.journal.runner import Runner
from kilonova.operations import reconcile_mappings, rehome
from kilonova.operations.cells import Cells
from kilonova.operations.cloud import Cloud
from kilonova.operations.leftovers import left_to_dead_hosts
from kilonova.operations.registry import OPERATIONS
from kilonova.periodic import Periodic
from kilonova.rpc.host import HostDirectory

log = structlog.get_logger("kilonova.cells")

LOADS = 5.0  # seconds between looks for hosts of other cells that are busy
LOOK = 60.0  # seconds between looks for cells that were added, changed or removed
ENOUGH = 10.0  # seconds for the steps of a cell to end, and its connections to close
CONNECT = 5  # seconds that a cell's server has to accept a connection


class CellBus(Protocol):
    """How the hosts of a cell are reached."""

    @property
    def hosts(self) -> HostDirectory: ...

    async def serve(self, cloud: Cloud) -> None:
        """Hear the cell's hosts."""

    async def close(self) -> None: ...


OpenBus = Callable[[CellMapping], Awaitable[CellBus]]


def open_database(connection: str, clock: Clock, *, threads: int = 4) -> Database:
    """``postgresql://user:password@host/name`` or, for one process, ``sqlite:///path``.  Connects later.

    Raises Failed for another kind.
    """
    scheme, _, rest = connection.partition("://")
    if scheme == "sqlite":
        return SqliteDatabase(Path(rest), clock)
    if scheme in ("postgresql", "postgresql+psycopg"):
        mark = "&" if "?" in rest else "?"
        limited = "" if "connect_timeout=" in rest else f"{mark}connect_timeout={CONNECT}"
        return PostgresqlDatabase(f"postgresql://{rest}{limited}", threads=threads)
    raise Failed(f"A cell's database is postgresql://... or sqlite:///..., not {scheme[:20]}://...")


@dataclass
class _Part:
    mapping: CellMapping
    db: Database
    runner: Runner
    bus: CellBus


class CellParts:
    """``start`` opens the cells that are mapped; from then on ``look`` follows the mappings."""

    def __init__(self, plane: ControlPlane, open_bus: OpenBus) -> None:
        self._plane = plane
        self._open_bus = open_bus
        self._parts: dict[str, _Part] = {}
        self.cells: Cells | None = None
        self._periodic = Periodic(plane.clock)

    async def start(self) -> None:
        await self.look()
        self._periodic.every(LOOK, "cells", self.look)
        self._periodic.every(reconcile_mappings.EVERY, "pending mappings", self._reconcile)
        self._periodic.every(LOADS, "loads of cells", self._look_at_loads)

    async def stop(self) -> None:
        await self._periodic.stop()
        await asyncio.gather(*(self._close(part) for part in self._parts.values()))
        self._parts.clear()

    async def look(self) -> None:
        """Follow the mappings.  One that cannot be opened is logged, and tried again at the next look."""
        wanted = {each.uuid: each for each in await self._plane.db.read(cell_mappings.list_all)}
        for uuid, part in list(self._parts.items()):
            if wanted.get(uuid) != part.mapping:
                await self._end(uuid, part)
        for uuid, mapping in wanted.items():
            if uuid not in self._parts:
                await self._begin(mapping)

    async def _begin(self, mapping: CellMapping) -> None:
        plane = self._plane
        try:
            db = open_database(mapping.database_connection, plane.clock)
            bus = await self._open_bus(mapping)
        except Exception as error:  # noqa: BLE001 - one cell's, whatever it is, must not keep others out
            log.error("a cell cannot be opened", cell=mapping.name, error=repr(error))
            return
        patient = PatientDatabase(db, mapping.name, plane.clock, plane.settings.real("cell_timeout", "api"))
        try:
            await check(patient)
        except DatabaseUnavailable as error:
            log.error("a cell does not answer", cell=mapping.name, error=str(error))
        except Failed as error:
            log.error("a cell cannot be used", cell=mapping.name, error=str(error))
            await asyncio.gather(db.close(), bus.close())
            return
        number = plane.settings.number("concurrency", "journal")
        lease = plane.settings.real("lease", "journal")
        runner = Runner(db, plane.clock, plane.runner.owner, OPERATIONS, lease=lease, concurrency=number)
        cloud = replace(plane.cloud, db=patient, journal=Journal(plane.clock, runner), hosts=bus.hosts)
        runner.cloud, runner.let_go = cloud, left_to_dead_hosts
        if self.cells is None:
            self.cells = Cells(plane.cloud)
        self.cells.add(Cell(mapping.uuid, mapping.name, patient, mapping.disabled), cloud)
        self._parts[mapping.uuid] = _Part(mapping, db, runner, bus)
        await runner.start(sole=False)
        await bus.serve(cloud)
        log.info("a cell takes part", cell=mapping.name)

    async def _end(self, uuid: str, part: _Part) -> None:
        assert self.cells is not None
        self.cells.forget(uuid)
        del self._parts[uuid]
        await self._close(part)
        log.info("a cell takes no part any more, or anew", cell=part.mapping.name)

    async def _close(self, part: _Part) -> None:
        """A cell whose database hangs is not waited for."""
        ending = asyncio.ensure_future(self._let_go(part))
        done, _ = await asyncio.wait({ending}, timeout=ENOUGH)
        if not done:
            log.error("a cell could not be let go in time", cell=part.mapping.name)
        else:
            ending.result()

    async def _let_go(self, part: _Part) -> None:
        await part.runner.stop()
        await part.bus.close()
        await part.db.close()

    async def _look_at_loads(self) -> None:
        if self.cells is not None:
            await self.cells.look_at_loads()

    async def _reconcile(self) -> None:
        if self.cells is not None:
            await reconcile_mappings.reconcile(self.cells)
            await rehome.settle(self.cells)
