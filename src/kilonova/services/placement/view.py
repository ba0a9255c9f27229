"""All providers in memory, tree by tree.

A view is never changed: a newer one shares with it whatever is as it was.  It is brought up to date before
each use, by one statement when nothing has changed, and else by reading what has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import TypeVar

from kilonova.db import placement_view
from kilonova.db.engine import Database, Tx
from kilonova.db.placement_providers import Stock
from kilonova.db.placement_view import Mark, Summary
from kilonova.services.placement.port import ProviderSummary

SHARES = "MISC_SHARES_VIA_AGGREGATE"

T = TypeVar("T")


class Share:
    """What a provider can still give of one resource class."""

    __slots__ = ("capacity", "free", "max_unit", "min_unit", "step_size", "used")

    def __init__(self, stock: Stock) -> None:
        has = stock.inventory
        self.capacity, self.used = has.capacity, stock.used
        self.free = self.capacity - self.used
        self.min_unit, self.max_unit, self.step_size = has.min_unit, has.max_unit, has.step_size

    def gives(self, amount: int) -> bool:
        return (
            self.min_unit <= amount <= self.max_unit and amount <= self.free and not amount % self.step_size
        )


class Node:
    """One provider."""

    __slots__ = ("_summary", "aggregates", "found", "parent", "root", "shares", "told", "traits", "uuid")

    def __init__(self, found: Summary) -> None:
        self.found = found
        self._summary: ProviderSummary | None = None
        self.told: bytes | None = None  # what candidates say of it, once that has been asked for
        self.uuid, self.parent, self.root = found.provider.uuid, found.provider.parent, found.provider.root
        self.traits, self.aggregates = found.traits, found.aggregates
        self.shares = {name: Share(stock) for name, stock in found.stock.items()}

    @property
    def summary(self) -> ProviderSummary:
        """For the rest of the house."""
        if self._summary is None:
            self._summary = _summary(self.found)
        return self._summary


class Tree:
    """All providers below one root, by uuid."""

    def __init__(self, root: str, nodes: Iterable[Node]) -> None:
        self.root = root
        self.nodes = tuple(sorted(nodes, key=lambda node: node.uuid))
        self.aggregates = frozenset(name for node in self.nodes for name in node.aggregates)
        self.giving: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in node.shares:
                self.giving.setdefault(name, []).append(node)

    @cached_property
    def top(self) -> Node:
        return next(node for node in self.nodes if node.uuid == self.root)

    @cached_property
    def lines(self) -> dict[str, frozenset[str]]:
        """Provider -> itself and all that are above it."""
        parents = {node.uuid: node.parent for node in self.nodes}
        found: dict[str, frozenset[str]] = {}
        for node in self.nodes:
            line, uuid = [], node.uuid
            above: str | None = uuid
            while above is not None:
                line.append(above)
                above = parents.get(above)
            found[uuid] = frozenset(line)
        return found


class View:
    """Every provider by uuid, every tree by the uuid of its root."""

    def __init__(self, mark: Mark, nodes: dict[str, Node], trees: dict[str, Tree]) -> None:
        self.mark = mark
        self.nodes = nodes
        self.trees = trees

    @cached_property
    def sharing(self) -> tuple[Node, ...]:
        """Those that give what they have to the trees in their aggregates as well."""
        return tuple(node for node in self.nodes.values() if SHARES in node.traits)

    @cached_property
    def by_name(self) -> list[Node]:
        return sorted(self.nodes.values(), key=lambda node: node.found.provider.name)

    def changed(self, mark: Mark, gone: set[str], loaded: Mapping[str, Node]) -> View:
        """The view after providers went and others were made or changed."""
        nodes = {uuid: node for uuid, node in self.nodes.items() if uuid not in gone}
        nodes |= loaded
        touched = {node.root for node in loaded.values()}
        touched |= {self.nodes[uuid].root for uuid in (*gone, *loaded) if uuid in self.nodes}
        trees = {root: tree for root, tree in self.trees.items() if root not in touched}
        for root in touched:
            old = self.trees[root].nodes if root in self.trees else ()
            kept = [node for node in old if node.uuid not in gone and node.uuid not in loaded]
            kept += [node for node in loaded.values() if node.root == root]
            if kept:
                trees[root] = Tree(root, kept)
        return View(mark, nodes, dict(sorted(trees.items())))


EMPTY = View((-1, 0), {}, {})


def refreshed(view: View, tx: Tx) -> View:
    """The view as the database is now."""
    mark = placement_view.mark(tx)
    if mark == view.mark:
        return view
    now = placement_view.revisions(tx)
    nodes = view.nodes
    gone = {uuid for uuid in nodes if uuid not in now}
    other = [
        uuid for uuid, number in now.items() if uuid not in nodes or nodes[uuid].found.revision != number
    ]
    found = placement_view.summaries(tx, other)
    return view.changed(mark, gone, {each.provider.uuid: Node(each) for each in found})


class Views:
    """The newest view that was needed so far, and newer ones."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._newest = EMPTY

    async def current(self) -> View:
        """As the database is now."""
        return (await self.look(lambda tx: None))[0]

    async def look(self, look: Callable[[Tx], T]) -> tuple[View, T]:
        """The same, and something that is read in the same transaction."""
        base = self._newest
        view, found = await self._db.read(lambda tx: (refreshed(base, tx), look(tx)))
        self._newest = view
        return view, found


def _summary(found: Summary) -> ProviderSummary:
    return ProviderSummary(
        uuid=found.provider.uuid,
        name=found.provider.name,
        generation=found.provider.generation,
        inventories={name: stock.inventory for name, stock in found.stock.items()},
        used={name: stock.used for name, stock in found.stock.items()},
        traits=found.traits,
        aggregates=found.aggregates,
        parent=found.provider.parent,
    )
