"""What the volume service answers, by microversion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kilonova.clock import iso_micro
from kilonova.db.volume_attachments import StoredAttachment
from kilonova.db.volume_types import VolumeType
from kilonova.db.volumes import StoredVolume
from kilonova.services.volume.microversion import MAX, MIN

HOST = "kilonova@files#files"
"""Where volumes are, in Cinder's form: they are all in one directory."""


def links(root_url: str, project_id: str | None, kind: str, id: str) -> list[dict[str, str]]:
    root = root_url.rstrip("/")
    middle = f"/{project_id}" if project_id else ""
    return [
        {"rel": "self", "href": f"{root}/v3{middle}/{kind}/{id}"},
        {"rel": "bookmark", "href": f"{root}{middle}/{kind}/{id}"},
    ]


def attached(attachment: StoredAttachment, *, admin: bool) -> dict[str, Any]:
    """An attachment within its volume."""
    moment = attachment.attached_at
    return {
        "id": attachment.volume_id,
        "attachment_id": attachment.id,
        "volume_id": attachment.volume_id,
        "server_id": attachment.instance_uuid,
        "host_name": attachment.host if admin else None,
        "device": attachment.device,
        "attached_at": None if moment is None else iso_micro(moment),
    }


def volume(
    stored: StoredVolume,
    there: Sequence[StoredAttachment],
    types: dict[str, str],
    version: int,
    *,
    root_url: str,
    admin: bool,
) -> dict[str, Any]:
    """All of a volume; ``types`` has the names of types by id."""
    shown: dict[str, Any] = {
        "id": stored.id,
        "name": stored.name,
        "description": stored.description,
        "status": stored.status,
        "size": stored.size_gb,
        "availability_zone": stored.zone,
        "created_at": iso_micro(stored.created_at),
        "updated_at": iso_micro(stored.updated_at),
        "attachments": [attached(each, admin=admin) for each in there if each.status == "attached"],
        "volume_type": types.get(stored.type_id),
        "snapshot_id": None,
        "source_volid": stored.source_volume,
        "metadata": stored.metadata,
        "links": links(root_url, stored.project_id, "volumes", stored.id),
        "user_id": stored.user_id,
        "bootable": "true" if stored.bootable else "false",
        "encrypted": False,
        "replication_status": None,
        "consistencygroup_id": None,
        "multiattach": stored.multiattach,
        "os-vol-tenant-attr:tenant_id": stored.project_id,
    }
    if stored.image_metadata:
        shown["volume_image_metadata"] = stored.image_metadata
    if admin:
        shown |= {
            "os-vol-host-attr:host": HOST,
            "os-vol-mig-status-attr:migstat": None,
            "os-vol-mig-status-attr:name_id": None,
            "migration_status": None,
        }
    return shown | _later(stored, version, admin)


def _later(stored: StoredVolume, version: int, admin: bool) -> dict[str, Any]:
    """What came with microversions."""
    fields = (
        (13, True, "group_id", None),
        (21, admin, "provider_id", None),
        (48, True, "shared_targets", None if version >= 69 else False),
        (48, True, "service_uuid", None),
        (61, admin, "cluster_name", None),
        (63, True, "volume_type_id", stored.type_id),
        (65, True, "consumes_quota", True),
    )
    return {name: value for since, shown, name, value in fields if shown and version >= since}


def attachment(stored: StoredAttachment, *, whole: bool) -> dict[str, Any]:
    """An attachment by itself, in Cinder's shape."""
    shown: dict[str, Any] = {
        "id": stored.id,
        "status": stored.status,
        "instance": stored.instance_uuid,
        "volume_id": stored.volume_id,
    }
    if whole:
        moment = stored.attached_at
        shown |= {
            "attached_at": "" if moment is None else iso_micro(moment),
            "detached_at": "",
            "attach_mode": stored.mode,
            "connection_info": connection_info(stored),
        }
    return shown


def connection_info(stored: StoredAttachment) -> dict[str, Any]:
    found = stored.connection
    if found is None:
        return {}
    return {
        "driver_volume_type": found.kind,
        "device_path": found.path,
        "format": found.format,
        "access_mode": stored.mode,
        "encrypted": False,
        "volume_id": stored.volume_id,
        "attachment_id": stored.id,
    }


def volume_type(kind: VolumeType, *, admin: bool) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "id": kind.id,
        "name": kind.name,
        "description": kind.description,
        "is_public": kind.is_public,
        "os-volume-type-access:is_public": kind.is_public,
        "extra_specs": kind.extra_specs if admin else _user_visible(kind.extra_specs),
    }
    if admin:
        shown["qos_specs_id"] = None
    return shown


def _user_visible(specs: dict[str, str]) -> dict[str, str]:
    """Cinder shows these to everybody."""
    shown = ("multiattach", "replication_enabled", "RESKEY:availability_zones")
    return {name: value for name, value in specs.items() if name in shown}


def versions(root_url: str) -> dict[str, Any]:
    return {
        "versions": [
            {
                "id": "v3.0",
                "status": "CURRENT",
                "version": f"3.{MAX}",
                "min_version": f"3.{MIN}",
                "updated": "2023-08-31T00:00:00Z",
                "links": [{"rel": "self", "href": root_url.rstrip("/") + "/v3/"}],
                "media-types": [
                    {"base": "application/json", "type": "application/vnd.openstack.volume+json;version=3"}
                ],
            }
        ]
    }
