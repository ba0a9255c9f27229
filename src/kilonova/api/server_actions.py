"""``POST /servers/{id}/action``."""

from __future__ import annotations

import re
from typing import Any

from kilonova.api.call import Call
from kilonova.api.routes import server_action
from kilonova.api.schema import server_actions as schema
from kilonova.api.server_found import host_of, in_tx, no_such_server, server_of, target_of
from kilonova.db import instances
from kilonova.db.engine import Tx
from kilonova.journal import finished
from kilonova.model.instance import Instance
from kilonova.operations import delete as delete_operation
from kilonova.operations import reboot as reboot_operation
from kilonova.operations import start as start_operation
from kilonova.operations import stop as stop_operation

UNLOCK_OVERRIDE = "os_compute_api:os-lock-server:unlock:unlock_override"

_UNSHOWABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")


async def start(call: Call) -> None:
    instance = await server_of(call)
    await start_operation.submit(call.cloud, call.context, instance.uuid)


async def stop(call: Call) -> None:
    instance = await server_of(call)
    await stop_operation.submit(call.cloud, call.context, instance.uuid)


async def reboot(call: Call) -> None:
    body: schema.Reboot = call.body
    instance = await server_of(call)
    hard = body.reboot.type.upper() == "HARD"
    await reboot_operation.submit(call.cloud, call.context, instance.uuid, hard=hard)


async def force_delete(call: Call) -> None:
    instance = await server_of(call)
    await delete_operation.submit(call.cloud, call.context, instance.uuid, guard="force_delete")


async def console_output(call: Call) -> dict[str, Any]:
    body: schema.ConsoleOutput = call.body
    instance = await server_of(call)
    output = await call.cloud.hosts.agent(host_of(instance)).console_output(instance.uuid)
    text = _UNSHOWABLE.sub("", output.decode("utf-8", "replace"))
    return {"output": last_lines(text, body.console.length)}


def last_lines(text: str, count: int | None) -> str:
    """The last ``count`` lines; None and -1: all of them."""
    if count is None or count < 0:
        return text
    return "\n".join(text.split("\n")[-count:]) if count else ""


async def lock(call: Call) -> None:
    """By its project's people or by an administrator; the owner cannot make an administrator's lock his."""
    body: schema.Lock = call.body
    reason = body.lock.locked_reason if body.lock is not None else None

    def write(tx: Tx, instance: Instance) -> None:
        owner = instance.project_id == call.context.project_id
        if instance.locked is not None and owner:
            return
        _change(tx, instance, locked="owner" if owner else "admin", locked_reason=reason)
        _record(call, tx, instance, "lock", "api_lock")

    await _at_once(call, write)


async def unlock(call: Call) -> None:
    def write(tx: Tx, instance: Instance) -> None:
        expected = "owner" if instance.project_id == call.context.project_id else "admin"
        if instance.locked not in (None, expected):
            call.allow(UNLOCK_OVERRIDE, target_of(instance))
        _change(tx, instance, locked=None, locked_reason=None)
        _record(call, tx, instance, "unlock", "api_unlock")

    await _at_once(call, write)


async def reset_state(call: Call) -> None:
    body: schema.ResetState = call.body

    def write(tx: Tx, instance: Instance) -> None:
        _change(tx, instance, vm_state=body.reset.state, task_state=None)
        _record(call, tx, instance, "resetState")

    await _at_once(call, write)


async def _at_once(call: Call, change: Any) -> None:
    """Find the server and change it in one transaction."""
    identity = call.path["server_id"]

    def write(tx: Tx) -> None:
        instance = in_tx(tx, call.context, identity)
        call.allow(target=target_of(instance))
        change(tx, instance)

    await call.cloud.db.write(write)


def _change(tx: Tx, instance: Instance, **changes: Any) -> None:
    if not instances.update(tx, instance.uuid, expect_task=instances.ANY, **changes):
        raise no_such_server(instance.uuid)


def _record(call: Call, tx: Tx, instance: Instance, action: str, event: str | None = None) -> None:
    finished.record(tx, call.context, instance.uuid, action, call.cloud.clock.now(), event)


ROUTES = (
    server_action("os-start", start, "servers:start", schema.Start),
    server_action("os-stop", stop, "servers:stop", schema.Stop),
    server_action("reboot", reboot, "servers:reboot", schema.Reboot),
    server_action("forceDelete", force_delete, "os-deferred-delete:force", schema.ForceDelete),
    server_action("os-getConsoleOutput", console_output, "os-console-output", schema.ConsoleOutput, 200),
    server_action("lock", lock, "os-lock-server:lock", schema.Lock),
    server_action("unlock", unlock, "os-lock-server:unlock", schema.Unlock),
    server_action("os-resetState", reset_state, "os-admin-actions:reset_state", schema.ResetState),
)
