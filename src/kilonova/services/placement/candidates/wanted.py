"""What a request for allocation candidates asks for, and the demands that a tree of providers must meet."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from kilonova.services.placement.view import Node

Amounts = tuple[tuple[str, int], ...]
"""Resource class and amount, by class."""


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """One group of a request; the one without a suffix may be met by several providers."""

    suffix: str = ""
    resources: Amounts = ()
    required: frozenset[str] = frozenset()
    forbidden: frozenset[str] = frozenset()
    any_of: tuple[frozenset[str], ...] = ()  # a trait of each
    member_of: tuple[frozenset[str], ...] = ()  # an aggregate of each
    not_member_of: frozenset[str] = frozenset()
    in_tree: str | None = None  # a provider of the tree that it must come from


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """A whole request.

    ``nested``: several providers of one tree may serve it together (since 1.29).  ``mapped``: the answer says
    which provider serves which group, so that two that differ only in this are two candidates (since 1.34).
    """

    groups: tuple[Group, ...]
    isolate: bool = False
    same_subtree: tuple[frozenset[str], ...] = ()
    root_required: frozenset[str] = frozenset()
    root_forbidden: frozenset[str] = frozenset()
    limit: int | None = None
    nested: bool = True
    mapped: bool = True

    @property
    def classes(self) -> frozenset[str]:
        return frozenset(name for group in self.groups for name, _ in group.resources)


class Demand(msgspec.Struct, frozen=True, kw_only=True):
    """What one provider serves: a group with a suffix, or one resource class of the group without.

    Groups that ask for the same are one demand with several suffixes: which of their providers serves which
    of them makes no difference but in the mappings, and so not in the search either.
    """

    group: Group
    suffixes: tuple[str, ...]
    resources: Amounts
    subtrees: tuple[int, ...] = ()  # the ``same_subtree`` that it is in
    loose: bool = False  # of the group without a suffix, whose providers have the traits together

    def served_by(self, node: Node, nodes: Mapping[str, Node]) -> bool:
        """Whether a provider could serve it, were there no others.  ``nodes``: all providers by uuid."""
        for name, amount in self.resources:
            share = node.shares.get(name)
            if share is None or not share.gives(amount):
                return False
        group = self.group
        if group.forbidden and not group.forbidden.isdisjoint(node.traits):
            return False
        if not self.loose and not has_traits(node.traits, group):
            return False
        if group.in_tree is not None:
            other = nodes.get(group.in_tree)
            if other is None or other.root != node.root:
                return False
        return not (group.member_of or group.not_member_of) or self._is_member(node, nodes)

    def _is_member(self, node: Node, nodes: Mapping[str, Node]) -> bool:
        """An aggregate of a root spans its whole tree, but not for a group with a suffix."""
        group = self.group
        spans = (node.aggregates,) if not self.loose else (node.aggregates, nodes[node.root].aggregates)
        if any(not group.not_member_of.isdisjoint(names) for names in spans):
            return False
        return any(all(not each.isdisjoint(names) for each in group.member_of) for names in spans)


def has_traits(traits: frozenset[str], group: Group) -> bool:
    """Whether all are there that are required, and one of each that may be any."""
    if not group.required <= traits:
        return False
    return not group.any_of or all(not each.isdisjoint(traits) for each in group.any_of)


def demands(wanted: Wanted) -> list[Demand]:
    """The demands of a request; those of the group without a suffix are first."""
    loose: list[Demand] = []
    same: dict[tuple[Group, tuple[int, ...]], list[str]] = {}
    for group in wanted.groups:
        if not group.suffix:
            loose += [
                Demand(group=group, suffixes=("",), resources=(each,), loose=True) for each in group.resources
            ]
            continue
        subtrees = tuple(number for number, names in enumerate(wanted.same_subtree) if group.suffix in names)
        same.setdefault((msgspec.structs.replace(group, suffix="*"), subtrees), []).append(group.suffix)
    return loose + [
        Demand(group=group, suffixes=tuple(suffixes), resources=group.resources, subtrees=subtrees)
        for (group, subtrees), suffixes in same.items()
    ]
