"""The guests of a fake hypervisor, in a file: like real ones they outlive the process that made them."""

from __future__ import annotations

import sqlite3
from pathlib import Path

PREPARED = -1  # its disks are there, it is not defined


class GuestFile:
    """uuid -> power state (PREPARED: only its disks exist), and its console.

    Written without syncing: a killed process loses nothing, a power cut takes the guests, as it would.
    """

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA synchronous=OFF")
        self._connection.execute(
            "CREATE TABLE IF NOT EXISTS guests (uuid TEXT PRIMARY KEY, state INTEGER NOT NULL, "
            "starts INTEGER NOT NULL DEFAULT 0, started_at INTEGER NOT NULL DEFAULT 0)"
        )
        self._states: dict[str, int] = dict(self._connection.execute("SELECT uuid, state FROM guests"))

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
            "INSERT INTO guests (uuid, state, starts, started_at) VALUES (:u, :s, :n, coalesce(:t, 0)) "
            "ON CONFLICT (uuid) DO UPDATE SET state = :s, starts = starts + :n, "
            "started_at = coalesce(:t, started_at)",
            {"u": uuid, "s": state, "n": 0 if started_at is None else 1, "t": started_at},
        )
        self._states[uuid] = state

    def starts(self, uuid: str) -> tuple[int, int]:
        """How often it has been started, and when last."""
        row = self._connection.execute(
            "SELECT starts, started_at FROM guests WHERE uuid = ?", (uuid,)
        ).fetchone()
        return (0, 0) if row is None else (int(row[0]), int(row[1]))

    def drop(self, uuid: str) -> None:
        if uuid in self._states:
            self._connection.execute("DELETE FROM guests WHERE uuid = ?", (uuid,))
            del self._states[uuid]

    def close(self) -> None:
        self._connection.close()
