"""PostgreSQL: a small pool of threads, each with a connection of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import psycopg
from sqlalchemy.dialects.postgresql.psycopg import dialect as psycopg_dialect

from kilonova.db.engine import DatabaseUnavailable, Tx, UniqueViolation

T = TypeVar("T")

ATTEMPTS = 5  # of a transaction that lost against another one


class PostgresqlDatabase:
    """A Database on a PostgreSQL server.

    ``conninfo`` is a libpq connection string; ``skew`` (microseconds) shifts ``kilonova_now()`` in this
    object's sessions, which is how tests move time.
    """

    name = "postgresql"

    def __init__(self, conninfo: str, *, threads: int = 4, skew: int = 0) -> None:
        self._conninfo = conninfo
        self._skew = skew
        self._dialect = psycopg_dialect()  # type: ignore[no-untyped-call]
        self._loop = asyncio.get_running_loop()
        self._pool = ThreadPoolExecutor(threads, "postgresql")
        self._local = threading.local()
        self._connections: list[Any] = []

    async def write(self, fn: Callable[[Tx], T]) -> T:
        result, tx = await self._loop.run_in_executor(self._pool, self._run, fn)
        for call in tx.after_commit:
            call()
        return result

    async def read(self, fn: Callable[[Tx], T]) -> T:
        result, _ = await self._loop.run_in_executor(self._pool, self._run, fn)
        return result

    async def close(self) -> None:
        self._pool.shutdown(wait=True)
        for connection in self._connections:
            connection.close()

    def shift(self, skew: int) -> None:
        """Move ``kilonova_now()`` of the sessions from now on."""
        self._skew = skew

    def _connection(self) -> Any:
        connection = getattr(self._local, "connection", None)
        if connection is None or connection.closed:
            try:
                connection = psycopg.connect(self._conninfo, autocommit=False, prepare_threshold=2)
            except psycopg.OperationalError as error:
                raise DatabaseUnavailable(f"Cannot reach PostgreSQL: {error}.") from error
            self._local.connection = connection
            self._local.skew = 0
            self._connections.append(connection)
        if self._local.skew != self._skew:
            connection.execute("SELECT set_config('kilonova.skew', %s, false)", (str(self._skew),))
            connection.commit()
            self._local.skew = self._skew
        return connection

    def _run(self, fn: Callable[[Tx], T]) -> tuple[T, Tx]:
        for attempt in range(1, ATTEMPTS + 1):
            connection = self._connection()
            try:
                with connection.cursor() as cursor:
                    tx = Tx(cursor, self._dialect)
                    result = fn(tx)
                connection.commit()
                return result, tx
            except (psycopg.errors.SerializationFailure, psycopg.errors.DeadlockDetected):
                connection.rollback()
                if attempt == ATTEMPTS:
                    raise
            except psycopg.errors.UniqueViolation as error:
                connection.rollback()
                raise UniqueViolation(str(error)) from error
            except (psycopg.OperationalError, psycopg.InterfaceError) as error:
                connection.close()
                raise DatabaseUnavailable(f"PostgreSQL went away: {error}.") from error
            except BaseException:
                connection.rollback()
                raise
        raise AssertionError("unreachable")
