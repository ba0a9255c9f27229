"""Servers whose cell does not answer: what the top database knows of them (from 2.69 on).

Rows are as long as those of ``instance_list.DETAIL``, with nothing where nothing is known.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from kilonova.api.call import Call
from kilonova.api.server_found import may_see, no_such_server
from kilonova.api.view import Item, View
from kilonova.api.views.servers import (
    AT,
    GROUPS,
    bind_flavor,
    bind_image,
    column,
    links,
    zulu,
)
from kilonova.db import instance_mappings, server_groups
from kilonova.db.engine import Row
from kilonova.db.instance_list import DETAIL
from kilonova.db.instance_mappings import InstanceMapping
from kilonova.errors import Unreachable
from kilonova.model.states import Power

UNKNOWN = "UNKNOWN"
SINCE = 69

_encode = msgspec.json.Encoder().encode


def _row(mapping: InstanceMapping) -> Row:
    values: list[Any] = [None] * len(DETAIL)
    known = {
        "uuid": mapping.instance_uuid,
        "project_id": mapping.project_id,
        "user_id": mapping.user_id,
        "created_at": mapping.created_at,
        "availability_zone": mapping.availability_zone,
        "flavor": _encode(mapping.flavor).decode(),
        "image": None if mapping.image is None else _encode(mapping.image).decode(),
    }
    for name, value in known.items():
        values[AT[name]] = value
    return tuple(values)


_ALWAYS = (
    Item("id", column("uuid")),
    Item("status", lambda row: UNKNOWN),
    Item("links", bind=lambda call: links(call, AT["uuid"])),
)
_OWNED = (
    Item("tenant_id", column("project_id")),
    Item("created", lambda row: zulu(row[AT["created_at"]])),
)
LOST_SUMMARY_VIEW = View(*_ALWAYS)
LOST_DETAIL_VIEW = View(*_ALWAYS, *_OWNED)
LOST_SHOW_VIEW = View(
    *_ALWAYS,
    *_OWNED,
    Item("user_id", column("user_id")),
    Item("image", bind=bind_image),
    Item("flavor", bind=bind_flavor),
    Item("OS-EXT-AZ:availability_zone", lambda row: row[AT["availability_zone"]] or UNKNOWN),
    Item("OS-EXT-STS:power_state", lambda row: Power.NOSTATE),
    GROUPS,
)


def rendered(
    lost: Sequence[InstanceMapping], render: Callable[[Row], dict[str, Any]]
) -> list[dict[str, Any]]:
    return [render(_row(mapping)) for mapping in lost]


async def lost_server(call: Call, identity: str) -> dict[str, Any]:
    """What is shown of a server whose cell does not answer (API-126).

    Raises NotFound for one that is unknown, another project's or being deleted, Unreachable below 2.69.
    """
    cells = call.cloud.cells
    mapping = None if cells is None else await cells.top.read(lambda tx: instance_mappings.show(tx, identity))
    if mapping is None or call.version < SINCE or call.route.method != "GET":
        if mapping is not None and not may_see(call.context, mapping.project_id):
            raise no_such_server(identity)
        raise Unreachable(f"The database of instance {identity} does not answer: try again later.")
    if mapping.queued_for_delete or not may_see(call.context, mapping.project_id):
        raise no_such_server(identity)
    call.allow(target={"project_id": mapping.project_id, "user_id": mapping.user_id})
    shown = LOST_SHOW_VIEW.bind(call)(_row(mapping))
    if "server_groups" in shown:
        group = await call.cloud.top.read(lambda tx: server_groups.group_of(tx, identity))
        shown["server_groups"] = [] if group is None else [group]
    return shown
