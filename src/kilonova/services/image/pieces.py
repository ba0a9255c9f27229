"""Images that hosts hand in piece by piece: snapshots of guests.

The row of such an image names the host that may write it; nobody else can, and it ends with the row.  Any
controller takes any piece: what has come is the file itself, not a state of a process.  Pieces may be
repeated, and the whole is accepted by its hash.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TypeVar

import msgspec
import structlog

from kilonova.clock import Clock
from kilonova.db import images
from kilonova.db.engine import Database, Tx, UniqueViolation
from kilonova.db.images import DELETED, StoredImage
from kilonova.errors import Conflict, Invalid, TooLarge
from kilonova.services.image.access import not_found
from kilonova.services.image.fields import MAX_NAME, check_count, taken
from kilonova.services.image.files import HASH_ALGO, ImageFiles, Sealed, storage_error
from kilonova.services.image.port import NewSnapshot

log = structlog.get_logger("kilonova.image")

T = TypeVar("T")

_BY = "by host "  # what `upload` of the row begins with; the uploads of users are named by hexadecimal digits


def is_handed_in(image: StoredImage) -> bool:
    """Whether its data come in pieces from a host, and so are nobody's that could die."""
    return image.upload is not None and image.upload.startswith(_BY)


class Pieces:
    """See ``BuiltinImage``, which passes everything on."""

    def __init__(
        self, db: Database, clock: Clock, files: ImageFiles, threads: Executor, size_limit: int
    ) -> None:
        self._db = db
        self._clock = clock
        self._files = files
        self._threads = threads
        self._size_limit = size_limit

    async def add(self, new: NewSnapshot) -> None:
        now = self._clock.now()
        check_count(new.properties)
        image = StoredImage(
            id=new.id,
            name=new.name[:MAX_NAME],
            owner=new.owner,
            visibility="private",
            disk_format="qcow2",
            container_format="bare",
            min_disk=new.min_disk,
            min_ram=new.min_ram,
            properties=new.properties,
            created_at=now,
            updated_at=now,
        )
        try:
            await self._db.write(lambda tx: images.add(tx, image))
        except UniqueViolation:
            found = await self._db.read(lambda tx: images.show(tx, new.id, None))
            if found is None or found.owner != new.owner:
                raise taken(new.id) from None

    async def open(self, image_id: str, host: str) -> bool:
        def write(tx: Tx) -> bool:
            image = images.lock(tx, image_id, None)
            if image is None or image.status == DELETED:
                raise not_found(image_id)
            if image.status == "active":
                return True
            if image.upload == _BY + host:
                return False
            if image.status != "queued":
                raise Conflict(f"Image {image_id} is {image.status}: its data come from somebody else.")
            now = self._clock.now()
            images.save(
                tx, msgspec.structs.replace(image, status="saving", upload=_BY + host, updated_at=now)
            )
            return False

        return await self._db.write(write)

    async def put(self, image_id: str, host: str, offset: int, data: bytes) -> int:
        await self._db.read(lambda tx: _written_by(tx, image_id, host))
        if offset < 0 or not data:
            raise Invalid("A piece of an image has an offset of 0 or more, and at least one byte.")
        if offset + len(data) > self._size_limit:
            raise TooLarge(f"Image {image_id} is larger than the {self._size_limit} bytes that are allowed.")
        return await self._blocking(lambda: self._files.put_piece(image_id, offset, data))

    async def finish(self, image_id: str, host: str, size: int, sha512: str, disk_format: str) -> None:
        image = await self._db.read(lambda tx: images.show(tx, image_id, None))
        if (
            image is not None
            and image.status == "active"
            and (image.size, image.hash_value) == (size, sha512)
        ):
            return  # done before
        await self._db.read(lambda tx: _written_by(tx, image_id, host))
        sealed = await self._blocking(lambda: self._files.seal_pieces(image_id, size, sha512, disk_format))
        await self._db.write(lambda tx: self._finish(tx, image_id, host, disk_format, sealed))

    def _finish(self, tx: Tx, image_id: str, host: str, disk_format: str, sealed: Sealed) -> None:
        images.lock(tx, image_id, None)
        active = msgspec.structs.replace(
            _written_by(tx, image_id, host),
            status="active",
            upload=None,
            disk_format=disk_format,
            size=sealed.size,
            virtual_size=sealed.inspection.virtual_size,
            checksum=sealed.md5,
            hash_algo=HASH_ALGO,
            hash_value=sealed.sha512,
            updated_at=self._clock.now(),
        )
        images.save(tx, active)

    async def remove(self, image_id: str) -> None:
        def mark(tx: Tx) -> StoredImage | None:
            image = images.lock(tx, image_id, None)
            if image is None:
                return None
            if image.protected:
                log.warning("a protected image of ours is left to its owner", image=image_id)
                return None
            images.save(tx, msgspec.structs.replace(image, status=DELETED))
            return image

        image = await self._db.write(mark)
        if image is None or (image.upload is not None and not is_handed_in(image)):
            return  # an upload of a user finds the mark when it ends, and removes all
        await self._blocking(lambda: self._files.remove(image_id))
        await self._db.write(lambda tx: images.remove(tx, image_id))

    async def recover(self) -> None:
        """Remove pieces of images that are there no more: one that was on its way when its row went."""
        for image_id in await self._blocking(self._files.images_in_pieces):
            await self._recover(image_id)

    async def _recover(self, image_id: str) -> None:
        image = await self._db.read(lambda tx: images.show(tx, image_id, None))
        if image is None or not is_handed_in(image):
            await self._blocking(lambda: self._files.remove_pieces(image_id))
            log.info("pieces of an image that is gone were removed", image=image_id)

    async def _blocking(self, call: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, call)
        except OSError as error:
            raise storage_error(error) from error


def _written_by(tx: Tx, image_id: str, host: str) -> StoredImage:
    """The image, if it is being handed in by this host.  Raises NotFound."""
    image = images.show(tx, image_id, None)
    if image is None or image.status != "saving" or image.upload != _BY + host:
        raise not_found(image_id)
    return image
