"""Trees of providers in memory, written down in few words."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from kilonova.db.placement_providers import Provider, Stock
from kilonova.db.placement_view import Summary
from kilonova.model.host import Inventory
from kilonova.services.placement.candidates.generate import Candidate, Found, amounts, generate
from kilonova.services.placement.candidates.wanted import Amounts, Group, Wanted
from kilonova.services.placement.options import Options
from kilonova.services.placement.view import EMPTY, SHARES, Node, View

EVERYTHING = Options(most=-1)

Taken = frozenset[tuple[str, str, int]]
Mapped = frozenset[tuple[str, tuple[str, ...]]]


def provider(
    name: str,
    parent: str | None = None,
    *,
    root: str | None = None,
    traits: Iterable[str] = (),
    aggregates: Iterable[str] = (),
    shares: bool = False,
    used: dict[str, int] | None = None,
    **stock: int | dict[str, Any],
) -> Summary:
    """``name`` is its uuid as well.  An inventory is its total, or its fields."""
    return Summary(
        provider=Provider(uuid=name, name=name, generation=0, parent=parent, root=root or parent or name),
        revision=1,
        stock={
            each: Stock(
                Inventory(**fields) if isinstance(fields, dict) else Inventory(total=fields),
                (used or {}).get(each, 0),
            )
            for each, fields in stock.items()
        },
        traits=frozenset({*traits, *([SHARES] if shares else [])}),
        aggregates=frozenset(aggregates),
    )


def view_of(*found: Summary) -> View:
    return EMPTY.changed((len(found), 0), set(), {each.provider.uuid: Node(each) for each in found})


def group(suffix: str = "", *, required: str = "", **more: Any) -> Group:
    """Amounts by class; ``required`` as in a query: A,!B,in:C|D."""
    yes, no, any_of = set(), set(), []
    for part in filter(None, required.split(",")):
        if part.startswith("in:"):
            any_of.append(frozenset(part[3:].split("|")))
        else:
            (no if part.startswith("!") else yes).add(part.lstrip("!"))
    fields = {name: more.pop(name) for name in ("member_of", "not_member_of", "in_tree") if name in more}
    resources: Amounts = tuple(sorted(more.items()))
    return Group(
        suffix=suffix,
        resources=resources,
        required=frozenset(yes),
        forbidden=frozenset(no),
        any_of=tuple(any_of),
        **fields,
    )


def taken(found: Found, candidate: Candidate) -> Taken:
    return frozenset((*key, amount) for key, amount in amounts(found.demands, candidate.solution).items())


def mapped(found: Found, candidate: Candidate) -> Mapped:
    several: dict[str, list[str]] = {}
    for demand, picks in zip(found.demands, candidate.arranged, strict=True):
        for suffix, node in zip(demand.suffixes, picks, strict=True):
            several.setdefault(suffix, []).append(node.uuid)
    return frozenset((suffix, tuple(sorted(set(uuids)))) for suffix, uuids in several.items())


def candidates(
    view: View, *groups: Group, options: Options = EVERYTHING, **more: Any
) -> list[tuple[Taken, Mapped]]:
    """All candidates, as what they take and who serves which group."""
    found = generate(view, Wanted(groups=groups, **more), options)
    return [(taken(found, each), mapped(found, each)) for each in found.candidates]


def served(view: View, *groups: Group, **more: Any) -> list[str]:
    """The mappings of each candidate, in words: ``a:cn1 b:cn1,cn2``; the group without a suffix is ``.``."""
    return sorted(
        " ".join(f"{suffix or '.'}:{','.join(uuids)}" for suffix, uuids in sorted(each))
        for _, each in candidates(view, *groups, **more)
    )
