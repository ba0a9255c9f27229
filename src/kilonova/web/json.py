"""JSON in and out of the HTTP services."""

from __future__ import annotations

import json
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from kilonova.errors import Invalid, TooLarge
from kilonova.web.storable import MAX_DEPTH, check, parse_float, parse_int

MAX_BODY = 114_688  # bytes; Nova's [oslo_middleware]max_request_body_size

encoder = msgspec.json.Encoder()


class JsonResponse(Response):
    """A JSON body, encoded by msgspec."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return content if isinstance(content, bytes) else encoder.encode(content)


async def read_body(request: Request, limit: int = MAX_BODY) -> bytes:
    """The whole body.  Raises TooLarge above ``limit`` bytes, before it is all read."""
    declared = request.headers.get("content-length", "")
    if declared.isascii() and declared.isdigit() and (len(declared) > 18 or int(declared) > limit):
        raise TooLarge(f"The request body is too large: {declared[:19]} bytes, at most {limit} are allowed.")
    pieces, size = [], 0
    async for piece in request.stream():
        size += len(piece)
        if size > limit:
            raise TooLarge(f"The request body is too large: at most {limit} bytes are allowed.")
        pieces.append(piece)
    return b"".join(pieces)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise Invalid(f"Malformed request body: the key {name!r:.99} stands twice in one object.")
            seen.add(name)
    return result


def _no_constants(name: str) -> Any:
    raise Invalid(f"Malformed request body: {name} is not JSON.")


_decoder = json.JSONDecoder(
    object_pairs_hook=_no_duplicates,
    parse_constant=_no_constants,
    parse_int=parse_int,
    parse_float=parse_float,
)


def parse_object(body: bytes) -> dict[str, Any]:
    """The JSON object that a body is.

    Raises Invalid for anything else, for a key that stands twice, for numbers of more than 64 bits, for
    texts that no database can store, and for what is nested deeper than ``MAX_DEPTH``.
    """
    try:
        value = _decoder.decode(body.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise Invalid("Malformed request body: it is not JSON.") from error
    if not isinstance(value, dict):
        raise Invalid("Malformed request body: a JSON object is expected.")
    # The characters in question can only come as escapes.
    if b"\\u" in body or body.count(b"{") + body.count(b"[") > MAX_DEPTH:
        check(value)
    return value


async def read_object(request: Request, limit: int = MAX_BODY) -> dict[str, Any]:
    """The JSON object in the body of a request."""
    return parse_object(await read_body(request, limit))
