"""Errors become answers that say what a user may know; every request has an id."""

from __future__ import annotations

from typing import Any

import pytest
import structlog
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from kilonova import errors
from kilonova.db.engine import DatabaseUnavailable
from kilonova.model.context import RequestContext
from kilonova.web import requests
from kilonova.web.auth import authenticate
from kilonova.web.json import JsonResponse

SECRET = "the password is hunter2"


def request(**headers: str) -> Request:
    pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return Request(
        {"type": "http", "method": "GET", "path": "/x", "query_string": b"", "headers": pairs}
        | {"server": ("h", 1), "scheme": "http", "request_id": "req-1"}
    )


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.Invalid("x"), 400),
        (errors.TooLarge("x"), 413),
        (errors.Unauthenticated("x"), 401),
        (errors.Forbidden("x"), 403),
        (errors.OverQuota("x"), 403),
        (errors.NotFound("x"), 404),
        (errors.Conflict("x"), 409),
        (errors.TryAgain("x"), 503),
        (errors.Unreachable("x"), 503),
        (errors.HostFault("x"), 503),
        (DatabaseUnavailable("x"), 503),
        (errors.Failed("x"), 500),
        (RuntimeError("x"), 500),
    ],
)
async def test_the_status_of_each_error(error: Exception, status: int) -> None:
    async def endpoint(request: Request) -> Response:
        raise error

    with structlog.testing.capture_logs() as lines:
        answer = await requests.answering_errors(endpoint, lambda code, text: JsonResponse(text, code))(
            request()
        )
    assert answer.status_code == status
    assert len(lines) == (1 if status >= 500 else 0)
    if status != 500:
        assert answer.body == b'"x"'


async def test_a_fault_of_ours_is_logged_and_its_inside_is_not_told() -> None:
    async def endpoint(request: Request) -> Response:
        raise RuntimeError(SECRET)

    with structlog.testing.capture_logs() as lines:
        answer = await requests.answering_errors(endpoint, lambda code, text: JsonResponse(text, code))(
            request()
        )
    assert b"hunter2" not in answer.body and b"RuntimeError" in answer.body
    assert [(each["request_id"], each["path"], each["exc_info"]) for each in lines] == [("req-1", "/x", True)]


async def test_what_ends_the_process_is_not_answered() -> None:
    async def endpoint(request: Request) -> Response:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await requests.answering_errors(endpoint, lambda code, text: JsonResponse(text, code))(request())


async def through(scope: dict[str, Any], *names: str) -> tuple[dict[str, Any], list[tuple[bytes, bytes]]]:
    """What the app behind the middleware gets to see, and the headers of its answer."""
    seen: dict[str, Any] = {}
    sent: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.update(scope)
        await JsonResponse({}, headers={"a": "b"})(scope, receive, send)

    async def receive() -> Any:
        raise AssertionError("nobody asked for the body")

    async def send(message: Any) -> None:
        sent.append(message)

    middleware = requests.RequestIdMiddleware(app, names or ("x-openstack-request-id",))
    await middleware(scope, receive, send)
    return seen, sent[0]["headers"]


GLOBAL = "req-11111111-2222-3333-4444-555555555555"


async def test_every_answer_has_the_id_of_its_request() -> None:
    one, headers = await through({"type": "http", "headers": []})
    assert dict(headers)[b"x-openstack-request-id"].decode() == one["request_id"]
    assert dict(headers)[b"a"] == b"b"
    two, headers = await through({"type": "http", "headers": []}, "x-one", "x-two")
    assert dict(headers)[b"x-one"] == dict(headers)[b"x-two"] == two["request_id"].encode()
    assert one["request_id"] != two["request_id"]
    assert requests._REQUEST_ID.match(one["request_id"])


@pytest.mark.parametrize("given", [GLOBAL + "\n", GLOBAL[:-1], "req-x", "x" * 9000, GLOBAL.upper(), "\xff"])
async def test_the_callers_id_is_only_taken_if_it_is_one(given: str) -> None:
    header = (b"x-openstack-request-id", given.encode("latin-1"))
    seen, headers = await through({"type": "http", "headers": [header]})
    assert "global_request_id" not in seen
    assert given.encode("latin-1") not in dict(headers).values()
    seen, _ = await through({"type": "http", "headers": [(header[0], GLOBAL.encode())]})
    assert seen["global_request_id"] == GLOBAL != seen["request_id"]


class OneToken:
    async def validate(self, token: str, request_id: str) -> RequestContext:
        if token != "good":
            raise errors.Unauthenticated("no")
        return RequestContext(request_id=request_id, user_id="u")


async def test_who_asks() -> None:
    found = await authenticate(request(x_auth_token="good"), OneToken(), "req-1")
    assert (found.user_id, found.request_id) == ("u", "req-1")
    for headers in ({}, {"x_auth_token": ""}, {"x_auth_token": "bad"}, {"authorization": "good"}):
        with pytest.raises(errors.Unauthenticated):
            await authenticate(request(**headers), OneToken(), "req-1")
