"""Requests about flavors."""

from __future__ import annotations

import math
import re
import unicodedata
from typing import Annotated

from msgspec import Meta

from kilonova.api.query import Keys
from kilonova.api.schema.kinds import Count, Flag, FullText, Name, PositiveCount
from kilonova.api.shape import Key, Reads, Shape, Span, since, until

SINGLE_FLOAT_MAX = 3.40282e38

_ID = re.compile(r"(?! )[a-zA-Z0-9. _-]{1,255}(?<! )")


def _read_id(value: str | float) -> str:
    text = str(value)
    if not _ID.fullmatch(text):
        raise ValueError(
            "a flavor's id has 1 to 255 letters, digits, '.', '_', '-' and blanks, these not at its ends"
        )
    return text


def _read_factor(value: float | str) -> float:
    if isinstance(value, str) and not re.fullmatch(r"[0-9]{1,40}(\.[0-9]{1,40})?", value):
        raise ValueError(f"'{value}' is not a number")
    factor = float(value) if not isinstance(value, int) or value.bit_length() < 1000 else math.inf
    if not 0 < factor <= SINGLE_FLOAT_MAX:
        raise ValueError(f"it must be above 0 and at most {SINGLE_FLOAT_MAX}")
    return factor


def _read_description(value: str) -> str:
    if any(unicodedata.category(one)[0] == "C" and one not in "\n\r\t" for one in value):
        raise ValueError("a description has printable characters only")
    return value


Factor = Annotated[float, Reads(float | int | str, _read_factor)]
FlavorId = Annotated[str, Reads(str | int | float, _read_id)]
Description = Annotated[str, Reads(Annotated[str, Meta(max_length=65535)], _read_description)]
SpecValue = str | int | float


class NewFlavor(Shape):
    name: Name
    id: FlavorId | None = None
    ram: PositiveCount
    vcpus: PositiveCount
    disk: Count
    ephemeral: Annotated[Count, Key("OS-FLV-EXT-DATA:ephemeral")] = 0
    swap: Count = 0
    rxtx_factor: Annotated[Factor, until(101)] = 1.0
    is_public: Annotated[Flag, Key("os-flavor-access:is_public")] = True
    description: Annotated[Description | None, since(55)] = None


class CreateFlavor(Shape):
    flavor: NewFlavor


class ChangedFlavor(Shape):
    description: Description | None


class UpdateFlavor(Shape):
    flavor: ChangedFlavor


LIST = Keys(
    {
        **dict.fromkeys(
            ("limit", "marker", "is_public", "minRam", "minDisk", "sort_key", "sort_dir"), Span()
        ),
        "name": since(102),
    },
    strict_since=75,
)


class _Tenant(Shape):
    tenant: FullText


class AddAccess(Shape):
    access: Annotated[_Tenant, Key("addTenantAccess")]


class RemoveAccess(Shape):
    access: Annotated[_Tenant, Key("removeTenantAccess")]
