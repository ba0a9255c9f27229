"""Which microversion a request is for, negotiated as Cinder does.

A microversion is its minor number here: 27 is 3.27.
"""

from __future__ import annotations

from starlette.requests import Request

from kilonova.services.volume.answers import NotThisVersion
from kilonova.web import microversion

MIN, MAX = 0, 70
HEADER = "OpenStack-API-Version"


def negotiate(request: Request) -> int:
    """The microversion that a request asks for; none asked for: the oldest.

    Raises Invalid for one that is malformed, NotThisVersion for one that is not served.
    """
    named = [microversion.named(value, ("volume",)) for value in request.headers.getlist(HEADER)]
    wanted = [version for version in named if version is not None]
    return microversion.parse(wanted[-1], 3, MIN, MAX, NotThisVersion) if wanted else MIN
