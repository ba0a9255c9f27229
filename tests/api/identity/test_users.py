"""Users, groups and passwords over HTTP."""

from __future__ import annotations

from typing import Any

import pytest

from tests.api.identity.face import ROOT, Face, fresh, in_project, is_fault

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_a_user_from_create_to_delete(face: Face) -> None:
    name = fresh("user")
    body = {"user": {"name": name, "password": "pw", "email": "a@b", "description": "d", "own": {"k": [1]}}}
    made = (await face.call("POST", "/v3/users", body)).expect(201).json["user"]
    id = made["id"]
    assert made == {
        "id": id,
        "name": name,
        "domain_id": "default",
        "enabled": True,
        "email": "a@b",
        "description": "d",
        "own": {"k": [1]},
        "password_expires_at": None,
        "options": {},
        "links": {"self": f"{ROOT}/v3/users/{id}"},
    }
    assert len(id) == 32 and int(id, 16)
    assert await face.get(f"/v3/users/{id}") == {"user": made}
    assert made in (await face.get("/v3/users"))["users"]
    change = {"user": {"name": name + "x", "email": None, "own": "new", "enabled": False, "id": id}}
    changed = (await face.call("PATCH", f"/v3/users/{id}", change)).expect(200).json["user"]
    assert changed == {**made, "name": name + "x", "email": None, "own": "new", "enabled": False}
    (await face.call("DELETE", f"/v3/users/{id}")).expect(204)
    for method in ("GET", "HEAD", "DELETE"):
        (await face.call(method, f"/v3/users/{id}")).expect(404)
    assert id in is_fault(await face.call("PATCH", f"/v3/users/{id}", {"user": {}}), 404)


async def test_a_user_takes_what_depends_on_it_along(face: Face) -> None:
    user, group = await face.user(), await face.make("group")
    (await face.call("PUT", f"/v3/groups/{group['id']}/users/{user['id']}")).expect(204)
    (await face.call("DELETE", f"/v3/users/{user['id']}")).expect(204)
    assert (await face.get(f"/v3/groups/{group['id']}/users"))["users"] == []
    assert (await face.get(f"/v3/role_assignments?user.id={user['id']}"))["role_assignments"] == []
    again = await face.make("user", name=user["name"], password=user["password"])
    assert again["id"] != user["id"]
    assert (await face.get(f"/v3/role_assignments?user.id={again['id']}"))["role_assignments"] == []


async def test_a_name_is_given_once_in_a_domain(face: Face) -> None:
    user, domain = await face.make("user"), await face.make("domain")
    assert user["name"] in is_fault(
        await face.call("POST", "/v3/users", {"user": {"name": user["name"]}}), 409
    )
    elsewhere = await face.make("user", name=user["name"], domain_id=domain["id"])
    assert elsewhere["domain_id"] == domain["id"]
    other = await face.make("user")
    where = f"/v3/users/{other['id']}"
    is_fault(await face.call("PATCH", where, {"user": {"name": user["name"]}}), 409)
    (await face.call("PATCH", where, {"user": {"name": other["name"]}})).expect(200)
    is_fault(await face.call("PATCH", where, {"user": {"domain_id": domain["id"]}}), 400)
    (await face.call("PATCH", where, {"user": {"domain_id": "default"}})).expect(200)


async def test_lists_are_filtered_and_paged(face: Face) -> None:
    domain = (await face.make("domain"))["id"]
    made = [await face.make("user", name=f"u{n}", domain_id=domain, enabled=n % 2 == 0) for n in range(7)]
    names = {each["id"]: each["name"] for each in made}

    async def listed(query: str) -> list[str]:
        found = (await face.get(f"/v3/users?domain_id={domain}&{query}"))["users"]
        return sorted(names[each["id"]] for each in found)

    assert await listed("") == sorted(names.values())
    assert await listed("name=u3") == ["u3"]
    assert await listed("name=U3") == []
    assert await listed("enabled=true") == await listed("enabled") == ["u0", "u2", "u4", "u6"]
    assert await listed("enabled=false") == await listed("enabled=0") == ["u1", "u3", "u5"]
    assert await listed("name__contains=5") == await listed("name__endswith=5") == ["u5"]
    assert await listed("name__istartswith=U&enabled=False") == ["u1", "u3", "u5"]
    assert await listed("name__startswith=U") == []
    assert len(await listed("name__contains=u&limit=2")) == 2
    assert await listed("unknown=x") == sorted(names.values())
    walked: list[str] = []
    path = f"/v3/users?domain_id={domain}&limit=3"
    while path:
        page = await face.get(path)
        assert len(page["users"]) <= 3
        assert page["links"]["self"] == ROOT + path
        walked += [each["id"] for each in page["users"]]
        path = (page["links"]["next"] or "").removeprefix(ROOT)
        assert not path or f"domain_id={domain}" in path
    assert sorted(walked) == sorted(names)
    path = f"/identity/v3/users?domain_id={domain}&limit=3"
    assert (await face.get(path))["links"]["next"].startswith(ROOT + "/identity/v3/users?")
    for limit in ("0", "-1", "x", "1.5", "\u0663", "9" * 12, "1e3"):
        is_fault(await face.call("GET", f"/v3/users?limit={limit}"), 400)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"name": None},
        {"name": 5},
        {"name": ""},
        {"name": "   "},
        {"name": "x" * 256},
        {"name": "x\0"},
        {"name": "x", "enabled": "yes"},
        {"name": "x", "enabled": 1},
        {"name": "x", "password": 5},
        {"name": "x", "password": "x" * 4097},
        {"name": "x", "email": ["a"]},
        {"name": "x", "domain_id": "../x"},
        {"name": "x", "domain_id": "a\n"},
        {"name": "x", "default_project_id": 7},
        {"name": "x", "options": "x"},
    ],
)
async def test_what_can_be_no_user(face: Face, values: Any) -> None:
    before = len((await face.get("/v3/users"))["users"])
    is_fault(await face.call("POST", "/v3/users", {"user": values}), 400)
    assert len((await face.get("/v3/users"))["users"]) == before


async def test_a_user_of_no_domain(face: Face) -> None:
    is_fault(await face.call("POST", "/v3/users", {"user": {"name": "x", "domain_id": "0" * 32}}), 404)
    made = await face.make("user", domain_id=None)
    assert made["domain_id"] == "default"


async def test_ones_own_password(face: Face) -> None:
    user = await face.user()
    path = f"/v3/users/{user['id']}/password"

    def body(old: Any, new: Any) -> dict[str, Any]:
        return {"user": {"original_password": old, "password": new}}

    token = await face.login(user, in_project(user["project_id"]))
    is_fault(await face.call("POST", path, body("wrong", "n"), token), 401)
    is_fault(await face.call("POST", "/v3/users/" + "0" * 32 + "/password", body("x", "n"), token), 401)
    for bad in ({}, {"user": {}}, body(None, "x"), body(user["password"], None), body("x", "x" * 4097)):
        is_fault(await face.call("POST", path, bad, token), 400)
    assert await face.works(token), "a refused change changes nothing"
    (await face.call("POST", path, body(user["password"], "second"), token)).expect(204)
    (await face.call("POST", path, body("second", "third"), "")).expect(204)  # as in Keystone
    is_fault(await face.call("POST", path, body("second", "fourth"), ""), 401)
    await face.login({**user, "password": "third"})
    (await face.call("PATCH", f"/v3/users/{user['id']}", {"user": {"enabled": False}})).expect(200)
    is_fault(await face.call("POST", path, body("third", "fourth"), ""), 401)


async def test_a_password_can_be_taken_away(face: Face) -> None:
    user = await face.user()
    (await face.call("PATCH", f"/v3/users/{user['id']}", {"user": {"password": None}})).expect(200)
    for password in (user["password"], "", "None", "null"):
        is_fault(await face.authenticate({**user, "password": password}), 401)
    (await face.call("PATCH", f"/v3/users/{user['id']}", {"user": {"password": "back"}})).expect(200)
    await face.login({**user, "password": "back"})


async def test_what_a_user_may_see_of_oneself(face: Face) -> None:
    user, other = await face.user(), await face.user()
    token = await face.login(user)
    mine = f"/v3/users/{user['id']}"
    assert (await face.get(mine, token))["user"]["name"] == user["name"]
    found = (await face.get(mine + "/projects", token))["projects"]
    assert [each["id"] for each in found] == [user["project_id"]]
    assert (await face.get(mine + "/groups", token))["groups"] == []
    assert (await face.get(f"/v3/role_assignments?user.id={user['id']}", token))["role_assignments"]
    assert (await face.get(f"/v3/projects/{user['project_id']}", token))["project"]["enabled"]
    for path in (
        f"/v3/users/{other['id']}",
        f"/v3/users/{other['id']}/projects",
        f"/v3/users/{other['id']}/groups",
        f"/v3/role_assignments?user.id={other['id']}",
        f"/v3/projects/{other['project_id']}",
        "/v3/users/" + "0" * 32,
        "/v3/users",
    ):
        is_fault(await face.call("GET", path, None, token), 403)


async def test_groups(face: Face) -> None:
    group = await face.make("group", description="d")
    assert (group["domain_id"], group["description"]) == ("default", "d")
    path = f"/v3/groups/{group['id']}"
    assert await face.get(path) == {"group": group}
    users = [await face.make("user") for _ in range(3)]
    for user in users:
        (await face.call("PUT", f"{path}/users/{user['id']}")).expect(204)
        (await face.call("PUT", f"{path}/users/{user['id']}")).expect(204)
    members = (await face.get(path + "/users"))["users"]
    assert sorted(each["id"] for each in members) == sorted(each["id"] for each in users)
    one = users[0]["id"]
    for method in ("GET", "HEAD"):
        (await face.call(method, f"{path}/users/{one}")).expect(204)
    assert [each["id"] for each in (await face.get(f"/v3/users/{one}/groups"))["groups"]] == [group["id"]]
    (await face.call("DELETE", f"{path}/users/{one}")).expect(204)
    for method in ("GET", "DELETE"):
        is_fault(await face.call(method, f"{path}/users/{one}"), 404)
    is_fault(await face.call("PUT", f"{path}/users/{'0' * 32}"), 404)
    is_fault(await face.call("PUT", f"/v3/groups/{'0' * 32}/users/{one}"), 404)
    is_fault(await face.call("POST", "/v3/groups", {"group": {"name": group["name"]}}), 409)
    changed = await face.call("PATCH", path, {"group": {"name": fresh("g"), "description": None}})
    assert changed.expect(200).json["group"]["description"] == ""
    found = (await face.get(f"/v3/groups?name={changed.json['group']['name']}"))["groups"]
    assert [each["id"] for each in found] == [group["id"]]
    (await face.call("DELETE", path)).expect(204)
    is_fault(await face.call("GET", path), 404)
    assert (await face.get(f"/v3/users/{users[1]['id']}/groups"))["groups"] == []
