"""Refusing what comes from an operation that has been overtaken.

A controller that was cut off may still send the commands of an operation that another one has taken over, or
of one that is over by now.  Operations are numbered in the order of their beginning, and each takeover has a
higher epoch: for each guest the highest (operation, epoch) that was heard is kept, and less is refused.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

from kilonova.clock import SECOND, Clock
from kilonova.errors import LostLease
from kilonova.rpc.messages import Command

KEEP = 7 * 24 * 3600 * SECOND


class Fences:
    """On disk, without waiting for it: what a power cut takes is the guests' end, too."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self._clock = clock
        self._connection = sqlite3.connect(path, isolation_level=None)
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA synchronous=NORMAL")
        self._connection.execute(
            "CREATE TABLE IF NOT EXISTS fences (instance TEXT PRIMARY KEY, action INTEGER NOT NULL, "
            "epoch INTEGER NOT NULL, at INTEGER NOT NULL)"
        )
        self._connection.execute("DELETE FROM fences WHERE at < ?", (clock.now() - KEEP,))
        rows = self._connection.execute("SELECT instance, action, epoch FROM fences").fetchall()
        self._highest: dict[str, tuple[int, int]] = {uuid: (action, epoch) for uuid, action, epoch in rows}

    def guard(self, params: Any) -> None:
        """``check`` for the parameters of any verb; those without a command change nothing and pass."""
        command = getattr(params, "command", None)
        if command is not None:
            guest = getattr(params, "guest", None)
            self.check(command, params.uuid if guest is None else guest.uuid)

    def check(self, command: Command, uuid: str) -> None:
        """Raises LostLease for a command that comes too late."""
        if not command.action:
            return  # of no operation, or of a controller that does not number them yet
        mine, highest = (command.action, command.epoch), self._highest.get(uuid, (0, 0))
        if mine < highest:
            raise LostLease(
                f"Operation {command.action} (epoch {command.epoch}) of server {uuid} was overtaken by "
                f"{highest[0]} (epoch {highest[1]})."
            )
        if mine > highest:
            self._highest[uuid] = mine
            self._connection.execute(
                "INSERT OR REPLACE INTO fences VALUES (?, ?, ?, ?)", (uuid, *mine, self._clock.now())
            )

    def close(self) -> None:
        self._connection.close()
