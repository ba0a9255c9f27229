"""Weights of hosts: each weigher's figures brought to 0..1 over the hosts that will do, times its multiplier,
and added up."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from kilonova.errors import Failed
from kilonova.scheduler.columns import Columns, Mask, Real, Whole
from kilonova.scheduler.nova_conf import ALL_WEIGHERS
from kilonova.scheduler.options import Options
from kilonova.scheduler.question import Question
from kilonova.scheduler.request import Ranked, Weight
from kilonova.scheduler.weighers import WEIGHERS, Weigher, overrides

Rows = npt.NDArray[np.intp]


def weighers_of(options: Options) -> tuple[Weigher, ...]:
    """Those of ``weight_classes``.  Raises Failed for a name that is not known."""
    names = {each.name: each for each in WEIGHERS}
    chosen: list[Weigher] = []
    for name in options.weight_classes:
        short = name.rpartition(".")[2]
        if name == ALL_WEIGHERS:
            chosen += WEIGHERS
        elif short in names:
            chosen.append(names[short])
        else:
            raise Failed(
                f"[filter_scheduler]weight_classes: there is no '{name}' among {', '.join(sorted(names))}."
            )
    return tuple(dict.fromkeys(chosen))


class Weighing:
    """The weights of the hosts in a mask."""

    def __init__(self, weighers: tuple[Weigher, ...]) -> None:
        self._weighers = weighers
        self._overrides: dict[str, tuple[Mask, Real] | None] = {}
        self._of: tuple[Columns, int] | None = None

    def weigh(self, question: Question, rows: Rows) -> Real:
        """The sum for each of the rows."""
        total = np.zeros(len(rows), np.float64)
        if len(rows) == 1:
            return total  # the only one is the best
        for _, _, share in self._parts(question, rows):
            total += share
        return total

    def _parts(self, question: Question, rows: Rows) -> Iterator[tuple[Weigher, Real, Real]]:
        """Each weigher that tells hosts apart, its raw figures, and what it adds."""
        if not len(rows):
            return
        for weigher in self._weighers:
            multiplier = self._multiplier(question, weigher.multiplier, rows)
            if multiplier is None:
                continue
            column = weigher.raw(question)
            if column is None:
                continue
            raw = column[rows]
            low, high = raw.min(), raw.max()
            if low == high:
                yield weigher, raw, np.zeros(len(rows))
            else:
                yield weigher, raw, (raw - low) * (multiplier / (high - low))

    def _multiplier(self, question: Question, key: str, rows: Rows) -> Real | float | None:
        """For all rows, or for each; None: it counts nowhere."""
        columns = question.columns
        if self._of is None or self._of[0] is not columns or self._of[1] != columns.version:
            self._overrides = {}
            self._of = (columns, columns.version)
        if key not in self._overrides:
            mask, values = overrides(columns, key)
            self._overrides[key] = (mask, values) if mask.any() else None
        found, general = self._overrides[key], question.options.multipliers.get(key, 0.0)
        if found is None:
            return general or None
        return np.where(found[0], found[1], general)[rows]

    def ranked(self, question: Question, rows: Rows) -> tuple[Ranked, ...]:
        """The hosts, the best first, with what each weigher has said."""
        if not len(rows):
            return ()
        total, weights = np.zeros(len(rows)), [dict[str, Weight]() for _ in rows]
        for weigher, raw, share in self._parts(question, rows):
            total += share
            for place, one in enumerate(weights):
                one[weigher.name] = Weight(float(raw[place]), float(share[place]))
        return tuple(
            Ranked(
                host=question.columns.record(int(rows[place])).host,
                weight=float(total[place]),
                weights=weights[place],
            )
            for place in np.argsort(-total, kind="stable")
        )


def in_order(total: Real, rows: Rows, options: Options, chance: random.Random) -> Iterator[int]:
    """Rows in the order in which to try them: the best, or by chance one of the ``host_subset_size`` best (or
    one of those that are equally good), and then the others by their weight.

    The order beyond the first is worked out only when somebody asks for it.
    """
    if not len(rows):
        return
    first = _first(total, options, chance)
    yield int(rows[first])
    order: Whole = np.argsort(-total, kind="stable")
    for place in order.tolist():
        if place != first:
            yield int(rows[place])


def _first(total: Real, options: Options, chance: random.Random) -> int:
    if options.shuffle_best_same_weighed_hosts and options.host_subset_size == 1:
        return int(chance.choice(np.flatnonzero(total == total.max()).tolist()))
    size = min(options.host_subset_size, len(total))
    if size == 1:
        return int(total.argmax())
    best = np.argsort(-total, kind="stable")[:size]
    return int(chance.choice(best.tolist()))
