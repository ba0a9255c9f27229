"""Snapshots of guests on their way from this host into the image service, piece by piece."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Protocol

from kilonova.errors import TryAgain
from kilonova.rpc.desk import IMAGE_PIECE
from kilonova.rpc.moves import Progress
from kilonova.virt.driver import Driver, ImageSource, SnapshotData

UPLOADING = "uploading"  # the phase of their progress


class ImageStore(ImageSource, Protocol):
    """Where a host gets images from, and hands snapshots in; the verbs are those of `rpc.desk`."""

    async def put_image(self, image_id: str, offset: int, data: bytes) -> int: ...
    async def finish_image(self, image_id: str, size: int, sha512: str, disk_format: str) -> None: ...


class Snapshots:
    """Of all guests of this host."""

    def __init__(self, driver: Driver, images: ImageStore) -> None:
        self._driver = driver
        self._images = images
        self._uploading: dict[str, tuple[int, int]] = {}  # guest -> bytes that have gone, of how many

    def progress(self, uuid: str) -> Progress | None:
        """None if nothing of this guest is being handed in."""
        found = self._uploading.get(uuid)
        if found is None:
            return None
        gone, size = found
        return Progress(
            uuid=uuid, phase=UPLOADING, disk_total=size, disk_processed=gone, disk_remaining=size - gone
        )

    async def upload(self, uuid: str, image_id: str) -> None:
        """Hand in the guest's snapshot for the image.  Raises HostFault, TryAgain, what the store raises."""
        data = await self._driver.snapshot_data(uuid, image_id)
        self._uploading[uuid] = (0, data.size)
        try:
            sha512 = await self._send(uuid, image_id, data)
            await self._images.finish_image(image_id, data.size, sha512, data.disk_format)
        finally:
            del self._uploading[uuid]
        await self._driver.drop_snapshot(uuid, image_id)

    async def _send(self, uuid: str, image_id: str, data: SnapshotData) -> str:
        """Send what has not come yet; the hash of all of it."""
        digest = hashlib.sha512()
        offset = there = 0
        while offset < data.size:
            piece = await data.read(offset, IMAGE_PIECE)
            if not piece:
                raise TryAgain(f"The snapshot of guest {uuid} has become shorter.")
            await asyncio.to_thread(digest.update, piece)
            end = offset + len(piece)
            if end > there:
                there = await self._images.put_image(image_id, offset, piece)
                if there < end:  # what had come is gone: its keeper was begun anew
                    raise TryAgain(f"Only {there} bytes of image {image_id} are there still.")
            offset = end
            self._uploading[uuid] = (offset, data.size)
        return digest.hexdigest()
