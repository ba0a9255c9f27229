"""Guests' files that move while the guest is off: put aside, taken back, sent, adopted, and made larger.

What is put aside is a directory of another name, ``UUID_resize`` as in Nova, with everything in it.
"""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

from kilonova import programs
from kilonova.errors import Failed, HostFault
from kilonova.fsync import fsync_directory
from kilonova.rpc.messages import GuestSpec
from kilonova.threads import Threads
from kilonova.virt.libvirt import qcow2
from kilonova.virt.libvirt.disks import (
    BASE,
    CONFIG,
    CONSOLE,
    CONVERT,
    EPHEMERAL,
    GIB,
    MIB,
    NEW,
    ROOT,
    SWAP,
    GuestFiles,
    disk_fault,
)
from kilonova.virt.libvirt.files import settle

PARKED = "_resize"
TRAVELLING = (BASE, ROOT, EPHEMERAL, CONFIG, CONSOLE)
"""What a guest needs of its files elsewhere; its swap is made anew."""


class ParkedFiles:
    """Verbs of virt.moving.MovingDriver, for files only."""

    def __init__(self, files: GuestFiles, threads: Threads) -> None:
        self._files = files
        self._threads = threads

    def of(self, uuid: str) -> Path:
        here = self._files.of(uuid)
        return here.with_name(here.name + PARKED)

    async def check_room(self, guest: GuestSpec) -> None:
        here = self._files.of(guest.uuid)
        if await self._threads.run(here.exists):
            raise HostFault(f"There are files of guest {guest.uuid} on this host already: {here}.")

    async def park(self, uuid: str) -> None:
        await self._threads.run(lambda: _park(self._files.of(uuid), self.of(uuid)))

    async def unpark(self, uuid: str) -> None:
        await self._threads.run(lambda: _unpark(self._files.of(uuid), self.of(uuid)))

    async def drop(self, uuid: str) -> None:
        parked = self.of(uuid)
        try:
            await self._threads.run(lambda: _remove(parked))
        except OSError as error:
            raise HostFault(f"The files in {parked} cannot be removed: {error}") from error

    async def travelling(self, uuid: str) -> tuple[Path, ...]:
        parked = self.of(uuid)
        return await self._threads.run(lambda: _travelling(parked))

    async def adopt(self, guest: GuestSpec) -> None:
        """Copies, as those that were put aside are what a revert goes back to; the image stays a link."""
        here = await self._files.receive(guest)
        try:
            for path in await self.travelling(guest.uuid):
                await self._adopt(path, here / path.name)
        except OSError as error:
            raise disk_fault(error, here) from error
        except programs.ProgramFailed as error:
            if "No space left on device" in error.stderr:
                raise disk_fault(OSError(errno.ENOSPC, error.stderr), here) from error
            raise

    async def _adopt(self, source: Path, target: Path) -> None:
        if await self._threads.run(target.exists):
            return
        if source.name == BASE:
            await self._threads.run(lambda: os.link(source, target))
            return
        draft = target.with_name(target.name + NEW)
        copy = ("--reflink=auto", "--sparse=always", "--no-target-directory")
        await programs.run("cp", *copy, str(source), str(draft), timeout=CONVERT)
        await self._threads.run(lambda: settle(draft, target))

    async def fit(self, guest: GuestSpec) -> None:
        """Raises Failed for a disk that would have to shrink."""
        here, flavor = self._files.of(guest.uuid), guest.flavor
        try:
            await self._fit_root(here / ROOT, flavor.root_gb * GIB)
            await self._threads.run(lambda: _grow(here / EPHEMERAL, flavor.ephemeral_gb * GIB))
            await self._threads.run(lambda: _drop_other(here / SWAP, flavor.swap_mb * MIB))
            await self._files.complete(guest)
        except OSError as error:
            raise disk_fault(error, here) from error

    async def _fit_root(self, root: Path, wanted: int) -> None:
        if not wanted or not await self._threads.run(root.exists):
            return
        head = await self._threads.run(lambda: qcow2.read_head(root))
        if head is None:
            raise HostFault(f"{root} is no disk that can be resized.")
        if head.virtual_size > wanted:
            raise _shrinking(root, head.virtual_size, wanted)
        if head.virtual_size < wanted:
            await programs.run(
                "qemu-img", "resize", "-q", "-f", "qcow2", root.name, str(wanted), cwd=root.parent
            )


def _park(here: Path, parked: Path) -> None:
    if not here.exists():
        if parked.exists():
            return
        raise HostFault(f"There are no files of guest {here.name} on this host: no {here}.")
    if parked.exists():
        raise HostFault(f"Files of guest {here.name} were put aside here before: {parked} is in the way.")
    here.rename(parked)
    fsync_directory(here.parent)


def _unpark(here: Path, parked: Path) -> None:
    if not parked.exists():
        if here.exists():
            return
        raise HostFault(f"There are no files of guest {here.name} on this host: no {parked}.")
    _remove(here)
    parked.rename(here)
    fsync_directory(here.parent)


def _remove(path: Path) -> None:
    if path.exists():
        shutil.rmtree(path)


def _travelling(parked: Path) -> tuple[Path, ...]:
    if not parked.exists():
        raise HostFault(f"No files were put aside on this host: there is no {parked}.")
    return tuple(path for name in TRAVELLING if (path := parked / name).exists())


def _grow(path: Path, size: int) -> None:
    if not path.exists():
        return
    now = path.stat().st_size
    if now > size:
        raise _shrinking(path, now, size)
    if now < size:
        os.truncate(path, size)


def _drop_other(path: Path, size: int) -> None:
    """What a guest has swapped out is worth nothing when it is off: another size is made anew."""
    if path.exists() and path.stat().st_size != size:
        path.unlink()


def _shrinking(path: Path, now: int, wanted: int) -> Failed:
    return Failed(f"{path.name} has {now} bytes, and cannot be made smaller, to {wanted}.")
