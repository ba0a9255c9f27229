"""``/servers/{id}/os-interface``: a server's ports; and the old actions that give them more addresses."""

from __future__ import annotations

from typing import Any

from kilonova import errors
from kilonova.api.call import Call
from kilonova.api.faults import Unsuccessful
from kilonova.api.query import NO_KEYS
from kilonova.api.routes import Route
from kilonova.api.schema import server_interfaces as schema
from kilonova.api.server_found import server_of, target_of
from kilonova.api.view import Item, View
from kilonova.errors import Conflict, Invalid, NotFound, Refused
from kilonova.journal.ending import ended
from kilonova.journal.model import StoredError
from kilonova.model.instance import Instance
from kilonova.model.port import Vif
from kilonova.operations import attach_interface, detach_interface
from kilonova.operations.attach_interface import AttachParams

SHOW = "os_compute_api:os-attach-interfaces:show"
EXTERNAL = "network:attach_external_network"

INTERFACE = View(
    Item("net_id", lambda vif: vif.network_id),
    Item("port_id", lambda vif: vif.port_id),
    Item("mac_addr", lambda vif: vif.mac),
    Item("port_state", lambda vif: "DOWN" if vif.vif_type == "unbound" else "ACTIVE"),
    Item(
        "fixed_ips",
        lambda vif: [{"subnet_id": ip.subnet_id, "ip_address": ip.address} for ip in vif.fixed_ips],
    ),
    Item("tag", lambda vif: vif.tag, since=70),
)


async def _interfaces(call: Call) -> tuple[Vif, ...]:
    instance = await server_of(call)
    return await call.cloud.network.vifs(instance.uuid)


async def index(call: Call) -> dict[str, Any]:
    vifs = await _interfaces(call)
    render = INTERFACE.bind(call)
    return {"interfaceAttachments": [render(vif) for vif in vifs]}


async def show(call: Call) -> dict[str, Any]:
    return _shown(call, await _interfaces(call), call.path["id"])


def _shown(call: Call, vifs: tuple[Vif, ...], port_id: str) -> dict[str, Any]:
    for vif in vifs:
        if vif.port_id == port_id:
            return {"interfaceAttachment": INTERFACE.bind(call)(vif)}
    raise NotFound(f"Instance {call.path['server_id']} does not have a port with id {port_id}")


async def attach(call: Call) -> dict[str, Any]:
    """Answered when the guest has it, or when it is clear that it will not."""
    body: schema.Attach = call.body
    instance = await server_of(call)
    call.allow(SHOW, target_of(instance))
    params = _params(call, body.wanted or schema.Wanted())
    action = await attach_interface.submit(call.cloud, call.context, instance.uuid, params)
    await _end_of(call, action, instance)
    return _shown(call, await call.cloud.network.vifs(instance.uuid), params.port_id)


def _params(call: Call, wanted: schema.Wanted) -> AttachParams:
    network, port = getattr(wanted, "net_id", None), getattr(wanted, "port_id", None)
    ips, tag = getattr(wanted, "fixed_ips", None), getattr(wanted, "tag", None)
    if network and port:
        raise Invalid("Must not input both network_id and port_id")
    if ips and not network:
        raise Invalid("Must input network_id when request IP address")
    return AttachParams(
        port_id=port or call.cloud.new_uuid(),
        taken=port is not None,
        network_id=network,
        fixed_ip=ips[0].ip_address if ips else None,
        tag=tag,
        privileged=call.context.is_admin,
        external=call.may(EXTERNAL),
    )


async def _end_of(call: Call, action: int, instance: Instance) -> None:
    """Raises what the attach has failed with: the request's own fault, or that it did not come about."""
    patience = call.cloud.settings.number("rpc_response_timeout")
    try:
        error = await ended(call.cloud.db, call.cloud.clock, action, patience)
    except TimeoutError:
        raise Unsuccessful(
            f"The interface is not attached to instance {instance.uuid} after {patience} seconds; "
            "it is being tried still: look at the server's actions."
        ) from None
    if error is not None:
        raise _refusal(error, instance)


def _refusal(error: StoredError, instance: Instance) -> Exception:
    if error.cancelled:
        return Conflict(f"Instance {instance.uuid} was deleted or moved while the interface was attached.")
    kind = getattr(errors, error.kind, None)
    if isinstance(kind, type) and issubclass(kind, Refused):
        return kind(error.message)
    return Unsuccessful(f"Failed to attach network adapter device to {instance.uuid}: {error.message}")


async def detach(call: Call) -> None:
    instance = await server_of(call)
    await detach_interface.submit(call.cloud, call.context, instance.uuid, call.path["id"])


# ---- one address more or less, up to 2.43 ----


async def add_fixed_ip(call: Call) -> None:
    body: schema.AddFixedIp = call.body
    instance = await _unlocked(call)
    try:
        await call.cloud.network.add_fixed_ip(instance.uuid, body.add.network_id)
    except NotFound as error:
        raise Invalid(str(error)) from error


async def remove_fixed_ip(call: Call) -> None:
    body: schema.RemoveFixedIp = call.body
    instance = await _unlocked(call)
    try:
        await call.cloud.network.remove_fixed_ip(instance.uuid, body.remove.address)
    except NotFound as error:
        raise Invalid(str(error)) from error


async def _unlocked(call: Call) -> Instance:
    """The server, in whatever state it is.  Raises Conflict for one that is locked for the caller."""
    instance = await server_of(call)
    if instance.locked and not call.context.is_admin:
        raise Conflict(f"Instance {instance.uuid} is locked")
    return instance


_PATH = "/servers/{server_id}/os-interface"
_RULE = "os_compute_api:os-attach-interfaces:"
_MULTINIC = "os_compute_api:os-multinic:"
ACTION = "/servers/{server_id}/action"


ROUTES = (
    Route("GET", _PATH, index, f"{_RULE}list", query=NO_KEYS, late=True),
    Route("POST", _PATH, attach, f"{_RULE}create", body=schema.Attach, late=True),
    Route("GET", f"{_PATH}/{{id}}", show, SHOW, query=NO_KEYS, late=True),
    Route("DELETE", f"{_PATH}/{{id}}", detach, f"{_RULE}delete", success=202, late=True),
    Route(
        "POST",
        ACTION,
        add_fixed_ip,
        f"{_MULTINIC}add",
        until=43,
        success=202,
        action="addFixedIp",
        body=schema.AddFixedIp,
        late=True,
    ),
    Route(
        "POST",
        ACTION,
        remove_fixed_ip,
        f"{_MULTINIC}remove",
        until=43,
        success=202,
        action="removeFixedIp",
        body=schema.RemoveFixedIp,
        late=True,
    ),
)
