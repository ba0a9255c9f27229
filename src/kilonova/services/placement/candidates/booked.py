"""Candidates as what would be booked, for the scheduler."""

from __future__ import annotations

import msgspec

from kilonova.services.placement.candidates.generate import amounts, generate
from kilonova.services.placement.candidates.wanted import Wanted
from kilonova.services.placement.options import Options
from kilonova.services.placement.port import Allocations
from kilonova.services.placement.view import View

ALTERNATIVES = 8  # of one tree that are given


def by_root(view: View, wanted: Wanted, options: Options) -> dict[str, list[Allocations]]:
    """Root provider -> what could be booked in its tree (and beside it, where others share); tree by tree in
    turn, until there are ``wanted.limit`` in all."""
    found = generate(view, wanted, msgspec.structs.replace(options, strategy="breadth-first"))
    result: dict[str, list[Allocations]] = {}
    for each in found.candidates:
        taken: Allocations = {}
        for (uuid, name), amount in amounts(found.demands, each.solution).items():
            taken.setdefault(uuid, {})[name] = amount
        for root in {view.nodes[uuid].root for uuid in taken}:
            several = result.setdefault(root, [])
            if len(several) < ALTERNATIVES and taken not in several:
                several.append(taken)
    return result
