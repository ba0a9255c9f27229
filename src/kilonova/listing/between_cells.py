"""Lists while servers move from one cell to another."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from functools import partial
from typing import TypeVar

import structlog

from kilonova.clock import Clock
from kilonova.db import belongings, epochs, instance_mappings
from kilonova.db.cells import Cell, PatientDatabase
from kilonova.db.engine import DatabaseUnavailable, Tx

log = structlog.get_logger("kilonova.listing")

T = TypeVar("T")

TRIES = 4


async def undisturbed(
    cells: Sequence[Cell], look: Callable[[], Awaitable[T]], clock: Clock, time_limit: float
) -> T:
    """What ``look`` gives when no server has left a cell, that was looked at later, for one that was looked
    at before: such a server would be in neither.

    The first of ``cells`` is the first cell, whose database counts the moves; while that does not answer
    nothing moves.
    """
    if len(cells) == 1:
        return await look()
    top = PatientDatabase(cells[0].db, cells[0].name, clock, time_limit)
    before = await _moves(top)
    for _ in range(TRIES):
        found = await look()
        now = await _moves(top)
        if now in (before, None):
            return found
        before = now
    log.warning("a list was made while servers moved between cells all the time")
    return found


async def _moves(top: PatientDatabase) -> int | None:
    """How many there were, None while nobody can tell."""
    try:
        return (await top.read(epochs.read)).get(epochs.CELLS, 0)
    except DatabaseUnavailable:
        return None


async def moved_away(cells: Sequence[Cell], cell: Cell, uuids: Collection[str]) -> set[str]:
    """Those of ``uuids``, which are leaving ``cell``, that are in another one by now, as their mappings say.

    One that has not been seen there yet is still shown here; one whose cell is down is that cell's.
    """
    result = set()
    for uuid in uuids:
        mapped = await cells[0].db.read(partial(instance_mappings.show, uuid=uuid))
        if mapped is None or mapped.cell_uuid == cell.uuid:
            continue
        there = next((each for each in cells if each.uuid == mapped.cell_uuid), None)
        if there is None or await _has(there, uuid, mapped.residence):
            result.add(uuid)
    return result


async def _has(cell: Cell, uuid: str, residence: int) -> bool:
    def look(tx: Tx) -> bool:
        known = belongings.residence(tx, uuid)
        return known is not None and known >= residence

    try:
        return await cell.db.read(look)
    except DatabaseUnavailable:
        return True
