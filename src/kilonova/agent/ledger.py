"""What an agent has done already, for the verbs that must not happen twice.

Most verbs converge, so a repeat is harmless; a reboot is not.  Its result is written down under its command
id as soon as it is done: a repeat gets the result, and a repeat of one that was interrupted does it again.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

import msgspec

from kilonova.clock import SECOND, Clock
from kilonova.rpc.messages import Observed

KEEP = 7 * 24 * 3600 * SECOND
AHEAD = 60 * SECOND  # for how long generations are set aside at a time


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
        self._connection.execute("CREATE TABLE IF NOT EXISTS generations (until INTEGER NOT NULL)")
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

    def generations_until(self) -> int:
        """No generation above this one was ever given out."""
        row = self._connection.execute("SELECT max(until) FROM generations").fetchone()
        return row[0] or 0

    def set_generations_aside(self, until: int) -> None:
        self._connection.execute("INSERT INTO generations VALUES (?)", (until,))
        self._connection.execute("DELETE FROM generations WHERE until < ?", (until,))

    def close(self) -> None:
        self._connection.close()


class Generations:
    """Numbers that rise with every observation, also over restarts of the agent and of its clock: the time
    in microseconds where that is higher than the last one."""

    def __init__(self, clock: Clock, ledger: Ledger) -> None:
        self._clock = clock
        self._ledger = ledger
        self._last = self._until = ledger.generations_until()

    def next(self) -> int:
        self._last = max(self._last + 1, self._clock.now())
        if self._last > self._until:
            self._until = self._last + AHEAD
            self._ledger.set_generations_aside(self._until)
        return self._last
