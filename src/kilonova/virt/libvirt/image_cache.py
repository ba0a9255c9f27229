"""Images kept on this host, so that the next guest of the same image starts at once.

An entry is a file that is complete and verified, named by the image's id and its format.  Guests hold a hard
link to it in their own directory: so what is in use can be told by counting links, and removing an entry
from the cache takes nothing from any guest.

Images stay in the form they come in.  (Nova's ``force_raw_images`` would spend a conversion and the space for
a saving that guests do not notice: writes go to the guest's own overlay in either case.)
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import hashlib
import os
import re
import secrets
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path

import msgspec
import structlog

from kilonova.clock import SECOND, Clock
from kilonova.errors import Failed, HostFault, NotFound
from kilonova.model.instance import ImageMeta
from kilonova.threads import Threads
from kilonova.virt.driver import ImageSource
from kilonova.virt.libvirt import image_check, qcow2
from kilonova.virt.libvirt.files import settle

log = structlog.get_logger("kilonova.virt")

FORMATS = {"qcow2": "qcow2", "raw": "raw", "iso": "raw"}
PIECE = 4 << 20  # bytes that are hashed and written in one go
DRAFT = ".part"
_HASHES = ("sha512", "sha256", "sha384", "sha1", "md5")


class CachedImage(msgspec.Struct, frozen=True, kw_only=True):
    """``format`` is QEMU's name of it (raw, qcow2); ``virtual_size`` in bytes is that of the disk."""

    path: Path
    format: str
    virtual_size: int


class _Fetch:
    """An image on its way, and how many wait for it."""

    def __init__(self, task: asyncio.Task[CachedImage]) -> None:
        self.task = task
        self.waiting = 0


class ImageCache:
    """Files in one directory.  ``open`` before use."""

    def __init__(self, directory: Path, owner: str, clock: Clock, threads: Threads) -> None:
        """``owner`` tells this host's unfinished files from those of others that share the directory."""
        self._directory = directory
        self._owner = owner
        self._clock = clock
        self._threads = threads
        self._fetches: dict[str, _Fetch] = {}

    def open(self) -> None:
        """Make the directory, and remove what a process left that was killed while it fetched."""
        self._directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        for draft in self._directory.glob(f"*.{self._owner}.*{DRAFT}"):
            log.info("an image that was not complete is removed", file=draft.name)
            draft.unlink(missing_ok=True)

    async def ensure(self, image: ImageMeta, source: ImageSource) -> CachedImage:
        """The image on this host; fetched once, however many want it at the same time.

        Raises Failed for images that no host can use, HostFault for what may work elsewhere (no space, data
        that is not the image's), Unreachable.
        """
        path = self._directory / f"{_name(image)}.{_format(image)}"
        found = await self._threads.run(lambda: self._find(path))
        if found is not None:
            return found
        fetch = self._fetches.get(path.name)
        if fetch is None:
            fetch = _Fetch(asyncio.create_task(self._fetch(image, source, path), name=f"fetch-{image.id}"))
            self._fetches[path.name] = fetch
            fetch.task.add_done_callback(lambda task: self._forget(path.name, task))
        return await self._wait(fetch, path.name)

    async def find(self, image: ImageMeta) -> CachedImage | None:
        """The image, if it is on this host already.  Raises Failed for one that no host can use."""
        path = self._directory / f"{_name(image)}.{_format(image)}"
        return await self._threads.run(lambda: self._find(path))

    async def _wait(self, fetch: _Fetch, name: str) -> CachedImage:
        fetch.waiting += 1
        try:
            return await asyncio.shield(fetch.task)
        finally:
            fetch.waiting -= 1
            if fetch.waiting == 0 and not fetch.task.done():  # nobody wants it any more
                if self._fetches.get(name) is fetch:
                    del self._fetches[name]
                fetch.task.cancel()
                await asyncio.wait({fetch.task})

    def _forget(self, name: str, task: asyncio.Task[CachedImage]) -> None:
        fetch = self._fetches.get(name)
        if fetch is not None and fetch.task is task:
            del self._fetches[name]
        if not task.cancelled():
            task.exception()  # looked at, also if the last one who waited has just left

    def _find(self, path: Path) -> CachedImage | None:
        try:
            os.utime(path)  # used now
        except FileNotFoundError:
            return None
        return _describe(path)

    async def _fetch(self, image: ImageMeta, source: ImageSource, path: Path) -> CachedImage:
        draft = path.with_name(f"{path.name}.{self._owner}.{secrets.token_hex(4)}{DRAFT}")
        try:
            await self._download(image, source, draft)
            await image_check.check(draft, path.suffix[1:], image.id)
            await self._threads.run(lambda: settle(draft, path, 0o644))
        except OSError as error:
            raise _disk_fault(error, image, self._directory) from error
        except NotFound as error:
            raise Failed(f"Image {image.id} is no longer there: {error}") from error
        finally:
            await self._threads.run(lambda: draft.unlink(missing_ok=True))
        log.info("image cached", image=image.id, file=path.name, bytes=image.size)
        return await self._threads.run(lambda: _describe(path))

    async def _download(self, image: ImageMeta, source: ImageSource, draft: Path) -> None:
        """Stream the data into ``draft``, and see that it is all of it and nothing else."""
        free = await self._threads.run(lambda: _free_bytes(self._directory))
        if image.size > free:
            raise HostFault(
                f"There is no space for image {image.id}: it has {image.size >> 20} MiB, and "
                f"{free >> 20} MiB are free in {self._directory}."
            )
        algorithm, expected = _expected_hash(image)
        digest = hashlib.new(algorithm, usedforsecurity=False)
        got = 0
        handle = await self._threads.run(
            lambda: os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        )
        try:
            async with contextlib.aclosing(_pieces(source.read(image.id))) as pieces:
                async for piece in pieces:
                    got += len(piece)
                    if image.size and got > image.size:
                        raise HostFault(
                            f"Image {image.id} should have {image.size} bytes, and more came: not used."
                        )
                    await self._threads.run(functools.partial(_write, handle, piece, digest))
        finally:
            os.close(handle)
        if image.size and got != image.size:
            raise HostFault(f"Only {got} of the {image.size} bytes of image {image.id} came: not used.")
        if expected is not None and digest.hexdigest() != expected:
            raise HostFault(
                f"The data of image {image.id} is not what was uploaded: its {algorithm} is "
                f"{digest.hexdigest()}, not {expected}."
            )

    async def remove_unused(self, age: float) -> list[str]:
        """Remove what no guest holds and nobody has asked for in ``age`` seconds; gives the files' names."""
        return await self._threads.run(lambda: self._remove_unused(age))

    def _remove_unused(self, age: float) -> list[str]:
        limit = self._clock.now() - int(age * SECOND)
        removed = []
        for path in sorted(self._directory.iterdir()):
            stat = path.stat()
            if path.suffix == DRAFT or stat.st_nlink > 1 or stat.st_mtime_ns // 1000 > limit:
                continue
            path.unlink()
            removed.append(path.name)
            log.info("unused image removed from the cache", file=path.name, bytes=stat.st_size)
        return removed


def _name(image: ImageMeta) -> str:
    """The image's id, which operators recognise, where it is fit for a file's name."""
    if re.fullmatch(r"[0-9A-Za-z][0-9A-Za-z_-]{0,63}", image.id):
        return image.id
    return "id-" + hashlib.sha256(image.id.encode()).hexdigest()[:40]


def _format(image: ImageMeta) -> str:
    if image.disk_format not in FORMATS:
        raise Failed(
            f"Image {image.id} has the disk format '{image.disk_format}'; guests can be started from "
            f"{', '.join(FORMATS)}. Convert it with qemu-img and upload it again."
        )
    if image.container_format not in ("bare", ""):
        raise Failed(
            f"Image {image.id} has the container format '{image.container_format}'; only 'bare' can be used."
        )
    return FORMATS[image.disk_format]


def _describe(path: Path) -> CachedImage:
    if path.suffix == ".raw":
        return CachedImage(path=path, format="raw", virtual_size=path.stat().st_size)
    head = qcow2.read_head(path)
    if head is None:
        raise HostFault(f"{path} is damaged: remove it, and it will be fetched again.")
    return CachedImage(path=path, format="qcow2", virtual_size=head.virtual_size)


def _expected_hash(image: ImageMeta) -> tuple[str, str | None]:
    """The algorithm to use and what it has to give; the image service's own choice, or its old md5."""
    if image.hash_algo and image.hash_value:
        if image.hash_algo not in _HASHES:
            raise Failed(f"Image {image.id} has a hash of a kind that is not known: '{image.hash_algo}'.")
        return image.hash_algo, image.hash_value.lower()
    if image.checksum:
        return "md5", image.checksum.lower()
    return "sha256", None


async def _pieces(stream: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    """The same bytes in larger pieces, so that a thread is asked less often."""
    waiting: list[bytes] = []
    size = 0
    try:
        async for data in stream:
            waiting.append(data)
            size += len(data)
            if size >= PIECE:
                yield b"".join(waiting)
                waiting, size = [], 0
        if waiting:
            yield b"".join(waiting)
    finally:
        if isinstance(stream, AsyncGenerator):
            await stream.aclose()


def _write(handle: int, data: bytes, digest: hashlib._Hash) -> None:
    digest.update(data)
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view) :]


def _free_bytes(directory: Path) -> int:
    found = os.statvfs(directory)
    return found.f_bavail * found.f_frsize


def _disk_fault(error: OSError, image: ImageMeta, directory: Path) -> HostFault:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return HostFault(
            f"The disk of this host is full: image {image.id} ({image.size >> 20} MiB) does not fit into "
            f"{directory}."
        )
    return HostFault(f"Image {image.id} cannot be kept in {directory}: {error}")
