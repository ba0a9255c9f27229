"""Placement's HTTP API: providers, inventories, allocations and their candidates, traits, classes, usages."""

from __future__ import annotations

from http import HTTPStatus

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kilonova.db import placement_providers as providers
from kilonova.db.engine import UniqueViolation
from kilonova.errors import Refused
from kilonova.model.context import RequestContext
from kilonova.services.placement import (
    api_allocations,
    api_candidates,
    api_inventories,
    api_names,
    api_providers,
    api_reshaper,
)
from kilonova.services.placement.builtin import BuiltinPlacement
from kilonova.services.placement.call import (
    MAX,
    MIN,
    At,
    BadQuery,
    Call,
    Duplicated,
    MissingValue,
    NotAcceptable,
    Routes,
    UnknownProvider,
    WrongMediaType,
    check_path,
    negotiate,
)
from kilonova.web.auth import TokenValidator, authenticate
from kilonova.web.json import JsonResponse
from kilonova.web.requests import RequestIdMiddleware, answering_errors, status_of

HEADER = "openstack-api-version"
STATUS: dict[type[BaseException], int] = {NotAcceptable: 406, WrongMediaType: 415}
CODES: dict[type[BaseException], str] = {
    providers.ConcurrentUpdate: "placement.concurrent_update",
    providers.DuplicateName: "placement.duplicate_name",
    providers.InventoryInUse: "placement.inventory.inuse",
    providers.ProviderInUse: "placement.resource_provider.inuse",
    providers.HasChildren: "placement.resource_provider.cannot_delete_parent",
    Duplicated: "placement.query.duplicate_key",
    BadQuery: "placement.query.bad_value",
    UnknownProvider: "placement.resource_provider.not_found",
    MissingValue: "placement.query.missing_value",
}
ROUTES: Routes = {
    **api_providers.ROUTES,
    **api_inventories.ROUTES,
    **api_allocations.ROUTES,
    **api_candidates.ROUTES,
    **api_names.ROUTES,
    **api_reshaper.ROUTES,
}
NOBODY = RequestContext(request_id="", user_id="")
CODES_SINCE = 23
_NO_ROUTE = {
    404: "The resource could not be found.",
    405: "The method is not allowed for this resource.",
}


async def versions(call: Call) -> Response:
    """Never needs a token."""
    one = {
        "id": "v1.0",
        "min_version": f"1.{MIN}",
        "max_version": f"1.{MAX}",
        "status": "CURRENT",
        "links": [{"rel": "self", "href": ""}],
    }
    return call.answer({"versions": [one]})


def app(placement: BuiltinPlacement, validator: TokenValidator) -> ASGIApp:
    """The ASGI app."""
    every: Routes = {"/": {"GET": At(versions)}, **ROUTES}
    routes = [
        Route(path, _Endpoint(placement, validator, methods).answer, methods=sorted(methods))
        for path, methods in every.items()
    ]
    return RequestIdMiddleware(_Front(Router(routes, redirect_slashes=False)))


class _Endpoint:
    """What is at one path."""

    def __init__(
        self, placement: BuiltinPlacement, validator: TokenValidator, methods: dict[str, At]
    ) -> None:
        self._placement = placement
        self._validator = validator
        self._methods = methods

    async def answer(self, request: Request) -> Response:
        """What answers every error; those of ours in placement's shape with their codes."""

        async def refusing(request: Request) -> Response:
            try:
                return await self._handle(request)
            except (Refused, HTTPException) as error:
                return fault(error, request.scope)

        def render(status: int, text: str) -> Response:
            return fault(HTTPException(status, text), request.scope)

        return await answering_errors(refusing, render)(request)

    async def _handle(self, request: Request) -> Response:
        context = NOBODY
        if request.scope["path"] != "/":
            context = await authenticate(request, self._validator, request.scope["request_id"])
        version = request.scope["version"]
        found = self._methods[request.method if request.method in self._methods else "GET"]
        if version < found.since:
            raise HTTPException(404 if _is_new(self._methods, version) else 405)
        try:
            return await found.handler(Call(self._placement, request, context, version))
        except UniqueViolation as error:
            raise providers.ConcurrentUpdate("Somebody else has just changed this: repeat.") from error


def _is_new(methods: dict[str, At], version: int) -> bool:
    """Whether the whole path is newer than the request."""
    return all(version < each.since for each in methods.values())


def fault(error: BaseException, scope: Scope) -> Response:
    """Placement's shape of an error."""
    if isinstance(error, HTTPException):
        status, text = error.status_code, _NO_ROUTE.get(error.status_code, error.detail)
    else:
        status, text = STATUS.get(type(error)) or status_of(error), str(error)
    inner = {
        "status": status,
        "title": HTTPStatus(status).phrase,
        "detail": text,
        "request_id": scope["request_id"],
    }
    if scope["version"] >= CODES_SINCE:
        inner["code"] = CODES.get(type(error), "placement.undefined_code")
    if isinstance(error, NotAcceptable):
        inner |= {"min_version": f"1.{MIN}", "max_version": f"1.{MAX}"}
    return JsonResponse({"errors": [inner]}, status)


class _Front:
    """Negotiates the microversion and says it in every answer; answers what has no route."""

    def __init__(self, router: Router) -> None:
        self._router = router

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = "/" + scope.get("path", "/").strip("/")
        inner = {**scope, "path": path, "root_path": "", "app": self, "version": MIN}

        async def with_version(message: Message) -> None:
            if message["type"] == "http.response.start":
                said = f"placement 1.{inner['version']}".encode()
                more = [(HEADER.encode(), said), (b"vary", HEADER.encode())]
                message["headers"] = [*message["headers"], *more]
            await send(message)

        try:
            inner["version"] = negotiate(Request(inner).headers.get(HEADER))
            check_path(path)
            await self._router(inner, receive, with_version)
        except HTTPException as error:
            answer = fault(error, inner)
            answer.headers.update(error.headers or {})
            await answer(inner, receive, with_version)
        except Refused as error:
            await fault(error, inner)(inner, receive, with_version)
