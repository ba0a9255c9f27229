"""A part of a cloud of many hosts is killed, or stands still, in the middle of 50 boots and of 50 deletes.

In the end nothing is lost, doubled or left: that is what `complaints` looks for, in the database and on the
hosts.
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
from kilonova.testing.fleet.daemon import Daemon
from kilonova.testing.fleet.fleet import Fleet
from kilonova.testing.fleet.load import Load

SERVERS = 50
HOSTS = 12
AWAY = 6.0  # seconds, which is more than a lease and than an agent's sign of life takes
TERMINAL = 30.0  # seconds after recovery in which every operation has come to its end
BUSY = 3  # times as long may it take on a busy machine

pytestmark = [pytest.mark.postgresql, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet() -> AsyncIterator[Fleet]:
    directory = Path(tempfile.mkdtemp(prefix="kn-outages-"))  # a short path: there is a socket in it
    made = Fleet(directory, safe=False)
    try:
        await made.up()
        await made.simulate(HOSTS)
        yield made
    finally:
        await made.down()
        shutil.rmtree(directory)


def part(fleet: Fleet, name: str) -> Daemon:
    parts = {"controller": fleet.controllers[1], "bus": fleet.nats, "database": fleet.postgres}
    return parts.get(name) or fleet.hosts[0]


async def again(fleet: Fleet, name: str) -> None:
    """Start a part that was killed."""
    if name == "bus":
        await fleet.nats.up()
    elif name == "database":
        await fleet.postgres.up()
    else:
        await part(fleet, name).start(b"ready")


async def outage(fleet: Fleet, name: str, kind: str) -> None:
    if kind == "killed":
        await part(fleet, name).kill()
        await asyncio.sleep(AWAY)
        await again(fleet, name)
    else:
        part(fleet, name).pause()
        await asyncio.sleep(AWAY)
        part(fleet, name).resume()


async def in_the_middle(
    work: Awaitable[None], begun: Callable[[], bool], fleet: Fleet, name: str, kind: str
) -> None:
    """Do the work, with an outage as soon as it has begun."""
    working = asyncio.ensure_future(work)
    while not begun() and not working.done():
        await asyncio.sleep(0.02)
    assert not working.done(), "it was over before anything could be done to it"
    await outage(fleet, name, kind)
    await working


@pytest.mark.parametrize("kind", ["killed", "standing still"])
@pytest.mark.parametrize("name", ["controller", "hosts", "bus", "database"])
async def test_an_outage_in_the_middle(fleet: Fleet, name: str, kind: str) -> None:
    load = Load(fleet, await fleet.image())
    names = [f"{name}-{kind.replace(' ', '-')}-{number}" for number in range(SERVERS)]

    await in_the_middle(load.boot(names), lambda: len(load.accepted) >= SERVERS // 4, fleet, name, kind)
    servers = await load.settled(seconds=BUSY * TERMINAL)
    assert not load.refused and sorted(each["name"] for each in servers.values()) == sorted(names)
    assert [each["fault"] for each in servers.values() if each["status"] != "ACTIVE"] == []
    assert await complaints(fleet) == []

    gone: list[str] = []

    async def deletes() -> None:
        async def one(uuid: str) -> None:
            await load.delete([uuid])
            gone.append(uuid)

        turns = asyncio.Semaphore(8)

        async def in_turn(uuid: str) -> None:
            async with turns:
                await one(uuid)

        await asyncio.gather(*(in_turn(uuid) for uuid in servers))

    await in_the_middle(deletes(), lambda: len(gone) >= SERVERS // 4, fleet, name, kind)
    async with asyncio.timeout(BUSY * TERMINAL):
        while await load.servers():
            await asyncio.sleep(0.2)
    assert await complaints(fleet) == []
    assert guests(fleet) == {}
