"""Cells on real PostgreSQL databases, of which one cannot be reached in each way that happens."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import psycopg
import pytest

from kilonova.clock import Clock, SystemClock
from kilonova.db.cells import Cell, PatientDatabase
from kilonova.db.engine import DatabaseUnavailable
from kilonova.db.instance_list import SUMMARY, ServerList
from kilonova.db.postgresql import PostgresqlDatabase
from kilonova.db.schema import bring_up
from kilonova.errors import Unreachable
from kilonova.listing.instances import ServersFound, list_servers
from kilonova.listing.migrations import list_migrations
from kilonova.listing.options import ListOptions
from tests.conftest import opened
from tests.unit.listing.cells import closed_port, far, put, server, silent_port

pytestmark = pytest.mark.postgresql

CLOCK = SystemClock()
QUICK = ListOptions(time_limit=0.5)


@pytest.fixture
async def cells(request: pytest.FixtureRequest, tmp_path: Any, clock: Clock) -> Any:
    async with (
        opened(request, "postgresql", tmp_path, clock, "cell_one") as one,
        opened(request, "postgresql", tmp_path, clock, "cell_two") as two,
    ):
        yield [Cell("cell-0", "one", one), Cell("cell-1", "two", two)]


async def listed(cells: list[Cell], options: ListOptions = QUICK, **wanted: Any) -> ServersFound:
    page = ServerList()
    for name, value in wanted.items():
        setattr(page, name, value)
    return await list_servers(cells, page, SUMMARY, clock=CLOCK, options=options)


@pytest.mark.capability("MC-3", "MC-4", "MC-5", "IL-7")
@pytest.mark.parametrize("port", [closed_port, silent_port])
async def test_a_list_is_there_in_time_whatever_a_cell_does(
    cells: list[Cell], port: Callable[[], AbstractContextManager[str]]
) -> None:
    await put(cells, 0, server("a", created_at=1))
    await put(cells, 1, server("b", created_at=2))
    with port() as conninfo:
        async with far(conninfo) as db:
            lost = Cell("cell-2", "three", db)
            begun = time.monotonic()
            page = await listed([*cells, lost], limit=1)
            assert time.monotonic() - begun < 2.0
            assert [row[0] for row in page.rows] == ["b"]
            assert page.down == (lost,)
            assert await list_migrations([*cells, lost], {}, clock=CLOCK, options=QUICK) == []
            strict = ListOptions(time_limit=0.5, skip_down_cells=False)
            with pytest.raises(Unreachable, match="The cell three does not respond"):
                await listed([*cells, lost], strict)


async def test_a_patient_reader_of_a_silent_cell_comes_back_in_time() -> None:
    with silent_port() as conninfo:
        async with far(conninfo) as db:
            patient = PatientDatabase(db, "three", CLOCK, 0.3)
            begun = time.monotonic()
            with pytest.raises(DatabaseUnavailable, match="The cell three did not respond in time"):
                await patient.read(lambda tx: None)
            assert time.monotonic() - begun < 1.5


@pytest.mark.capability("MC-4", "MC-5")
async def test_a_database_that_is_stopped_between_two_batches(
    cells: list[Cell], postgresql_server: str
) -> None:
    await put(cells, 0, *(server(f"a{at:03}", created_at=1000 - at) for at in range(120)))
    await put(cells, 1, *(server(f"b{at:03}", created_at=1000 - at) for at in range(120)))
    stopping = _StopsAfterOne(cells[1].db, postgresql_server)
    some = [cells[0], Cell("cell-1", "two", stopping)]  # type: ignore[arg-type]
    try:
        page = await listed(some, ListOptions(time_limit=20.0, strategy="fixed"), limit=300)
    finally:
        _allow(postgresql_server, True)
    assert page.down == (some[1],)
    assert len(page.rows) == 120 + 100  # what it gave before stays
    assert [row[0] for row in page.rows if row[0][0] == "a"] == [f"a{at:03}" for at in range(120)]
    again = await listed(cells, limit=300)
    assert again.down == ()
    assert len(again.rows) == 240


class _StopsAfterOne:
    def __init__(self, db: Any, server: str) -> None:
        self.name = db.name
        self._db = db
        self._server = server
        self._reads = 0

    async def read(self, fn: Any) -> Any:
        self._reads += 1
        if self._reads == 2:
            _allow(self._server, False)
        return await self._db.read(fn)


def _allow(server: str, allowed: bool) -> None:
    with psycopg.connect(f"{server} dbname=postgres", autocommit=True) as connection:
        connection.execute(f"ALTER DATABASE cell_two ALLOW_CONNECTIONS {str(allowed).lower()}")
        if not allowed:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'cell_two'"
            )


@pytest.mark.capability("MC-1")
async def test_texts_are_sorted_alike_in_databases_of_other_languages(postgresql_server: str) -> None:
    """A cell whose locale is not C would sort them in another order than the merge, and lose some."""
    with psycopg.connect(f"{postgresql_server} dbname=postgres", autocommit=True) as connection:
        for name in ("german", "czech"):
            connection.execute(f"DROP DATABASE IF EXISTS cell_{name}")
            language = {"german": "de-DE", "czech": "cs-CZ"}[name]
            connection.execute(
                f"CREATE DATABASE cell_{name} TEMPLATE template0 ENCODING 'UTF8' LOCALE_PROVIDER icu"
                f" ICU_LOCALE '{language}' LOCALE 'C'"
            )
    dbs = [PostgresqlDatabase(f"{postgresql_server} dbname=cell_{name}") for name in ("german", "czech")]
    cells = [Cell(f"cell-{at}", str(at), db) for at, db in enumerate(dbs)]
    try:
        names = ["a", "B", "ch", "cz", "Ä", "Z", "z", "ss", "ß", "h", "_"]
        for at, db in enumerate(dbs):
            await bring_up(db)
            servers = [server(f"{number}{at}", display_name=name) for number, name in enumerate(names)]
            await put(cells, at, *servers)
        for descending in (False, True):
            seen: list[Any] = []
            more, sort = True, (("display_name", descending),)
            while more:
                rows = (await listed(cells, sort=sort, limit=3, marker=seen[-1][0] if seen else None)).rows
                seen, more = [*seen, *rows], len(rows) == 3
            assert [row[1] for row in seen] == sorted([*names, *names], reverse=descending)
    finally:
        for db in dbs:
            await db.close()
        with psycopg.connect(f"{postgresql_server} dbname=postgres", autocommit=True) as connection:
            for name in ("german", "czech"):
                connection.execute(f"DROP DATABASE cell_{name} WITH (FORCE)")
