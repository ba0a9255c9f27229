"""Roles, what they imply, and who has which where."""

from __future__ import annotations

import pytest

from tests.api.identity.face import ROOT, Face, fresh, in_project, is_fault

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_a_role_from_create_to_delete(face: Face) -> None:
    role = await face.make("role", description="d", own="x")
    path = f"/v3/roles/{role['id']}"
    assert (role["domain_id"], role["options"], role["own"]) == (None, {}, "x")
    assert await face.get(path) == {"role": role}
    assert (await face.get(f"/v3/roles?name={role['name']}"))["roles"] == [role]
    assert (await face.get("/v3/roles?domain_id=default"))["roles"] == []
    is_fault(await face.call("POST", "/v3/roles", {"role": {"name": role["name"]}}), 409)
    is_fault(
        await face.call("POST", "/v3/roles", {"role": {"name": fresh("r"), "domain_id": "default"}}), 400
    )
    for bad in ({}, {"name": ""}, {"name": 5}, {"name": "x" * 256}):
        is_fault(await face.call("POST", "/v3/roles", {"role": bad}), 400)
    changed = await face.call("PATCH", path, {"role": {"name": fresh("r"), "description": None}})
    assert changed.expect(200).json["role"]["description"] is None
    user = await face.user(None)
    where = f"/v3/projects/{user['project_id']}/users/{user['id']}/roles/{role['id']}"
    (await face.call("PUT", where)).expect(204)
    token = await face.login(user, in_project(user["project_id"]))
    (await face.call("DELETE", path)).expect(204)
    assert not await face.works(token)
    is_fault(await face.call("GET", path), 404)
    assert (await face.get(f"/v3/role_assignments?user.id={user['id']}"))["role_assignments"] == []


async def test_the_roles_of_the_policies_stay(face: Face) -> None:
    found = {each["name"]: each for each in (await face.get("/v3/roles"))["roles"]}
    for name in ("admin", "manager", "member", "reader", "service"):
        assert found[name]["options"] == {"immutable": True}
        path = f"/v3/roles/{found[name]['id']}"
        is_fault(await face.call("DELETE", path), 403)
        is_fault(await face.call("PATCH", path, {"role": {"name": fresh("r")}}), 403)
        (await face.call("PATCH", path, {"role": {"name": name, "description": "ours"}})).expect(200)


async def test_roles_imply_others_as_in_keystone(face: Face) -> None:
    rules = (await face.get("/v3/role_inferences"))["role_inferences"]
    found = {each["prior_role"]["name"]: [one["name"] for one in each["implies"]] for each in rules}
    assert {name: found[name] for name in ("admin", "manager", "member")} == {
        "admin": ["manager"],
        "manager": ["member"],
        "member": ["reader"],
    }
    prior, other = await face.make("role"), await face.make("role")
    path = f"/v3/roles/{prior['id']}/implies/{other['id']}"
    is_fault(await face.call("GET", path), 404)
    is_fault(await face.call("DELETE", path), 404)
    made = (await face.call("PUT", path)).expect(201).json["role_inference"]
    assert (made["prior_role"]["id"], made["implies"]["id"]) == (prior["id"], other["id"])
    for method in ("GET", "HEAD"):
        (await face.call(method, path)).expect(200)
    listed = (await face.get(f"/v3/roles/{prior['id']}/implies"))["role_inference"]
    assert [each["id"] for each in listed["implies"]] == [other["id"]]
    is_fault(await face.call("PUT", f"/v3/roles/{prior['id']}/implies/{prior['id']}"), 400)
    is_fault(await face.call("PUT", f"/v3/roles/{prior['id']}/implies/{'0' * 32}"), 404)

    user = await face.user(None)
    grant = f"/v3/projects/{user['project_id']}/users/{user['id']}/roles/{prior['id']}"
    (await face.call("PUT", grant)).expect(204)
    token = await face.login(user, in_project(user["project_id"]))
    assert (await face.identity.validate(token, "")).roles == {prior["name"], other["name"]}
    # in a circle, which must not turn for ever
    (await face.call("PUT", f"/v3/roles/{other['id']}/implies/{prior['id']}")).expect(201)
    assert (await face.identity.validate(token, "")).roles == {prior["name"], other["name"]}
    (await face.call("DELETE", path)).expect(204)
    assert (await face.identity.validate(token, "")).roles == {prior["name"]}


async def test_grants_on_every_kind_of_target(face: Face) -> None:
    role = face.day.roles["reader"]
    user, group = await face.make("user"), await face.make("group")
    project, domain = await face.make("project"), await face.make("domain")
    for target in (f"projects/{project['id']}", f"domains/{domain['id']}", "system"):
        for actor in (f"users/{user['id']}", f"groups/{group['id']}"):
            path = f"/v3/{target}/{actor}/roles"
            is_fault(await face.call("GET", f"{path}/{role}"), 404)
            is_fault(await face.call("DELETE", f"{path}/{role}"), 404)
            assert (await face.get(path))["roles"] == []
            (await face.call("PUT", f"{path}/{role}")).expect(204)
            (await face.call("PUT", f"{path}/{role}")).expect(204)
            for method in ("GET", "HEAD"):
                (await face.call(method, f"{path}/{role}")).expect(204)
            assert [each["name"] for each in (await face.get(path))["roles"]] == ["reader"]
            is_fault(await face.call("PUT", f"{path}/{'0' * 32}"), 404)
            (await face.call("DELETE", f"{path}/{role}")).expect(204)
            assert (await face.get(path))["roles"] == []
    no = "0" * 32
    for path in (
        f"projects/{no}/users/{user['id']}",
        f"projects/{project['id']}/users/{no}",
        f"domains/{no}/groups/{group['id']}",
        f"projects/{domain['id']}/users/{user['id']}",
        f"projects/{project['id']}/users/{group['id']}",
    ):
        is_fault(await face.call("PUT", f"/v3/{path}/roles/{role}"), 404)
        is_fault(await face.call("GET", f"/v3/{path}/roles"), 404)


async def test_lists_of_assignments(face: Face) -> None:
    member, reader = face.day.roles["member"], face.day.roles["reader"]
    user, group = await face.user(), await face.make("group")
    project = user["project_id"]
    (await face.call("PUT", f"/v3/groups/{group['id']}/users/{user['id']}")).expect(204)
    (await face.call("PUT", f"/v3/projects/{project}/groups/{group['id']}/roles/{reader}")).expect(204)
    (await face.call("PUT", f"/v3/system/users/{user['id']}/roles/{reader}")).expect(204)
    own = {
        "role": {"id": member},
        "user": {"id": user["id"]},
        "scope": {"project": {"id": project}},
        "links": {"assignment": f"{ROOT}/v3/projects/{project}/users/{user['id']}/roles/{member}"},
    }

    async def listed(query: str) -> list[dict[str, object]]:
        found: list[dict[str, object]] = (await face.get(f"/v3/role_assignments?{query}"))["role_assignments"]
        return found

    def who(found: list[dict[str, object]]) -> list[tuple[str, str, str]]:
        result = []
        for each in found:
            actor = "user" if "user" in each else "group"
            (scope,) = each["scope"]  # type: ignore[misc]
            result.append((actor, str(scope), {member: "member", reader: "reader"}[each["role"]["id"]]))  # type: ignore[index]
        return sorted(result)

    assert own in await listed(f"user.id={user['id']}")
    assert who(await listed(f"user.id={user['id']}")) == [
        ("user", "project", "member"),
        ("user", "system", "reader"),
    ]
    assert who(await listed(f"scope.project.id={project}")) == [
        ("group", "project", "reader"),
        ("user", "project", "member"),
    ]
    assert who(await listed(f"scope.project.id={project}&role.id={reader}")) == [
        ("group", "project", "reader")
    ]
    assert who(await listed(f"group.id={group['id']}")) == [("group", "project", "reader")]
    assert who(await listed(f"scope.system=all&user.id={user['id']}")) == [("user", "system", "reader")]
    assert who(await listed(f"scope.project.id={project}&effective")) == [
        ("user", "project", "member"),
        ("user", "project", "reader"),
    ]
    assert who(await listed(f"user.id={user['id']}&effective=true&role.id={reader}")) == [
        ("user", "project", "reader"),
        ("user", "system", "reader"),
    ]
    named = await listed(f"user.id={user['id']}&scope.project.id={project}&include_names=True")
    default = {"id": "default", "name": "Default"}
    assert named[0]["user"] == {"id": user["id"], "name": user["name"], "domain": default}
    assert named[0]["role"] == {"id": member, "name": "member"}
    assert named[0]["scope"]["project"]["domain"] == default  # type: ignore[index]
    for query in (
        f"user.id={user['id']}&group.id={group['id']}",
        f"scope.project.id={project}&scope.domain.id=default",
        f"scope.project.id={project}&scope.system=all",
        f"group.id={group['id']}&effective",
    ):
        is_fault(await face.call("GET", f"/v3/role_assignments?{query}"), 400)


async def test_assignments_below_a_project(face: Face) -> None:
    top = (await face.make("project"))["id"]
    middle = (await face.make("project", parent_id=top))["id"]
    low = (await face.make("project", parent_id=middle))["id"]
    user = await face.user("member", low)
    await face.assign("reader", user["id"], top)
    path = f"/v3/role_assignments?scope.project.id={top}"
    for query, count in (("", 1), ("&include_subtree", 2), ("&include_subtree=0", 1)):
        assert len((await face.get(path + query))["role_assignments"]) == count
    found = await face.get(f"/v3/role_assignments?scope.project.id={middle}&include_subtree=true&effective")
    assert len(found["role_assignments"]) == 2
    is_fault(await face.call("GET", "/v3/role_assignments?include_subtree"), 400)
