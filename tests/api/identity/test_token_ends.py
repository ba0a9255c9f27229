"""The end of tokens: in their time, before it, and of what was never one."""

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
from kilonova.services.identity import tokens
from kilonova.services.identity.builtin import LIFETIME, BuiltinIdentity
from kilonova.services.identity.passwords import Passwords
from tests.api.identity.conftest import CHEAP
from tests.api.identity.face import Face, fresh, in_project, inspected, is_fault

pytestmark = pytest.mark.asyncio(loop_scope="module")

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
    another = await face.token()  # with which old revocations are cleared away
    (await face.call("DELETE", "/v3/auth/tokens", x_subject_token=another)).expect(204)
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
