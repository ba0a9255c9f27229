"""Snapshots: what a guest's root disk holds, in one qcow2 file beside it that needs no other file."""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path

from kilonova import programs
from kilonova.errors import Failed, HostFault
from kilonova.threads import Threads
from kilonova.virt.libvirt.disks import CONVERT, NEW, ROOT, GuestFiles, disk_fault
from kilonova.virt.libvirt.files import settle

Copy = Callable[[Path], Awaitable[None]]


class SnapshotFile:
    """Implements virt.driver.SnapshotData."""

    disk_format = "qcow2"

    def __init__(self, path: Path, size: int, threads: Threads) -> None:
        self.size = size
        self._path = path
        self._threads = threads

    async def read(self, offset: int, size: int) -> bytes:
        """Raises HostFault."""
        try:
            return await self._threads.run(lambda: _piece(self._path, offset, size))
        except OSError as error:
            raise HostFault(f"The snapshot {self._path} cannot be read: {error}") from error


class Snapshots:
    """Of all guests of this host, each in the guest's own directory: it goes when that goes."""

    def __init__(self, files: GuestFiles, threads: Threads) -> None:
        self._files = files
        self._threads = threads

    def _of(self, guest: str, image_id: str) -> Path:
        """Raises Failed for what is no uuid."""
        try:
            return self._files.of(guest) / f"snapshot-{uuid.UUID(image_id)}.qcow2"
        except ValueError:
            raise Failed(f"'{image_id}' is no image's uuid.") from None

    async def make(self, guest: str, image_id: str, copy: Copy | None = None) -> None:
        """See virt.driver.Driver.snapshot.  ``copy`` makes the file of a guest that runs."""
        path = self._of(guest, image_id)
        if await self._threads.run(path.exists):
            return
        root, draft = path.with_name(ROOT), path.with_name(path.name + NEW)
        if not await self._threads.run(root.exists):
            raise HostFault(f"The disk of guest {guest} is not on this host: no {root}.")
        convert = ("qemu-img", "convert", "-q", "-f", "qcow2", "-O", "qcow2", root.name, draft.name)
        await self._threads.run(lambda: draft.unlink(missing_ok=True))  # of a try that was killed
        try:
            if copy is None:
                await programs.run(*convert, cwd=path.parent, timeout=CONVERT)
            else:
                await copy(draft)
            await self._threads.run(lambda: settle(draft, path))
        except OSError as error:
            raise disk_fault(error, path.parent) from error
        except programs.ProgramFailed as error:
            if "No space left on device" in error.stderr:
                raise disk_fault(OSError(errno.ENOSPC, error.stderr), path.parent) from error
            raise
        finally:
            await self._threads.run(lambda: draft.unlink(missing_ok=True))

    async def data(self, guest: str, image_id: str) -> SnapshotFile:
        path = self._of(guest, image_id)
        try:
            size = await self._threads.run(lambda: path.stat().st_size)
        except FileNotFoundError:
            raise HostFault(f"There is no snapshot of guest {guest} for image {image_id}.") from None
        return SnapshotFile(path, size, self._threads)

    async def drop(self, guest: str, image_id: str) -> None:
        path = self._of(guest, image_id)
        await self._threads.run(lambda: path.unlink(missing_ok=True))


def _piece(path: Path, offset: int, size: int) -> bytes:
    with path.open("rb") as file:
        return os.pread(file.fileno(), size, offset)
