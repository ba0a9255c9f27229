"""/v2.0/quotas."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from kilonova.db import network_ledger as ledger
from kilonova.model.context import RequestContext
from kilonova.services.network import api_fields as f
from kilonova.services.network.api_resource import Handler
from kilonova.services.network.builtin import BuiltinNetwork
from kilonova.services.network.faults import HTTPBadRequest, HTTPNotFound, PolicyNotAuthorized
from kilonova.services.network.work import Work, privileged
from kilonova.web.json import JsonResponse, read_object

_LIMIT = f.whole(-1, 2**31 - 1)


class Quotas:
    """Limits of projects: shown to the project and to administrators, set by administrators."""

    def __init__(self, network: BuiltinNetwork) -> None:
        self.network = network
        self.defaults = network.options.quotas

    def _check(self, context: RequestContext, project_id: str, change: bool) -> None:
        if privileged(context) or (not change and project_id == context.project_id):
            return
        raise PolicyNotAuthorized(f"The quota of project {project_id} is for administrators.")

    def _limits(self, work: Work, project_id: str) -> dict[str, int]:
        return {**self.defaults, **ledger.limits(work.tx, project_id)}

    async def index(self, request: Request, context: RequestContext) -> Response:
        """The projects that have limits of their own."""
        if not privileged(context):
            raise PolicyNotAuthorized("(rule:get_quota) is disallowed by policy")
        found = await self.network.read(lambda work: ledger.all_limits(work.tx))
        quotas = [
            {"tenant_id": project_id, "project_id": project_id, **self.defaults, **limits}
            for project_id, limits in found.items()
        ]
        return JsonResponse({"quotas": quotas})

    async def show(self, request: Request, context: RequestContext) -> Response:
        project_id = request.path_params["project"]
        self._check(context, project_id, change=False)
        return JsonResponse({"quota": await self.network.read(lambda work: self._limits(work, project_id))})

    async def show_default(self, request: Request, context: RequestContext) -> Response:
        self._check(context, request.path_params["project"], change=False)
        return JsonResponse({"quota": self.defaults})

    async def show_details(self, request: Request, context: RequestContext) -> Response:
        project_id = request.path_params["project"]
        self._check(context, project_id, change=False)

        def read(work: Work) -> dict[str, Any]:
            used = ledger.usages(work.tx, project_id)
            return {
                name: {"limit": limit, "used": used.get(name, 0), "reserved": 0}
                for name, limit in self._limits(work, project_id).items()
            }

        return JsonResponse({"quota": await self.network.read(read)})

    async def update(self, request: Request, context: RequestContext) -> Response:
        project_id = request.path_params["project"]
        self._check(context, project_id, change=True)
        values = self._read((await read_object(request)).get("quota"))

        def write(work: Work) -> dict[str, int]:
            for name, limit in values.items():
                ledger.set_limit(work.tx, project_id, name, limit)
            return self._limits(work, project_id)

        return JsonResponse({"quota": await self.network.write(write)})

    def _read(self, given: Any) -> dict[str, int]:
        if not isinstance(given, dict):
            raise HTTPBadRequest("Body contains invalid data: 'quota' with an object is expected.")
        values: dict[str, int] = {}
        for name, limit in given.items():
            if name in ("tenant_id", "project_id", "force", "check_limit"):
                continue
            if name not in self.defaults:
                raise HTTPBadRequest(f"Unrecognized attribute(s) '{name}'")
            try:
                values[name] = _LIMIT(limit)
            except ValueError as error:
                raise HTTPBadRequest(f"Invalid input for {name}. Reason: {error}.") from error
        return values

    async def delete(self, request: Request, context: RequestContext) -> Response:
        project_id = request.path_params["project"]
        self._check(context, project_id, change=True)
        if not await self.network.write(lambda work: ledger.reset_limits(work.tx, project_id)):
            raise HTTPNotFound(f"Quota for tenant {project_id} could not be found.")
        return Response(status_code=204)

    def routes(self, guard: Any) -> list[Route]:
        one = "/v2.0/quotas/{project}"
        table: list[tuple[str, str, Handler]] = [
            ("/v2.0/quotas", "GET", self.index),
            (one, "GET", self.show),
            (one, "PUT", self.update),
            (one, "DELETE", self.delete),
            (one + "/default", "GET", self.show_default),
            (one + "/details", "GET", self.show_details),
            (one + "/details.json", "GET", self.show_details),
        ]
        return [Route(path, guard(handler), methods=[method]) for path, method, handler in table]
