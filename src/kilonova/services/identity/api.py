"""The part of Keystone's API v3 that clients and services use, at the root and under /identity."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from http import HTTPStatus

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kilonova.errors import NotFound
from kilonova.model.context import RequestContext
from kilonova.services.identity import (
    api_assignments,
    api_catalog,
    api_domains,
    api_groups,
    api_project_tags,
    api_projects,
    api_roles,
    api_tokens,
    api_users,
)
from kilonova.services.identity.builtin import BuiltinIdentity
from kilonova.services.identity.call import Call, Handler, Routes, check_path
from kilonova.services.identity.catalog import configured
from kilonova.web.auth import authenticate
from kilonova.web.json import JsonResponse
from kilonova.web.requests import RequestIdMiddleware, answering_errors

PREFIX = "/identity"  # where DevStack has it, and where novaclient's tests go
NOBODY = RequestContext(request_id="", user_id="")
PUBLIC: tuple[Routes, ...] = (api_tokens.PUBLIC, api_users.PUBLIC)
ROUTES: tuple[Routes, ...] = (
    api_tokens.ROUTES,
    api_catalog.ROUTES,
    api_domains.ROUTES,
    api_projects.ROUTES,
    api_project_tags.ROUTES,
    api_users.ROUTES,
    api_groups.ROUTES,
    api_roles.ROUTES,
    api_assignments.ROUTES,
)


def app(identity: BuiltinIdentity, urls: dict[str, str], root_url: str) -> ASGIApp:
    """The ASGI app.  ``urls`` are those of the cloud's services by type; ``root_url`` is where this app is
    reached."""
    root = root_url.rstrip("/")
    known = configured(urls)

    def authenticated(handler: Handler) -> Handler:
        async def answer(call: Call) -> Response:
            call.context = await authenticate(call.request, identity, call.request.scope["request_id"])
            return await handler(call)

        return answer

    by_path: Routes = {}
    for routes in PUBLIC:
        for path, handlers in routes.items():
            by_path.setdefault(path, {}).update(handlers)
    for routes in ROUTES:
        for path, handlers in routes.items():
            found = by_path.setdefault(path, {})
            found.update({method: authenticated(handler) for method, handler in handlers.items()})

    def endpoint(handlers: dict[str, Handler]) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            method = "GET" if request.method == "HEAD" and "HEAD" not in handlers else request.method
            call = Call(identity, known, request, request.scope["identity_url"], NOBODY)
            return await handlers[method](call)

        return answering_errors(answer, lambda status, text: fault(status, text, root))

    made = [Route(path, endpoint(handlers), methods=sorted(handlers)) for path, handlers in by_path.items()]
    return RequestIdMiddleware(_Front(Router(made, redirect_slashes=False), root))


def fault(status: int, text: str, root: str) -> Response:
    """Keystone's shape of an error."""
    title = HTTPStatus(status).phrase
    response = JsonResponse({"error": {"code": status, "title": title, "message": text}}, status)
    if status == 401:
        response.headers["www-authenticate"] = f'Keystone uri="{root}"'
    return response


class _Front:
    """Takes the prefix and a slash at the end off the path, and answers what has no route."""

    def __init__(self, router: Router, root: str) -> None:
        self._router = router
        self._root = root

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path, url = scope.get("path", "/"), self._root
        if path == PREFIX or path.startswith(PREFIX + "/"):
            path, url = path[len(PREFIX) :], url + PREFIX
        path = "/" + path.strip("/")
        inner = {**scope, "path": path, "root_path": "", "identity_url": url, "app": self}

        async def varying(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"vary", b"X-Auth-Token")]
            await send(message)

        try:
            check_path(path)
            await self._router(inner, receive, varying)
        except HTTPException as error:
            answer = fault(error.status_code, _no_route(error.status_code), self._root)
            answer.headers.update(error.headers or {})
            await answer(inner, receive, varying)
        except NotFound as error:
            await fault(404, str(error), self._root)(inner, receive, varying)


def _no_route(status: int) -> str:
    if status == 405:
        return "The method is not allowed for the requested URL."
    return "The requested URL was not found on the server."
