"""The built-in image service: records in the database, data in a directory.

An image's life: ``queued`` -> ``saving`` (named by its upload) -> ``active`` <-> ``deactivated``.  A deletion
marks the row ``deleted``, removes the data and then the row, so that a killed process leaves nothing that
``recover`` does not find.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, TypeVar

import msgspec

from kilonova.clock import Clock
from kilonova.db import image_listing, images
from kilonova.db.engine import Database, Tx, UniqueViolation
from kilonova.db.images import DELETED, StoredImage
from kilonova.errors import Conflict, Forbidden, NotFound
from kilonova.model.context import RequestContext
from kilonova.model.image import Image
from kilonova.services.image import access, patch
from kilonova.services.image.fields import NewImage, clean_tags, taken
from kilonova.services.image.files import PIECE, ImageFiles, storage_error
from kilonova.services.image.members import ImageMembers
from kilonova.services.image.pieces import Pieces, is_handed_in
from kilonova.services.image.port import NewSnapshot
from kilonova.services.image.upload import Limits, Uploads

T = TypeVar("T")

THREADS = 4
SIZE_LIMIT = 1 << 40
STALL = 300.0


class BuiltinImage:
    """An ImageService of one process.

    ``size_limit`` is the largest image in bytes; an upload that stands still for ``stall`` seconds is
    given up.  Several controllers have one ``shared`` directory, on a file system with locks.  Call
    ``recover`` before anything else and ``close`` at the end.
    """

    def __init__(
        self,
        db: Database,
        clock: Clock,
        directory: Path,
        *,
        size_limit: int = SIZE_LIMIT,
        stall: float = STALL,
        shared: bool = False,
    ) -> None:
        self._db = db
        self._clock = clock
        self._files = ImageFiles(directory, shared=shared)
        self._threads = ThreadPoolExecutor(THREADS, "image")
        self._uploads = Uploads(db, clock, self._files, self._threads, Limits(size_limit, stall))
        self._pieces = Pieces(db, clock, self._files, self._threads, size_limit)
        self.members = ImageMembers(db, clock)

    async def recover(self) -> None:
        """Take the directory and undo what a killed process left.  May be repeated.

        Raises Failed when another process uses the directory.
        """
        await self._blocking(self._files.take)
        await self._uploads.recover()
        await self.sweep()

    async def sweep(self) -> None:
        """Remove pieces that came too late, of images that are there no more.  May be done at any time."""
        await self._pieces.recover()

    async def close(self) -> None:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, self._threads.shutdown)
        self._files.release()

    # What compute asks

    async def show(self, context: RequestContext, image_id: str) -> Image:
        """Raises NotFound for an image that is not there or that the caller may not see."""
        return as_model(await self.get(context, image_id))

    async def read(self, image_id: str) -> AsyncIterator[bytes]:
        """The stored bytes in pieces of 1 MiB.  Raises NotFound when there are none."""
        file, _ = await self.open(image_id)
        async for piece in self.pieces(file):
            yield piece

    async def add_snapshot(self, new: NewSnapshot) -> None:
        """See ImageService."""
        await self._pieces.add(new)

    async def open_upload(self, image_id: str, host: str) -> bool:
        """See ImageService."""
        return await self._pieces.open(image_id, host)

    async def remove_snapshot(self, image_id: str) -> None:
        """See ImageService."""
        await self._pieces.remove(image_id)

    # What the desk of a host asks

    async def put_piece(self, image_id: str, host: str, offset: int, data: bytes) -> int:
        """Keep a piece of what ``host`` hands in, if all before it has come; how many bytes have come then.

        Raises NotFound for an image that this host may not write (any more), TooLarge, Invalid, TryAgain.
        """
        return await self._pieces.put(image_id, host, offset, data)

    async def finish_upload(self, image_id: str, host: str, size: int, sha512: str, disk_format: str) -> None:
        """All has come: check it and make the image active.  May be repeated.

        Raises TryAgain when it is not what was sent, which is forgotten then; NotFound, Invalid.
        """
        await self._pieces.finish(image_id, host, size, sha512, disk_format)

    # What the API asks

    async def get(self, context: RequestContext, image_id: str) -> StoredImage:
        """Raises NotFound."""
        found = await self._db.read(lambda tx: images.show(tx, image_id, context.project_id))
        return access.check_visible(found, image_id, context)

    async def list(self, query: image_listing.ImageQuery) -> list[StoredImage]:
        return await self._db.read(lambda tx: image_listing.page(tx, query))

    async def create(self, context: RequestContext, new: NewImage) -> StoredImage:
        """A queued image without data.  Raises Conflict when the id is taken; Forbidden."""
        access.check_writer(context)
        access.check_public(new.visibility, context)
        now = self._clock.now()
        values = msgspec.structs.asdict(new)
        values["id"] = new.id or str(uuid.uuid4())
        image = StoredImage(**values, created_at=now, updated_at=now)
        try:
            await self._db.write(lambda tx: images.add(tx, image))
        except UniqueViolation:
            raise taken(image.id) from None
        return image

    async def update(
        self, context: RequestContext, image_id: str, changes: Iterable[patch.Change]
    ) -> StoredImage:
        """Raises NotFound, Forbidden, Invalid, Conflict."""
        wanted = tuple(changes)
        return await self._change(context, image_id, lambda image: patch.applied(image, wanted, context))

    async def add_tag(self, context: RequestContext, image_id: str, tag: str) -> None:
        def tagged(image: StoredImage) -> StoredImage:
            return msgspec.structs.replace(image, tags=clean_tags([*image.tags, tag]))

        await self._change(context, image_id, tagged)

    async def remove_tag(self, context: RequestContext, image_id: str, tag: str) -> None:
        def untagged(image: StoredImage) -> StoredImage:
            if tag not in image.tags:
                raise NotFound(f"Image {image_id} has no tag {tag!r}.")
            return msgspec.structs.replace(image, tags=tuple(each for each in image.tags if each != tag))

        await self._change(context, image_id, untagged)

    async def set_active(self, context: RequestContext, image_id: str, *, active: bool) -> None:
        """Reactivate or deactivate: a deactivated image's data are given to administrators only.

        Raises Forbidden as Glance does when the image has no data yet.
        """
        status = "active" if active else "deactivated"

        def switched(image: StoredImage) -> StoredImage:
            if image.status not in ("active", "deactivated"):
                raise Forbidden(f"Not allowed to make an image {status} in status '{image.status}'.")
            return msgspec.structs.replace(image, status=status)

        await self._change(context, image_id, switched)

    async def delete(self, context: RequestContext, image_id: str) -> None:
        """Raises NotFound; Forbidden for a protected image and for another project's."""

        def mark(tx: Tx) -> StoredImage:
            image = access.check_changeable(images.lock(tx, image_id, context.project_id), image_id, context)
            if image.protected:
                raise Forbidden(f"Image {image_id} is protected and cannot be deleted.")
            images.save(tx, msgspec.structs.replace(image, status=DELETED))
            return image

        image = await self._db.write(mark)
        if image.upload is not None and not is_handed_in(image):
            return  # its upload finds the mark when it ends, and removes all
        try:
            await self._blocking(self._files.remove, image_id)
        except OSError as error:
            raise storage_error(error) from error
        await self._db.write(lambda tx: images.remove(tx, image_id))

    async def open(self, image_id: str) -> tuple[BinaryIO, int]:
        """The data and their size in bytes; the caller closes the file.  Raises NotFound."""
        return await self._blocking(self._files.open, image_id)

    async def piece(self, image_id: str, offset: int, size: int) -> bytes:
        """At most ``size`` bytes of the data from ``offset`` on.  Raises NotFound."""
        return await self._blocking(self._files.piece, image_id, offset, size)

    async def pieces(self, file: BinaryIO) -> AsyncIterator[bytes]:
        """The rest of ``file``, read in a thread and in pieces of 1 MiB; closes it."""
        try:
            while piece := await self._blocking(file.read, PIECE):
                yield piece
        finally:
            # Not here: a thread may still read, and the reader's lock would stop the event loop.
            self._threads.submit(file.close)

    async def upload(
        self,
        context: RequestContext,
        image_id: str,
        chunks: AsyncIterator[bytes],
        declared: int | None = None,
    ) -> StoredImage:
        """Take in the data of a queued image and look at them; the image is active then.

        ``declared`` is how many bytes there are to be.  Whatever fails leaves the image queued and no
        data.  Raises NotFound, Forbidden, Conflict (not queued), Invalid (format, or too few bytes),
        TooLarge (limit, no room), TryAgain (the store cannot be written), and what ``chunks`` raises.
        """
        return await self._uploads.take(context, image_id, chunks, declared)

    async def add_local(
        self,
        context: RequestContext,
        name: str,
        source: Path | bytes,
        *,
        disk_format: str = "raw",
        properties: dict[str, str] | None = None,
    ) -> StoredImage:
        """A public active image made of a local file or of ``source`` itself; kept if there is one.

        ``context`` must be an administrator's.  Raises what ``create`` and ``upload`` raise, and OSError
        when the file cannot be read.
        """
        found = await self._db.read(lambda tx: images.public_by_name(tx, name))
        if found is not None:
            return found
        image = await self._local_record(context, name, disk_format, properties or {})
        if image.status != "queued":
            return image
        try:
            return await self.upload(context, image.id, self._local_chunks(source))
        except BaseException:
            await asyncio.shield(self.delete(context, image.id))
            raise

    # Inside

    async def _local_record(
        self, context: RequestContext, name: str, disk_format: str, properties: dict[str, str]
    ) -> StoredImage:
        """A record whose id follows from the name, so that a killed first start is gone on with."""
        new = NewImage(
            id=str(uuid.uuid5(uuid.NAMESPACE_URL, f"kilonova:image:{name}")),
            name=name,
            owner=context.project_id,
            visibility="public",
            disk_format=disk_format,
            container_format="bare",
            properties=properties,
        )
        try:
            return await self.create(context, new)
        except Conflict:
            return await self.get(context, str(new.id))

    async def _local_chunks(self, source: Path | bytes) -> AsyncIterator[bytes]:
        if isinstance(source, bytes):
            yield source
            return
        file = await self._blocking(_opened, source)
        async for piece in self.pieces(file):
            yield piece

    async def _change(
        self, context: RequestContext, image_id: str, change: Callable[[StoredImage], StoredImage]
    ) -> StoredImage:
        def run(tx: Tx) -> StoredImage:
            image = access.check_changeable(images.lock(tx, image_id, context.project_id), image_id, context)
            changed = change(image)
            if changed != image:
                changed = msgspec.structs.replace(changed, updated_at=self._clock.now())
                images.save(tx, changed)
            return changed

        return await self._db.write(run)

    async def _blocking(self, call: Callable[..., T], *args: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call, *args)


def _opened(path: Path) -> BinaryIO:
    return path.open("rb")


def as_model(image: StoredImage) -> Image:
    """The image as compute knows it."""
    return Image(
        id=image.id,
        name=image.name,
        status=image.status,
        disk_format=image.disk_format or "",
        container_format=image.container_format or "",
        size=image.size or 0,
        virtual_size=image.virtual_size,
        min_disk=image.min_disk,
        min_ram=image.min_ram,
        checksum=image.checksum,
        hash_algo=image.hash_algo,
        hash_value=image.hash_value,
        owner=image.owner,
        visibility=image.visibility,
        properties=image.properties,
    )
