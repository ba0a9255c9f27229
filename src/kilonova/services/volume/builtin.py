"""The built-in volume service: records in the database, each volume a file in a directory.

A volume's life: ``creating`` (-> ``downloading``) -> ``available`` <-> ``reserved``, ``attaching``,
``in-use``, ``detaching``; ``extending``, ``deleting``, ``error``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec

from kilonova.clock import Clock
from kilonova.db import volume_attachments as attachments
from kilonova.db import volumes
from kilonova.db.engine import Database, Tx
from kilonova.db.volumes import StoredVolume
from kilonova.model.context import RequestContext
from kilonova.model.volume import Connection
from kilonova.services.volume import attaching
from kilonova.services.volume.asking import Asking
from kilonova.services.volume.attaching import Attaching
from kilonova.services.volume.files import VolumeFiles
from kilonova.services.volume.filling import Filling
from kilonova.services.volume.making import Making
from kilonova.services.volume.port import VolumeInfo
from kilonova.services.volume.records import (
    Images,
    Inspect,
    InvalidVolume,
    NewVolume,
    NoDirectory,
    Options,
    seen_by,
)
from kilonova.services.volume.writing import repeated

THREADS = 4
DELETABLE = ("available", "error", "error_deleting", "error_extending")


class BuiltinVolumes:
    """A VolumeService of one process.

    Without a ``directory`` it knows the volumes and neither makes nor connects any.  Several controllers
    have one ``shared`` directory, on a file system with locks.  Call ``recover`` before anything else and
    ``close`` at the end.
    """

    def __init__(
        self,
        db: Database,
        clock: Clock,
        new_uuid: Callable[[], str],
        directory: Path | None,
        images: Images,
        inspect: Inspect,
        *,
        options: Options | None = None,
        shared: bool = False,
    ) -> None:
        self.options = options or Options()
        self.db = db
        self.clock = clock
        self._threads = ThreadPoolExecutor(THREADS, "volume")
        files = None if directory is None else VolumeFiles(directory, shared=shared)
        self._files = files
        self._making: Making | None = None
        if files is not None:
            filling = Filling(files, images, inspect, self._threads)
            self._making = Making(db, clock, files, filling, self._threads)
        self.attaching = Attaching(db, clock, files, self._threads)
        self._asking = Asking(clock, new_uuid, images, self.options)

    @property
    def keeps_volumes(self) -> bool:
        """Whether it can make any."""
        return self._making is not None

    async def recover(self) -> None:
        """Take the directory and go on with what a killed process left.  May be repeated.

        Raises Failed when another process uses the directory.
        """
        if self._making is None or self._files is None:
            return
        await asyncio.get_running_loop().run_in_executor(self._threads, self._files.take)
        await self._making.recover()

    async def idle(self) -> None:
        """Wait until nothing is being made, grown or deleted here."""
        if self._making is not None:
            await self._making.idle()

    async def close(self) -> None:
        """What is under way stays as it is, for the next ``recover``."""
        if self._making is not None:
            await self._making.stop()
        await asyncio.get_running_loop().run_in_executor(None, self._threads.shutdown)
        if self._files is not None:
            self._files.release()

    # What compute asks

    async def check(self, context: RequestContext, volume_id: str) -> VolumeInfo:
        """See VolumeService."""
        return await attaching.checked(self.db, context, volume_id)

    async def reserve(
        self, context: RequestContext, volume_id: str, instance_uuid: str, attachment_id: str
    ) -> VolumeInfo:
        """See VolumeService."""
        return await self.attaching.reserve(context, volume_id, instance_uuid, attachment_id)

    async def connect(self, attachment_id: str, host: str, device: str | None) -> Connection:
        """See VolumeService."""
        return await self.attaching.connect(attachment_id, host, device)

    async def complete(self, attachment_id: str) -> None:
        """See VolumeService."""
        await self.attaching.complete(attachment_id)

    async def release(self, attachment_id: str) -> None:
        """See VolumeService."""
        await self.attaching.release(attachment_id)

    async def release_all(self, volume_id: str, instance_uuid: str) -> None:
        """See VolumeService."""
        await self.attaching.release_all(volume_id, instance_uuid)

    async def begin_detaching(self, context: RequestContext, volume_id: str) -> None:
        """See VolumeService."""
        await self.attaching.begin_detaching(context, volume_id)

    async def roll_detaching(self, volume_id: str) -> None:
        """See VolumeService."""
        await self.attaching.roll_detaching(volume_id)

    async def delete(self, volume_id: str) -> None:
        """See VolumeService.  Raises Conflict while another server has the volume."""
        await self._delete(volume_id, None, force=False)

    # What the API asks

    async def create(self, context: RequestContext, new: NewVolume) -> StoredVolume:
        """A volume that is being made.  Raises Invalid, NotFound, OverQuota, Conflict, HostFault."""
        if self._making is None:
            raise NoDirectory
        image = await self._asking.image_for(context, new)
        volume = await repeated(self.db, lambda tx: self._asking.add(tx, context, new, image))
        self._making.begin(volume)
        return volume

    async def remove(self, context: RequestContext, volume_id: str, *, force: bool = False) -> None:
        """Begin to delete a volume.  Raises NotFound, Conflict."""
        await self._delete(volume_id, context, force=force)

    async def extend(self, context: RequestContext, volume_id: str, size_gb: int) -> None:
        """Begin to make a volume larger.  Raises NotFound, Conflict, Invalid, OverQuota, HostFault."""
        if self._making is None:
            raise NoDirectory

        def run(tx: Tx) -> StoredVolume:
            volume = seen_by(volumes.lock(tx, volume_id), volume_id, context)
            if volume.status != "available" or volumes.copies_under_way(tx, volume_id):
                raise InvalidVolume(f"volume {volume_id} is {volume.status}; it must be available to grow.")
            self._asking.grow(tx, volume, size_gb)
            return self._saved(tx, volume, status="extending", growing_to=size_gb)

        self._making.begin(await repeated(self.db, run))

    async def change(
        self, context: RequestContext, volume_id: str, change: Callable[[StoredVolume], dict[str, Any]]
    ) -> StoredVolume:
        """Set some fields of a volume: those that ``change`` says.  Raises NotFound, and what that raises."""

        def run(tx: Tx) -> StoredVolume:
            volume = seen_by(volumes.lock(tx, volume_id), volume_id, context)
            return self._saved(tx, volume, **change(volume))

        return await self.db.write(run)

    # Inside

    async def _delete(self, volume_id: str, context: RequestContext | None, *, force: bool) -> None:
        def run(tx: Tx) -> StoredVolume | None:
            volume = volumes.lock(tx, volume_id)
            if context is not None:
                volume = seen_by(volume, volume_id, context)
            if volume is None or volume.status == "deleting":
                return None
            if attachments.of_volume(tx, volume_id):
                raise InvalidVolume(f"volume {volume_id} is still attached to a server: detach it first.")
            if volume.status not in DELETABLE and not force:
                raise InvalidVolume(f"volume {volume_id} is {volume.status} and cannot be deleted as such.")
            if volumes.copies_under_way(tx, volume_id):
                raise InvalidVolume(f"volume {volume_id} is being copied; try again when that is done.")
            return self._saved(tx, volume, status="deleting")

        marked = await self.db.write(run)
        if marked is not None and self._making is not None:
            self._making.begin(marked)

    def _saved(self, tx: Tx, volume: StoredVolume, **changes: Any) -> StoredVolume:
        if not changes:
            return volume
        changed = msgspec.structs.replace(volume, updated_at=self.clock.now(), **changes)
        volumes.save(tx, changed)
        return changed
