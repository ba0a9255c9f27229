"""Whether a resize or a cold migration may choose a host of another cell (API-106)."""

from __future__ import annotations

from typing import Any

import structlog

from kilonova.db import hosts
from kilonova.db.cell_mappings import FIRST_CELL
from kilonova.errors import Unreachable
from kilonova.journal.model import Run
from kilonova.operations.cloud import Cloud
from kilonova.rpc import versions

log = structlog.get_logger("kilonova.cells")

POLICY = "compute:servers:resize:cross_cell"
NEEDED = "1.2"  # of what agents understand: they send each other files


async def may_leave(cloud: Cloud, allowed: bool) -> bool:
    """Whether a server of this cell may move to another; ``allowed``: the policy lets the caller.

    As in Nova all hosts, of all cells, have to be new enough for it; with one that is not, the request is not
    refused, and the server stays in its cell.
    """
    if not allowed or cloud.cells is None or not cloud.cells.several:
        return False
    for host in await cloud.top.read(hosts.list_all):
        known = host.version or versions.OLDEST
        if versions.parsed(known) < versions.parsed(NEEDED):
            log.warning("servers stay in their cells: a host is too old", host=host.host, version=known)
            return False
    return True


async def cells_for(run: Run) -> dict[str, Any]:
    """Fields of the request: the hosts of which cells will do, and which cell is the better one."""
    cloud: Cloud = run.cloud
    if not run.params.across:
        return {}
    if cloud.cells is None:
        raise Unreachable("This controller does not know the cells yet.")
    own = cloud.cell_uuid or FIRST_CELL
    return {"cells": await cloud.cells.open_to(own), "own_cell": own}
