"""What the rest of the house asks of a volume service."""

from __future__ import annotations

from typing import Protocol

import msgspec

from kilonova.model.context import RequestContext
from kilonova.model.volume import Connection


class VolumeInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A volume as its service shows it.  ``status`` in Cinder's words."""

    id: str
    name: str
    size_gb: int
    status: str
    availability_zone: str
    multiattach: bool = False
    bootable: bool = False
    image_metadata: dict[str, str] = {}
    servers: tuple[str, ...] = ()  # which it is attached to, or reserved for


class VolumeService(Protocol):
    """Every verb but ``check`` converges: asking twice does no more than asking once.

    All raise TryAgain when the service does not answer.
    """

    async def check(self, context: RequestContext, volume_id: str) -> VolumeInfo:
        """The volume, if the caller may use it.  Raises NotFound."""

    async def reserve(
        self, context: RequestContext, volume_id: str, instance_uuid: str, attachment_id: str
    ) -> VolumeInfo:
        """Keep a volume for a server: nobody else gets it from now on, unless it is multiattach.

        ``attachment_id`` names the record.  A server that has the volume may reserve it once more, to move.
        Raises NotFound, Conflict for one that is in use or not available.
        """

    async def connect(self, attachment_id: str, host: str, device: str | None) -> Connection:
        """Have a host reach the reserved volume.

        Raises NotFound, HostFault when it cannot be reached from there, as far as the service can tell; the
        host itself may find that it cannot.
        """

    async def complete(self, attachment_id: str) -> None:
        """The server has it now; the volume is in use.  Raises NotFound."""

    async def release(self, attachment_id: str) -> None:
        """Forget that record; the volume is available again with the last of them.  None is no error."""

    async def release_all(self, volume_id: str, instance_uuid: str) -> None:
        """Forget all records of a server's having the volume: the server is gone.  None is no error."""

    async def begin_detaching(self, context: RequestContext, volume_id: str) -> None:
        """It is about to be taken from its server.  Raises NotFound, Conflict if it is not in use."""

    async def roll_detaching(self, volume_id: str) -> None:
        """It stays in use after all.  None is no error."""

    async def delete(self, volume_id: str) -> None:
        """Delete a volume with its server (``delete_on_termination``).  None is no error."""
