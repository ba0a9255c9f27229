"""Which microversion a request is for, negotiated as Nova does.

A microversion is its minor number here: 53 is 2.53.
"""

from __future__ import annotations

from collections.abc import Iterable

from kilonova.errors import Invalid
from kilonova.web import microversion

MIN = 1
MAX = 104

MODERN = b"openstack-api-version"
LEGACY = b"x-openstack-nova-api-version"
VARY = (b"vary", b"OpenStack-API-Version, X-OpenStack-Nova-API-Version")


class NotAcceptable(Invalid):
    """A microversion outside the range that is served."""


def text(version: int) -> str:
    """``2.53``"""
    return f"2.{version}"


def parse(wanted: str) -> int:
    """The microversion that a header names.  Raises Invalid (malformed) or NotAcceptable (not served)."""
    return microversion.parse(wanted.strip(), 2, MIN, MAX, NotAcceptable)


def negotiate(headers: Iterable[tuple[bytes, bytes]]) -> int:
    """The microversion that a request's headers ask for; none asked for: the oldest.

    ``OpenStack-API-Version: compute 2.53`` (perhaps among other services) goes before the older
    ``X-OpenStack-Nova-API-Version: 2.53``.  Raises as ``parse``.
    """
    older: str | None = None
    wanted: str | None = None
    for name, value in headers:
        if name == MODERN:
            named = microversion.named(value.decode("latin-1"), ("compute", "nova"))
            wanted = wanted if named is None else named
        elif name == LEGACY:
            older = value.decode("latin-1")
    if wanted is None:
        wanted = older
    return MIN if wanted is None else parse(wanted)


def _answer_headers(version: int) -> list[tuple[bytes, bytes]]:
    number = text(version).encode()
    return [(MODERN, b"compute " + number), (LEGACY, number), VARY]


ANSWER_HEADERS = {version: _answer_headers(version) for version in range(MIN, MAX + 1)}
"""The headers that every answer repeats, by microversion."""
