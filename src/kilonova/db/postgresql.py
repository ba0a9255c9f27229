"""PostgreSQL: a small pool of threads, each with a connection of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from sqlalchemy.dialects.postgresql.psycopg import PGCompiler_psycopg
from sqlalchemy.dialects.postgresql.psycopg import dialect as psycopg_dialect

from kilonova.db.engine import DatabaseUnavailable, Tx, UniqueViolation, call_all
from kilonova.db.fence import within_fence
from kilonova.db.lanes import Lanes, Queued

T = TypeVar("T")

ATTEMPTS = 5  # of a transaction that lost against another one, or its connection
ATTENTIVE = {
    "connect_timeout": 5,  # seconds
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,  # milliseconds that what was sent may go unheard
}
LOST = (psycopg.errors.SerializationFailure, psycopg.errors.DeadlockDetected)
REPEATABLE_READ = psycopg.IsolationLevel.REPEATABLE_READ


class _SnapshotCompiler(PGCompiler_psycopg):
    """Leaves FOR UPDATE and its like out: a snapshot needs no locks, and may not take any."""

    def for_update_clause(self, select: Any, **kw: Any) -> str:
        return ""


def _attentive(conninfo: str) -> str:
    """With limits, unless it has its own, for a server that vanishes without a word."""
    given = conninfo_to_dict(conninfo)
    limits = {name: value for name, value in ATTENTIVE.items() if name not in given}
    return str(make_conninfo(conninfo, **limits))


async def _to_its_end(running: asyncio.Future[T]) -> T:
    """Await it; a caller that is cancelled goes on when it is over, so that what it changes does not come
    after what its caller does next."""
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait({running})
        raise


def _understood(error: Exception) -> Exception:
    """An error of the driver in our words."""
    return UniqueViolation(str(error)) if isinstance(error, psycopg.errors.UniqueViolation) else error


class PostgresqlDatabase:
    """A Database on a PostgreSQL server.

    ``conninfo`` is a libpq connection string; ``skew`` (microseconds) shifts ``kilonova_now()`` in this
    object's sessions, which is how tests move time.
    """

    name = "postgresql"

    def __init__(self, conninfo: str, *, threads: int = 4, skew: int = 0) -> None:
        self._conninfo = _attentive(conninfo)
        self._skew = skew
        self._dialect = psycopg_dialect()  # type: ignore[no-untyped-call]
        self._snapshot_dialect = psycopg_dialect()  # type: ignore[no-untyped-call]
        self._snapshot_dialect.statement_compiler = _SnapshotCompiler
        self._loop = asyncio.get_running_loop()
        self._pool = ThreadPoolExecutor(threads, "postgresql")
        self._lanes = Lanes(self._commit, (psycopg.OperationalError, psycopg.InterfaceError), _understood)
        self._local = threading.local()
        self._connections: set[Any] = set()

    async def write(self, fn: Callable[[Tx], T]) -> T:
        fenced = within_fence(self, fn)
        if isinstance(fn, Queued):
            return await _to_its_end(self._lanes.put(fn.lane, fenced))
        return (await _to_its_end(self._begin(fenced)))[0]

    async def _commit(self, fn: Callable[[Tx], T]) -> T:
        return (await self._begin(fn))[0]

    def _begin(self, fn: Callable[[Tx], T]) -> asyncio.Future[tuple[T, Tx]]:
        """Run it in a thread, and make the calls that wait for its commit."""
        running = self._loop.run_in_executor(self._pool, self._run, fn, False)
        running.add_done_callback(self._call_after_commit)
        return running

    def _call_after_commit(self, running: asyncio.Future[tuple[Any, Tx]]) -> None:
        """Also for a caller that has gone: the transaction is committed all the same."""
        if not running.cancelled() and running.exception() is None:
            call_all(self._loop, running.result()[1].after_commit)

    async def read(self, fn: Callable[[Tx], T]) -> T:
        result, _ = await self._loop.run_in_executor(self._pool, self._run, fn, True)
        return result

    async def close(self) -> None:
        await self._lanes.close()
        await self._loop.run_in_executor(None, self._pool.shutdown)
        for connection in self._connections:
            self._part_with(connection)

    def shift(self, skew: int) -> None:
        """Move ``kilonova_now()`` of the sessions from now on."""
        self._skew = skew

    def _connection(self) -> Any:
        connection = getattr(self._local, "connection", None)
        if connection is None or connection.closed:
            try:
                connection = self._connect()
            except psycopg.OperationalError as error:
                raise DatabaseUnavailable(f"Cannot reach PostgreSQL: {error}.") from error
            self._local.connection = connection
            self._local.skew = 0
            self._connections.add(connection)
        return connection

    def _connect(self) -> Any:
        return psycopg.connect(self._conninfo, autocommit=False, prepare_threshold=2)

    def _part_with(self, connection: Any) -> None:
        connection.close()

    def _tell_skew(self, connection: Any) -> None:
        if self._local.skew != self._skew:
            connection.read_only = False
            connection.execute("SELECT set_config('kilonova.skew', %s, false)", (str(self._skew),))
            connection.commit()
            self._local.skew = self._skew

    def _run(self, fn: Callable[[Tx], T], reads: bool) -> tuple[T, Tx]:
        """Run ``fn`` in a transaction.  It is repeated when it lost against another one, and when the
        connection turned out to be dead before anything could have been committed."""
        for attempt in range(1, ATTEMPTS + 1):
            connection = self._connection()
            committing = False
            try:
                self._tell_skew(connection)
                connection.read_only = reads
                connection.isolation_level = REPEATABLE_READ if reads else None
                with connection.cursor() as cursor:
                    tx = Tx(cursor, self._snapshot_dialect if reads else self._dialect)
                    result = fn(tx)
                committing = True
                connection.commit()
                return result, tx
            except LOST as error:
                connection.rollback()
                if attempt == ATTEMPTS:
                    raise DatabaseUnavailable(
                        f"Lost against other transactions again and again: {error}."
                    ) from error
            except psycopg.errors.UniqueViolation as error:
                connection.rollback()
                raise UniqueViolation(str(error)) from error
            except (psycopg.OperationalError, psycopg.InterfaceError) as error:
                lost = connection.broken
                connection.close()
                self._connections.discard(connection)
                if committing or not lost or attempt == ATTEMPTS:
                    raise DatabaseUnavailable(f"PostgreSQL went away: {error}.") from error
            except BaseException:
                connection.rollback()
                raise
        raise AssertionError("unreachable")
