"""The end of what a guest has written on its serial console.

virtlogd writes the file and, when it is large, moves it aside as .0, and that as .1, and so on.
"""

from __future__ import annotations

import os
from pathlib import Path

MOST_FILES = 10


def tail(log: Path, limit: int) -> bytes | None:
    """At most the last ``limit`` bytes, over as many of the files as that takes; None if there is no log.

    Raises OSError.
    """
    pieces: list[bytes] = []
    left = limit
    for path in (log, *(log.with_name(f"{log.name}.{number}") for number in range(MOST_FILES))):
        if left <= 0:
            break
        try:
            piece = _end(path, left)
        except FileNotFoundError:
            if path == log:  # just being moved aside, or the guest has never been started
                continue
            break
        pieces.append(piece)
        left -= len(piece)
    return b"".join(reversed(pieces)) if pieces else None


def _end(path: Path, limit: int) -> bytes:
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - limit))
        return file.read(limit)
