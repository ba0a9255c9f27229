"""What users write into requests: kinds of values and their limits, Cinder's."""

from __future__ import annotations

import uuid
from collections.abc import Collection
from typing import Any

from kilonova.errors import Invalid
from kilonova.services.volume.records import NewVolume
from kilonova.web.storable import is_storable

MAX_TEXT = 255
MAX_INT = 2**31 - 1
_TRUE = ("1", "t", "true", "on", "y", "yes")
_FALSE = ("0", "f", "false", "off", "n", "no")


def invalid(name: str, value: Any, wanted: str) -> Invalid:
    return Invalid(f"Invalid input for field/attribute {name}. Value: {value!s:.80}. {wanted}.")


def text(name: str, value: Any, *, least: int = 0) -> str:
    """Raises Invalid."""
    if not isinstance(value, str) or not is_storable(value) or not least <= len(value) <= MAX_TEXT:
        shown = value if isinstance(value, str) and is_storable(value) else type(value).__name__
        raise invalid(name, shown, f"A text of {least} to {MAX_TEXT} characters is expected")
    return value


def optional_text(name: str, value: Any) -> str | None:
    return None if value is None else text(name, value).strip()


def whole(name: str, value: Any, least: int = 1, most: int = MAX_INT) -> int:
    """A whole number, which may be given as a text.  Raises Invalid."""
    digits = value.strip() if isinstance(value, str) else value
    if isinstance(digits, str) and digits.lstrip("-").isdigit() and digits.isascii() and len(digits) < 12:
        digits = int(digits) if digits.count("-") == digits.startswith("-") else digits
    if not isinstance(digits, int) or isinstance(digits, bool) or not least <= digits <= most:
        raise invalid(name, value, f"A whole number of {least} to {most} is expected")
    return digits


def flag(name: str, value: Any) -> bool:
    """Raises Invalid."""
    if isinstance(value, bool):
        return value
    word = str(value).strip().lower()
    if not isinstance(value, (str, int)) or word not in (*_TRUE, *_FALSE):
        raise invalid(name, value, "True or false is expected")
    return word in _TRUE


def identifier(name: str, value: Any) -> str:
    """A uuid, in its usual form.  Raises Invalid."""
    try:
        if not isinstance(value, str) or len(value) > 45:
            raise ValueError
        return str(uuid.UUID(value))
    except ValueError:
        raise invalid(name, value, "A uuid is expected") from None


def optional_identifier(name: str, value: Any) -> str | None:
    return None if value is None or value == "" else identifier(name, value)


def metadata(value: Any) -> dict[str, str]:
    """Raises Invalid."""
    if not isinstance(value, dict):
        raise invalid("metadata", value, "An object of texts is expected")
    return {text("metadata", key, least=1): text(f"metadata.{key}", each) for key, each in value.items()}


def only(given: Collection[str], known: Collection[str], what: str) -> None:
    """Raises Invalid for a name that is none of the known ones."""
    strange = sorted(set(given) - set(known))
    if strange:
        raise Invalid(
            f"Invalid input for field/attribute {what}. Additional properties are not allowed "
            f"({strange[0]!r:.80} was unexpected)."
        )


_WORDS = """
    name description display_name display_description volume_type metadata snapshot_id source_volid
    consistencygroup_id group_id backup_id size availability_zone multiattach image_id imageRef id
    status user_id project_id attach_status source_replica
"""
_NEW = frozenset(_WORDS.split())
_LACKING = {
    "snapshot_id": "snapshots",
    "backup_id": "backups",
    "consistencygroup_id": "consistency groups",
    "group_id": "groups",
    "source_replica": "replication",
}


def new_volume(given: dict[str, Any]) -> NewVolume:
    """The volume that a POST asks for.  Raises Invalid."""
    only(given, _NEW, "volume")
    for name, what in _LACKING.items():
        if given.get(name):
            raise Invalid(f"{name} cannot be given: this volume service has no {what}.")
    if given.get("multiattach") and flag("multiattach", given["multiattach"]):
        raise Invalid(
            "multiattach parameter has been removed. The default behavior is to use multiattach enabled "
            "volume types."
        )
    if "size" not in given and not given.get("source_volid"):
        raise Invalid("Invalid input for field/attribute volume. 'size' is a required property.")
    image = given.get("imageRef", given.get("image_id"))
    source = optional_identifier("source_volid", given.get("source_volid"))
    if image and source:
        raise Invalid("Only one of imageRef and source_volid can be given.")
    return NewVolume(
        size_gb=None if given.get("size") is None else whole("size", given["size"]),
        name=optional_text("name", given.get("name", given.get("display_name"))),
        description=optional_text("description", given.get("description", given.get("display_description"))),
        type=None if given.get("volume_type") is None else text("volume_type", given["volume_type"], least=1),
        zone=optional_text("availability_zone", given.get("availability_zone")) or None,
        metadata=metadata(given.get("metadata") or {}),
        image_id=optional_identifier("imageRef", image),
        source_volume=source,
    )


_CHANGES = frozenset(["name", "description", "display_name", "display_description", "metadata"])


def changes(given: dict[str, Any]) -> dict[str, Any]:
    """The fields that a PUT sets.  Raises Invalid."""
    only(given, _CHANGES, "volume")
    if not given:
        raise Invalid("Invalid input for field/attribute volume. There is nothing to change in it.")
    found: dict[str, Any] = {}
    for name in ("name", "description"):
        for word in (f"display_{name}", name):
            if word in given:
                found[name] = optional_text(word, given[word])
    if "metadata" in given:
        found["metadata"] = metadata({} if given["metadata"] is None else given["metadata"])
    return found
