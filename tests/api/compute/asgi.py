"""A client that speaks to an ASGI application in the same process, and who it may be."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec
from starlette.types import ASGIApp

from kilonova.errors import Unauthenticated
from kilonova.model.context import RequestContext

ROLES: dict[str, frozenset[str]] = {
    "admin": frozenset({"admin", "manager", "member", "reader"}),
    "manager": frozenset({"manager", "member", "reader"}),
    "member": frozenset({"member", "reader"}),
    "reader": frozenset({"reader"}),
    "other": frozenset({"member", "reader"}),
    "service": frozenset({"service"}),
    "nobody": frozenset(),
}


class Tokens:
    """A TokenValidator whose tokens are the names of ROLES."""

    def __init__(self, project: str, admin_project: str, user: str, admin_user: str) -> None:
        self.projects = dict.fromkeys(ROLES, project) | {
            "admin": admin_project,
            "other": "0ther0000000000000000000000000000",
            "service": admin_project,
        }
        self.users = dict.fromkeys(ROLES, user) | {
            "admin": admin_user,
            "other": "0theruser00000000000000000000000",
        }

    async def validate(self, token: str, request_id: str) -> RequestContext:
        if token not in ROLES:
            raise Unauthenticated("The request you have made requires authentication.")
        return RequestContext(
            request_id=request_id,
            user_id=self.users[token],
            user_name=token,
            project_id=self.projects[token],
            roles=ROLES[token],
        )


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    content: bytes

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.content)

    @property
    def fault(self) -> str:
        """The message of a fault, after a look at its form."""
        ((name, fault),) = self.json.items()
        assert fault["code"] == self.status
        assert name
        return str(fault["message"])


@dataclass
class Api:
    app: ASGIApp
    base: str = "/v2.1"
    version: str | None = None
    who: str = "member"
    headers: dict[str, str] = field(default_factory=dict)

    async def __call__(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        v: int | str | None = None,
        who: str | None = None,
        raw: bytes | None = None,
        headers: dict[str, str] | None = None,
        root: bool = False,
    ) -> Reply:
        """``v``: a minor version or what a header says; ``who``: a token, "" for none; ``raw``: a body."""
        content = raw if raw is not None else b"" if body is None else msgspec.json.encode(body)
        given = {"host": "cloud.example:8774", **self.headers}
        token = self.who if who is None else who
        if token:
            given["x-auth-token"] = token
        if content:
            given["content-type"] = "application/json"
        wanted = v if v is not None else self.version
        if wanted is not None:
            given["openstack-api-version"] = (
                f"compute 2.{wanted}" if isinstance(wanted, int) else f"compute {wanted}"
            )
        given.update(headers or {})
        target, _, query = path.partition("?")
        scope = {
            "type": "http",
            "method": method,
            "scheme": "http",
            "path": target if root else self.base + target,
            "query_string": query.encode(),
            "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in given.items()],
            "server": ("127.0.0.1", 8774),
        }
        return await exchange(self.app, scope, content)


async def exchange(app: ASGIApp, scope: dict[str, Any], content: bytes) -> Reply:
    """One request, as ASGI has it, and its answer."""
    sent: list[Any] = []
    waiting = [{"type": "http.request", "body": content, "more_body": False}]

    async def receive() -> Any:
        return waiting.pop() if waiting else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    await app(scope, receive, send)
    headers = {name.decode().lower(): value.decode("latin-1") for name, value in sent[0]["headers"]}
    return Reply(sent[0]["status"], headers, b"".join(each.get("body", b"") for each in sent[1:]))
