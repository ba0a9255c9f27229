"""What is in a new volume: nothing, an image, or what another volume has."""

from __future__ import annotations

import asyncio
import errno
import hashlib
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path
from typing import TypeVar

from kilonova import programs
from kilonova.db.volumes import StoredVolume
from kilonova.errors import Failed
from kilonova.model.context import RequestContext
from kilonova.model.image import Image
from kilonova.services.volume.files import GIB, Draft, VolumeFiles, copy_piece, write_sparse
from kilonova.services.volume.records import Images, Inspect

T = TypeVar("T")

CONVERT = 3600.0  # seconds for an image
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
ITSELF = RequestContext(request_id="", user_id="volume", roles=frozenset({"admin"}))
"""Who asks for an image; whether the user may have it was asked when the volume was."""


class Filling:
    """Fills drafts.  Raises Failed for what cannot be, OSError, and what the image service raises."""

    def __init__(self, files: VolumeFiles, images: Images, inspect: Inspect, threads: Executor) -> None:
        self._files = files
        self._images = images
        self._inspect = inspect
        self._threads = threads

    async def fill(self, volume: StoredVolume, draft: Draft) -> None:
        await self._blocking(draft.open, volume.size_gb * GIB)
        if volume.source_volume is not None:
            await self._copy(self._files.path(volume.source_volume), draft.part)
        elif volume.source_image is not None:
            await self._take_image(volume, volume.source_image, draft)
        await self._blocking(draft.publish)

    async def _copy(self, source: Path, target: Path) -> None:
        offset: int | None = 0
        while offset is not None:
            offset = await self._blocking(copy_piece, source, target, offset)

    async def _take_image(self, volume: StoredVolume, image_id: str, draft: Draft) -> None:
        """Put the image at the beginning of the draft, checked to be what the image service says it is."""
        image = await self._images.show(ITSELF, image_id)
        qcow2 = image.disk_format == "qcow2"
        if not qcow2 and image.size > volume.size_gb * GIB:
            raise Failed(_too_small(volume, image.size))
        await self._download(image, draft.image if qcow2 else draft.part)
        size = await self._blocking(self._inspected, draft.image if qcow2 else draft.part, image)
        if size > volume.size_gb * GIB:
            raise Failed(_too_small(volume, size))
        if qcow2:
            await self._convert(draft)

    async def _download(self, image: Image, target: Path) -> None:
        await self._blocking(target.touch, 0o600)
        digest, size = hashlib.sha512(), 0
        async for piece in self._images.read(image.id):
            offset, size = size, size + len(piece)
            if size > image.size:
                break
            await self._blocking(_take_piece, target, offset, piece, digest.update)
        if size != image.size or (image.hash_algo == "sha512" and digest.hexdigest() != image.hash_value):
            raise Failed(f"What was read of image {image.id} is not what the image service has stored.")

    def _inspected(self, path: Path, image: Image) -> int:
        """The virtual size of what was downloaded, found safe to be opened."""
        if image.disk_format != "qcow2":
            return image.size  # its bytes are the disk, whatever they are
        with path.open("rb") as file:
            return self._inspect(file, image.disk_format)

    async def _convert(self, draft: Draft) -> None:
        """Into the draft, which is empty: blocks of zeros stay holes."""
        await programs.run(
            *("qemu-img", "convert", "-q", "-f", "qcow2", "-O", "raw", "-n", "--target-is-zero"),
            *(draft.image.name, draft.part.name),
            cwd=draft.part.parent,
            timeout=CONVERT,
        )

    async def _blocking(self, call: Callable[..., T], *args: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call, *args)


def _take_piece(path: Path, offset: int, piece: bytes, digest: Callable[[bytes], None]) -> None:
    digest(piece)
    write_sparse(path, offset, piece)


def _too_small(volume: StoredVolume, size: int) -> str:
    return f"Volume {volume.id} has {volume.size_gb} GiB, and image {volume.source_image} needs {size} bytes."
