"""A request before the columns, and what a filter is."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass

from kilonova.db.aggregates import Aggregate
from kilonova.scheduler.columns import Columns, Mask
from kilonova.scheduler.holdings import Holdings
from kilonova.scheduler.options import Options
from kilonova.scheduler.request import Allocations, ServerRequest


@dataclass(slots=True)
class Question:
    """``now``: microseconds; ``placed``: for a request that one provider cannot answer alone, what placement
    could book on each host (by compute id), the best first.  ``holdings``: for a request that wants what is
    given away one by one."""

    request: ServerRequest
    columns: Columns
    options: Options
    now: int
    placed: dict[str, list[Allocations]] | None = None
    holdings: Holdings | None = None

    def aggregate_values(self, key: str) -> list[tuple[Aggregate, tuple[str, ...]]]:
        """The aggregates that have this key in their metadata, each with the words of its value."""
        return [
            (aggregate, tuple(word.strip() for word in aggregate.metadata[key].split(",")))
            for aggregate in self.columns.aggregates
            if key in aggregate.metadata
        ]

    def aggregates_of(self, row: int) -> list[Aggregate]:
        name = self.columns.record(row).host
        return [aggregate for aggregate in self.columns.aggregates if name in aggregate.hosts]


@dataclass(frozen=True, slots=True)
class Filter:
    """One reason why a host may not do.

    ``concerns`` gives what of the question the filter looks at, None when the request does not concern it.
    ``passes`` gives the hosts that it lets through; it may leave those that are not in the given mask as they
    come.  ``why`` says of a host that did not pass what is wrong with it.  A ``fixed`` filter decides by
    ``concerns`` and what is fixed of hosts and aggregates alone, so its answer can be kept; of the request it
    looks at nothing that `ServerRequest.is_like` does not compare.
    """

    name: str
    concerns: Callable[[Question], Hashable | None]
    passes: Callable[[Question, Mask], Mask]
    why: Callable[[Question, int], str]
    fixed: bool = False


def always(question: Question) -> Hashable:
    """For ``concerns`` of filters that every request concerns."""
    return True
