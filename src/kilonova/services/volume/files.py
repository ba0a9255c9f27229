"""The directory with the volumes: a raw and sparse file for each, named by its id, there only when complete.

A volume on its way has ``<id>.<maker>.part``, ``.image`` (what it is converted from) and ``.alive``, on which
its maker holds a lock: so others know a maker that was killed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from kilonova.errors import Failed
from kilonova.fsync import fsync_directory
from kilonova.services.volume.records import VolumeNotFound

GIB = 1 << 30
PIECE = 64 << 20  # bytes that are copied at a time
BLOCK = 4096

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\Z")
_DRAFT = re.compile(r"([0-9a-f-]{36})\.([0-9a-f]{32})\.(?:part|image|alive)\Z")
_ZEROS = bytes(BLOCK)


def is_volume_id(text: str) -> bool:
    """Whether it can be the id of a volume, and so the name of a file: a UUID in its usual form."""
    return _UUID.match(text) is not None


class Draft:
    """A volume on its way.  All methods block."""

    def __init__(self, directory: Path, volume_id: str, maker: str) -> None:
        name = f"{_checked(volume_id)}.{maker}"
        self.whole = directory / volume_id
        self.part = directory / f"{name}.part"
        self.image = directory / f"{name}.image"
        self._alive = directory / f"{name}.alive"
        self._lock: BinaryIO | None = None

    def open(self, size: int) -> None:
        """Begin an empty volume of so many bytes."""
        self._lock = os.fdopen(os.open(self._alive, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+b")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        descriptor = os.open(self.part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(descriptor, size)
        finally:
            os.close(descriptor)

    def publish(self) -> None:
        """Give the complete volume its name, so that it stays through a power cut.

        Nothing is ever replaced: the name that is there already is that of a complete volume, too.
        """
        descriptor = os.open(self.part, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        with contextlib.suppress(FileExistsError):
            os.link(self.part, self.whole)
        fsync_directory(self.whole.parent)

    def close(self) -> None:
        """Remove what is left of it but the volume itself."""
        for path in (self.part, self.image, self._alive):
            path.unlink(missing_ok=True)
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def is_alive(self) -> bool:
        """Whether a process holds it."""
        try:
            file = self._alive.open("rb")
        except FileNotFoundError:
            return False
        with file:
            return not _lockable(file)


class VolumeFiles:
    """All methods block: call them in a thread."""

    def __init__(self, directory: Path, *, shared: bool = False) -> None:
        self.directory = directory.absolute()  # as hosts are told it
        self.shared = shared
        self._lock: BinaryIO | None = None

    def take(self) -> None:
        """Make the directory and keep other processes from it until ``release``.

        Those that share theirs keep only such out as do not.  Raises Failed.
        """
        if self._lock is not None:
            return
        try:
            self.directory.mkdir(mode=0o711, parents=True, exist_ok=True)
            lock = (self.directory / ".lock").open("ab")
        except OSError as error:
            raise Failed(
                f"Cannot use the volume directory {self.directory}: {error.strerror}. Set [volume]directory."
            ) from error
        if not _lockable(lock, fcntl.LOCK_SH if self.shared else fcntl.LOCK_EX):
            lock.close()
            raise Failed(f"Another process uses the volume directory {self.directory}.")
        self._lock = lock

    def release(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def path(self, volume_id: str) -> Path:
        """Where a volume is."""
        return self.directory / _checked(volume_id)

    def exists(self, volume_id: str) -> bool:
        return self.path(volume_id).is_file()

    def draft(self, volume_id: str, maker: str) -> Draft:
        return Draft(self.directory, volume_id, maker)

    def grow(self, volume_id: str, size: int) -> None:
        """Make a volume that nobody uses so many bytes large, and never smaller.  Raises OSError."""
        descriptor = os.open(self.path(volume_id), os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)  # one that comes late must not cut what another has grown
            if os.fstat(descriptor).st_size < size:
                os.ftruncate(descriptor, size)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def remove(self, volume_id: str) -> None:
        """None is no error."""
        with contextlib.suppress(FileNotFoundError):
            self.path(volume_id).unlink()
            fsync_directory(self.directory)

    def whole(self) -> list[str]:
        """The ids of the volumes that are there."""
        return sorted(path.name for path in self.directory.iterdir() if is_volume_id(path.name))

    def drafts(self) -> set[tuple[str, str]]:
        """Volume and maker of what is on its way, or was."""
        found = (_DRAFT.match(path.name) for path in self.directory.iterdir())
        return {(match[1], match[2]) for match in found if match and is_volume_id(match[1])}


def write_sparse(path: Path, offset: int, data: bytes) -> None:
    """Write a piece into a file that has only zeros there, and leave blocks of zeros out."""
    with path.open("r+b", buffering=0) as file:
        for at, piece in _runs(data):
            file.seek(offset + at)
            left = memoryview(piece)
            while left:
                left = left[file.write(left) :]


def _runs(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Where there is something but zeros, in whole blocks, neighbours together."""
    begin: int | None = None
    for at in range(0, len(data), BLOCK):
        empty = data[at : at + BLOCK] == _ZEROS[: len(data) - at]
        if empty and begin is not None:
            yield begin, data[begin:at]
            begin = None
        elif not empty and begin is None:
            begin = at
    if begin is not None:
        yield begin, data[begin:]


def copy_piece(source: Path, target: Path, offset: int) -> int | None:
    """Copy the first data at or after ``offset``, some MiB at most; where to go on, None at the end."""
    with source.open("rb", buffering=0) as reader, target.open("r+b", buffering=0) as writer:
        try:
            begin = os.lseek(reader.fileno(), offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # only a hole is left
                return None
            raise
        end = min(os.lseek(reader.fileno(), begin, os.SEEK_HOLE), begin + PIECE)
        os.lseek(reader.fileno(), begin, os.SEEK_SET)
        os.lseek(writer.fileno(), begin, os.SEEK_SET)
        while begin < end:
            data = reader.read(min(1 << 20, end - begin))
            if not data:
                return None
            left = memoryview(data)
            while left:
                left = left[writer.write(left) :]
            begin += len(data)
        return end


def _lockable(file: BinaryIO, kind: int = fcntl.LOCK_EX) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _checked(volume_id: str) -> str:
    if not is_volume_id(volume_id):
        raise VolumeNotFound(volume_id)
    return volume_id
