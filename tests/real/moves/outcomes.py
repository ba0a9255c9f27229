"""What became of the points of the matrix, as a table at the end of the run."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass

from tests.real.moves.kinds import POINTS, Point


@dataclass(frozen=True)
class Outcome:
    """``status`` of the migration; seconds from when nothing was wrong any more until all was at rest."""

    status: str
    seconds: float


_SEEN: dict[Point, Outcome] = {}


def note(point: Point, outcome: Outcome) -> None:
    _SEEN[point] = outcome


def table() -> list[str]:
    """Lines: a kind of move and a fault, the statuses and how often each, the longest time to rest."""
    if not _SEEN:
        return []
    counts: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    longest: dict[tuple[str, str], float] = defaultdict(float)
    for point, outcome in _SEEN.items():
        key = (point.kind, point.fault)
        counts[key][outcome.status] += 1
        longest[key] = max(longest[key], outcome.seconds)
    lines = [f"{len(_SEEN)} of {len(POINTS)} points have come to a sound end:"]
    for (kind, fault), found in counts.items():
        said = ", ".join(f"{status} {count}" for status, count in found.most_common())
        lines.append(f"{kind:15} {fault:40} {longest[kind, fault]:5.1f} s  {said}")
    return lines
