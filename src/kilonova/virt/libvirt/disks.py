"""The files of one guest: its disks on top of the cached image, and its config drive.

Each file appears whole or not at all, under its final name, so that preparing can be interrupted anywhere and
repeated; what is there is kept.
"""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path

import msgspec
import structlog

from kilonova import programs
from kilonova.errors import Failed, HostFault
from kilonova.rpc.messages import GuestSpec
from kilonova.threads import Threads
from kilonova.virt.driver import ImageSource
from kilonova.virt.libvirt import config_drive
from kilonova.virt.libvirt.files import settle
from kilonova.virt.libvirt.image_cache import CachedImage, ImageCache

log = structlog.get_logger("kilonova.virt")

GIB = 1 << 30
MIB = 1 << 20
# In a guest's directory:
BASE = "disk.base"  # a hard link to the image in the cache
ROOT = "disk"
EPHEMERAL = "disk.eph0"
SWAP = "disk.swap"
CONFIG = "disk.config"
CONSOLE = "console.log"
NEW = ".new"
CONVERT = 24 * 3600.0  # seconds that converting a disk may take


class DiskFile(msgspec.Struct, frozen=True, kw_only=True):
    """One disk of a guest, before it is known on which bus it will be.

    ``kind`` is ``disk`` or ``cdrom``; ``serial`` is what the guest sees of it.
    """

    path: Path
    format: str
    kind: str = "disk"
    readonly: bool = False
    boot: bool = False
    serial: str | None = None


class GuestFiles:
    """All guests' directories of this host."""

    def __init__(self, directory: Path, cache: ImageCache, threads: Threads, drive_format: str) -> None:
        self._directory = directory
        self._cache = cache
        self._threads = threads
        self._drive_format = drive_format

    def of(self, guest: str) -> Path:
        """The directory of a guest.  Raises Failed for what is no uuid."""
        try:
            return self._directory / str(uuid.UUID(guest))
        except ValueError:
            raise Failed(f"'{guest}' is no guest's uuid.") from None

    def disks(self, guest: GuestSpec) -> list[DiskFile]:
        """What the guest has, root first, as `prepare` makes it."""
        here = self.of(guest.uuid)
        found = []
        if guest.image is not None and guest.image.disk_format == "iso":
            found.append(DiskFile(path=here / BASE, format="raw", kind="cdrom", readonly=True, boot=True))
            if guest.flavor.root_gb:
                found.append(DiskFile(path=here / ROOT, format="qcow2"))
        else:
            found.append(DiskFile(path=here / ROOT, format="qcow2", boot=True))
        if guest.flavor.ephemeral_gb:
            found.append(DiskFile(path=here / EPHEMERAL, format="raw"))
        if guest.flavor.swap_mb:
            found.append(DiskFile(path=here / SWAP, format="raw"))
        if guest.config_drive is not None:
            if self._drive_format == "vfat":
                found.append(DiskFile(path=here / CONFIG, format="raw"))
            else:
                found.append(DiskFile(path=here / CONFIG, format="raw", kind="cdrom", readonly=True))
        return found

    async def prepare(self, guest: GuestSpec, images: ImageSource) -> None:
        """Make what is missing.  Raises Failed, HostFault, Unreachable."""
        here = self.of(guest.uuid)
        try:
            await self._threads.run(lambda: _make_directory(here))
            await self._root(guest, images, here)
            await self._blank(here / EPHEMERAL, guest.flavor.ephemeral_gb * GIB, _ext4(guest))
            await self._blank(here / SWAP, guest.flavor.swap_mb * MIB, ("mkswap", "--label", "swap"))
            if guest.config_drive is not None:
                await config_drive.write(guest.config_drive, here / CONFIG, self._drive_format, self._threads)
        except OSError as error:
            raise disk_fault(error, here) from error
        except programs.ProgramFailed as error:
            if "No space left on device" in error.stderr:
                raise disk_fault(OSError(errno.ENOSPC, error.stderr), here) from error
            raise

    async def prepare_empty(
        self, guest: GuestSpec, images: ImageSource, sizes: Mapping[str, int], *, flat: bool = False
    ) -> None:
        """Disks of these sizes (bytes, by name) that another host fills, on top of the same image, or of none
        (``flat``).

        The guest's directory is there.  Raises Failed, HostFault, Unreachable.
        """
        here = self.of(guest.uuid)
        if guest.image is None or not sizes.keys() <= {ROOT, EPHEMERAL, SWAP, CONFIG}:
            raise Failed(f"Guest {guest.uuid} has other disks than can be received: {', '.join(sizes)}.")
        backing: tuple[str, ...] = ()
        try:
            if not flat:
                cached = await self._cache.ensure(guest.image, images)
                await self._threads.run(lambda: _link(cached.path, here / BASE))
                if guest.image.disk_format != "iso":
                    backing = ("-F", cached.format, "-b", BASE)
            for name, size in sizes.items():
                if name == ROOT:
                    await self._create(here / ROOT, size, backing)
                else:
                    await self._blank(here / name, size, ())
        except OSError as error:
            raise disk_fault(error, here) from error

    async def receive(self, guest: GuestSpec) -> Path:
        """The guest's directory, for files that come; with a link to its image, if that is in the cache."""
        here = self.of(guest.uuid)
        try:
            await self._threads.run(lambda: _make_directory(here))
            image = None if guest.flat_root else guest.image
            cached = None if image is None else await self._cache.find(image)
            if cached is not None and not await self._threads.run((here / BASE).exists):
                await self._threads.run(lambda: _link(cached.path, here / BASE))
        except OSError as error:
            raise disk_fault(error, here) from error
        return here

    async def complete(self, guest: GuestSpec) -> None:
        """Make the empty disks that a guest has with its flavor, and had not before."""
        here, flavor = self.of(guest.uuid), guest.flavor
        iso = guest.image is not None and guest.image.disk_format == "iso"
        if iso and flavor.root_gb and not await self._threads.run((here / ROOT).exists):
            await self._create(here / ROOT, flavor.root_gb * GIB, ())
        await self._blank(here / EPHEMERAL, flavor.ephemeral_gb * GIB, _ext4(guest))
        await self._blank(here / SWAP, flavor.swap_mb * MIB, ("mkswap", "--label", "swap"))

    async def _root(self, guest: GuestSpec, images: ImageSource, here: Path) -> None:
        if guest.image is None:
            raise Failed(f"Guest {guest.uuid} has no image to start from.")
        root, base = here / ROOT, here / BASE
        iso = guest.image.disk_format == "iso"
        wanted = [base] if iso else [root]
        if iso and guest.flavor.root_gb:
            wanted.append(root)
        if await self._threads.run(lambda: all(path.exists() for path in wanted)):
            return
        cached = await self._cache.ensure(guest.image, images)
        size = _root_size(guest, cached)
        if guest.flat_root and not iso:
            await self._flatten(cached, root, size)
            return
        await self._threads.run(lambda: _link(cached.path, base))
        if not iso:
            # relative, so that the directory can be moved
            await self._create(root, size, ("-F", cached.format, "-b", BASE))
        elif root in wanted:
            await self._create(root, guest.flavor.root_gb * GIB, ())

    async def _flatten(self, image: CachedImage, root: Path, size: int) -> None:
        """A root disk that needs no base, for a server that outlives its image (Nova's bug 1732428)."""
        draft = root.with_name(root.name + NEW)
        convert = ("-f", image.format, "-O", "qcow2", str(image.path), draft.name)
        await programs.run("qemu-img", "convert", "-q", *convert, cwd=root.parent, timeout=CONVERT)
        if size > image.virtual_size:
            await programs.run(
                "qemu-img", "resize", "-q", "-f", "qcow2", draft.name, str(size), cwd=root.parent
            )
        await self._threads.run(lambda: settle(draft, root))

    async def _create(self, path: Path, size: int, backing: tuple[str, ...]) -> None:
        draft = path.with_name(path.name + NEW)
        await programs.run(
            "qemu-img", "create", "-q", "-f", "qcow2", *backing, draft.name, str(size), cwd=path.parent
        )
        await self._threads.run(lambda: settle(draft, path))

    async def _blank(self, path: Path, size: int, formatter: tuple[str, ...]) -> None:
        """A disk of zeros that takes no space, with what ``formatter`` writes on it."""
        if not size or await self._threads.run(path.exists):
            return
        draft = path.with_name(path.name + NEW)
        await self._threads.run(lambda: _zeros(draft, size))
        if formatter:
            await programs.run(*formatter, str(draft), timeout=120)
        await self._threads.run(lambda: settle(draft, path))

    async def discard(self, guest: str) -> None:
        """Remove all of a guest's files; none is no error.  Raises HostFault."""
        here = self.of(guest)
        try:
            await self._threads.run(lambda: _remove(here))
        except OSError as error:
            raise HostFault(f"The files of guest {guest} cannot be removed: {error}") from error


def _make_directory(here: Path) -> None:
    """QEMU has to get through it, others need not read it."""
    here.mkdir(mode=0o711, exist_ok=True)
    here.chmod(0o711)
    for draft in here.glob(f"*{NEW}"):
        draft.unlink(missing_ok=True)
    for tree in here.glob(".config-drive-*"):
        shutil.rmtree(tree)


def _link(source: Path, target: Path) -> None:
    """The image under a name in the guest's own directory: it stays when the cache forgets it."""
    target.unlink(missing_ok=True)  # of an attempt that got no further
    os.link(source, target)


def _root_size(guest: GuestSpec, image: CachedImage) -> int:
    """Bytes.  Raises Failed if the flavor's disk is smaller than the image's."""
    wanted = guest.flavor.root_gb * GIB
    if not wanted:
        return image.virtual_size
    if image.virtual_size > wanted:
        raise Failed(
            f"The disk of flavor '{guest.flavor.name}' ({guest.flavor.root_gb} GiB) is smaller than the "
            f"image's ({image.virtual_size / GIB:.2f} GiB)."
        )
    return wanted


def _ext4(guest: GuestSpec) -> tuple[str, ...]:
    """Ephemeral disks come with a file system, but for Windows, which formats them itself."""
    properties = guest.image.properties if guest.image else {}
    if properties.get("os_type") == "windows":
        return ()
    return ("mke2fs", "-q", "-F", "-t", "ext4", "-L", "ephemeral0")


def _zeros(path: Path, size: int) -> None:
    path.unlink(missing_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(handle, size)
    finally:
        os.close(handle)


def _remove(here: Path) -> None:
    if here.exists():
        shutil.rmtree(here)


def disk_fault(error: OSError, here: Path) -> HostFault:
    """What it means that a file in a guest's directory cannot be made."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return HostFault(f"The disk of this host is full: the files of guest {here.name} do not fit.")
    if error.errno == errno.EXDEV:
        return HostFault(
            f"The image cache and {here.parent} have to be on one file system: guests hold links to images."
        )
    return HostFault(f"The files of guest {here.name} cannot be made: {error}")
