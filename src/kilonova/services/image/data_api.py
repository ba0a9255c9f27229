"""Up- and download of image data over HTTP, streamed both ways."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any, cast

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Send

from kilonova.errors import Failed, Forbidden, Invalid, TooLarge
from kilonova.model.context import RequestContext
from kilonova.services.image.answers import unsupported_type
from kilonova.services.image.builtin import BuiltinImage
from kilonova.services.image.fields import clean_text

STORE = "local"

_OCTETS = "application/octet-stream"


class _Data(StreamingResponse):
    """A stream whose source is let go of as soon as the client is gone."""

    async def stream_response(self, send: Send) -> None:
        async with aclosing(cast(AsyncGenerator[bytes, None], self.body_iterator)):
            await super().stream_response(send)


class DataApi:
    """The handlers of ``/v2/images/{id}/file``."""

    def __init__(self, images: BuiltinImage) -> None:
        self._images = images

    async def upload(self, request: Request, context: RequestContext) -> Response:
        image_id = clean_text("the ID of an image", request.path_params["id"])
        media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type != _OCTETS:
            return unsupported_type(_OCTETS)
        store = request.headers.get("x-image-meta-store", STORE)
        if store != STORE:
            raise Invalid(f"There is no image store {store!r}; there is {STORE!r}.")
        await self._images.upload(context, image_id, _received(request), _announced(request))
        return Response(status_code=204)

    async def download(self, request: Request, context: RequestContext) -> Response:
        image_id = clean_text("the ID of an image", request.path_params["id"])
        image = await self._images.get(context, image_id)
        if image.status == "deactivated" and not context.is_admin:
            raise Forbidden("The requested image has been deactivated. Image data download is forbidden.")
        if image.status not in ("active", "deactivated") or not image.size:
            return Response(status_code=204)
        headers: dict[str, Any] = {"Content-Length": str(image.size), "Content-MD5": image.checksum or ""}
        if request.method == "HEAD":
            return Response(headers=headers, media_type=_OCTETS)
        file, size = await self._images.open(image_id)
        if size != image.size:
            file.close()
            raise Failed(f"The stored data of image {image_id} have {size} bytes instead of {image.size}.")
        return _Data(self._images.pieces(file), headers=headers, media_type=_OCTETS)


async def _received(request: Request) -> AsyncIterator[bytes]:
    """The body as it comes.  Raises Invalid when the client goes away before its end."""
    try:
        async for chunk in request.stream():
            yield chunk
    except ClientDisconnect as error:
        raise Invalid("The upload ended before all data were sent.") from error


def _announced(request: Request) -> int | None:
    """How many bytes the headers say there will be.  Raises Invalid when they disagree."""
    given = {
        _size(name, request.headers[name])
        for name in ("content-length", "x-openstack-image-size")
        if name in request.headers
    }
    if len(given) > 1:
        raise Invalid("X-OpenStack-Image-Size is not the length of the body.")
    return given.pop() if given else None


def _size(name: str, value: str) -> int:
    if not value.isascii() or not value.isdigit():
        raise Invalid(f"The header {name} must be a whole number of bytes.")
    if len(value) > 19:
        raise TooLarge(f"The header {name} says more bytes than any image has.")
    return int(value)
