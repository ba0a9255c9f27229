"""The tags of a server, from 2.26 on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import quote

from kilonova.api.call import Answer, Call
from kilonova.api.routes import Route
from kilonova.api.schema import server_actions as schema
from kilonova.api.schema.servers import MAX_TAGS, read_tag
from kilonova.api.server_found import in_tx, no_such_server, server_of, target_of
from kilonova.api.server_metadata import WRITABLE
from kilonova.db import instances
from kilonova.db.engine import Tx
from kilonova.errors import Conflict, Invalid, NotFound

RULE = "os_compute_api:os-server-tags"

Tags = tuple[str, ...]


async def index(call: Call) -> dict[str, Any]:
    return {"tags": (await server_of(call)).tags}


async def show(call: Call) -> None:
    _must_have((await server_of(call)).tags, call)


async def replace(call: Call) -> dict[str, Any]:
    body: schema.AllTags = call.body
    tags, _ = await _change(call, lambda old: tuple(dict.fromkeys(body.tags)))
    return {"tags": tags}


async def clear(call: Call) -> None:
    await _change(call, lambda old: ())


async def update(call: Call) -> Answer:
    try:
        tag = read_tag(call.path["id"])
    except ValueError as error:
        raise Invalid(f"{error}.") from error

    def add(old: Tags) -> Tags:
        if tag in old:
            return old
        if len(old) >= MAX_TAGS:
            raise Invalid(f"The number of tags exceeded the per-server limit {MAX_TAGS}")
        return (*old, tag)

    _, changed = await _change(call, add)
    if not changed:
        return Answer(status=204)
    location = f"{call.links}/servers/{call.path['server_id']}/tags/{quote(tag, safe='')}"
    return Answer(headers=[(b"location", location.encode("latin-1", "replace"))])


async def delete(call: Call) -> None:
    def without(old: Tags) -> Tags:
        _must_have(old, call)
        return tuple(tag for tag in old if tag != call.path["id"])

    await _change(call, without)


def _must_have(tags: Tags, call: Call) -> None:
    if call.path["id"] not in tags:
        raise NotFound(f"Server {call.path['server_id']} has no tag '{call.path['id']}'")


async def _change(call: Call, change: Callable[[Tags], Tags]) -> tuple[Tags, bool]:
    """The tags from now on and whether they were others.  Raises Conflict in other states than these four."""
    identity = call.path["server_id"]

    def write(tx: Tx) -> tuple[Tags, bool]:
        instance = in_tx(tx, call.context, identity)
        call.allow(target=target_of(instance))
        if instance.vm_state not in WRITABLE:
            raise Conflict(
                f"Cannot 'update tags' instance {identity} while it is in vm_state {instance.vm_state}"
            )
        tags = change(instance.tags)
        if tags == instance.tags:
            return tags, False
        if not instances.update(tx, instance.uuid, expect_task=instances.ANY, tags=tags):
            raise no_such_server(identity)
        return tags, True

    return await call.cloud.db.write(write)


_ALL, _ONE = "/servers/{server_id}/tags", "/servers/{server_id}/tags/{id}"
ROUTES = (
    Route("GET", _ALL, index, f"{RULE}:index", since=26, late=True),
    Route("PUT", _ALL, replace, f"{RULE}:update_all", since=26, body=schema.AllTags, late=True),
    Route("DELETE", _ALL, clear, f"{RULE}:delete_all", since=26, success=204, late=True),
    Route("GET", _ONE, show, f"{RULE}:show", since=26, success=204, late=True),
    Route("PUT", _ONE, update, f"{RULE}:update", since=26, success=201, late=True),
    Route("DELETE", _ONE, delete, f"{RULE}:delete", since=26, success=204, late=True),
)
