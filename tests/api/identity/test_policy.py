"""Who may do what: every route, as every kind of caller."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest

from kilonova.services.identity import api
from tests.api.identity.face import Face, in_project, is_fault

pytestmark = pytest.mark.asyncio(loop_scope="module")

ROUTES = sorted(
    {(method, path) for routes in api.ROUTES for path, methods in routes.items() for method in methods}
)
WRITES = [each for each in ROUTES if each[0] != "GET" and each[1] != "/v3/auth/tokens"]
OWN = {"/v3/auth/tokens", "/v3/auth/catalog", "/v3/auth/projects", "/v3/auth/domains", "/v3/auth/system"}
EVERYBODY = {"/v3/regions", "/v3/regions/{id}"}
READS = [each for each in ROUTES if each[0] == "GET" and each[1] not in OWN | EVERYBODY]


@dataclass
class Things:
    """One of each kind, which none of the callers has to do with."""

    ids: dict[str, str]

    def path(self, template: str) -> str:
        parts = template.split("/")
        kind = parts[2][:-1]
        own = {"id": self.ids.get(kind, "x"), "target_id": self.ids.get(kind, "x")}
        own["actor_id"] = self.ids["user" if "users" in parts[3:] else "group"]
        rest = {"role_id": "role", "implied_id": "implied", "user_id": "user"}
        own |= {name: self.ids[thing] for name, thing in rest.items()} | {"tag": "t"}
        return re.sub(r"\{(\w+)\}", lambda found: own[found[1]], template)


async def things(face: Face) -> Things:
    ids = {kind: (await face.make(kind))["id"] for kind in ("user", "project", "domain", "group", "role")}
    ids["implied"] = (await face.make("role"))["id"]
    region = (await face.call("POST", "/v3/regions", {"region": {}})).expect(201).json["region"]["id"]
    service = (await face.make("service", type="x"))["id"]
    body = {"service_id": service, "interface": "public", "url": "http://x"}
    endpoint = (
        (await face.call("POST", "/v3/endpoints", {"endpoint": body})).expect(201).json["endpoint"]["id"]
    )
    return Things(ids | {"region": region, "service": service, "endpoint": endpoint})


def body_for(path: str) -> dict[str, object]:
    kind = path.split("/")[2][:-1]
    return {kind: {"name": "taken over", "type": "x", "password": "taken over", "tags": []}, "tags": []}


async def test_the_matrix_is_whole(face: Face) -> None:
    assert len(ROUTES) >= 89 and len(WRITES) >= 45 and len(READS) >= 36
    assert ("DELETE", "/v3/users/{id}") in WRITES and ("GET", "/v3/role_assignments") in READS


async def test_nothing_is_done_without_a_token(face: Face) -> None:
    found = await things(face)
    for method, path in ROUTES:
        for token in ("", "nonsense"):
            reply = await face.call(method, found.path(path), body_for(path), token)
            is_fault(reply, 401)


@pytest.mark.parametrize("role", ["reader", "member", "manager", "service", "unscoped"])
async def test_only_administrators_write(face: Face, role: str) -> None:
    found = await things(face)
    user = await face.user("member" if role == "unscoped" else role)
    token = await face.login(user, None if role == "unscoped" else in_project(user["project_id"]))
    before = {path: (await face.call("GET", found.path(path))).content for _, path in READS}
    for method, path in WRITES:
        reply = await face.call(method, found.path(path), body_for(path), token)
        assert "not authorized" in is_fault(reply, 403), (method, path)
    # without the names and ids that come and go with the test itself
    after = {path: (await face.call("GET", found.path(path))).content for _, path in READS}
    assert before == after
    assert await face.works(token)


@pytest.mark.parametrize("role", ["reader", "member", "manager", "service", "unscoped"])
async def test_others_are_not_shown(face: Face, role: str) -> None:
    found = await things(face)
    user = await face.user("member" if role == "unscoped" else role)
    token = await face.login(user, None if role == "unscoped" else in_project(user["project_id"]))
    for method, path in READS:
        is_fault(await face.call(method, found.path(path), None, token), 403)
    for path in EVERYBODY:
        (await face.call("GET", found.path(path), None, token)).expect(200)


async def test_a_reader_of_the_system_sees_all_and_writes_nothing(face: Face) -> None:
    found = await things(face)
    user = await face.user(None)
    path = f"/v3/system/users/{user['id']}/roles/{face.day.roles['reader']}"
    (await face.call("PUT", path)).expect(204)
    token = await face.login(user, {"system": {"all": True}})
    for method, path in READS:
        reply = await face.call(method, found.path(path), None, token)
        assert reply.status in (200, 204, 404), (path, reply.status)
        assert reply.content == (await face.call(method, found.path(path))).content
    for method, path in WRITES:
        is_fault(await face.call(method, found.path(path), body_for(path), token), 403)


async def test_an_administrator_of_the_system_administers(face: Face) -> None:
    admin = {"id": face.day.users["admin"], "password": "correct horse"}
    token = await face.login(admin, {"system": {"all": True}})
    made = (await face.call("POST", "/v3/projects", {"project": {"name": "by the system"}}, token)).expect(
        201
    )
    (await face.call("DELETE", f"/v3/projects/{made.json['project']['id']}", None, token)).expect(204)


async def test_methods_that_are_not_there(face: Face) -> None:
    for method, path in (("PUT", "/v3/users"), ("DELETE", "/v3"), ("PATCH", "/"), ("TRACE", "/v3/users")):
        reply = await face.call(method, path)
        is_fault(reply, 405)
        assert "GET" in reply.headers["allow"]


@pytest.mark.parametrize(
    "path",
    [
        *("/v2.0", "/v2.0/tokens", "/v3/nothing", "/v3/users/x/y/z", "/V3", "/identity/x"),
        *(
            "/identityx",
            "/v3/credentials",
            "/v3/trusts",
            "/v3/OS-TRUST/trusts",
            "/v3/limits",
            "/v3/ec2tokens",
        ),
        *("/v3/users/\x00", "/v3/%00", "/v3/users/%ed%a0%80", "/../v3/users/x"),
    ],
)
async def test_what_is_not_served_says_so(face: Face, path: str) -> None:
    is_fault(await face.call("GET", path), 404)
