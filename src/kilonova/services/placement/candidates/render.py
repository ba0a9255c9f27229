"""The answer to a request for allocation candidates, in the shape of its microversion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from kilonova.services.placement.candidates.generate import Found, amounts, nodes_of
from kilonova.services.placement.candidates.search import Solution
from kilonova.services.placement.candidates.wanted import Demand, Wanted
from kilonova.services.placement.view import Node, View
from kilonova.web.json import encoder

OBJECTS, TRAITS, ALL_CLASSES, NESTED, MAPPINGS = 12, 17, 27, 29, 34


def answer(view: View, wanted: Wanted, found: Found, version: int) -> dict[str, Any]:
    return {
        "allocation_requests": _requests(found, version),
        "provider_summaries": {
            node.uuid: _summary(node, wanted, version) for node in _concerned(view, found, version)
        },
    }


def _requests(found: Found, version: int) -> list[dict[str, Any]]:
    """Many candidates take the same and differ only in their mappings: what they share is made once."""
    taken: dict[int, msgspec.Raw] = {}
    loose: dict[int, dict[str, list[str]]] = {}
    own = [(number, each) for number, each in enumerate(found.demands) if not each.loose]
    suffixes = [suffix for _, demand in own for suffix in demand.suffixes]
    alone: dict[str, list[str]] = {}
    result: list[dict[str, Any]] = []
    for each in found.candidates:
        key = id(each.solution)
        if key not in taken:
            taken[key] = msgspec.Raw(encoder.encode(_allocations(found.demands, each.solution, version)))
            loose[key] = _loose(found.demands, each.solution)
            for node in nodes_of(each.solution):
                alone[node.uuid] = [node.uuid]
        one: dict[str, Any] = {"allocations": taken[key]}
        if version >= MAPPINGS:
            serving = [alone[node.uuid] for number, _ in own for node in each.arranged[number]]
            one["mappings"] = {**loose[key], **dict(zip(suffixes, serving, strict=True))}
        result.append(one)
    return result


def _allocations(demands: Sequence[Demand], solution: Solution, version: int) -> Any:
    """In the form in which this microversion's PUT /allocations takes them."""
    taken: dict[str, dict[str, int]] = {}
    for (uuid, name), amount in amounts(demands, solution).items():
        taken.setdefault(uuid, {})[name] = amount
    if version >= OBJECTS:
        return {uuid: {"resources": resources} for uuid, resources in taken.items()}
    return [
        {"resource_provider": {"uuid": uuid}, "resources": resources} for uuid, resources in taken.items()
    ]


def _loose(demands: Sequence[Demand], solution: Solution) -> dict[str, list[str]]:
    """Who serves the group without a suffix, if there is one."""
    picked = [picks[0].uuid for demand, picks in zip(demands, solution, strict=True) if demand.loose]
    return {"": list(dict.fromkeys(picked))} if picked else {}


def _concerned(view: View, found: Found, version: int) -> list[Node]:
    """The providers that are told of: those that are in a candidate, and since 1.29 their whole trees."""
    solutions = {id(each.solution): each.solution for each in found.candidates}
    several = {node.uuid: node for solution in solutions.values() for node in nodes_of(solution)}
    if version < NESTED:
        return list(several.values())
    roots = dict.fromkeys(node.root for node in several.values())
    return [node for root in roots for node in view.trees[root].nodes]


def _summary(node: Node, wanted: Wanted, version: int) -> Any:
    if version >= NESTED:
        if node.told is None:  # it is the same for every request until the provider changes
            node.told = encoder.encode(_described(node, list(node.shares), version))
        return msgspec.Raw(node.told)
    told = [name for name in node.shares if version >= ALL_CLASSES or name in wanted.classes]
    return _described(node, told, version)


def _described(node: Node, classes: Sequence[str], version: int) -> dict[str, Any]:
    resources = {
        name: {"capacity": node.shares[name].capacity, "used": node.shares[name].used} for name in classes
    }
    result: dict[str, Any] = {"resources": resources}
    if version >= TRAITS:
        result["traits"] = sorted(node.traits)
    if version >= NESTED:
        result |= {"parent_provider_uuid": node.parent, "root_provider_uuid": node.root}
    return result
