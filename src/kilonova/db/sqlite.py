"""SQLite: one writer thread that lets waiting transactions share a commit, and a few readers.

WAL with full sync: what was answered survives a power cut, and the cost of the sync is shared.
"""

from __future__ import annotations

import asyncio
import os
import queue
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy.dialects.sqlite import dialect as sqlite_dialect

from kilonova.clock import Clock
from kilonova.db.engine import DatabaseUnavailable, Tx, UniqueViolation, call_all
from kilonova.db.fence import within_fence

T = TypeVar("T")

GROUP = 64  # transactions that may share a commit
READERS = 2
PATIENCE = 10.0  # seconds that a write waits for another process that has the database locked
LOOK_AGAIN = 0.02  # seconds between looks whether it still has

_UNIQUE = (sqlite3.SQLITE_CONSTRAINT_UNIQUE, sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY)
_UNAVAILABLE = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_PROTOCOL,
    }
)
"""What is wrong with the file or the disk under it, and not with the statement."""


class _Job:
    __slots__ = ("error", "fn", "future", "over", "result", "settled", "tx")

    def __init__(self, fn: Callable[[Tx], Any], future: asyncio.Future[Any]) -> None:
        self.fn = fn
        self.future = future
        self.result: Any = None
        self.error: BaseException | None = None
        self.tx: Tx | None = None
        self.settled = False
        self.over: asyncio.Future[None] | None = None  # set when its caller has been cancelled


class _Look:
    """One read."""

    __slots__ = ("error", "fn", "future", "result")

    def __init__(self, fn: Callable[[Tx], Any], future: asyncio.Future[Any]) -> None:
        self.fn = fn
        self.future = future
        self.result: Any = None
        self.error: BaseException | None = None

    def settle(self) -> None:
        if self.future.cancelled():
            return
        if self.error is not None:
            self.future.set_exception(self.error)
        else:
            self.future.set_result(self.result)


class SqliteDatabase:
    """A Database on one file."""

    name = "sqlite"

    def __init__(self, path: Path, clock: Clock, *, patience: float = PATIENCE) -> None:
        self.path = path
        self._clock = clock
        self._patience = patience
        self._dialect = sqlite_dialect(paramstyle="named")
        self._loop = asyncio.get_running_loop()
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._looks: queue.SimpleQueue[_Look | None] = queue.SimpleQueue()
        _make(path)
        # A file that cannot be opened is reported here, not later.
        self._threads = [
            threading.Thread(target=work, args=(self._connect(),), name=f"sqlite-{name}", daemon=True)
            for name, work in [("write", self._write_loop), *[("read", self._read_loop)] * READERS]
        ]
        for thread in self._threads:
            thread.start()

    async def write(self, fn: Callable[[Tx], T]) -> T:
        if self._closing.is_set():
            raise DatabaseUnavailable(f"The database {self.path} is closed.")
        job = _Job(within_fence(self, fn), self._loop.create_future())
        self._jobs.put(job)
        try:
            result: T = await job.future
        except asyncio.CancelledError:
            # What it changes must not come after what its caller does next.
            if not job.settled:
                job.over = self._loop.create_future()
                await job.over
            raise
        return result

    async def read(self, fn: Callable[[Tx], T]) -> T:
        if self._closing.is_set():
            raise DatabaseUnavailable(f"The database {self.path} is closed.")
        future: asyncio.Future[T] = self._loop.create_future()
        self._looks.put(_Look(fn, future))
        return await future

    async def close(self) -> None:
        self._closing.set()
        self._jobs.put(None)
        for _ in range(READERS):
            self._looks.put(None)
        for thread in self._threads:
            await self._loop.run_in_executor(None, thread.join)

    def _connect(self) -> sqlite3.Connection:
        try:
            connection = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute("PRAGMA foreign_keys=ON")
            connection.execute("PRAGMA temp_store=MEMORY")
            connection.execute("PRAGMA cache_size=-6000")
        except sqlite3.Error as error:
            raise DatabaseUnavailable(f"Cannot open the database {self.path}: {error}.") from error
        connection.create_function("kilonova_now", 0, self._clock.now)
        connection.create_function("regexp", 2, _regexp, deterministic=True)
        return connection

    # ---- a reader's thread ----

    def _read_loop(self, connection: sqlite3.Connection) -> None:
        connection.execute("PRAGMA query_only=ON")
        try:
            while (look := self._looks.get()) is not None:
                try:
                    look.result = self._read(connection, look.fn)
                except BaseException as error:  # noqa: BLE001 - it belongs to the caller, in another thread
                    look.error = _translated(error)
                self._loop.call_soon_threadsafe(look.settle)
        finally:
            connection.close()

    def _read(self, connection: sqlite3.Connection, fn: Callable[[Tx], T]) -> T:
        cursor = connection.cursor()
        cursor.execute("BEGIN")
        try:
            return fn(Tx(cursor, self._dialect))
        finally:
            cursor.execute("COMMIT")
            cursor.close()

    # ---- the writer's thread ----

    def _write_loop(self, connection: sqlite3.Connection) -> None:
        # Waiting for a lock is our own, so that a stop need not wait for whoever holds it.
        connection.execute("PRAGMA busy_timeout=0")
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
                    self._loop.call_soon_threadsafe(self._settle, jobs)
        finally:
            connection.close()

    def _commit(self, connection: sqlite3.Connection, jobs: list[_Job]) -> None:
        """Run the jobs, each in a savepoint of its own, and commit them together."""
        cursor = connection.cursor()
        try:
            self._begin(cursor)
            for job in jobs:
                self._run(connection, cursor, job)
            cursor.execute("COMMIT")
        except Exception as error:  # noqa: BLE001 - this thread must not die: all would wait for ever
            if connection.in_transaction:
                connection.rollback()
            told = error if isinstance(error, DatabaseUnavailable) else _unavailable(error)
            for job in jobs:
                job.error = job.error or told
        finally:
            cursor.close()

    def _begin(self, cursor: sqlite3.Cursor) -> None:
        waited = 0.0
        while True:
            try:
                cursor.execute("BEGIN IMMEDIATE")
                return
            except sqlite3.OperationalError as error:
                if _primary(error) != sqlite3.SQLITE_BUSY or waited >= self._patience:
                    raise
            if self._closing.wait(LOOK_AGAIN):
                raise DatabaseUnavailable("The database is locked by another process, and we are ending.")
            waited += LOOK_AGAIN

    def _run(self, connection: sqlite3.Connection, cursor: sqlite3.Cursor, job: _Job) -> None:
        cursor.execute("SAVEPOINT job")
        job.tx = Tx(cursor, self._dialect)
        try:
            job.result = job.fn(job.tx)
        except BaseException as error:  # it belongs to the caller, who is in another thread
            job.error = _translated(error)
            if not connection.in_transaction:  # SQLite undid all of it, as it does when the disk is full
                raise DatabaseUnavailable(f"The database cannot be written: {error}.") from error
            cursor.execute("ROLLBACK TO job")
        cursor.execute("RELEASE job")

    # ---- in the event loop again ----

    def _settle(self, jobs: list[_Job]) -> None:
        for job in jobs:
            job.settled = True
            if job.error is None and job.tx is not None:
                call_all(self._loop, job.tx.after_commit)
            if job.over is not None and not job.over.done():
                job.over.set_result(None)
            if job.future.cancelled():
                continue
            if job.error is not None:
                job.future.set_exception(job.error)
            else:
                job.future.set_result(job.result)


def _make(path: Path) -> None:
    """Have a file that only we can read (SQLite gives its companions the same mode): hashes of passwords
    and what users hand to their servers are in it."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if os.fstat(handle).st_mode & 0o077:
                os.fchmod(handle, 0o600)
        finally:
            os.close(handle)
    except OSError as error:
        raise DatabaseUnavailable(f"Cannot open the database {path}: {error.strerror}.") from error


def _primary(error: BaseException) -> int:
    """SQLite's primary result code; 0 for an error of the Python module itself."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _unavailable(error: BaseException) -> DatabaseUnavailable:
    hint = " Free some space on its disk." if _primary(error) == sqlite3.SQLITE_FULL else ""
    return DatabaseUnavailable(
        f"The database cannot be used at the moment: {error}. Nothing was changed.{hint}"
    )


def _translated(error: BaseException) -> BaseException:
    if isinstance(error, sqlite3.IntegrityError) and error.sqlite_errorcode in _UNIQUE:
        return UniqueViolation(str(error))
    if isinstance(error, sqlite3.Error) and _primary(error) in _UNAVAILABLE:
        return _unavailable(error)
    return error


def _regexp(pattern: str, value: str | None) -> bool:
    import re

    return value is not None and re.search(pattern, value) is not None
