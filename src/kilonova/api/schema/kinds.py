"""Kinds of values that many requests have, as Nova takes them."""

from __future__ import annotations

import ipaddress
import re
import unicodedata
from typing import Annotated, Any
from uuid import UUID

from msgspec import Meta

from kilonova.api.shape import Reads

_TRUE = frozenset({"1", "t", "true", "on", "y", "yes"})
_FALSE = frozenset({"0", "f", "false", "off", "n", "no"})
MAX_INT = 0x7FFFFFFF


def read_flag(value: bool | str | int) -> bool:
    """``true``, ``"True"``, ``"1"``, ``"yes"`` ... as Nova's boolean parameters."""
    if isinstance(value, bool):
        return value
    word = str(value).lower() if isinstance(value, int) else value.strip().lower()
    if word in _TRUE:
        return True
    if word in _FALSE:
        return False
    raise ValueError(f"'{value}' is not a boolean")


def read_number(first: int, last: int = MAX_INT) -> Any:
    """Reads a whole number from ``first`` to ``last``, which may be sent as text."""

    def read(value: int | str) -> int:
        if isinstance(value, str):
            if not re.fullmatch(r"-?[0-9]{1,18}", value):
                raise ValueError(f"'{value}' is not a whole number")
            value = int(value)
        if not first <= value <= last:
            raise ValueError(f"{value} is not between {first} and {last}")
        return value

    return read


def _printable(character: str) -> bool:
    return unicodedata.category(character)[0] != "C" and (
        character == " " or unicodedata.category(character)[0] != "Z"
    )


def read_name(value: str) -> str:
    """1 to 255 printable characters, without blanks around them."""
    if not 1 <= len(value) <= 255:
        raise ValueError("a name has 1 to 255 characters")
    if value != value.strip():
        raise ValueError("a name does not begin or end with a blank")
    if not all(_printable(character) for character in value):
        raise ValueError("a name has printable characters only")
    return value


def read_uuid(value: str) -> str:
    """A UUID in any of its usual spellings, as given."""
    if not is_uuid(value):
        raise ValueError(f"'{value}' is not a uuid")
    return value


def is_uuid(value: str) -> bool:
    try:
        return str(UUID(value)) == value.lower() or UUID(value).hex == value.lower()
    except ValueError:
        return False


def read_ipv4(value: str) -> str:
    try:
        return str(ipaddress.IPv4Address(value))
    except ValueError:
        raise ValueError(f"'{value}' is not an IPv4 address") from None


def read_ipv6(value: str) -> str:
    """Without a zone (``%eth0``), which means something on one machine only."""
    try:
        address = ipaddress.IPv6Address(value)
    except ValueError:
        raise ValueError(f"'{value}' is not an IPv6 address") from None
    if address.scope_id is not None:
        raise ValueError(f"'{value}' has a zone: leave it out")
    return str(address)


def read_ip(value: str) -> str:
    """As ``read_ipv4`` and ``read_ipv6``."""
    try:
        return read_ipv6(value) if ":" in value else read_ipv4(value)
    except ValueError:
        raise ValueError(f"'{value}' is not an IP address") from None


Flag = Annotated[bool, Reads(bool | str | int, read_flag)]
Name = Annotated[str, Reads(str, read_name)]
Uuid = Annotated[str, Reads(str, read_uuid)]
Text = Annotated[str, Meta(max_length=255)]
FullText = Annotated[str, Meta(min_length=1, max_length=255)]
MetadataKey = Annotated[str, Meta(min_length=1, max_length=255, pattern=r"^[a-zA-Z0-9\-_:. ]{1,255}$")]
Metadata = dict[MetadataKey, Text]
Count = Annotated[int, Reads(int | str, read_number(0))]
PositiveCount = Annotated[int, Reads(int | str, read_number(1))]
