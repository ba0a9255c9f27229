"""The head of a qcow2 file: enough to know its size and that it needs no other file."""

from __future__ import annotations

import struct
from pathlib import Path

import msgspec

MAGIC = b"QFI\xfb"
_HEADER = struct.Struct(">4sIQIIQI")
_DATA_FILE = 1 << 2  # incompatible feature: the data is in another file


class Qcow2Head(msgspec.Struct, frozen=True, kw_only=True):
    version: int
    virtual_size: int  # bytes
    has_backing_file: bool
    has_data_file: bool
    encrypted: bool


def read_head(path: Path) -> Qcow2Head | None:
    """None if the file is no qcow2 of version 2 or 3.  Raises OSError."""
    with path.open("rb") as file:
        head = file.read(104)
    if len(head) < 72 or not head.startswith(MAGIC):
        return None
    _, version, backing_at, _, _, size, crypt = _HEADER.unpack_from(head)
    if version not in (2, 3):
        return None
    features = 0
    if version == 3:
        if len(head) < 80:
            return None
        features = struct.unpack_from(">Q", head, 72)[0]
    return Qcow2Head(
        version=version,
        virtual_size=size,
        has_backing_file=backing_at != 0,
        has_data_file=bool(features & _DATA_FILE),
        encrypted=crypt != 0,
    )
