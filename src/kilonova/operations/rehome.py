"""A server changes its cell: its row, its operations and all that belongs to them go from one database into
another, when its guest is already at a host of the other cell.

Two databases have no transaction in common, so it is done in five, each of which may be repeated:

1. here: the server is *leaving*.  Whoever wants to change it is refused for these milliseconds.
2. there: what was read of it in 1 is kept as an arrival, of which nobody there takes notice.
3. top: its mapping names the other cell, if it is still what it was.  This is the moment in which it moves.
4. there: the arrival is unpacked; what waited behind the operation goes on there.
5. here: what is left is removed, the operation included.

The mapping counts the moves.  Whoever was overtaken comes with an old number and changes nothing.  Until 3
all can be called off, which raises the number, too.  What nobody is at any more `settle` brings to an end.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

import msgspec
import structlog

from kilonova.db import arrivals, belongings, epochs, instance_mappings, instances
from kilonova.db.arrivals import Arrival
from kilonova.db.belongings import Belongings
from kilonova.db.cell_mappings import FIRST_CELL
from kilonova.db.engine import DatabaseUnavailable, Tx, UniqueViolation
from kilonova.errors import Failed, KilonovaError, NotFound, TryAgain, Unreachable
from kilonova.journal import handover
from kilonova.journal.model import DONE, Done, Run
from kilonova.journal.statements import Event
from kilonova.model.instance import Instance
from kilonova.operations.cells import Cells
from kilonova.operations.cloud import Cloud
from kilonova.operations.moving import migration_of
from kilonova.operations.resize_ends import ends

log = structlog.get_logger("kilonova.cells")

T = TypeVar("T")

STEP, EVENT = "rehome", "conductor_change_cell"


class _Content(msgspec.Struct, frozen=True):
    belongings: Belongings
    operations: Belongings


_decode = msgspec.json.Decoder(_Content).decode


async def to_destination(run: Run) -> Done:
    _, new = await ends(run)
    return await _to_cell_of(run, new)


async def to_source(run: Run) -> Done:
    old, _ = await ends(run)
    return await _to_cell_of(run, old)


async def _to_cell_of(run: Run, host: str) -> Done:
    cloud: Cloud = run.cloud
    if cloud.cells is None:
        if (await migration_of(run)).cross_cell_move:
            raise Unreachable("This controller does not know the cells yet.")
        return DONE
    cell = await cloud.cells.cell_of_host(host)
    if cell == _uuid(cloud):
        return Done(host=host)
    there = cloud.cells.cloud(cell)
    now = await _move(run, cloud.cells, there)
    await _unpack(cloud.cells, there, run.instance_uuid, now)
    return Done(gone=True, write=lambda tx: _remove(tx, run.instance_uuid))


def _uuid(cloud: Cloud) -> str:
    return cloud.cell_uuid or FIRST_CELL


async def _mapped(cells: Cells, uuid: str) -> tuple[str, int]:
    """The cell of a server and how often it has moved."""
    found = await cells.top.read(lambda tx: instance_mappings.show(tx, uuid))
    return (FIRST_CELL, 0) if found is None else (found.cell_uuid, found.residence)


# ---- 1 to 3 ----


async def _move(run: Run, cells: Cells, there: Cloud) -> int:
    """The number of its residence there.  Raises TryAgain with the server here, and open, as before."""
    cloud: Cloud = run.cloud
    uuid, cell = run.instance_uuid, _uuid(there)
    now, residence = await _mapped(cells, uuid)
    if now == cell:
        return residence  # it was interrupted after that
    if now != _uuid(cloud):
        raise Failed(f"Server {uuid} is in the cell {now} by now.")
    await cloud.db.write(lambda tx: _return(tx, cloud, uuid, residence))
    if not await cells.answers(cell):
        raise Unreachable(f"The cell {cell}, to which server {uuid} moves, does not answer.")
    instance, arrival = await cloud.db.write(lambda tx: _pack(tx, run, cell))
    try:
        moved = await there.db.write(partial(arrivals.put, arrival=arrival)) and await cells.top.write(
            lambda tx: instance_mappings.move(tx, instance, _uuid(cloud), cell)
        )
    except (KilonovaError, UniqueViolation) as error:
        await _call_off(cells, cloud, instance)
        raise TryAgain(f"Server {uuid} cannot move to the cell {cell} now: {error}") from error
    if not moved:
        await _call_off(cells, cloud, instance)
        raise TryAgain(f"Server {uuid} did not move to the cell {cell}: somebody else was at it.")
    return arrival.residence


def _pack(tx: Tx, run: Run, cell: str) -> tuple[Instance, Arrival]:
    """The server is leaving from now on; what goes along, as it is when the operation has ended."""
    cloud: Cloud = run.cloud
    uuid, now = run.instance_uuid, cloud.clock.now()
    instances.leave(tx, uuid, cell)
    instance = instances.show(tx, uuid)
    if instance is None:
        raise Failed(f"Instance {uuid} has vanished from the database.")
    event = Event(step=STEP, phase="do", event=EVENT, started=now, finished=now)
    content = _Content(
        belongings=belongings.read(tx, uuid),
        operations=handover.ended(handover.read(tx, uuid), run.action, event),
    )
    arrival = Arrival(
        instance_uuid=uuid,
        residence=instance.residence + 1,
        action=run.action.id,
        epoch=run.action.epoch,
        content=msgspec.json.encode(content).decode(),
        created_at=now,
    )
    return instance, arrival


async def _call_off(cells: Cells, cloud: Cloud, instance: Instance) -> None:
    """It stays here, and may be changed again, unless it has moved.  What cannot be reached is done later."""
    uuid, here = instance.uuid, _uuid(cloud)
    try:
        if await cells.top.write(lambda tx: instance_mappings.call_off(tx, instance, here)):
            await cloud.db.write(lambda tx: _return(tx, cloud, uuid, instance.residence + 1))
    except (DatabaseUnavailable, UniqueViolation) as error:
        log.warning("a server stays closed for a while", instance=uuid, error=str(error))


def _return(tx: Tx, cloud: Cloud, uuid: str, residence: int) -> None:
    """The mapping says that it is here, by this number: so it was called off, or has come back meanwhile."""
    known = belongings.residence(tx, uuid)
    if known is None or known >= residence:
        return
    arrival = arrivals.taken(tx, uuid)
    if arrival is not None and arrival.residence == residence:
        _unpack_here(tx, cloud, arrival)
    else:
        instances.stay(tx, uuid, known, residence)


# ---- 4 and 5 ----


async def _unpack(cells: Cells, there: Cloud, uuid: str, residence: int) -> None:
    """The server is there.  Raises Failed if it is not, and never was.

    From now on it may be removed here.  Lists that have looked there before are made again (`listing/`).
    """

    def write(tx: Tx) -> int | None:
        arrival = arrivals.taken(tx, uuid)
        if arrival is not None and arrival.residence == residence:
            _unpack_here(tx, there, arrival)
        return belongings.residence(tx, uuid)

    known = await there.db.write(write)
    if known is None or known < residence:
        raise Failed(f"Server {uuid} is mapped to the cell {_uuid(there)} and is not there.")
    await cells.top.write(lambda tx: epochs.bump(tx, epochs.CELLS))


async def in_its_cell(cells: Cells, uuid: str, ask: Callable[[Cloud], Awaitable[T]]) -> T:
    """What ``ask`` gives in the cell of a server; once more if it has moved to another one meanwhile, or had
    only just come.  Raises NotFound if it is in neither."""
    come = 0
    while True:
        cloud = await cells.of_server(uuid)
        try:
            return await ask(cloud)
        except NotFound:
            if await cells.of_server(uuid) is cloud:
                now = await has_come(cells, uuid)
                if now <= come:
                    raise
                come = now


async def has_come(cells: Cells, uuid: str) -> int:
    """The number of its residence for a server that was not found where its mapping says, as it had only just
    come: by now it is unpacked.  0 if it has not come, or its cell does not answer."""
    cell, residence = await _mapped(cells, uuid)
    there = cells.cloud(cell)
    try:
        arrival, known = await there.db.read(
            lambda tx: (arrivals.find(tx, uuid), belongings.residence(tx, uuid))
        )
        if arrival is not None and arrival.residence == residence:
            await _unpack(cells, there, uuid, residence)
        elif known is None or known < residence:  # else somebody else was quicker
            return 0
    except DatabaseUnavailable:
        return 0
    return residence


def _unpack_here(tx: Tx, cloud: Cloud, arrival: Arrival) -> None:
    uuid = arrival.instance_uuid
    known = belongings.residence(tx, uuid)
    if known is None or known < arrival.residence:  # else it was done before
        content = _decode(arrival.content)
        _remove_all(tx, uuid)  # of a former stay, that nobody has removed so far
        belongings.write(tx, content.belongings, arrival.residence)
        handover.write(tx, content.operations, cloud.db.name)
    arrivals.drop(tx, uuid, arrival.residence)
    tx.call_after_commit(cloud.journal.wake)


def _remove_all(tx: Tx, uuid: str) -> None:
    handover.remove(tx, uuid)
    belongings.remove(tx, uuid)


def _remove(tx: Tx, uuid: str, *, instance: Instance | None = None) -> None:
    """What has left; with ``instance``: only if it is still that."""
    if instance is None or belongings.has_left(tx, instance):
        _remove_all(tx, uuid)


# ---- what nobody is at any more ----


async def settle(cells: Cells) -> int:
    """Bring to its end what was interrupted between two databases, in every cell; how much that was.

    Every controller may, at any time.  What an operation is at is left to it.
    """
    done = 0
    for cloud in cells.clouds:
        try:
            done += await _settle(cells, cloud)
        except (KilonovaError, UniqueViolation) as error:
            log.warning("servers stay between two cells for a while", cell=_uuid(cloud), error=str(error))
    return done


async def _settle(cells: Cells, cloud: Cloud) -> int:
    waiting, leaving = await cloud.db.read(_look)
    done = 0
    for uuid, residence in waiting:
        done += await _settle_arrival(cells, cloud, uuid, residence)
    for instance in leaving:
        done += await _settle_leaving(cells, cloud, instance)
    return done


def _look(tx: Tx) -> tuple[list[tuple[str, int]], list[Instance]]:
    leaving = [each for each in instances.leaving(tx) if not handover.is_at(tx, each.uuid, STEP)]
    return arrivals.waiting(tx), leaving


async def _settle_arrival(cells: Cells, cloud: Cloud, uuid: str, residence: int) -> bool:
    cell, mapped = await _mapped(cells, uuid)
    if mapped < residence:
        return False  # it may be coming still
    if (cell, mapped) == (_uuid(cloud), residence):
        await _unpack(cells, cloud, uuid, residence)
    else:
        await cloud.db.write(lambda tx: arrivals.drop(tx, uuid, residence))
    return _told("a server that came to a cell was settled there", cloud, uuid)


async def _settle_leaving(cells: Cells, cloud: Cloud, instance: Instance) -> bool:
    uuid = instance.uuid
    cell, mapped = await _mapped(cells, uuid)
    if cell != _uuid(cloud):
        await _unpack(cells, cells.cloud(cell), uuid, mapped)
        await cloud.db.write(lambda tx: _remove(tx, uuid, instance=instance))
    elif mapped > instance.residence:
        await cloud.db.write(lambda tx: _return(tx, cloud, uuid, mapped))
    else:
        await _call_off(cells, cloud, instance)
    return _told("a server that was leaving a cell was settled", cloud, uuid)


def _told(what: str, cloud: Cloud, uuid: str) -> bool:
    log.warning(what, cell=_uuid(cloud), instance=uuid)
    return True
