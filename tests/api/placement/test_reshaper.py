"""Inventories that move with what is held of them, in one request."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from kilonova.db import placement as bookings
from tests.api.placement.face import Face, is_fault, new

pytestmark = pytest.mark.asyncio(loop_scope="module")


class Case:
    """A host with VCPU and DISK_GB, of which two consumers hold something, and a child without anything."""

    def __init__(self, face: Face, top: str, low: str) -> None:
        self.face, self.top, self.low = face, top, low
        self.one, self.two = new(), new()

    def stock(self, uuid: str, generation: int, **inventories: Any) -> dict[str, Any]:
        found = {name: {"total": of} if isinstance(of, int) else of for name, of in inventories.items()}
        return {uuid: {"resource_provider_generation": generation, "inventories": found}}

    def hold(self, generation: int | None, **by_place: dict[str, int]) -> dict[str, Any]:
        places = {"top": self.top, "low": self.low}
        return {
            "allocations": {places[name]: {"resources": each} for name, each in by_place.items()},
            "project_id": "p",
            "user_id": "u",
            "consumer_generation": generation,
            "consumer_type": "INSTANCE",
        }

    def moved(self) -> dict[str, Any]:
        """The whole request, as it is right."""
        return {
            "inventories": {**self.stock(self.top, 3, DISK_GB=100), **self.stock(self.low, 0, VCPU=10)},
            "allocations": {
                self.one: self.hold(1, top={"DISK_GB": 10}, low={"VCPU": 8}),
                self.two: self.hold(1, low={"VCPU": 1}),
            },
        }

    async def post(self, body: Any, v: int = 39) -> Any:
        return await self.face.call("POST", "/reshaper", body, v=v)

    async def state(self) -> Any:
        look = self.face.get
        return [
            *[await look(f"/resource_providers/{uuid}/inventories") for uuid in (self.top, self.low)],
            *[await look(f"/resource_providers/{uuid}/usages") for uuid in (self.top, self.low)],
            *[await look(f"/allocations/{uuid}") for uuid in (self.one, self.two)],
        ]


@pytest.fixture
def make(face: Face) -> Any:
    async def made() -> Case:
        top = await face.provider(VCPU=10, DISK_GB=100)
        case = Case(face, top, await face.provider(parent=top))
        (await face.allocate(case.one, {top: {"VCPU": 8, "DISK_GB": 10}})).expect(204)
        (await face.allocate(case.two, {top: {"VCPU": 1}})).expect(204)
        return case

    return made


async def test_there_and_back(face: Face, make: Any) -> None:
    case = await make()
    (await case.post(case.moved())).expect(204)
    top, low, of_top, of_low, one, two = await case.state()
    assert (set(top["inventories"]), set(low["inventories"])) == ({"DISK_GB"}, {"VCPU"})
    assert (of_top["usages"], of_low["usages"]) == ({"DISK_GB": 10}, {"VCPU": 9})
    assert one["allocations"][case.low]["resources"] == {"VCPU": 8}
    assert one["allocations"][case.top]["resources"] == {"DISK_GB": 10}
    assert set(two["allocations"]) == {case.low} and two["consumer_generation"] == 2
    three = new()
    back = {
        "inventories": {
            **case.stock(case.top, top["resource_provider_generation"], DISK_GB=100, VCPU=10),
            **case.stock(case.low, low["resource_provider_generation"]),
        },
        "allocations": {
            case.one: case.hold(2),
            case.two: case.hold(2, top={"VCPU": 2}),
            three: case.hold(None, top={"VCPU": 8}),
        },
    }
    (await case.post(back)).expect(204)
    _, _, of_top, of_low, one, two = await case.state()
    assert (of_top["usages"], of_low["usages"]) == ({"DISK_GB": 0, "VCPU": 10}, {})
    assert one == {"allocations": {}} and two["consumer_generation"] == 3
    assert await face.placement.db.read(bookings.audit) == []


async def test_only_inventories(face: Face) -> None:
    id = await face.provider(VCPU=1)
    case = Case(face, id, id)
    (await case.post({"inventories": case.stock(id, 1, VGPU=2), "allocations": {}})).expect(204)
    found = await face.get(f"/resource_providers/{id}/inventories")
    assert {name: each["total"] for name, each in found["inventories"].items()} == {"VGPU": 2}


LEFT_OUT, UNKNOWN = object(), "placement.resource_provider.not_found"
UPDATE, IN_USE, OTHER = "placement.concurrent_update", "placement.inventory.inuse", "placement.undefined_code"
WRONG: list[tuple[str, Any, int, str]] = [
    ("inventories top resource_provider_generation", 2, 409, UPDATE),
    ("allocations one consumer_generation", 7, 409, UPDATE),
    ("allocations one consumer_generation", None, 409, UPDATE),
    ("allocations two", LEFT_OUT, 409, IN_USE),
    ("allocations", {}, 409, IN_USE),
    ("inventories low inventories VCPU total", 8, 409, OTHER),
    ("inventories low inventories VCPU max_unit", 7, 409, OTHER),
    ("allocations two allocations low resources VGPU", 1, 409, OTHER),
    ("allocations two allocations nobody", {"resources": {"VCPU": 1}}, 400, UNKNOWN),
    ("inventories nobody", {"resource_provider_generation": 0, "inventories": {}}, 400, UNKNOWN),
    ("inventories low inventories CUSTOM_OF_STEEL", {"total": 1}, 400, OTHER),
    ("allocations two allocations low resources CUSTOM_OF_STEEL", 1, 400, OTHER),
]


def changed(case: Case, path: str, value: Any) -> dict[str, Any]:
    """The right request, but for one value."""
    names = {"top": case.top, "low": case.low, "one": case.one, "two": case.two, "nobody": new()}
    *way, last = (names.get(each, each) for each in path.split())
    body = inner = case.moved()
    for each in way:
        inner = inner[each]
    if value is LEFT_OUT:
        del inner[last]
    else:
        inner[last] = value
    return body


async def test_what_is_wrong_changes_nothing(make: Any) -> None:
    case = await make()
    before = await case.state()
    for path, value, status, code in WRONG:
        reply = await case.post(changed(case, path, value))
        assert reply.status == status, (path, reply.content)
        is_fault(reply, status, code)
        assert await case.state() == before, path
    (await case.post(case.moved())).expect(204)


async def test_what_is_no_request(make: Any) -> None:
    case = await make()
    right = case.moved()
    for bad in (
        {},
        {"cows": "moo"},
        {"inventories": right["inventories"]},
        {"allocations": right["allocations"]},
        {**right, "inventories": {}},
        {**right, "inventories": []},
        {**right, "inventories": {"no": right["inventories"][case.top]}},
        {**right, "inventories": {case.top: {"inventories": {}}}},
        {**right, "inventories": {case.top: {"resource_provider_generation": 3}}},
        {**right, "inventories": case.stock(case.top, 3, VCPU={"total": 1, "bad_field": 1})},
        {**right, "inventories": case.stock(case.top, 3, VCPU=0)},
        {**right, "inventories": {case.top.upper(): right["inventories"][case.top], **right["inventories"]}},
        {**right, "allocations": {"no": right["allocations"][case.one]}},
        {**right, "allocations": {case.one: {**right["allocations"][case.one], "bad_field": 1}}},
        {**right, "allocations": {case.one: {}}},
        {**right, "more": 1},
        [],
        b"{",
    ):
        is_fault(await case.post(bad), 400)
    is_fault(await case.face.call("GET", "/reshaper"), 405)
    is_fault(await case.face.call("POST", "/reshaper", right, v=29), 404)
    for who in ("member", "reader", "manager"):
        is_fault(await case.face.call("POST", "/reshaper", right, who=who), 403)


async def test_fields_of_each_version(make: Any) -> None:
    case = await make()
    for v, left, mappings, status in (
        (30, ("consumer_type",), False, 204),
        (30, (), False, 400),
        (33, ("consumer_type",), True, 400),
        (34, ("consumer_type",), True, 204),
        (37, (), True, 400),
        (38, ("consumer_type",), True, 400),
        (38, (), True, 204),
        (39, ("consumer_generation",), True, 400),
    ):
        top, _, _, _, _, _ = await case.state()
        body = case.hold(None, top={"DISK_GB": 1})
        body = {name: value for name, value in body.items() if name not in left}
        if mappings:
            body["mappings"] = {"": [case.top]}
        generation = top["resource_provider_generation"]
        stock = case.stock(case.top, generation, VCPU=10, DISK_GB=100)
        reply = await case.post({"inventories": stock, "allocations": {new(): body}}, v=v)
        assert reply.status == status, (v, left, reply.content)


async def test_one_of_many_who_reshape_at_once(face: Face, make: Any) -> None:
    case = await make()
    replies = await asyncio.gather(*(case.post(case.moved()) for _ in range(8)))
    assert sorted(each.status for each in replies) == [204] + [409] * 7
    assert await face.placement.db.read(bookings.audit) == []


async def test_very_many_consumers(face: Face) -> None:
    """More than other bodies may have."""
    id = await face.provider(VCPU=1000)
    case = Case(face, id, id)
    consumers = {new(): case.hold(None, top={"VCPU": 1}) for _ in range(800)}
    (await face.call("POST", "/allocations", consumers)).expect(204)
    generation = await face.generation(id)
    consumers = {uuid: case.hold(1, top={"VGPU": 1}) for uuid in consumers}
    stock = case.stock(id, generation, VGPU=800)
    (await case.post({"inventories": stock, "allocations": consumers})).expect(204)
    assert (await face.get(f"/resource_providers/{id}/usages"))["usages"] == {"VGPU": 800}
