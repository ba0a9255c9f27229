"""What the parts of the volume service hand to each other, and what they ask of others."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable
from typing import BinaryIO, Protocol

import msgspec

from kilonova.db.volumes import StoredVolume
from kilonova.errors import Conflict, HostFault, NotFound
from kilonova.model.context import RequestContext
from kilonova.model.image import Image

QUOTAS = {
    "volumes": 10,
    "gigabytes": 1000,
    "per_volume_gigabytes": -1,
    "snapshots": 10,
    "backups": 10,
    "backup_gigabytes": 1000,
    "groups": 10,
}
"""Cinder's own defaults; -1: any number."""


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What an operator may choose."""

    zone: str = "nova"
    quotas: dict[str, int] = msgspec.field(default_factory=QUOTAS.copy)


class Images(Protocol):
    """Where images come from: the image service."""

    async def show(self, context: RequestContext, image_id: str) -> Image:
        """Raises NotFound for an image that is not there or that the caller may not see."""

    def read(self, image_id: str) -> AsyncIterator[bytes]:
        """The stored bytes.  Raises NotFound."""


Inspect = Callable[[BinaryIO, str], int]
"""The virtual size in bytes of a disk of that format.  Raises Invalid for one that must not be opened."""


class NewVolume(msgspec.Struct, frozen=True, kw_only=True):
    """A volume that a user asks for; ``size_gb`` None: as large as what it is made from."""

    size_gb: int | None = None
    name: str | None = None
    description: str | None = None
    type: str | None = None  # name or id
    zone: str | None = None
    metadata: dict[str, str] = {}
    image_id: str | None = None
    source_volume: str | None = None


class InvalidVolume(Conflict):
    """A volume in a state in which this cannot be done."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"Invalid volume: {reason}")


class VolumeNotFound(NotFound):
    def __init__(self, volume_id: str) -> None:
        super().__init__(f"Volume {volume_id} could not be found.")


class AttachmentNotFound(NotFound):
    def __init__(self, attachment_id: str) -> None:
        super().__init__(
            f"Volume attachment could not be found with filter: attachment_id = {attachment_id}."
        )


class NoDirectory(HostFault):
    def __init__(self) -> None:
        super().__init__(
            "This controller keeps no volumes: set [volume]directory to a directory that all controllers and "
            "hosts see at the same path."
        )


def seen_by(volume: StoredVolume | None, volume_id: str, context: RequestContext) -> StoredVolume:
    """The volume, if it is the caller's or the caller an administrator.  Raises NotFound."""
    if volume is None or not (context.is_admin or volume.project_id == context.project_id):
        raise VolumeNotFound(volume_id)
    return volume


def new_id() -> str:
    """Of an attachment that somebody makes by the API."""
    return str(uuid.uuid4())
