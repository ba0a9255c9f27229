"""Pages of servers: from the one cell that most clouds have, or merged from several.

From 2.69 on a list without filters shows of servers in a cell that is down what the top database knows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from kilonova.api.call import Call
from kilonova.api.schema.kinds import read_flag
from kilonova.db import instance_list, instance_mappings
from kilonova.db.cells import Cell
from kilonova.db.engine import Row, Tx
from kilonova.db.instance_list import ServerList
from kilonova.db.instance_mappings import InstanceMapping
from kilonova.errors import Invalid, NotFound
from kilonova.listing.instances import list_servers
from kilonova.listing.options import ListOptions

X = TypeVar("X")

PARTIAL_SINCE = 69
_KNOWN_OF_ALL = frozenset({"all_tenants", "project_id", "tenant_id", "deleted"})


class ServerPage(msgspec.Struct, frozen=True):
    """``rows`` of the columns that were asked for; ``lost`` are servers of cells that are down."""

    rows: list[Row]
    lost: list[InstanceMapping] = []


async def page(call: Call, wanted: ServerList, columns: tuple[str, ...]) -> ServerPage:
    """Raises Invalid for a marker that is not there."""
    return (await page_with(call, wanted, columns, frozenset(), lambda tx: None))[0]


async def page_with(
    call: Call,
    wanted: ServerList,
    columns: tuple[str, ...],
    without: frozenset[str],
    also: Callable[[Tx], X],
) -> tuple[ServerPage, X]:
    """The page, and what ``also`` reads of the top database."""

    def read(tx: Tx) -> tuple[ServerPage, X]:
        return ServerPage(instance_list.page(tx, wanted, columns, without)), also(tx)

    try:
        if call.cloud.cells is None:
            return await call.cloud.db.read(read)
        return await _over_cells(call, wanted, columns, without), await call.cloud.top.read(also)
    except NotFound as error:  # a marker: a wrong query, not a missing resource
        raise Invalid(str(error)) from error


async def _over_cells(
    call: Call, wanted: ServerList, columns: tuple[str, ...], without: frozenset[str]
) -> ServerPage:
    cloud = call.cloud
    assert cloud.cells is not None
    partial = shows_lost(call)
    found = await list_servers(
        cloud.cells.all,
        wanted,
        columns,
        without,
        clock=cloud.clock,
        options=ListOptions.of(cloud.settings),
        tolerant=True if partial else None,
    )
    if not partial or not found.down:
        return ServerPage(found.rows)
    room = wanted.limit - len(found.rows)
    return ServerPage(found.rows, await cloud.top.read(lambda tx: _lost(tx, wanted.owner, found.down, room)))


def _lost(tx: Tx, project_id: str | None, down: tuple[Cell, ...], room: int) -> list[InstanceMapping]:
    """What is known of the servers in cells that are down, at most ``room`` of them."""
    result: list[InstanceMapping] = []
    for cell in down:
        if len(result) < room:
            result += instance_mappings.living_in(tx, cell.uuid, project_id, room - len(result))
    return result


def shows_lost(call: Call) -> bool:
    """Whether this list may have servers of which little is known: not if it is sorted, paged or filtered
    by what nobody can tell of them."""
    if call.version < PARTIAL_SINCE or call.context.project_id is None:
        return False
    keys = set(call.query.keys())
    if keys - _KNOWN_OF_ALL:
        return False
    deleted: Any = call.query.last("deleted")
    try:
        return deleted is None or not read_flag(deleted)
    except ValueError:
        return False
