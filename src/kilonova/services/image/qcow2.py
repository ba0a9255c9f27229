"""The header of a qcow2 file, as far as it decides whether a stranger's file may be opened.

Offsets and meanings are those of QEMU's docs/interop/qcow2.txt.  A file that names another file (a
backing file, an external data file) would let its owner read that file on the host.
"""

from __future__ import annotations

import struct

from kilonova.errors import Invalid

MAGIC = b"QFI\xfb"
FIRST_READ = 2 << 20  # the largest cluster there is; the header and its extensions are in the first one

_V2 = struct.Struct(">4sIQIIQIIQQIIQ")
_V3 = struct.Struct(">QQQII")
_EXTENSION = struct.Struct(">II")

_CORRUPT = 1 << 1
_EXTERNAL_DATA = 1 << 2
_COMPRESSION_TYPE = 1 << 3
_EXTENDED_L2 = 1 << 4
_KNOWN_FEATURES = (1 << 0) | _CORRUPT | _EXTERNAL_DATA | _COMPRESSION_TYPE | _EXTENDED_L2

_EXTENSION_END = 0
_EXTENSION_DATA_FILE = 0x44415441
_MAX_L1_ENTRIES = (32 << 20) // 8
_MAX_REFCOUNT_TABLE = 8 << 20
_MAX_SNAPSHOTS = 65536
_MAX_SIZE = 1 << 62


class UnsafeImage(Invalid):
    """The file is not what it is said to be, or must not be opened on a host."""


def virtual_size(head: bytes, file_size: int) -> int:
    """The size in bytes of the disk inside.

    ``head`` is the beginning of the file, FIRST_READ bytes or all of it.  Raises UnsafeImage.
    """
    if len(head) < _V2.size:
        raise UnsafeImage("The qcow2 header is cut off.")
    fields = _V2.unpack_from(head)
    magic, version, backing_offset, _, cluster_bits, size, crypt = fields[:7]
    l1_size, l1_offset, refcount_offset, refcount_clusters, snapshots, _ = fields[7:]
    if magic != MAGIC or version not in (2, 3):
        raise UnsafeImage("The file has no qcow2 header of version 2 or 3.")
    if backing_offset:
        raise UnsafeImage("The qcow2 file has a backing file; flatten it with 'qemu-img convert'.")
    if crypt:
        raise UnsafeImage("The qcow2 file is encrypted.")
    if not 9 <= cluster_bits <= 21 or snapshots > _MAX_SNAPSHOTS:
        raise UnsafeImage("The qcow2 header has impossible values.")
    cluster = 1 << cluster_bits
    length, extended = _version_3(head, cluster) if version == 3 else (_V2.size, False)
    _check_extensions(head, length, cluster)
    _check_table("L1 table", l1_offset, l1_size * 8, cluster, file_size)
    _check_table("reference count table", refcount_offset, refcount_clusters * cluster, cluster, file_size)
    if not refcount_offset or refcount_clusters * cluster > _MAX_REFCOUNT_TABLE:
        raise UnsafeImage("The qcow2 reference count table has an impossible size.")
    _check_size(size, l1_size, cluster * (cluster // (16 if extended else 8)))
    return int(size)


def _check_size(size: int, l1_size: int, per_entry: int) -> None:
    if not 0 < size < _MAX_SIZE:
        raise UnsafeImage(f"A virtual disk of {size} bytes is not possible.")
    if not -(-size // per_entry) <= l1_size <= _MAX_L1_ENTRIES:
        raise UnsafeImage("The qcow2 L1 table does not fit the size of the disk.")


def _version_3(head: bytes, cluster: int) -> tuple[int, bool]:
    """Check what version 3 added; gives the length of the header, and whether L2 entries are extended."""
    if len(head) < _V2.size + _V3.size:
        raise UnsafeImage("The qcow2 header is cut off.")
    features, _, _, refcount_order, length = _V3.unpack_from(head, _V2.size)
    if features & _EXTERNAL_DATA:
        raise UnsafeImage("The qcow2 file keeps its data in another file.")
    if features & _CORRUPT:
        raise UnsafeImage("The qcow2 file is marked as corrupt; repair it with 'qemu-img check -r all'.")
    if features & ~_KNOWN_FEATURES:
        raise UnsafeImage(f"The qcow2 file needs unknown features ({features & ~_KNOWN_FEATURES:#x}).")
    if refcount_order > 6:
        raise UnsafeImage("The qcow2 reference counts have an impossible width.")
    if length < 104 or length % 8 or length > min(cluster, len(head)):
        raise UnsafeImage(f"A qcow2 header of {length} bytes is not possible.")
    if features & _COMPRESSION_TYPE and (length < 105 or head[104] not in (0, 1)):
        raise UnsafeImage("The qcow2 file is compressed in an unknown way.")
    extended = bool(features & _EXTENDED_L2)
    if extended and cluster < 1 << 14:
        raise UnsafeImage("qcow2 subclusters need clusters of at least 16 KiB.")
    return length, extended


def _check_extensions(head: bytes, start: int, cluster: int) -> None:
    end = min(cluster, len(head))
    while start + _EXTENSION.size <= end:
        kind, length = _EXTENSION.unpack_from(head, start)
        if kind == _EXTENSION_END:
            return
        if kind == _EXTENSION_DATA_FILE:
            raise UnsafeImage("The qcow2 file names an external data file.")
        start += _EXTENSION.size + -(-length // 8) * 8
        if start > end:
            raise UnsafeImage("A qcow2 header extension runs over the end of the header.")


def _check_table(name: str, offset: int, length: int, cluster: int, file_size: int) -> None:
    if offset % cluster:
        raise UnsafeImage(f"The qcow2 {name} is not aligned to a cluster.")
    if offset + length > -(-file_size // cluster) * cluster:
        raise UnsafeImage(f"The qcow2 {name} lies beyond the end of the file: is the file cut off?")
