"""The directory with the data of images: one file an image, named by its id, there only when complete."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import threading
from pathlib import Path
from typing import BinaryIO

import msgspec
import structlog

from kilonova.errors import Failed, KilonovaError, NotFound, TooLarge, TryAgain
from kilonova.fsync import fsync_directory
from kilonova.services.image.inspect import Inspection, inspect

log = structlog.get_logger("kilonova.image")

PIECE = 1 << 20
HASH_ALGO = "sha512"

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\Z")
_PART = re.compile(r"[0-9a-f-]{36}\.[0-9a-f]{32}\.part\Z")
_PIECES = re.compile(r"([0-9a-f-]{36})\.pieces\Z")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def is_image_id(text: str) -> bool:
    """Whether it can be the id of an image, and so the name of a file: a UUID in its usual form."""
    return _UUID.match(text) is not None


def storage_error(error: OSError) -> KilonovaError:
    """What a failing write means to the one who uploads."""
    if error.errno in _FULL:
        return TooLarge("There is not enough room in the image store for this image.")
    log.error("the image store cannot be written", error=repr(error))
    return TryAgain("The image store cannot be written at the moment.")


class Sealed(msgspec.Struct, frozen=True, kw_only=True):
    """What complete data are."""

    size: int
    md5: str
    sha512: str
    inspection: Inspection


class PartFile:
    """Data on their way in.  Its methods block and may be called from several threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        self._lock = threading.Lock()
        self._md5 = hashlib.md5(usedforsecurity=False)
        self._sha512 = hashlib.sha512()
        self._file: BinaryIO | None = None

    @property
    def checksum(self) -> str:
        return self._md5.hexdigest()

    @property
    def hash_value(self) -> str:
        return self._sha512.hexdigest()

    def open(self) -> None:
        with self._lock:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
            self._file = os.fdopen(descriptor, "w+b", buffering=0)
            fcntl.flock(self._file, fcntl.LOCK_EX)  # as long as we live, other controllers leave it alone

    def write(self, pieces: list[bytes]) -> None:
        """Raises OSError; ValueError once it is closed."""
        data = memoryview(b"".join(pieces))
        with self._lock:
            if self._file is None:
                raise ValueError("the upload was given up")
            left = data
            while left:
                left = left[os.write(self._file.fileno(), left) :]
            self._md5.update(data)
            self._sha512.update(data)
            self.size += len(data)

    def seal(self, disk_format: str) -> Inspection:
        """Put the data on the disk and say what they are.  Raises UnsafeImage, OSError."""
        with self._lock:
            if self._file is None:
                raise ValueError("the upload was given up")
            os.fsync(self._file.fileno())
            # An image without data carries only properties: Nova's snapshot of a server on volumes.
            found = inspect(self._file, disk_format) if self.size else Inspection(disk_format, 0)
            self._close()
            return found

    def discard(self) -> None:
        """Close and remove it.  Waits for a write that is under way."""
        with self._lock:
            self._close()
            with contextlib.suppress(FileNotFoundError):
                self.path.unlink()

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


class ImageFiles:
    """All methods block: call them in a thread."""

    def __init__(self, directory: Path, *, shared: bool = False) -> None:
        self.directory = directory
        self.shared = shared
        self._lock: BinaryIO | None = None

    def take(self) -> None:
        """Make the directory and keep other processes from it until ``release``.

        Those that share theirs keep only such out as do not.  Raises Failed.
        """
        if self._lock is not None:
            return
        self.directory.mkdir(mode=0o750, parents=True, exist_ok=True)
        lock = (self.directory / ".lock").open("ab")
        kind = fcntl.LOCK_SH if self.shared else fcntl.LOCK_EX
        try:
            fcntl.flock(lock, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise Failed(f"Another process uses the image directory {self.directory}.") from None
        self._lock = lock

    def release(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def part(self, image_id: str, upload: str) -> PartFile:
        return PartFile(self.directory / f"{_checked(image_id)}.{upload}.part")

    def publish(self, part: PartFile, image_id: str) -> None:
        """Give the complete data their name, so that they stay through a power cut."""
        part.path.rename(self.directory / _checked(image_id))
        fsync_directory(self.directory)

    def remove(self, image_id: str) -> None:
        self.remove_pieces(image_id)
        with contextlib.suppress(FileNotFoundError):
            (self.directory / _checked(image_id)).unlink()
            fsync_directory(self.directory)

    # ---- data that hosts hand in piece by piece ----

    def put_piece(self, image_id: str, offset: int, data: bytes) -> int:
        """Write a piece, unless something before it is missing; how many bytes there are then."""
        begins = os.O_CREAT if offset == 0 else 0  # what comes late, when all is over, begins nothing
        try:
            descriptor = os.open(self._pieces(image_id), os.O_WRONLY | begins | os.O_CLOEXEC, 0o640)
        except FileNotFoundError:
            return 0
        with os.fdopen(descriptor, "wb", buffering=0) as file:
            there = os.fstat(file.fileno()).st_size
            if not offset <= there < offset + len(data):
                return there
            left, at = memoryview(data), offset
            while left:
                written = os.pwrite(file.fileno(), left, at)
                left, at = left[written:], at + written
            return at

    def seal_pieces(self, image_id: str, size: int, sha512: str, disk_format: str) -> Sealed:
        """Check the whole, put it on the disk and give it its name.  May be repeated.

        Raises TryAgain, and forgets all pieces, when they are not what was sent; UnsafeImage, OSError.
        """
        pieces, whole = self._pieces(image_id), self.directory / _checked(image_id)
        try:
            file = (pieces if pieces.exists() or not whole.exists() else whole).open("rb")
        except FileNotFoundError:
            raise TryAgain(f"Nothing of image {image_id} has come.") from None
        with file:
            sealed = _sealed(file, disk_format, size, sha512)
            if sealed is None:
                self.remove(image_id)
                raise TryAgain(f"What has come of image {image_id} is not what was sent: send it again.")
            os.fsync(file.fileno())
        with contextlib.suppress(FileNotFoundError):
            pieces.rename(whole)
        fsync_directory(self.directory)
        return sealed

    def images_in_pieces(self) -> list[str]:
        found = (_PIECES.match(path.name) for path in self.directory.iterdir())
        return [match[1] for match in found if match and is_image_id(match[1])]

    def remove_pieces(self, image_id: str) -> None:
        self._pieces(image_id).unlink(missing_ok=True)

    def _pieces(self, image_id: str) -> Path:
        return self.directory / f"{_checked(image_id)}.pieces"

    def open(self, image_id: str) -> tuple[BinaryIO, int]:
        """The data and their size.  Raises NotFound."""
        try:
            file = (self.directory / _checked(image_id)).open("rb")
        except FileNotFoundError:
            raise NotFound(f"There are no data of image {image_id} in the image store.") from None
        return file, os.fstat(file.fileno()).st_size

    def piece(self, image_id: str, offset: int, size: int) -> bytes:
        """At most ``size`` bytes from ``offset`` on; none behind the end.  Raises NotFound."""
        file, _ = self.open(image_id)
        with file:
            return os.pread(file.fileno(), size, offset)

    def remove_parts(self) -> int:
        """Remove what uploads of killed processes left; how many those were."""
        parts = [path for path in self.directory.iterdir() if _PART.match(path.name)]
        if self.shared:
            return sum(_remove_dead(path) for path in parts)
        for path in parts:
            path.unlink(missing_ok=True)
        return len(parts)

    def is_alive(self, image_id: str, upload: str) -> bool:
        """Whether the process of an upload still holds its file."""
        try:
            file = self.part(image_id, upload).path.open("rb")
        except FileNotFoundError:
            return False
        with file:
            return not _locked_by_us(file)


def _sealed(file: BinaryIO, disk_format: str, size: int, sha512: str) -> Sealed | None:
    """What a file is; None if it is not of that size or does not have that hash.  Raises UnsafeImage."""
    if os.fstat(file.fileno()).st_size != size:
        return None
    digests = hashlib.md5(usedforsecurity=False), hashlib.sha512()
    while piece := file.read(PIECE):
        for digest in digests:
            digest.update(piece)
    md5, found = (digest.hexdigest() for digest in digests)
    if found != sha512:
        return None
    return Sealed(size=size, md5=md5, sha512=found, inspection=inspect(file, disk_format))


def _remove_dead(path: Path) -> bool:
    """Remove the file of an upload whose process is gone: nobody holds its lock."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return False
    with file:
        if not _locked_by_us(file):
            return False
        path.unlink(missing_ok=True)
        return True


def _locked_by_us(file: BinaryIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _checked(image_id: str) -> str:
    if not is_image_id(image_id):
        raise NotFound(f"No image found with ID {image_id}.")
    return image_id
