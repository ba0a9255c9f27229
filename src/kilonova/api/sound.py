"""Text that no database stores: halves of surrogate pairs, and NUL."""

from __future__ import annotations

from typing import Any

from kilonova.errors import Invalid


def check_text(data: Any) -> None:
    """Raises Invalid if any text in a JSON value, keys included, cannot be stored."""
    waiting = [data]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            waiting.extend(value.keys())
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)
        elif isinstance(value, str):
            _check(value)


def _check(value: str) -> None:
    if "\0" in value:
        raise Invalid("Malformed request body: a text has a NUL character in it.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise Invalid("Malformed request body: a text is not valid Unicode.") from error
