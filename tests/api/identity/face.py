"""The identity API on its first day, and the words to ask it in."""

from __future__ import annotations

import itertools
from typing import Any

from starlette.types import ASGIApp

from kilonova.services.identity.bootstrap import Bootstrapped
from kilonova.services.identity.builtin import BuiltinIdentity
from kilonova.testing.clock import VirtualClock
from tests.api.direct import Reply, send

ROOT = "http://cloud.example:5000"
URLS = {
    "identity": ROOT,
    "compute": "http://cloud.example:8774",
    "image": "http://cloud.example:9292",
    "network": "http://cloud.example:9696/",
    "placement": "http://cloud.example:8778",
}
ADMIN_PASSWORD, DEMO_PASSWORD = "correct horse", "battery staple"
_numbers = itertools.count(1)


def fresh(what: str) -> str:
    """A name that nothing else has."""
    return f"{what}-{next(_numbers)}"


class Face:
    """``day`` has the ids of what was there from the beginning."""

    def __init__(
        self, app: ASGIApp, identity: BuiltinIdentity, clock: VirtualClock, day: Bootstrapped
    ) -> None:
        self.app = app
        self.identity = identity
        self.clock = clock
        self.day = day
        self.admin = ""  # a token, which the fixture renews

    async def call(
        self, method: str, path: str, body: Any = None, token: str | None = None, **headers: str
    ) -> Reply:
        """As the administrator, if no token is given; ``token`` "" sends none."""
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        used = self.admin if token is None else token
        if used:
            given["x-auth-token"] = used
        return await send(self.app, method, path, body, given)

    async def get(self, path: str, token: str | None = None, **headers: str) -> Any:
        """The body of an answer with status 200."""
        return (await self.call("GET", path, None, token, **headers)).expect(200).json

    async def authenticate(self, user: dict[str, Any], scope: Any = None, query: str = "") -> Reply:
        """Ask for a token by a password; ``user`` is Keystone's object, password and all."""
        auth: dict[str, Any] = {"identity": {"methods": ["password"], "password": {"user": user}}}
        if scope is not None:
            auth["scope"] = scope
        return await self.call("POST", "/v3/auth/tokens" + query, {"auth": auth}, "")

    async def login(self, user: dict[str, Any], scope: Any = None) -> str:
        """A token for a user (an answer of ``user``) in a scope."""
        wanted = {"id": user["id"], "password": user["password"]}
        return (await self.authenticate(wanted, scope)).expect(201).headers["x-subject-token"]

    async def works(self, token: str) -> bool:
        """Whether the services take the token: what they are told, and what the API itself does."""
        from kilonova.errors import Unauthenticated

        try:
            await self.identity.validate(token, "req-1")
        except Unauthenticated:
            (await self.call("GET", "/v3/auth/projects", None, token)).expect(401)
            return False
        (await self.call("GET", "/v3/auth/projects", None, token)).expect(200)
        return True

    async def make(self, kind: str, **values: Any) -> dict[str, Any]:
        """Something new, of a name of its own unless that is given."""
        if "name" not in values:
            values["name"] = fresh(kind)
        made: dict[str, Any] = (
            (await self.call("POST", f"/v3/{kind}s", {kind: values})).expect(201).json[kind]
        )
        return made

    async def user(
        self, role: str | None = "member", project: str | None = None, **values: Any
    ) -> dict[str, Any]:
        """A user with a password who has a role on a project of the user's own, or on the one given.

        The answer has ``password`` and ``project_id`` besides.
        """
        password = fresh("password")
        made = await self.make("user", password=password, **values)
        if project is None:
            project = (await self.make("project"))["id"]
        if role is not None:
            await self.assign(role, made["id"], project)
        return {**made, "password": password, "project_id": project}

    async def assign(self, role: str, user: str, project: str) -> None:
        path = f"/v3/projects/{project}/users/{user}/roles/{self.day.roles[role]}"
        (await self.call("PUT", path)).expect(204)

    async def token(self, role: str = "member", project: str | None = None) -> str:
        """A token of a new user with that role in a project."""
        user = await self.user(role, project)
        return await self.login(user, in_project(user["project_id"]))

    async def renew(self) -> None:
        admin = {"id": self.day.users["admin"], "password": ADMIN_PASSWORD}
        self.admin = await self.login(admin, in_project(self.day.projects["admin"]))


def in_project(id: str) -> dict[str, Any]:
    return {"project": {"id": id}}


async def inspected(face: Face, token: str, subject: str | None = None, query: str = "") -> Any:
    """What the API says of a token, itself or another's."""
    return await face.get("/v3/auth/tokens" + query, token, x_subject_token=subject or token)


def is_fault(reply: Reply, status: int) -> str:
    """The message of an answer in Keystone's shape of errors."""
    reply.expect(status)
    error = reply.json["error"]
    assert set(error) == {"code", "title", "message"} and error["code"] == status
    assert error["message"] and reply.headers["content-type"] == "application/json"
    assert ("www-authenticate" in reply.headers) is (status == 401)
    return str(error["message"])
