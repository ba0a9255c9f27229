"""What every identity service behind the Protocol does."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from kilonova.errors import Unauthenticated
from kilonova.services.identity.port import Identity
from tests.contract.rigs import Rig, new


@pytest.fixture
def identity(rig: Rig) -> Identity:
    assert rig.identity is not None
    return rig.identity


class People:
    """Accounts and their tokens, made by the API."""

    def __init__(self, rig: Rig) -> None:
        self.rest = rig.rest

    async def made(self, kind: str, **values: Any) -> dict[str, Any]:
        reply = await self.rest("POST", f"/v3/{kind}s", {kind: {"name": new(), **values}})
        found: dict[str, Any] = reply.expect(201).json[kind]
        return found

    async def role(self, name: str) -> str:
        found = (await self.rest("GET", f"/v3/roles?name={name}")).expect(200).json["roles"]
        return str(found[0]["id"])

    async def account(self, role: str = "member") -> dict[str, Any]:
        user, project = await self.made("user", password="pw"), await self.made("project")
        path = f"/v3/projects/{project['id']}/users/{user['id']}/roles/{await self.role(role)}"
        (await self.rest("PUT", path)).expect(204)
        return {**user, "project": project, "grant": path}

    async def token(self, user: dict[str, Any], scope: Any = None) -> str:
        methods = {"methods": ["password"], "password": {"user": {"id": user["id"], "password": "pw"}}}
        wanted = scope or {"project": {"id": user["project"]["id"]}}
        body = {"auth": {"identity": methods, "scope": wanted}}
        return (await self.rest("POST", "/v3/auth/tokens", body, "")).expect(201).headers["x-subject-token"]


@pytest.fixture
def people(rig: Rig) -> People:
    return People(rig)


async def test_the_bearer_of_a_token(identity: Identity, people: People) -> None:
    user = await people.account()
    token = await people.token(user)
    found = await identity.validate(token, "req-42")
    assert (found.request_id, found.user_id, found.user_name) == ("req-42", user["id"], user["name"])
    assert (found.project_id, found.project_name) == (user["project"]["id"], user["project"]["name"])
    assert (found.domain_id, found.system_scope, found.is_admin) == (None, False, False)
    assert found.roles == {"member", "reader"}, "implied roles are there"
    assert token not in repr(found), "the token itself goes no further"
    again = await identity.validate(token, "req-43")
    assert (again.request_id, again.token_id) == ("req-43", found.token_id)
    other = await identity.validate(await people.token(user), "req-44")
    assert other.token_id != found.token_id


@pytest.mark.parametrize(
    ("role", "roles"),
    [
        ("reader", {"reader"}),
        ("manager", {"manager", "member", "reader"}),
        ("admin", {"admin", "manager", "member", "reader"}),
        ("service", {"service"}),
    ],
)
async def test_roles_and_what_they_imply(
    identity: Identity, people: People, role: str, roles: set[str]
) -> None:
    found = await identity.validate(await people.token(await people.account(role)), "")
    assert found.roles == roles and found.is_admin is (role == "admin")


async def test_tokens_for_the_system_and_for_a_domain(identity: Identity, people: People) -> None:
    user = await people.account()
    reader = await people.role("reader")
    for path in (f"/v3/system/users/{user['id']}", f"/v3/domains/default/users/{user['id']}"):
        (await people.rest("PUT", f"{path}/roles/{reader}")).expect(204)
    found = await identity.validate(await people.token(user, {"system": {"all": True}}), "")
    assert (found.system_scope, found.project_id, found.roles) == (True, None, {"reader"})
    found = await identity.validate(await people.token(user, {"domain": {"id": "default"}}), "")
    assert (found.domain_id, found.project_id, found.system_scope) == ("default", None, False)


@pytest.mark.parametrize(
    "token", ["", " ", "nonsense", "gAAAAAB" + "x" * 180, "x" * 20_000, "\u00e9", "a\nb", "../../etc", "null"]
)
async def test_what_is_no_token(identity: Identity, people: People, token: str) -> None:
    with pytest.raises(Unauthenticated) as refused:
        await identity.validate(token, "req-1")
    assert not token.strip() or token not in str(refused.value)


async def test_a_part_of_a_token_is_none(identity: Identity, people: People) -> None:
    token = await people.token(await people.account())
    for part in (token[:-1], token[1:], token[:20], token + "A", token.swapcase()):
        with pytest.raises(Unauthenticated):
            await identity.validate(part, "")
    await identity.validate(token, "")


async def test_a_token_ends_in_its_time(identity: Identity, people: People, rig: Rig) -> None:
    token = await people.token(await people.account())
    await identity.validate(token, "")
    rig.pass_seconds(3599)
    await identity.validate(token, "")
    rig.pass_seconds(1)
    with pytest.raises(Unauthenticated):
        await identity.validate(token, "")


@pytest.mark.parametrize("how", ["revoked", "user gone", "project gone", "role gone", "disabled", "password"])
async def test_a_token_that_was_good_a_moment_ago(identity: Identity, people: People, how: str) -> None:
    user = await people.account()
    token, bystander = await people.token(user), await people.token(await people.account())
    await identity.validate(token, "")
    path, body = f"/v3/users/{user['id']}", {"user": {"enabled": False}}
    if how == "revoked":
        (await people.rest("DELETE", "/v3/auth/tokens", x_subject_token=token)).expect(204)
    elif how == "user gone":
        (await people.rest("DELETE", path)).expect(204)
    elif how == "project gone":
        (await people.rest("DELETE", f"/v3/projects/{user['project']['id']}")).expect(204)
    elif how == "role gone":
        (await people.rest("DELETE", user["grant"])).expect(204)
    else:
        change = body if how == "disabled" else {"user": {"password": "new"}}
        (await people.rest("PATCH", path, change)).expect(200)
    with pytest.raises(Unauthenticated):
        await identity.validate(token, "")
    await identity.validate(bystander, "")


async def test_many_at_once(identity: Identity, people: People) -> None:
    tokens = [await people.token(await people.account()) for _ in range(4)]
    found = await asyncio.gather(*(identity.validate(tokens[n % 4], f"req-{n}") for n in range(64)))
    assert [each.request_id for each in found] == [f"req-{n}" for n in range(64)]
    assert all(found[n].user_id == found[n % 4].user_id for n in range(64))
    assert len({each.user_id for each in found}) == 4


async def test_whether_there_is_a_project(identity: Identity, people: People) -> None:
    project = await people.made("project")
    assert await identity.project_exists(project["id"])
    for no in (new(), "", "x" * 300, project["name"], "a/b"):
        assert not await identity.project_exists(no)
    (await people.rest("DELETE", f"/v3/projects/{project['id']}")).expect(204)
    assert not await identity.project_exists(project["id"])
