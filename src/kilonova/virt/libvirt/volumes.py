"""The directory of volumes as this host sees it: the only files that a controller can have QEMU open.

Who has made a volume keeps it, and QEMU gets it as its group, when it is first attached and for good.
libvirt itself would make it QEMU's own, and root's again whenever a guest ends, also while it is in use at
another host: it is told to leave that alone.
"""

from __future__ import annotations

import errno
import os
import stat
import uuid
from pathlib import Path
from typing import Literal

import msgspec
from msgspec.structs import replace

from kilonova import programs
from kilonova.errors import HostFault
from kilonova.model.volume import Attachment
from kilonova.threads import Threads
from kilonova.virt.libvirt import qcow2
from kilonova.virt.volumes import connection_of, out_of_reach

OWNER, GROUP, OTHERS = 0o600, 0o060, 0o006  # may read and write
THREADS = 4  # of its own: a server of files that hangs holds up no guest without volumes


When = Literal["looking", "starting", "arriving"]
"""What a volume is wanted for.  While another host's QEMU has it (arriving), nothing is changed of its file,
and who only looks changes nothing."""


class QemuUser(msgspec.Struct, frozen=True):
    """Whom libvirt runs QEMU as here."""

    uid: int
    gid: int

    def __str__(self) -> str:
        return f"user {self.uid} of group {self.gid}"


class Mode(msgspec.Struct, frozen=True):
    """Whose a file is, and who may do what with it."""

    uid: int
    gid: int
    bits: int

    @property
    def is_given(self) -> bool:
        """Its group may read and write it: it is a QEMU's."""
        return self.bits & GROUP == GROUP

    def lets(self, user: QemuUser) -> bool:
        """Whether its bits let that user read and write it."""
        if user.uid in (0, self.uid):
            return user.uid == 0 or self.bits & OWNER == OWNER
        return self.is_given if user.gid == self.gid else self.bits & OTHERS == OTHERS


class VolumeFile(msgspec.Struct, frozen=True, kw_only=True):
    """A volume that this host can use.  ``cache`` is QEMU's cache mode; ``owned``: QEMU may open the file as
    it is, and libvirt is to leave its owner alone."""

    volume: Attachment
    path: Path
    format: str
    cache: str = "none"
    owned: bool = True


class VolumeDirectory:
    """``path`` None: this host has none, and no guest with volumes."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._threads = Threads("libvirt-volumes", THREADS)

    def close(self) -> None:
        self._threads.close()

    async def usable(
        self, volumes: tuple[Attachment, ...], user: QemuUser | None, when: When
    ) -> tuple[VolumeFile, ...]:
        """These volumes, ready for QEMU unless we are only looking.

        Raises HostFault that names the first that this host cannot use.
        """

        return tuple([await self._usable(volume, user, when) for volume in volumes])

    async def _usable(self, volume: Attachment, user: QemuUser | None, when: When) -> VolumeFile:
        file, mode = await self._threads.run(lambda: self._seen(volume))
        if user is None or when == "looking" or await _may_open(file.path, mode, user):
            return replace(file, owned=user is not None)
        if when == "arriving" or (volume.multiattach and mode.is_given):
            raise HostFault(
                f"Volume {volume.volume_id} cannot be had on this host: QEMU, which is {user} here, may not "
                f"read and write {file.path}. Hosts that share volumes have to run QEMU as the same user and "
                "group."
            )
        try:
            await self._threads.run(lambda: _give(file.path, user))
        except OSError as error:
            raise HostFault(
                f"Volume {volume.volume_id} cannot be given to QEMU, which is {user} on this host: "
                f"{file.path}: {error.strerror}. Let that user read and write it."
            ) from error
        return file

    def _seen(self, volume: Attachment) -> tuple[VolumeFile, Mode]:
        path, kind = self._allowed(volume), connection_of(volume).format
        try:
            found = path.lstat()
            if not stat.S_ISREG(found.st_mode):
                raise out_of_reach(volume, f"{path} is no file with data")
            if kind == "qcow2":
                _check_alone(volume, path)
            cache = cache_mode(path)
        except FileNotFoundError as error:
            raise out_of_reach(volume, f"there is no {path}") from error
        except OSError as error:
            raise out_of_reach(volume, f"{path} cannot be looked at: {error.strerror}") from error
        mode = Mode(found.st_uid, found.st_gid, found.st_mode)
        return VolumeFile(volume=volume, path=path, format=kind, cache=cache), mode

    def _allowed(self, volume: Attachment) -> Path:
        """Raises HostFault for what is not the volume's own file in our directory."""
        connection = connection_of(volume)
        if connection.kind != "file" or connection.format not in ("raw", "qcow2"):
            raise HostFault(
                f"Volume {volume.volume_id} is reached as '{connection.kind}' in the format "
                f"'{connection.format}': this host knows files, raw or qcow2."
            )
        if self._path is None:
            raise HostFault(
                f"Volume {volume.volume_id} cannot be had on this host, which has no directory of volumes: "
                "set [volume]directory to the one that is shared."
            )
        own = self._path / _file_name(volume.volume_id)
        if connection.path != str(own):
            raise HostFault(
                f"Volume {volume.volume_id} is said to be {connection.path}, and on this host it could be "
                f"{own} only: [volume]directory has to be the same on controllers and hosts."
            )
        return own


def _file_name(volume_id: str) -> str:
    """Raises HostFault for what is no uuid in its usual form."""
    try:
        if str(uuid.UUID(volume_id)) == volume_id:
            return volume_id
    except ValueError:
        pass
    raise HostFault(f"'{volume_id}' is no volume's uuid.")


def _check_alone(volume: Attachment, path: Path) -> None:
    """What a guest has written must not have QEMU open other files.  Raises HostFault, OSError."""
    head = qcow2.read_head(path)
    if head is None or head.has_backing_file or head.has_data_file:
        raise HostFault(f"Volume {volume.volume_id} is no qcow2 that needs no other file: {path}.")


def cache_mode(path: Path) -> str:
    """none where the file can be opened past the page cache (safe for migration), else writeback."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        return "writeback" if error.errno == errno.EINVAL else "none"  # others: for QEMU to find out
    os.close(handle)
    return "none"


async def _may_open(path: Path, mode: Mode, user: QemuUser) -> bool:
    """Whether QEMU may read and write it.  Where its mode does not say so, there may be lists of who may, or
    a server that takes all for one: then somebody who is that user tries."""
    if mode.lets(user):
        return True
    who = (f"--reuid={user.uid}", f"--regid={user.gid}", "--clear-groups")
    try:
        await programs.run("setpriv", *who, "test", "-r", str(path), "-a", "-w", str(path))
    except programs.ProgramFailed:
        return False
    return True


def _give(path: Path, user: QemuUser) -> None:
    """Raises OSError."""
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        os.fchown(handle, -1, user.gid)
        os.fchmod(handle, stat.S_IMODE(os.fstat(handle).st_mode) | GROUP)
    finally:
        os.close(handle)
