"""What an agent has done already, for the verbs that must not happen twice.

Most verbs converge, so a repeat is harmless; a reboot is not.  Its command id is written down before the
guest is touched and its result after: a repeat gets the result, and a repeat of one that was interrupted
does it again.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

import msgspec

from kilonova.clock import SECOND, Clock
from kilonova.rpc.messages import Observed

KEEP = 7 * 24 * 3600 * SECOND


class Ledger:
    """Command id -> result, on disk."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self._clock = clock
        self._connection = sqlite3.connect(path, isolation_level=None)
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute(
            "CREATE TABLE IF NOT EXISTS done "
            "(command TEXT PRIMARY KEY, result BLOB NOT NULL, at INTEGER NOT NULL)"
        )
        self._connection.execute("DELETE FROM done WHERE at < ?", (clock.now() - KEEP,))

    def result(self, command: str) -> Observed | None:
        """What the command gave when it was done, or None."""
        row = self._connection.execute("SELECT result FROM done WHERE command = ?", (command,)).fetchone()
        return None if row is None else msgspec.json.decode(row[0], type=Observed)

    def record(self, command: str, result: Observed) -> None:
        self._connection.execute(
            "INSERT OR REPLACE INTO done VALUES (?, ?, ?)",
            (command, msgspec.json.encode(result), self._clock.now()),
        )

    def close(self) -> None:
        self._connection.close()


class Generations:
    """Numbers that rise with every observation, also over restarts of the agent: the time in
    microseconds, and never the same twice."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._last = 0

    def next(self) -> int:
        self._last = max(self._last + 1, self._clock.now())
        return self._last
