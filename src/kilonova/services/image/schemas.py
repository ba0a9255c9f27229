"""JSON schemas of what the image service answers; python-glanceclient reads them before it writes."""

from __future__ import annotations

from typing import Any

from kilonova.services.image.fields import (
    CONTAINERS,
    MAX_NAME,
    MEMBER_STATUSES,
    READ_ONLY,
    STATUSES,
    VISIBILITIES,
)
from kilonova.services.image.inspect import FORMATS

_UUID = "^([0-9a-fA-F]){8}-([0-9a-fA-F]){4}-([0-9a-fA-F]){4}-([0-9a-fA-F]){4}-([0-9a-fA-F]){12}$"
_MAX_INT = 2**31 - 1


def _field(kind: str | list[str], description: str, **more: Any) -> dict[str, Any]:
    return {"type": kind, "description": description, **more}


def _choice(choices: tuple[str, ...], description: str) -> dict[str, Any]:
    return _field(["null", "string"], description, enum=[None, *choices])


def _image_fields() -> dict[str, dict[str, Any]]:
    maybe_text, maybe_number = ["null", "string"], ["null", "integer"]
    fields = {
        "id": _field("string", "The image's identifier", pattern=_UUID),
        "name": _field(maybe_text, "The image's name", maxLength=MAX_NAME),
        "status": _field("string", "How far the image is", enum=list(STATUSES)),
        "visibility": _field("string", "Who may see the image", enum=list(VISIBILITIES)),
        "protected": _field("boolean", "Whether the image cannot be deleted"),
        "os_hidden": _field("boolean", "Whether lists leave the image out"),
        "checksum": _field(maybe_text, "MD5 of the data", maxLength=32),
        "os_hash_algo": _field(maybe_text, "The algorithm of os_hash_value", maxLength=64),
        "os_hash_value": _field(maybe_text, "Digest of the data", maxLength=128),
        "owner": _field(maybe_text, "The project that owns the image", maxLength=MAX_NAME),
        "size": _field(maybe_number, "Bytes of data"),
        "virtual_size": _field(maybe_number, "Bytes of the disk that the data describe"),
        "container_format": _choice(CONTAINERS, "What the data are wrapped in"),
        "disk_format": _choice(FORMATS, "Format of the data"),
        "created_at": _field("string", "When the image was made"),
        "updated_at": _field("string", "When the image was last changed"),
        "tags": _field(
            "array", "Words attached to the image", items={"type": "string", "maxLength": MAX_NAME}
        ),
        "min_ram": _field("integer", "MiB of memory a server needs", minimum=0, maximum=_MAX_INT),
        "min_disk": _field("integer", "GiB of disk a server needs", minimum=0, maximum=_MAX_INT),
        "self": _field("string", "The image's path"),
        "file": _field("string", "The path of the data"),
        "schema": _field("string", "The path of this schema"),
        "kernel_id": _field(maybe_text, "Image of the kernel to boot with", pattern=_UUID, is_base=False),
        "ramdisk_id": _field(maybe_text, "Image of the ramdisk to boot with", pattern=_UUID, is_base=False),
    }
    for name in (*READ_ONLY, "self", "file", "schema"):
        fields[name]["readOnly"] = True
    return fields


IMAGE = {
    "name": "image",
    "properties": _image_fields(),
    "additionalProperties": {"type": "string"},
    "links": [
        {"rel": "self", "href": "{self}"},
        {"rel": "enclosure", "href": "{file}"},
        {"rel": "describedby", "href": "{schema}"},
    ],
}
MEMBER = {
    "name": "member",
    "properties": {
        "image_id": _field("string", "The image that is shared", pattern=_UUID),
        "member_id": _field("string", "The project that it is shared with"),
        "status": _field("string", "What that project says to it", enum=list(MEMBER_STATUSES)),
        "created_at": _field("string", "When it was shared"),
        "updated_at": _field("string", "When this was last changed"),
        "schema": _field("string", "The path of this schema", readOnly=True),
    },
}


def _list_of(name: str, item: dict[str, Any]) -> dict[str, Any]:
    fields: dict[str, Any] = {name: {"type": "array", "items": item}, "schema": {"type": "string"}}
    links = [{"rel": "describedby", "href": "{schema}"}]
    if name == "images":
        fields.update({"first": {"type": "string"}, "next": {"type": "string"}})
        links += [{"rel": "first", "href": "{first}"}, {"rel": "next", "href": "{next}"}]
    return {"name": name, "properties": fields, "links": links}


SCHEMAS = {
    "image": IMAGE,
    "images": _list_of("images", IMAGE),
    "member": MEMBER,
    "members": _list_of("members", MEMBER),
}
