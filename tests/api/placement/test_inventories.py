"""What providers have, and what of it is used."""

from __future__ import annotations

from typing import Any

import pytest

from tests.api.placement.face import Face, is_fault, new

pytestmark = pytest.mark.asyncio(loop_scope="module")

WHOLE = {
    "total": 16,
    "reserved": 2,
    "min_unit": 1,
    "max_unit": 8,
    "step_size": 1,
    "allocation_ratio": 4.0,
}


def at(provider: str, name: str = "") -> str:
    return f"/resource_providers/{provider}/inventories" + (f"/{name}" if name else "")


def filled(total: int) -> dict[str, Any]:
    """An inventory with the defaults."""
    return {
        "total": total,
        "reserved": 0,
        "min_unit": 1,
        "max_unit": 2147483647,
        "step_size": 1,
        "allocation_ratio": 1.0,
    }


async def test_all_at_once(face: Face) -> None:
    id = await face.provider()
    assert await face.get(at(id)) == {"inventories": {}, "resource_provider_generation": 0}
    body = {"resource_provider_generation": 0, "inventories": {"VCPU": WHOLE, "DISK_GB": {"total": 5}}}
    found = (await face.call("PUT", at(id), body)).expect(200).json
    assert found == {"inventories": {"VCPU": WHOLE, "DISK_GB": filled(5)}, "resource_provider_generation": 1}
    assert await face.get(at(id)) == found
    is_fault(await face.call("PUT", at(id), body), 409, "placement.concurrent_update")
    one = {"total": 6, "resource_provider_generation": 7}  # which is not looked at
    body = {"resource_provider_generation": 1, "inventories": {"DISK_GB": one}}
    found = (await face.call("PUT", at(id), body, v=0)).expect(200).json
    assert found == {"inventories": {"DISK_GB": filled(6)}, "resource_provider_generation": 2}
    (await face.call("DELETE", at(id), v=4)).expect(405)
    (await face.call("DELETE", at(id), v=5)).expect(204)
    assert await face.get(at(id)) == {"inventories": {}, "resource_provider_generation": 3}


async def test_one_by_one(face: Face) -> None:
    id = await face.provider()
    reply = await face.call(
        "POST", at(id), {"resource_class": "VCPU", "resource_provider_generation": 0, **WHOLE}
    )
    assert reply.expect(201).json == {"resource_provider_generation": 1, **WHOLE}
    assert reply.headers["location"].endswith(at(id, "VCPU"))
    body = {"resource_class": "VCPU", "resource_provider_generation": 1, "total": 1}
    is_fault(await face.call("POST", at(id), body), 409)
    body = {"resource_class": "MEMORY_MB", "resource_provider_generation": 0, "total": 1}
    is_fault(await face.call("POST", at(id), body), 409, "placement.concurrent_update")
    assert await face.get(at(id, "VCPU")) == {"resource_provider_generation": 1, **WHOLE}
    other = await face.provider()
    for name in ("VGPU", "VCPU"):  # openstacksdk sends no generation
        (await face.call("POST", at(other), {"resource_class": name, "total": 1})).expect(201)
    assert await face.generation(other) == 2
    change = {"resource_provider_generation": 1, "total": 20}
    found = (await face.call("PUT", at(id, "VCPU"), change)).expect(200).json
    assert found == {"resource_provider_generation": 2, **filled(20)}
    is_fault(await face.call("PUT", at(id, "VCPU"), change), 409, "placement.concurrent_update")
    is_fault(await face.call("PUT", at(id, "DISK_GB"), {**change, "resource_provider_generation": 2}), 400)
    for name in ("DISK_GB", "NOPE", "x"):
        is_fault(await face.call("GET", at(id, name)), 404)
        is_fault(await face.call("DELETE", at(id, name)), 404)
    (await face.call("DELETE", at(id, "VCPU"))).expect(204)
    assert await face.generation(id) == 3
    is_fault(await face.call("DELETE", at(id, "VCPU")), 404)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"total": 0},
        {"total": -1},
        {"total": 2147483648},
        {"total": 10**30},
        {"total": "5"},
        {"total": 5.5},
        {"total": None},
        {"total": True},
        {"total": 5, "reserved": -1},
        {"total": 5, "reserved": 6},
        {"total": 5, "min_unit": 0},
        {"total": 5, "max_unit": 0},
        {"total": 5, "step_size": 0},
        {"total": 5, "allocation_ratio": -0.1},
        {"total": 5, "allocation_ratio": 1e39},
        {"total": 5, "allocation_ratio": "1"},
        {"total": 5, "spam": 1},
        {"total": 5, "used": 1},
    ],
)
async def test_what_can_be_no_inventory(face: Face, fields: dict[str, Any]) -> None:
    id = await face.provider(DISK_GB=1)
    generation = {"resource_provider_generation": 1}
    is_fault(await face.call("PUT", at(id), {**generation, "inventories": {"VCPU": fields}}), 400)
    is_fault(await face.call("POST", at(id), {"resource_class": "VCPU", **generation, **fields}), 400)
    is_fault(await face.call("PUT", at(id, "DISK_GB"), {**generation, **fields}), 400)
    assert await face.get(at(id)) == {"inventories": {"DISK_GB": filled(1)}, **generation}


async def test_bodies_that_are_none(face: Face) -> None:
    id = await face.provider()
    for body in ({}, {"inventories": {}}, {"resource_provider_generation": 0}, {"inventories": [], "x": 1}):
        is_fault(await face.call("PUT", at(id), body), 400)
    for name in ("NOPE", "vcpu", "", "CUSTOM_UNKNOWN", "x" * 300, "VCPU\u0000"):
        body = {"resource_provider_generation": 0, "inventories": {name: {"total": 1}}}
        is_fault(await face.call("PUT", at(id), body), 400)
        is_fault(
            await face.call(
                "POST", at(id), {"resource_class": name, "total": 1, "resource_provider_generation": 0}
            ),
            400,
        )
    body = {"resource_provider_generation": 0, "inventories": {}}
    for method, path in (("GET", ""), ("PUT", ""), ("DELETE", ""), ("GET", "VCPU"), ("DELETE", "VCPU")):
        is_fault(await face.call(method, at(new(), path), body), 404)


async def test_everything_reserved_needs_a_new_client(face: Face) -> None:
    id = await face.provider()
    body = {"resource_provider_generation": 0, "inventories": {"VCPU": {"total": 4, "reserved": 4}}}
    is_fault(await face.call("PUT", at(id), body, v=25), 400)
    (await face.call("PUT", at(id), body, v=26)).expect(200)
    is_fault(await face.allocate(new(), {id: {"VCPU": 1}}), 409)


async def test_what_is_used_cannot_go(face: Face) -> None:
    id, consumer = await face.provider(VCPU=4, DISK_GB=10), new()
    (await face.allocate(consumer, {id: {"VCPU": 3}})).expect(204)
    before, generation = await face.get(at(id)), await face.generation(id)
    code = "placement.inventory.inuse"
    only_disk = {"resource_provider_generation": generation, "inventories": {"DISK_GB": {"total": 1}}}
    is_fault(await face.call("PUT", at(id), only_disk), 409, code)
    is_fault(await face.call("DELETE", at(id)), 409, code)
    is_fault(await face.call("DELETE", at(id, "VCPU")), 409, code)
    assert await face.get(at(id)) == before
    less = {"resource_provider_generation": generation, "total": 2}
    (await face.call("PUT", at(id, "VCPU"), less)).expect(200)  # as in placement: it is full for now
    assert (await face.get(f"/resource_providers/{id}/usages"))["usages"] == {"VCPU": 3, "DISK_GB": 0}
    is_fault(await face.allocate(new(), {id: {"VCPU": 1}}), 409)
    (await face.call("DELETE", f"/allocations/{consumer}")).expect(204)
    (await face.allocate(new(), {id: {"VCPU": 2}})).expect(204)


async def test_usages_and_allocations_of_a_provider(face: Face) -> None:
    id, consumer = await face.provider(VCPU=4), new()
    path = f"/resource_providers/{id}"
    assert await face.get(path + "/usages") == {"usages": {"VCPU": 0}, "resource_provider_generation": 1}
    assert (await face.get(path + "/allocations"))["allocations"] == {}
    (await face.allocate(consumer, {id: {"VCPU": 3}})).expect(204)
    assert await face.get(path + "/usages") == {"usages": {"VCPU": 3}, "resource_provider_generation": 2}
    held = {consumer: {"resources": {"VCPU": 3}, "consumer_generation": 1}}
    assert await face.get(path + "/allocations") == {"allocations": held, "resource_provider_generation": 2}
    old = (await face.get(path + "/allocations", v=27))["allocations"]
    assert old == {consumer: {"resources": {"VCPU": 3}}}
    for kind in ("usages", "allocations"):
        is_fault(await face.call("GET", f"/resource_providers/{new()}/{kind}"), 404)


@pytest.mark.parametrize(
    ("inventory", "fits", "refused"),
    [
        ({"total": 10}, [10], [11]),
        ({"total": 10, "reserved": 3}, [7], [8]),
        ({"total": 10, "allocation_ratio": 1.5}, [15], [16]),
        ({"total": 10, "reserved": 2, "allocation_ratio": 0.5}, [4], [5]),
        ({"total": 3, "allocation_ratio": 1.1}, [3], [4]),
        ({"total": 10, "allocation_ratio": 0.0}, [], [1]),
        ({"total": 10, "min_unit": 3}, [3, 4], [1, 2]),
        ({"total": 10, "max_unit": 3}, [1, 3], [4]),
        ({"total": 12, "step_size": 4}, [4, 8, 12], [1, 6, 13]),
        ({"total": 2147483647, "allocation_ratio": 3.40282e38}, [2147483647], []),
    ],
)
async def test_what_fits_an_inventory(
    face: Face, inventory: dict[str, Any], fits: list[int], refused: list[int]
) -> None:
    id = await face.provider(VCPU=inventory)
    for amount in refused:
        is_fault(await face.allocate(new(), {id: {"VCPU": amount}}), 409)
    for amount in fits:
        consumer = new()
        (await face.allocate(consumer, {id: {"VCPU": amount}})).expect(204)
        (await face.call("DELETE", f"/allocations/{consumer}")).expect(204)
    assert (await face.get(f"/resource_providers/{id}/usages"))["usages"] == {"VCPU": 0}
