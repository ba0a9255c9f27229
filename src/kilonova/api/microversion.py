"""Which microversion a request is for, negotiated as Nova does.

A microversion is its minor number here: 53 is 2.53.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from kilonova.errors import Invalid

MIN = 1
MAX = 104
LATEST = "latest"

MODERN = b"openstack-api-version"
LEGACY = b"x-openstack-nova-api-version"
VARY = (b"vary", b"OpenStack-API-Version, X-OpenStack-Nova-API-Version")

_FORM = re.compile(r"([1-9]\d*)\.([1-9]\d*|0)\Z")


class NotAcceptable(Invalid):
    """A microversion outside the range that is served."""


def text(version: int) -> str:
    """``2.53``"""
    return f"2.{version}"


def parse(wanted: str) -> int:
    """The microversion that a header names.  Raises Invalid (malformed) or NotAcceptable (not served)."""
    wanted = wanted.strip()
    if wanted == LATEST:
        return MAX
    found = _FORM.match(wanted)
    if found is None:
        raise Invalid(
            f"API Version String {wanted} is of invalid format. Must be of format MajorNum.MinorNum."
        )
    major, minor = found.groups()
    if major != "2" or len(minor) > 6 or not MIN <= int(minor) <= MAX:
        raise NotAcceptable(
            f"Version {wanted} is not supported by the API. "
            f"Minimum is {text(MIN)} and maximum is {text(MAX)}."
        )
    return int(minor)


def negotiate(headers: Iterable[tuple[bytes, bytes]]) -> int:
    """The microversion that a request's headers ask for; none asked for: the oldest.

    ``OpenStack-API-Version: compute 2.53`` (perhaps among other services) goes before the older
    ``X-OpenStack-Nova-API-Version: 2.53``.  Raises as ``parse``.
    """
    older: str | None = None
    wanted: str | None = None
    for name, value in headers:
        if name == MODERN:
            for part in value.decode("latin-1").split(","):
                service, _, version = part.strip().partition(" ")
                if service.lower() in ("compute", "nova"):
                    wanted = version
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
