"""What the image service answers: images, members, versions."""

from __future__ import annotations

from typing import Any

from kilonova.clock import iso_z
from kilonova.db.images import StoredImage, StoredMember

# Glance's numbers, but for those that mean several stores (2.8, 2.11, 2.12).
_MINORS = (17, 16, 15, 14, 13, 10, 9, 7, 6, 5, 4, 3, 2, 1, 0)


def image(stored: StoredImage) -> dict[str, Any]:
    """The image, its own properties flat beside the fields."""
    at = f"/v2/images/{stored.id}"
    return {
        **stored.properties,
        "id": stored.id,
        "name": stored.name,
        "status": stored.status,
        "visibility": stored.visibility,
        "owner": stored.owner,
        "disk_format": stored.disk_format,
        "container_format": stored.container_format,
        "size": stored.size,
        "virtual_size": stored.virtual_size,
        "checksum": stored.checksum,
        "os_hash_algo": stored.hash_algo,
        "os_hash_value": stored.hash_value,
        "min_disk": stored.min_disk,
        "min_ram": stored.min_ram,
        "protected": stored.protected,
        "os_hidden": stored.hidden,
        "tags": list(stored.tags),
        "created_at": iso_z(stored.created_at),
        "updated_at": iso_z(stored.updated_at),
        "self": at,
        "file": at + "/file",
        "schema": "/v2/schemas/image",
    }


def member(stored: StoredMember) -> dict[str, Any]:
    return {
        "image_id": stored.image_id,
        "member_id": stored.member,
        "status": stored.status,
        "created_at": iso_z(stored.created_at),
        "updated_at": iso_z(stored.updated_at),
        "schema": "/v2/schemas/member",
    }


def members(stored: list[StoredMember]) -> dict[str, Any]:
    return {"members": [member(each) for each in stored], "schema": "/v2/schemas/members"}


def versions(root_url: str) -> dict[str, Any]:
    link = [{"rel": "self", "href": root_url.rstrip("/") + "/v2/"}]
    return {
        "versions": [
            {"id": f"v2.{minor}", "status": "SUPPORTED" if place else "CURRENT", "links": link}
            for place, minor in enumerate(_MINORS)
        ]
    }
