"""Bringing a database to the schema of this release."""

from __future__ import annotations

from sqlalchemy import Table, insert, select, text
from sqlalchemy.schema import CreateIndex, CreateTable

from kilonova.db.engine import Database, Tx
from kilonova.db.tables import load_all, metadata
from kilonova.db.tables import text as text_column
from kilonova.errors import Failed

REVISION = "0002"  # another one whenever a table changes: see schema.lock

schema_version = Table("schema_version", metadata, text_column("revision", primary_key=True))

_FOUND = {
    "sqlite": text("SELECT count(*) FROM sqlite_master WHERE name = 'schema_version'"),
    "postgresql": text(
        "SELECT count(*) FROM pg_tables WHERE tablename = 'schema_version' AND schemaname = current_schema()"
    ),
}

# Leases are compared with the database's clock; kilonova.skew is how tests move it.
_POSTGRESQL_NOW = text(
    """
    CREATE OR REPLACE FUNCTION kilonova_now() RETURNS bigint LANGUAGE sql VOLATILE AS $$
      SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint
             + coalesce(nullif(current_setting('kilonova.skew', true), '')::bigint, 0)
    $$
    """
)


def statements() -> list[CreateTable | CreateIndex]:
    """What makes all tables."""
    made: list[CreateTable | CreateIndex] = []
    for table in load_all().sorted_tables:
        made.append(CreateTable(table))
        made += [CreateIndex(each) for each in sorted(table.indexes, key=lambda each: str(each.name))]
    return made


async def bring_up(db: Database) -> None:
    """Make the tables in an empty database; check the revision of one that is not.

    Raises Failed for a database of another release.
    """

    def make(tx: Tx) -> str:
        if tx.scalar(_FOUND[db.name]):
            return str(tx.scalar(select(schema_version.c.revision)))
        if db.name == "postgresql":
            tx.run(_POSTGRESQL_NOW)
        for statement in statements():
            tx.run(statement)
        tx.run(insert(schema_version).values(revision=REVISION))
        return REVISION

    _check(await db.write(make))


async def check(db: Database) -> None:
    """Raises Failed for a database of another release, or of none."""
    _check(await revision(db))


async def revision(db: Database) -> str:
    """The schema that a database has; ``none`` for an empty one."""
    found = await db.read(
        lambda tx: tx.scalar(_FOUND[db.name]) and tx.scalar(select(schema_version.c.revision))
    )
    return str(found or "none")


def _check(found: str) -> None:
    if found == "none":
        raise Failed(f"The database is empty and has to be at schema {REVISION}: `kilonova db upgrade`.")
    if found != REVISION:
        raise Failed(
            f"The database is at schema {found} and this release needs {REVISION}. Before the first release "
            "nothing leads from one to the other: begin with an empty database, or another --state-dir."
        )
