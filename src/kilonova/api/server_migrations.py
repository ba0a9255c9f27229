"""``/servers/{id}/migrations``: a server's live migrations that are under way (2.23 on)."""

from __future__ import annotations

from typing import Any

from kilonova.api.call import Call
from kilonova.api.query import NO_KEYS
from kilonova.api.routes import Route
from kilonova.api.server_found import server_of
from kilonova.api.views.migrations import SERVER_MIGRATION
from kilonova.db import migrations
from kilonova.errors import NotFound
from kilonova.model.migration import LIVE

_RULE = "os_compute_api:servers:migrations"
_PATH = "/servers/{server_id}/migrations"
_LARGEST = 2**63 - 1


async def index(call: Call) -> dict[str, Any]:
    server = await server_of(call)
    found = await call.cloud.db.read(lambda tx: migrations.live_of(tx, server.uuid))
    render = SERVER_MIGRATION.bind(call)
    return {"migrations": [render(migration) for migration in found]}


async def show(call: Call) -> dict[str, Any]:
    """Raises NotFound also for a migration of another server, of another kind, or one that is over."""
    server = await server_of(call)
    text = call.path["id"]
    number = int(text) if text.isascii() and text.isdecimal() and len(text) < 20 else 0
    found = None
    if 0 < number <= _LARGEST:
        found = await call.cloud.db.read(lambda tx: migrations.by_number(tx, server.uuid, number))
    if found is None:
        raise NotFound(f"Migration {text} for server {server.uuid} could not be found.")
    if found.migration_type != LIVE:
        raise NotFound(f"Migration {text} for server {server.uuid} is not live-migration.")
    if not found.in_progress:
        raise NotFound(f"Live migration {text} for server {server.uuid} is not in progress.")
    return {"migration": SERVER_MIGRATION.bind(call)(found)}


ROUTES = (
    Route("GET", _PATH, index, f"{_RULE}:index", since=23, query=NO_KEYS, late=True),
    Route("GET", f"{_PATH}/{{id}}", show, f"{_RULE}:show", since=23, query=NO_KEYS, late=True),
)
