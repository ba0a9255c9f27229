"""What the microversion headers of OpenStack's APIs say; each API knows which it serves."""

from __future__ import annotations

import re
from collections.abc import Collection

from kilonova.errors import Invalid

LATEST = "latest"

_FORM = re.compile(r"([1-9]\d*)\.([1-9]\d*|0)\Z")


def named(header: str, services: Collection[str]) -> str | None:
    """The version of one of the services in ``OpenStack-API-Version: compute 2.53``, perhaps among others."""
    found = None
    for part in header.split(","):
        service, _, version = part.strip().partition(" ")
        if service.lower() in services:
            found = version.strip()
    return found


def parse(wanted: str, major: int, least: int, most: int, refused: type[Exception]) -> int:
    """The minor number of a version, ``latest`` being the newest.

    Raises Invalid for one that is malformed, ``refused`` for one that is not served.
    """
    if wanted == LATEST:
        return most
    found = _FORM.match(wanted)
    if found is None:
        raise Invalid(
            f"API Version String {wanted:.60} is of invalid format. Must be of format MajorNum.MinorNum."
        )
    if found[1] != str(major) or len(found[2]) > 6 or not least <= int(found[2]) <= most:
        raise refused(
            f"Version {wanted:.60} is not supported by the API. "
            f"Minimum is {major}.{least} and maximum is {major}.{most}."
        )
    return int(found[2])
