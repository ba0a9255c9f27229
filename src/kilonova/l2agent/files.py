"""Small files that are either there as a whole or not at all."""

from __future__ import annotations

import contextlib
from pathlib import Path


def write_whole(path: Path, text: str) -> bool:
    """Put ``text`` in place at one moment, readable by all; whether the file had another content."""
    with contextlib.suppress(FileNotFoundError):
        if path.read_text() == text:
            return False
    fresh = path.with_name(f"{path.name}.new")
    fresh.write_text(text)
    fresh.chmod(0o644)
    fresh.rename(path)
    return True
