"""PostgreSQL for tests: what a connection has learnt of the tables serves the next test, too."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import psycopg

from kilonova.db.postgresql import PostgresqlDatabase

_idle: defaultdict[str, list[Any]] = defaultdict(list)
"""Connections that nobody has, by conninfo."""


class LastingPostgresql(PostgresqlDatabase):
    """A Database whose connections outlive it and go to the next one with the same conninfo.

    To begin a session and learn all tables takes the server longer than most tests.
    """

    def _connect(self) -> Any:
        while _idle[self._conninfo]:
            connection = _idle[self._conninfo].pop()
            try:
                connection.execute("SELECT set_config('kilonova.skew', '0', false)")
                connection.commit()
            except psycopg.OperationalError:  # a test has ended it
                connection.close()
            else:
                return connection
        return super()._connect()

    def _part_with(self, connection: Any) -> None:
        if not connection.closed:
            connection.rollback()
            connection.read_only = False
            connection.isolation_level = None
            _idle[self._conninfo].append(connection)


def idle_sessions() -> list[int]:
    """The numbers of the server's processes for connections that nobody has."""
    connections = [connection for each in _idle.values() for connection in each]
    return [connection.info.backend_pid for connection in connections if not connection.closed]


def close_idle() -> None:
    """Before the server ends."""
    for connections in _idle.values():
        for connection in connections:
            connection.close()
    _idle.clear()
