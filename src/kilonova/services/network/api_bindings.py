"""/v2.0/ports/{id}/bindings: the hosts to which a port is bound, for other services and administrators."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from kilonova.db import hosts
from kilonova.db import network_bindings as db
from kilonova.db.network_records import Binding, Port
from kilonova.model.context import RequestContext
from kilonova.services.network import api_fields as f
from kilonova.services.network import bindings
from kilonova.services.network.api_fields import REQUIRED, Field, read_values
from kilonova.services.network.api_ports import VNIC_TYPES
from kilonova.services.network.api_resource import Guard
from kilonova.services.network.builtin import BuiltinNetwork
from kilonova.services.network.faults import (
    HTTPBadRequest,
    PolicyNotAuthorized,
    PortBindingAlreadyActive,
    PortBindingAlreadyExists,
    PortBindingNotFound,
)
from kilonova.services.network.ports import update_port, visible_port
from kilonova.services.network.work import Work, privileged
from kilonova.web.json import JsonResponse, read_object

PATH = "/v2.0/ports/{id}/bindings"
_PROFILE = Field("profile", f.optional(f.profile))
_VNIC_TYPE = Field("vnic_type", f.optional(f.one_of(*VNIC_TYPES)))
_NEW = {"host": Field("host", f.string(255), REQUIRED), "profile": _PROFILE, "vnic_type": _VNIC_TYPE}
_CHANGED = {"profile": _PROFILE, "vnic_type": _VNIC_TYPE}


class Bindings:
    """The five methods."""

    def __init__(self, network: BuiltinNetwork) -> None:
        self.network = network

    async def index(self, request: Request, context: RequestContext) -> Response:
        _check(context, "get_port_binding")

        def read(work: Work) -> list[dict[str, Any]]:
            port = visible_port(work, context, request.path_params["id"])
            further = [_view(port, each, "INACTIVE") for each in db.of_port(work.tx, port.id)]
            return [*([_view(port, port, "ACTIVE")] if port.host else []), *further]

        views = await self.network.read(read)
        for name in ("host", "status", "vif_type", "vnic_type"):
            wanted = request.query_params.getlist(name)
            views = [view for view in views if not wanted or view[name] in wanted]
        fields = frozenset(request.query_params.getlist("fields"))
        shown = [{k: v for k, v in view.items() if not fields or k in fields} for view in views]
        return JsonResponse({"bindings": shown})

    async def create(self, request: Request, context: RequestContext) -> Response:
        _check(context, "create_port_binding")
        values = read_values(_NEW, await _entry(request), context, "binding", True)
        if not values["host"]:
            raise HTTPBadRequest("Invalid input for host. Reason: it cannot be empty.")

        def write(work: Work) -> dict[str, Any]:
            port = _port(work, context, request)
            if port.host == values["host"] or db.one(work.tx, port.id, values["host"]) is not None:
                raise PortBindingAlreadyExists(port.id, values["host"])
            known = hosts.show(work.tx, values["host"])
            new = bindings.new_binding(
                port,
                values["host"],
                values["vnic_type"] or port.vnic_type,
                {} if known is None else known.details,
                values["profile"] or {},
            )
            bindings.put(work, port, None, new)
            return _view(port, new, "INACTIVE")

        return JsonResponse({"binding": await self.network.write(write)}, 201)

    async def update(self, request: Request, context: RequestContext) -> Response:
        _check(context, "update_port_binding")
        values = read_values(_CHANGED, await _entry(request), context, "binding", False)
        host = request.path_params["host"]

        def write(work: Work) -> dict[str, Any]:
            port = _port(work, context, request)
            changes = {name: value for name, value in values.items() if value is not None}
            if port.host == host:
                port = update_port(work, context, port.id, changes)
                return _view(port, port, "ACTIVE")
            old = _found(work, port, host)
            new = bindings.new_binding(
                port,
                host,
                changes.get("vnic_type", port.vnic_type),
                old.vif_details,
                changes.get("profile", old.profile),
            )
            bindings.put(work, port, old, new)
            return _view(port, new, "INACTIVE")

        return JsonResponse({"binding": await self.network.write(write)})

    async def activate(self, request: Request, context: RequestContext) -> Response:
        _check(context, "activate")
        host = request.path_params["host"]

        def write(work: Work) -> dict[str, Any]:
            port = _port(work, context, request)
            if port.host == host:
                raise PortBindingAlreadyActive(port.id, host)
            port = bindings.activate_one(work, port, _found(work, port, host))
            return _view(port, port, "ACTIVE")

        return JsonResponse({"binding": await self.network.write(write)})

    async def delete(self, request: Request, context: RequestContext) -> Response:
        _check(context, "delete_port_binding")
        host = request.path_params["host"]

        def write(work: Work) -> None:
            port = visible_port(work, context, request.path_params["id"], lock=True)
            if port.host and port.host == host:
                update_port(work, context, port.id, {"host": ""})
                return
            if not bindings.remove_one(work, port, host):
                raise PortBindingNotFound(port.id, host)

        await self.network.write(write)
        return Response(status_code=204)

    def routes(self, guard: Guard) -> list[Route]:
        one = PATH + "/{host}"
        return [
            Route(PATH, guard(self.index), methods=["GET"]),
            Route(PATH, guard(self.create), methods=["POST"]),
            Route(one, guard(self.update), methods=["PUT"]),
            Route(one, guard(self.delete), methods=["DELETE"]),
            Route(one + "/activate", guard(self.activate), methods=["PUT"]),
        ]


def _check(context: RequestContext, rule: str) -> None:
    if not privileged(context):
        raise PolicyNotAuthorized(f"(rule:{rule}) is disallowed by policy")


async def _entry(request: Request) -> dict[str, Any]:
    body = await read_object(request)
    entry = body.get("binding")
    if not isinstance(entry, dict) or len(body) != 1:
        raise HTTPBadRequest("Body contains invalid data: 'binding' with an object is expected.")
    return entry


def _port(work: Work, context: RequestContext, request: Request) -> Port:
    """The port, locked; one of a server, because no other moves."""
    port = visible_port(work, context, request.path_params["id"], lock=True)
    if not port.device_owner.startswith("compute:"):
        raise HTTPBadRequest(f"Port {port.id} is not a server's: it has no further bindings.")
    return port


def _found(work: Work, port: Port, host: str) -> Binding:
    found = db.one(work.tx, port.id, host)
    if found is None:
        raise PortBindingNotFound(port.id, host)
    return found


def _view(port: Port, at: Port | Binding, status: str) -> dict[str, Any]:
    return {
        "host": at.host,
        "vif_type": at.vif_type,
        "vif_details": at.vif_details,
        "vnic_type": port.vnic_type,
        "profile": at.profile,
        "status": status,
        "project_id": port.project_id,
    }
