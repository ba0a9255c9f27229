"""What every image service behind the Protocol does."""

from __future__ import annotations

import asyncio
import hashlib
import os
from typing import Any

import pytest

from kilonova.errors import NotFound
from kilonova.services.image.port import ImageService
from tests.contract.rigs import Rig, caller

DATA = os.urandom(3_000_001)


@pytest.fixture
def image(rig: Rig) -> ImageService:
    assert rig.image is not None
    return rig.image


async def stored(rig: Rig, data: bytes | None = DATA, who: str = "alice", **fields: Any) -> str:
    """The id of a new image; without ``data`` it has none yet."""
    body = {"name": "disk", "disk_format": "raw", "container_format": "bare", **fields}
    id = (await rig.rest("POST", "/v2/images", body, who)).expect(201).json["id"]
    if data is not None:
        path = f"/v2/images/{id}/file"
        (await rig.rest("PUT", path, data, who, content_type="application/octet-stream")).expect(204)
    return str(id)


async def whole(image: ImageService, id: str) -> bytes:
    return b"".join([piece async for piece in image.read(id)])


async def test_an_image_is_shown_as_it_was_made(rig: Rig, image: ImageService) -> None:
    id = await stored(rig, min_disk=2, min_ram=64, hw_disk_bus="scsi", os_distro="debian", own="\u00e9")
    found = await image.show(caller("alice"), id)
    assert (found.id, found.name, found.status, found.owner) == (id, "disk", "active", "alpha")
    assert (found.disk_format, found.container_format) == ("raw", "bare")
    assert (found.size, found.min_disk, found.min_ram) == (len(DATA), 2, 64)
    assert found.checksum == hashlib.md5(DATA).hexdigest()
    assert (found.hash_algo, found.hash_value) == ("sha512", hashlib.sha512(DATA).hexdigest())
    assert {"hw_disk_bus": "scsi", "os_distro": "debian", "own": "\u00e9"}.items() <= found.properties.items()


async def test_a_name_is_not_needed(rig: Rig, image: ImageService) -> None:
    body = {"disk_format": "qcow2", "container_format": "bare"}
    id = (await rig.rest("POST", "/v2/images", body, "alice")).expect(201).json["id"]
    found = await image.show(caller("alice"), id)
    assert (found.name, found.status, found.disk_format, found.size) == (None, "queued", "qcow2", 0)
    assert found.checksum is None and found.hash_value is None


async def test_who_sees_an_image(rig: Rig, image: ImageService) -> None:
    private = await stored(rig, b"x", visibility="private")
    public = await stored(rig, b"x", "admin", visibility="public")
    community = await stored(rig, b"x", visibility="community")
    shared = await stored(rig, b"x", visibility="shared")
    seen = {
        "alice": {private, public, community, shared},
        "reader": {private, public, community, shared},
        "bob": {public, community},
        "admin": {private, public, community, shared},
    }
    for who, ids in seen.items():
        for id in (private, public, community, shared):
            if id in ids:
                assert (await image.show(caller(who), id)).id == id
            else:
                with pytest.raises(NotFound):
                    await image.show(caller(who), id)
    (await rig.rest("POST", f"/v2/images/{shared}/members", {"member": "beta"}, "alice")).expect(200)
    assert (await image.show(caller("bob"), shared)).visibility == "shared"
    (await rig.rest("DELETE", f"/v2/images/{shared}/members/beta", None, "alice")).expect(204)
    with pytest.raises(NotFound):
        await image.show(caller("bob"), shared)


@pytest.mark.parametrize(
    "id",
    [
        "11111111-1111-4111-8111-111111111111",
        "",
        "no",
        "x" * 300,
        "../../etc/passwd",
        "\u00e9",
        "a b",
        "%2e%2e",
    ],
)
async def test_an_image_that_is_not_there(image: ImageService, id: str) -> None:
    for who in ("alice", "admin"):
        with pytest.raises(NotFound):
            await image.show(caller(who), id)
    with pytest.raises(NotFound):
        await whole(image, id)


async def test_the_bytes_come_in_pieces_and_whole(rig: Rig, image: ImageService) -> None:
    id = await stored(rig)
    pieces = [piece async for piece in image.read(id)]
    assert b"".join(pieces) == DATA
    assert len(pieces) > 1 and max(map(len, pieces)) <= 1 << 20, "never a whole image in memory"
    both = await asyncio.gather(*(whole(image, id) for _ in range(4)))
    assert set(both) == {DATA}


async def test_a_reader_may_stop_in_the_middle(rig: Rig, image: ImageService) -> None:
    id = await stored(rig)
    reading = image.read(id)
    assert await anext(reading)
    await reading.aclose()  # type: ignore[attr-defined]
    assert await whole(image, id) == DATA


async def test_there_are_no_bytes_before_they_are_stored(rig: Rig, image: ImageService) -> None:
    id = await stored(rig, None)
    with pytest.raises(NotFound):
        await whole(image, id)


async def test_a_deleted_image_is_gone_at_once(rig: Rig, image: ImageService) -> None:
    id = await stored(rig)
    (await rig.rest("DELETE", f"/v2/images/{id}", None, "alice")).expect(204)
    for who in ("alice", "admin"):
        with pytest.raises(NotFound):
            await image.show(caller(who), id)
    with pytest.raises(NotFound):
        await whole(image, id)


async def test_a_change_is_seen_at_once(rig: Rig, image: ImageService) -> None:
    id = await stored(rig, b"x", hw_disk_bus="scsi")
    await image.show(caller("alice"), id)
    changes = [
        {"op": "replace", "path": "/name", "value": "new"},
        {"op": "replace", "path": "/hw_disk_bus", "value": "virtio"},
        {"op": "add", "path": "/os_type", "value": "linux"},
    ]
    kind = "application/openstack-images-v2.1-json-patch"
    (await rig.rest("PATCH", f"/v2/images/{id}", changes, "alice", content_type=kind)).expect(200)
    found = await image.show(caller("alice"), id)
    assert (found.name, found.properties["hw_disk_bus"], found.properties["os_type"]) == (
        "new",
        "virtio",
        "linux",
    )
