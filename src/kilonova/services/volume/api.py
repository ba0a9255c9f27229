"""The volume service over HTTP: the part of Cinder's v3 API that clients of a compute cloud use."""

from __future__ import annotations

import re
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from kilonova.errors import Conflict, Invalid, NotFound, OverQuota, Refused, Unauthenticated
from kilonova.model.context import RequestContext
from kilonova.services.volume import (
    api_actions,
    api_attachments,
    api_others,
    api_quotas,
    api_types,
    api_volumes,
    views,
)
from kilonova.services.volume.answers import cinder_status, render
from kilonova.services.volume.builtin import BuiltinVolumes
from kilonova.services.volume.call import Call, Handler, check_role
from kilonova.services.volume.microversion import HEADER, negotiate
from kilonova.web.auth import TokenValidator, authenticate
from kilonova.web.json import JsonResponse
from kilonova.web.requests import RequestIdMiddleware, answering_errors

ROUTES = (
    *api_volumes.ROUTES,
    *api_actions.ROUTES,
    *api_attachments.ROUTES,
    *api_types.ROUTES,
    *api_quotas.ROUTES,
    *api_others.ROUTES,
)
_FIRST_WORDS = {path.split("/")[2] for path, *_ in ROUTES}
_PROJECT = re.compile(r"/v3/([^/]+)(/.+)\Z")


class _WithoutProject:
    """Takes the project's id, which may stand behind ``/v3``, out of the path: ``scope["url_project"]``."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path = scope["path"]
            found = _PROJECT.match(path)
            scope = {**scope, "asked_path": path, "url_project": None}
            if found is not None and found[1] not in _FIRST_WORDS:
                scope |= {"path": "/v3" + found[2], "url_project": found[1]}
        await self._app(scope, receive, send)


class _Endpoints:
    """Makes endpoints of handlers: who calls, by which microversion, and what errors are called."""

    def __init__(self, service: BuiltinVolumes, validator: TokenValidator, root_url: str) -> None:
        self._service = service
        self._validator = validator
        self._root_url = root_url

    def route(self, path: str, method: str, handler: Handler, since: int) -> Route:
        async def endpoint(request: Request) -> Response:
            version = 0
            try:
                version = negotiate(request)
                answer = await self._answered(request, handler, version, since)
            except Refused as error:
                if not isinstance(error, (Conflict, OverQuota, Invalid)) and cinder_status(error) != 501:
                    raise
                answer = render(cinder_status(error), str(error))
            return _with_version(answer, version)

        return Route(path, answering_errors(endpoint, render), methods=[method])

    async def _answered(self, request: Request, handler: Handler, version: int, since: int) -> Response:
        context = await authenticate(request, self._validator, request.scope["request_id"])
        if version < since:
            raise NotFound("The resource could not be found.")
        if request.scope["url_project"] not in (None, context.project_id):
            raise Invalid("Malformed request url: its project is not that of the token.")
        by_service = await self._by_service(request, context)
        call = Call(request, context, version, self._service, self._root_url, by_service)
        check_role(call, writes=request.method not in ("GET", "HEAD"))
        return await handler(call)

    async def _by_service(self, request: Request, context: RequestContext) -> bool:
        """Whether the caller is an administrator or a service, or another service speaks for him."""
        if not context.roles.isdisjoint(("admin", "service")):
            return True
        token = request.headers.get("x-service-token")
        if not token:
            return False
        try:
            service = await self._validator.validate(token, context.request_id)
        except Unauthenticated:
            return False  # as keystonemiddleware has it: then it is the user alone who asks
        return "service" in service.roles


def _with_version(answer: Response, version: int) -> Response:
    answer.headers[HEADER] = f"volume 3.{version}"
    answer.headers["Vary"] = HEADER
    return answer


def app(volumes: BuiltinVolumes, validator: TokenValidator, root_url: str) -> ASGIApp:
    """The service at ``root_url``; that has no ``/v3`` at its end."""
    endpoints = _Endpoints(volumes, validator, root_url)

    async def versions(request: Request) -> Response:
        return JsonResponse(views.versions(root_url), 300 if request.url.path == "/" else 200)

    routes = [
        *(Route(path, versions) for path in ("/", "/v3", "/v3/")),
        *(endpoints.route(*each) for each in ROUTES),
    ]
    service = Starlette(routes=routes, exception_handlers={HTTPException: _unrouted})
    service.router.redirect_slashes = False
    return RequestIdMiddleware(_WithoutProject(service))


async def _unrouted(request: Request, error: Exception) -> Response:
    """No such path, or not this method."""
    assert isinstance(error, HTTPException)
    headers: Any = error.headers or {}
    answer = render(error.status_code, f"{request.method} {request.url.path}: {error.detail}.")
    answer.headers.update(headers)
    return answer
