"""An upload from its beginning to an active image, or back to a queued one with nothing left of it."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from concurrent.futures import Executor

import msgspec
import structlog

from kilonova.clock import SECOND, Clock
from kilonova.db import images
from kilonova.db.engine import Database, Tx
from kilonova.db.images import DELETED, StoredImage
from kilonova.errors import Conflict, Invalid, NotFound
from kilonova.model.context import RequestContext
from kilonova.services.image import access
from kilonova.services.image.files import HASH_ALGO, ImageFiles, PartFile, storage_error
from kilonova.services.image.inspect import Inspection
from kilonova.services.image.intake import Intake
from kilonova.services.image.pieces import is_handed_in

log = structlog.get_logger("kilonova.image")

BEGINNING = 60 * SECOND  # between an upload's mark in the database and its file, at the very most


class Limits(msgspec.Struct, frozen=True):
    size: int  # bytes of the largest image
    stall: float  # seconds that an upload may stand still


class Uploads:
    """The uploads of one process.

    The row of an image that is ``saving`` names its upload; only the one that it names may finish it.
    """

    def __init__(
        self, db: Database, clock: Clock, files: ImageFiles, threads: Executor, limits: Limits
    ) -> None:
        self._db = db
        self._clock = clock
        self._files = files
        self._threads = threads
        self._limits = limits

    async def take(
        self, context: RequestContext, image_id: str, chunks: AsyncIterator[bytes], declared: int | None
    ) -> StoredImage:
        """See ``BuiltinImage.upload``."""
        loop = asyncio.get_running_loop()
        upload = uuid.uuid4().hex
        image = await self._db.write(lambda tx: self._begin(tx, context, image_id, upload))
        part = self._files.part(image_id, upload)
        try:
            intake = Intake(part, self._threads, self._limits.size, self._limits.stall)
            await intake.take(chunks, declared)
            found = await loop.run_in_executor(self._threads, part.seal, str(image.disk_format))
            await loop.run_in_executor(self._threads, self._files.publish, part, image_id)
            return await self._db.write(lambda tx: self._finish(tx, image_id, upload, part, found))
        except BaseException as error:
            await asyncio.shield(self._abandon(image_id, part, upload))
            if isinstance(error, OSError):
                raise storage_error(error) from error
            raise

    async def recover(self) -> None:
        """Undo the uploads, and end the deletions, of a process that was killed."""
        loop = asyncio.get_running_loop()
        parts = await loop.run_in_executor(self._threads, self._files.remove_parts)
        left = [each for each in await self._db.read(images.left_behind) if await self._is_dead(each)]
        for image in left:
            await self._clear(image.id, image.upload)
        if parts or left:
            log.warning("interrupted uploads and deletions were undone", files=parts, images=len(left))

    async def _is_dead(self, image: StoredImage) -> bool:
        """Whether nobody is at it: another controller's upload holds its file, once it has begun; what a host
        hands in is its operation's, until that is over."""
        if is_handed_in(image) and image.status != DELETED:
            return False
        if image.upload is None or not self._files.shared:
            return True
        if self._clock.now() - (image.updated_at or 0) < BEGINNING:
            return False
        check = self._files.is_alive
        loop = asyncio.get_running_loop()
        return not await loop.run_in_executor(self._threads, check, image.id, image.upload)

    def _begin(self, tx: Tx, context: RequestContext, image_id: str, upload: str) -> StoredImage:
        image = access.check_changeable(images.lock(tx, image_id, context.project_id), image_id, context)
        if image.status != "queued":
            raise Conflict(
                f"Image status transition from {image.status} to saving is not allowed:"
                " data are given once, to a queued image."
            )
        if image.disk_format is None or image.container_format is None:
            raise Invalid("Properties disk_format and container_format must be set prior to saving data.")
        saving = msgspec.structs.replace(image, status="saving", upload=upload, updated_at=self._clock.now())
        images.save(tx, saving)
        return saving

    def _finish(self, tx: Tx, image_id: str, upload: str, part: PartFile, found: Inspection) -> StoredImage:
        image = images.lock(tx, image_id, None)
        if image is None or image.upload != upload or image.status != "saving":
            raise NotFound(f"Image {image_id} was deleted while its data were uploaded.")
        active = msgspec.structs.replace(
            image,
            status="active",
            upload=None,
            size=part.size,
            virtual_size=found.virtual_size,
            checksum=part.checksum,
            hash_algo=HASH_ALGO,
            hash_value=part.hash_value,
            updated_at=self._clock.now(),
        )
        images.save(tx, active)
        return active

    async def _abandon(self, image_id: str, part: PartFile, upload: str) -> None:
        """Remove the data of an upload that failed, and set its image right."""
        await asyncio.get_running_loop().run_in_executor(self._threads, part.discard)
        # A commit that seemed to fail, or was not waited for, may still come or have come: from here on
        # the row does not name this upload any more, so it is either done already or cannot be.
        given_up = "given up " + upload
        if await self._db.write(lambda tx: _rename(tx, image_id, upload, given_up)):
            await self._clear(image_id, given_up)

    async def _clear(self, image_id: str, upload: str | None) -> None:
        """Remove the data; then make the image queued, or end its deletion."""

        def settle(tx: Tx) -> None:
            image = images.lock(tx, image_id, None)
            if image is None or image.upload != upload:
                return
            if image.status == DELETED:
                images.remove(tx, image_id)
            elif image.status == "saving":
                now = self._clock.now()
                images.save(tx, msgspec.structs.replace(image, status="queued", upload=None, updated_at=now))

        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._threads, self._files.remove, image_id)
        await self._db.write(settle)


def _rename(tx: Tx, image_id: str, upload: str, new: str) -> bool:
    image = images.lock(tx, image_id, None)
    if image is None or image.upload != upload:
        return False
    images.save(tx, msgspec.structs.replace(image, upload=new))
    return True
