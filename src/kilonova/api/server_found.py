"""The server that a request names, if there is one that the caller may know of."""

from __future__ import annotations

from typing import Any

from kilonova.api.call import Call
from kilonova.api.schema.kinds import is_uuid
from kilonova.db import instances
from kilonova.db.engine import Tx
from kilonova.errors import Conflict, NotFound
from kilonova.model.context import RequestContext
from kilonova.model.instance import Instance


def no_such_server(identity: str) -> NotFound:
    return NotFound(f"Instance {identity} could not be found.")


def may_see(context: RequestContext, project_id: str) -> bool:
    return context.is_admin or context.project_id == project_id


def target_of(instance: Instance) -> dict[str, Any]:
    """What policy rules are asked about."""
    return {"project_id": instance.project_id, "user_id": instance.user_id}


def in_tx(tx: Tx, context: RequestContext, identity: str, *, deleted: bool = False) -> Instance:
    """The living server (or also a deleted one).  Raises NotFound, also for one of another project."""
    if not is_uuid(identity):
        raise no_such_server(identity)
    instance = instances.show_any(tx, identity) if deleted else instances.show(tx, identity)
    if instance is None or not may_see(context, instance.project_id):
        raise no_such_server(identity)
    return instance


async def server_of(call: Call, key: str = "server_id", *, deleted: bool = False) -> Instance:
    """The server in the address, with the route's policy checked against it.

    Raises NotFound or Forbidden.
    """
    identity = call.path[key]
    instance = await call.cloud.db.read(lambda tx: in_tx(tx, call.context, identity, deleted=deleted))
    if call.route.policy is not None:
        call.allow(call.route.policy, target_of(instance))
    return instance


def host_of(instance: Instance) -> str:
    """Raises Conflict for a server that is on no host (yet)."""
    if instance.host is None:
        raise Conflict(f"Instance {instance.uuid} is not ready")
    return instance.host
