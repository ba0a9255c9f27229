"""Wide trees, equal groups, limits, orders, and what is too hard."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import pytest
import structlog

from kilonova.db.placement_view import Summary
from kilonova.services.placement.candidates.generate import generate
from kilonova.services.placement.candidates.search import Effort, GaveUp, Search, Tries, options
from kilonova.services.placement.candidates.wanted import Wanted, demands
from kilonova.services.placement.options import Options
from kilonova.services.placement.view import View
from tests.unit.placement.candidates.forest import candidates, group, provider, served, taken, view_of


def host(name: str, devices: int, each: int = 1, *, used: int = 0) -> list[Summary]:
    """A root with as many devices, the first ``used`` of which are taken."""
    children = [
        provider(
            f"{name}-{number}",
            name,
            traits=["FAST"],
            used={"CUSTOM_GPU": each} if number < used else {},
            CUSTOM_GPU=each,
        )
        for number in range(devices)
    ]
    return [provider(name, VCPU=64, MEMORY_MB=4096), *children]


def hosts(number: int, devices: int, **more: int) -> View:
    return view_of(*(one for at in range(number) for one in host(f"h{at:03}", devices, **more)))


def gpus(number: int, **more: object) -> list[object]:
    return [group(VCPU=2, MEMORY_MB=64), *(group(f"_{at}", CUSTOM_GPU=1, **more) for at in range(number))]


def request(number: int, **more: object) -> Wanted:
    return Wanted(groups=tuple(gpus(number)), **more)  # type: ignore[arg-type]


class Count(Tries):
    """Of all tries, without an end."""

    number = 0

    def spend(self) -> None:
        self.number += 1


def tries(view: View, wanted: Wanted) -> int:
    """How many tries it takes to look through everything."""
    count, asked = Count(Effort(), 0), demands(wanted)
    for tree in view.trees.values():
        choices = options(asked, view, tree, ())
        if choices is not None:
            list(Search(wanted, asked, view, choices, count).solutions())
    return count.number


def test_every_arrangement_of_a_few_devices() -> None:
    view = hosts(2, 3)
    found = candidates(view, *gpus(2), isolate=True)
    assert len(found) == 2 * 3 * 2 and len(set(found)) == 12
    assert len({taken for taken, _ in found}) == 2 * 3
    # two groups on one device of two
    found = candidates(hosts(1, 2, each=2), *gpus(2))
    assert Counter(len(taken) for taken, _ in found) == {2 + 1: 2, 2 + 2: 2}
    assert candidates(hosts(1, 2, each=2), *gpus(2), isolate=True) != found


def test_all_arrangements_are_made_when_nothing_limits_them() -> None:
    found = candidates(hosts(1, 6), *gpus(6), isolate=True)
    assert len(found) == len(set(found)) == math.factorial(6)
    assert len({taken for taken, _ in found}) == 1
    found = candidates(hosts(1, 3, each=2), *gpus(3))
    # multisets of three out of three with at most two of each, in every order
    several = Counter(itertools.product(range(3), repeat=3))
    assert len(found) == sum(max(Counter(each).values()) <= 2 for each in several)


@pytest.mark.parametrize("isolate", [True, False])
def test_eight_groups_on_eight_devices_of_a_hundred_hosts_are_a_hundred_ways(isolate: bool) -> None:
    view = hosts(100, 8)
    asked = request(8, isolate=isolate, mapped=False)
    found = generate(view, asked, Options(most=-1))
    assert len(found.candidates) == 100
    assert tries(view, asked) == 300, "one for each of the two classes and the devices: none in vain"


@pytest.mark.parametrize("isolate", [True, False])
def test_seven_devices_for_eight_groups_are_refused_at_once(isolate: bool) -> None:
    """Of the 8 * 7! dead ends none is looked at."""
    view = view_of(*(one for at in range(50) for one in host(f"h{at:03}", 8, used=1)))
    asked = request(8, isolate=isolate)
    assert generate(view, asked, Options(most=-1)).candidates == []
    assert tries(view, asked) < 50 * 20


def test_a_limit_is_filled_without_making_the_rest() -> None:
    """Of four million arrangements a thousand are made, the ways that differ in what they take first."""
    view = hosts(100, 8)
    found = generate(view, request(8, isolate=True, limit=1000), Options(strategy="breadth-first"))
    assert len(found.candidates) == 1000
    first = [taken(found, each) for each in found.candidates[:100]]
    assert len(set(first)) == 100, "one of each host first"
    found = generate(view, request(8, isolate=True, limit=1000), Options())
    assert len({taken(found, each) for each in found.candidates}) == 1, "depth-first stays with one host"
    found = generate(view, request(4, isolate=True, limit=100), Options())
    assert len({taken(found, each) for each in found.candidates}) == math.comb(8, 4), "each choice first"


def test_strategies_and_the_operators_limit() -> None:
    view = hosts(3, 2)

    def roots(strategy: str, most: int = -1, limit: int | None = None) -> str:
        found = generate(
            view,
            request(1, limit=limit),
            Options(strategy=strategy, most=most),  # type: ignore[arg-type]
        )
        return " ".join(each.solution[0][0].uuid.removeprefix("h00") for each in found.candidates)

    assert roots("depth-first") == "0 0 1 1 2 2"
    assert roots("breadth-first") == "0 1 2 0 1 2"
    assert roots("breadth-first", most=4) == roots("breadth-first", limit=4) == "0 1 2 0"
    assert roots("breadth-first", most=2, limit=4) == roots("breadth-first", most=4, limit=2) == "0 1"
    assert Options().most == 10_000


def test_at_random_is_a_sample_of_the_same() -> None:
    view = hosts(20, 2)
    whole = set(candidates(view, *gpus(1)))
    seen = set()
    for _ in range(20):
        some = candidates(view, *gpus(1), options=Options(randomize=True, most=5))
        assert len(some) == 5 and set(some) <= whole
        seen |= set(some)
    assert len(seen) > 15, "not always the first ones"

    def backwards(trees: list[object]) -> None:
        trees.reverse()

    found = generate(view, request(1, limit=2), Options(randomize=True), backwards)
    assert [each.solution[0][0].uuid for each in found.candidates] == ["h019", "h018"]


def test_groups_that_are_not_equal_are_not_exchanged() -> None:
    view = view_of(
        provider("cn", VCPU=8),
        provider("red", "cn", traits=["RED"], VGPU=1),
        provider("plain", "cn", VGPU=1),
    )
    one = group("_1", required="RED", VGPU=1)
    other = group("_2", VGPU=1)
    assert served(view, one, other, isolate=True) == ["_1:red _2:plain"]
    assert served(view, other, group("_1", VGPU=1), isolate=True) == [
        "_1:plain _2:red",
        "_1:red _2:plain",
    ]
    # equal but for the subtree that one of them is in
    view = view_of(
        provider("cn", VCPU=8),
        provider("numa0", "cn", VCPU=2),
        provider("dev0", "numa0", root="cn", VGPU=1),
        provider("dev1", "cn", VGPU=1),
    )
    groups = (group("_c", VCPU=2), group("_1", VGPU=1), group("_2", VGPU=1))
    near = {"same_subtree": (frozenset({"_c", "_1"}),), "isolate": True}
    assert served(view, *groups, **near) == [
        "_1:dev0 _2:dev1 _c:cn",
        "_1:dev0 _2:dev1 _c:numa0",
        "_1:dev1 _2:dev0 _c:cn",
    ]


def test_an_order_in_which_what_has_no_choice_goes_first() -> None:
    """Seven groups may have any device and one only this: the seven do not take it away."""
    view = view_of(
        *host("cn", 7),
        provider("special", "cn", traits=["FAST", "RARE"], CUSTOM_GPU=1),
    )
    groups = [*gpus(7, required="FAST"), group("_z", required="RARE", CUSTOM_GPU=1)]
    asked = Wanted(groups=tuple(groups), isolate=True, mapped=False)  # type: ignore[arg-type]
    assert len(generate(view, asked, Options()).candidates) == 1
    assert tries(view, asked) == 4, "two classes, the special one, and then the seven"


def test_what_groups_take_together_must_fit_as_well() -> None:
    """One of a class more than a single allocation may be is too much, however it is asked for."""
    view = view_of(provider("left", VGPU=8), provider("right", VGPU={"total": 8, "max_unit": 2}))
    two = (group("_a", VGPU=1), group("_b", VGPU=1))
    assert served(view, *two) == ["_a:left _b:left", "_a:right _b:right"]
    assert served(view, group(VGPU=1), *two) == [".:left _a:left _b:left"]
    assert served(view, *two, group("_c", VGPU=1)) == ["_a:left _b:left _c:left"]
    assert served(view, group("_a", VGPU=2), group("_b", VGPU=1)) == ["_a:left _b:left"]


def test_whoever_is_above_may_be_found_last() -> None:
    """The ports have fewer choices than the card above them, and are chosen first."""
    view = view_of(
        provider("cn"),
        *(provider(f"nic{at}", "cn", traits=["NIC"]) for at in range(3)),
        provider("red1", "nic1", root="cn", traits=["RED"], VGPU=1),
        provider("blue1", "nic1", root="cn", traits=["BLUE"], VGPU=1),
        provider("blue2", "nic2", root="cn", traits=["BLUE"], VGPU=1),
    )
    groups = (
        group("_n", required="NIC"),
        group("_1", required="RED", VGPU=1),
        group("_2", required="BLUE", VGPU=1),
    )
    near = (frozenset({"_n", "_1", "_2"}),)
    assert served(view, *groups, same_subtree=near) == ["_1:red1 _2:blue1 _n:nic1"]


def test_traits_of_the_group_without_a_suffix_are_of_its_own_providers() -> None:
    """Also when another group, which has no choice, could be chosen first."""
    view = view_of(
        provider("cn"),
        provider("numa0", "cn", VCPU=4),
        provider("numa1", "cn", traits=["FAST"], VCPU=4),
        provider("gpu", "cn", traits=["SLOW"], VGPU=1),
    )
    gpu = group("_g", VGPU=1)
    assert served(view, group(required="FAST", VCPU=1), gpu) == [".:numa1 _g:gpu"]
    assert served(view, group(required="SLOW", VCPU=1), gpu) == []


def test_before_there_were_trees_no_two_were_of_one() -> None:
    view = view_of(
        provider("cn", VCPU=4),
        provider("gpu", "cn", VGPU=1),
        provider("both", VCPU=4, VGPU=1),
    )
    asked = group(VCPU=1, VGPU=1)
    assert served(view, asked) == [".:both", ".:cn,gpu"]
    assert served(view, asked, nested=False) == [".:both"]
    assert served(view, group("_a", VCPU=1), group("_b", VGPU=1), nested=False) == ["_a:both _b:both"]


def test_equal_groups_for_whom_nothing_is_left() -> None:
    """What only this one may have is taken first, and two that belong together find nobody."""
    view = view_of(provider("cn", VCPU=8), provider("red", "cn", traits=["RED"], VGPU=1))
    groups = (group("_a", required="RED", VGPU=1), group("_b", VGPU=1), group("_c", VGPU=1))
    for isolate in (True, False):
        for near in ((), (frozenset({"_b", "_c"}),)):
            assert served(view, *groups, isolate=isolate, same_subtree=near) == []


def knapsack(number: int) -> tuple[View, Wanted]:
    """Groups that differ and fill the providers to the brim, but for one unit that nobody has."""
    sizes = [2 * (at % 9) + 101 for at in range(number)]
    stock = {"total": sum(sizes) // 4}
    view = view_of(
        provider("cn", VCPU=1),
        *(provider(f"p{at}", "cn", CUSTOM_X=dict(stock)) for at in range(4)),
    )
    groups = tuple(group(f"_{at}", CUSTOM_X=size, required=f"!T{at}") for at, size in enumerate(sizes))
    return view, Wanted(groups=groups)


def test_what_is_too_hard_is_given_up_and_said() -> None:
    view, asked = knapsack(23)
    effort = Effort(500, 2000)
    wanted = demands(asked)
    (tree,) = view.trees.values()
    choices = options(wanted, view, tree, ())
    assert choices is not None
    with pytest.raises(GaveUp):
        list(Search(asked, wanted, view, choices, effort.in_tree()).solutions())
    assert effort.left == 2000 - 501 and not effort.is_over
    with structlog.testing.capture_logs() as logs:
        generate(view, asked, Options())
    assert [each["root"] for each in logs] == ["cn"] and "gave up" in logs[0]["event"]


def test_many_trees_that_are_too_hard_end_it_all() -> None:
    many, asked = knapsack(23)
    trees = [
        provider(
            f"{at}-{node.uuid}",
            None if node.parent is None else f"{at}-cn",
            VCPU=1,
            **({"CUSTOM_X": {"total": node.found.stock["CUSTOM_X"].inventory.total}} if node.parent else {}),
        )
        for at in range(30)
        for node in many.nodes.values()
    ]
    with structlog.testing.capture_logs() as logs:
        generate(view_of(*trees), asked, Options())
    assert len(logs) == 21 and "not all" in logs[-1]["event"], "twenty trees were given up, ten never seen"


def test_what_is_found_gives_new_patience() -> None:
    effort = Effort(3, 10)
    one = effort.in_tree()
    for _ in range(3):
        for _ in range(3):
            one.spend()
        one.found()
    for _ in range(3):
        one.spend()
    with pytest.raises(GaveUp):
        one.spend()
    assert effort.left == 6
    for _ in range(2):
        other = effort.in_tree()
        with pytest.raises(GaveUp):
            for _ in range(4):
                other.spend()
    assert effort.is_over
