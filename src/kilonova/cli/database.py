"""Looking into the database of a cloud, whether it runs or not."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import click

from kilonova.clock import SystemClock
from kilonova.db.engine import Database, DatabaseUnavailable
from kilonova.db.schema import check
from kilonova.db.sqlite import SqliteDatabase
from kilonova.errors import KilonovaError
from kilonova.settings import Settings

T = TypeVar("T")

state_dir_option = click.option(
    "--state-dir",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=Path("/var/lib/kilonova"),
    show_default=True,
    help="The cloud's state directory.",
)


def look(state_dir: Path, settings: Settings, fn: Callable[[Database], Awaitable[T]]) -> T:
    """What ``fn`` makes of the cloud's database: PostgreSQL's where ``[database]connection`` names one.

    Raises ClickException where there is no cloud that can be read.
    """

    async def go() -> T:
        db = _opened(state_dir, settings)
        try:
            await check(db)
            return await fn(db)
        finally:
            await db.close()

    try:
        return asyncio.run(go())
    except (KilonovaError, DatabaseUnavailable) as error:
        raise click.ClickException(str(error)) from error


def _opened(state_dir: Path, settings: Settings) -> Database:
    if settings.text("connection", "database"):
        from kilonova.controller import open_database

        return open_database(settings)
    path = state_dir / "kilonova.db"
    if not path.exists():
        raise click.ClickException(f"There is no cloud in {state_dir}: start one with `kilonova up`.")
    return SqliteDatabase(path, SystemClock())


async def in_cell(db: Database, word: str, fn: Callable[[Database], Awaitable[T]]) -> T:
    """What ``fn`` makes of the database of a cell (by name or uuid), which ``db``, the top one, knows.

    Raises ClickException for a cell that there is not.
    """
    from kilonova.cell_parts import open_database
    from kilonova.db import cell_mappings

    if word in (cell_mappings.FIRST_CELL, cell_mappings.FIRST_CELL_NAME):
        return await fn(db)
    mapping = await db.read(lambda tx: cell_mappings.find(tx, word))
    if mapping is None:
        raise click.ClickException(f"There is no cell '{word}'.")
    its_own = open_database(mapping.database_connection, SystemClock(), threads=1)
    try:
        await check(its_own)
        return await fn(its_own)
    finally:
        await its_own.close()


async def where(db: Database, server: str) -> str:
    """The cell (uuid) of a server, by its uuid; the first one for a server that no mapping names."""
    from kilonova.db import cell_mappings, instance_mappings

    return await db.read(lambda tx: instance_mappings.cell_of(tx, server)) or cell_mappings.FIRST_CELL
