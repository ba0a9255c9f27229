"""The guests of a fake hypervisor, in a file: like real ones they outlive the process that made them."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

import msgspec

from kilonova.model.states import Power
from kilonova.model.volume import Attachment

T = TypeVar("T")

PREPARED = -1  # its disks are there, it is not defined
PARKED = "_resize"  # after a guest's uuid: its files that were put aside


def opened(path: Path) -> sqlite3.Connection:
    """The file at ``path``, made if need be."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=OFF")
    connection.execute(
        "CREATE TABLE IF NOT EXISTS guests (host TEXT NOT NULL, uuid TEXT NOT NULL, state INTEGER NOT NULL, "
        "starts INTEGER NOT NULL DEFAULT 0, started_at INTEGER NOT NULL DEFAULT 0, "
        "macs TEXT NOT NULL DEFAULT '', PRIMARY KEY (uuid, host))"
    )
    connection.execute(
        "CREATE TABLE IF NOT EXISTS volumes (host TEXT NOT NULL, uuid TEXT NOT NULL, "
        "content BLOB NOT NULL, PRIMARY KEY (host, uuid))"
    )
    connection.execute("CREATE TABLE IF NOT EXISTS boots (host TEXT PRIMARY KEY, boot_id TEXT NOT NULL)")
    connection.execute(
        "CREATE TABLE IF NOT EXISTS transfers (host TEXT NOT NULL, uuid TEXT NOT NULL, "
        "content BLOB NOT NULL, PRIMARY KEY (uuid, host))"
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
        rows = self._connection.execute("SELECT uuid, content FROM volumes WHERE host = ?", (host,))
        self._volumes: dict[str, tuple[Attachment, ...]] = {
            uuid: msgspec.json.decode(content, type=tuple[Attachment, ...]) for uuid, content in rows
        }

    def state(self, uuid: str) -> int | None:
        """None: nothing of this guest is here."""
        return self._states.get(uuid)

    def defined(self) -> dict[str, int]:
        return {uuid: state for uuid, state in self._states.items() if state != PREPARED}

    def everything(self) -> dict[str, int]:
        """All guests, also those of which only the disks exist, and as UUID_resize what was put aside."""
        return dict(self._states)

    def is_parked(self, uuid: str) -> bool:
        """Whether files of this guest were put aside."""
        return uuid + PARKED in self._states

    def put_parked(self, uuid: str) -> None:
        self.put(uuid + PARKED, PREPARED)

    def drop_parked(self, uuid: str) -> None:
        self.drop(uuid + PARKED)

    def put(
        self,
        uuid: str,
        state: int,
        *,
        started_at: int | None = None,
        macs: tuple[str, ...] | None = None,
        volumes: tuple[Attachment, ...] | None = None,
    ) -> None:
        """``macs``: those of its network cards, in their order; None: as they were.  So with ``volumes``."""
        self._connection.execute(
            "INSERT INTO guests (host, uuid, state, starts, started_at, macs) "
            "VALUES (:h, :u, :s, :n, coalesce(:t, 0), coalesce(:m, '')) "
            "ON CONFLICT (uuid, host) DO UPDATE SET state = :s, starts = starts + :n, "
            "started_at = coalesce(:t, started_at), macs = coalesce(:m, macs)",
            {
                "h": self._host,
                "u": uuid,
                "s": state,
                "n": 0 if started_at is None else 1,
                "t": started_at,
                "m": None if macs is None else " ".join(macs),
            },
        )
        self._states[uuid] = state
        if volumes is not None:
            self._put_volumes(uuid, volumes)

    def _put_volumes(self, uuid: str, volumes: tuple[Attachment, ...]) -> None:
        """Most guests have none, and cost nothing here."""
        if volumes == self.volumes(uuid):
            return
        self._connection.execute(
            "INSERT OR REPLACE INTO volumes VALUES (?, ?, ?)",
            (self._host, uuid, msgspec.json.encode(volumes)),
        )
        self._volumes[uuid] = volumes

    def volumes(self, uuid: str) -> tuple[Attachment, ...]:
        """Its volumes, in their order, each as it was attached."""
        return self._volumes.get(uuid, ())

    def macs(self, uuid: str) -> tuple[str, ...]:
        """Its network cards."""
        row = self._connection.execute(
            "SELECT macs FROM guests WHERE uuid = ? AND host = ?", (uuid, self._host)
        ).fetchone()
        return () if row is None else tuple(row[0].split())

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
        if self._volumes.pop(uuid, None) is not None:
            self._connection.execute("DELETE FROM volumes WHERE host = ? AND uuid = ?", (self._host, uuid))

    def boot_id(self) -> str:
        """Of the host, as the kernel of a real one has it; the same until its power is cut."""
        new = (self._host, str(uuid4()))
        self._connection.execute("INSERT OR IGNORE INTO boots VALUES (?, ?)", new)
        row = self._connection.execute("SELECT boot_id FROM boots WHERE host = ?", (self._host,)).fetchone()
        return str(row[0])

    def lose_power(self) -> None:
        """The host goes off and is booted: no guest runs, and nobody has been told."""
        for uuid, state in list(self._states.items()):
            if state in (Power.RUNNING, Power.PAUSED):
                self.put(uuid, Power.SHUTDOWN)
        self._connection.execute("INSERT OR REPLACE INTO boots VALUES (?, ?)", (self._host, str(uuid4())))

    def transfers(self, kind: type[T]) -> dict[str, T]:
        """What is known of guests that move while they run: records of a kind of the caller's."""
        rows = self._connection.execute("SELECT uuid, content FROM transfers WHERE host = ?", (self._host,))
        return {uuid: msgspec.json.decode(content, type=kind) for uuid, content in rows}

    def put_transfer(self, uuid: str, record: msgspec.Struct) -> None:
        values = (self._host, uuid, msgspec.json.encode(record))
        self._connection.execute("INSERT OR REPLACE INTO transfers VALUES (?, ?, ?)", values)

    def drop_transfer(self, uuid: str) -> None:
        self._connection.execute("DELETE FROM transfers WHERE uuid = ? AND host = ?", (uuid, self._host))

    @property
    def connection(self) -> sqlite3.Connection:
        """The file, for what else is kept in it."""
        return self._connection

    def close(self) -> None:
        self._connection.close()
