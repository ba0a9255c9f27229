"""Errors as the Compute API says them: ``{"badRequest": {"code": 400, "message": ...}}``."""

from __future__ import annotations

from typing import Any

from kilonova.api.microversion import NotAcceptable
from kilonova.errors import Invalid, KilonovaError, NotFound, Refused
from kilonova.web.requests import status_of as web_status

NAMES = {
    400: "badRequest",
    401: "unauthorized",
    403: "forbidden",
    404: "itemNotFound",
    405: "badMethod",
    409: "conflictingRequest",
    413: "overLimit",
    415: "badMediaType",
    429: "overLimit",
    501: "notImplemented",
    503: "serviceUnavailable",
}
UNNAMED = "computeFault"
LONGEST = 2000  # characters of a message


class WrongMediaType(Invalid):
    """The body is of a content type that is not understood."""


class Gone(NotFound):
    """There was such a resource once."""


class NotSupported(Refused):
    """This cloud has no such function."""


class Unsuccessful(KilonovaError):
    """What was asked for was tried and did not come about; the words are for the user."""


STATUS: tuple[tuple[type[Exception], int], ...] = (
    (NotAcceptable, 406),
    (WrongMediaType, 415),
    (Gone, 410),
    (NotSupported, 501),
    (Unsuccessful, 500),
)

NO_SUCH_RESOURCE = "The resource could not be found."


def status_of(error: Exception) -> int:
    for kind, status in STATUS:
        if isinstance(error, kind):
            return status
    return web_status(error)


def body(status: int, message: str) -> dict[str, Any]:
    """A message repeats what was sent, and that may be long."""
    if len(message) > LONGEST:
        message = message[:LONGEST] + "..."
    fault: dict[str, Any] = {"code": status, "message": message}
    if status in (413, 429):
        fault["retryAfter"] = "0"
    return {NAMES.get(status, UNNAMED): fault}
