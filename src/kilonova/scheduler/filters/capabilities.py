"""ComputeCapabilitiesFilter: ``capabilities:...`` of a flavor, against what a host says of itself."""

from __future__ import annotations

from collections.abc import Hashable, Iterator

import numpy as np

from kilonova.scheduler.columns import Mask
from kilonova.scheduler.comparison import matches
from kilonova.scheduler.facts import CHANGING, fact_of
from kilonova.scheduler.question import Filter, Question

PREFIX = "capabilities"


def _asked(question: Question) -> Iterator[tuple[list[str], str]]:
    """Extra specs with the filter's own scope, or, as in Nova, with none: the path of the fact, and what is
    wanted of it."""
    for key, wanted in question.request.extra_specs.items():
        path = key.split(":")
        if path[0] == PREFIX and len(path) > 1:
            yield path[1:], wanted
        elif len(path) == 1 and key not in _OTHERS:
            yield path, wanted


_OTHERS = frozenset({"group_policy"})  # without a scope, and placement's


def _concerned(changing: bool, question: Question) -> Hashable | None:
    found = tuple((tuple(path), wanted) for path, wanted in _asked(question))
    if not found or any(path[0] in CHANGING for path, _ in found) != changing:
        return None
    return found


def _refusal(question: Question, row: int) -> str:
    for path, wanted in _asked(question):
        name, have = ":".join(path), fact_of(question.columns, row, path)
        if have is None:
            return f"it does not say what its {name} is, and the flavor asks for '{wanted}'"
        if not matches(have, wanted):
            return f"its {name} is '{have}', the flavor asks for '{wanted}'"
    return ""


def _passes(question: Question, among: Mask) -> Mask:
    mask = np.zeros(question.columns.room, np.bool_)
    for row in np.flatnonzero(among & question.columns.present).tolist():
        mask[row] = not _refusal(question, row)
    return mask


def _capabilities(changing: bool) -> Filter:
    return Filter(
        "ComputeCapabilitiesFilter",
        lambda question: _concerned(changing, question),
        _passes,
        _refusal,
        fixed=not changing,
    )


CAPABILITIES = (_capabilities(False), _capabilities(True))
"""One of the two looks at a request: the first when the facts are fixed, so that its answer can be kept."""
