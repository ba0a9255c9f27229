"""Transactions: what was committed is kept, what failed is not, and the rest of a shared commit is."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import bindparam, func, insert, select

from kilonova.db.engine import Database, Statement, Tx, UniqueViolation, db_now
from kilonova.db.schema import schema_version

ADD = Statement(insert(schema_version).values(revision=bindparam("revision")))
COUNT = Statement(select(func.count()).select_from(schema_version))


async def test_a_failing_transaction_leaves_nothing_and_spares_its_neighbours(db: Database) -> None:
    def good(name: str) -> object:
        return lambda tx: tx.run(ADD, revision=name)

    def bad(tx: Tx) -> None:
        tx.run(ADD, revision="half")
        raise KeyError("on purpose")

    results = await asyncio.gather(
        db.write(good("a")), db.write(bad), db.write(good("b")), return_exceptions=True
    )
    assert isinstance(results[1], KeyError)
    assert results[0] == results[2] == 1
    names = await db.read(lambda tx: {row[0] for row in tx.all(select(schema_version.c.revision))})
    assert names == {"0001", "a", "b"}


async def test_a_second_row_of_one_key_is_a_unique_violation(db: Database) -> None:
    await db.write(lambda tx: tx.run(ADD, revision="x"))
    with pytest.raises(UniqueViolation):
        await db.write(lambda tx: tx.run(ADD, revision="x"))
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


async def test_the_database_tells_the_time(db: Database) -> None:
    now = await db.read(lambda tx: tx.scalar(select(db_now())))
    assert 1_700_000_000_000_000 < now < 4_000_000_000_000_000


async def test_a_reader_cannot_change_anything_on_sqlite(db: Database) -> None:
    if db.name != "sqlite":
        pytest.skip("readers of PostgreSQL share the pool")
    with pytest.raises(Exception, match="readonly"):
        await db.read(lambda tx: tx.run(ADD, revision="y"))
