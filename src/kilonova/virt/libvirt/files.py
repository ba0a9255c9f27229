"""Files that appear whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from kilonova.fsync import fsync_directory


def settle(draft: Path, path: Path, mode: int = 0o600) -> None:
    """Give a finished draft its name, for good: power cuts leave either nothing or all of it.

    The mode is for us alone by default; libvirt lets QEMU in.
    """
    handle = os.open(draft, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.fchmod(handle, mode)
        os.fsync(handle)
    finally:
        os.close(handle)
    draft.replace(path)
    fsync_directory(path.parent)
