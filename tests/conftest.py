"""Databases for every test that needs one: SQLite in a file, and a PostgreSQL that this run starts."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import hypothesis
import pytest

from kilonova.clock import Clock, SystemClock
from kilonova.db.engine import Database
from kilonova.db.schema import bring_up
from kilonova.db.sqlite import SqliteDatabase
from kilonova.testing.clock import VirtualClock

# The machine is noisy: how long one example takes says nothing.
hypothesis.settings.register_profile("kilonova", deadline=None)
hypothesis.settings.load_profile("kilonova")


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


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)])
async def db(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> AsyncIterator[Database]:
    """An empty database with the schema in it, of each kind."""
    if request.param == "sqlite":
        database: Database = SqliteDatabase(tmp_path / "kilonova.db", clock)
        await bring_up(database)
        yield database
        await database.close()
        return
    import psycopg

    from kilonova.db.postgresql import PostgresqlDatabase

    server = request.getfixturevalue("postgresql_server")
    name = "t" + uuid.uuid4().hex
    with psycopg.connect(f"{server} dbname=postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    database = PostgresqlDatabase(f"{server} dbname={name}")
    if isinstance(clock, VirtualClock):
        clock.on_advance(lambda moved: database.shift(moved))
    await bring_up(database)
    yield database
    await database.close()
    with psycopg.connect(f"{server} dbname=postgres", autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name}")
