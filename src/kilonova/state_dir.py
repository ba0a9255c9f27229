"""The directory that one process keeps its state in, and keeps others out of."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import uuid
from dataclasses import dataclass
from pathlib import Path

import msgspec

from kilonova.errors import Failed


class _Passwords(msgspec.Struct):
    admin: str
    demo: str


@dataclass
class StateDir:
    """``path`` is searchable for everybody (QEMU must reach the disks in it), its secrets are not."""

    path: Path
    _lock: int

    @classmethod
    def open(cls, path: Path) -> StateDir:
        """Make it if need be and lock it.  Raises Failed when another process has it, or it cannot be."""
        path = path.absolute()
        try:
            path.mkdir(parents=True, exist_ok=True)
            lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise Failed(
                f"Cannot use the state directory {path}: {error.strerror}. Choose another --state-dir."
            ) from error
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
        if made.stat().st_mode & 0o077:
            made.chmod(0o700)
        return made

    def searchable(self, name: str) -> Path:
        """A directory in it through which everybody can reach files that they know by name: QEMU, which
        runs as a user of its own, its disks."""
        made = self.path / name
        made.mkdir(mode=0o711, exist_ok=True)
        return made

    def passwords(self) -> dict[str, str]:
        """The passwords of ``admin`` and ``demo``; made up at the first start.

        Raises Failed for a file that does not have them.
        """
        file = self.path / "passwords.json"
        if not file.exists():
            made = {name: secrets.token_urlsafe(18) for name in ("admin", "demo")}
            write_secret(file, json.dumps(made))
        try:
            return msgspec.structs.asdict(msgspec.json.decode(file.read_bytes(), type=_Passwords))
        except msgspec.DecodeError:
            raise Failed(
                f"{file} does not have the passwords of admin and demo: restore it, or remove it and "
                "set new ones with `openstack user set --password`."
            ) from None

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
