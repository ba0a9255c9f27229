"""Requests that the hosts' own providers cannot answer alone: placement's engine finds what could be booked.

That is so for groups that must come from different providers, and for whatever some provider below a host, or
one that is shared, has.
"""

from __future__ import annotations

from kilonova.scheduler.wanted import Group, Wanted
from kilonova.services.placement.candidates import wanted as placement


def needs_engine(wanted: Wanted, elsewhere: frozenset[str]) -> bool:
    """``elsewhere``: what providers have that are no hosts."""
    if not wanted.fits_one_provider():
        return True
    if not elsewhere:
        return False
    groups = (wanted.root, *wanted.groups.values())
    return any(not elsewhere.isdisjoint({*group.resources, *group.required}) for group in groups)


def asked(wanted: Wanted, most: int) -> placement.Wanted:
    """The request in placement's words, for at most so many candidates."""
    groups = [_group("", wanted.root)]
    groups += [_group(f"_{suffix}", group) for suffix, group in wanted.groups.items()]
    return placement.Wanted(
        groups=tuple(group for group in groups if group.resources),
        isolate=wanted.isolate,
        limit=most,
        mapped=False,
    )


def _group(suffix: str, group: Group) -> placement.Group:
    return placement.Group(
        suffix=suffix,
        resources=tuple(sorted(group.resources.items())),
        required=group.required,
        forbidden=group.forbidden,
    )
