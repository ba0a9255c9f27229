"""A whole host dies with 20 servers: all are evacuated, whatever dies meanwhile, and when it comes back it is
cleared.  Also one that was only cut off and has run its guests all the time."""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from sqlalchemy import func, select

from kilonova.db.postgresql import PostgresqlDatabase
from kilonova.db.tables.cells import leftovers, migrations
from kilonova.model.states import Power
from kilonova.testing.fleet.audit import complaints, guests
from kilonova.testing.fleet.fleet import DATABASE, Fleet, Pace
from kilonova.testing.fleet.load import Load

SERVERS = 20
OTHERS = 6
PATIENCE = 120.0  # seconds on a busy machine

pytestmark = [pytest.mark.postgresql, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(loop_scope="module")
async def fleet() -> AsyncIterator[Fleet]:
    directory = Path(tempfile.mkdtemp(prefix="kn-evac-"))
    made = Fleet(directory, safe=False, pace=Pace(report_interval=1, service_down_time=5, lease=3.0))
    try:
        await made.up()
        yield made
    finally:
        await made.down()
        shutil.rmtree(directory)


async def full_host(fleet: Fleet) -> Load:
    """One host has all servers; then there are others, too."""
    await fleet.simulate(1, name="victim")
    load = Load(fleet, await fleet.image())
    await load.boot([f"s{number}" for number in range(SERVERS)])
    servers = await load.settled(seconds=PATIENCE)
    assert {each["OS-EXT-SRV-ATTR:host"] for each in servers.values()} == {VICTIM}
    assert {each["status"] for each in servers.values()} == {"ACTIVE"}
    await fleet.simulate(OTHERS, first=2, name="others")
    return load


VICTIM = "sim-00001"


async def until_down(fleet: Fleet) -> None:
    async with asyncio.timeout(PATIENCE):
        while True:
            listed = await fleet.call("GET", f"/v2.1/os-services?host={VICTIM}")
            if listed["services"][0]["state"] == "down":
                return
            await asyncio.sleep(0.2)


async def evacuate(fleet: Fleet, uuid: str, version: str = "2.90") -> None:
    """Whichever controller answers; one that has just begun to listen does not know who is down."""
    body = {"evacuate": {}}
    for turn in range(1000):
        try:
            client = await fleet.client(turn % len(fleet.controllers), version=version)
            status, answer, _ = await client.request("POST", f"/v2.1/servers/{uuid}/action", body)
            client.close()
        except (OSError, asyncio.IncompleteReadError, RuntimeError):
            await asyncio.sleep(0.2)
            continue
        if status == 200 or (status == 409 and b"rebuil" in answer):
            return
        assert status >= 500 or b"still in use" in answer, (status, answer)
        await asyncio.sleep(0.2)
    raise AssertionError(f"{uuid} could not be evacuated")


async def counted(fleet: Fleet) -> dict[str, Any]:
    """Leftovers, and migrations by their status."""
    database = PostgresqlDatabase(fleet.postgres.conninfo(DATABASE), threads=1)
    try:
        owed = await database.read(lambda tx: tx.scalar(select(func.count()).select_from(leftovers)))
        query = select(migrations.c.status, func.count()).group_by(migrations.c.status)
        return {"owed": owed, **{row[0]: row[1] for row in await database.read(lambda tx: tx.all(query))}}
    finally:
        await database.close()


async def all_elsewhere(fleet: Fleet, load: Load) -> None:
    servers = await load.settled(seconds=PATIENCE)
    wrong = {
        uuid: (each["status"], each["OS-EXT-SRV-ATTR:host"], each.get("fault"))
        for uuid, each in servers.items()
        if each["status"] != "ACTIVE" or each["OS-EXT-SRV-ATTR:host"] == VICTIM
    }
    assert not wrong, json.dumps(wrong)[:2000]
    assert await complaints(fleet) == []


async def all_cleared(fleet: Fleet, load: Load) -> None:
    async with asyncio.timeout(PATIENCE):
        while (await counted(fleet))["owed"]:
            await asyncio.sleep(0.1)
    assert await counted(fleet) == {"owed": 0, "completed": SERVERS}
    there = guests(fleet)
    assert all(list(hosts.values()) == [Power.RUNNING] for hosts in there.values())
    await all_elsewhere(fleet, load)


@pytest.mark.capability("MG-EVC-6", "MG-EVC-7", "MG-INIT-3")
@pytest.mark.parametrize("what", ["nothing else", "a controller", "the bus", "the database"])
async def test_a_host_dies_with_all_its_servers(fleet: Fleet, what: str) -> None:
    """And something else in the middle of their evacuation."""
    load = await full_host(fleet)
    victim = fleet.hosts[0]
    await victim.kill()
    await until_down(fleet)
    uuids = list(load.accepted.values())
    asked = [asyncio.create_task(evacuate(fleet, uuid)) for uuid in uuids]
    await asked[SERVERS // 3]
    if what == "a controller":
        await fleet.controllers[1].kill()
        await fleet.controllers[1].start(b"ready")
    elif what == "the bus":
        await fleet.nats.kill()
        await asyncio.sleep(1)
        await fleet.nats.up()
    elif what == "the database":
        await fleet.postgres.kill()
        await asyncio.sleep(1)
        await fleet.postgres.up()
    await asyncio.gather(*asked)
    await all_elsewhere(fleet, load)
    assert await counted(fleet) == {"owed": SERVERS, "done": SERVERS}
    await victim.start(b"ready")
    await all_cleared(fleet, load)


async def test_a_host_that_was_only_silent_is_cleared_at_its_first_word(fleet: Fleet) -> None:
    """Its process has stood still, with all that it was about to do; nothing begins anew there."""
    load = await full_host(fleet)
    victim = fleet.hosts[0]
    victim.pause()
    await until_down(fleet)
    await asyncio.gather(*(evacuate(fleet, uuid) for uuid in load.accepted.values()))
    await all_elsewhere(fleet, load)
    victim.resume()
    await all_cleared(fleet, load)


async def test_the_servers_are_deleted_before_their_host_is_back(fleet: Fleet) -> None:
    load = await full_host(fleet)
    victim = fleet.hosts[0]
    await victim.kill()
    await until_down(fleet)
    uuids = list(load.accepted.values())
    await asyncio.gather(*(evacuate(fleet, uuid) for uuid in uuids[:10]))
    await load.delete(uuids)  # some of them while they are evacuated
    async with asyncio.timeout(PATIENCE):
        while await load.servers():
            await asyncio.sleep(0.2)
    assert await complaints(fleet) == []
    await victim.start(b"ready")
    async with asyncio.timeout(PATIENCE):
        while (await counted(fleet))["owed"]:
            await asyncio.sleep(0.1)
    assert guests(fleet) == {}
    assert await complaints(fleet) == []
