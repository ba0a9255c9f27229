"""Changes of an image: Glance's two forms of JSON patch, read and applied."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import msgspec

from kilonova.db.images import StoredImage
from kilonova.errors import Conflict, Forbidden, Invalid
from kilonova.model.context import RequestContext
from kilonova.services.image.access import check_public
from kilonova.services.image.fields import SETTABLE, check_count, check_name_free, clean_property

V2_1 = "application/openstack-images-v2.1-json-patch"
V2_0 = "application/openstack-images-v2.0-json-patch"
MEDIA_TYPES = (V2_1, V2_0)

_OPERATIONS = ("add", "replace", "remove")
_ESCAPE = re.compile(r"~(?![01])")
MAX_OPERATIONS = 512


class Change(msgspec.Struct, frozen=True):
    """One operation on one field or property of the image."""

    op: str  # "add", "replace" or "remove"
    name: str
    value: Any = None


def parse(body: bytes, media_type: str) -> tuple[Change, ...]:
    """The changes that a request body asks for, in order.  Raises Invalid."""
    try:
        document = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Invalid("Malformed request body: it is not JSON.") from error
    if not isinstance(document, list):
        raise Invalid("Request body must be a JSON array of operation objects.")
    if len(document) > MAX_OPERATIONS:
        raise Invalid(f"At most {MAX_OPERATIONS} operations are allowed in one request.")
    read = _operation_2_1 if media_type == V2_1 else _operation_2_0
    return tuple(read(each) for each in document)


def _operation_2_1(entry: Any) -> Change:
    """``{"op": "add", "path": "/name", "value": "x"}``"""
    if not isinstance(entry, dict):
        raise Invalid("Operations must be JSON objects.")
    op, path = entry.get("op"), entry.get("path")
    if op not in _OPERATIONS or not isinstance(op, str):
        raise Invalid(f"Operations must have a member 'op' that is one of {', '.join(_OPERATIONS)}.")
    if not isinstance(path, str):
        raise Invalid("Operations must have a member 'path' that is a JSON pointer.")
    return _change(op, path, entry)


def _operation_2_0(entry: Any) -> Change:
    """``{"add": "/name", "value": "x"}``"""
    if not isinstance(entry, dict):
        raise Invalid("Operations must be JSON objects.")
    named = [op for op in _OPERATIONS if op in entry]
    if len(named) != 1:
        raise Invalid(f"Operations must have exactly one member of {', '.join(_OPERATIONS)}.")
    path = entry[named[0]]
    if not isinstance(path, str):
        raise Invalid(f"The member '{named[0]}' of an operation must be a JSON pointer.")
    return _change(named[0], path, entry)


def _change(op: str, path: str, entry: dict[str, Any]) -> Change:
    name = _pointed_at(path)
    if op == "remove":
        return Change(op, name)
    if "value" not in entry:
        raise Invalid(f"The operation '{op}' on '{path}' must have a member 'value'.")
    return Change(op, name, entry["value"])


def _pointed_at(path: str) -> str:
    """The one name in a JSON pointer (RFC 6901)."""
    if not path.startswith("/"):
        raise Invalid(f"Pointer '{path}' does not start with '/'.")
    if "/" in path[1:] or len(path) == 1:
        raise Invalid(f"Invalid JSON pointer for this resource: '{path}'.")
    if _ESCAPE.search(path):
        raise Invalid(f"Pointer '{path}' contains '~' that is not part of a recognized escape sequence.")
    return path[1:].replace("~1", "/").replace("~0", "~")


def applied(image: StoredImage, changes: Iterable[Change], context: RequestContext) -> StoredImage:
    """The image with all of the changes made.  Raises Invalid, Forbidden, Conflict."""
    values: dict[str, Any] = {}
    properties = dict(image.properties)
    for change in changes:
        check_name_free(change.name)
        if change.name == "id":
            raise Forbidden("Attribute 'id' is read-only.")
        if change.name in SETTABLE:
            field, value = _set_field(image, change, context)
            values[field] = value
        else:
            _set_property(properties, change)
    check_count(properties)
    return msgspec.structs.replace(image, **values, properties=properties)


def _set_field(image: StoredImage, change: Change, context: RequestContext) -> tuple[str, Any]:
    if change.op == "remove":
        raise Forbidden(f"Property {change.name} may not be removed.")
    field, check = SETTABLE[change.name]
    value = check(change.value)
    unchanged = value == getattr(image, field)
    if change.name in ("disk_format", "container_format") and image.status != "queued" and not unchanged:
        raise Forbidden(f"Attribute {change.name} can be only replaced for a queued image.")
    if change.name == "owner" and not unchanged and not context.is_admin:
        raise Forbidden("You are not permitted to give an image to another project.")
    if change.name == "owner" and value is None:
        raise Forbidden("Owner can't be updated to None.")
    if change.name == "visibility" and not unchanged:
        check_public(value, context)
    return field, value


def _set_property(properties: dict[str, str], change: Change) -> None:
    if change.op != "add" and change.name not in properties:
        raise Conflict(f"Property {change.name} does not exist.")
    value = None if change.op == "remove" else clean_property(change.name, change.value)
    if value is None:
        properties.pop(change.name, None)
    else:
        properties[change.name] = value
