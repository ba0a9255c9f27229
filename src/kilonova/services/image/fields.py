"""The fields of an image that a user sets: their names, kinds and limits."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import msgspec

from kilonova.errors import Conflict, Forbidden, Invalid, TooLarge
from kilonova.model.context import RequestContext
from kilonova.services.image.access import check_public, check_writer
from kilonova.services.image.files import is_image_id
from kilonova.services.image.inspect import FORMATS

CONTAINERS = ("bare",)
VISIBILITIES = ("community", "public", "private", "shared")
STATUSES = ("queued", "saving", "active", "deactivated")
MEMBER_STATUSES = ("pending", "accepted", "rejected")

READ_ONLY = frozenset(
    {
        "created_at",
        "updated_at",
        "status",
        "checksum",
        "size",
        "virtual_size",
        "os_hash_algo",
        "os_hash_value",
    }
)
RESERVED = frozenset(
    {
        "direct_url",
        "self",
        "file",
        "schema",
        "stores",
        "location",
        "locations",
        "deleted",
        "deleted_at",
    }
)
_RESERVED_PREFIX = "os_glance"
_IMAGE_REFERENCES = ("kernel_id", "ramdisk_id")

MAX_NAME = 255
MAX_TAGS = 128
MAX_PROPERTIES = 128
MAX_PROPERTY_VALUE = 65535
_MAX_INT = 2**31 - 1

_UUID = re.compile(r"[0-9a-fA-F]{8}-?(?:[0-9a-fA-F]{4}-?){3}[0-9a-fA-F]{12}\Z")


class NewImage(msgspec.Struct, frozen=True, kw_only=True):
    """What a user says of an image to be made; the names are those of ``StoredImage``."""

    id: str | None = None
    name: str | None = None
    owner: str | None = None
    visibility: str = "shared"
    disk_format: str | None = None
    container_format: str | None = None
    min_disk: int = 0
    min_ram: int = 0
    protected: bool = False
    hidden: bool = False
    tags: tuple[str, ...] = ()
    properties: dict[str, str] = {}


def clean_text(field: str, value: Any, limit: int = MAX_NAME, *, least: int = 0) -> str:
    """A text that every database can hold.  Raises Invalid."""
    if not isinstance(value, str):
        raise Invalid(f"Invalid value for {field}: a string is expected.")
    if not least <= len(value) <= limit:
        raise Invalid(f"Invalid value for {field}: it must have {least} to {limit} characters.")
    if "\0" in value:
        raise Invalid(f"Invalid value for {field}: it has a null character in it.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise Invalid(f"Invalid value for {field}: it is not valid Unicode.") from error
    return value


def clean_tags(value: Any) -> tuple[str, ...]:
    """Tags in order, each once."""
    if not isinstance(value, list):
        raise Invalid("Invalid value for tags: a list of strings is expected.")
    tags = tuple(dict.fromkeys(clean_text("tags", each, least=1) for each in value))
    if len(tags) > MAX_TAGS:
        raise TooLarge(f"The limit has been exceeded on the number of allowed image tags: {MAX_TAGS}.")
    return tags


def clean_property(name: str, value: Any) -> str | None:
    """The value of a property of the user's own; None for "there is none"."""
    clean_text("the name of a property", name, least=1)
    if name in _IMAGE_REFERENCES:
        if value is None or (isinstance(value, str) and _UUID.match(value)):
            return value
        raise Invalid(f"Invalid value for {name}: the ID of an image is expected.")
    return clean_text(f"property {name!r}", value, MAX_PROPERTY_VALUE)


def clean_id(value: Any) -> str:
    if not isinstance(value, str) or not is_image_id(value):
        raise Invalid("Invalid value for id: a UUID in lower case is expected.")
    return value


def check_name_free(name: str) -> None:
    """Raises Forbidden for the name of a field that users do not set."""
    if name in READ_ONLY:
        raise Forbidden(f"Attribute '{name}' is read-only.")
    if name in RESERVED or name.startswith(_RESERVED_PREFIX):
        raise Forbidden(f"Attribute '{name}' is reserved.")


def check_count(properties: dict[str, str]) -> None:
    if len(properties) > MAX_PROPERTIES:
        raise TooLarge(
            f"The limit has been exceeded on the number of allowed image properties: {MAX_PROPERTIES}."
        )


def _optional(field: str, check: Callable[[str, Any], str]) -> Callable[[Any], str | None]:
    return lambda value: None if value is None else check(field, value)


def _one_of(*choices: str) -> Callable[[str, Any], str]:
    def check(field: str, value: Any) -> str:
        if value not in choices or not isinstance(value, str):
            raise Invalid(f"Invalid value for {field}: it must be one of {', '.join(choices)}.")
        return value

    return check


def _flag(field: str) -> Callable[[Any], bool]:
    def check(value: Any) -> bool:
        if not isinstance(value, bool):
            raise Invalid(f"Invalid value for {field}: true or false is expected.")
        return value

    return check


def _whole_number(field: str) -> Callable[[Any], int]:
    def check(value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _MAX_INT:
            raise Invalid(f"Invalid value for {field}: a whole number of 0 to {_MAX_INT} is expected.")
        return value

    return check


# name in the API -> name in StoredImage, and the check of its value
SETTABLE: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "name": ("name", _optional("name", clean_text)),
    "owner": ("owner", _optional("owner", clean_text)),
    "visibility": ("visibility", lambda value: _one_of(*VISIBILITIES)("visibility", value)),
    "disk_format": ("disk_format", _optional("disk_format", _one_of(*FORMATS))),
    "container_format": ("container_format", _optional("container_format", _one_of(*CONTAINERS))),
    "min_disk": ("min_disk", _whole_number("min_disk")),
    "min_ram": ("min_ram", _whole_number("min_ram")),
    "protected": ("protected", _flag("protected")),
    "os_hidden": ("hidden", _flag("os_hidden")),
    "tags": ("tags", clean_tags),
}


def parse_new(document: dict[str, Any], context: RequestContext) -> NewImage:
    """The image that a POST asks for.  Raises Invalid, Forbidden."""
    check_writer(context)
    values: dict[str, Any] = {}
    properties: dict[str, str] = {}
    for name, value in document.items():
        check_name_free(name)
        if name == "id":
            values["id"] = clean_id(value)
        elif name in SETTABLE:
            field, check = SETTABLE[name]
            values[field] = check(value)
        else:
            cleaned = clean_property(name, value)
            if cleaned is not None:
                properties[name] = cleaned
    check_count(properties)
    owner = values.setdefault("owner", context.project_id) or context.project_id
    if owner != context.project_id and not context.is_admin:
        raise Forbidden("You are not permitted to create images owned by another project.")
    values["owner"] = owner
    check_public(values.get("visibility", "shared"), context)
    return NewImage(**values, properties=properties)


def taken(image_id: str) -> Conflict:
    return Conflict(f"Image ID {image_id} already exists!")
