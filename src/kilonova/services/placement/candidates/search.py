"""The ways in which one tree of providers, with those that share with it, can serve a request.

Backtracking over demands, not over groups: equal groups are chosen for together, as a multiset, and what they
would take is counted before anybody is chosen.  So eight devices for eight equal groups are one way and not
40,320, and seven devices are none at once.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from kilonova.services.placement.candidates.wanted import Demand, Group, Wanted, has_traits
from kilonova.services.placement.view import Node, Tree, View

TREE_TRIES, ALL_TRIES = 20_000, 400_000

Picks = tuple[Node, ...]
"""The providers of a demand, one for each of its suffixes."""

Solution = tuple[Picks, ...]
"""The picks of each demand."""

Rooms = list[tuple[Node, int]]
"""Providers, and how often each could serve a demand."""


class GaveUp(Exception):
    """Looking on would take too long.  What is asked for can be as hard as packing a knapsack."""


class Effort:
    """How many tries in a row may be in vain, in one tree and in all."""

    def __init__(self, tree: int = TREE_TRIES, everywhere: int = ALL_TRIES) -> None:
        self._tree, self._everywhere = tree, everywhere
        self.left = everywhere

    def in_tree(self) -> Tries:
        return Tries(self, min(self._tree, self.left))

    def found(self) -> None:
        self.left = self._everywhere

    @property
    def is_over(self) -> bool:
        return self.left <= 0


class Tries:
    """Those of one tree."""

    def __init__(self, effort: Effort, most: int) -> None:
        self._effort, self._most = effort, most
        self._left = most

    def spend(self) -> None:
        self._left -= 1
        self._effort.left -= 1
        if self._left < 0:
            raise GaveUp

    def found(self) -> None:
        self._left = self._most
        self._effort.found()


def options(
    demands: Sequence[Demand], view: View, tree: Tree, shared: Sequence[Node]
) -> list[list[Node]] | None:
    """Who could serve each demand, were there no others; None as soon as nobody could.

    ``shared``: providers of other trees that share with this one.
    """
    found: list[list[Node]] = []
    for demand in demands:
        if demand.resources:
            name = demand.resources[0][0]
            several: Sequence[Node] = tree.giving.get(name, ())
            if shared:
                several = [*several, *(node for node in shared if name in node.shares)]
        else:
            several = (*tree.nodes, *shared)
        fit = [node for node in several if demand.served_by(node, view.nodes)]
        if not fit:
            return None
        found.append(fit)
    return found


class Search:
    """The solutions in one tree.  ``options``: of each demand."""

    def __init__(
        self,
        wanted: Wanted,
        demands: Sequence[Demand],
        view: View,
        options: Sequence[list[Node]],
        tries: Tries,
    ) -> None:
        self._wanted, self._demands, self._view, self._tries = wanted, demands, view, tries
        self._options = options
        self._loose = sum(each.loose for each in demands)
        numbers = range(len(demands))
        # what has the fewest options goes first: a dead end is seen early
        self._order = sorted(numbers, key=lambda n: (not demands[n].loose, len(self._options[n])))
        self._picked: list[Picks] = [()] * len(demands)
        self._taken: dict[tuple[str, str], int] = {}
        self._isolated: set[str] = set()
        self._placed: list[list[Node]] = [[] for _ in wanted.same_subtree]
        self._above = [self._possible(number) for number in range(len(wanted.same_subtree))]

    def solutions(self) -> Iterator[Solution]:
        """All of them, each once.  Raises GaveUp."""
        return self._fill(0)

    def _possible(self, subtree: int) -> frozenset[str]:
        """Who could be above all others of a ``same_subtree``."""
        return frozenset(
            node.uuid
            for demand, options in zip(self._demands, self._options, strict=True)
            if subtree in demand.subtrees
            for node in options
        )

    def _fill(self, at: int) -> Iterator[Solution]:
        if at == len(self._order):
            self._tries.found()
            yield tuple(self._picked)
            return
        number = self._order[at]
        demand = self._demands[number]
        for picks in self._ways(demand, self._options[number]):
            self._tries.spend()
            self._picked[number] = picks
            self._count(demand, picks, 1)
            if self._may_stand(demand, at):
                yield from self._fill(at + 1)
            self._count(demand, picks, -1)
            self._picked[number] = ()

    def _count(self, demand: Demand, picks: Picks, sign: int) -> None:
        """Book picks, or give them back."""
        for node in picks:
            for name, amount in demand.resources:
                place = (node.uuid, name)
                self._taken[place] = self._taken.get(place, 0) + sign * amount
        if self._wanted.isolate and not demand.loose:
            names = [node.uuid for node in picks]
            (self._isolated.update if sign > 0 else self._isolated.difference_update)(names)
        for subtree in demand.subtrees:
            if sign > 0:
                self._placed[subtree].extend(picks)
            else:
                del self._placed[subtree][-len(picks) :]

    # ---- the picks of one demand ----

    def _ways(self, demand: Demand, options: list[Node]) -> Iterator[Picks]:
        rooms = [(node, room) for node in options if (room := self._room(demand, node)) > 0]
        number = len(demand.suffixes)
        if number == 1:
            return ((node,) for node, _ in rooms)
        if not demand.subtrees and all(room == 1 for _, room in rooms):
            return itertools.combinations([node for node, _ in rooms], number)
        left = list(itertools.accumulate((room for _, room in reversed(rooms)), initial=0))[::-1]
        return self._spread(demand, rooms, left, number, ())

    def _room(self, demand: Demand, node: Node) -> int:
        """How many of a demand's groups a provider could serve beside what it serves already."""
        most = len(demand.suffixes)
        if self._wanted.isolate and not demand.loose:
            if node.uuid in self._isolated:
                return 0
            most = 1
        for name, amount in demand.resources:
            share = node.shares[name]
            taken = self._taken.get((node.uuid, name), 0)
            most = min(most, (min(share.free, share.max_unit) - taken) // amount)
        return most

    def _spread(
        self, demand: Demand, rooms: Rooms, left: list[int], number: int, picks: Picks
    ) -> Iterator[Picks]:
        """The multisets of ``number`` providers.  ``left``: the room of this one and all after it."""
        if number == 0:
            yield picks
            return
        if left[0] < number:
            return
        node, room = rooms[0]
        for times in range(min(room, number), -1, -1):
            if left[1] < number - times:
                return
            more = picks + (node,) * times
            self._tries.spend()
            if not times or all(self._near(subtree, more) for subtree in demand.subtrees):
                yield from self._spread(demand, rooms[1:], left[1:], number - times, more)

    # ---- whether what is picked so far may stand ----

    def _may_stand(self, demand: Demand, at: int) -> bool:
        if at + 1 == self._loose and not self._has_loose_traits(demand.group):
            return False
        if not self._wanted.nested and not self._is_flat():
            return False
        return not demand.subtrees or all(self._near(subtree, ()) for subtree in demand.subtrees)

    def _has_loose_traits(self, group: Group) -> bool:
        """Whether the providers of the group without a suffix have its traits together."""
        if not group.required and not group.any_of:
            return True
        nodes = (node for number in self._order[: self._loose] for node in self._picked[number])
        return has_traits(frozenset().union(*(node.traits for node in nodes)), group)

    def _is_flat(self) -> bool:
        """Whether no two providers are of one tree."""
        seen: dict[str, str] = {}
        return all(
            seen.setdefault(node.root, node.uuid) == node.uuid for picks in self._picked for node in picks
        )

    def _near(self, subtree: int, more: Picks) -> bool:
        """Whether one of a ``same_subtree`` is, or can still be, above all others or the same."""
        placed = (*self._placed[subtree], *more)
        lines = [self._view.trees[node.root].lines[node.uuid] for node in placed]
        common = lines[0].intersection(*lines[1:])
        if len(placed) < len(self._wanted.same_subtree[subtree]):
            return not common.isdisjoint(self._above[subtree])
        return any(node.uuid in common for node in placed)
