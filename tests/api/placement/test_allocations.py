"""Who holds what: consumers, their generations and types, and the usages of projects."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from kilonova.db import placement as bookings
from tests.api.placement.face import Face, fresh, is_fault, new

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def sound(face: Face) -> None:
    assert await face.placement.db.read(bookings.audit) == []


async def test_a_consumer_from_first_to_last(face: Face) -> None:
    id, consumer = await face.provider(VCPU=8, DISK_GB=10), new()
    path = f"/allocations/{consumer}"
    assert await face.get(path) == {"allocations": {}}
    (await face.allocate(consumer, {id: {"VCPU": 2, "DISK_GB": 5}})).expect(204)
    held = {id: {"generation": 2, "resources": {"VCPU": 2, "DISK_GB": 5}}}
    assert await face.get(path) == {
        "allocations": held,
        "project_id": "p",
        "user_id": "u",
        "consumer_generation": 1,
        "consumer_type": "INSTANCE",
    }
    assert set(await face.get(path, v=37)) == {"allocations", "project_id", "user_id", "consumer_generation"}
    assert set(await face.get(path, v=27)) == {"allocations", "project_id", "user_id"}
    assert await face.get(path, v=11) == {"allocations": held}
    is_fault(await face.allocate(consumer, {id: {"VCPU": 1}}), 409, "placement.concurrent_update")
    changed = await face.allocate(
        consumer, {id: {"VCPU": 3}}, consumer_generation=1, project_id="q", user_id="v", consumer_type="OTHER"
    )
    changed.expect(204)
    found = await face.get(path)
    assert found["allocations"][id]["resources"] == {"VCPU": 3}
    assert (found["project_id"], found["user_id"], found["consumer_type"]) == ("q", "v", "OTHER")
    assert found["consumer_generation"] == 2
    sent_back = {name: found[name] for name in found}
    (await face.call("PUT", path, sent_back)).expect(204)
    assert (await face.get(path))["consumer_generation"] == 3
    (await face.call("DELETE", path)).expect(204)
    assert await face.get(path) == {"allocations": {}}
    is_fault(await face.call("DELETE", path), 404)
    await sound(face)


async def test_generations_of_a_consumer(face: Face) -> None:
    id = await face.provider(VCPU=100)
    for wrong in (0, 5, -1):
        detail = is_fault(
            await face.allocate(new(), {id: {"VCPU": 1}}, consumer_generation=wrong),
            409,
            "placement.concurrent_update",
        )
        assert f"expected null but got {wrong}" in detail
    consumer = new()
    (await face.allocate(consumer, {id: {"VCPU": 1}})).expect(204)
    detail = is_fault(await face.allocate(consumer, {id: {"VCPU": 1}}), 409)
    assert "expected 1 but got null" in detail
    (await face.allocate(consumer, {}, consumer_generation=1)).expect(204)
    assert await face.get(f"/allocations/{consumer}") == {"allocations": {}}
    (await face.allocate(consumer, {id: {"VCPU": 1}})).expect(204)  # new again
    body = {"allocations": {id: {"resources": {"VCPU": 2}}}, "project_id": "p", "user_id": "u"}
    (await face.call("PUT", f"/allocations/{consumer}", body, v=27)).expect(204)  # old clients do not ask
    assert (await face.get(f"/allocations/{consumer}"))["consumer_generation"] == 2
    is_fault(await face.call("PUT", f"/allocations/{consumer}", {**body, "allocations": {}}, v=27), 400)


async def test_the_shapes_of_each_band(face: Face) -> None:
    id = await face.provider(VCPU=100)
    listed = [{"resource_provider": {"uuid": id}, "resources": {"VCPU": 1}}]
    keyed = {id: {"resources": {"VCPU": 1}}}
    owner = {"project_id": "p", "user_id": "u"}
    rest: dict[str, Any] = {"consumer_generation": None}
    for v, body, status in (
        (0, {"allocations": listed}, 204),
        (0, {"allocations": keyed}, 400),
        (7, {"allocations": listed, **owner}, 400),
        (8, {"allocations": listed, **owner}, 204),
        (8, {"allocations": listed}, 400),
        (11, {"allocations": keyed, **owner}, 400),
        (12, {"allocations": keyed, **owner}, 204),
        (12, {"allocations": listed, **owner}, 400),
        (27, {"allocations": keyed, **owner, **rest}, 400),
        (28, {"allocations": keyed, **owner, **rest}, 204),
        (28, {"allocations": keyed, **owner}, 400),
        (33, {"allocations": keyed, **owner, **rest, "mappings": {"": [id]}}, 400),
        (34, {"allocations": keyed, **owner, **rest, "mappings": {"": [id]}}, 204),
        (37, {"allocations": keyed, **owner, **rest, "consumer_type": "X"}, 400),
        (38, {"allocations": keyed, **owner, **rest, "consumer_type": "X"}, 204),
        (38, {"allocations": keyed, **owner, **rest}, 400),
        (38, {"allocations": keyed, **owner, **rest, "consumer_type": "x"}, 400),
        (38, {"allocations": keyed, **owner, **rest, "consumer_type": ""}, 400),
        (38, {"allocations": keyed, **owner, **rest, "consumer_type": "X" * 256}, 400),
    ):
        reply = await face.call("PUT", f"/allocations/{new()}", body, v=v)
        assert reply.status == status, (v, body, reply.content)
    await sound(face)


@pytest.mark.parametrize(
    "change",
    [
        {"allocations": None},
        {"allocations": "x"},
        {"allocations": {"no": {"resources": {"VCPU": 1}}}},
        {"allocations": {"RP": {}}},
        {"allocations": {"RP": {"resources": {}}}},
        {"allocations": {"RP": {"resources": {"VCPU": 0}}}},
        {"allocations": {"RP": {"resources": {"VCPU": -1}}}},
        {"allocations": {"RP": {"resources": {"VCPU": 1.5}}}},
        {"allocations": {"RP": {"resources": {"VCPU": "1"}}}},
        {"allocations": {"RP": {"resources": {"VCPU": 2147483648}}}},
        {"allocations": {"RP": {"resources": {"VCPU": 2**70}}}},
        {"allocations": {"RP": {"resources": {"NOPE": 1}}}},
        {"allocations": {"RP": {"resources": {"vcpu": 1}}}},
        {"allocations": {"RP": {"resources": {"VCPU": 1}, "spam": 1}}},
        {"allocations": {"11111111-1111-4111-8111-111111111111": {"resources": {"VCPU": 1}}}},
        {"project_id": ""},
        {"project_id": 5},
        {"project_id": "x" * 256},
        {"user_id": None},
        {"user_id": "\u0000"},
        {"consumer_generation": "1"},
        {"consumer_generation": 1.5},
        {"spam": 1},
    ],
)
async def test_what_nobody_can_hold(face: Face, change: dict[str, Any]) -> None:
    id, consumer = await face.provider(VCPU=100), new()
    body: dict[str, Any] = {
        "allocations": {id: {"resources": {"VCPU": 1}}},
        "project_id": "p",
        "user_id": "u",
        "consumer_generation": None,
        "consumer_type": "X",
        **change,
    }
    if isinstance(body["allocations"], dict):
        body["allocations"] = {id if of == "RP" else of: each for of, each in body["allocations"].items()}
    is_fault(await face.call("PUT", f"/allocations/{consumer}", body), 400)
    is_fault(await face.call("POST", "/allocations", {consumer: body}), 400)
    assert await face.get(f"/allocations/{consumer}") == {"allocations": {}}
    assert await face.generation(id) == 1


async def test_mappings_must_be_what_candidates_say(face: Face) -> None:
    """They are not kept; but what is none is refused."""
    id = await face.provider(VCPU=100)
    for mappings in ({"": [id]}, {"1": [id], "_A-b": [id, new()]}, {"x" * 64: [id]}):
        (await face.allocate(new(), {id: {"VCPU": 1}}, mappings=mappings)).expect(204)
    for bad in (
        *({}, [], "x", None, {"": []}, {"": "x"}, {"": id}, {"": [1]}, {"": ["no"]}),
        *({"x" * 65: [id]}, {"a.b": [id]}, {"a b": [id]}),
    ):
        consumer = new()
        is_fault(await face.allocate(consumer, {id: {"VCPU": 1}}, mappings=bad), 400)
        assert await face.get(f"/allocations/{consumer}") == {"allocations": {}}


async def test_consumers_in_any_spelling(face: Face) -> None:
    id, consumer = await face.provider(VCPU=8), new()
    plain = id.replace("-", "").upper()
    (await face.allocate(consumer.upper(), {plain: {"VCPU": 2}})).expect(204)
    for spelling in (consumer, consumer.upper(), consumer.replace("-", "")):
        assert id in (await face.get(f"/allocations/{spelling}"))["allocations"]
    is_fault(await face.allocate(new(), {id: {"VCPU": 1}, plain: {"VCPU": 1}}), 400)
    (await face.call("DELETE", f"/allocations/{consumer.replace('-', '')}")).expect(204)
    is_fault(await face.allocate("not-a-uuid", {id: {"VCPU": 1}}), 400)
    assert await face.get("/allocations/not-a-uuid") == {"allocations": {}}
    is_fault(await face.call("DELETE", "/allocations/not-a-uuid"), 404)
    await sound(face)


async def test_all_or_nothing_over_several_providers(face: Face) -> None:
    one, two, consumer = await face.provider(VCPU=4), await face.provider(VCPU=1), new()
    is_fault(await face.allocate(consumer, {one: {"VCPU": 4}, two: {"VCPU": 2}}), 409)
    is_fault(await face.allocate(consumer, {one: {"VCPU": 4, "DISK_GB": 1}}), 409)
    assert await face.get(f"/allocations/{consumer}") == {"allocations": {}}
    assert [await face.generation(each) for each in (one, two)] == [1, 1]
    (await face.allocate(consumer, {one: {"VCPU": 4}, two: {"VCPU": 1}})).expect(204)
    is_fault(await face.allocate(consumer, {two: {"VCPU": 2}}, consumer_generation=1), 409)
    held = (await face.get(f"/allocations/{consumer}"))["allocations"]
    assert {of: each["resources"]["VCPU"] for of, each in held.items()} == {one: 4, two: 1}
    await sound(face)


async def test_what_shrinks_must_be_of_an_allowed_size(face: Face) -> None:
    id, consumer = await face.provider(VCPU={"total": 8, "step_size": 2, "min_unit": 2}), new()
    (await face.allocate(consumer, {id: {"VCPU": 8}})).expect(204)
    is_fault(await face.allocate(consumer, {id: {"VCPU": 3}}, consumer_generation=1), 409)
    body = {"resource_provider_generation": await face.generation(id), "total": 2, "step_size": 2}
    (await face.call("PUT", f"/resource_providers/{id}/inventories/VCPU", body)).expect(200)
    (await face.allocate(consumer, {id: {"VCPU": 8}}, consumer_generation=1)).expect(204)  # stays as it is
    (await face.allocate(consumer, {id: {"VCPU": 4}}, consumer_generation=2)).expect(204)  # too full still
    is_fault(await face.allocate(consumer, {id: {"VCPU": 6}}, consumer_generation=3), 409)
    await sound(face)


def several(face: Face, **more: Any) -> Any:
    def one(allocations: dict[str, dict[str, int]], generation: int | None = None) -> dict[str, Any]:
        return {
            "allocations": {of: {"resources": each} for of, each in allocations.items()},
            "project_id": "p",
            "user_id": "u",
            "consumer_generation": generation,
            "consumer_type": "X",
            **more,
        }

    return one


async def test_several_consumers_at_once(face: Face) -> None:
    id, server, migration = await face.provider(VCPU=4), new(), new()
    one = several(face)
    (await face.call("POST", "/allocations", {server: one({id: {"VCPU": 4}})})).expect(204)
    moved = {server: one({}, 1), migration: one({id: {"VCPU": 4}})}
    (await face.call("POST", "/allocations", moved)).expect(204)
    assert (await face.get(f"/allocations/{migration}"))["allocations"][id]["resources"] == {"VCPU": 4}
    assert await face.get(f"/allocations/{server}") == {"allocations": {}}
    back = {server: one({id: {"VCPU": 5}}), migration: one({}, 1)}
    is_fault(await face.call("POST", "/allocations", back), 409)
    back = {server: one({id: {"VCPU": 4}}, 9), migration: one({}, 1)}
    is_fault(await face.call("POST", "/allocations", back), 409, "placement.concurrent_update")
    assert (await face.get(f"/allocations/{migration}"))["consumer_generation"] == 1
    (await face.call("POST", "/allocations", {}, v=12)).expect(404)
    for bad in ({}, {"no": one({})}, {server: {}}, {server: one({}), server.upper(): one({})}):
        is_fault(await face.call("POST", "/allocations", bad), 400)
    await sound(face)


async def test_racing_writers_over_http(face: Face) -> None:
    """Thrice as many as there is room for, each for a consumer of its own; then all for one consumer."""
    id = await face.provider(VCPU=10)
    replies = await asyncio.gather(*(face.allocate(new(), {id: {"VCPU": 1}}) for _ in range(30)))
    assert sorted(each.status for each in replies) == [204] * 10 + [409] * 20
    assert (await face.get(f"/resource_providers/{id}/usages"))["usages"] == {"VCPU": 10}
    other, consumer = await face.provider(VCPU=100), new()
    replies = await asyncio.gather(*(face.allocate(consumer, {other: {"VCPU": n}}) for n in range(1, 9)))
    assert sorted(each.status for each in replies) == [204] + [409] * 7
    await sound(face)


async def test_usages_of_a_project(face: Face) -> None:
    project, other = fresh("project"), fresh("project")
    id = await face.provider(VCPU=100, DISK_GB=100)
    for owner, user, kind, resources in (
        (project, "u", "INSTANCE", {"VCPU": 1, "DISK_GB": 10}),
        (project, "u", "INSTANCE", {"VCPU": 2}),
        (project, "v", "MIGRATION", {"VCPU": 4}),
        (other, "u", "INSTANCE", {"VCPU": 8}),
    ):
        more = {"project_id": owner, "user_id": user, "consumer_type": kind}
        (await face.allocate(new(), {id: resources}, **more)).expect(204)
    body = {"allocations": [{"resource_provider": {"uuid": id}, "resources": {"VCPU": 16}}]}
    old = {**body, "project_id": project, "user_id": "u"}
    (await face.call("PUT", f"/allocations/{new()}", old, v=8)).expect(204)

    async def usages(query: str, v: int) -> Any:
        return (await face.get(f"/usages?project_id={project}{query}", v=v))["usages"]

    assert await usages("", 9) == {"VCPU": 23, "DISK_GB": 10}
    assert await usages("&user_id=v", 9) == {"VCPU": 4}
    assert await usages("&user_id=w", 37) == {}
    assert await usages("", 38) == {
        "INSTANCE": {"consumer_count": 2, "VCPU": 3, "DISK_GB": 10},
        "MIGRATION": {"consumer_count": 1, "VCPU": 4},
        "unknown": {"consumer_count": 1, "VCPU": 16},
    }
    assert await usages("&consumer_type=MIGRATION", 38) == {"MIGRATION": {"consumer_count": 1, "VCPU": 4}}
    assert await usages("&consumer_type=unknown", 38) == {"unknown": {"consumer_count": 1, "VCPU": 16}}
    assert await usages("&consumer_type=all", 39) == {"all": {"consumer_count": 4, "VCPU": 23, "DISK_GB": 10}}
    for nothing in ("ALL", "UNKNOWN", "COW"):
        assert await usages(f"&consumer_type={nothing}", 38) == {}
    (await face.call("GET", f"/usages?project_id={project}", v=8)).expect(404)
    for query, v in (
        ("", 9),
        ("user_id=u", 9),
        ("project_id=", 9),
        ("project_id=p&user_id=", 9),
        ("project_id=" + "x" * 256, 9),
        ("project_id=p&user_id=" + "x" * 256, 9),
        ("project_id=p&dummy=1", 9),
        ("project_id=p&project_id=q", 9),
        ("project_id=p&consumer_type=all", 37),
    ):
        is_fault(await face.call("GET", f"/usages?{query}", v=v), 400)


async def test_what_the_house_claims_is_what_the_api_shows(face: Face) -> None:
    """The scheduler books by the Protocol; the operator looks with a client."""
    id, server = await face.provider(VCPU=4), new()
    assert await face.placement.claim(server, {id: {"VCPU": 3}}, "p", "u")
    found = await face.get(f"/allocations/{server}")
    assert (found["allocations"][id]["resources"], found["project_id"]) == ({"VCPU": 3}, "p")
    assert (found["consumer_generation"], found["consumer_type"]) == (1, "INSTANCE")
    assert not await face.placement.claim(new(), {id: {"VCPU": 2}}, "p", "u")
    (await face.call("DELETE", f"/allocations/{server}")).expect(204)
    assert await face.placement.held(server) == {}
