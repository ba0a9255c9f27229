"""Errors as Cinder says them."""

from __future__ import annotations

from starlette.responses import Response

from kilonova.errors import Conflict, Invalid, OverQuota, Refused
from kilonova.web.json import JsonResponse
from kilonova.web.requests import fault_body, status_of

_NAMES = {
    400: "badRequest",
    401: "unauthorized",
    403: "forbidden",
    404: "itemNotFound",
    405: "badMethod",
    409: "conflictingRequest",
    413: "overLimit",
    415: "badMediaType",
    501: "notImplemented",
    503: "serviceUnavailable",
}


class Lacking(Refused):
    """Something that Cinder has and this service does not."""

    def __init__(self, what: str) -> None:
        super().__init__(f"This volume service has no {what}.")


class NotThisVersion(Invalid):
    """A microversion that is not served."""


class LiveAttachment(Conflict):
    """A server has the volume by it: only compute takes it away."""

    def __init__(self, attachment_id: str, instance_uuid: str) -> None:
        super().__init__(
            f"Detach volume from instance {instance_uuid} using the Compute API: attachment {attachment_id} "
            "is in use there."
        )


class Taken(Conflict):
    """A name that something else has."""


def cinder_status(error: BaseException) -> int:
    """The HTTP status that Cinder gives to an error: a wrong state is a 400, a quota a 413."""
    for kind, status in (
        (LiveAttachment, 409),
        (Taken, 409),
        (Conflict, 400),
        (OverQuota, 413),
        (Lacking, 501),
        (NotThisVersion, 406),
    ):
        if isinstance(error, kind):
            return status
    return status_of(error)


def render(status: int, text: str) -> Response:
    """An error as this service says it."""
    headers = {"WWW-Authenticate": "Keystone"} if status == 401 else None
    if status == 413:
        headers = {"Retry-After": "0"}
        return JsonResponse(fault_body("overLimit", status, text, retryAfter="0"), status, headers)
    return JsonResponse(fault_body(_NAMES.get(status, "computeFault"), status, text), status, headers)
