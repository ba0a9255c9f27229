"""The network API, version 2.0: what Neutron's clients need."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import structlog
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from kilonova import errors
from kilonova.services.network.api_bindings import Bindings
from kilonova.services.network.api_groups import GROUP, RULE
from kilonova.services.network.api_networks import NETWORK, SUBNET
from kilonova.services.network.api_others import Others
from kilonova.services.network.api_ports import PORT
from kilonova.services.network.api_quotas import Quotas
from kilonova.services.network.api_resource import Handler, Handlers
from kilonova.services.network.api_tags import Tags
from kilonova.services.network.builtin import BuiltinNetwork
from kilonova.web.auth import TokenValidator, authenticate
from kilonova.web.json import JsonResponse
from kilonova.web.requests import RequestIdMiddleware, status_of, unexpected

log = structlog.get_logger("kilonova.network.api")

RESOURCES = (NETWORK, SUBNET, PORT, GROUP, RULE)

_PLAIN_TYPES: tuple[tuple[type[Exception], str], ...] = (
    (errors.TooLarge, "HTTPRequestEntityTooLarge"),
    (errors.Invalid, "HTTPBadRequest"),
    (errors.Unauthenticated, "HTTPUnauthorized"),
    (errors.Forbidden, "HTTPForbidden"),
    (errors.NotFound, "HTTPNotFound"),
    (errors.Conflict, "HTTPConflict"),
)
"""Type names for errors that have none of their own."""


def app(network: BuiltinNetwork, validator: TokenValidator, root_url: str) -> ASGIApp:
    """The API as an ASGI application.  ``root_url`` is how clients reach it, without a slash at its end."""
    root_url = root_url.rstrip("/")

    def guard(handler: Handler) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            try:
                context = await authenticate(request, validator, request.scope["request_id"])
                return await handler(request, context)
            except Exception as error:  # noqa: BLE001 - answered as a fault, and logged if it is ours
                return _answer(request, error)

        return endpoint

    routes = [*_roots(root_url)]
    routes += Others(network).routes(guard)
    routes += Quotas(network).routes(guard)
    for resource in RESOURCES:
        routes += Handlers(resource, network, root_url).routes(guard)
        routes += Tags(resource, network).routes(guard)
    routes += Bindings(network).routes(guard)
    handlers = {HTTPException: _no_route}
    return RequestIdMiddleware(
        Starlette(routes=routes, exception_handlers=handlers)  # type: ignore[arg-type]
    )


def _answer(request: Request, error: Exception) -> Response:
    """The error as Neutron puts it; faults of ours are logged, and their inside is not shown."""
    status = getattr(error, "status", None) or status_of(error)
    if status >= 500:
        log.error(
            "request failed",
            path=request.url.path,
            request_id=request.scope.get("request_id"),
            error=repr(error),
            exc_info=status == 500,
        )
    text = str(error) if status != 500 else unexpected(error)
    return _fault(status, _type_of(error), text)


def _type_of(error: Exception) -> str:
    if type(error).__module__ != errors.__name__:
        return type(error).__name__ if isinstance(error, errors.KilonovaError) else "HTTPInternalServerError"
    for kind, name in _PLAIN_TYPES:
        if isinstance(error, kind):
            return name
    return "HTTPInternalServerError"


def _fault(status: int, kind: str, text: str) -> Response:
    body: dict[str, Any] = {"NeutronError": {"type": kind, "message": text, "detail": ""}}
    return JsonResponse(body, status)


async def _no_route(request: Request, error: HTTPException) -> Response:
    if error.status_code == 405:
        response = _fault(405, "HTTPMethodNotAllowed", f"{request.method} is not allowed here.")
        response.headers.update(error.headers or {})
        return response
    return _fault(error.status_code, "HTTPNotFound", "The resource could not be found.")


def _roots(root_url: str) -> list[Route]:
    """Version documents, which need no token."""
    link = [{"rel": "self", "href": f"{root_url}/v2.0/"}]
    versions = {"versions": [{"id": "v2.0", "status": "CURRENT", "links": link}]}
    resources = {
        "resources": [
            {
                "name": resource.name,
                "collection": resource.plural,
                "links": [{"rel": "self", "href": root_url + resource.path}],
            }
            for resource in RESOURCES
        ]
    }

    async def root(request: Request) -> Response:
        return JsonResponse(versions)

    async def version(request: Request) -> Response:
        return JsonResponse(resources)

    return [
        Route("/", root, methods=["GET"]),
        Route("/v2.0", version, methods=["GET"]),
        Route("/v2.0/", version, methods=["GET"]),
    ]
