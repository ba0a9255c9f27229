"""Projects and domains over HTTP."""

from __future__ import annotations

from typing import Any

import pytest

from tests.api.identity.face import ROOT, Face, fresh, in_project, is_fault

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_a_project_from_create_to_delete(face: Face) -> None:
    name = fresh("project")
    body = {"project": {"name": name, "description": "d", "tags": ["b", "a", "a"], "own": 1}}
    made = (await face.call("POST", "/v3/projects", body)).expect(201).json["project"]
    assert made == {
        "id": made["id"],
        "name": name,
        "domain_id": "default",
        "parent_id": "default",
        "description": "d",
        "enabled": True,
        "is_domain": False,
        "tags": ["a", "b"],
        "own": 1,
        "options": {},
        "links": {"self": f"{ROOT}/v3/projects/{made['id']}"},
    }
    path = f"/v3/projects/{made['id']}"
    assert await face.get(path) == {"project": made}
    change = {"project": {"description": None, "tags": [], "own": 2, "is_domain": False}}
    changed = (await face.call("PATCH", path, change)).expect(200).json["project"]
    assert changed == {**made, "description": "", "tags": [], "own": 2}
    (await face.call("DELETE", path)).expect(204)
    for method in ("GET", "HEAD", "DELETE"):
        (await face.call(method, path)).expect(404)
    is_fault(await face.call("PATCH", path, {"project": {}}), 404)


async def test_a_tree_of_projects(face: Face) -> None:
    top = await face.make("project")
    below = await face.make("project", parent_id=top["id"])
    assert below["parent_id"] == top["id"]
    found = (await face.get(f"/v3/projects?parent_id={top['id']}"))["projects"]
    assert [each["id"] for each in found] == [below["id"]]
    is_fault(await face.call("DELETE", f"/v3/projects/{top['id']}"), 403)
    other = await face.make("domain")
    for values, status in (
        ({"parent_id": "0" * 32}, 404),
        ({"parent_id": top["id"], "domain_id": other["id"]}, 404),
        ({"domain_id": "0" * 32}, 404),
        ({"is_domain": True}, 400),
    ):
        is_fault(await face.call("POST", "/v3/projects", {"project": {"name": fresh("p"), **values}}), status)
    path = f"/v3/projects/{below['id']}"
    is_fault(await face.call("PATCH", path, {"project": {"parent_id": "default"}}), 400)
    is_fault(await face.call("PATCH", path, {"project": {"domain_id": other["id"]}}), 400)
    (await face.call("DELETE", path)).expect(204)
    (await face.call("DELETE", f"/v3/projects/{top['id']}")).expect(204)


async def test_lists_of_projects(face: Face) -> None:
    domain = (await face.make("domain"))["id"]
    for n, tags in enumerate(([], ["a"], ["a", "b"], ["b", "c"])):
        await face.make("project", name=f"p{n}", domain_id=domain, enabled=n != 0, tags=tags)

    async def listed(query: str) -> list[str]:
        found = (await face.get(f"/v3/projects?domain_id={domain}&{query}"))["projects"]
        return sorted(each["name"] for each in found)

    assert await listed("") == ["p0", "p1", "p2", "p3"]
    assert await listed("name=p2") == ["p2"]
    assert await listed("enabled=false") == ["p0"]
    assert await listed("is_domain=true") == []
    assert await listed("is_domain=false") == ["p0", "p1", "p2", "p3"]
    assert await listed("tags=a") == ["p1", "p2"]
    assert await listed("tags=a,b") == ["p2"]
    assert await listed("tags-any=a,c") == ["p1", "p2", "p3"]
    assert await listed("not-tags=a,b") == ["p0", "p1", "p3"]
    assert await listed("not-tags-any=a,b") == ["p0"]
    assert await listed("tags=a&not-tags=b") == ["p1"]
    assert await listed("tags-any=a,b&limit=10") == ["p1", "p2", "p3"]
    assert await listed("tags=d") == []


async def test_the_tags_of_a_project(face: Face) -> None:
    """The calls of openstacksdk and gophercloud."""
    project = await face.make("project", tags=["a"])
    path = f"/v3/projects/{project['id']}/tags"
    assert (await face.get(path))["tags"] == ["a"]
    (await face.call("PUT", path + "/b")).expect(201)
    (await face.call("PUT", path + "/b")).expect(201)
    assert (await face.get(path))["tags"] == ["a", "b"]
    (await face.call("GET", path + "/b")).expect(204)
    (await face.call("HEAD", path + "/c")).expect(404)
    is_fault(await face.call("DELETE", path + "/c"), 404)
    (await face.call("DELETE", path + "/a")).expect(204)
    assert (await face.call("PUT", path, {"tags": ["y", "x"]})).expect(200).json["tags"] == ["x", "y"]
    for bad in (
        {"tags": "x"},
        {"tags": ["a/b"]},
        {"tags": ["a,b"]},
        {"tags": ["x" * 256]},
        {"tags": [""]},
        {},
    ):
        is_fault(await face.call("PUT", path, bad), 400)
    is_fault(await face.call("PUT", path, {"tags": [str(n) for n in range(81)]}), 400)
    is_fault(await face.call("PUT", path + "/" + "x" * 256), 400)
    assert (await face.get(path))["tags"] == ["x", "y"]
    member = await face.token("member", project["id"])
    assert (await face.get(path, member))["tags"] == ["x", "y"]
    is_fault(await face.call("PUT", path + "/z", None, member), 403)
    is_fault(await face.call("GET", path, None, await face.token()), 403)
    (await face.call("DELETE", path)).expect(204)
    assert (await face.get(path))["tags"] == []
    for method in ("GET", "DELETE"):
        is_fault(await face.call(method, f"/v3/projects/{'0' * 32}/tags"), 404)


@pytest.mark.parametrize(
    "values",
    [
        {"name": 5},
        {"name": ""},
        {"name": "x" * 256},
        {"enabled": "true"},
        {"description": 5},
        {"description": "x" * 65_536},
        {"tags": ["a/b"]},
        {"tags": [str(n) for n in range(81)]},
        {"tags": "a"},
        {"domain_id": 5},
        {"parent_id": []},
        {"is_domain": "no"},
    ],
)
async def test_what_can_be_no_project(face: Face, values: Any) -> None:
    is_fault(await face.call("POST", "/v3/projects", {"project": {"name": fresh("p"), **values}}), 400)
    project = await face.make("project")
    is_fault(await face.call("PATCH", f"/v3/projects/{project['id']}", {"project": values}), 400)
    assert await face.get(f"/v3/projects/{project['id']}") == {"project": project}


async def test_a_deleted_project_leaves_nothing(face: Face) -> None:
    user = await face.user()
    where = f"/v3/users/{user['id']}"
    (await face.call("PATCH", where, {"user": {"default_project_id": user["project_id"]}})).expect(200)
    (await face.call("DELETE", f"/v3/projects/{user['project_id']}")).expect(204)
    assert "default_project_id" not in (await face.get(where))["user"]
    assert (await face.get(f"/v3/role_assignments?user.id={user['id']}"))["role_assignments"] == []


async def test_a_domain_from_create_to_delete(face: Face) -> None:
    domain = await face.make("domain", description="d", own=[1], tags=["t"])
    path = f"/v3/domains/{domain['id']}"
    assert await face.get(path) == {"domain": domain}
    assert (domain["enabled"], domain["description"], domain["own"], domain["tags"]) == (
        True,
        "d",
        [1],
        ["t"],
    )
    found = (await face.get(f"/v3/domains?name={domain['name']}"))["domains"]
    assert found == [domain]
    assert (await face.get("/v3/domains?name=Default"))["domains"][0]["id"] == "default"
    is_fault(await face.call("POST", "/v3/domains", {"domain": {"name": domain["name"]}}), 409)
    user = await face.user(domain_id=domain["id"], project=None)
    project = await face.make("project", domain_id=domain["id"])
    group = await face.make("group", domain_id=domain["id"])
    below = await face.make("project", domain_id=domain["id"], parent_id=project["id"])
    is_fault(await face.call("DELETE", path), 403)
    (await face.call("PATCH", path, {"domain": {"enabled": False, "name": fresh("d")}})).expect(200)
    (await face.call("DELETE", path)).expect(204)
    for kind, made in (("user", user), ("project", project), ("project", below), ("group", group)):
        is_fault(await face.call("GET", f"/v3/{kind}s/{made['id']}"), 404)
    assert (await face.get(f"/v3/role_assignments?user.id={user['id']}"))["role_assignments"] == []
    is_fault(await face.call("GET", path), 404)


@pytest.mark.parametrize(
    "values", [{"name": None}, {"name": 1}, {"enabled": 0}, {"description": {}}, {"tags": 1}]
)
async def test_what_can_be_no_domain(face: Face, values: Any) -> None:
    is_fault(await face.call("POST", "/v3/domains", {"domain": {"name": fresh("d"), **values}}), 400)


async def test_a_name_of_a_project_is_given_once_in_a_domain(face: Face) -> None:
    domain, project = await face.make("domain"), await face.make("project")
    is_fault(await face.call("POST", "/v3/projects", {"project": {"name": project["name"]}}), 409)
    twin = await face.make("project", name=project["name"], domain_id=domain["id"])
    user = await face.user()
    await face.assign("member", user["id"], twin["id"])
    scope = {"project": {"name": project["name"], "domain": {"id": "default"}}}
    is_fault(await face.authenticate(user, scope), 401)
    scope["project"]["domain"] = {"name": domain["name"]}
    token = (await face.authenticate(user, scope)).expect(201).json["token"]
    assert token["project"]["id"] == twin["id"]


async def test_the_service_knows_its_projects(face: Face) -> None:
    """What the compute API asks when an administrator sets the quota of a project."""
    project = (await face.make("project"))["id"]
    assert await face.identity.project_exists(project)
    await face.login(await face.user(project=project), in_project(project))
    (await face.call("DELETE", f"/v3/projects/{project}")).expect(204)
    assert not await face.identity.project_exists(project)
