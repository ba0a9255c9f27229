"""One of two controllers is cut off from the database, from the bus, or from both, in the middle of boots and
deletes; also in one direction only, which no connection notices by itself.

It must not do what the other one has taken over, and it must take part again.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from kilonova.testing.fleet.audit import complaints, guests
from kilonova.testing.fleet.fleet import Fleet
from kilonova.testing.fleet.load import Load

SERVERS = 40
HOSTS = 10
AWAY = 9.0  # seconds: longer than a lease, so that the other controller takes over
PATIENCE = 120.0  # seconds on a busy machine

pytestmark = [pytest.mark.postgresql, pytest.mark.asyncio(loop_scope="module")]

CUTS = {
    "from the database": ((True, True), None),
    "from the bus": (None, (True, True)),
    "from both": ((True, True), (True, True)),
    "from what the bus says": (None, (False, True)),
    "from telling the bus": (None, (True, False)),
    "from the answers of the database": ((False, True), None),
}
"""What is cut -> (up, down) of the cable to the database, and of that to the bus."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet() -> AsyncIterator[Fleet]:
    directory = Path(tempfile.mkdtemp(prefix="kn-cut-"))
    made = Fleet(directory, safe=False, wired=(1,))
    try:
        await made.up()
        await made.simulate(HOSTS)
        yield made
    finally:
        await made.down()
        shutil.rmtree(directory)


async def cut_off(fleet: Fleet, what: str) -> None:
    for cable, ways in zip(fleet.cables[1], CUTS[what], strict=True):
        if ways is not None:
            cable.cut(up=ways[0], down=ways[1])
    await asyncio.sleep(AWAY)
    for cable in fleet.cables[1]:
        cable.mend()


async def in_the_middle(work: Awaitable[None], begun: Callable[[], bool], fleet: Fleet, what: str) -> None:
    working = asyncio.ensure_future(work)
    while not begun() and not working.done():
        await asyncio.sleep(0.02)
    assert not working.done(), "it was over before anything could be cut"
    await cut_off(fleet, what)
    await working


@pytest.mark.parametrize("what", CUTS)
async def test_a_controller_that_is_cut_off(fleet: Fleet, what: str) -> None:
    load = Load(fleet, await fleet.image())
    names = [f"{what.replace(' ', '-')}-{number}" for number in range(SERVERS)]
    await in_the_middle(load.boot(names), lambda: len(load.accepted) >= SERVERS // 4, fleet, what)
    servers = await load.settled(seconds=PATIENCE)
    assert not load.refused and sorted(each["name"] for each in servers.values()) == sorted(names)
    assert [each["fault"] for each in servers.values() if each["status"] != "ACTIVE"] == []
    assert await complaints(fleet) == []

    half = list(servers)[: SERVERS // 2]
    deleted = asyncio.Event()

    async def deletes() -> None:
        await load.delete(half, at_once=8)
        deleted.set()
        await load.delete(servers, at_once=8)

    await in_the_middle(deletes(), deleted.is_set, fleet, what)
    async with asyncio.timeout(PATIENCE):
        while await load.servers():
            await asyncio.sleep(0.2)
    assert await complaints(fleet) == []
    assert guests(fleet) == {}
