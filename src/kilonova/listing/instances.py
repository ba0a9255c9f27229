"""Lists of servers over several cells."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from kilonova.clock import Clock
from kilonova.db import instance_list, instance_mappings, instances
from kilonova.db.cells import Cell
from kilonova.db.engine import Row, Tx
from kilonova.db.instance_list import ServerList
from kilonova.errors import NotFound
from kilonova.listing.between_cells import moved_away, undisturbed
from kilonova.listing.merge import Marker, Merge, Start, Values
from kilonova.listing.options import ListOptions


class ServersFound(msgspec.Struct, frozen=True):
    """``rows`` are of the columns that were asked for, and some more; ``down`` are the cells that failed or
    were late (IL-7)."""

    rows: list[Row]
    down: tuple[Cell, ...]


class _Servers:
    """One cell's part."""

    def __init__(
        self,
        cells: Sequence[Cell],
        cell: Cell,
        wanted: ServerList,
        columns: tuple[str, ...],
        without: frozenset[str],
    ) -> None:
        self.gone: set[str] = set()  # what is read of these is read in another cell, too
        self._cells = cells
        self.cell = cell
        self.name = cell.name
        self._wanted = wanted
        self._columns = columns
        self._without = without

    async def batch(self, start: Start | None, size: int | None) -> Sequence[Row]:
        def read(tx: Tx) -> tuple[list[Row], list[str]]:
            found = instance_list.batch(
                tx,
                self._wanted,
                self._columns,
                self._without,
                size=size,
                start=None if start is None else start.values,
                inclusive=start is not None and start.inclusive,
            )
            return found, instances.uuids_leaving(tx) if len(self._cells) > 1 else []

        rows, leaving = await self.cell.db.read(read)
        self.gone |= await moved_away(self._cells, self.cell, leaving)
        return rows


async def list_servers(
    cells: Sequence[Cell],
    wanted: ServerList,
    columns: tuple[str, ...],
    without: frozenset[str] = frozenset(),
    *,
    clock: Clock,
    options: ListOptions,
    tolerant: bool | None = None,
) -> ServersFound:
    """One page.  The first of ``cells`` is the first cell, whose database has the mappings.

    A server is on it once, also one that moves from one cell to another meanwhile.

    ``tolerant`` None: as the operator has it.  Raises NotFound for a marker that is not there, Unreachable
    for one whose cell is down, or for any cell that is down where none may be left out.
    """
    asked = await _asked(cells, wanted, options)
    marker = None if wanted.marker is None else await _marker(cells, wanted, wanted.marker)
    if wanted.limit == 0:
        return ServersFound([], ())

    async def look() -> ServersFound:
        return await _merged(cells, asked, marker, wanted, (columns, without), clock, options, tolerant)

    return await undisturbed(cells, look, clock, options.time_limit)


async def _merged(
    cells: Sequence[Cell],
    asked: Sequence[Cell],
    marker: Marker | None,
    wanted: ServerList,
    shown: tuple[tuple[str, ...], frozenset[str]],
    clock: Clock,
    options: ListOptions,
    tolerant: bool | None,
) -> ServersFound:
    sources = [_Servers(cells, cell, wanted, *shown) for cell in asked]
    sort = instance_list.over_cells(wanted.sort)
    keys = len(sort)
    uuid = [name for name, _ in sort].index("uuid") - keys
    gone = {source.name: source.gone for source in sources}
    seen = {wanted.marker}

    def takes(source: str, row: Row) -> bool:
        if row[uuid] in seen or row[uuid] in gone[source]:
            return False
        seen.add(row[uuid])
        return True

    merge: Merge[Row] = Merge(
        lambda row: row[-keys:],
        [descending for _, descending in sort],
        limit=wanted.limit,
        batch=options.batch_size(wanted.limit, len(asked)),
        clock=clock,
        time_limit=options.time_limit,
        tolerant=options.skip_down_cells if tolerant is None else tolerant,
        takes=takes,
    )
    merged = await merge.run(sources, marker)
    down = tuple(source.cell for source in sources if source.name in merged.failed)
    return ServersFound(merged.records, down)


async def _asked(cells: Sequence[Cell], wanted: ServerList, options: ListOptions) -> Sequence[Cell]:
    """All cells, or only those in which the project has servers (IL-6).  The first keeps no account of who
    has servers there: it is always asked."""
    project_id = wanted.project_id
    if project_id is None or not options.per_project_cells:
        return cells
    its = await cells[0].db.read(lambda tx: instance_mappings.cells_of(tx, project_id))
    return [cell for number, cell in enumerate(cells) if number == 0 or cell.uuid in its]


async def _marker(cells: Sequence[Cell], wanted: ServerList, uuid: str) -> Marker:
    """The marker, found by its mapping and read in its cell, deleted or not (IL-3)."""
    first = cells[0]

    def look(tx: Tx) -> tuple[str | None, Values | None]:
        mapped = instance_mappings.cell_of(tx, uuid)
        return mapped, instance_list.marker_values(tx, wanted, uuid) if mapped is None else None

    mapped, values = await first.db.read(look)
    found = first if mapped is None else next((cell for cell in cells if cell.uuid == mapped), None)
    if mapped is not None and found is not None:
        values = await found.db.read(lambda tx: instance_list.marker_values(tx, wanted, uuid))
    if found is None or values is None:
        raise NotFound(f"marker [{uuid}] not found")
    return Marker(values, found.name)
