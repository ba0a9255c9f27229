"""Requests about servers as they come over the wire: bodies, headers, methods, paths, tokens."""

from __future__ import annotations

import re
from typing import Any

import pytest
import pytest_asyncio

from tests.api.compute.asgi import Api
from tests.api.compute.conftest import Whole
from tests.api.compute.whole_cloud import NOBODYS

pytestmark = pytest.mark.asyncio(loop_scope="module")

FAULTS = {
    400: "badRequest",
    401: "unauthorized",
    403: "forbidden",
    404: "itemNotFound",
    409: "conflictingRequest",
    413: "overLimit",
    415: "badMediaType",
}
REQUEST_ID = re.compile(r"req-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def uuid(whole: Whole) -> str:
    return (await whole.made()).uuid


def writers(uuid: str) -> list[tuple[str, str, str]]:
    return [
        ("POST", "/servers", "member"),
        ("PUT", f"/servers/{uuid}", "member"),
        ("POST", f"/servers/{uuid}/action", "member"),
        ("POST", f"/servers/{uuid}/metadata", "member"),
        ("PUT", f"/servers/{uuid}/metadata", "member"),
        ("PUT", f"/servers/{uuid}/metadata/k", "member"),
        ("PUT", f"/servers/{uuid}/tags", "member"),
        ("POST", "/os-server-external-events", "service"),
    ]


NO_JSON = [
    b"",
    b" ",
    b"{",
    b"}",
    b"null",
    b"[]",
    b'"server"',
    b"1",
    b"{'server': {}}",
    b'{"server": {}} x',
    b'{"server": {},}',
    b'{"server": NaN}',
    b'{"server": Infinity}',
    b'{"server": -Infinity}',
    b'{"server": 1e999}',
    b'{"server": ' + b"9" * 5000 + b"}",
    b'{"server": {}, "server": {}}',
    b'{"server": {"a": {"b": 1, "b": 2}}}',
    b'{"server": "\\u0000"}',
    b'{"\\u0000": 1}',
    b'{"server": "\\ud800"}',
    b'{"server": "\x00"}',
    b'{"server": "\n"}',
    b'{"server": "\xff"}',
    b"\xef\xbb\xbf{}",
    '{"server": {}}'.encode("utf-16"),
    b'{"server": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
    b'{"server": ' + b'{"a":' * 900 + b"1" + b"}" * 900 + b"}",
    b"server=x&name=y",
]


@pytest.mark.parametrize("content", NO_JSON, ids=lambda content: repr(content[:24]))
async def test_bodies_that_are_no_json_objects(whole: Whole, uuid: str, content: bytes) -> None:
    before = await whole.everything()
    for method, path, who in writers(uuid):
        reply = await whole.api(method, path, raw=content, v=104, who=who)
        assert (reply.status, list(reply.json)) == (400, ["badRequest"]), (method, path)
        assert reply.fault
    assert await whole.everything() == before


async def test_texts_that_no_database_stores(whole: Whole, uuid: str) -> None:
    """NUL and halves of surrogates, wherever they stand in a body that is right otherwise."""
    for text in ("\\u0000", "a\\u0000b", "\\ud800", "\\udc00\\ud800"):
        for method, path, body in (
            ("PUT", f"/servers/{uuid}", '{"server": {"name": "%s"}}'),
            ("PUT", f"/servers/{uuid}", '{"server": {"description": "%s"}}'),
            ("POST", f"/servers/{uuid}/metadata", '{"metadata": {"k": "%s"}}'),
            ("POST", f"/servers/{uuid}/metadata", '{"metadata": {"%s": "v"}}'),
            ("PUT", f"/servers/{uuid}/tags", '{"tags": ["%s"]}'),
            ("POST", f"/servers/{uuid}/action", '{"lock": {"locked_reason": "%s"}}'),
            ("POST", f"/servers/{uuid}/action", '{"%s": null}'),
        ):
            reply = await whole.api(method, path, raw=(body % text).encode(), v=104)
            assert reply.status == 400, (path, body, text)
    emoji = '{"server": {"description": "\\ud83d\\ude00"}}'
    reply = await whole.api("PUT", f"/servers/{uuid}", raw=emoji.encode(), v=104)
    assert (reply.status, reply.json["server"]["description"]) == (200, "\U0001f600")


async def test_bodies_that_are_too_large(whole: Whole, uuid: str) -> None:
    limit = 114_688
    for method, path, who in writers(uuid):
        for size, status in ((limit, 400), (limit + 1, 413), (10_000_000, 413)):
            content = b"{}" + b" " * (size - 2)
            reply = await whole.api(method, path, raw=content, v=104, who=who)
            assert reply.status == status, (path, size)
            declared = {"content-length": str(size)}
            reply = await whole.api(method, path, raw=content, v=104, who=who, headers=declared)
            assert reply.status == status
        assert reply.json["overLimit"]["retryAfter"] == "0"
        reply = await whole.api(
            method, path, raw=b"{}", v=104, who=who, headers={"content-length": "9" * 5000}
        )
        assert reply.status == 413
        reply = await whole.api(method, path, raw=b"{}", v=104, who=who, headers={"content-length": "many"})
        assert reply.status == 400


@pytest.mark.parametrize(
    ("media_type", "status"),
    [
        ("application/json", 202),
        ("application/json; charset=utf-8", 202),
        ("APPLICATION/JSON", 202),
        ("application/vnd.openstack.compute+json", 202),
        ("text/plain", 202),
        ("", 202),
        ("application/xml", 415),
        ("multipart/form-data; boundary=x", 415),
        ("application/x-www-form-urlencoded", 415),
        ("\xff", 415),
    ],
)
async def test_content_types(whole: Whole, media_type: str, status: int) -> None:
    headers = {"content-type": media_type}
    reply = await whole.api("POST", "/servers", whole.body(), v=104, headers=headers)
    assert reply.status == status, reply.content


METHODS = ("GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "BREW", "get", "")


async def test_methods_that_a_path_does_not_know(whole: Whole, uuid: str) -> None:
    """404, as in Nova, in JSON; nothing happens."""
    known = {
        "/servers": {"GET", "POST"},
        "/servers/detail": {"GET"},
        f"/servers/{uuid}": {"GET", "PUT", "DELETE"},
        f"/servers/{uuid}/action": {"POST"},
        f"/servers/{uuid}/metadata": {"GET", "POST", "PUT"},
        f"/servers/{uuid}/tags": {"GET", "PUT", "DELETE"},
        f"/servers/{uuid}/ips": {"GET"},
        f"/servers/{uuid}/diagnostics": {"GET"},
        f"/servers/{uuid}/os-instance-actions": {"GET"},
        "/os-server-external-events": {"POST"},
    }
    before = await whole.instance(uuid)
    for path, methods in known.items():
        for method in METHODS:
            if method in methods:
                continue
            if path == "/servers/detail" and method in ("PUT", "DELETE"):
                continue  # there it is the id of a server
            reply = await whole.api(method, path, v=104, who="admin")
            assert (reply.status, reply.fault) == (404, "The resource could not be found."), (method, path)
    for method in ("PUT", "DELETE"):
        body = {"server": {"name": "x"}} if method == "PUT" else None
        assert (await whole.api(method, "/servers/detail", body, v=104)).status == 404
    assert await whole.instance(uuid) == before


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "//",
        "/x",
        "/serverss",
        "/servers//",
        "/servers/detail/x",
        f"/servers/{NOBODYS}/x",
        "/servers/x/y/z/a",
        "/%00",
        "/ü",
    ],
)
async def test_paths_that_are_not_there(whole: Whole, path: str) -> None:
    for method in ("GET", "POST", "DELETE"):
        reply = await whole.api(method, path, {} if method == "POST" else None, v=104)
        assert reply.status in ((404,) if path != "/" else (200, 404)), (method, path)
        assert "itemNotFound" in reply.json or path == "/"


async def test_a_head_is_a_get(whole: Whole, uuid: str) -> None:
    await whole.quiet()  # what is being done to other servers would be seen in the second answer
    for path in ("/servers", "/servers/detail", f"/servers/{uuid}"):
        head, get = await whole.api("HEAD", path, v=104), await whole.api("GET", path, v=104)
        assert (head.status, get.status) == (200, 200)
        assert head.headers["content-length"] == get.headers["content-length"]


async def test_headers_of_every_answer(whole: Whole, uuid: str) -> None:
    seen = set()
    for method, path, body, status in (
        ("GET", "/servers", None, 200),
        ("GET", f"/servers/{uuid}", None, 200),
        ("POST", "/servers", {}, 400),
        ("GET", f"/servers/{NOBODYS}", None, 404),
        ("POST", f"/servers/{uuid}/action", {"os-start": None}, 409),
        ("POST", f"/servers/{uuid}/action", {"lock": None}, 202),
        ("POST", f"/servers/{uuid}/action", {"unlock": None}, 202),
        ("DELETE", f"/servers/{NOBODYS}", None, 404),
        ("GET", "/servers?colour=red", None, 400),
    ):
        reply = await whole.api(method, path, body, v=90)
        assert reply.status == status
        assert reply.headers["openstack-api-version"] == "compute 2.90"
        assert reply.headers["x-openstack-nova-api-version"] == "2.90"
        assert reply.headers["vary"] == "OpenStack-API-Version, X-OpenStack-Nova-API-Version"
        request_id = reply.headers["x-openstack-request-id"]
        assert REQUEST_ID.match(request_id)
        assert reply.headers["x-compute-request-id"] == request_id
        assert int(reply.headers["content-length"]) == len(reply.content)
        assert ("content-type" in reply.headers) == bool(reply.content)
        if status >= 400:
            assert list(reply.json) == [FAULTS[status]]
            assert list(reply.json[FAULTS[status]]) == ["code", "message"]
        seen.add(request_id)
    assert len(seen) == 9


@pytest.mark.parametrize("version", ["2.0", "2.105", "3.0", "x", "", "2", "2.1.1"])
async def test_microversions_that_are_not_served(whole: Whole, uuid: str, version: str) -> None:
    """No handler is reached."""
    before = await whole.everything()
    expected = 406 if re.fullmatch(r"\d+\.\d+", version) else 400
    for method, path, body in (
        ("GET", "/servers/detail", None),
        ("POST", "/servers", whole.body()),
        ("DELETE", f"/servers/{uuid}", None),
    ):
        for headers in (
            {"openstack-api-version": f"compute {version}"},
            {"x-openstack-nova-api-version": version},
        ):
            reply = await whole.api(method, path, body, headers=headers)
            assert reply.status == expected, reply.content
    assert await whole.everything() == before


# ---- tokens, of the real identity service ----


class Login:
    def __init__(self, whole: Whole) -> None:
        self.whole = whole
        apps = whole.cloud.apps()
        self.identity = Api(apps["identity"], base="/v3")
        self.compute = apps["compute"]

    async def token(self, user: str = "demo", scope: Any = "project") -> str:
        password = self.whole.cloud.state.passwords()[user]
        domain = {"name": "Default"}
        methods = {
            "methods": ["password"],
            "password": {"user": {"name": user, "password": password, "domain": domain}},
        }
        auth: dict[str, Any] = {"identity": methods}
        if scope == "project":
            auth["scope"] = {"project": {"name": user, "domain": domain}}
        else:
            auth["scope"] = scope
        reply = await self.identity("POST", "/auth/tokens", {"auth": auth}, who="")
        assert reply.status == 201, reply.content
        return reply.headers["x-subject-token"]

    def api(self, token: str) -> Api:
        return Api(self.compute, who="", headers={"x-auth-token": token})


@pytest.fixture(scope="module")
def login(whole: Whole) -> Login:
    return Login(whole)


async def test_a_token_of_the_cloud(whole: Whole, login: Login) -> None:
    api = login.api(await login.token())
    reply = await api("POST", "/servers", whole.body(), v=104)
    assert reply.status == 202
    created = reply.json["server"]["id"]
    shown = (await api("GET", f"/servers/{created}", v=104)).json["server"]
    assert shown["tenant_id"] == whole.project
    assert "OS-EXT-SRV-ATTR:host" not in shown
    admin = login.api(await login.token("admin"))
    shown = (await admin("GET", f"/servers/{created}", v=104)).json["server"]
    assert "OS-EXT-SRV-ATTR:host" in shown
    assert (await admin("GET", "/servers")).json == {"servers": []}
    assert (await admin("DELETE", f"/servers/{created}")).status == 204


async def test_tokens_that_are_not_valid(whole: Whole, login: Login) -> None:
    good = await login.token()
    middle = len(good) // 2
    forged = good[:middle] + ("A" if good[middle] != "A" else "B") + good[middle + 1 :]
    revoked = await login.token()
    reply = await login.identity(
        "DELETE", "/auth/tokens", who="", headers={"x-auth-token": good, "x-subject-token": revoked}
    )
    assert reply.status == 204
    identity = whole.cloud.identity
    lifetime, identity._lifetime = identity._lifetime, 0
    try:
        expired = await login.token()
    finally:
        identity._lifetime = lifetime
    await whole.quiet()
    before = await whole.everything()
    bad = [
        "",
        " ",
        "x",
        "admin",
        forged,
        good[:-5],
        good + "A",
        revoked,
        expired,
        "x" * 10_000,
        "\xff",
        good.swapcase(),
    ]
    for token in bad:
        api = login.api(token)
        for method, path, body in (
            ("GET", "/servers", None),
            ("POST", "/servers", whole.body()),
            ("GET", "/nothing", None),
        ):
            reply = await api(method, path, body, v=104)
            assert (reply.status, list(reply.json)) == (401, ["unauthorized"]), token
            assert reply.headers["www-authenticate"].startswith("Keystone uri=")
            assert "openstack-api-version" not in reply.headers
    assert (await Api(login.compute, who="")("GET", "/servers")).status == 401
    assert await whole.everything() == before
    assert (await login.api(good)("GET", "/servers")).status == 200


async def test_tokens_without_a_project(whole: Whole, login: Login) -> None:
    """They have nowhere to put a server, and no server is theirs: not even an administrator's."""
    await whole.quiet()
    headers = {"x-auth-token": await login.token("admin")}
    admin = whole.tokens.users["admin"]
    found = await login.identity("GET", "/roles?name=admin", who="", headers=headers)
    (role,) = found.json["roles"]
    for where in ("system", "domains/default"):
        path = f"/{where}/users/{admin}/roles/{role['id']}"
        assert (await login.identity("PUT", path, who="", headers=headers)).status == 204
    unscoped = await login.token(scope="unscoped")
    system = await login.token("admin", {"system": {"all": True}})
    domain = await login.token("admin", {"domain": {"id": "default"}})
    before = await whole.everything()
    for token in (unscoped, system, domain):
        api = login.api(token)
        for reply in (
            await api("POST", "/servers", whole.body(), v=104),
            await api("GET", "/servers", v=104),
            await api("GET", "/servers/detail?all_tenants=1", v=104),
        ):
            assert (reply.status, list(reply.json)) == (403, ["forbidden"]), reply.content
    assert await whole.everything() == before


async def test_a_disabled_user(whole: Whole, login: Login) -> None:
    admin = await login.token("admin")
    token = await login.token()
    api = login.api(token)
    assert (await api("GET", "/servers")).status == 200
    user = whole.tokens.users["member"]
    headers = {"x-auth-token": admin}
    for enabled, status in ((False, 401), (True, 401)):
        reply = await login.identity(
            "PATCH", f"/users/{user}", {"user": {"enabled": enabled}}, who="", headers=headers
        )
        assert reply.status == 200
        assert (await api("GET", "/servers")).status == status
    assert (await login.api(await login.token())("GET", "/servers")).status == 200
