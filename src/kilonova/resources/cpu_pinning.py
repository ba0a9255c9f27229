"""Choosing host CPUs for pinned ones, by the threads of cores.

The policies are Nova's: ``isolate`` has a core for each CPU and lets its other threads idle, ``require`` has
siblings beside one another and needs a host with hyper-threading, ``prefer`` (or none) would like siblings.
"""

from __future__ import annotations

import msgspec


class Pins(msgspec.Struct, frozen=True):
    """Host CPUs in the order of the guest's, and those that must idle."""

    cpus: tuple[int, ...]
    idle: tuple[int, ...] = ()


def pin(
    free: frozenset[int], siblings: tuple[tuple[int, ...], ...], number: int, policy: str | None
) -> Pins | None:
    """``number`` of the ``free`` CPUs, or None.  ``siblings``: the threads of each core; empty: one each."""
    if number > len(free):
        return None
    if policy == "isolate":
        return _isolated(free, siblings, number)
    cores = _free_cores(free, siblings)
    most = max(map(len, cores), default=1)
    for together in range(most if policy == "require" else min(most, number), 1, -1):
        usable = [core for core in cores if len(core) >= together]
        if len(usable) * together >= number:
            return Pins(_taken(usable, together, number))
    if policy == "require":
        return None
    alone = sorted(cores, key=lambda core: (len(core), core))  # broken cores first: whole ones are rarer
    return Pins(tuple(cpu for core in alone for cpu in core)[:number])


def _free_cores(free: frozenset[int], siblings: tuple[tuple[int, ...], ...]) -> list[tuple[int, ...]]:
    """The free threads of each core that has some."""
    known = {cpu for core in siblings for cpu in core}
    found = [tuple(sorted(free.intersection(core))) for core in siblings]
    found += [(cpu,) for cpu in free - known]
    return sorted(core for core in found if core)


def _taken(cores: list[tuple[int, ...]], together: int, number: int) -> tuple[int, ...]:
    """``together`` threads of each core; those first that have no more than that."""
    ordered = sorted(cores, key=lambda core: (len(core), core))
    return tuple(cpu for core in ordered for cpu in core[:together])[:number]


def _isolated(free: frozenset[int], siblings: tuple[tuple[int, ...], ...], number: int) -> Pins | None:
    """One thread of each core that is free altogether."""
    known = {cpu for core in siblings for cpu in core}
    whole = sorted([tuple(sorted(core)) for core in siblings if free.issuperset(core)])
    whole += [(cpu,) for cpu in sorted(free - known)]
    whole.sort(key=lambda core: (len(core), core))
    chosen = whole[:number]
    if len(chosen) < number:
        return None
    return Pins(tuple(core[0] for core in chosen), tuple(sorted(cpu for core in chosen for cpu in core[1:])))
