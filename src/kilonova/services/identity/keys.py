"""The keys of tokens: files in one directory, numbered; the newest seals, all of them open."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from pathlib import Path

import structlog
from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from kilonova.clock import SECOND
from kilonova.errors import Failed

log = structlog.get_logger("kilonova.identity")

KEEP = 3  # keys that stay after a rotation
ATTEMPTS = 5  # to read keys while others change them


class KeyRing:
    """Opens and seals.  Other processes may add keys to the directory at any time."""

    def __init__(self, directory: Path) -> None:
        """Make the directory and a first key if there are none.

        Raises Failed for a directory that cannot be used and for keys that others can read.
        """
        self._directory = directory
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not self._names():
                self._create(1)
            self._load()
        except OSError as error:
            raise Failed(f"Cannot use the token keys in {directory}: {error.strerror}.") from error

    def seal(self, data: bytes, now: int) -> str:
        return self._newest.encrypt_at_time(data, now // SECOND).decode("ascii")

    def open(self, text: str) -> bytes | None:
        """What was sealed, or None if none of the keys did it."""
        try:
            return self._all.decrypt(text)
        except InvalidToken:
            if not self._reload():
                return None
        try:
            return self._all.decrypt(text)
        except InvalidToken:
            return None

    def _reload(self) -> bool:
        """Whether there were other keys.  If they cannot be read, those that we have go on to serve."""
        try:
            if self._names() == self._loaded:
                return False
            self._load()
        except (OSError, Failed) as error:
            log.error("token keys cannot be read again", directory=str(self._directory), error=str(error))
            return False
        return True

    def rotate(self) -> None:
        """Seal with a new key from now on; the oldest keys go, and the tokens that they sealed."""
        self._create(self._names()[-1] + 1)
        for number in self._names()[:-KEEP]:
            (self._directory / str(number)).unlink(missing_ok=True)
        self._load()

    def _names(self) -> list[int]:
        return sorted(int(each.name) for each in self._directory.iterdir() if each.name.isdecimal())

    def _create(self, number: int) -> None:
        """Add a key, whole or not at all; if another process was faster, its key it is."""
        draft = self._directory / f".{secrets.token_hex(8)}"
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(Fernet.generate_key())
                file.flush()
                os.fsync(file.fileno())
            with contextlib.suppress(FileExistsError):
                (self._directory / str(number)).hardlink_to(draft)
        finally:
            draft.unlink()

    def _load(self) -> None:
        for _ in range(ATTEMPTS):
            names = self._names()
            try:
                keys = [self._read(number) for number in reversed(names)]
            except FileNotFoundError:  # another process has just rotated
                continue
            if keys:
                self._loaded, self._newest, self._all = names, keys[0], MultiFernet(keys)
                return
        raise Failed(f"There are no token keys in {self._directory}: restore them, or restart the process.")

    def _read(self, number: int) -> Fernet:
        path = self._directory / str(number)
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise Failed(f"The token key {path} can be read by others: chmod 600 it, or delete it.")
        try:
            return Fernet(path.read_bytes())
        except ValueError as error:
            raise Failed(f"The token key {path} is damaged: delete it.") from error
