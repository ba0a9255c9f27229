"""Who has which volume: the records of attachments, and the status of a volume that follows from them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import TypeVar

import msgspec

from kilonova.clock import Clock
from kilonova.db import volume_attachments as attachments
from kilonova.db import volumes
from kilonova.db.engine import Database, Tx
from kilonova.db.volume_attachments import StoredAttachment
from kilonova.db.volumes import StoredVolume
from kilonova.errors import HostFault
from kilonova.model.context import RequestContext
from kilonova.model.volume import Connection
from kilonova.services.volume.files import VolumeFiles
from kilonova.services.volume.port import VolumeInfo
from kilonova.services.volume.records import (
    AttachmentNotFound,
    InvalidVolume,
    NoDirectory,
    seen_by,
)
from kilonova.services.volume.writing import repeated

T = TypeVar("T")

USED = ("reserved", "attaching", "in-use")
BY_ATTACHMENTS = ("available", *USED, "detaching")
"""Statuses that follow from who has a volume; in the others something else is done with it."""

_Change = Callable[[Tx, StoredVolume, StoredAttachment], None]


class Attaching:
    """The verbs of the VolumeService that have to do with servers."""

    def __init__(self, db: Database, clock: Clock, files: VolumeFiles | None, threads: Executor) -> None:
        self._db = db
        self._clock = clock
        self._files = files
        self._threads = threads

    async def reserve(
        self,
        context: RequestContext,
        volume_id: str,
        instance_uuid: str,
        attachment_id: str,
        mode: str = "rw",
    ) -> VolumeInfo:
        """See VolumeService."""

        def run(tx: Tx) -> VolumeInfo:
            volume = seen_by(volumes.lock(tx, volume_id), volume_id, context)
            there = attachments.of_volume(tx, volume_id)
            if all(each.id != attachment_id for each in there):
                _check_free(tx, volume, there, instance_uuid)
                if attachments.show(tx, attachment_id) is not None:
                    raise InvalidVolume(f"attachment {attachment_id} is another volume's.")
                there.append(self._added(tx, volume, instance_uuid, attachment_id, mode))
                volume = self._settled(tx, volume, there)
            return info(volume, there)

        return await repeated(self._db, run)

    async def connect(self, attachment_id: str, host: str, device: str | None) -> Connection:
        """See VolumeService."""
        if self._files is None:
            raise NoDirectory
        found = await self.show(attachment_id)
        path = self._files.path(found.volume_id)
        loop = asyncio.get_running_loop()
        if not await loop.run_in_executor(self._threads, path.is_file):
            raise HostFault(f"Volume {found.volume_id} has no file {path}: is its directory mounted?")
        connection = Connection(kind="file", path=str(path))

        def change(tx: Tx, volume: StoredVolume, attachment: StoredAttachment) -> None:
            same = attachment.host == host and attachment.status == "attached"
            status = "attached" if same else "attaching"
            values = {"host": host, "device": device, "connection": connection, "status": status}
            attachments.save(tx, msgspec.structs.replace(attachment, **values))

        await self._change(attachment_id, change)
        return connection

    async def complete(self, attachment_id: str) -> None:
        """See VolumeService."""

        def change(tx: Tx, volume: StoredVolume, attachment: StoredAttachment) -> None:
            if attachment.status != "attached":
                now = self._clock.now()
                attachments.save(tx, msgspec.structs.replace(attachment, status="attached", attached_at=now))

        await self._change(attachment_id, change)

    async def release(self, attachment_id: str) -> None:
        """See VolumeService."""

        def change(tx: Tx, volume: StoredVolume, attachment: StoredAttachment) -> None:
            attachments.remove(tx, attachment.id)

        try:
            await self._change(attachment_id, change, detached=True)
        except AttachmentNotFound:
            return

    async def release_all(self, volume_id: str, instance_uuid: str) -> None:
        """See VolumeService."""
        there = await self._db.read(lambda tx: attachments.of_volume(tx, volume_id))
        for each in there:
            if each.instance_uuid == instance_uuid:
                await self.release(each.id)

    async def begin_detaching(self, context: RequestContext, volume_id: str) -> None:
        """See VolumeService."""

        def run(tx: Tx) -> None:
            volume = seen_by(volumes.lock(tx, volume_id), volume_id, context)
            if volume.status == "detaching":
                return
            if volume.status != "in-use":
                raise InvalidVolume(
                    f"volume {volume_id} is {volume.status}; only one that is in-use can be detached."
                )
            self._save(tx, volume, status="detaching")

        await self._db.write(run)

    async def roll_detaching(self, volume_id: str) -> None:
        """See VolumeService."""

        def run(tx: Tx) -> None:
            volume = volumes.lock(tx, volume_id)
            if volume is not None and volume.status == "detaching":
                self._settled(tx, volume, attachments.of_volume(tx, volume_id), detached=True)

        await self._db.write(run)

    # What only the API asks

    async def show(self, attachment_id: str) -> StoredAttachment:
        """Raises NotFound."""
        found = await self._db.read(lambda tx: attachments.show(tx, attachment_id))
        if found is None:
            raise AttachmentNotFound(attachment_id)
        return found

    async def set_reserved(self, context: RequestContext, volume_id: str, *, reserved: bool) -> None:
        """Keep a volume for whoever will attach it (Cinder's ``os-reserve``), or let it go again."""
        wanted, other = ("reserved", "available") if reserved else ("available", "reserved")

        def run(tx: Tx) -> None:
            volume = seen_by(volumes.lock(tx, volume_id), volume_id, context)
            if volume.status != other or attachments.of_volume(tx, volume_id):
                raise InvalidVolume(f"volume {volume_id} is {volume.status}; it must be {other} for that.")
            if reserved and volumes.copies_under_way(tx, volume_id):
                raise InvalidVolume(f"volume {volume_id} is being copied.")
            self._save(tx, volume, status=wanted)

        await self._db.write(run)

    # Inside

    def _added(
        self, tx: Tx, volume: StoredVolume, instance_uuid: str, attachment_id: str, mode: str
    ) -> StoredAttachment:
        new = StoredAttachment(
            id=attachment_id,
            volume_id=volume.id,
            instance_uuid=instance_uuid,
            mode=mode,
            created_at=self._clock.now(),
        )
        attachments.add(tx, new)
        return new

    async def _change(self, attachment_id: str, change: _Change, *, detached: bool = False) -> None:
        """Change an attachment, and the volume's status with it.  Raises NotFound."""

        def run(tx: Tx) -> None:
            found = attachments.show(tx, attachment_id)
            volume = None if found is None else volumes.lock(tx, found.volume_id)
            found = attachments.show(tx, attachment_id)  # as it is now that nobody else changes it
            if volume is None or found is None:
                raise AttachmentNotFound(attachment_id)
            change(tx, volume, found)
            self._settled(tx, volume, attachments.of_volume(tx, volume.id), detached=detached)

        await self._db.write(run)

    def _settled(
        self, tx: Tx, volume: StoredVolume, there: Sequence[StoredAttachment], *, detached: bool = False
    ) -> StoredVolume:
        """The volume in the status that follows from its attachments; ``detached``: no longer "detaching"."""
        if volume.status not in BY_ATTACHMENTS or (volume.status == "detaching" and not detached):
            return volume
        status = status_of(there)
        return volume if status == volume.status else self._save(tx, volume, status=status)

    def _save(self, tx: Tx, volume: StoredVolume, *, status: str) -> StoredVolume:
        changed = msgspec.structs.replace(volume, status=status, updated_at=self._clock.now())
        volumes.save(tx, changed)
        return changed


def status_of(there: Sequence[StoredAttachment]) -> str:
    """What a volume is with these attachments."""
    found = {each.status for each in there}
    for status, word in (("attached", "in-use"), ("attaching", "attaching"), ("reserved", "reserved")):
        if status in found:
            return word
    return "available"


def info(volume: StoredVolume, there: Sequence[StoredAttachment]) -> VolumeInfo:
    """The volume as compute knows it."""
    return VolumeInfo(
        id=volume.id,
        name=volume.name or "",
        size_gb=volume.size_gb,
        status=volume.status,
        availability_zone=volume.zone,
        multiattach=volume.multiattach,
        bootable=volume.bootable,
        image_metadata=volume.image_metadata or {},
        servers=tuple(dict.fromkeys(each.instance_uuid for each in there)),
    )


def _check_free(tx: Tx, volume: StoredVolume, there: Sequence[StoredAttachment], instance_uuid: str) -> None:
    """Raises Conflict unless the server may have the volume, or has it and may have it once more: whatever
    others do with the volume, servers that have it move."""
    if any(each.instance_uuid == instance_uuid for each in there):
        return
    if volume.status == "available" and not there:
        if volumes.copies_under_way(tx, volume.id):
            raise InvalidVolume(f"volume {volume.id} is being copied; try again when that is done.")
        return
    if volume.status in ("available", *USED) and there and volume.multiattach:
        return
    raise InvalidVolume(
        f"volume {volume.id} is {volume.status}; to be attached it must be available, or multiattach."
    )


async def checked(db: Database, context: RequestContext, volume_id: str) -> VolumeInfo:
    """See ``VolumeService.check``."""

    def run(tx: Tx) -> VolumeInfo:
        volume = seen_by(volumes.show(tx, volume_id), volume_id, context)
        return info(volume, attachments.of_volume(tx, volume_id))

    return await db.read(run)
