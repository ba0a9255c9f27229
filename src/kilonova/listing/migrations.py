"""Lists of migrations over several cells."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from kilonova.clock import Clock
from kilonova.db import migrations
from kilonova.db.cells import Cell, PatientDatabase
from kilonova.db.engine import Tx
from kilonova.errors import KilonovaError, NotFound
from kilonova.listing.between_cells import undisturbed
from kilonova.listing.merge import Marker, Merge, Start
from kilonova.listing.options import ListOptions
from kilonova.model.migration import Migration


class _Migrations:
    """One cell's part."""

    def __init__(self, cell: Cell, filters: dict[str, Any], newest_first: bool) -> None:
        self.name = cell.name
        self._cell = cell
        self._filters = filters
        self._newest_first = newest_first

    async def batch(self, start: Start | None, size: int | None) -> Sequence[Migration]:
        def read(tx: Tx) -> list[Migration]:
            return migrations.page(
                tx,
                self._filters,
                newest_first=self._newest_first,
                limit=size,
                after=None if start is None else start.values,
                inclusive=start is not None and start.inclusive,
            )

        return await self._cell.db.read(read)


async def list_migrations(
    cells: Sequence[Cell],
    filters: dict[str, Any],
    *,
    clock: Clock,
    options: ListOptions,
    newest_first: bool = True,
    limit: int | None = None,
    marker: str | None = None,
) -> list[Migration]:
    """One page; ``limit`` None: all there are.

    Raises NotFound for a marker that no cell has that answers, Unreachable where no cell may be left out.
    """
    after = None if marker is None else await _marker(cells, marker, clock, options.time_limit)
    if limit == 0:
        return []
    merge: Merge[Migration] = Merge(
        migrations.values_of,
        [descending for _, descending in migrations.order_of(newest_first)],
        limit=limit,
        batch=None,
        clock=clock,
        time_limit=options.time_limit,
        tolerant=options.skip_down_cells,
    )
    sources = [_Migrations(cell, filters, newest_first) for cell in cells]
    merged = await undisturbed(cells, lambda: merge.run(sources, after), clock, options.time_limit)
    return collapsed(merged.records)


def collapsed(found: Sequence[Migration]) -> list[Migration]:
    """A move between cells has a row in both: the one that was changed last stands for both, at the place
    of the first of them (API-132)."""
    result: dict[str, Migration] = {}
    for migration in found:
        known = result.get(migration.uuid)
        if known is None or _age(known) < _age(migration):
            result[migration.uuid] = migration
    return list(result.values())


def _age(migration: Migration) -> int:
    return migration.updated_at or migration.created_at


async def _marker(cells: Sequence[Cell], uuid: str, clock: Clock, time_limit: float) -> Marker:
    """The marker in the first cell that says it has it (ML-2); the others need not be waited for."""

    async def look(cell: Cell) -> Marker | None:
        patient = PatientDatabase(cell.db, cell.name, clock, time_limit)
        found = await patient.read(lambda tx: migrations.show(tx, uuid))
        return None if found is None else Marker(migrations.values_of(found), cell.name)

    looks = [asyncio.ensure_future(look(cell)) for cell in cells]
    try:
        for next_one in asyncio.as_completed(looks):
            try:
                marker = await next_one
            except KilonovaError:
                continue  # a cell that is down has no marker to offer
            if marker is not None:
                return marker
    finally:
        for each in looks:
            each.cancel()
        await asyncio.gather(*looks, return_exceptions=True)
    raise NotFound(f"marker [{uuid}] not found")
