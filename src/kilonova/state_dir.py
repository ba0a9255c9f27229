"""The directory that one process keeps its state in, and keeps others out of."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import uuid
from dataclasses import dataclass
from pathlib import Path

from kilonova.errors import Failed


@dataclass
class StateDir:
    """``path`` is searchable for everybody (QEMU must reach the disks in it), its secrets are not."""

    path: Path
    _lock: int

    @classmethod
    def open(cls, path: Path) -> StateDir:
        """Make it if need be and lock it.  Raises Failed when another process has it."""
        path = path.absolute()
        path.mkdir(parents=True, exist_ok=True)
        lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(lock)
            raise Failed(
                f"Another kilonova runs with the state directory {path}. "
                "Stop it, or choose another --state-dir."
            ) from error
        return cls(path, lock)

    def close(self) -> None:
        os.close(self._lock)

    def private(self, name: str) -> Path:
        """A directory in it that only we can read."""
        made = self.path / name
        made.mkdir(mode=0o700, exist_ok=True)
        return made

    def searchable(self, name: str) -> Path:
        """A directory in it through which everybody can reach files that they know by name: QEMU, which
        runs as a user of its own, its disks."""
        made = self.path / name
        made.mkdir(mode=0o711, exist_ok=True)
        return made

    def passwords(self) -> dict[str, str]:
        """The passwords of ``admin`` and ``demo``; made up at the first start."""
        file = self.path / "passwords.json"
        if not file.exists():
            made = {name: secrets.token_urlsafe(18) for name in ("admin", "demo")}
            write_secret(file, json.dumps(made))
        found: dict[str, str] = json.loads(file.read_text())
        return found

    def compute_id(self) -> str:
        """The uuid of this host's compute node: made up once and kept, as in Nova since 2023."""
        file = self.path / "compute_id"
        if not file.exists():
            write_secret(file, str(uuid.uuid4()))
        text = file.read_text().strip()
        try:
            return str(uuid.UUID(text))
        except ValueError:
            raise Failed(f"{file} holds no uuid: restore it, or remove it together with the host.") from None


def write_secret(path: Path, text: str) -> None:
    """Write a file that only we can read, whole or not at all."""
    draft = path.with_suffix(".new")
    draft.unlink(missing_ok=True)
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
