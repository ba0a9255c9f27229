"""Tokens: how one gets them, what they say, when they end, and what is never one."""

from __future__ import annotations

from typing import Any

import pytest

from kilonova.services.identity import passwords, tokens
from tests.api.identity.conftest import CHEAP
from tests.api.identity.face import Face, fresh, in_project, inspected, is_fault

pytestmark = pytest.mark.asyncio(loop_scope="module")

DEFAULT = {"id": "default", "name": "Default"}


# ---- getting one ----


async def test_a_user_is_named_by_id_or_by_name_and_domain(face: Face) -> None:
    user = await face.user()
    for said in (
        {"id": user["id"]},
        {"name": user["name"], "domain": {"id": "default"}},
        {"name": user["name"], "domain": {"name": "Default"}},
        {"id": user["id"], "name": "ignored, as by Keystone"},
    ):
        reply = await face.authenticate({**said, "password": user["password"]})
        token = reply.expect(201).json["token"]
        assert token["user"]["id"] == user["id"]
        assert (await inspected(face, reply.headers["x-subject-token"]))["token"] == token


async def test_a_token_for_a_project(face: Face) -> None:
    user = await face.user("manager")
    project = await face.get(f"/v3/projects/{user['project_id']}")
    named = {"name": project["project"]["name"]}
    for said in (
        {"id": user["project_id"]},
        {**named, "domain": {"id": "default"}},
        {**named, "domain": {"name": "Default"}},
    ):
        reply = await face.authenticate(user, {"project": said})
        token = reply.expect(201).json["token"]
        assert token["project"] == {"id": user["project_id"], **named, "domain": DEFAULT}
        assert token["user"] == {
            "id": user["id"],
            "name": user["name"],
            "domain": DEFAULT,
            "password_expires_at": None,
        }
        assert {each["name"] for each in token["roles"]} == {"manager", "member", "reader"}
        assert token["roles"][0] == {"id": face.day.roles["manager"], "name": "manager"}
        assert (token["methods"], token["is_domain"]) == (["password"], False)
        assert set(token) == {
            *("methods", "user", "audit_ids", "issued_at", "expires_at", "project", "is_domain"),
            *("roles", "catalog"),
        }
        context = await face.identity.validate(reply.headers["x-subject-token"], "req-7")
        assert (context.request_id, context.user_id, context.project_id) == (
            "req-7",
            user["id"],
            user["project_id"],
        )
        assert (context.roles, context.is_admin) == ({"manager", "member", "reader"}, False)
        assert (context.user_name, context.project_name) == (user["name"], named["name"])
        assert (context.domain_id, context.system_scope) == (None, False)
        assert reply.headers["x-subject-token"] not in repr(context)


async def test_a_token_for_a_domain(face: Face) -> None:
    domain = await face.make("domain")
    user = await face.user(None, domain_id=domain["id"])
    path = f"/v3/domains/{domain['id']}/users/{user['id']}/roles/{face.day.roles['admin']}"
    (await face.call("PUT", path)).expect(204)
    for said in ({"id": domain["id"]}, {"name": domain["name"]}):
        reply = await face.authenticate(user, {"domain": said})
        token = reply.expect(201).json["token"]
        assert token["domain"] == {"id": domain["id"], "name": domain["name"]}
        assert "project" not in token and "is_domain" not in token and token["catalog"]
        context = await face.identity.validate(reply.headers["x-subject-token"], "")
        assert (context.domain_id, context.project_id, context.system_scope) == (domain["id"], None, False)


async def test_a_token_for_the_system(face: Face) -> None:
    user = await face.user(None)
    path = f"/v3/system/users/{user['id']}/roles/{face.day.roles['reader']}"
    (await face.call("PUT", path)).expect(204)
    reply = await face.authenticate(user, {"system": {"all": True}})
    token = reply.expect(201).json["token"]
    assert token["system"] == {"all": True} and "project" not in token and "domain" not in token
    context = await face.identity.validate(reply.headers["x-subject-token"], "")
    assert (context.system_scope, context.project_id, context.domain_id) == (True, None, None)
    assert context.roles == {"reader"}


async def test_a_token_for_nothing(face: Face) -> None:
    user = await face.user()
    for scope in (None, "unscoped", {"unscoped": {}}):
        token = (await face.authenticate(user, scope)).expect(201).json["token"]
        assert not {"project", "domain", "system", "roles", "catalog"} & set(token)
    token = await face.login(user)
    assert (await face.identity.validate(token, "")).roles == frozenset()
    assert [each["id"] for each in (await face.get("/v3/auth/projects", token))["projects"]] == [
        user["project_id"]
    ]
    (await face.call("GET", "/v3/auth/catalog", None, token)).expect(403)


async def test_the_default_project_is_the_scope_of_who_names_none(face: Face) -> None:
    user = await face.user()
    where = f"/v3/users/{user['id']}"
    (await face.call("PATCH", where, {"user": {"default_project_id": user["project_id"]}})).expect(200)
    assert (await face.authenticate(user)).json["token"]["project"]["id"] == user["project_id"]
    assert "project" not in (await face.authenticate(user, "unscoped")).expect(201).json["token"]
    foreign = (await face.make("project"))["id"]
    (await face.call("PATCH", where, {"user": {"default_project_id": foreign}})).expect(200)
    assert "project" not in (await face.authenticate(user)).expect(201).json["token"]


async def test_a_token_for_a_token(face: Face) -> None:
    user = await face.user()
    other = (await face.make("project"))["id"]
    await face.assign("reader", user["id"], other)
    first = await face.authenticate(user, in_project(user["project_id"]))
    face.clock.advance(100)
    method = {"methods": ["token"], "token": {"id": first.headers["x-subject-token"]}}
    body = {"auth": {"identity": method, "scope": in_project(other)}}
    second = (await face.call("POST", "/v3/auth/tokens", body, "")).expect(201)
    one, two = first.json["token"], second.json["token"]
    assert (two["project"]["id"], [each["name"] for each in two["roles"]]) == (other, ["reader"])
    assert two["expires_at"] == one["expires_at"], "nobody lives longer by asking again"
    assert two["issued_at"] > one["issued_at"]
    assert two["methods"] == ["token", "password"]
    assert two["audit_ids"][1] == one["audit_ids"][0] and two["audit_ids"][0] != one["audit_ids"][0]
    third = {"methods": ["token"], "token": {"id": second.headers["x-subject-token"]}}
    reply = (await face.call("POST", "/v3/auth/tokens", {"auth": {"identity": third}}, "")).expect(201)
    assert reply.json["token"]["audit_ids"][1] == one["audit_ids"][0]


async def test_both_methods_must_be_of_one_user(face: Face) -> None:
    one, two = await face.user(), await face.user()
    token = await face.login(one)
    for user, status in ((one, 201), (two, 401)):
        methods = {
            "methods": ["password", "token"],
            "password": {"user": user},
            "token": {"id": token},
        }
        (await face.call("POST", "/v3/auth/tokens", {"auth": {"identity": methods}}, "")).expect(status)


async def test_the_catalog_is_left_out_for_who_does_not_want_it(face: Face) -> None:
    user = await face.user()
    reply = await face.authenticate(user, in_project(user["project_id"]), "?nocatalog")
    assert "catalog" not in reply.expect(201).json["token"]
    token = reply.headers["x-subject-token"]
    assert "catalog" not in (await inspected(face, token, query="?nocatalog"))["token"]
    assert "catalog" in (await inspected(face, token))["token"]


# ---- not getting one ----


async def test_whatever_is_wrong_the_answer_is_the_same_after_the_same_work(
    face: Face, monkeypatch: pytest.MonkeyPatch
) -> None:
    user, disabled, lonely = await face.user(), await face.user(enabled=False), await face.user(None)
    closed = await face.make("domain")
    inmate = await face.user(domain_id=closed["id"])
    (await face.call("PATCH", f"/v3/domains/{closed['id']}", {"domain": {"enabled": False}})).expect(200)
    passwordless = await face.make("user")
    off = (await face.make("project", enabled=False))["id"]
    await face.assign("member", user["id"], off)
    derived: list[Any] = []
    derive = passwords._derive

    def counting(password: str, salt: bytes, *parameters: Any) -> bytes:
        derived.append(parameters)
        return derive(password, salt, *parameters)

    monkeypatch.setattr(passwords, "_derive", counting)
    own = in_project(user["project_id"])
    cases: dict[str, tuple[dict[str, Any], Any]] = {
        "wrong password": ({**user, "password": "x"}, own),
        "empty password": ({**user, "password": ""}, own),
        "unknown id": ({"id": "0" * 32, "password": "x"}, own),
        "unknown name": ({"name": fresh("no"), "domain": {"id": "default"}, "password": "x"}, own),
        "unknown domain": (
            {"name": user["name"], "domain": {"name": "no"}, "password": user["password"]},
            own,
        ),
        "other domain": (
            {"name": user["name"], "domain": {"id": closed["id"]}, "password": user["password"]},
            own,
        ),
        "disabled user": (disabled, in_project(disabled["project_id"])),
        "disabled domain": (inmate, in_project(inmate["project_id"])),
        "no password": ({**passwordless, "password": "x"}, None),
        "no role": (lonely, in_project(lonely["project_id"])),
        "other project": (await face.user(), own),
        "unknown project": (await face.user(), in_project("0" * 32)),
        "unknown project name": (await face.user(), {"project": {"name": "no", "domain": DEFAULT}}),
        "disabled project": (await face.user(), in_project(off)),
        "domain": (await face.user(), {"domain": {"id": "default"}}),
        "unknown domain scope": (await face.user(), {"domain": {"name": "no"}}),
        "system": (await face.user(), {"system": {"all": True}}),
    }
    answers = {}
    for name, (who, scope) in cases.items():
        derived.clear()
        reply = await face.authenticate(who, scope)
        answers[name] = is_fault(reply, 401), len(derived), derived[0]
    assert set(answers.values()) == {(tokens.NOT_VALID, 1, (CHEAP, 32))}, answers


async def test_a_project_that_is_disabled_gives_no_token(face: Face) -> None:
    user = await face.user()
    where = f"/v3/projects/{user['project_id']}"
    (await face.call("PATCH", where, {"project": {"enabled": False}})).expect(200)
    is_fault(await face.authenticate(user, in_project(user["project_id"])), 401)
    assert (await face.get("/v3/auth/projects", await face.login(user)))["projects"] == []


def nested(*names: str, value: Any) -> Any:
    for name in reversed(names):
        value = {name: value}
    return value


def by_password(user: Any, **more: Any) -> Any:
    return {"auth": {"identity": {"methods": ["password"], "password": {"user": user}}, **more}}


GOOD = {"id": "0" * 32, "password": "x"}


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"auth": None},
        {"auth": []},
        {"auth": {}},
        {"auth": {"identity": {}}},
        {"auth": {"identity": {"methods": []}}},
        {"auth": {"identity": {"methods": "password"}}},
        {"auth": {"identity": {"methods": [1]}}},
        {"auth": {"identity": {"methods": [["password"]]}}},
        {"auth": {"identity": {"methods": ["password"]}}},
        {"auth": {"identity": {"methods": ["password"], "password": {}}}},
        {"auth": {"identity": {"methods": ["token"]}}},
        {"auth": {"identity": {"methods": ["token"], "token": {"id": None}}}},
        {"auth": {"identity": {"methods": ["token"], "token": {"id": "x" * 10_000}}}},
        {"auth": {"identity": {"methods": ["password", "token"], "password": {"user": GOOD}}}},
        by_password("x"),
        by_password({"password": "x"}),
        by_password({"id": "x"}),
        by_password({"id": 5, "password": "x"}),
        by_password({"id": "x" * 256, "password": "x"}),
        by_password({"id": "x", "password": None}),
        by_password({"id": "x", "password": 5}),
        by_password({"id": "x", "password": "x" * 4097}),
        by_password({"name": "x", "password": "x"}),
        by_password({"name": "x", "password": "x", "domain": {}}),
        by_password({"name": "x", "password": "x", "domain": "default"}),
        by_password({"name": "x\0", "password": "x", "domain": {"id": "default"}}),
        by_password(GOOD, scope=[]),
        by_password(GOOD, scope={}),
        by_password(GOOD, scope="project"),
        by_password(GOOD, scope={"project": None}),
        by_password(GOOD, scope={"project": {}}),
        by_password(GOOD, scope={"project": {"name": "x"}}),
        by_password(GOOD, scope={"project": {"id": 5}}),
        by_password(GOOD, scope={"domain": {}}),
        by_password(GOOD, scope={"system": {}}),
        by_password(GOOD, scope={"system": {"all": False}}),
        by_password(GOOD, scope={"project": {"id": "x"}, "domain": {"id": "x"}}),
        by_password(GOOD, scope={"OS-TRUST:trust": {"id": "x"}}),
    ],
)
async def test_a_request_that_makes_no_sense(face: Face, body: Any) -> None:
    message = is_fault(await face.call("POST", "/v3/auth/tokens", body, ""), 400)
    assert "xxxx" not in message


@pytest.mark.parametrize("method", ["oauth1", "application_credential", "mapped", "PASSWORD", ""])
async def test_other_methods_are_refused(face: Face, method: str) -> None:
    body = {"auth": {"identity": {"methods": ["password", method], "password": {"user": GOOD}}}}
    is_fault(await face.call("POST", "/v3/auth/tokens", body, ""), 401)
