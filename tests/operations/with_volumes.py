"""Servers that have volumes, and who has these at their service."""

from __future__ import annotations

from pathlib import Path

import msgspec

from kilonova.app import EmbeddedCloud
from kilonova.db import volume_attachments, volumes
from kilonova.operations import attach_volume, detach_volume
from kilonova.operations.attach_volume import Wish
from kilonova.services.volume.records import NewVolume
from kilonova.testing.embedded import member, server, settled


class Had(msgspec.Struct, frozen=True):
    """Who has a volume, and in which status that is."""

    volume: str  # its own status, in Cinder's words
    by: tuple[tuple[str | None, str], ...]  # host, status: of each attachment


async def new_volume(cloud: EmbeddedCloud) -> str:
    made = await cloud.volume.create(member(cloud), NewVolume(size_gb=1, name="v"))
    await cloud.volume.idle()
    return made.id


async def attached(cloud: EmbeddedCloud, uuid: str, volume_id: str | None = None) -> str:
    """The server has a volume; its id."""
    volume_id = volume_id or await new_volume(cloud)
    await attach_volume.submit(cloud.cloud, member(cloud), uuid, Wish(volume_id=volume_id))
    found = await settled(cloud, uuid)
    assert [each.volume_id for each in found.volumes][-1:] == [volume_id], found.fault
    return volume_id


async def detached(cloud: EmbeddedCloud, uuid: str, volume_id: str) -> None:
    await detach_volume.submit(cloud.cloud, member(cloud), uuid, volume_id)
    found = await settled(cloud, uuid)
    assert volume_id not in {each.volume_id for each in found.volumes}, found.fault


async def had(cloud: EmbeddedCloud, volume_id: str) -> Had:
    found = await cloud.db.read(lambda tx: volumes.show(tx, volume_id))
    there = await cloud.db.read(lambda tx: volume_attachments.of_volume(tx, volume_id))
    assert found is not None
    return Had(found.status, tuple((each.host, each.status) for each in there))


async def ids(cloud: EmbeddedCloud, uuid: str) -> set[str]:
    """The attachments of a server."""
    return {each.attachment_id for each in (await server(cloud, uuid)).volumes}


def file_of(cloud: EmbeddedCloud, volume_id: str) -> Path:
    return cloud.state.path / "volumes" / volume_id
