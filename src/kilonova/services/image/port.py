"""What the rest of the house asks of an image service."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

import msgspec

from kilonova.model.context import RequestContext
from kilonova.model.image import Image


class NewSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """An image that compute makes of a server, for the project that owns the server."""

    id: str
    name: str
    owner: str
    min_disk: int = 0  # GiB
    min_ram: int = 0  # MiB
    properties: dict[str, str] = {}


class ImageService(Protocol):
    async def show(self, context: RequestContext, image_id: str) -> Image:
        """Raises NotFound for an image that is not there or that the caller may not see."""

    def read(self, image_id: str) -> AsyncIterator[bytes]:
        """The stored bytes, for a host that was told to boot it.  Raises NotFound."""

    async def add_snapshot(self, new: NewSnapshot) -> None:
        """Make an image without data, queued and private.  Converges.

        Raises Conflict for an id that is taken, TooLarge for too many properties.
        """

    async def open_upload(self, image_id: str, host: str) -> bool:
        """Let a host, and nobody else, hand in the data of a queued image, which is ``saving`` then.

        Converges; True when it has all its data already.  Raises NotFound for one that was deleted.
        """

    async def remove_snapshot(self, image_id: str) -> None:
        """Delete an image that compute has made; none is no error, and one that its owner protects stays."""
