"""Resource providers: one, many, in trees, with aggregates and traits, found by what they have."""

from __future__ import annotations

from typing import Any

import pytest

from tests.api.placement.face import Face, fresh, is_fault, new

pytestmark = pytest.mark.asyncio(loop_scope="module")

ROOT = "/resource_providers"


async def test_a_provider_from_create_to_delete(face: Face) -> None:
    id, name = new(), fresh("host")
    reply = await face.call("POST", ROOT, {"uuid": id, "name": name})
    made = reply.expect(200).json
    assert reply.headers["location"].endswith(f"{ROOT}/{id}")
    assert made == {
        "uuid": id,
        "name": name,
        "generation": 0,
        "parent_provider_uuid": None,
        "root_provider_uuid": id,
        "links": [
            {"rel": "self", "href": f"{ROOT}/{id}"},
            *({"rel": rel, "href": f"{ROOT}/{id}/{rel}"} for rel in ("inventories", "usages", "aggregates")),
            *({"rel": rel, "href": f"{ROOT}/{id}/{rel}"} for rel in ("traits", "allocations")),
        ],
    }
    assert await face.get(f"{ROOT}/{id}") == made
    assert made in (await face.get(ROOT))["resource_providers"]
    renamed = (await face.call("PUT", f"{ROOT}/{id}", {"name": name + "x"})).expect(200).json
    assert (renamed["name"], renamed["generation"]) == (name + "x", 0)
    (await face.call("DELETE", f"{ROOT}/{id}")).expect(204)
    for method in ("GET", "DELETE"):
        assert id in is_fault(await face.call(method, f"{ROOT}/{id}"), 404)
    is_fault(await face.call("PUT", f"{ROOT}/{id}", {"name": "x"}), 404)


async def test_an_old_client_gets_a_location_and_no_body(face: Face) -> None:
    reply = await face.call("POST", ROOT, {"name": fresh("host")}, v=19)
    assert (reply.expect(201).content, "content-type" in reply.headers) == (b"", False)
    path = reply.headers["location"].partition("cloud.example")[2]
    assert (await face.get(path, v=0))["generation"] == 0


async def test_names_and_uuids_are_given_once(face: Face) -> None:
    id, name = await face.provider(), fresh("host")
    await face.call("POST", ROOT, {"name": name})
    is_fault(await face.call("POST", ROOT, {"name": name}), 409, "placement.duplicate_name")
    is_fault(await face.call("POST", ROOT, {"name": fresh("x"), "uuid": id}), 409)
    is_fault(await face.call("PUT", f"{ROOT}/{id}", {"name": name}), 409, "placement.duplicate_name")
    (await face.call("PUT", f"{ROOT}/{id}", {"name": (await face.get(f"{ROOT}/{id}"))["name"]})).expect(200)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"name": ""},
        {"name": 5},
        {"name": "x" * 201},
        {"name": "x", "uuid": "no"},
        {"name": "x", "uuid": 5},
        {"name": "x", "badfield": 1},
        {"name": "x", "root_provider_uuid": "11111111-1111-4111-8111-111111111111"},
        {"name": "x", "parent_provider_uuid": "no"},
        {"name": "x", "parent_provider_uuid": "11111111-1111-4111-8111-111111111111"},
    ],
)
async def test_what_can_be_no_provider(face: Face, body: Any) -> None:
    before = await face.get(ROOT)
    is_fault(await face.call("POST", ROOT, body), 400)
    id = await face.provider()
    is_fault(await face.call("PUT", f"{ROOT}/{id}", body), 400)
    (await face.call("DELETE", f"{ROOT}/{id}")).expect(204)
    assert await face.get(ROOT) == before


async def test_a_tree(face: Face) -> None:
    top = await face.provider()
    below = await face.provider(parent=top)
    low = await face.provider(parent=below)
    found = await face.get(f"{ROOT}/{low}")
    assert (found["parent_provider_uuid"], found["root_provider_uuid"]) == (below, top)
    assert set(await face.get(f"{ROOT}/{low}", v=13)) == {"uuid", "name", "generation", "links"}
    for member in (top, below, low, low.upper(), low.replace("-", "")):
        tree = (await face.get(f"{ROOT}?in_tree={member}"))["resource_providers"]
        assert {each["uuid"] for each in tree} == {top, below, low}
    assert (await face.get(f"{ROOT}?in_tree={new()}"))["resource_providers"] == []
    is_fault(await face.call("GET", f"{ROOT}?in_tree={low}", v=13), 400)
    code = "placement.resource_provider.cannot_delete_parent"
    is_fault(await face.call("DELETE", f"{ROOT}/{below}"), 409, code)

    async def put(id: str, parent: str | None, v: int = 39) -> Any:
        return await face.call("PUT", f"{ROOT}/{id}", {"name": id, "parent_provider_uuid": parent}, v=v)

    other = await face.provider()
    for id, parent in ((low, None), (low, other)):
        is_fault(await put(id, parent, v=36), 400)
    is_fault(await put(top, low), 400)
    is_fault(await put(top, top), 400)
    is_fault(await put(low, new()), 400)
    assert (await put(below, other)).expect(200).json["root_provider_uuid"] == other
    assert (await face.get(f"{ROOT}/{low}"))["root_provider_uuid"] == other, "what hangs on it comes along"
    assert (await put(below, None)).expect(200).json["root_provider_uuid"] == below
    assert (await face.get(f"{ROOT}/{low}"))["root_provider_uuid"] == below
    assert (await put(top, below, v=14)).expect(200).json["parent_provider_uuid"] == below, "its first parent"
    for id in (top, low, below, other):
        (await face.call("DELETE", f"{ROOT}/{id}")).expect(204)
    is_fault(await face.call("POST", ROOT, {"name": "x", "parent_provider_uuid": None}, v=13), 400)


async def test_a_rename_leaves_the_parent(face: Face) -> None:
    top = await face.provider()
    low = await face.provider(parent=top)
    found = (await face.call("PUT", f"{ROOT}/{low}", {"name": fresh("new")})).expect(200).json
    assert found["parent_provider_uuid"] == top


async def test_uuids_in_any_spelling(face: Face) -> None:
    id = new()
    for spelling in (id.upper(), id.replace("-", "")):
        made = (await face.call("POST", ROOT, {"name": fresh("h"), "uuid": spelling})).expect(200).json
        assert made["uuid"] == id
        for again in (id, id.upper(), id.replace("-", "")):
            assert (await face.get(f"{ROOT}/{again}"))["uuid"] == id
            assert [
                each["uuid"] for each in (await face.get(f"{ROOT}?uuid={again}"))["resource_providers"]
            ] == [id]
        (await face.call("DELETE", f"{ROOT}/{spelling}")).expect(204)
    for no in ("no", "{" + id + "}", "urn:uuid:" + id, id + "0", id[:-1]):
        is_fault(await face.call("GET", f"{ROOT}/{no}"), 404)
        is_fault(await face.call("GET", f"{ROOT}?uuid={no}"), 400)


async def test_aggregates(face: Face) -> None:
    id, one, two = await face.provider(), new(), new()
    path = f"{ROOT}/{id}/aggregates"
    assert await face.get(path) == {"aggregates": [], "resource_provider_generation": 0}
    body = {"aggregates": [one.upper(), two], "resource_provider_generation": 0}
    found = (await face.call("PUT", path, body)).expect(200).json
    assert found == {"aggregates": sorted([one, two]), "resource_provider_generation": 1}
    is_fault(await face.call("PUT", path, body), 409, "placement.concurrent_update")
    assert await face.get(path, v=18) == {"aggregates": sorted([one, two])}
    assert (await face.call("PUT", path, [one], v=1)).expect(200).json == {"aggregates": [one]}
    assert await face.generation(id) == 1, "old clients do not move the generation"
    for bad in ({"aggregates": ["no"]}, {"aggregates": [one, one]}, {"aggregates": "x"}, {"x": 1}, {}):
        is_fault(await face.call("PUT", path, {"resource_provider_generation": 1, **bad}), 400)
    for bad in ({}, ["no"], [1], "x", [one, one]):
        is_fault(await face.call("PUT", path, bad, v=18), 400)
    is_fault(await face.call("PUT", path, {"aggregates": [one]}), 400)
    is_fault(await face.call("GET", path, v=0), 404)
    is_fault(await face.call("GET", f"{ROOT}/{new()}/aggregates"), 404)
    is_fault(await face.call("PUT", f"{ROOT}/{new()}/aggregates", [one], v=1), 404)


async def test_aggregates_that_old_clients_change_are_found_at_once(face: Face) -> None:
    """Though the generation does not tell of it."""
    id, aggregate = await face.provider(), new()

    async def found() -> list[str]:
        listed = (await face.get(f"{ROOT}?member_of={aggregate}"))["resource_providers"]
        return [each["uuid"] for each in listed]

    assert await found() == []
    (await face.call("PUT", f"{ROOT}/{id}/aggregates", [aggregate], v=1)).expect(200)
    assert await found() == [id]
    (await face.call("PUT", f"{ROOT}/{id}/aggregates", [], v=18)).expect(200)
    assert await found() == []


async def test_traits(face: Face) -> None:
    id = await face.provider()
    path = f"{ROOT}/{id}/traits"
    assert await face.get(path) == {"traits": [], "resource_provider_generation": 0}
    body = {"traits": ["HW_CPU_X86_AVX2", "COMPUTE_NODE"], "resource_provider_generation": 0}
    found = (await face.call("PUT", path, body)).expect(200).json
    assert found == {"traits": ["COMPUTE_NODE", "HW_CPU_X86_AVX2"], "resource_provider_generation": 1}
    assert await face.get(path) == found
    is_fault(await face.call("PUT", path, body), 409, "placement.concurrent_update")
    unknown = {"traits": ["CUSTOM_NO_SUCH", "COMPUTE_NODE"], "resource_provider_generation": 1}
    assert "CUSTOM_NO_SUCH" in is_fault(await face.call("PUT", path, unknown), 400)
    for bad in ({"traits": "x"}, {"traits": [1]}, {"traits": []}, {"traits": [], "x": 1}):
        wrong = bad if bad == {"traits": []} else {"resource_provider_generation": 1, **bad}
        is_fault(await face.call("PUT", path, wrong), 400)
    is_fault(await face.call("PUT", path, {"traits": [], "resource_provider_generation": "1"}), 400)
    assert await face.get(path) == found
    (await face.call("DELETE", path)).expect(204)
    assert await face.get(path) == {"traits": [], "resource_provider_generation": 2}
    for method in ("GET", "PUT", "DELETE"):
        is_fault(await face.call(method, path, body, v=5), 404)
        is_fault(await face.call(method, f"{ROOT}/{new()}/traits", body), 404)


async def test_providers_are_found_by_what_they_have(face: Face) -> None:
    near, far = new(), new()
    one = await face.provider(VCPU=8, MEMORY_MB={"total": 4096, "reserved": 1024, "step_size": 256})
    two = await face.provider(VCPU={"total": 2, "allocation_ratio": 4.0, "max_unit": 4}, DISK_GB=10)
    three = await face.provider()
    for id, aggregates, traits in (
        (one, [near], ["HW_CPU_X86_AVX", "STORAGE_DISK_SSD"]),
        (two, [near, far], ["HW_CPU_X86_AVX"]),
        (three, [], []),
    ):
        (await face.call("PUT", f"{ROOT}/{id}/aggregates", aggregates, v=18)).expect(200)
        body = {"traits": traits, "resource_provider_generation": await face.generation(id)}
        (await face.call("PUT", f"{ROOT}/{id}/traits", body)).expect(200)
    (await face.allocate(new(), {one: {"VCPU": 6}})).expect(204)
    names = {one: "one", two: "two", three: "three"}

    async def found(query: str, v: int = 39) -> str:
        listed = (await face.get(f"{ROOT}?{query}", v=v))["resource_providers"]
        return " ".join(sorted(names[each["uuid"]] for each in listed if each["uuid"] in names))

    assert await found("", v=0) == "one three two"
    assert await found("resources=VCPU:1") == "one two"
    assert await found("resources=VCPU:3", v=4) == "two", "six of eight are taken"
    assert await found("resources=VCPU:2,MEMORY_MB:3072") == "one"
    for nothing in ("VCPU:5", "MEMORY_MB:300", "MEMORY_MB:3328", "VCPU:2147483647", "VGPU:1"):
        assert await found(f"resources={nothing}") == ""
    assert await found(f"member_of={near}", v=3) == await found(f"member_of=in:{near},{far}") == "one two"
    assert await found(f"member_of={far.upper()}") == "two"
    assert await found(f"member_of={near}&member_of={far}", v=24) == "two"
    assert await found(f"member_of=!{far}", v=32) == "one three"
    assert await found(f"member_of=!in:{near},{far}") == "three"
    assert await found(f"member_of={near}&member_of=!{far}") == "one"
    assert await found("required=HW_CPU_X86_AVX", v=18) == "one two"
    assert await found("required=HW_CPU_X86_AVX,STORAGE_DISK_SSD") == "one"
    assert await found("required=HW_CPU_X86_AVX,!STORAGE_DISK_SSD", v=22) == "two"
    assert await found("required=in:STORAGE_DISK_SSD,STORAGE_DISK_HDD") == "one"
    assert await found("required=HW_CPU_X86_AVX&required=!STORAGE_DISK_SSD") == "two"
    assert await found("required=STORAGE_DISK_SSD&required=HW_CPU_X86_AVX", v=38) == "one two", "the last one"
    assert await found(f"uuid={one}&required=HW_CPU_X86_AVX&resources=VCPU:1&member_of={near}") == "one"
    name = (await face.get(f"{ROOT}/{two}"))["name"]
    assert await found(f"name={name}") == "two" and await found("name=none") == ""


@pytest.mark.parametrize(
    ("query", "version"),
    [
        ("spam=eggs", 39),
        ("name=a&name=b", 39),
        ("resources=VCPU:1", 3),
        ("member_of=11111111-1111-4111-8111-111111111111", 2),
        ("required=HW_CPU_X86_AVX", 17),
        ("required=!HW_CPU_X86_AVX", 21),
        ("required=in:HW_CPU_X86_AVX", 38),
        ("member_of=!11111111-1111-4111-8111-111111111111", 31),
        ("member_of=11111111-1111-4111-8111-111111111111&member_of=11111111-1111-4111-8111-111111111111", 23),
        ("member_of=no", 39),
        ("member_of=in:11111111-1111-4111-8111-111111111111,!11111111-1111-4111-8111-111111111111", 39),
        ("resources=", 39),
        ("resources=VCPU", 39),
        ("resources=VCPU:", 39),
        ("resources=VCPU:0", 39),
        ("resources=VCPU:-1", 39),
        ("resources=VCPU:1.5", 39),
        ("resources=VCPU:\u0663", 39),
        ("resources=VCPU:2147483648", 39),
        ("resources=VCPU:" + "0" * 5000 + "1", 39),
        ("resources=VCPU:1,", 39),
        ("resources=NOPE:1", 39),
        ("resources=vcpu:1", 39),
        ("required=", 39),
        ("required=NO_SUCH", 39),
        ("required=HW_CPU_X86_AVX,!HW_CPU_X86_AVX", 39),
        ("required=in:", 39),
        ("uuid=%00", 39),
    ],
)
async def test_queries_that_make_no_sense(face: Face, query: str, version: int) -> None:
    is_fault(await face.call("GET", f"{ROOT}?{query}", v=version), 400)


async def test_a_provider_in_use_stays(face: Face) -> None:
    id, consumer = await face.provider(VCPU=1), new()
    (await face.allocate(consumer, {id: {"VCPU": 1}})).expect(204)
    code = "placement.resource_provider.inuse"
    is_fault(await face.call("DELETE", f"{ROOT}/{id}"), 409, code)
    (await face.call("DELETE", f"/allocations/{consumer}")).expect(204)
    (await face.call("DELETE", f"{ROOT}/{id}")).expect(204)
    again = await face.call("POST", ROOT, {"name": "again", "uuid": id})
    assert again.expect(200).json["generation"] == 0
    assert (await face.get(f"{ROOT}/{id}/inventories"))["inventories"] == {}
