"""What belongs to a server on the network's and the volumes' side: addresses, ports, groups, volumes."""

from __future__ import annotations

from typing import Any

from kilonova.api.call import Call
from kilonova.api.query import NO_KEYS, Keys
from kilonova.api.routes import Route
from kilonova.api.server_found import server_of
from kilonova.api.shape import Span
from kilonova.api.view import Item, View
from kilonova.errors import NotFound
from kilonova.model.instance import Instance
from kilonova.model.port import Vif


def addresses_of(instance: Instance) -> dict[str, list[dict[str, Any]]]:
    """Network name -> addresses."""
    result: dict[str, list[dict[str, Any]]] = {}
    for vif in instance.vifs:
        shown = result.setdefault(vif.network_name, [])
        shown.extend({"version": ip.version, "addr": ip.address} for ip in vif.fixed_ips)
    return result


async def index(call: Call) -> dict[str, Any]:
    return {"addresses": addresses_of(await server_of(call))}


async def show(call: Call) -> dict[str, Any]:
    addresses = addresses_of(await server_of(call))
    label = call.path["id"]
    if label not in addresses:
        raise NotFound("Instance is not a member of specified network")
    return {label: addresses[label]}


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


async def interfaces(call: Call) -> dict[str, Any]:
    vifs = await _interfaces(call)
    render = INTERFACE.bind(call)
    return {"interfaceAttachments": [render(vif) for vif in vifs]}


async def interface(call: Call) -> dict[str, Any]:
    port_id = call.path["id"]
    for vif in await _interfaces(call):
        if vif.port_id == port_id:
            return {"interfaceAttachment": INTERFACE.bind(call)(vif)}
    raise NotFound(f"Instance {call.path['server_id']} does not have a port with id {port_id}")


async def volumes(call: Call) -> dict[str, Any]:
    """This cloud has no volumes yet, so that a server has none."""
    await server_of(call)
    return {"volumeAttachments": []}


async def volume(call: Call) -> dict[str, Any]:
    instance = await server_of(call)
    raise NotFound(f"Volume {call.path['id']} is not attached to instance {instance.uuid}.")


_SERVER = "/servers/{server_id}"
_RULE = "os_compute_api:"
_LIMITS = Keys({"limit": Span(), "offset": Span()}, strict_since=75)
ROUTES = (
    Route("GET", f"{_SERVER}/ips", index, f"{_RULE}ips:index", query=NO_KEYS, late=True),
    Route("GET", f"{_SERVER}/ips/{{id}}", show, f"{_RULE}ips:show", query=NO_KEYS, late=True),
    Route(
        "GET",
        f"{_SERVER}/os-interface",
        interfaces,
        f"{_RULE}os-attach-interfaces:list",
        query=NO_KEYS,
        late=True,
    ),
    Route(
        "GET",
        f"{_SERVER}/os-interface/{{id}}",
        interface,
        f"{_RULE}os-attach-interfaces:show",
        query=NO_KEYS,
        late=True,
    ),
    Route(
        "GET",
        f"{_SERVER}/os-volume_attachments",
        volumes,
        f"{_RULE}os-volumes-attachments:index",
        query=_LIMITS,
        late=True,
    ),
    Route(
        "GET",
        f"{_SERVER}/os-volume_attachments/{{id}}",
        volume,
        f"{_RULE}os-volumes-attachments:show",
        late=True,
    ),
)
