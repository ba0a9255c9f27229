"""Looking into the database of a cloud, whether it runs or not."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import click

from kilonova.clock import SystemClock
from kilonova.db.engine import Database, DatabaseUnavailable, Tx
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


def run(state_dir: Path, fn: Callable[[Tx], T], *, write: bool = False) -> T:
    """The result of one transaction.  Raises ClickException where there is no cloud that can be read."""
    path = state_dir / "kilonova.db"
    if not path.exists():
        raise click.ClickException(f"There is no cloud in {state_dir}: start one with `kilonova up`.")

    async def go() -> T:
        db = SqliteDatabase(path, SystemClock())
        try:
            await check(db)
            return await (db.write(fn) if write else db.read(fn))
        finally:
            await db.close()

    try:
        return asyncio.run(go())
    except (KilonovaError, DatabaseUnavailable) as error:
        raise click.ClickException(str(error)) from error
