"""The metadata of a server: keys and values that users give it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kilonova.api.call import Call
from kilonova.api.query import NO_KEYS
from kilonova.api.routes import Route
from kilonova.api.schema import server_actions as schema
from kilonova.api.server_found import in_tx, no_such_server, server_of, target_of
from kilonova.db import instances, quotas
from kilonova.db.engine import Tx
from kilonova.errors import Conflict, Forbidden, Invalid, NotFound
from kilonova.model.instance import Instance
from kilonova.model.states import Vm

RULE = "os_compute_api:server-metadata"
WRITABLE = frozenset({Vm.ACTIVE, Vm.PAUSED, Vm.SUSPENDED, Vm.STOPPED})

Metadata = dict[str, str]


async def index(call: Call) -> dict[str, Any]:
    return {"metadata": (await server_of(call)).metadata}


async def show(call: Call) -> dict[str, Any]:
    metadata = (await server_of(call)).metadata
    key = call.path["id"]
    _must_have(metadata, key)
    return {"meta": {key: metadata[key]}}


async def create(call: Call) -> dict[str, Any]:
    body: schema.AllMetadata = call.body
    return {"metadata": await _change(call, lambda old: {**old, **body.metadata}, "update metadata")}


async def replace(call: Call) -> dict[str, Any]:
    body: schema.AllMetadata = call.body
    return {"metadata": await _change(call, lambda old: body.metadata, "update metadata")}


async def update(call: Call) -> dict[str, Any]:
    body: schema.OneMetadata = call.body
    key = call.path["id"]
    if key not in body.meta:
        raise Invalid("Request body and URI mismatch")
    await _change(call, lambda old: {**old, **body.meta}, "update metadata")
    return {"meta": body.meta}


async def delete(call: Call) -> None:
    key = call.path["id"]

    def without(old: Metadata) -> Metadata:
        _must_have(old, key)
        return {name: value for name, value in old.items() if name != key}

    await _change(call, without, "delete metadata")


def _must_have(metadata: Metadata, key: str) -> None:
    if key not in metadata:
        raise NotFound("Metadata item was not found")


async def _change(call: Call, change: Callable[[Metadata], Metadata], what: str) -> Metadata:
    """Raises Conflict when the server is locked or in another state, Forbidden above the quota."""
    identity = call.path["server_id"]
    options = call.cloud.settings.options["quota"]
    defaults = {name: int(str(value)) for name, value in options.items()}

    above = None  # limits, where they are not in the server's own database
    if call.cloud.cells is not None:
        owner = await server_of(call)
        above = await call.cloud.top.read(
            lambda tx: quotas.effective_limits(tx, owner.project_id, owner.user_id, defaults)
        )

    def write(tx: Tx) -> Metadata:
        instance = in_tx(tx, call.context, identity)
        call.allow(target=target_of(instance))
        _check_state(call, instance, what)
        metadata = change(instance.metadata)
        limits = above or quotas.effective_limits(tx, instance.project_id, instance.user_id, defaults)
        if 0 <= limits["metadata_items"] < len(metadata):
            raise Forbidden(f"Maximum number of metadata items exceeds {limits['metadata_items']}")
        if not instances.update(tx, instance.uuid, expect_task=instances.ANY, metadata=metadata):
            raise no_such_server(identity)
        return metadata

    return await call.cloud.db.write(write)


def _check_state(call: Call, instance: Instance, what: str) -> None:
    if instance.locked and not call.context.is_admin:
        raise Conflict(f"Instance {instance.uuid} is locked")
    if instance.vm_state not in WRITABLE:
        state = f"vm_state {instance.vm_state}"
    elif instance.launched_at is None:
        state = "launched_at None"
    else:
        return
    raise Conflict(f"Cannot '{what}' instance {instance.uuid} while it is in {state}")


_ALL, _ONE = "/servers/{server_id}/metadata", "/servers/{server_id}/metadata/{id}"
ROUTES = (
    Route("GET", _ALL, index, f"{RULE}:index", query=NO_KEYS, late=True),
    Route("POST", _ALL, create, f"{RULE}:create", body=schema.AllMetadata, late=True),
    Route("PUT", _ALL, replace, f"{RULE}:update_all", body=schema.AllMetadata, late=True),
    Route("GET", _ONE, show, f"{RULE}:show", query=NO_KEYS, late=True),
    Route("PUT", _ONE, update, f"{RULE}:update", body=schema.OneMetadata, late=True),
    Route("DELETE", _ONE, delete, f"{RULE}:delete", success=204, late=True),
)
