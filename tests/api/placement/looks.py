"""Ways to look at placement, each in few words."""

from __future__ import annotations

from typing import Any

from tests.api.placement.face import Face, new

GONE = "the parameter is not known"


async def status(face: Face, method: str, path: str, body: Any = None, *, v: int) -> int:
    return (await face.call(method, path, body, v=v)).status


async def with_traits(face: Face, traits: list[str], **stock: Any) -> str:
    made = await face.provider(**stock)
    body = {"traits": traits, "resource_provider_generation": await face.generation(made)}
    (await face.call("PUT", f"/resource_providers/{made}/traits", body)).expect(200)
    return made


async def in_aggregate(face: Face, provider: str, *names: str) -> None:
    body = {"aggregates": list(names), "resource_provider_generation": await face.generation(provider)}
    (await face.call("PUT", f"/resource_providers/{provider}/aggregates", body)).expect(200)


async def own_class(face: Face) -> str:
    """A resource class that no other test's providers have."""
    name = f"CUSTOM_{new().replace('-', '').upper()}"
    (await face.call("PUT", f"/resource_classes/{name}")).expect(201)
    return name


async def candidates(face: Face, query: str, v: int) -> Any:
    """The answer, or GONE for a parameter that is not known at this version."""
    reply = await face.call("GET", f"/allocation_candidates?{query}", v=v)
    if reply.status == 400 and "unexpected" in reply.json["errors"][0]["detail"]:
        return GONE
    return reply.expect(200).json


async def served_by(face: Face, query: str, v: int) -> Any:
    """How many providers are in each candidate."""
    found = await candidates(face, query, v)
    return found if found == GONE else [len(each["allocations"]) for each in found["allocation_requests"]]


async def listed(face: Face, query: str, v: int, *among: str) -> Any:
    """Which of these providers are in a list, by their place; or its status."""
    reply = await face.call("GET", f"/resource_providers?{query}", v=v)
    if reply.status != 200:
        return reply.status
    found = {each["uuid"] for each in reply.json["resource_providers"]}
    return [at for at, uuid in enumerate(among) if uuid in found]


def body_of(allocations: Any, **more: Any) -> dict[str, Any]:
    return {"allocations": allocations, "project_id": "p", "user_id": "u", **more}
