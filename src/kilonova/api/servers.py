"""Servers: lists, one, new, changed, deleted."""

from __future__ import annotations

from typing import Any

from msgspec import UNSET

from kilonova.api.call import Answer, Call
from kilonova.api.paging import next_link
from kilonova.api.query import NO_KEYS
from kilonova.api.routes import Route
from kilonova.api.schema.kinds import is_uuid
from kilonova.api.schema.servers import CreateBody, ServerToUpdate, UpdateBody
from kilonova.api.server_create import create
from kilonova.api.server_filters import KEYS, servers_wanted
from kilonova.api.server_found import in_tx, may_see, no_such_server, server_of
from kilonova.api.server_pages import page, page_with
from kilonova.api.view import View
from kilonova.api.views.lost_servers import LOST_DETAIL_VIEW, LOST_SUMMARY_VIEW, lost_server, rendered
from kilonova.api.views.servers import (
    AT,
    DETAIL_VIEW,
    SHOW_VIEW,
    SUMMARY_VIEW,
    UPDATE_VIEW,
    renderer,
    shows_host_status,
    unused_columns,
)
from kilonova.clock import SECOND
from kilonova.db import instance_list, instances, server_groups
from kilonova.db.engine import DatabaseUnavailable, Row, Tx
from kilonova.errors import Conflict
from kilonova.model.instance import Instance
from kilonova.operations import delete as delete_operation

RULE = "os_compute_api:servers"


async def index(call: Call) -> dict[str, Any]:
    wanted = servers_wanted(call, f"{RULE}:index:get_all_tenants")
    found = await page(call, wanted, instance_list.SUMMARY)
    shown = rendered(found.lost, LOST_SUMMARY_VIEW.bind(call))
    render = SUMMARY_VIEW.bind(call)
    return _with_next(call, [*shown, *(render(row) for row in found.rows)], wanted.limit)


async def detail(call: Call) -> dict[str, Any]:
    wanted = servers_wanted(call, f"{RULE}:detail:get_all_tenants")
    without, with_hosts = unused_columns(call), shows_host_status(call)

    def also(tx: Tx) -> dict[str, str] | None:
        return _host_states(call, tx) if with_hosts else None

    found, states = await page_with(call, wanted, instance_list.DETAIL, without, also)
    shown = rendered(found.lost, LOST_DETAIL_VIEW.bind(call))
    render = renderer(call, DETAIL_VIEW, states)
    return _with_next(call, [*shown, *(render(row) for row in found.rows)], wanted.limit)


def _with_next(call: Call, servers: list[dict[str, Any]], limit: int) -> dict[str, Any]:
    result: dict[str, Any] = {"servers": servers}
    if servers and len(servers) == limit:
        result["servers_links"] = next_link(call.url, call.query, limit, servers[-1]["id"])
    return result


def _host_states(call: Call, tx: Tx) -> dict[str, str]:
    settings = call.cloud.settings
    down_after = settings.number("service_down_time") * SECOND
    return instance_list.host_states(tx, call.cloud.clock.now(), down_after)


async def show(call: Call) -> dict[str, Any]:
    return {"server": await _shown(call, SHOW_VIEW, 16)}


async def _shown(call: Call, view: View, host_status_since: int) -> dict[str, Any]:
    identity = call.path["server_id"]
    if not is_uuid(identity):
        raise no_such_server(identity)
    without, with_hosts = unused_columns(call), shows_host_status(call, host_status_since)

    in_one = call.cloud.cells is None  # then servers and hosts are in one database

    def read(tx: Tx) -> tuple[Row | None, dict[str, str] | None]:
        row = instance_list.show(tx, identity, without=without)
        return row, _host_states(call, tx) if with_hosts and in_one and row is not None else None

    try:
        row, states = await call.cloud.db.read(read)
    except DatabaseUnavailable:
        if call.cloud.cells is None:
            raise
        return await lost_server(call, identity)
    if row is None or not may_see(call.context, row[AT["project_id"]]):
        raise no_such_server(identity)
    call.allow(target={"project_id": row[AT["project_id"]], "user_id": row[AT["user_id"]]})
    if with_hosts and not in_one:
        states = await call.cloud.top.read(lambda tx: _host_states(call, tx))
    shown = renderer(call, view, states)(row)
    if "server_groups" in shown and '"group"' in row[AT["hints"]]:
        shown["server_groups"] = await _groups(call, row[AT["uuid"]])
    return shown


async def _groups(call: Call, server: str) -> list[str]:
    """The group that the server is in, as long as that has not been deleted."""
    group = await call.cloud.top.read(lambda tx: server_groups.group_of(tx, server))
    return [] if group is None else [group]


async def update(call: Call) -> dict[str, Any]:
    body: UpdateBody = call.body
    await server_of(call)
    identity = call.path["server_id"]

    def write(tx: Tx) -> None:
        instance = in_tx(tx, call.context, identity)
        changes = _changes(body.server, instance)
        if changes and not instances.update(tx, instance.uuid, expect_task=instances.ANY, **changes):
            raise no_such_server(identity)

    await call.cloud.db.write(write)
    return {"server": await _shown(call, UPDATE_VIEW, 75)}


def _changes(server: ServerToUpdate, instance: Instance) -> dict[str, Any]:
    """The columns that a body changes.  Raises Conflict."""
    changes: dict[str, Any] = {}
    given = {
        "display_name": server.name,
        "hostname": server.domain_name or server.hostname,
        "access_ip_v4": server.access_ipv4,
        "access_ip_v6": server.access_ipv6,
    }
    changes.update((name, value) for name, value in given.items() if value is not None)
    if server.description is not UNSET:
        changes["display_description"] = server.description
    if server.disk_config is not None:
        changes["system_metadata"] = {**instance.system_metadata, "disk_config": server.disk_config}
    if server.pinned_availability_zone is not UNSET:
        changes["pinned_availability_zone"] = _new_pin(instance, server.pinned_availability_zone)
    return changes


def _new_pin(instance: Instance, wanted: Any) -> str | None:
    """Null unpins; a server can be pinned to the zone in which it is (2.104).  Raises Conflict."""
    if wanted is None or wanted == instance.pinned_availability_zone:
        return instance.pinned_availability_zone if wanted is not None else None
    if instance.pinned_availability_zone is not None:
        raise Conflict(
            f"Instance {instance.uuid} is pinned to zone {instance.pinned_availability_zone}: unpin it first."
        )
    if wanted != instance.availability_zone:
        raise Conflict(f"Instance {instance.uuid} is in zone {instance.availability_zone}, not in {wanted}.")
    return str(wanted)


async def delete(call: Call) -> Answer:
    instance = await server_of(call)
    await delete_operation.submit(call.cloud, call.context, instance.uuid)
    return Answer()


ROUTES = (
    Route("GET", "/servers", index, f"{RULE}:index", query=KEYS),
    Route("POST", "/servers", create, f"{RULE}:create", body=CreateBody, success=202),
    Route("GET", "/servers/detail", detail, f"{RULE}:detail", query=KEYS),
    Route("GET", "/servers/{server_id}", show, f"{RULE}:show", query=NO_KEYS, late=True),
    Route("PUT", "/servers/{server_id}", update, f"{RULE}:update", body=UpdateBody, late=True),
    Route("DELETE", "/servers/{server_id}", delete, f"{RULE}:delete", success=204, late=True),
)
