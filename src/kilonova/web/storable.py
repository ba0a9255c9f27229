"""What every database can hold: text without NUL and halves of surrogate pairs, numbers of 64 bits."""

from __future__ import annotations

import math
import re
from typing import Any

from kilonova.errors import Invalid

MAX_DEPTH = 100  # objects and lists within one another
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")


def is_storable(text: str) -> bool:
    return _UNSTORABLE.search(text) is None


def check(data: Any) -> None:
    """Raises Invalid if any text in a JSON value, keys included, cannot be stored, or it is too deep."""
    waiting = [(data, 0)]
    while waiting:
        value, depth = waiting.pop()
        if depth > MAX_DEPTH:
            raise Invalid(f"Malformed request body: it is nested deeper than {MAX_DEPTH} levels.")
        if isinstance(value, dict):
            waiting.extend((inner, depth + 1) for pair in value.items() for inner in pair)
        elif isinstance(value, list):
            waiting.extend((inner, depth + 1) for inner in value)
        elif isinstance(value, str) and not is_storable(value):
            what = "a NUL character in it" if "\0" in value else "half of a surrogate pair in it"
            raise Invalid(f"Malformed request body: a text has {what}.")


def parse_int(digits: str) -> int:
    """For JSON decoders.  Raises Invalid for a number that no database stores."""
    if len(digits) < 21:
        number = int(digits)
        if -(2**63) <= number < 2**64:
            return number
    raise Invalid("Malformed request body: a number is too large.")


def parse_float(digits: str) -> float:
    """For JSON decoders.  Raises Invalid for a number that is infinite as a float."""
    number = float(digits)
    if math.isinf(number):
        raise Invalid("Malformed request body: a number is too large.")
    return number
