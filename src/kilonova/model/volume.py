"""Volumes of a server, as compute sees them."""

from __future__ import annotations

import msgspec

DISK_PREFIX = {"virtio": "vd", "scsi": "sd", "sata": "sd", "usb": "sd", "ide": "hd"}
"""Bus -> what the names of its disks begin with."""


class Connection(msgspec.Struct, frozen=True, kw_only=True):
    """How a host gets at a volume.

    ``kind`` is Cinder's ``driver_volume_type``; so far only ``file``: ``path`` is the volume's file, in
    ``format`` (raw or qcow2), where hosts that share its directory see it.
    """

    kind: str
    path: str
    format: str = "raw"


class Attachment(msgspec.Struct, frozen=True, kw_only=True):
    """A volume that a server has, or is about to have (Nova's block device mapping).

    ``id`` is the mapping's own (``bdm_uuid``), ``attachment_id`` the volume service's record of it, which is
    another one after a move.  ``device`` is the name of the disk (``/dev/vdb``), None while the server is on
    no host.  ``connection`` is that of the server's host; None: it is on none.
    """

    id: str
    volume_id: str
    attachment_id: str
    device: str | None = None
    size_gb: int = 0
    tag: str | None = None
    delete_on_termination: bool = False
    multiattach: bool = False
    connection: Connection | None = None
