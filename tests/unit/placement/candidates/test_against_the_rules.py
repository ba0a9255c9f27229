"""Candidates are exactly what the rules of the API allow: compared with trying every combination."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from kilonova.db.placement_view import Summary
from kilonova.model.host import Inventory
from kilonova.services.placement.candidates.wanted import Group, Wanted
from kilonova.services.placement.options import Options
from kilonova.services.placement.view import SHARES, View
from tests.unit.placement.candidates.forest import Mapped, Taken, candidates, group, provider, view_of

CLASSES, TRAITS, AGGREGATES = ("VCPU", "VGPU"), ("FAST", "BLUE"), ("near", "far")


# ---- trying everything ----


def possible(view: View, wanted: Wanted) -> Counter[tuple[Taken, Mapped]]:
    """What the documentation of the API says, word by word and without any thrift."""
    found: set[tuple[Taken, Mapped]] = set()
    for root, tree in view.trees.items():
        traits = view.nodes[root].traits
        if not wanted.root_required <= traits or wanted.root_forbidden & traits:
            continue
        near = {node.uuid for node in tree.nodes}
        joined = {name for node in tree.nodes for name in node.aggregates}
        near |= {
            node.uuid for node in view.nodes.values() if SHARES in node.traits and node.aggregates & joined
        }
        found |= set(_of(view, wanted, sorted(near)))
    return Counter(found)


def _of(view: View, wanted: Wanted, near: list[str]) -> Any:
    slots = []
    for each in wanted.groups:
        if each.suffix:
            slots.append([(each, each.resources)])
        else:
            slots.append([(each, (one,)) for one in each.resources])
    flat = [slot for several in slots for slot in several]
    for uuids in itertools.product(near, repeat=len(flat)):
        chosen = list(zip(flat, uuids, strict=True))
        if _allowed(view, wanted, chosen):
            taken: Counter[tuple[str, str]] = Counter()
            mapped: dict[str, set[str]] = {}
            for (of, resources), uuid in chosen:
                mapped.setdefault(of.suffix, set()).add(uuid)
                for name, amount in resources:
                    taken[uuid, name] += amount
            yield (
                frozenset((*key, amount) for key, amount in taken.items()),
                frozenset((suffix, tuple(sorted(several))) for suffix, several in mapped.items()),
            )


def _allowed(view: View, wanted: Wanted, chosen: list[Any]) -> bool:
    if not all(_may_serve(view, of, uuid) for (of, _), uuid in chosen) or not _fits(view, chosen):
        return False
    loose = [(of, uuid) for (of, _), uuid in chosen if not of.suffix]
    together = frozenset().union(*(view.nodes[uuid].traits for _, uuid in loose))
    if loose and not _has(loose[0][0], together):
        return False
    own = {of.suffix: uuid for (of, _), uuid in chosen if of.suffix}
    if wanted.isolate and len(set(own.values())) < len(own):
        return False
    roots = [view.nodes[uuid].root for uuid in {uuid for _, uuid in chosen}]
    if not wanted.nested and len(set(roots)) < len(roots):
        return False
    return all(_one_is_above(view, {own[suffix] for suffix in names}) for names in wanted.same_subtree)


def _fits(view: View, chosen: list[Any]) -> bool:
    taken: Counter[tuple[str, str]] = Counter()
    for (_, resources), uuid in chosen:
        for name, amount in resources:
            stock = view.nodes[uuid].found.stock.get(name)
            if stock is None:
                return False
            has: Inventory = stock.inventory
            if amount < has.min_unit or amount > has.max_unit or amount % has.step_size:
                return False
            taken[uuid, name] += amount
            if stock.used + taken[uuid, name] > has.capacity or taken[uuid, name] > has.max_unit:
                return False
    return True


def _has(of: Group, traits: frozenset[str]) -> bool:
    return of.required <= traits and all(each & traits for each in of.any_of)


def _may_serve(view: View, of: Group, uuid: str) -> bool:
    node = view.nodes[uuid]
    if of.forbidden & node.traits or (of.suffix and not _has(of, node.traits)):
        return False
    if of.in_tree is not None and view.nodes[of.in_tree].root != node.root:
        return False
    spans = [node.aggregates] if of.suffix else [node.aggregates, view.nodes[node.root].aggregates]
    if any(of.not_member_of & span for span in spans):
        return False
    return any(all(each & span for each in of.member_of) for span in spans)


def _one_is_above(view: View, uuids: set[str]) -> bool:
    def line(uuid: str) -> set[str]:
        parent = view.nodes[uuid].parent
        return {uuid} | (line(parent) if parent else set())

    return any(all(top in line(uuid) for uuid in uuids) for top in uuids)


# ---- forests and requests at random ----


def seldom(*values: Any) -> st.SearchStrategy[Any]:
    """The first one mostly, so that there are candidates."""
    return st.sampled_from([*[values[0]] * (3 * len(values)), *values[1:]])


inventories = st.builds(
    dict,
    total=st.integers(2, 6),
    min_unit=seldom(1, 2),
    max_unit=seldom(6, 3, 2),
    step_size=seldom(1, 2),
)


@st.composite
def forests(draw: st.DrawFn) -> list[Summary]:
    """Up to three trees of up to five providers in all, some of which share what they have."""
    made: list[Summary] = []
    for number in range(draw(st.integers(1, 5))):
        above = draw(st.sampled_from([None, *made, *made]))
        stock = draw(st.dictionaries(st.sampled_from(CLASSES), inventories, max_size=2))
        made.append(
            provider(
                f"p{number}",
                above.provider.uuid if above else None,
                root=above.provider.root if above else None,
                traits=draw(st.sets(st.sampled_from(TRAITS))),
                aggregates=draw(st.sets(st.sampled_from(AGGREGATES))),
                shares=draw(seldom(False, True)),
                used={name: draw(seldom(0, 1, 2)) for name in stock},
                **stock,
            )
        )
    return made


@st.composite
def requests(draw: st.DrawFn, forest: list[Summary]) -> Wanted:
    resources = st.dictionaries(st.sampled_from(CLASSES), seldom(1, 2, 3), min_size=1, max_size=2)
    uuids = [each.provider.uuid for each in forest]
    suffixes = ["", "_a", "_b", "_c"][draw(st.integers(0, 1)) :]
    groups = []
    # often the same again, so that groups are equal
    pool = [
        {
            "required": draw(seldom("", "FAST", "!FAST", "in:FAST|BLUE", "BLUE,!FAST")),
            "member_of": draw(seldom((), (frozenset({"near"}),), (frozenset(AGGREGATES),))),
            "not_member_of": draw(seldom(frozenset(), frozenset({"far"}))),
            "in_tree": draw(seldom(None, *uuids)),
            **draw(resources),
        }
        for _ in range(2)
    ]
    for suffix in suffixes[: draw(st.integers(1, 4))]:
        groups.append(group(suffix, **draw(st.sampled_from(pool))))
    own = [each.suffix for each in groups if each.suffix]
    if draw(st.booleans()) and own:  # one that asks for nothing but to be above
        groups.append(group("_top", required=draw(seldom("", "FAST", "!BLUE"))))
        own.append("_top")
    names = [own[: draw(st.integers(1, len(own)))]] if own and draw(st.booleans()) else []
    if "_top" in own:
        names.append(["_top", draw(st.sampled_from(own))])
    return Wanted(
        groups=tuple(groups),
        isolate=draw(st.booleans()),
        same_subtree=tuple(frozenset(each) for each in names),
        root_required=draw(seldom(frozenset(), frozenset({"BLUE"}))),
        root_forbidden=draw(seldom(frozenset(), frozenset({"FAST"}))),
        nested=draw(seldom(True, False)),
    )


cases = forests().flatmap(lambda forest: st.tuples(st.just(forest), requests(forest)))


@given(cases)
@settings(max_examples=400)
def test_candidates_are_what_the_rules_allow(case: tuple[list[Summary], Wanted]) -> None:
    forest, wanted = case
    view = view_of(*forest)
    found = candidates(view, *wanted.groups, **_without_groups(wanted))
    assert Counter(found) == possible(view, wanted), "each once, and no other"


@given(cases, st.integers(1, 4), st.sampled_from(["depth-first", "breadth-first"]))
@settings(max_examples=100)
def test_a_limit_cuts_off_and_changes_nothing_else(
    case: tuple[list[Summary], Wanted], limit: int, strategy: Any
) -> None:
    forest, wanted = case
    view = view_of(*forest)
    options = Options(most=-1, strategy=strategy)
    whole = candidates(view, *wanted.groups, options=options, **_without_groups(wanted))
    assert Counter(whole) == possible(view, wanted)
    cut = candidates(view, *wanted.groups, options=options, **{**_without_groups(wanted), "limit": limit})
    assert cut == whole[:limit]


@given(cases)
@settings(max_examples=100)
def test_without_mappings_each_choice_is_told_once(case: tuple[list[Summary], Wanted]) -> None:
    forest, wanted = case
    view = view_of(*forest)
    found = candidates(view, *wanted.groups, **{**_without_groups(wanted), "mapped": False})
    told = [taken for taken, _ in found]
    assert len(told) == len(set(told)) and set(told) == {taken for taken, _ in possible(view, wanted)}


def _without_groups(wanted: Wanted) -> dict[str, Any]:
    return {name: getattr(wanted, name) for name in Wanted.__struct_fields__ if name != "groups"}
