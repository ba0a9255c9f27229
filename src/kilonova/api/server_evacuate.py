"""``evacuate``: a server leaves a host that is down.

Until 2.13 the user says whether the files are on shared storage, and gets a password; from 2.14 on that is
found out.  Until 2.28 a host that is named is forced, later it is asked of the scheduler unless it is forced
(2.29 to 2.67).  From 2.95 on the server is left off at its new host.
"""

from __future__ import annotations

from typing import Any

from kilonova.api.call import Call
from kilonova.api.microversion import MAX
from kilonova.api.routes import Route
from kilonova.api.schema.server_evacuate import Evacuate
from kilonova.api.server_create import new_password
from kilonova.api.server_found import host_of, server_of
from kilonova.db import hosts
from kilonova.errors import Invalid, NotFound
from kilonova.operations import evacuate as operation

FORCED_UNTIL = 28
STOPPED_SINCE = 95


async def with_password(call: Call) -> dict[str, Any]:
    """Until 2.13."""
    body: Evacuate = call.body
    asked = body.evacuate
    if asked.on_shared_storage and asked.admin_pass is not None:
        raise Invalid("admin password can't be changed on existing disk")
    await _evacuate(call, asked.on_shared_storage)
    return {"adminPass": None if asked.on_shared_storage else asked.admin_pass or new_password()}


async def evacuate(call: Call) -> None:
    await _evacuate(call, None)


async def _evacuate(call: Call, on_shared_storage: bool | None) -> None:
    body: Evacuate = call.body
    host = body.evacuate.host
    instance = await server_of(call)
    if body.evacuate.force and host is None:
        raise Invalid("Can't force to a non-provided destination")
    await _check_target(call, host, host_of(instance))
    await operation.submit(
        call.cloud,
        call.context,
        instance,
        host=host,
        forced=host is not None and (call.version <= FORCED_UNTIL or bool(body.evacuate.force)),
        on_shared_storage=on_shared_storage,
        stop=call.version >= STOPPED_SINCE,
    )


async def _check_target(call: Call, host: str | None, current: str) -> None:
    """Raises NotFound for an unknown host, Invalid for the one that is left."""
    if host is None:
        return
    known = await call.cloud.top.read(lambda tx: hosts.show(tx, host))
    if known is None or known.cell_uuid != call.cloud.cell_uuid:
        raise NotFound(f"Compute host {host} not found.")
    if host == current:
        raise Invalid("The target host can't be the same one.")


def _route(handler: Any, since: int, until: int = MAX) -> Route:
    return Route(
        "POST",
        "/servers/{server_id}/action",
        handler,
        "os_compute_api:os-evacuate",
        action="evacuate",
        body=Evacuate,
        success=200,
        late=True,
        since=since,
        until=until,
    )


ROUTES = (_route(with_password, 1, 13), _route(evacuate, 14))
