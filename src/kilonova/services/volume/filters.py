"""The query string of a list of volumes: filters, order, paging."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from typing import Any

import msgspec

from kilonova.clock import parse_iso
from kilonova.db.keyset import OPERATORS, Sort
from kilonova.db.volume_listing import VolumeQuery
from kilonova.errors import Invalid
from kilonova.services.volume.call import Call
from kilonova.services.volume.fields import MAX_INT, flag, invalid, metadata, text, whole

MAX_LIMIT = 1000  # Cinder's osapi_max_limit

_TEXTS = {
    "name": "name",
    "display_name": "name",
    "description": "description",
    "status": "status",
    "availability_zone": "zone",
    "id": "id",
    "user_id": "user_id",
    "source_volid": "source_volume",
    "volume_type_id": "type_id",
}
_LIKE = {"name~": "name", "display_name~": "name", "description~": "description", "status~": "status"}
_FLAGS = ("bootable", "multiattach")
_MOMENTS = ("created_at", "updated_at")
_SORTS = {
    "id": "id",
    "name": "name",
    "display_name": "name",
    "description": "description",
    "size": "size_gb",
    "status": "status",
    "bootable": "bootable",
    "availability_zone": "zone",
    "created_at": "created_at",
    "updated_at": "updated_at",
}
_PAGING = ("limit", "offset", "marker", "sort", "sort_key", "sort_dir", "all_tenants", "with_count")


class ListRequest(msgspec.Struct, frozen=True):
    """What a list request says; the marker is still to be looked up."""

    query: VolumeQuery
    marker: str | None
    with_count: bool


class _Reader:
    """Collects what the filters say."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self.equals: dict[str, str | int | bool] = {}
        self.contains: dict[str, str] = {}
        self.metadata: dict[str, str] = {}
        self.image_metadata: dict[str, str] = {}
        self.moments: list[tuple[str, str, int]] = []

    def read(self, name: str, value: str) -> None:
        text(name, name)
        text(name, value)
        version = self._call.version
        if name in _TEXTS:
            self.equals[_TEXTS[name]] = value
        elif name == "project_id" and self._call.context.is_admin:
            self.equals["project_id"] = value
        elif name in _FLAGS:
            self.equals[name] = flag(name, value)
        elif name == "size":
            self.equals["size_gb"] = whole(name, value)
        elif name == "metadata":
            self.metadata.update(_mapping(name, value))
        elif name == "glance_metadata" and version >= 4:
            self.image_metadata.update(_mapping(name, value))
        elif name in _LIKE and version >= 31:
            self.contains[_LIKE[name]] = value
        elif name in _MOMENTS and version >= 60:
            self.moments.extend(_moments(name, value))
        elif version >= 31:
            raise Invalid(f"Invalid filters {name} are found in query options.")


def parse(items: Iterable[tuple[str, str]], call: Call) -> ListRequest:
    """The query that the parameters ask for.  Raises Invalid."""
    reader = _Reader(call)
    plain: dict[str, str] = {}
    for name, value in items:
        if name in _PAGING:
            plain[name] = text(name, value)
        else:
            reader.read(name, value)
    everything = call.context.is_admin and flag("all_tenants", plain.get("all_tenants", "0") or "1")
    query = VolumeQuery(
        project=None if everything or "project_id" in reader.equals else call.own_project(),
        equals=reader.equals,
        contains=reader.contains,
        metadata=reader.metadata,
        image_metadata=reader.image_metadata,
        moments=tuple(reader.moments),
        sorts=_sorts(plain),
        limit=min(whole("limit", plain.get("limit", MAX_LIMIT), least=0), MAX_LIMIT),
        offset=whole("offset", plain.get("offset", 0), least=0, most=MAX_INT),
    )
    counted = call.version >= 45 and flag("with_count", plain.get("with_count", "0"))
    return ListRequest(query, plain.get("marker"), counted)


def _sorts(plain: dict[str, str]) -> tuple[Sort, ...]:
    if "sort" in plain and ("sort_key" in plain or "sort_dir" in plain):
        raise Invalid(
            "The 'sort_key' and 'sort_dir' parameters are deprecated and cannot be used with 'sort'."
        )
    words = plain.get("sort") or f"{plain.get('sort_key', 'created_at')}:{plain.get('sort_dir', 'desc')}"
    sorts: dict[str, Sort] = {}
    for word in words.split(","):
        key, _, direction = word.strip().partition(":")
        if key not in _SORTS:
            raise Invalid(f"Invalid sort key: {key:.80}. It must be one of {', '.join(_SORTS)}.")
        if direction not in ("", "asc", "desc"):
            raise Invalid(f"Unknown sort direction {direction:.80}, must be one of asc, desc.")
        sorts.setdefault(_SORTS[key], Sort(_SORTS[key], direction != "asc"))
    last = next(reversed(sorts.values()))
    for key in ("created_at", "id"):  # an order without ties, so that pages neither repeat nor leave out
        sorts.setdefault(key, Sort(key, last.descending))
    return tuple(sorts.values())


def _mapping(name: str, value: str) -> dict[str, str]:
    """Clients write these as Python does."""
    try:
        found: Any = ast.literal_eval(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        raise invalid(name, value, "An object of texts is expected") from None
    return metadata(found)


def _moments(name: str, value: str) -> list[tuple[str, str, int]]:
    """``gt:2026-01-01T00:00:00,lt:...``, or a moment alone."""
    found = []
    for word in value.split(","):
        operator, colon, rest = word.strip().partition(":")
        if not colon or operator not in OPERATORS:
            operator, rest = "eq", word.strip()
        try:
            found.append((name, operator, parse_iso(rest)))
        except (ValueError, OverflowError):
            raise invalid(name, value, "A moment by ISO 8601 is expected") from None
    return found
