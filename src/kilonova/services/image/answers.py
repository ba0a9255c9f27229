"""Errors as the image service says them."""

from __future__ import annotations

from starlette.responses import Response

from kilonova.web.json import JsonResponse

_TITLES = {
    300: "Multiple Choices",
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    409: "Conflict",
    413: "Request Entity Too Large",
    415: "Unsupported Media Type",
    500: "Internal Server Error",
    503: "Service Unavailable",
}


def render(status: int, text: str) -> Response:
    """An error as this service says it."""
    title = _TITLES.get(status, "Error")
    headers = {"WWW-Authenticate": "Keystone"} if status == 401 else None
    return JsonResponse({"message": text, "code": status, "title": title}, status, headers)


def unsupported_type(*supported: str) -> Response:
    answer = render(415, f"The body must be of type {' or '.join(supported)}.")
    answer.headers["Accept"] = ", ".join(supported)
    return answer
