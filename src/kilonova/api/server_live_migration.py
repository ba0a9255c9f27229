"""``os-migrateLive``, and what may be asked of a live migration that is under way.

Until 2.29 a host that is named is forced; later the scheduler is asked about it, unless it is forced (2.30 to
2.67).  Until 2.33 a request waits until the hosts have been found fit, and is refused if none was.
"""

from __future__ import annotations

from kilonova.api.call import Call
from kilonova.api.query import NO_KEYS
from kilonova.api.routes import Route
from kilonova.api.schema.server_live_migration import ForceComplete, MigrateLive
from kilonova.api.server_found import server_of, target_of
from kilonova.errors import Invalid, NotFound
from kilonova.operations import live_migrate, live_steering

TO_HOST = "os_compute_api:os-migrate-server:migrate_live:host"
AUTO_SINCE = 25
FORCED_UNTIL = 29
CHECKED_UNTIL = 33
BEFORE_SINCE = 65
_LARGEST = 2**63 - 1
_PATH = "/servers/{server_id}/migrations/{id}"
_RULE = "os_compute_api:servers:migrations"


async def migrate(call: Call) -> None:
    body: MigrateLive = call.body
    asked = body.migrate
    instance = await server_of(call)
    if asked.host is not None:
        call.allow(TO_HOST, target_of(instance))
    elif asked.force:
        raise Invalid("Can't force to a non-provided destination")
    migration = await live_migrate.submit(
        call.cloud,
        call.context,
        instance.uuid,
        host=asked.host,
        forced=asked.host is not None and (call.version <= FORCED_UNTIL or asked.force),
        block=asked.block_or_auto if call.version >= AUTO_SINCE else asked.block,
        disk_over_commit=bool(asked.disk_over_commit),
    )
    if call.version <= CHECKED_UNTIL:
        await live_migrate.checked(call.cloud, migration)


async def abort(call: Call) -> None:
    """From 2.65 on also one that is queued or is being prepared."""
    server = await server_of(call)
    number = _number(call)
    if number is None:
        raise NotFound(f"Migration {call.path['id']} not found for instance {server.uuid}")
    before = call.version >= BEFORE_SINCE
    await live_steering.abort(call.cloud, call.context, server.uuid, number, before=before)


async def force_complete(call: Call) -> None:
    server = await server_of(call)
    number = _number(call)
    if number is None:
        raise Invalid(f"Migration {call.path['id']} not found for instance {server.uuid}")
    await live_steering.force_complete(call.cloud, call.context, server.uuid, number)


def _number(call: Call) -> int | None:
    """The migration's number in the address; None for what is none."""
    text = call.path["id"]
    number = int(text) if text.isascii() and text.isdecimal() and len(text) < 20 else 0
    return number if 0 < number <= _LARGEST else None


ROUTES = (
    Route(
        "POST",
        "/servers/{server_id}/action",
        migrate,
        "os_compute_api:os-migrate-server:migrate_live",
        action="os-migrateLive",
        body=MigrateLive,
        success=202,
        late=True,
    ),
    Route("DELETE", _PATH, abort, f"{_RULE}:delete", since=24, success=202, query=NO_KEYS, late=True),
    Route(
        "POST",
        f"{_PATH}/action",
        force_complete,
        f"{_RULE}:force_complete",
        since=22,
        action="force_complete",
        body=ForceComplete,
        success=202,
        late=True,
    ),
)
