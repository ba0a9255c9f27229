"""Transactions that wait for each other anyway: one connection for all of them, each with its own end."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from kilonova.clock import Clock, SystemClock
from kilonova.db.engine import Database, Tx, UniqueViolation, insert_into
from kilonova.db.lanes import MOST, Queued
from kilonova.db.tables.placement import custom_traits
from kilonova.errors import Conflict
from tests.conftest import opened

INSERT = insert_into(custom_traits)


def insert(name: str) -> Queued[str]:
    def fn(tx: Tx) -> str:
        tx.run(INSERT, name=name)
        return name

    return Queued("lane", fn)


async def names(db: Database) -> list[str]:
    return [
        row[0]
        for row in await db.read(lambda tx: tx.all(text("SELECT name FROM custom_traits ORDER BY name")))
    ]


async def test_each_has_its_own_result(db: Database) -> None:
    wanted = [f"N{number:03}" for number in range(3 * MOST)]
    found = await asyncio.gather(*(db.write(insert(name)) for name in wanted))
    assert found == wanted
    assert await names(db) == wanted


async def test_one_that_fails_takes_nothing_from_the_others(db: Database) -> None:
    told: list[str] = []

    def failing(tx: Tx) -> str:
        tx.run(INSERT, name="LOST")
        tx.call_after_commit(lambda: told.append("lost"))
        raise Conflict("no")

    def telling(tx: Tx) -> str:
        tx.run(INSERT, name="KEPT")
        tx.call_after_commit(lambda: told.append("kept"))
        return "KEPT"

    work = [
        insert("A"),
        Queued("lane", failing),
        insert("B"),
        insert("A"),
        Queued("lane", telling),
        insert("C"),
    ]
    found: list[Any] = await asyncio.gather(*(db.write(each) for each in work), return_exceptions=True)
    assert [found[0], found[2], found[4], found[5]] == ["A", "B", "KEPT", "C"]
    assert isinstance(found[1], Conflict) and isinstance(found[3], UniqueViolation)
    assert await names(db) == ["A", "B", "C", "KEPT"]
    assert told == ["kept"]


@pytest.mark.postgresql
async def test_who_waits_has_no_connection(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """A lane takes one thread of PostgreSQL's pool, however many wait in it."""
    clock: Clock = SystemClock()
    async with opened(request, "postgresql", tmp_path, clock) as db:
        begun, go = threading.Event(), threading.Event()

        def slow(tx: Tx) -> str:
            begun.set()
            assert go.wait(30)
            return "slow"

        first = asyncio.create_task(db.write(Queued("lane", slow)))
        await asyncio.to_thread(begun.wait, 30)
        others = [asyncio.create_task(db.write(insert(f"W{number:02}"))) for number in range(12)]
        async with asyncio.timeout(30):
            assert await names(db) == []  # there are connections for others
        go.set()
        assert await first == "slow"
        assert len(await asyncio.gather(*others)) == 12


async def test_a_caller_that_is_cancelled_waits_for_the_end(db: Database) -> None:
    writing = asyncio.create_task(db.write(insert("A")))
    await asyncio.sleep(0)
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    assert await names(db) in (["A"], [])
    await db.write(insert("B"))
    assert "B" in await names(db)
