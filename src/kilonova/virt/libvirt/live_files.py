"""Files in a live migration: what shows that a directory is shared, what is sent, and where it arrives.

Disks are filled by QEMU itself.  A CD that is the config drive, and the console's log so far, libvirt does
not send: they travel, packed, with the plan.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import zlib
from collections.abc import Mapping
from pathlib import Path

import msgspec

from kilonova.clock import SECOND
from kilonova.errors import Failed, HostFault, Invalid
from kilonova.virt.libvirt import qcow2
from kilonova.virt.libvirt.console import tail
from kilonova.virt.libvirt.disks import CONFIG, CONSOLE, DiskFile

MARK = ".incoming"  # in the directory of a guest that is being received
PROBE = re.compile(r"\.probe-[0-9a-f]{32}")
FORGOTTEN = 3600.0  # seconds after which a probe is of nobody
MOST_PACKED = 512 << 10  # bytes that go with a plan
MOST_UNPACKED = {CONFIG: 128 << 20, CONSOLE: 1 << 20}
CONSOLE_TAIL = 64 << 10


class Sizes(msgspec.Struct, frozen=True, kw_only=True):
    """Of what is sent, by file's name: bytes as the guest sees them, and as they are on this host's disk.

    ``flat_root``: the disk that it boots from has no image beneath it.
    """

    virtual: dict[str, int] = {}
    actual: dict[str, int] = {}
    flat_root: bool = False


# ---- is it shared? ----


def put_probe(directory: Path, now: int) -> str:
    """A file that nobody else makes; its name.  Those forgotten long before ``now`` (microseconds) go."""
    for old in directory.glob(".probe-*"):
        with contextlib.suppress(FileNotFoundError):
            if old.stat().st_mtime < now / SECOND - FORGOTTEN:
                old.unlink()
    name = f".probe-{secrets.token_hex(16)}"
    os.close(os.open(directory / name, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    return name


def probe_path(directory: Path, name: str) -> Path:
    """Raises Invalid for what is no probe's name: it comes from another host."""
    if not PROBE.fullmatch(name):
        raise Invalid(f"'{name}' is no file with which hosts find out what they share.")
    return directory / name


# ---- going ----


def sizes(files: list[DiskFile]) -> Sizes:
    """Of a guest's disks that are written to, and so have to be sent.  Raises HostFault, OSError."""
    virtual, actual, flat = {}, {}, False
    for file in files:
        if file.readonly:
            continue
        stat = file.path.stat()
        virtual[file.path.name], actual[file.path.name] = stat.st_size, stat.st_blocks * 512
        if file.format == "qcow2":
            head = qcow2.read_head(file.path)
            if head is None:
                raise HostFault(f"{file.path} is damaged.")
            virtual[file.path.name] = head.virtual_size
            flat = flat or (file.boot and not head.has_backing_file)
    return Sizes(virtual=virtual, actual=actual, flat_root=flat)


def pack(here: Path, files: list[DiskFile]) -> dict[str, bytes]:
    """What libvirt does not send, by name.  Raises HostFault if it is too much, OSError."""
    found: dict[str, bytes] = {}
    if any(file.path.name == CONFIG and file.readonly for file in files):
        found[CONFIG] = zlib.compress((here / CONFIG).read_bytes())
    log = tail(here / CONSOLE, CONSOLE_TAIL)
    if log:
        found[CONSOLE] = zlib.compress(log)
    size = sum(map(len, found.values()))
    if size > MOST_PACKED:
        raise HostFault(
            f"The config drive of guest {here.name} is too large to be sent along ({size >> 10} KiB packed, "
            f"at most {MOST_PACKED >> 10}): set [DEFAULT]config_drive_format to vfat, or migrate it cold."
        )
    return found


# ---- coming ----


def has_files(here: Path) -> bool:
    """Whether there is a directory that is not from a former try."""
    return here.exists() and not (here / MARK).exists()


def arrive(here: Path) -> None:
    """Make the directory of a guest that comes.

    One that is there is another's and kept, unless it is from a former try: then it is made anew, since its
    disks may be half filled.  Raises HostFault (MG-LM-12).
    """
    if here.exists():
        if has_files(here):
            raise HostFault(f"There is a directory {here} on the destination already; it is left alone.")
        shutil.rmtree(here)
    draft = here.with_name(f".{here.name}.new")
    if draft.exists():
        shutil.rmtree(draft)
    draft.mkdir(mode=0o711)
    (draft / MARK).touch(mode=0o600)
    draft.rename(here)


def unpack(here: Path, files: Mapping[str, bytes]) -> None:
    """Raises Failed for what nobody has packed."""
    for name, packed in files.items():
        most = MOST_UNPACKED.get(name)
        if most is None:
            raise Failed(f"'{name}' does not come with a guest.")
        content = zlib.decompressobj().decompress(packed, most + 1)
        if len(content) > most:
            raise Failed(f"'{name}' of guest {here.name} is too large.")
        path = here / name
        path.unlink(missing_ok=True)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())


def settled(here: Path) -> None:
    """The guest is here for good."""
    (here / MARK).unlink(missing_ok=True)


def free_bytes(directory: Path) -> int:
    found = os.statvfs(directory)
    return found.f_bavail * found.f_frsize
