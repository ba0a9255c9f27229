"""Images and guests for tests of drivers."""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from collections.abc import AsyncIterator
from typing import Any

import msgspec

from kilonova.errors import NotFound
from kilonova.model.flavor import Flavor
from kilonova.model.instance import ImageMeta
from kilonova.rpc.messages import GuestSpec


class Images:
    """An image service in memory: implements virt.driver.ImageSource.

    ``served`` replaces the data of an image by what goes out; ``breaks`` raises an error after so many
    pieces; ``gate`` makes a read wait before its last piece.
    """

    def __init__(self) -> None:
        self.data: dict[str, bytes] = {}
        self.served: dict[str, bytes] = {}
        self.breaks: dict[str, tuple[int, Exception]] = {}
        self.gate: asyncio.Event | None = None
        self.reads: list[str] = []
        self.ended = 0

    def add(self, data: bytes, **more: Any) -> ImageMeta:
        image_id = str(uuid.uuid4())
        self.data[image_id] = data
        meta = ImageMeta(
            id=image_id,
            disk_format="raw",
            size=len(data),
            hash_algo="sha512",
            hash_value=hashlib.sha512(data).hexdigest(),
        )
        return msgspec.structs.replace(meta, **more)

    async def read(self, image_id: str) -> AsyncIterator[bytes]:
        self.reads.append(image_id)
        if image_id not in self.data:
            raise NotFound(f"Image {image_id} could not be found.")
        data = self.served.get(image_id, self.data[image_id])
        size = max(1, -(-len(data) // 4))
        try:
            for number, at in enumerate(range(0, len(data), size)):
                if number == 3 and self.gate is not None:
                    await self.gate.wait()
                limit, error = self.breaks.get(image_id, (99, None))
                if number >= limit and error is not None:
                    raise error
                yield data[at : at + size]
        finally:
            self.ended += 1


def flavor(**more: Any) -> Flavor:
    fields: dict[str, Any] = {
        "id": 1,
        "flavorid": "1",
        "name": "m1.tiny",
        "vcpus": 1,
        "memory_mb": 32,
        "root_gb": 0,
    }
    return Flavor(**{**fields, **more})


def guest(image: ImageMeta | None, **more: Any) -> GuestSpec:
    """A guest with a flavor of its own: ``flavor`` may be a Flavor or what is to be special about it."""
    wanted = more.pop("flavor", {})
    made = wanted if isinstance(wanted, Flavor) else flavor(**wanted)
    fields: dict[str, Any] = {
        "uuid": str(uuid.uuid4()),
        "name": "one",
        "hostname": "one",
        "project_id": "p" * 32,
        "flavor": made,
        "image": image,
    }
    return GuestSpec(**{**fields, **more})
