"""What is on the disks of guests that are records, and snapshots of it: a line of bytes each."""

from __future__ import annotations

import sqlite3

from kilonova.errors import HostFault

LEAST = 4096  # bytes of a disk that nobody has written to


class FakeData:
    """Implements virt.driver.SnapshotData."""

    disk_format = "raw"

    def __init__(self, content: bytes) -> None:
        self.size = len(content)
        self._content = content

    async def read(self, offset: int, size: int) -> bytes:
        return self._content[offset : offset + size]


class FakeDisks:
    """In the file of the guests, and like these they outlive the process."""

    def __init__(self, connection: sqlite3.Connection, host: str = "") -> None:
        self._connection = connection
        self._host = host
        connection.execute(
            "CREATE TABLE IF NOT EXISTS disks (host TEXT NOT NULL, uuid TEXT NOT NULL, snapshot_of TEXT NOT "
            "NULL, content BLOB NOT NULL, PRIMARY KEY (uuid, host, snapshot_of))"
        )

    def content(self, uuid: str) -> bytes:
        """What is on a guest's disk."""
        return self._get(uuid, "") or f"disk of {uuid}".encode().ljust(LEAST, b".")

    def write(self, uuid: str, content: bytes) -> None:
        self._put(uuid, "", content)

    def snapshot(self, uuid: str, image_id: str) -> None:
        if self._get(uuid, image_id) is None:
            self._put(uuid, image_id, self.content(uuid))

    def data(self, uuid: str, image_id: str) -> FakeData:
        found = self._get(uuid, image_id)
        if found is None:
            raise HostFault(f"There is no snapshot of guest {uuid} for image {image_id}.")
        return FakeData(found)

    def snapshots(self) -> list[tuple[str, str]]:
        """(guest, image) of all snapshots that are there."""
        rows = self._connection.execute(
            "SELECT uuid, snapshot_of FROM disks WHERE host = ? AND snapshot_of != ''", (self._host,)
        )
        return [(row[0], row[1]) for row in rows]

    def drop_snapshot(self, uuid: str, image_id: str) -> None:
        self._connection.execute(
            "DELETE FROM disks WHERE uuid = ? AND host = ? AND snapshot_of = ?", (uuid, self._host, image_id)
        )

    def discard(self, uuid: str) -> None:
        """All of a guest's files."""
        self._connection.execute("DELETE FROM disks WHERE uuid = ? AND host = ?", (uuid, self._host))

    def _get(self, uuid: str, snapshot_of: str) -> bytes | None:
        row = self._connection.execute(
            "SELECT content FROM disks WHERE uuid = ? AND host = ? AND snapshot_of = ?",
            (uuid, self._host, snapshot_of),
        ).fetchone()
        return None if row is None else row[0]

    def _put(self, uuid: str, snapshot_of: str, content: bytes) -> None:
        self._connection.execute(
            "INSERT OR REPLACE INTO disks VALUES (?, ?, ?, ?)", (self._host, uuid, snapshot_of, content)
        )
