"""Cutting a stream of JSON objects that follow each other without any separator (RFC 7047, section 4)."""

from __future__ import annotations

import re

_MARK = re.compile(rb'[{}"\\]')
_BEGIN = re.compile(rb"\s*(\{|$)")
_MOST = 64 << 20  # bytes of one object; a switch with thousands of ports has a few MiB


class JsonStream:
    """Give it bytes as they come; it gives whole top-level objects back, unparsed.

    Looks at braces, quotes and backslashes only, and at each byte once; what is between the braces is left
    to the parser.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._seen = 0
        self._depth = 0
        self._in_string = False

    def feed(self, data: bytes) -> list[bytes]:
        """The objects that ``data`` completes.  Raises ValueError for what is no stream of objects."""
        self._buffer += data
        found: list[bytes] = []
        start = 0
        position = self._seen
        while (mark := _MARK.search(self._buffer, position)) is not None:
            position = mark.end()
            match mark.group():
                case b"\\":
                    position += 1  # whatever it is, it is no mark; it may come with the next bytes
                case b'"':
                    self._in_string = not self._in_string
                case b"{" if not self._in_string:
                    self._depth += 1
                case b"}" if not self._in_string:
                    self._depth -= 1
                    if self._depth <= 0:
                        found.append(_object(self._buffer[start:position]))
                        start = position
        self._seen = max(position, len(self._buffer)) - start
        del self._buffer[:start]
        if self._buffer:
            _check(self._buffer)
        return found


def _object(text: bytearray) -> bytes:
    _check(text)
    return bytes(text)


def _check(text: bytearray) -> None:
    """An object, or the beginning of one, begins with a brace; there may be white space before it."""
    if _BEGIN.match(text) is None:
        raise ValueError(f"no object begins with {bytes(text[:20])!r}")
    if len(text) > _MOST:
        raise ValueError("an object without an end")
