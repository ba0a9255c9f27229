"""Three hosts for a module's tests, and a network service with agents for each test."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from kilonova.clock import SystemClock
from kilonova.db.schema import bring_up
from kilonova.db.sqlite import SqliteDatabase
from kilonova.testing.lab.host import Host
from kilonova.testing.lab.lab import Lab
from tests.real.guests import eventually
from tests.real.l2_hosts import (
    FarGuest,
    FarHost,
    Hosts,
)
from tests.real.l2_work import heard


@pytest.fixture(scope="module")
def machines() -> Iterator[list[Host]]:
    directory = Path(tempfile.mkdtemp(prefix="kn-l2-"))
    lab = Lab(directory)
    try:
        asyncio.run(lab.up(3))
        yield lab.hosts
    finally:
        asyncio.run(lab.down())
        shutil.rmtree(directory)


@pytest.fixture
async def hosts(machines: list[Host], tmp_path: Path) -> AsyncIterator[Hosts]:
    database = SqliteDatabase(tmp_path / "kilonova.db", SystemClock())
    await bring_up(database)
    made = Hosts(database, machines, tmp_path)
    await made.up()
    yield made
    await made.down()
    await database.close()


async def have_tunnels(*expected: tuple[FarHost, dict[str, list[int]]]) -> None:
    for host, tunnels in expected:
        await eventually(lambda host=host, tunnels=tunnels: _has(host, tunnels))  # type: ignore[misc]


async def _has(host: FarHost, tunnels: dict[str, list[int]]) -> bool:
    return await host.tunnels() == tunnels


async def has_heard(guest: FarGuest, part: bytes) -> bool:
    return any(part in frame for frame in await guest.run(heard))
