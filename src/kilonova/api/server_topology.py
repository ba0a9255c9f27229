"""``GET /servers/{id}/topology``: a guest's NUMA cells, and to administrators where they are (2.78)."""

from __future__ import annotations

from typing import Any

from kilonova.api.call import Call
from kilonova.api.query import NO_KEYS
from kilonova.api.routes import Route
from kilonova.api.server_found import server_of, target_of
from kilonova.db import host_resources
from kilonova.db.engine import Tx
from kilonova.model.numa import GuestCell, GuestTopology, HostTopology
from kilonova.resources.claims import is_special

_RULE = "compute:server:topology"


async def show(call: Call) -> dict[str, Any]:
    """No nodes for a server without cells, or whose cells nobody has placed yet."""
    instance = await server_of(call)
    numa, host = None, None
    if is_special(instance):
        numa, host = await call.cloud.claims.read(lambda tx: _placed(tx, instance.uuid))
    if numa is None:
        return {"nodes": [], "pagesize_kb": None}
    whole = call.may(f"{_RULE}:host:index", target_of(instance))
    return {
        "nodes": [_node(cell, host, whole) for cell in numa.cells],
        "pagesize_kb": numa.cells[0].page_size_kib,
    }


def _placed(tx: Tx, uuid: str) -> tuple[GuestTopology | None, HostTopology | None]:
    claim = host_resources.claim_of(tx, uuid)
    if claim is None or claim.numa is None:
        return None, None
    return claim.numa, host_resources.read(tx, claim.compute_id).topology


def _node(cell: GuestCell, host: HostTopology | None, whole: bool) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "vcpu_set": list(cell.cpus),
        "siblings": _siblings(cell, host),
        "memory_mb": cell.memory_mib,
    }
    if whole:
        shown["host_node"] = cell.host_cell
        shown["cpu_pinning"] = {str(ours): theirs for ours, theirs in sorted(cell.pinning.items())}
    return shown


def _siblings(cell: GuestCell, host: HostTopology | None) -> list[list[int]]:
    """The guest's CPUs that are pinned to threads of one core, where there are several of one."""
    if host is None:
        return []
    place = next((each for each in host.cells if each.id == cell.host_cell), None)
    if place is None:
        return []
    cores = [
        sorted(ours for ours, theirs in cell.pinning.items() if theirs in core) for core in place.siblings
    ]
    return sorted(core for core in cores if len(core) > 1)


ROUTES = (
    Route("GET", "/servers/{server_id}/topology", show, f"{_RULE}:index", since=78, query=NO_KEYS, late=True),
)
