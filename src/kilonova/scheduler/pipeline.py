"""Asking the filters, one after the other, and telling afterwards what each has said.

Fixed filters come first, and their common answer is kept for the next request that asks them the same.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence

import numpy as np

from kilonova.scheduler.columns import Columns, Mask
from kilonova.scheduler.question import Filter, Question
from kilonova.scheduler.request import ServerRequest

KEPT = 256  # answers of the fixed filters


class Verdict:
    """``mask``: who passed; ``counts``: filter -> hosts that it removed, in the order of asking."""

    __slots__ = ("counts", "mask")

    def __init__(self, mask: Mask, counts: dict[str, int]) -> None:
        self.mask = mask
        self.counts = counts


class Pipeline:
    def __init__(self, filters: Sequence[Filter]) -> None:
        fixed = [each for each in filters if each.fixed]
        self.filters = (*fixed, *(each for each in filters if not each.fixed))
        self._fixed = tuple(fixed)
        self._rest = self.filters[len(fixed) :]
        self._kept: OrderedDict[Hashable, Verdict] = OrderedDict()
        self._of: tuple[Columns, int] | None = None  # whose answers are kept
        # Most requests are like the one before.
        self._last: tuple[ServerRequest, bool, Verdict] | None = None

    def run(self, question: Question) -> Verdict:
        start = self._run_fixed(question)
        mask, counts = start.mask, dict(start.counts)
        left = int(np.count_nonzero(mask))
        for each in self._rest:
            if left and each.concerns(question) is not None:
                mask = mask & each.passes(question, mask)
                left = _count(counts, each.name, left, mask)
        return Verdict(mask, counts)

    def _run_fixed(self, question: Question) -> Verdict:
        columns = question.columns
        request = question.request
        if self._of is None or self._of[0] is not columns or self._of[1] != columns.version:
            self._kept.clear()
            self._last = None
            self._of = (columns, columns.version)
        alone = question.placed is None
        if self._last is not None and self._last[1] == alone and request.is_like(self._last[0]):
            return self._last[2]
        found = self._look_up(question)
        self._last = request, alone, found
        return found

    def _look_up(self, question: Question) -> Verdict:
        request = question.request
        concerns = tuple(each.concerns(question) for each in self._fixed)
        key = (request.forced_host, request.forced_node, concerns)
        found = self._kept.get(key)
        if found is not None:
            self._kept.move_to_end(key)
            return found
        mask, counts = _beginning(question), dict[str, int]()
        left = int(np.count_nonzero(mask))
        for each, concern in zip(self._fixed, concerns, strict=True):
            if left and concern is not None:
                mask = mask & each.passes(question, mask)
                left = _count(counts, each.name, left, mask)
        found = Verdict(mask, counts)
        self._kept[key] = found
        if len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        return found

    def reasons(self, question: Question, verdict: Verdict, most: int | None = None) -> dict[str, str]:
        """Host -> why not, for at most so many of the hosts that the verdict refused.

        To be asked before the columns change.
        """
        if not verdict.counts:
            return {}
        columns = question.columns
        before, found = _beginning(question), dict[int, str]()
        for each in self.filters:
            if each.name not in verdict.counts or each.concerns(question) is None:
                continue
            after = before & each.passes(question, before)
            gone = np.flatnonzero(before & ~after)
            for row in (gone if most is None else gone[: max(most - len(found), 0)]).tolist():
                found[row] = each.why(question, row)
            before = after
            if most is not None and len(found) >= most:
                break
        return {columns.record(row).host: found[row] for row in sorted(found)}


def _beginning(question: Question) -> Mask:
    """All hosts; the forced one, where one is forced."""
    columns, request = question.columns, question.request
    if not request.forced:
        return columns.present.copy()
    mask = np.zeros(columns.room, np.bool_)
    row = columns.row_of.get(request.forced_host or "")
    rows = columns.row_of.values() if not request.forced_host else [] if row is None else [row]
    for each in rows:
        if request.forced_node in (None, "", columns.record(each).hypervisor_hostname):
            mask[each] = True
    return mask


def _count(counts: dict[str, int], name: str, before: int, mask: Mask) -> int:
    after = int(np.count_nonzero(mask))
    if after < before:
        counts[name] = counts.get(name, 0) + before - after
    return after
