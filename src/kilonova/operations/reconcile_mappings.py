"""Finding out what became of servers whose making was interrupted between two databases.

What is done again and again by every controller: it converges, whoever is first.
"""

from __future__ import annotations

import structlog

from kilonova.clock import SECOND
from kilonova.db import instance_mappings, instances
from kilonova.db.engine import DatabaseUnavailable, Tx
from kilonova.db.instance_mappings import InstanceMapping
from kilonova.errors import Unreachable
from kilonova.operations.cells import Cells
from kilonova.operations.create_in_cell import HURRY, give_up

log = structlog.get_logger("kilonova.cells")

OVERDUE = 2 * HURRY
EVERY = 30.0  # seconds between two looks
PAGE = 200
assert OVERDUE >= 60 * SECOND


async def reconcile(cells: Cells) -> int:
    """How many pending mappings were settled: the server is in its cell, or its quota is given back."""
    pending = await cells.top.read(lambda tx: instance_mappings.overdue(tx, OVERDUE, PAGE))
    by_cell: dict[str, list[InstanceMapping]] = {}
    for mapping in pending:
        by_cell.setdefault(mapping.cell_uuid, []).append(mapping)
    return sum([await _settle(cells, cell_uuid, some) for cell_uuid, some in by_cell.items()])


async def _settle(cells: Cells, cell_uuid: str, pending: list[InstanceMapping]) -> int:
    uuids = [mapping.instance_uuid for mapping in pending]
    try:
        found = await cells.cloud(cell_uuid).db.read(lambda tx: _there(tx, uuids))
    except (DatabaseUnavailable, Unreachable) as error:
        log.warning("servers of a cell stay pending", cell=cell_uuid, servers=len(uuids), error=str(error))
        return 0

    def write(tx: Tx) -> list[str]:
        instance_mappings.mark_made(tx, sorted(found))
        return [one.instance_uuid for one in pending if one.instance_uuid not in found and give_up(tx, one)]

    for uuid in await cells.top.write(write):
        log.warning("a server that was never made has given its quota back", instance=uuid, cell=cell_uuid)
    return len(pending)


def _there(tx: Tx, uuids: list[str]) -> set[str]:
    return {uuid for uuid in uuids if instances.show_any(tx, uuid) is not None}
