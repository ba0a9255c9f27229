"""The answer to a request for allocation candidates, in the shape of its microversion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kilonova.services.placement.candidates.generate import Candidate, Found, amounts, nodes_of
from kilonova.services.placement.candidates.search import Solution
from kilonova.services.placement.candidates.wanted import Demand, Wanted
from kilonova.services.placement.view import Node, View

OBJECTS, TRAITS, ALL_CLASSES, NESTED, MAPPINGS = 12, 17, 27, 29, 34


def answer(view: View, wanted: Wanted, found: Found, version: int) -> dict[str, Any]:
    return {
        "allocation_requests": _requests(found, version),
        "provider_summaries": {
            node.uuid: _summary(node, wanted, version) for node in _concerned(view, found, version)
        },
    }


def _requests(found: Found, version: int) -> list[dict[str, Any]]:
    made: dict[int, Any] = {}  # many candidates take the same and differ only in their mappings
    result: list[dict[str, Any]] = []
    for each in found.candidates:
        key = id(each.solution)
        if key not in made:
            made[key] = _allocations(found.demands, each, version)
        one: dict[str, Any] = {"allocations": made[key]}
        if version >= MAPPINGS:
            one["mappings"] = _mappings(found.demands, each.arranged)
        result.append(one)
    return result


def _allocations(demands: Sequence[Demand], candidate: Candidate, version: int) -> Any:
    """In the form in which this microversion's PUT /allocations takes them."""
    taken: dict[str, dict[str, int]] = {}
    for (uuid, name), amount in amounts(demands, candidate.solution).items():
        taken.setdefault(uuid, {})[name] = amount
    if version >= OBJECTS:
        return {uuid: {"resources": resources} for uuid, resources in taken.items()}
    return [
        {"resource_provider": {"uuid": uuid}, "resources": resources} for uuid, resources in taken.items()
    ]


def _mappings(demands: Sequence[Demand], arranged: Solution) -> dict[str, list[str]]:
    """Suffix -> the providers that serve that group."""
    found: dict[str, list[str]] = {}
    for demand, picks in zip(demands, arranged, strict=True):
        for suffix, node in zip(demand.suffixes, picks, strict=True):
            several = found.setdefault(suffix, [])
            if node.uuid not in several:
                several.append(node.uuid)
    return found


def _concerned(view: View, found: Found, version: int) -> list[Node]:
    """The providers that are told of: those that are in a candidate, and since 1.29 their whole trees."""
    several = {node.uuid: node for each in found.candidates for node in nodes_of(each.solution)}
    if version < NESTED:
        return list(several.values())
    roots = dict.fromkeys(node.root for node in several.values())
    return [node for root in roots for node in view.trees[root].nodes]


def _summary(node: Node, wanted: Wanted, version: int) -> dict[str, Any]:
    resources = {
        name: {"capacity": share.capacity, "used": share.used}
        for name, share in node.shares.items()
        if version >= ALL_CLASSES or name in wanted.classes
    }
    result: dict[str, Any] = {"resources": resources}
    if version >= TRAITS:
        result["traits"] = sorted(node.traits)
    if version >= NESTED:
        result |= {"parent_provider_uuid": node.parent, "root_provider_uuid": node.root}
    return result
