"""Images as compute needs them."""

from __future__ import annotations

import msgspec


class Image(msgspec.Struct, frozen=True, kw_only=True):
    """What the image service says of an image; ``properties`` are its own ``hw_*``, ``os_*`` and so on."""

    id: str
    name: str | None = None
    status: str = "active"
    disk_format: str = "qcow2"
    container_format: str = "bare"
    size: int = 0
    virtual_size: int | None = None
    min_disk: int = 0
    min_ram: int = 0
    checksum: str | None = None
    hash_algo: str | None = None
    hash_value: str | None = None
    owner: str | None = None
    visibility: str = "private"
    properties: dict[str, str] = {}
