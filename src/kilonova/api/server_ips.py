"""``/servers/{id}/ips``: a server's addresses."""

from __future__ import annotations

from typing import Any

from kilonova.api.call import Call
from kilonova.api.query import NO_KEYS
from kilonova.api.routes import Route
from kilonova.api.server_found import server_of
from kilonova.errors import NotFound
from kilonova.model.instance import Instance


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


_SERVER = "/servers/{server_id}"
_RULE = "os_compute_api:"
ROUTES = (
    Route("GET", f"{_SERVER}/ips", index, f"{_RULE}ips:index", query=NO_KEYS, late=True),
    Route("GET", f"{_SERVER}/ips/{{id}}", show, f"{_RULE}ips:show", query=NO_KEYS, late=True),
)
