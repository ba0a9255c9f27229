"""What all cells say about the servers of hosts, joined.  Hosts are known to the top database."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from kilonova.api.call import Call
from kilonova.db import instances
from kilonova.db.cell_mappings import FIRST_CELL
from kilonova.db.engine import Tx
from kilonova.model.host import Host

V = TypeVar("V")


async def by_host(
    call: Call, found: Iterable[Host], read: Callable[[Tx], dict[str, V]]
) -> tuple[list[Host], dict[str, V]]:
    """``read`` (host -> what is said of its servers) of all cells, and the hosts whose cells have answered:
    others are left out, as in Nova."""
    cells = call.cloud.cells
    if cells is None:
        return list(found), await call.cloud.db.read(read)
    told = await cells.each(read)
    joined = {host: value for each in told for host, value in (each.answer or {}).items()}
    answered = {each.cell.uuid for each in told if each.error is None}
    return [host for host in found if (host.cell_uuid or FIRST_CELL) in answered], joined


async def servers_elsewhere(call: Call, host: Host | None) -> list[str]:
    """The living servers of a host that is not in the first cell.

    Raises DatabaseUnavailable for a cell that does not answer.
    """
    cells = call.cloud.cells
    if cells is None or host is None or host.cell_uuid is None:
        return []
    name = host.host
    return await cells.cloud(host.cell_uuid).db.read(lambda tx: instances.uuids_by_host(tx, name))
