"""Where those servers are that the hints of a request are about: its group's members, and those it names."""

from __future__ import annotations

from msgspec.structs import replace

from kilonova.db import scheduling, server_groups
from kilonova.db.engine import Database, Tx
from kilonova.scheduler.filters.neighbours import named_servers
from kilonova.scheduler.request import GroupState, ServerRequest

_HINTS = ("different_host", "same_host")


async def surrounded(request: ServerRequest, cell: Database, top: Database) -> ServerRequest:
    """The request with what the databases know of them now."""
    names = {name for hint in _HINTS for name in named_servers(request.hints.get(hint))}
    if names:
        request = replace(request, hosts_of=await cell.read(lambda tx: scheduling.hosts_of(tx, names)))
    group = request.hints.get("group")
    if isinstance(group, str):
        request = replace(request, group=await top.read(lambda tx: _group(tx, group, request.uuid)))
    return request


def _group(tx: Tx, uuid: str, server: str) -> GroupState | None:
    """None for a group that was deleted: it binds nobody any more."""
    found = server_groups.find(tx, uuid)
    if found is None:
        return None
    return GroupState(
        uuid=found.uuid,
        policy=found.policy,
        most=found.most,
        hosts=server_groups.hosts_of_members(tx, found.id, but=server),
    )
