"""Making servers in one of several cells: quota and mappings in the top database, then the servers in theirs.

Two databases have no transaction in common.  A mapping is written first, as ``pending``, so that whatever
ends between the two writes is found: ``operations/reconcile_mappings.py`` looks into the cell and finishes or
undoes it.  A write that comes too late for that look is refused in the cell's own transaction.
"""

from __future__ import annotations

from collections.abc import Callable

import structlog
from msgspec.structs import replace

from kilonova.clock import SECOND
from kilonova.db import hosts, instance_mappings, quotas, server_groups
from kilonova.db.cell_mappings import FIRST_CELL
from kilonova.db.engine import DatabaseUnavailable, Tx
from kilonova.db.instance_mappings import PENDING
from kilonova.db.lanes import Queued
from kilonova.errors import KilonovaError, Unreachable
from kilonova.model.instance import Instance
from kilonova.operations.cells import Cells
from kilonova.operations.cloud import Cloud
from kilonova.scheduler.request import ServerRequest

log = structlog.get_logger("kilonova.cells")

HURRY = 30 * SECOND
"""How long after the booking the servers may be written; the reconciler waits for twice as long.  The clocks
of the two databases may differ by the rest."""

Book = Callable[[Tx], list[Instance]]
Make = Callable[[Tx, Cloud, list[Instance]], list[Instance]]


async def chosen(cells: Cells, request: ServerRequest) -> Cloud:
    """The cell that has the best host for it, among those that take new servers and answer.

    Where no host will do it is the cell of the host that was named, or the first one: the server tells why.
    """
    if not cells.several:
        return cells.first
    open_ones = {cell.uuid for cell in cells.all if not cell.disabled}
    while True:
        asked = replace(request, cells=frozenset(open_ones))
        best = await cells.first.scheduler.cell_for(asked)
        if best is None:
            return cells.cloud(await _named(cells, request))
        if await cells.answers(best):
            return cells.cloud(best)
        open_ones.discard(best)


async def _named(cells: Cells, request: ServerRequest) -> str:
    named = request.forced_host or request.requested_host
    host = await cells.top.read(lambda tx: hosts.show(tx, named)) if named else None
    return FIRST_CELL if host is None or host.cell_uuid is None else host.cell_uuid


async def make(cells: Cells, cloud: Cloud, book: Book, make: Make, lane: str) -> list[Instance]:
    """The servers, in the cell that is ``cloud``.  ``lane``: of transactions that book the same quota.

    Raises what ``book`` raises, or Unreachable.
    """
    if cloud.cell_uuid is None:
        return await cloud.db.write(Queued(lane, lambda tx: make(tx, cloud, book(tx))))
    booking = Queued(lane, lambda tx: _booked(tx, str(cloud.cell_uuid), book))
    made, booked_at = await cells.top.write(booking)

    def insert(tx: Tx) -> list[Instance]:
        if instance_mappings.now(tx) - booked_at > HURRY:
            raise Unreachable("The server could not be made in time: repeat the request.")
        return make(tx, cloud, made)

    try:
        servers = await cloud.db.write(insert)
    except DatabaseUnavailable:
        raise  # nobody knows what became of it: the reconciler will
    except KilonovaError:
        await cells.top.write(lambda tx: [give_up(tx, each) for each in made])
        raise
    await _note(cells, servers)
    return servers


def _booked(tx: Tx, cell_uuid: str, book: Book) -> tuple[list[Instance], int]:
    now = instance_mappings.now(tx)
    made = book(tx)
    for instance in made:
        instance_mappings.insert(tx, instance_mappings.of_instance(instance, cell_uuid, PENDING, now))
    return made, now


def give_up(tx: Tx, instance: Instance | instance_mappings.InstanceMapping) -> bool:
    """Forget a server that was booked and never made, once; False if somebody did, or it was made."""
    uuid = instance.uuid if isinstance(instance, Instance) else instance.instance_uuid
    if not instance_mappings.drop_pending(tx, uuid):
        return False
    server_groups.forget_member(tx, uuid)
    quotas.give_back(
        tx,
        instance.project_id,
        instance.user_id,
        instances=1,
        cores=instance.flavor.vcpus,
        ram=instance.flavor.memory_mb,
    )
    return True


async def _note(cells: Cells, servers: list[Instance]) -> None:
    """They are there.  Where this is not noted, the reconciler will see for itself."""
    try:
        await cells.top.write(lambda tx: instance_mappings.mark_made(tx, [each.uuid for each in servers]))
    except DatabaseUnavailable as error:
        log.warning("mappings of servers stay pending for a while", error=str(error))
