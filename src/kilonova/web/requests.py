"""Request ids, and turning the error tree into HTTP answers."""

from __future__ import annotations

import random
import re
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import structlog
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kilonova import errors

log = structlog.get_logger("kilonova.web")

STATUS: tuple[tuple[type[BaseException], int], ...] = (
    (errors.TooLarge, 413),
    (errors.Invalid, 400),
    (errors.Unauthenticated, 401),
    (errors.OverQuota, 403),
    (errors.Forbidden, 403),
    (errors.NotFound, 404),
    (errors.Conflict, 409),
    (errors.TryAgain, 503),
    (errors.HostFault, 503),
    (ClientDisconnect, 400),  # nobody hears it
)

_REQUEST_ID = re.compile(r"req-[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\Z")

Endpoint = Callable[[Request], Awaitable[Response]]
Render = Callable[[int, str], Response]
"""Makes the answer of a service from an HTTP status and a text for the user."""


def status_of(error: BaseException) -> int:
    """The HTTP status for an error of the tree; 500 for anything unforeseen."""
    for kind, status in STATUS:
        if isinstance(error, kind):
            return status
    return 500


_ids = random.Random()  # they are no secrets, so none of them needs a call of the system


def new_request_id() -> str:
    return f"req-{uuid.UUID(int=_ids.getrandbits(128), version=4)}"


class RequestIdMiddleware:
    """Gives every request an id and says it in every answer.

    ``scope["request_id"]`` is ours; a valid ``X-OpenStack-Request-ID`` of the caller becomes the global id
    ``scope["global_request_id"]``, as in oslo.middleware.
    """

    def __init__(self, app: ASGIApp, headers: tuple[str, ...] = ("x-openstack-request-id",)) -> None:
        self.app = app
        self._names = [name.encode() for name in headers]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = scope["request_id"] = new_request_id()
        value = request_id.encode()
        for name, given in scope["headers"]:
            if name == b"x-openstack-request-id" and _REQUEST_ID.match(given.decode("latin-1")):
                scope["global_request_id"] = given.decode("latin-1")

        async def with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *((name, value) for name in self._names)]
            await send(message)

        await self.app(scope, receive, with_id)


def answering_errors(endpoint: Endpoint, render: Render) -> Endpoint:
    """The endpoint, with errors of the tree turned into answers; anything else is logged and a 500."""

    async def answer(request: Request) -> Response:
        try:
            return await endpoint(request)
        except Exception as error:
            status = status_of(error)
            if status >= 500:
                log.error(
                    "request failed",
                    path=request.url.path,
                    request_id=request.scope.get("request_id"),
                    error=repr(error),
                    exc_info=status == 500,
                )
            text = str(error) if status != 500 else unexpected(error)
            return render(status, text)

    return answer


def unexpected(error: BaseException) -> str:
    """What a user is told of a fault of ours: the kind, never the inside."""
    return (
        "Unexpected API Error. Please report this together with the request id.\n"
        f"{type(error).__module__}.{type(error).__qualname__}"
    )


def fault_body(name: str, status: int, message: str, **more: Any) -> dict[str, Any]:
    return {name: {"code": status, "message": message, **more}}
