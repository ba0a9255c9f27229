"""Tokens: how one gets them, what they say, when they end, and what is never one."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from cryptography.fernet import Fernet
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kilonova.clock import parse_iso
from kilonova.errors import Unauthenticated
from kilonova.services.identity import passwords, tokens
from kilonova.services.identity.builtin import LIFETIME, BuiltinIdentity
from kilonova.services.identity.passwords import Passwords
from tests.api.identity.conftest import CHEAP
from tests.api.identity.face import Face, fresh, in_project, is_fault

pytestmark = pytest.mark.asyncio(loop_scope="module")

DEFAULT = {"id": "default", "name": "Default"}


async def inspected(face: Face, token: str, subject: str | None = None, query: str = "") -> Any:
    return await face.get("/v3/auth/tokens" + query, token, x_subject_token=subject or token)


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


# ---- the end of one ----


async def test_a_token_ends_when_it_says_so(face: Face) -> None:
    user = await face.user()
    reply = await face.authenticate(user, in_project(user["project_id"]))
    said, token = reply.json["token"], reply.headers["x-subject-token"]
    assert parse_iso(said["expires_at"]) - parse_iso(said["issued_at"]) == LIFETIME * 1_000_000
    assert parse_iso(said["issued_at"]) == face.clock.now()
    assert said["expires_at"].endswith("Z") and len(said["expires_at"]) == len("2026-01-01T00:00:00.000000Z")
    face.clock.advance(LIFETIME - 0.001)
    await face.renew()
    assert await face.works(token)
    face.clock.advance(0.001)
    assert not await face.works(token)
    await face.renew()
    is_fault(await face.call("GET", "/v3/auth/tokens", x_subject_token=token), 404)


async def test_a_service_may_ask_about_a_token_that_has_ended(face: Face) -> None:
    """keystonemiddleware does so for long operations, with a service token."""
    user = await face.user()
    token = await face.login(user, in_project(user["project_id"]))
    revoked = await face.login(user, in_project(user["project_id"]))
    (await face.call("DELETE", "/v3/auth/tokens", token=revoked, x_subject_token=revoked)).expect(204)
    face.clock.advance(LIFETIME + 10)
    await face.renew()
    service = await face.token("service")
    path = "/v3/auth/tokens?allow_expired=1"
    found = (await face.get(path, service, x_subject_token=token))["token"]
    assert found["user"]["id"] == user["id"] and found["project"]["id"] == user["project_id"]
    for no in ("", "?allow_expired=0", "?allow_expired=false"):
        is_fault(await face.call("GET", "/v3/auth/tokens" + no, None, service, x_subject_token=token), 404)
    is_fault(await face.call("GET", path, None, service, x_subject_token=revoked), 404)
    is_fault(await face.call("GET", path, None, await face.token(), x_subject_token=token), 403)
    assert not await face.works(token), "it is good for nothing else"
    is_fault(await face.call("DELETE", "/v3/auth/tokens", x_subject_token=token), 404)
    face.clock.advance(172_800 - 10)
    await face.renew()
    service = await face.token("service")
    is_fault(await face.call("GET", path, None, service, x_subject_token=token), 404)


async def test_a_revoked_token_stays_dead_among_the_living(face: Face) -> None:
    user = await face.user()
    scope = in_project(user["project_id"])
    one, two = await face.login(user, scope), await face.login(user, scope)
    assert await face.works(one) and await face.works(two)
    (await face.call("DELETE", "/v3/auth/tokens", token=one, x_subject_token=one)).expect(204)
    assert not await face.works(one) and await face.works(two)
    is_fault(await face.call("DELETE", "/v3/auth/tokens", token=two, x_subject_token=one), 403)
    is_fault(await face.call("GET", "/v3/auth/tokens", x_subject_token=one), 404)
    (await face.call("DELETE", "/v3/auth/tokens", x_subject_token=two)).expect(204)  # an administrator may
    assert not await face.works(two)
    face.clock.advance(LIFETIME - 1)
    await face.renew()
    assert not await face.works(one), "other revocations have not washed it away"
    other = await face.token()
    (await face.call("DELETE", "/v3/auth/tokens", x_subject_token=other)).expect(204)
    assert not await face.works(one) and not await face.works(other)


async def test_nobody_ends_or_reads_the_token_of_another(face: Face) -> None:
    mine, theirs = await face.token(), await face.token()
    for method in ("GET", "HEAD", "DELETE"):
        (await face.call(method, "/v3/auth/tokens", None, mine, x_subject_token=theirs)).expect(403)
        (await face.call(method, "/v3/auth/tokens", None, mine, x_subject_token="no")).expect(403)
        (await face.call(method, "/v3/auth/tokens", None, mine)).expect(403)
    assert await face.works(theirs)
    service = await face.token("service")
    assert (await inspected(face, service, theirs))["token"]["project"]
    (await face.call("DELETE", "/v3/auth/tokens", None, service, x_subject_token=theirs)).expect(403)
    system = await face.user(None)
    role = f"/v3/system/users/{system['id']}/roles/{face.day.roles['reader']}"
    (await face.call("PUT", role)).expect(204)
    auditor = await face.login(system, {"system": {"all": True}})
    assert (await inspected(face, auditor, theirs))["token"]["project"]


async def test_a_look_at_a_token_has_no_body(face: Face) -> None:
    token = await face.token()
    reply = await face.call("HEAD", "/v3/auth/tokens", None, token, x_subject_token=token)
    assert reply.expect(200).headers["x-subject-token"] == token
    (await face.call("HEAD", "/v3/auth/tokens", x_subject_token="no")).expect(404)


# ---- what makes tokens worse, at once ----


async def dies(face: Face, token: str, method: str, path: str, body: Any = None) -> None:
    """The token works, and after a call of the administrator does not."""
    assert await face.works(token)
    assert (await face.call(method, path, body)).status in (200, 204)
    assert not await face.works(token)


async def test_deletions_end_tokens(face: Face) -> None:
    user = await face.user()
    token = await face.login(user, in_project(user["project_id"]))
    await dies(face, token, "DELETE", f"/v3/users/{user['id']}")
    user = await face.user()
    token = await face.login(user, in_project(user["project_id"]))
    unscoped = await face.login(user)
    await dies(face, token, "DELETE", f"/v3/projects/{user['project_id']}")
    assert await face.works(unscoped)


async def test_losing_the_last_role_ends_a_token(face: Face) -> None:
    user = await face.user()
    token = await face.login(user, in_project(user["project_id"]))
    await face.assign("reader", user["id"], user["project_id"])
    roles = f"/v3/projects/{user['project_id']}/users/{user['id']}/roles/"
    (await face.call("DELETE", roles + face.day.roles["member"])).expect(204)
    assert (await face.identity.validate(token, "")).roles == {"reader"}
    await dies(face, token, "DELETE", roles + face.day.roles["reader"])


async def test_losing_a_group_ends_a_token(face: Face) -> None:
    user, group = await face.user(None), await face.make("group")
    where = f"/v3/projects/{user['project_id']}/groups/{group['id']}/roles/{face.day.roles['member']}"
    (await face.call("PUT", where)).expect(204)
    member = f"/v3/groups/{group['id']}/users/{user['id']}"
    for method, path in (("DELETE", member), ("DELETE", where), ("DELETE", f"/v3/groups/{group['id']}")):
        (await face.call("PUT", where)).expect(204)
        (await face.call("PUT", member)).expect(204)
        token = await face.login(user, in_project(user["project_id"]))
        assert (await face.identity.validate(token, "")).roles == {"member", "reader"}
        await dies(face, token, method, path)


async def test_disabling_ends_tokens_for_good(face: Face) -> None:
    domain = await face.make("domain")
    user = await face.user(domain_id=domain["id"])
    guest = await face.user(project=(await face.make("project", domain_id=domain["id"]))["id"])
    for kind, id, who in (
        ("user", user["id"], user),
        ("project", user["project_id"], user),
        ("domain", domain["id"], user),
        ("domain", domain["id"], guest),
    ):
        token = await face.login(who, in_project(who["project_id"]))
        path = f"/v3/{kind}s/{id}"
        await dies(face, token, "PATCH", path, {kind: {"enabled": False}})
        (await face.call("PATCH", path, {kind: {"enabled": True}})).expect(200)
        assert not await face.works(token), "it does not rise again"
        assert await face.works(await face.login(who, in_project(who["project_id"])))


async def test_a_new_password_ends_tokens(face: Face) -> None:
    user = await face.user()
    path = f"/v3/users/{user['id']}"
    token = await face.login(user)
    await dies(face, token, "PATCH", path, {"user": {"password": "new one"}})
    is_fault(await face.authenticate(user), 401)
    user["password"] = "new one"
    token = await face.login(user)
    await dies(
        face,
        token,
        "POST",
        path + "/password",
        {"user": {"password": "newer", "original_password": "new one"}},
    )
    is_fault(await face.authenticate(user), 401)
    await face.login({**user, "password": "newer"})


async def test_other_changes_leave_tokens_alone(face: Face) -> None:
    user = await face.user()
    token = await face.login(user, in_project(user["project_id"]))
    for kind, id in (("user", user["id"]), ("project", user["project_id"])):
        (await face.call("PATCH", f"/v3/{kind}s/{id}", {kind: {"name": fresh("x")}})).expect(200)
        (await face.call("PATCH", f"/v3/{kind}s/{id}", {kind: {"enabled": True}})).expect(200)
    assert await face.works(token)


async def test_another_process_hears_of_it_within_a_second(face: Face) -> None:
    ring = face.identity._ring._directory
    other = BuiltinIdentity(
        face.identity.db, face.clock, ring, recheck=1.0, passwords=Passwords(face.clock, CHEAP)
    )
    user = await face.user()
    token = await face.login(user, in_project(user["project_id"]))
    assert (await other.validate(token, "")).user_id == user["id"]
    (await face.call("DELETE", f"/v3/users/{user['id']}")).expect(204)
    face.clock.advance(1)
    with pytest.raises(Unauthenticated):
        await other.validate(token, "")
    other.close()


# ---- what is no token ----


async def test_forged_tokens(face: Face) -> None:
    token = await face.token()
    payload = tokens.unseal(face.identity._ring, token)
    foreign = Fernet(Fernet.generate_key()).encrypt(tokens._encode(payload)).decode()
    other_release = face.identity._ring.seal(b"\x93\x01\x02\x03", face.clock.now())
    no_json = base64.urlsafe_b64encode(json.dumps({"user_id": face.day.users["admin"]}).encode()).decode()
    for bad in (
        foreign,
        other_release,
        no_json,
        token[:-1],
        token[1:],
        token + "A",
        token + "=",
        token[: len(token) // 2],
        token * 2,
        "gAAAA" + "A" * 200,
        "x" * 60_000,
        "admin",
        " " + token,
        token + "\t",
        "\xff\xfe",
        "{}",
        "null",
        face.day.users["admin"],
    ):
        assert not await face.works(bad), bad[:80]
        is_fault(await face.call("GET", "/v3/auth/tokens", x_subject_token=bad), 404)
    is_fault(await face.call("GET", "/v3/users", None, ""), 401)


@given(data=st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
async def test_a_token_with_any_character_changed_is_none(face: Face, data: st.DataObject) -> None:
    token = face.admin
    at = data.draw(st.integers(0, len(token) - 1))
    letter = data.draw(st.sampled_from("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_="))
    changed = token[:at] + letter + token[at + 1 :]
    if changed != token:
        with pytest.raises(Unauthenticated):
            await face.identity.validate(changed, "")


async def test_a_token_has_one_spelling(face: Face) -> None:
    """Base64 has bits at its end that say nothing, and decoders that stop at the padding."""
    user = await face.user()
    unscoped, scoped = await face.login(user), await face.login(user, in_project(user["project_id"]))
    again = {"identity": {"methods": ["token"], "token": {"id": scoped}}}
    reply = await face.call("POST", "/v3/auth/tokens", {"auth": again}, "")
    equal = 0
    for token in (unscoped, scoped, reply.headers["x-subject-token"]):  # of different lengths
        body = token.rstrip("=")
        letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
        spellings = {body[:-1] + letter + token[len(body) :] for letter in letters} | {token + "=", token * 2}
        spellings.discard(token)
        sealed = base64.urlsafe_b64decode(token)
        equal += sum(base64.urlsafe_b64decode(each + "==") == sealed for each in spellings)
        assert [each for each in spellings if await face.works(each)] == []
        assert await face.works(token)
    assert equal, "there was something to see"
