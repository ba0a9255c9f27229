"""Candidates one after the other, until there are enough."""

from __future__ import annotations

import itertools
import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import msgspec
import structlog

from kilonova.services.placement.candidates.search import Effort, GaveUp, Picks, Search, Solution, options
from kilonova.services.placement.candidates.wanted import Demand, Wanted, demands
from kilonova.services.placement.options import Options
from kilonova.services.placement.view import SHARES, Node, Tree, View

log = structlog.get_logger()

T = TypeVar("T")


class Candidate(msgspec.Struct, frozen=True, gc=False):
    """``solution`` says what is taken from whom, ``arranged`` which group is served by whom: the same picks,
    those of equal groups in another order."""

    solution: Solution
    arranged: Solution


class Found(msgspec.Struct, frozen=True):
    demands: list[Demand]
    candidates: list[Candidate]


def generate(
    view: View, wanted: Wanted, chosen: Options, shuffle: Callable[[list[Tree]], None] = random.shuffle
) -> Found:
    """As many candidates as are asked for and allowed.

    They are made one by one, so that what is behind the limit costs nothing.  Of one tree those come first
    that take something else; those that only exchange the providers of equal groups come last.
    """
    asked = demands(wanted)
    trees: Iterable[Tree] = view.trees.values()
    if chosen.randomize:
        trees = list(trees)
        shuffle(trees)
    effort = Effort()
    several = (_of_tree(view, wanted, asked, tree, effort) for tree in trees if _has_root(tree, wanted))
    breadth = chosen.strategy == "breadth-first" or chosen.randomize
    every = _in_turn(several) if breadth else itertools.chain.from_iterable(several)
    if view.sharing or not wanted.mapped:
        every = _once(every, asked, wanted.mapped)
    most = [each for each in (wanted.limit, chosen.most) if each is not None and each >= 0]
    found = list(itertools.islice(every, min(most, default=None)))
    if effort.is_over:
        log.warning("not all allocation candidates were looked at: too many tries in vain", found=len(found))
    return Found(asked, found)


def _has_root(tree: Tree, wanted: Wanted) -> bool:
    if not wanted.root_required and not wanted.root_forbidden:
        return True
    traits = tree.top.traits
    return wanted.root_required <= traits and wanted.root_forbidden.isdisjoint(traits)


def _of_tree(
    view: View, wanted: Wanted, asked: Sequence[Demand], tree: Tree, effort: Effort
) -> Iterator[Candidate]:
    if effort.is_over:
        return
    shared = [
        node
        for node in view.sharing
        if node.root != tree.root and not node.aggregates.isdisjoint(tree.aggregates)
    ]
    choices = options(asked, view, tree, shared)
    if choices is None:
        return
    search = Search(wanted, asked, view, choices, effort.in_tree())
    solutions: list[Solution] = []
    try:
        for solution in search.solutions():
            yield Candidate(solution, solution)
            solutions.append(solution)
    except GaveUp:
        log.warning("gave up looking for allocation candidates in a tree of providers", root=tree.root)
    if wanted.mapped:
        for solution in solutions:
            for arranged in itertools.islice(_arrangements(solution), 1, None):
                yield Candidate(solution, arranged)


def _arrangements(solution: Solution) -> Iterator[Solution]:
    """The solution itself, then those that exchange the providers of equal groups."""
    return _exchanged(solution, [number for number, picks in enumerate(solution) if len(picks) > 1])


def _exchanged(solution: Solution, numbers: Sequence[int]) -> Iterator[Solution]:
    """In every order of the picks with these numbers."""
    if not numbers:
        yield solution
        return
    number, rest = numbers[0], numbers[1:]
    for order in _orders(solution[number]):
        yield from _exchanged((*solution[:number], order, *solution[number + 1 :]), rest)


def _orders(picks: Picks) -> Iterator[Picks]:
    """Each order of the picks once, beginning with their own."""
    different = dict.fromkeys(picks)
    if len(different) == len(picks):
        yield from itertools.permutations(picks)
        return
    for node in different:
        at = picks.index(node)
        for others in _orders(picks[:at] + picks[at + 1 :]):
            yield (node, *others)


def _in_turn(several: Iterable[Iterator[T]]) -> Iterator[T]:
    """One of each, then the next one of each."""
    waiting = deque(several)
    while waiting:
        one = waiting.popleft()
        for each in one:
            yield each
            waiting.append(one)
            break


def _once(several: Iterator[Candidate], asked: Sequence[Demand], mapped: bool) -> Iterator[Candidate]:
    """Without those that are there already: providers that share can be found from several trees, and
    without mappings it does not matter who serves which group."""
    seen: set[object] = set()
    for each in several:
        if mapped and not all(SHARES in node.traits for picks in each.solution for node in picks):
            yield each
            continue
        key = _names(each.arranged) if mapped else frozenset(amounts(asked, each.solution).items())
        if key not in seen:
            seen.add(key)
            yield each


def _names(solution: Solution) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(node.uuid for node in picks) for picks in solution)


def amounts(asked: Sequence[Demand], solution: Solution) -> dict[tuple[str, str], int]:
    """Provider and resource class -> what is taken in all."""
    found: dict[tuple[str, str], int] = {}
    for demand, picks in zip(asked, solution, strict=True):
        for node in picks:
            for name, amount in demand.resources:
                place = (node.uuid, name)
                found[place] = found.get(place, 0) + amount
    return found


def nodes_of(solution: Solution) -> Iterator[Node]:
    return (node for picks in solution for node in picks)
