"""What an uploaded file really is.  Decided from its bytes alone, before any other program opens it."""

from __future__ import annotations

import struct
from typing import BinaryIO

import msgspec

from kilonova.services.image.qcow2 import FIRST_READ, MAGIC, UnsafeImage, virtual_size

__all__ = ["FORMATS", "Inspection", "UnsafeImage", "detect", "inspect"]

FORMATS = ("raw", "qcow2", "iso")

_SECTOR = 512
_ISO_AT = 16 * 2048 + 1
_GPT_PROTECTIVE = 0xEE

# format, offset, bytes that stand there
_MAGICS: tuple[tuple[str, int, bytes], ...] = (
    ("qcow2", 0, MAGIC),
    ("qed", 0, b"QED\0"),
    ("vmdk", 0, b"KDMV"),
    ("vmdk", 0, b"COWD"),
    ("vdi", 0x40, b"\x7f\x10\xda\xbe"),
    ("vhdx", 0, b"vhdxfile"),
    ("vhd", 0, b"conectix"),
    ("luks", 0, b"LUKS\xba\xbe"),
    ("parallels", 0, b"WithoutFreeSpace"),
    ("parallels", 0, b"WithouFreSpacExt"),
    ("bochs", 0, b"Bochs Virtual HD Image"),
)
_VMDK_DESCRIPTOR = b"# disk descriptorfile"


class Inspection(msgspec.Struct, frozen=True):
    """``format`` is one of FORMATS; ``table`` the partition table of a raw disk: "gpt", "mbr" or None."""

    format: str
    virtual_size: int
    table: str | None = None


def inspect(file: BinaryIO, declared: str) -> Inspection:
    """Look at ``file`` and agree that it is of the format ``declared``.

    Raises UnsafeImage when it is not, or when a host must not open it; OSError when it cannot be read.
    """
    size = file.seek(0, 2)
    file.seek(0)
    head = file.read(FIRST_READ)
    found = _foreign(file, head, size)
    if declared not in FORMATS:
        raise UnsafeImage(f"The disk format {declared} is not supported; {', '.join(FORMATS)} are.")
    if declared == "qcow2":
        if found != ["qcow2"]:
            raise UnsafeImage(f"The image is declared as qcow2, but its content is {_named(found, head)}.")
        return Inspection("qcow2", virtual_size(head, size))
    if found:
        raise UnsafeImage(
            f"The image is declared as {declared}, but its content is {_named(found, head)};"
            " declare it as what it is, or convert it with 'qemu-img convert'."
        )
    if declared == "iso":
        if not _is_iso(head):
            raise UnsafeImage("The image is declared as iso, but it has no ISO 9660 volume descriptor.")
        return Inspection("iso", size, _partition_table(head))
    return Inspection("raw", size, _partition_table(head))


def detect(file: BinaryIO) -> str:
    """The format of a file: one of FORMATS, or the name of one that is not supported."""
    size = file.seek(0, 2)
    file.seek(0)
    head = file.read(FIRST_READ)
    found = _foreign(file, head, size)
    return found[0] if found else "iso" if _is_iso(head) else "raw"


def _foreign(file: BinaryIO, head: bytes, size: int) -> list[str]:
    """The formats other than raw and iso whose marks the file bears."""
    found = [name for name, at, magic in _MAGICS if head[at : at + len(magic)] == magic]
    if head[:_SECTOR].lstrip().lower().startswith(_VMDK_DESCRIPTOR):
        found.append("vmdk")
    if "vhd" not in found and size >= _SECTOR:
        file.seek(size - _SECTOR)
        if file.read(8) == b"conectix":
            found.append("vhd")  # a fixed one has its footer only
    return list(dict.fromkeys(found))


def _is_iso(head: bytes) -> bool:
    return head[_ISO_AT : _ISO_AT + 5] == b"CD001"


def _partition_table(head: bytes) -> str | None:
    if len(head) < _SECTOR or head[510:512] != b"\x55\xaa":
        return None
    entries = [struct.unpack_from("<B3xB3xII", head, 446 + 16 * index) for index in range(4)]
    if any(kind == _GPT_PROTECTIVE for _, kind, _, _ in entries):
        return "gpt" if any(head[at : at + 8] == b"EFI PART" for at in (512, 4096)) else "mbr"
    if all(boot in (0, 0x80) for boot, _, _, _ in entries) and any(kind for _, kind, _, _ in entries):
        return "mbr"
    return None


def _named(found: list[str], head: bytes) -> str:
    if found:
        return " and ".join(found)
    return "iso" if _is_iso(head) else "raw"
