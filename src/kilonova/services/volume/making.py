"""What is done to volumes in the background: they are made, grown and deleted.

Each is begun by a status in the database, and ended by another one; who finds a volume in such a status that
nobody is at any more does the same again.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from functools import partial
from typing import Any, TypeVar

import msgspec
import structlog

from kilonova.clock import SECOND, Clock
from kilonova.db import volume_ledger as ledger
from kilonova.db import volumes
from kilonova.db.engine import Database, Tx
from kilonova.db.volumes import DELETED, MAKING, StoredVolume
from kilonova.errors import KilonovaError, TryAgain
from kilonova.programs import ProgramFailed
from kilonova.services.volume.files import GIB, VolumeFiles
from kilonova.services.volume.filling import FULL, Filling

log = structlog.get_logger("kilonova.volume")

T = TypeVar("T")

BEGINNING = 60 * SECOND  # between a mark in the database and the file of who has set it, at the very most
REMEMBERED = 86_400 * SECOND  # how long a deleted volume is known to be one
AT_ONCE = 4
NO_ROOM = "There is not enough room for this volume."


def new_maker() -> str:
    return uuid.uuid4().hex


class Making:
    """The work of one process.  ``begin`` takes a volume as the database has it."""

    def __init__(
        self, db: Database, clock: Clock, files: VolumeFiles, filling: Filling, threads: Executor
    ) -> None:
        self._db = db
        self._clock = clock
        self._files = files
        self._filling = filling
        self._threads = threads
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._strange: set[str] = set()  # files that were logged already

    def begin(self, volume: StoredVolume) -> None:
        """Go on with what the volume's status says."""
        before = self._tasks.get(volume.id)
        task = asyncio.create_task(self._after(before, volume), name=f"volume {volume.id}")
        self._tasks[volume.id] = task
        task.add_done_callback(lambda done: self._ended(volume.id, done))

    def _ended(self, volume_id: str, task: asyncio.Task[None]) -> None:
        if self._tasks.get(volume_id) is task:
            del self._tasks[volume_id]

    async def idle(self) -> None:
        """Wait until nothing is under way."""
        while self._tasks:
            await asyncio.wait(list(self._tasks.values()))

    async def stop(self) -> None:
        """Leave everything as it is: whoever comes next goes on with it."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def recover(self) -> None:
        """Go on with what others have left."""
        names = await self._blocking(self._files.drafts)
        left = await self._db.read(volumes.left_behind)
        alive = set()
        for volume in left:
            if volume.id in self._tasks or await self._is_alive(volume):
                alive.add((volume.id, volume.maker))
                continue
            taken = await self._db.write(partial(self._taken_over, old=volume))
            if taken is not None:
                log.info("going on with a volume", volume=volume.id, status=volume.status)
                self.begin(taken)
        for volume_id, maker in names - alive:
            await self._blocking(self._remove_dead, volume_id, maker)
        await self._forget()

    async def _is_alive(self, volume: StoredVolume) -> bool:
        """Whether another process is at it."""
        if not self._files.shared:
            return False
        if self._clock.now() - volume.updated_at < BEGINNING:
            return True
        if volume.status not in MAKING or volume.maker is None:
            return False  # doing it twice does no harm
        return await self._blocking(self._files.draft(volume.id, volume.maker).is_alive)

    def _taken_over(self, tx: Tx, old: StoredVolume) -> StoredVolume | None:
        """The volume, ours to go on with; None if something has happened to it meanwhile."""
        volume = volumes.lock(tx, old.id)
        if volume is None or (volume.status, volume.maker) != (old.status, old.maker):
            return None
        maker = new_maker() if volume.status in MAKING else volume.maker
        return self._save(tx, volume, maker=maker)

    def _remove_dead(self, volume_id: str, maker: str) -> None:
        draft = self._files.draft(volume_id, maker)
        if not draft.is_alive():
            draft.close()

    async def _forget(self) -> None:
        """Remove files that came when their volumes were deleted already, and say which nobody knows."""
        there = await self._blocking(self._files.whole)
        deleted, known = await self._db.read(lambda tx: (volumes.deleted(tx), volumes.known(tx)))
        for volume_id in deleted.keys() & set(there):
            await self._blocking(self._files.remove, volume_id)
        before = self._clock.now() - REMEMBERED
        old = [volume_id for volume_id, moment in deleted.items() if moment < before]
        if old:
            await self._db.write(lambda tx: volumes.forget(tx, old))
        strange = set(there) - known
        if new := sorted(strange - self._strange):
            log.warning("files that belong to no volume", directory=str(self._files.directory), names=new)
        self._strange = strange

    # ---- one volume ----

    async def _after(self, before: asyncio.Task[None] | None, volume: StoredVolume) -> None:
        if before is not None:
            await asyncio.wait({before})
        async with self._turns:
            await self._do(volume)

    async def _do(self, volume: StoredVolume) -> None:
        work: Coroutine[Any, Any, None]
        if volume.status in MAKING:
            work = self._make(volume)
        else:
            work = self._grow(volume) if volume.status == "extending" else self._delete(volume)
        try:
            await work
        except TryAgain as error:  # `recover` does it again
            log.warning("a volume has to wait", volume=volume.id, status=volume.status, error=str(error))
        except Exception as error:  # noqa: BLE001 - whatever it is, its owner has to see that it is over
            log.error("a volume failed", volume=volume.id, status=volume.status, error=repr(error))
            await self._note_failure(volume, in_words(error))

    async def _note_failure(self, volume: StoredVolume, fault: str) -> None:
        try:
            await self._db.write(lambda tx: self._fail(tx, volume, fault))
        except TryAgain as error:
            log.warning("a failed volume has to wait", volume=volume.id, error=str(error))

    async def _make(self, volume: StoredVolume) -> None:
        maker = str(volume.maker)
        if not await self._blocking(self._files.exists, volume.id):
            if volume.source_image is not None and volume.status == "creating":
                await self._db.write(lambda tx: self._mark(tx, volume.id, maker, "downloading"))
            draft = self._files.draft(volume.id, maker)
            try:
                await self._filling.fill(volume, draft)
            finally:
                await asyncio.shield(self._blocking(draft.close))
        if not await self._db.write(lambda tx: self._mark(tx, volume.id, maker, "available")):
            await self._gone(volume.id)

    def _mark(self, tx: Tx, volume_id: str, maker: str, status: str) -> bool:
        """Note how far it is, if it is ours; False if it is there no more."""
        volume = volumes.lock(tx, volume_id)
        if volume is not None and volume.maker == maker and volume.status in MAKING:
            self._save(tx, volume, status=status, maker=maker if status in MAKING else None)
        return volume is not None

    async def _gone(self, volume_id: str) -> None:
        """It was deleted while it was made."""
        await self._blocking(self._files.remove, volume_id)

    async def _grow(self, volume: StoredVolume) -> None:
        assert volume.growing_to is not None
        await self._blocking(self._files.grow, volume.id, volume.growing_to * GIB)

        def grown(tx: Tx) -> None:
            found = volumes.lock(tx, volume.id)
            if found is not None and found.status == "extending" and found.growing_to is not None:
                self._save(tx, found, status="available", size_gb=found.growing_to, growing_to=None)

        await self._db.write(grown)

    async def _delete(self, volume: StoredVolume) -> None:
        await self._blocking(self._files.remove, volume.id)

        def done(tx: Tx) -> None:
            found = volumes.lock(tx, volume.id)
            if found is not None and found.status == "deleting":
                size = found.growing_to or found.size_gb
                ledger.use(tx, found.project_id, "volumes", -1)
                ledger.use(tx, found.project_id, "gigabytes", -size)
                self._save(tx, found, status=DELETED, maker=None, growing_to=None)

        await self._db.write(done)

    def _fail(self, tx: Tx, volume: StoredVolume, fault: str) -> None:
        found = volumes.lock(tx, volume.id)
        if found is None or found.status not in (volume.status, *MAKING) or found.maker != volume.maker:
            return
        if found.status == "extending" and found.growing_to is not None:
            ledger.use(tx, found.project_id, "gigabytes", found.size_gb - found.growing_to)
            status = "error_extending"
        else:
            status = "error_deleting" if found.status == "deleting" else "error"
        self._save(tx, found, status=status, maker=None, growing_to=None, fault=fault)

    def _save(self, tx: Tx, volume: StoredVolume, **changes: Any) -> StoredVolume:
        changed = msgspec.structs.replace(volume, updated_at=self._clock.now(), **changes)
        volumes.save(tx, changed)
        return changed

    async def _blocking(self, call: Callable[..., T], *args: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call, *args)


def in_words(error: Exception) -> str:
    """What is wrong, for the volume's owner."""
    if isinstance(error, OSError):
        return NO_ROOM if error.errno in FULL else f"The storage failed: {error.strerror}."
    if isinstance(error, ProgramFailed):
        return NO_ROOM if "No space left on device" in error.stderr else "The image cannot be converted."
    return str(error) if isinstance(error, KilonovaError) else "Something unexpected happened: see the log."
