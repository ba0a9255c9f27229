"""Each microversion changes what its history says: seen at the version before it, and at itself."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from kilonova.services.placement.call import MAX
from kilonova.services.placement.view import SHARES
from tests.api.placement.face import Face, fresh, new
from tests.api.placement.looks import (
    GONE,
    body_of,
    candidates,
    in_aggregate,
    listed,
    own_class,
    served_by,
    status,
    with_traits,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

Look = Callable[[Face, int], Awaitable[Any]]
CHANGES: list[tuple[int, str, Look, Any, Any]] = []
AVX, SSE = "HW_CPU_X86_AVX", "HW_CPU_X86_SSE"


def change(version: int, before: Any, after: Any) -> Callable[[Look], Look]:
    """What is seen by a look at the version before a change, and at it."""

    def decorate(look: Look) -> Look:
        CHANGES.append((version, look.__name__, look, before, after))
        return look

    return decorate


# ---- 1.1 to 1.9 ----


@change(1, 404, 200)
async def aggregates(face: Face, v: int) -> Any:
    id = await face.provider()
    assert await status(face, "PUT", f"/resource_providers/{id}/aggregates", [new()], v=v) in (200, 404)
    return await status(face, "GET", f"/resource_providers/{id}/aggregates", v=v)


@change(1, False, True)
async def link_to_aggregates(face: Face, v: int) -> Any:
    shown = await face.get(f"/resource_providers/{await face.provider()}", v=v)
    return "aggregates" in {each["rel"] for each in shown["links"]}


@change(2, [404, 404, 404, 404], [201, 200, 200, 204])
async def resource_classes(face: Face, v: int) -> Any:
    name = f"CUSTOM_{new().replace('-', '').upper()}"
    path = f"/resource_classes/{name}"
    return [
        await status(face, "POST", "/resource_classes", {"name": name}, v=v),
        await status(face, "GET", path, v=v),
        await status(face, "GET", "/resource_classes", v=v),
        await status(face, "DELETE", path, v=v),
    ]


@change(3, 400, [0, 1])
async def member_of(face: Face, v: int) -> Any:
    one, two, three, near, far = (
        await face.provider(),
        await face.provider(),
        await face.provider(),
        new(),
        new(),
    )
    await in_aggregate(face, one, near)
    await in_aggregate(face, two, far)
    return await listed(face, f"member_of=in:{near},{far}", v, one, two, three)


@change(4, 400, [0])
async def resources_of_providers(face: Face, v: int) -> Any:
    name = await own_class(face)
    large, small = await face.provider(**{name: 8}), await face.provider(**{name: 4})
    return await listed(face, f"resources={name}:5", v, large, small)


@change(5, 405, 204)
async def delete_all_inventories(face: Face, v: int) -> Any:
    id = await face.provider(VCPU=1)
    return await status(face, "DELETE", f"/resource_providers/{id}/inventories", v=v)


@change(6, [404] * 6, [201, 204, 200, 200, 204, 204])
async def traits(face: Face, v: int) -> Any:
    id, name = await face.provider(), f"CUSTOM_{new().replace('-', '').upper()}"
    of = f"/resource_providers/{id}/traits"
    return [
        await status(face, "PUT", f"/traits/{name}", v=v),
        await status(face, "GET", f"/traits/{name}", v=v),
        await status(face, "GET", "/traits", v=v),
        await status(face, "PUT", of, {"traits": [AVX], "resource_provider_generation": 0}, v=v),
        await status(face, "DELETE", of, v=v),
        await status(face, "DELETE", f"/traits/{name}", v=v),
    ]


@change(7, [400, 404], [201, 204])
async def put_of_a_class(face: Face, v: int) -> Any:
    """Before, it renames, and says so in its body."""
    path = f"/resource_classes/CUSTOM_{new().replace('-', '').upper()}"
    renames = {"name": f"CUSTOM_{new().replace('-', '').upper()}"}
    return [await status(face, "PUT", path, {}, v=v), await status(face, "PUT", path, renames, v=v)]


@change(8, [204, 400], [400, 204])
async def owners_of_allocations(face: Face, v: int) -> Any:
    id = await face.provider(VCPU=8)
    listed = [{"resource_provider": {"uuid": id}, "resources": {"VCPU": 1}}]
    return [
        await status(face, "PUT", f"/allocations/{new()}", {"allocations": listed}, v=v),
        await status(face, "PUT", f"/allocations/{new()}", body_of(listed), v=v),
    ]


@change(9, 404, 200)
async def usages_of_projects(face: Face, v: int) -> Any:
    return await status(face, "GET", "/usages?project_id=p", v=v)


# ---- 1.10 to 1.19 ----


@change(10, 404, 200)
async def allocation_candidates(face: Face, v: int) -> Any:
    return await status(face, "GET", "/allocation_candidates?resources=VCPU:1", v=v)


@change(11, False, True)
async def link_to_allocations(face: Face, v: int) -> Any:
    shown = await face.get(f"/resource_providers/{await face.provider()}", v=v)
    return "allocations" in {each["rel"] for each in shown["links"]}


@change(12, [204, 400, {"allocations"}], [400, 204, {"allocations", "project_id", "user_id"}])
async def allocations_by_provider(face: Face, v: int) -> Any:
    id, consumer = await face.provider(VCPU=8), new()
    old = [{"resource_provider": {"uuid": id}, "resources": {"VCPU": 1}}]
    path = f"/allocations/{consumer}"
    return [
        await status(face, "PUT", path, body_of(old), v=v),
        await status(face, "PUT", path, body_of({id: {"resources": {"VCPU": 1}}}), v=v),
        set(await face.get(path, v=v)),
    ]


@change(12, list, dict)
async def candidates_by_provider(face: Face, v: int) -> Any:
    name = await own_class(face)
    await face.provider(**{name: 1})
    found = await candidates(face, f"resources={name}:1", v)
    return type(found["allocation_requests"][0]["allocations"])


@change(13, 404, 204)
async def several_consumers(face: Face, v: int) -> Any:
    id = await face.provider(VCPU=8)
    return await status(face, "POST", "/allocations", {new(): body_of({id: {"resources": {"VCPU": 1}}})}, v=v)


@change(14, [False, 400, 400], [True, [0, 1], 200])
async def trees(face: Face, v: int) -> Any:
    top = await face.provider()
    low = await face.provider(parent=top)
    shown = await face.get(f"/resource_providers/{low}", v=v)
    body = {"name": fresh("child"), "parent_provider_uuid": top}
    reply = await face.call("POST", "/resource_providers", body, v=v)
    return [
        shown.get("parent_provider_uuid") == shown.get("root_provider_uuid") == top,
        await listed(face, f"in_tree={low}", v, top, low),
        200 if reply.status == 201 else reply.status,
    ]


@change(15, [None, False], ["no-cache", True])
async def headers_for_caches(face: Face, v: int) -> Any:
    reply = await face.call("GET", "/allocation_candidates?resources=VCPU:1", v=v)
    return [reply.headers.get("cache-control"), "last-modified" in reply.headers]


@change(16, GONE, [1, 1])
async def limit(face: Face, v: int) -> Any:
    name = await own_class(face)
    for _ in range(3):
        await face.provider(**{name: 1})
    return await served_by(face, f"resources={name}:1&limit=2", v)


@change(17, [GONE, False], [[1], True])
async def required_of_candidates(face: Face, v: int) -> Any:
    name = await own_class(face)
    await with_traits(face, [AVX], **{name: 1})
    await face.provider(**{name: 1})
    (one, _) = (await candidates(face, f"resources={name}:1", v))["provider_summaries"].values()
    return [await served_by(face, f"resources={name}:1&required={AVX}", v), "traits" in one]


@change(18, 400, [0])
async def required_of_providers(face: Face, v: int) -> Any:
    return await listed(face, f"required={AVX}", v, await with_traits(face, [AVX]), await face.provider())


@change(19, [{"aggregates"}, 200, 400, 0], [{"aggregates", "resource_provider_generation"}, 400, 200, 1])
async def generations_of_aggregates(face: Face, v: int) -> Any:
    id = await face.provider()
    path = f"/resource_providers/{id}/aggregates"
    body = {"aggregates": [new()], "resource_provider_generation": 0}
    return [
        set(await face.get(path, v=v)),
        await status(face, "PUT", path, [new()], v=v),
        await status(face, "PUT", path, body, v=v),
        await face.generation(id),
    ]


# ---- 1.20 to 1.29 ----


@change(20, [201, b""], [200, True])
async def a_new_provider_is_shown(face: Face, v: int) -> Any:
    reply = await face.call("POST", "/resource_providers", {"name": fresh("host")}, v=v)
    return [reply.status, reply.content and reply.json["generation"] == 0]


@change(21, GONE, [1])
async def member_of_candidates(face: Face, v: int) -> Any:
    name, aggregate = await own_class(face), new()
    await in_aggregate(face, await face.provider(**{name: 1}), aggregate)
    await face.provider(**{name: 1})
    return await served_by(face, f"resources={name}:1&member_of={aggregate}", v)


@change(22, [400, 400], [[1], 200])
async def forbidden_traits(face: Face, v: int) -> Any:
    name = await own_class(face)
    await with_traits(face, [AVX], **{name: 1})
    await face.provider(**{name: 1})
    query = f"/allocation_candidates?resources={name}:1&required=!{AVX}"
    reply = await face.call("GET", query, v=v)
    counts = [len(each["allocations"]) for each in reply.json.get("allocation_requests", [])]
    return [counts or reply.status, await status(face, "GET", f"/resource_providers?required=!{AVX}", v=v)]


@change(23, None, "placement.undefined_code")
async def codes_of_errors(face: Face, v: int) -> Any:
    reply = await face.call("GET", f"/resource_providers/{new()}", v=v)
    return reply.expect(404).json["errors"][0].get("code")


@change(24, [400, 400], [[0], [1]])
async def several_member_of(face: Face, v: int) -> Any:
    name, near, far = await own_class(face), new(), new()
    one, two = await face.provider(**{name: 1}), await face.provider(**{name: 1})
    await in_aggregate(face, one, near, far)
    await in_aggregate(face, two, near)
    both = f"member_of={near}&member_of={far}"
    reply = await face.call("GET", f"/allocation_candidates?resources={name}:1&{both}", v=v)
    counts = [len(each["allocations"]) for each in reply.json.get("allocation_requests", [])]
    return [await listed(face, both, v, one, two), counts or reply.status]


@change(25, GONE, [2, 2])
async def numbered_groups(face: Face, v: int) -> Any:
    name, aggregate = await own_class(face), new()
    host = await face.provider(**{name: 1})
    store = await with_traits(face, [SHARES], **{name: 1})
    for each in (host, store):
        await in_aggregate(face, each, aggregate)
    found = await served_by(face, f"resources1={name}:1&resources2={name}:1&group_policy=isolate", v)
    # without mappings it does not matter who serves which group
    return found if found == GONE else found * 2


@change(26, 400, 200)
async def all_of_it_reserved(face: Face, v: int) -> Any:
    body = {"resource_provider_generation": 0, "inventories": {"VCPU": {"total": 4, "reserved": 4}}}
    return await status(face, "PUT", f"/resource_providers/{await face.provider()}/inventories", body, v=v)


@change(27, 1, 2)
async def all_classes_in_summaries(face: Face, v: int) -> Any:
    name = await own_class(face)
    await face.provider(**{name: 1, "DISK_GB": 1})
    (one,) = (await candidates(face, f"resources={name}:1", v))["provider_summaries"].values()
    return len(one["resources"])


@change(28, [204, 400, False, False, 400], [400, 204, True, True, 204])
async def generations_of_consumers(face: Face, v: int) -> Any:
    id, consumer = await face.provider(VCPU=8), new()
    path, allocations = f"/allocations/{consumer}", {id: {"resources": {"VCPU": 1}}}
    results: list[Any] = [
        await status(face, "PUT", path, body_of(allocations), v=v),
        await status(face, "PUT", path, body_of(allocations, consumer_generation=None), v=v),
        "consumer_generation" in await face.get(path, v=v),
    ]
    of = await face.get(f"/resource_providers/{id}/allocations", v=v)
    results.append("consumer_generation" in of["allocations"][consumer])
    more = {"consumer_generation": 1} if v >= 28 else {}
    results.append(await status(face, "PUT", path, body_of({}, **more), v=v))
    return results


@change(29, [[], []], [[2], [None, "top"]])
async def candidates_in_trees(face: Face, v: int) -> Any:
    one, two = await own_class(face), await own_class(face)
    top = await face.provider(**{one: 1})
    await face.provider(parent=top, **{two: 1})
    found = await candidates(face, f"resources={one}:1,{two}:1", v)
    parents = [each.get("parent_provider_uuid") for each in found["provider_summaries"].values()]
    names = {None: None, top: "top"}
    return [
        [len(each["allocations"]) for each in found["allocation_requests"]],
        sorted((names[each] for each in parents), key=str),
    ]


# ---- 1.30 to 1.39 ----


@change(30, 404, 204)
async def the_reshaper(face: Face, v: int) -> Any:
    id = await face.provider()
    inventories = {id: {"resource_provider_generation": 0, "inventories": {"VCPU": {"total": 1}}}}
    return await status(face, "POST", "/reshaper", {"inventories": inventories, "allocations": {}}, v=v)


@change(31, GONE, [1])
async def candidates_of_one_tree(face: Face, v: int) -> Any:
    name = await own_class(face)
    one, _ = await face.provider(**{name: 1}), await face.provider(**{name: 1})
    return await served_by(face, f"resources={name}:1&in_tree={one}", v)


@change(32, [400, 400], [[1], [1]])
async def forbidden_aggregates(face: Face, v: int) -> Any:
    name, aggregate = await own_class(face), new()
    one, two = await face.provider(**{name: 1}), await face.provider(**{name: 1})
    await in_aggregate(face, one, aggregate)
    query = f"/allocation_candidates?resources={name}:1&member_of=!{aggregate}"
    reply = await face.call("GET", query, v=v)
    counts = [len(each["allocations"]) for each in reply.json.get("allocation_requests", [])]
    return [await listed(face, f"member_of=!in:{aggregate}", v, one, two), counts or reply.status]


@change(33, GONE, [1])
async def names_of_groups(face: Face, v: int) -> Any:
    name = await own_class(face)
    await face.provider(**{name: 1})
    return await served_by(face, f"resources_My-Group1={name}:1", v)


@change(34, [None, 400, 400], [{"": True}, 204, 204])
async def mappings(face: Face, v: int) -> Any:
    name = await own_class(face)
    id = await face.provider(**{name: 8})
    (found,) = (await candidates(face, f"resources={name}:1", v))["allocation_requests"]
    shown = {suffix: uuids == [id] for suffix, uuids in found.get("mappings", {}).items()} or None
    body = body_of(found["allocations"], mappings={"": [id]}, consumer_generation=None)
    generation = await face.generation(id)
    inventories = {id: {"resource_provider_generation": generation, "inventories": {name: {"total": 8}}}}
    shape = {"inventories": inventories, "allocations": {new(): body}}
    return [
        shown,
        await status(face, "POST", "/reshaper", shape, v=v),
        await status(face, "PUT", f"/allocations/{new()}", body, v=v),
    ]


@change(35, GONE, [1])
async def traits_of_roots(face: Face, v: int) -> Any:
    name = await own_class(face)
    good, bad = await with_traits(face, [AVX]), await with_traits(face, [SSE])
    for root in (good, bad):
        child = await face.provider(parent=root, **{name: 1})
        body = {"traits": [AVX], "resource_provider_generation": await face.generation(child)}
        (await face.call("PUT", f"/resource_providers/{child}/traits", body)).expect(200)
    return await served_by(face, f"resources={name}:1&root_required={AVX},!{SSE}", v)


@change(36, [GONE, 400], [[1, 1], 200])
async def one_subtree(face: Face, v: int) -> Any:
    one, two = await own_class(face), await own_class(face)
    top = await face.provider()
    for _ in range(2):
        numa = await face.provider(parent=top, **{one: 1})
        await face.provider(parent=numa, **{two: 1})
    query = f"resources_A={one}:1&resources_B={two}:1&group_policy=none"
    found = await served_by(face, f"{query}&same_subtree=_A,_B", v)
    only_above = f"/allocation_candidates?resources_B={two}:1&required_A=!{AVX}&group_policy=none"
    return [
        found if found == GONE else [each // 2 for each in found],
        await status(face, "GET", f"{only_above}{'&same_subtree=_A,_B' if v >= 36 else ''}", v=v),
    ]


@change(37, [400, 400], [200, 200])
async def another_parent(face: Face, v: int) -> Any:
    top, other = await face.provider(), await face.provider()
    path = f"/resource_providers/{await face.provider(parent=top)}"
    return [
        await status(face, "PUT", path, {"name": fresh("n"), "parent_provider_uuid": parent}, v=v)
        for parent in (other, None)
    ]


@change(38, [204, 400, None, 400, {"VCPU"}], [400, 204, "MIGRATION", 200, {"MIGRATION"}])
async def types_of_consumers(face: Face, v: int) -> Any:
    id, consumer, project = await face.provider(VCPU=8), new(), fresh("project")
    path = f"/allocations/{consumer}"
    body = body_of({id: {"resources": {"VCPU": 1}}}, consumer_generation=None, project_id=project)
    usages = f"/usages?project_id={project}"
    return [
        await status(face, "PUT", path, body, v=v),
        await status(face, "PUT", path, {**body, "consumer_type": "MIGRATION"}, v=v),
        (await face.get(path, v=v)).get("consumer_type"),
        await status(face, "GET", f"{usages}&consumer_type=MIGRATION", v=v),
        set((await face.get(usages, v=v))["usages"]),
    ]


@change(39, [400, 400, [1]], [[0, 1], [1, 1], []])
async def any_of_some_traits(face: Face, v: int) -> Any:
    name = await own_class(face)
    one = await with_traits(face, [AVX], **{name: 1})
    two = await with_traits(face, [SSE], **{name: 1})
    either = f"required=in:{AVX},{SSE}"
    reply = await face.call("GET", f"/allocation_candidates?resources={name}:1&{either}", v=v)
    counts = [len(each["allocations"]) for each in reply.json.get("allocation_requests", [])]
    return [
        await listed(face, f"required=!HW_CPU_X86_MMX&{either}", v, one, two),
        counts or reply.status,
        # of several, clients before could only mean the last one
        await listed(face, f"required={AVX}&required={SSE}", v, one, two),
    ]


# ---- all of them ----


async def test_each_microversion_is_looked_at() -> None:
    assert {version for version, *_ in CHANGES} == set(range(1, MAX + 1))


@pytest.mark.parametrize(
    ("version", "look", "before", "after"),
    [pytest.param(v, look, old, now, id=f"1.{v}-{name}") for v, name, look, old, now in CHANGES],
)
async def test_a_microversion(face: Face, version: int, look: Look, before: Any, after: Any) -> None:
    assert await look(face, version - 1) == before, f"at 1.{version - 1}"
    assert await look(face, version) == after, f"at 1.{version}"
