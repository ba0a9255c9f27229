"""SQLite: one writer thread that lets waiting transactions share a commit, and a few readers.

WAL with full sync: what was answered survives a power cut, and the cost of the sync is shared.
"""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy.dialects.sqlite import dialect as sqlite_dialect

from kilonova.clock import Clock
from kilonova.db.engine import DatabaseUnavailable, Tx, UniqueViolation

T = TypeVar("T")

GROUP = 64  # transactions that may share a commit
READERS = 2


class _Job:
    __slots__ = ("error", "fn", "future", "result", "tx")

    def __init__(self, fn: Callable[[Tx], Any], future: asyncio.Future[Any]) -> None:
        self.fn = fn
        self.future = future
        self.result: Any = None
        self.error: BaseException | None = None
        self.tx: Tx | None = None


class SqliteDatabase:
    """A Database on one file."""

    name = "sqlite"

    def __init__(self, path: Path, clock: Clock) -> None:
        self.path = path
        self._clock = clock
        self._dialect = sqlite_dialect(paramstyle="named")
        self._loop = asyncio.get_running_loop()
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._local = threading.local()
        self._readers = ThreadPoolExecutor(READERS, "sqlite-read")
        self._connections: list[sqlite3.Connection] = []
        self._writer = threading.Thread(target=self._write_loop, name="sqlite-write", daemon=True)
        self._connect().close()  # a path that cannot be opened is reported here, not later
        self._writer.start()

    async def write(self, fn: Callable[[Tx], T]) -> T:
        future: asyncio.Future[T] = self._loop.create_future()
        self._jobs.put(_Job(fn, future))
        return await future

    async def read(self, fn: Callable[[Tx], T]) -> T:
        return await self._loop.run_in_executor(self._readers, self._read, fn)

    async def close(self) -> None:
        self._jobs.put(None)
        await self._loop.run_in_executor(None, self._writer.join)
        self._readers.shutdown(wait=True)
        for connection in self._connections:
            connection.close()

    def _connect(self) -> sqlite3.Connection:
        try:
            connection = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute("PRAGMA foreign_keys=ON")
            connection.execute("PRAGMA busy_timeout=10000")
            connection.execute("PRAGMA temp_store=MEMORY")
            connection.execute("PRAGMA cache_size=-16000")
        except sqlite3.Error as error:
            raise DatabaseUnavailable(f"Cannot open the database {self.path}: {error}.") from error
        connection.create_function("kilonova_now", 0, self._clock.now)
        connection.create_function("regexp", 2, _regexp, deterministic=True)
        return connection

    def _read(self, fn: Callable[[Tx], T]) -> T:
        connection = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = self._connect()
            connection.execute("PRAGMA query_only=ON")
            self._connections.append(connection)
        cursor = connection.cursor()
        cursor.execute("BEGIN")
        try:
            return fn(Tx(cursor, self._dialect))
        finally:
            cursor.execute("COMMIT")
            cursor.close()

    def _write_loop(self) -> None:
        connection = self._connect()
        try:
            stop = False
            while not stop:
                batch = [self._jobs.get()]
                while len(batch) < GROUP and not self._jobs.empty():
                    batch.append(self._jobs.get())
                jobs = [job for job in batch if job is not None]
                stop = len(jobs) != len(batch)
                if jobs:
                    self._commit(connection, jobs)
                    self._loop.call_soon_threadsafe(_settle, jobs)
        finally:
            connection.close()

    def _commit(self, connection: sqlite3.Connection, jobs: list[_Job]) -> None:
        """Run the jobs, each in a savepoint of its own, and commit them together."""
        cursor = connection.cursor()
        try:
            cursor.execute("BEGIN IMMEDIATE")
            for job in jobs:
                self._run(cursor, job)
            cursor.execute("COMMIT")
        except sqlite3.Error as error:
            if connection.in_transaction:
                connection.rollback()
            for job in jobs:
                job.error = job.error or DatabaseUnavailable(f"SQLite cannot commit: {error}.")
        finally:
            cursor.close()

    def _run(self, cursor: sqlite3.Cursor, job: _Job) -> None:
        cursor.execute("SAVEPOINT job")
        job.tx = Tx(cursor, self._dialect)
        try:
            job.result = job.fn(job.tx)
        except BaseException as error:  # noqa: BLE001 - it belongs to the caller, who is in another thread
            cursor.execute("ROLLBACK TO job")
            job.error = _translated(error)
        cursor.execute("RELEASE job")


def _settle(jobs: list[_Job]) -> None:
    for job in jobs:
        if job.error is None and job.tx is not None:
            for call in job.tx.after_commit:
                call()
        if job.future.cancelled():
            continue
        if job.error is not None:
            job.future.set_exception(job.error)
        else:
            job.future.set_result(job.result)


def _translated(error: BaseException) -> BaseException:
    if isinstance(error, sqlite3.IntegrityError) and error.sqlite_errorcode in (
        sqlite3.SQLITE_CONSTRAINT_UNIQUE,
        sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY,
    ):
        return UniqueViolation(str(error))
    return error


def _regexp(pattern: str, value: str | None) -> bool:
    import re

    return value is not None and re.search(pattern, value) is not None
