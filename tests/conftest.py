"""Databases for every test that needs one: SQLite in a file, and a PostgreSQL that this run starts."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import structlog

from kilonova.clock import Clock, SystemClock
from kilonova.db.engine import Database
from kilonova.db.schema import REVISION, bring_up
from kilonova.db.sqlite import SqliteDatabase
from kilonova.db.tables import load_all
from kilonova.testing.clock import VirtualClock
from kilonova.testing.empty_database import have_tables

# The machine is noisy: how long one example takes says nothing.
hypothesis.settings.register_profile("kilonova", deadline=None)
hypothesis.settings.load_profile("kilonova")

_configure = structlog.configure


def _configure_for_now(**given: Any) -> None:
    _configure(**{**given, "cache_logger_on_first_use": False})


# A command that a test runs in this process configures the process's logging: not for the tests that follow.
structlog.configure = _configure_for_now

# By itself structlog prints the variables of every frame with a traceback, which takes it many seconds.
structlog.configure(
    processors=[
        *structlog.get_config()["processors"][:-1],
        structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback),
    ]
)


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    before = structlog.get_config()
    yield
    _configure(**before)


def _postgresql_bin() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    return found[-1].parent if found else None


def _as_postgres(command: list[str]) -> list[str]:
    return ["runuser", "-u", "postgres", "--", *command] if os.geteuid() == 0 else command


@pytest.fixture(scope="session")
def postgresql_server(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Iterator[str]:
    """A throw-away server on a unix socket; gives the conninfo of its maintenance database."""
    binaries = _postgresql_bin()
    if binaries is None:
        pytest.fail("PostgreSQL is not installed: run `make test`, which installs it.")
    base = Path("/tmp") / f"kilonova-pg-{os.getpid()}-{worker_id}"
    base.mkdir(mode=0o777)
    base.chmod(0o777)
    data = base / "data"
    subprocess.run(
        _as_postgres([str(binaries / "initdb"), "-D", str(data), "-A", "trust", "-U", "kilonova", "-N"]),
        check=True,
        capture_output=True,
        cwd="/",
    )
    options = ["-c", "listen_addresses=", "-k", str(base), "-c", "fsync=off", "-c", "max_connections=200"]
    server = subprocess.Popen(
        _as_postgres([str(binaries / "postgres"), "-D", str(data), *options]),
        stderr=subprocess.DEVNULL,
        cwd="/",
    )
    conninfo = f"host={base} user=kilonova"
    try:
        for _ in range(200):
            ready = subprocess.run(
                [str(binaries / "pg_isready"), "-h", str(base)], capture_output=True, check=False
            )
            if ready.returncode == 0:
                break
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(0.05)
                pytest.fail("PostgreSQL did not start")
        yield conninfo
    finally:
        for each in _cleaners.values():
            each.close()
        from kilonova.testing.postgresql import close_idle

        close_idle()
        subprocess.run(
            _as_postgres([str(binaries / "pg_ctl"), "-D", str(data), "-m", "immediate", "stop"]),
            check=False,
            capture_output=True,
            cwd="/",
        )
        server.wait(10)
        shutil.rmtree(base, ignore_errors=True)


@pytest.fixture
def clock() -> Clock:
    """The database's clock; tests that move time put a VirtualClock in its place."""
    return SystemClock()


@contextlib.asynccontextmanager
async def opened(
    request: pytest.FixtureRequest, kind: str, directory: Path, clock: Clock, name: str = "tests"
) -> AsyncIterator[Database]:
    """An empty database of a kind, with the schema in it; on PostgreSQL the one of that name, emptied."""
    if kind == "sqlite":
        await have_tables(directory / "kilonova.db")
        database: Database = SqliteDatabase(directory / "kilonova.db", clock)
    else:
        from kilonova.testing.postgresql import LastingPostgresql

        database = LastingPostgresql(_emptied(request.getfixturevalue("postgresql_server"), name))
        if isinstance(clock, VirtualClock):
            clock.on_advance(database.shift)
    await bring_up(database)
    yield database
    await database.close()


MEBIBYTE = 1 << 20
_COUNT_ANEW = """SELECT setval(format('%I', sequencename)::regclass, start_value, false)
FROM pg_sequences WHERE last_value IS NOT NULL"""


def _emptied(server: str, name: str) -> str:
    """The conninfo of a database without rows.  Making a new one takes many times as long."""
    import psycopg

    conninfo = f"{server} dbname={name}"
    if conninfo in _cleaners:
        try:
            _clean(_cleaners[conninfo], name)
            return conninfo
        except psycopg.OperationalError:  # a test has ended all connections
            del _cleaners[conninfo]
    _cleaners[conninfo] = _cleaner(server, name)
    _clean(_cleaners[conninfo], name)
    return conninfo


_cleaners: dict[str, Any] = {}
"""A connection to each database, kept: a new one has to learn all tables before it can empty them."""


def _cleaner(server: str, name: str) -> Any:
    import psycopg

    with psycopg.connect(f"{server} dbname=postgres", autocommit=True) as connection:
        if not connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,)).fetchone():
            connection.execute(f"CREATE DATABASE {name}")
    return psycopg.connect(f"{server} dbname={name}", autocommit=True)


def _clean(connection: Any, name: str) -> None:
    from kilonova.testing.postgresql import idle_sessions

    ours = [connection.info.backend_pid, *idle_sessions()]
    connection.execute(  # what a failed test has left open would lock us out
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s AND pid != ALL(%s)",
        (name, ours),
    )
    found = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
    tables = {row[0] for row in found}
    if tables and tables != {table.name for table in load_all().sorted_tables}:  # another release's
        connection.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    elif tables:
        _empty(connection)


def _empty(connection: Any) -> None:
    """Remove all rows.  Truncating makes files anew, as restarting a sequence does: only where it pays."""
    from psycopg import sql

    one = sql.SQL("SELECT {0}, pg_relation_size({0}) WHERE EXISTS (SELECT FROM {1})")
    names = [table.name for table in reversed(load_all().sorted_tables) if table.name != "schema_version"]
    each = [one.format(name, sql.Identifier(name)) for name in names]
    full = connection.execute(sql.SQL(" UNION ALL ").join(each)).fetchall()
    forms = [sql.SQL("TRUNCATE {}" if size > MEBIBYTE else "DELETE FROM {}") for _, size in full]
    work = [form.format(sql.Identifier(name)) for form, (name, _) in zip(forms, full, strict=True)]
    connection.execute(sql.SQL("; ").join([*work, sql.SQL(_COUNT_ANEW)]))
    connection.execute("DELETE FROM schema_version WHERE revision != %s", (REVISION,))


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)])
async def db(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> AsyncIterator[Database]:
    """An empty database with the schema in it, of each kind."""
    async with opened(request, request.param, tmp_path, clock) as database:
        yield database
