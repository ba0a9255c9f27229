"""``/servers/{id}/os-volume_attachments``: a server's volumes."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from kilonova import errors
from kilonova.api.call import Call
from kilonova.api.faults import Unsuccessful
from kilonova.api.paging import whole_number
from kilonova.api.routes import Route
from kilonova.api.schema import server_volumes as schema
from kilonova.api.server_found import in_tx, server_of, target_of
from kilonova.api.view import OMIT, Item, View
from kilonova.db import instances
from kilonova.db.engine import Tx
from kilonova.errors import Conflict, Invalid, NotFound, Refused
from kilonova.journal.ending import passed
from kilonova.journal.model import StoredError
from kilonova.model.instance import Instance
from kilonova.model.states import Vm
from kilonova.model.volume import Attachment
from kilonova.operations import attach_volume, detach_volume
from kilonova.operations.attach_volume import Wish
from kilonova.operations.attachments import of_volume, put

SHELVED = frozenset({Vm.SHELVED, Vm.SHELVED_OFFLOADED})
RULE = "os_compute_api:os-volumes-attachments:"

Row = tuple[str, Attachment]
"""A server's uuid and what it has."""

_SHOWN = (
    Item("id", lambda row: row[1].volume_id, until=88),
    Item("serverId", lambda row: row[0]),
    Item("volumeId", lambda row: row[1].volume_id),
    Item("tag", lambda row: row[1].tag, since=70),
    Item("delete_on_termination", lambda row: row[1].delete_on_termination, since=79),
    Item("attachment_id", lambda row: row[1].attachment_id, since=89),
    Item("bdm_uuid", lambda row: row[1].id, since=89),
)
VOLUME = View(*_SHOWN, Item("device", lambda row: row[1].device or OMIT, optional=True))
MADE = View(*_SHOWN, Item("device", lambda row: row[1].device))


async def index(call: Call) -> dict[str, Any]:
    instance = await server_of(call)
    skip = whole_number("offset", call.query.last("offset") or "0")
    most = call.cloud.settings.number("max_limit", "api")
    limit = min(whole_number("limit", call.query.last("limit") or "0") or most, most)  # 0: as many as may be
    render = VOLUME.bind(call)
    page = instance.volumes[skip : skip + limit]
    return {"volumeAttachments": [render((instance.uuid, each)) for each in page]}


async def show(call: Call) -> dict[str, Any]:
    instance = await server_of(call)
    found = of_volume(instance, call.path["id"])
    return {"volumeAttachment": VOLUME.bind(call)((instance.uuid, found))}


def _check_shelved(call: Call, instance: Instance) -> None:
    """Raises Conflict for one that is shelved, below the microversion that knows of such."""
    if call.version < 20 and instance.vm_state in SHELVED:
        raise Conflict(
            f"Instance {instance.uuid} is {instance.vm_state}: its volumes are attached and detached with "
            "microversion 2.20."
        )


async def attach(call: Call) -> dict[str, Any] | None:
    """Answered when the volume is the server's, or when it is clear that it will not be; the rest goes on.

    From 2.101 on only what is seen at once is told: a volume service that is slow holds up nobody.
    """
    body: schema.Attach = call.body
    instance = await server_of(call)
    _check_shelved(call, instance)
    wanted: Any = body.wanted
    wish = Wish(
        volume_id=wanted.volume_id,
        device=wanted.device,
        tag=wanted.tag,
        delete_on_termination=bool(wanted.delete_on_termination),
        multiattach=call.version >= 60,
    )
    action, made = await attach_volume.submit(call.cloud, call.context, instance.uuid, wish)
    if call.version >= 101:
        return None
    await _past(call, action, "reserve", instance)
    return {"volumeAttachment": MADE.bind(call)((instance.uuid, made))}


async def _past(call: Call, action: int, step: str, instance: Instance) -> None:
    """Raises what the volume service has refused; what it has not said in good time is not waited for."""
    patience = call.cloud.settings.number("rpc_response_timeout")
    error = await passed(call.cloud.db, call.cloud.clock, action, step, patience)
    if error is not None:
        raise _refusal(error, instance)


def _refusal(error: StoredError, instance: Instance) -> Exception:
    if error.cancelled:
        return Conflict(f"Instance {instance.uuid} was deleted or moved meanwhile.")
    kind = getattr(errors, error.kind, None)
    if kind is Conflict:
        return Invalid(error.message)  # as Nova has it of a volume in the wrong state
    if isinstance(kind, type) and issubclass(kind, Refused):
        return kind(error.message)
    return Unsuccessful(f"The volume service did not do what instance {instance.uuid} needs: {error.message}")


async def detach(call: Call) -> None:
    instance = await server_of(call)
    _check_shelved(call, instance)
    action = await detach_volume.submit(call.cloud, call.context, instance.uuid, call.path["id"])
    await _past(call, action, "begin", instance)


async def update(call: Call) -> None:
    """What becomes of the volume when the server is deleted.  It is not exchanged for another one here."""
    body: schema.Change = call.body
    changed: Any = body.changed
    volume_id = call.path["id"]
    if call.version < 85 or changed.volume_id != volume_id:
        call.allow(f"{RULE}swap", {})
        of_volume(await server_of(call), volume_id)
        raise Invalid(
            f"Volume {volume_id} cannot be swapped for another one here: attach volume {changed.volume_id}, "
            "copy what is on the old one, and detach that."
        )

    def write(tx: Tx) -> None:
        instance = in_tx(tx, call.context, call.path["server_id"])
        call.allow(f"{RULE}update", target_of(instance))
        known = of_volume(instance, volume_id)
        if instance.task_state is not None:
            raise Conflict(
                f"Cannot change volumes of instance {instance.uuid} while it is in task_state "
                f"{instance.task_state}"
            )
        _check_same(instance, known, changed)
        if changed.delete_on_termination is not None:
            _set(tx, instance, volume_id, changed.delete_on_termination)

    await call.cloud.db.write(write)


def _check_same(instance: Instance, known: Attachment, changed: Any) -> None:
    """Raises Invalid for a change of what cannot change."""
    now = {
        "id": known.volume_id,
        "serverId": instance.uuid,
        "device": known.device,
        "tag": known.tag,
    }
    asked = {
        "id": changed.id,
        "serverId": changed.server_id,
        "device": changed.device,
        "tag": changed.tag,
    }
    for name, value in asked.items():
        if value is not None and value != now[name]:
            raise Invalid(f"The {name} property of a volume attachment is not mutable: it is {now[name]}.")


def _set(tx: Tx, instance: Instance, volume_id: str, deleted: bool) -> None:
    if not instances.update(tx, instance.uuid, expect_task=None):
        raise Conflict(f"Instance {instance.uuid} is being changed by another request; repeat.")
    now = instances.locked(tx, instance.uuid)
    if now is None:
        raise NotFound(f"Instance {instance.uuid} could not be found.")
    one = of_volume(now, volume_id)
    changed = replace(one, delete_on_termination=deleted)
    put(tx, now, tuple(changed if each.id == one.id else each for each in now.volumes))


_PATH = "/servers/{server_id}/os-volume_attachments"
_ONE = f"{_PATH}/{{id}}"

ROUTES = (
    Route("GET", _PATH, index, f"{RULE}index", query=schema.LIST, late=True),
    Route("POST", _PATH, attach, f"{RULE}create", until=100, body=schema.Attach, late=True),
    Route("POST", _PATH, attach, f"{RULE}create", since=101, success=202, body=schema.Attach, late=True),
    Route("GET", _ONE, show, f"{RULE}show", late=True),
    Route("PUT", _ONE, update, f"{RULE}swap", success=202, body=schema.Change, late=True),
    Route("DELETE", _ONE, detach, f"{RULE}delete", success=202, late=True),
)
