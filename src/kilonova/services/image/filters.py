"""The query string of a list of images: filters, order, paging."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from typing import Any

import msgspec

from kilonova.clock import parse_iso
from kilonova.db.image_listing import Comparison, ImageQuery
from kilonova.db.keyset import OPERATORS, Sort
from kilonova.errors import Invalid
from kilonova.model.context import RequestContext
from kilonova.services.image.fields import MEMBER_STATUSES, STATUSES, VISIBILITIES, clean_text

DEFAULT_LIMIT = 25
MAX_LIMIT = 1000

_SORT_KEYS = (
    "name",
    "status",
    "container_format",
    "disk_format",
    "size",
    "id",
    "created_at",
    "updated_at",
    "min_disk",
    "min_ram",
    "owner",
    "visibility",
)
_IN = ("id", "name", "status", "container_format", "disk_format")
_EQUAL = {
    "owner": "owner",
    "checksum": "checksum",
    "os_hash_algo": "hash_algo",
    "os_hash_value": "hash_value",
}
_NUMBERS = ("size", "virtual_size", "min_disk", "min_ram")
_BOUNDS = {"size_min": ("size", "gte"), "size_max": ("size", "lte")}
_TIMES = ("created_at", "updated_at")
_MAX_NUMBER = 2**63 - 1


class ListRequest(msgspec.Struct, frozen=True):
    """What a list request says; the marker is still to be looked up."""

    query: ImageQuery
    marker: str | None


class _Reader:
    """Collects what the parameters say; one method a kind of parameter."""

    def __init__(self) -> None:
        self.equals: dict[str, tuple[str | int, ...]] = {}
        self.comparisons: list[Comparison] = []
        self.tags: list[str] = []
        self.properties: dict[str, str] = {}
        self.plain: dict[str, Any] = {}

    def read(self, name: str, value: str) -> None:
        clean_text("a filter", name, 65535)
        clean_text(f"filter {name}", value, 65535)
        if name in _IN:
            self.equals[name] = _choices(name, value)
        elif name in _EQUAL:
            self.equals[_EQUAL[name]] = (value,)
        elif name in _NUMBERS:
            self.equals[name] = (_number(name, value),)
        elif name in _BOUNDS:
            self.comparisons.append(Comparison(*_BOUNDS[name], _number(name, value)))
        elif name in _TIMES:
            self.comparisons.append(_moment(name, value))
        elif name == "tag":
            self.tags.append(value)
        elif not self._read_plain(name, value):
            self.properties[name] = value

    def _read_plain(self, name: str, value: str) -> bool:
        if name == "protected":
            self.comparisons.append(Comparison("protected", "eq", _flag(name, value)))
        elif name == "os_hidden":
            self.plain["hidden"] = _flag(name, value)
        elif name == "visibility":
            self.plain["visibility"] = _one_of(name, value, (*VISIBILITIES, "all"))
        elif name == "member_status":
            self.plain["member_status"] = _one_of(name, value, (*MEMBER_STATUSES, "all"))
        elif name == "limit":
            self.plain["limit"] = min(_number(name, value), MAX_LIMIT)
        else:
            return False
        return True


def parse(items: Iterable[tuple[str, str]], context: RequestContext) -> ListRequest:
    """The query that the parameters ask for.  Raises Invalid."""
    reader = _Reader()
    marker: str | None = None
    ordering: list[tuple[str, str]] = []
    for name, value in items:
        if name == "marker":
            marker = clean_text("marker", value, least=1)
        elif name in ("sort", "sort_key", "sort_dir"):
            ordering.append((name, value))
        else:
            reader.read(name, value)
    query = ImageQuery(
        project=context.project_id,
        everything=context.is_admin,
        equals=reader.equals,
        comparisons=tuple(reader.comparisons),
        tags=tuple(reader.tags),
        properties=reader.properties,
        sorts=_sorts(ordering),
        **{"limit": DEFAULT_LIMIT, **reader.plain},
    )
    return ListRequest(query, marker)


def _sorts(ordering: list[tuple[str, str]]) -> tuple[Sort, ...]:
    combined = [value for name, value in ordering if name == "sort"]
    keys = [value for name, value in ordering if name == "sort_key"]
    directions = [value for name, value in ordering if name == "sort_dir"]
    if combined and (keys or directions):
        raise Invalid("Old and new sorting syntax cannot be combined: give sort, or sort_key and sort_dir.")
    pairs = [_pair(each) for value in combined for each in value.split(",")]
    if not combined:
        if len(directions) > 1 and len(directions) != len(keys):
            raise Invalid("Number of sort dirs does not match the number of sort keys.")
        keys = keys or ["created_at"]
        directions = directions * len(keys) if len(directions) == 1 else directions or ["desc"] * len(keys)
        pairs = list(zip(keys, directions, strict=True))
    sorts = [_sort(key, direction) for key, direction in pairs]
    if len({each.key for each in sorts}) != len(sorts):
        raise Invalid("A sort key is given twice.")
    for last in ("created_at", "id"):  # an order without ties, so that paging neither repeats nor leaves out
        if all(each.key != last for each in sorts):
            sorts.append(Sort(last, sorts[-1].descending))
    return tuple(sorts)


def _pair(text: str) -> tuple[str, str]:
    key, _, direction = text.strip().partition(":")
    return key, direction or "desc"


def _sort(key: str, direction: str) -> Sort:
    if key not in _SORT_KEYS:
        raise Invalid(f"Invalid sort key: {key}. It must be one of {', '.join(_SORT_KEYS)}.")
    if direction not in ("asc", "desc"):
        raise Invalid(f"Invalid sort direction: {direction}. It must be asc or desc.")
    return Sort(key, direction == "desc")


def _choices(name: str, value: str) -> tuple[str, ...]:
    operator, colon, rest = value.partition(":")
    choices: tuple[str, ...] = (value,)
    if colon and operator == "in":
        try:
            rows = list(csv.reader([rest], skipinitialspace=True, strict=True))
        except csv.Error as error:
            raise Invalid(f"Invalid filter value {value!r} of {name}: {error}.") from error
        choices = tuple(each.strip() for row in rows for each in row)
    elif colon and operator == "eq":
        choices = (rest,)
    elif colon and operator in OPERATORS:
        raise Invalid(f"Unable to filter {name} by the operator {operator!r}: it takes 'in' and 'eq'.")
    if name == "status":
        for each in choices:
            _one_of(name, each, STATUSES)
    return choices


def _moment(name: str, value: str) -> Comparison:
    operator, colon, rest = value.partition(":")
    if not colon or operator not in OPERATORS:
        operator, rest = "eq", value
    try:
        moment = parse_iso(rest)
    except (ValueError, OverflowError) as error:
        raise Invalid(f"Invalid time {rest!r} in the filter {name}: ISO 8601 is expected.") from error
    return Comparison(name, operator, moment)


def _number(name: str, value: str) -> int:
    if not value.isascii() or not value.isdigit() or len(value) > 19 or int(value) > _MAX_NUMBER:
        raise Invalid(f"Invalid value {value!r} of {name}: a whole number of at least 0 is expected.")
    return int(value)


def _flag(name: str, value: str) -> bool:
    if value.lower() in ("true", "1"):
        return True
    if value.lower() in ("false", "0"):
        return False
    raise Invalid(f"Invalid value {value!r} of {name}: true or false is expected.")


def _one_of(name: str, value: str, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise Invalid(f"Invalid value {value!r} of {name}: it must be one of {', '.join(choices)}.")
    return value
