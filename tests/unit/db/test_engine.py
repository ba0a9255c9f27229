"""Transactions: what was committed is kept, what failed is not, and the rest of a shared commit is."""

from __future__ import annotations

import asyncio
import contextlib
import math
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import bindparam, func, insert, select, text, update

from kilonova.clock import SystemClock
from kilonova.db import sqlite
from kilonova.db.engine import Database, DatabaseUnavailable, Statement, Tx, UniqueViolation, db_now
from kilonova.db.postgresql import PostgresqlDatabase
from kilonova.db.schema import REVISION, bring_up, schema_version
from kilonova.db.sqlite import SqliteDatabase
from tests.conftest import _emptied

ADD = Statement(insert(schema_version).values(revision=bindparam("revision")))
COUNT = Statement(select(func.count()).select_from(schema_version))
NAMES = select(schema_version.c.revision)


def adding(name: str) -> Callable[[Tx], int]:
    return lambda tx: tx.run(ADD, revision=name)


async def names(db: Database) -> set[str]:
    return await db.read(lambda tx: {row[0] for row in tx.all(NAMES)}) - {REVISION}


async def test_a_failing_transaction_leaves_nothing_and_spares_its_neighbours(db: Database) -> None:
    def bad(tx: Tx) -> None:
        tx.run(ADD, revision="half")
        raise KeyError("on purpose")

    results = await asyncio.gather(
        db.write(adding("a")), db.write(bad), db.write(adding("b")), return_exceptions=True
    )
    assert isinstance(results[1], KeyError)
    assert results[0] == results[2] == 1
    assert await names(db) == {"a", "b"}


async def test_a_second_row_of_one_key_is_a_unique_violation(db: Database) -> None:
    await db.write(adding("x"))
    with pytest.raises(UniqueViolation):
        await db.write(adding("x"))
    assert await db.read(lambda tx: tx.scalar(COUNT)) == 2


async def test_calls_after_commit_are_made_only_after_a_commit(db: Database) -> None:
    heard: list[str] = []

    def kept(tx: Tx) -> None:
        tx.run(ADD, revision="kept")
        tx.call_after_commit(lambda: heard.append("kept"))

    def lost(tx: Tx) -> None:
        tx.call_after_commit(lambda: heard.append("lost"))
        raise ValueError

    await db.write(kept)
    with pytest.raises(ValueError):
        await db.write(lost)
    assert heard == ["kept"]


async def test_a_call_that_fails_keeps_nobody_from_hearing_of_his_commit(db: Database) -> None:
    reported: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: reported.append(context))
    heard: list[str] = []

    def write(name: str, call: Callable[[], object]) -> Callable[[Tx], None]:
        def fn(tx: Tx) -> None:
            tx.run(ADD, revision=name)
            tx.call_after_commit(lambda: call() and None)
            tx.call_after_commit(lambda: heard.append(name))

        return fn

    def fail() -> None:
        raise ZeroDivisionError

    await asyncio.gather(db.write(write("a", fail)), db.write(write("b", lambda: None)))
    assert sorted(heard) == ["a", "b"]
    assert [type(each["exception"]) for each in reported] == [ZeroDivisionError]


async def test_the_database_tells_the_time(db: Database) -> None:
    now = await db.read(lambda tx: tx.scalar(select(db_now())))
    assert 1_700_000_000_000_000 < now < 4_000_000_000_000_000


async def test_a_reader_cannot_change_anything(db: Database) -> None:
    with pytest.raises(Exception, match=r"readonly|read-only"):
        await db.read(adding("y"))
    assert await names(db) == set()
    await db.write(adding("z"))  # and leaves writers as they were
    assert await names(db) == {"z"}


async def test_a_reader_sees_one_moment(db: Database) -> None:
    """What is committed while it looks is not there for it."""
    looked, go_on = threading.Event(), threading.Event()

    def look(tx: Tx) -> tuple[int, int]:
        before = tx.scalar(COUNT)
        looked.set()
        assert go_on.wait(60)
        return before, tx.scalar(COUNT)

    reading = asyncio.create_task(db.read(look))
    await asyncio.to_thread(looked.wait, 60)
    await db.write(adding("meanwhile"))
    go_on.set()
    assert await reading == (1, 1)
    assert await names(db) == {"meanwhile"}


async def test_a_cancelled_write_is_over_when_its_caller_hears_of_it(db: Database) -> None:
    """Else its change could come after that of whoever cleans up behind it."""
    begun, go_on, heard = threading.Event(), threading.Event(), []

    def slow(tx: Tx) -> None:
        begun.set()
        assert go_on.wait(60)
        tx.run(ADD, revision="late")
        tx.call_after_commit(lambda: heard.append("late"))

    async def caller() -> set[str]:
        try:
            await db.write(slow)
        except asyncio.CancelledError:
            return await names(db)
        raise AssertionError("not cancelled")

    task = asyncio.create_task(caller())
    await asyncio.to_thread(begun.wait, 60)
    task.cancel()
    done, _ = await asyncio.wait({task}, timeout=0.05)
    assert not done
    go_on.set()
    assert await task == {"late"}
    assert heard == ["late"]


async def test_a_caller_that_is_cancelled_twice_waits_no_longer(db: Database) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slow(tx: Tx) -> None:
        begun.set()
        assert go_on.wait(60)
        tx.run(ADD, revision="late")

    task = asyncio.create_task(db.write(slow))
    await asyncio.to_thread(begun.wait, 60)
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    go_on.set()
    await db.write(adding("next"))
    while await names(db) != {"late", "next"}:  # on PostgreSQL it may be the later one
        await asyncio.sleep(0.01)


# ---- SQLite ----


@contextlib.asynccontextmanager
async def sqlite_database(path: Path, **options: Any) -> AsyncIterator[SqliteDatabase]:
    made = SqliteDatabase(path, SystemClock(), **options)
    await bring_up(made)
    yield made
    await made.close()


@contextlib.contextmanager
def locked(path: Path) -> Any:
    """Another process has the database locked, as an operator with sqlite3 may."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


def commits_of(db: SqliteDatabase, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many transactions each commit has had."""
    sizes: list[int] = []
    commit = db._commit

    def counted(connection: Any, jobs: list[Any]) -> None:
        sizes.append(len(jobs))
        commit(connection, jobs)

    monkeypatch.setattr(db, "_commit", counted)
    return sizes


async def test_those_who_wait_for_a_slow_database_share_its_commits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = 200
    async with sqlite_database(tmp_path / "x.db") as db:
        sizes = commits_of(db, monkeypatch)
        with locked(db.path):
            writes = [asyncio.ensure_future(db.write(adding(f"n{index}"))) for index in range(number)]
            await asyncio.sleep(0)
            done, _ = await asyncio.wait(writes, timeout=0.1)
            assert not done
        assert await asyncio.gather(*writes) == [1] * number
        assert sum(sizes) == number
        assert len(sizes) <= 1 + math.ceil(number / sqlite.GROUP)
        assert len(await names(db)) == number


async def test_a_lock_that_lasts_is_unavailability_and_not_for_ever(tmp_path: Path) -> None:
    async with sqlite_database(tmp_path / "x.db", patience=0.1) as db:
        with locked(db.path):
            assert await names(db) == set()  # readers do not mind
            results = await asyncio.gather(
                *(db.write(adding(f"n{index}")) for index in range(5)), return_exceptions=True
            )
            assert all(isinstance(each, DatabaseUnavailable) for each in results)
            assert "locked" in str(results[0])
        await db.write(adding("after"))
        assert await names(db) == {"after"}


async def test_a_stop_does_not_wait_for_a_lock(tmp_path: Path) -> None:
    async with sqlite_database(tmp_path / "x.db", patience=3600) as db:
        with locked(db.path):
            writing = asyncio.create_task(db.write(adding("x")))
            await asyncio.sleep(0.05)
            await asyncio.wait_for(db.close(), 60)
            with pytest.raises(DatabaseUnavailable):
                await writing
        for late in (db.write(adding("y")), db.read(lambda tx: tx.all(NAMES))):
            with pytest.raises(DatabaseUnavailable):
                await late


def room(tx: Tx, pages: int) -> None:
    """As if the disk had room for so many pages more."""
    used = tx.scalar(text("PRAGMA page_count"))
    tx.run(text(f"PRAGMA max_page_count = {used + pages}"))


async def test_a_full_disk_is_unavailability_and_harms_nothing(tmp_path: Path) -> None:
    async with sqlite_database(tmp_path / "x.db") as db:
        await db.write(adding("before"))
        await db.write(lambda tx: room(tx, 2))
        big = "b" * 200_000
        results = await asyncio.gather(
            *(db.write(adding(f"{index}{big}")) for index in range(4)), return_exceptions=True
        )
        assert all(isinstance(each, DatabaseUnavailable) for each in results), results
        assert "full" in str(results[0])
        assert await names(db) == {"before"}
        await db.write(lambda tx: room(tx, 1_000_000))
        await db.write(adding(big))
        assert await names(db) == {"before", big}
        assert await db.read(lambda tx: tx.scalar(text("PRAGMA integrity_check"))) == "ok"


async def test_a_fault_of_ours_is_not_taken_for_one_of_the_disk(db: Database) -> None:
    with pytest.raises(Exception, match="no_such_table") as caught:
        await db.write(lambda tx: tx.run(text("DELETE FROM no_such_table")))
    assert not isinstance(caught.value, DatabaseUnavailable)


Job = tuple[str, str]


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    jobs=st.lists(
        st.tuples(st.sampled_from(["add", "fail", "both"]), st.sampled_from("abcdefgh")), max_size=30
    )
)
async def test_sharing_a_commit_makes_no_difference_to_anybody(tmp_path: Path, jobs: list[Job]) -> None:
    """Whatever transactions meet in one commit, each fares as if it had been alone."""

    def transaction(kind: str, name: str) -> Callable[[Tx], str]:
        def fn(tx: Tx) -> str:
            if kind in ("fail", "both"):
                tx.run(ADD, revision=f"{name}{name}")
            if kind == "fail":
                raise KeyError(name)
            tx.run(ADD, revision=name)
            return name

        return fn

    expected: list[object] = []
    there: set[str] = set()
    for kind, name in jobs:
        wanted = {name} if kind == "add" else {name, name * 2}
        clash = (there & {name * 2}) if kind == "fail" else (there & wanted)
        if clash:
            expected.append(UniqueViolation)
        elif kind == "fail":
            expected.append(KeyError)
        else:
            there |= wanted
            expected.append(name)
    path = tmp_path / "group.db"
    path.unlink(missing_ok=True)
    async with sqlite_database(path) as db:
        with locked(path):  # so that they wait for each other
            writes = [asyncio.ensure_future(db.write(transaction(*job))) for job in jobs]
            await asyncio.sleep(0)
        results = await asyncio.gather(*writes, return_exceptions=True)
        assert [each if isinstance(each, str) else type(each) for each in results] == expected
        assert await names(db) == there


# ---- PostgreSQL ----


@pytest.fixture
async def postgresql(request: pytest.FixtureRequest) -> AsyncIterator[PostgresqlDatabase]:
    conninfo = _emptied(request.getfixturevalue("postgresql_server"), "engine")
    made = PostgresqlDatabase(conninfo)
    await bring_up(made)
    yield made
    await made.close()


def hang_up(db: PostgresqlDatabase) -> None:
    """The server ends all our sessions, as at a restart."""
    import psycopg

    with psycopg.connect(db._conninfo, autocommit=True) as other:
        other.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid != pg_backend_pid()"
        )


@pytest.mark.postgresql
async def test_a_session_that_died_while_idle_is_replaced_unseen(postgresql: PostgresqlDatabase) -> None:
    await asyncio.gather(*(postgresql.write(adding(f"a{index}")) for index in range(8)))
    await asyncio.to_thread(hang_up, postgresql)
    await asyncio.gather(*(postgresql.write(adding(f"b{index}")) for index in range(8)))
    assert len(await names(postgresql)) == 16


@pytest.mark.postgresql
async def test_a_session_that_dies_before_the_commit_costs_a_repeat(postgresql: PostgresqlDatabase) -> None:
    runs: list[int] = []

    def write(tx: Tx) -> None:
        tx.run(ADD, revision="once")
        runs.append(1)
        if len(runs) == 1:
            hang_up(postgresql)
            tx.all(NAMES)

    await postgresql.write(write)
    assert len(runs) == 2
    assert await names(postgresql) == {"once"}


@pytest.mark.postgresql
async def test_a_session_that_dies_at_the_commit_is_told_to_the_caller(
    postgresql: PostgresqlDatabase,
) -> None:
    """Nobody knows then whether it happened, so it is not repeated."""
    runs: list[int] = []

    def write(tx: Tx) -> None:
        tx.run(ADD, revision="maybe")
        runs.append(1)
        hang_up(postgresql)

    with pytest.raises(DatabaseUnavailable):
        await postgresql.write(write)
    assert len(runs) == 1


@pytest.mark.postgresql
async def test_of_two_that_wait_in_a_circle_one_is_repeated(postgresql: PostgresqlDatabase) -> None:
    await postgresql.write(lambda tx: [tx.run(ADD, revision=name) for name in "ab"] and None)
    both = threading.Barrier(2)
    runs: list[str] = []

    def change(first: str, second: str) -> Callable[[Tx], None]:
        def fn(tx: Tx) -> None:
            runs.append(first)
            for name in (first, second):
                where = schema_version.c.revision == name
                tx.run(update(schema_version).where(where).values(revision=name))
                if name == first and len(runs) <= 2:
                    both.wait(60)

        return fn

    await asyncio.gather(postgresql.write(change("a", "b")), postgresql.write(change("b", "a")))
    assert len(runs) >= 3  # who was first to lose may meet the other one once more


async def test_a_server_that_is_not_there_is_unavailability() -> None:
    db = PostgresqlDatabase("host=/nowhere dbname=none connect_timeout=2")
    with pytest.raises(DatabaseUnavailable, match="Cannot reach PostgreSQL"):
        await db.read(lambda tx: None)
    await db.close()
