"""The guests of a fake hypervisor, in a file: like real ones they outlive the process that made them."""

from __future__ import annotations

import sqlite3
from pathlib import Path

PREPARED = -1  # its disks are there, it is not defined


def opened(path: Path) -> sqlite3.Connection:
    """The file at ``path``, made if need be."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=OFF")
    connection.execute(
        "CREATE TABLE IF NOT EXISTS guests (host TEXT NOT NULL, uuid TEXT NOT NULL, state INTEGER NOT NULL, "
        "starts INTEGER NOT NULL DEFAULT 0, started_at INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (uuid, host))"
    )
    return connection


class GuestFile:
    """uuid -> power state (PREPARED: only its disks exist), and its console.

    Written without syncing: a killed process loses nothing, a power cut takes the guests, as it would.
    Several hosts may share a file that ``opened`` has given.
    """

    def __init__(self, path: Path | sqlite3.Connection, host: str = "") -> None:
        self._connection = opened(path) if isinstance(path, Path) else path
        self._host = host
        rows = self._connection.execute("SELECT uuid, state FROM guests WHERE host = ?", (host,))
        self._states: dict[str, int] = dict(rows)

    def state(self, uuid: str) -> int | None:
        """None: nothing of this guest is here."""
        return self._states.get(uuid)

    def defined(self) -> dict[str, int]:
        return {uuid: state for uuid, state in self._states.items() if state != PREPARED}

    def everything(self) -> dict[str, int]:
        """All guests, also those of which only the disks exist."""
        return dict(self._states)

    def put(self, uuid: str, state: int, *, started_at: int | None = None) -> None:
        self._connection.execute(
            "INSERT INTO guests (host, uuid, state, starts, started_at) "
            "VALUES (:h, :u, :s, :n, coalesce(:t, 0)) "
            "ON CONFLICT (uuid, host) DO UPDATE SET state = :s, starts = starts + :n, "
            "started_at = coalesce(:t, started_at)",
            {"h": self._host, "u": uuid, "s": state, "n": 0 if started_at is None else 1, "t": started_at},
        )
        self._states[uuid] = state

    def starts(self, uuid: str) -> tuple[int, int]:
        """How often it has been started, and when last."""
        row = self._connection.execute(
            "SELECT starts, started_at FROM guests WHERE uuid = ? AND host = ?", (uuid, self._host)
        ).fetchone()
        return (0, 0) if row is None else (int(row[0]), int(row[1]))

    def drop(self, uuid: str) -> None:
        if uuid in self._states:
            self._connection.execute("DELETE FROM guests WHERE uuid = ? AND host = ?", (uuid, self._host))
            del self._states[uuid]

    def close(self) -> None:
        self._connection.close()
