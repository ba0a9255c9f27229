"""What the rest of the house asks of an image service."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from kilonova.model.context import RequestContext
from kilonova.model.image import Image


class ImageService(Protocol):
    async def show(self, context: RequestContext, image_id: str) -> Image:
        """Raises NotFound for an image that is not there or that the caller may not see."""

    def read(self, image_id: str) -> AsyncIterator[bytes]:
        """The stored bytes, for a host that was told to boot it.  Raises NotFound."""
