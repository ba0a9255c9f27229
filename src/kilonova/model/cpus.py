"""Sets of CPUs as operators write them: ``0-3,^2,8``."""

from __future__ import annotations

import re
from collections.abc import Iterable

LARGEST = 8191  # more than any machine has; keeps a typing error from filling the memory

_PART = re.compile(r"(\^)?(\d{1,9})(?:-(\d{1,9}))?", re.ASCII)


def parse_cpus(text: str) -> frozenset[int]:
    """The CPUs of a list of numbers, ranges and, after ``^``, exceptions.  Raises ValueError."""
    take: set[int] = set()
    leave: set[int] = set()
    for part in text.split(","):
        found = _PART.fullmatch(part.strip())
        if found is None:
            raise ValueError(
                f"'{part.strip()[:40]}' is neither a CPU, a range like 2-5, nor an exception like ^3"
            )
        first = int(found[2])
        last = first if found[3] is None else int(found[3])
        if last < first:
            raise ValueError(f"the range '{part.strip()}' ends before it begins")
        if last > LARGEST:
            raise ValueError(f"there is no CPU {last}: numbers end at {LARGEST}")
        (leave if found[1] else take).update(range(first, last + 1))
    return frozenset(take - leave)


def format_cpus(cpus: Iterable[int]) -> str:
    """The shortest text of a set of CPUs; empty for none."""
    parts: list[list[int]] = []
    for cpu in sorted(set(cpus)):
        if parts and cpu == parts[-1][1] + 1:
            parts[-1][1] = cpu
        else:
            parts.append([cpu, cpu])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)
