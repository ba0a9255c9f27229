"""Live migrations over the bus, between hosts whose hypervisors know nothing of each other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from kilonova.agent_process import AgentProcess
from kilonova.db import migrations
from kilonova.model.context import RequestContext
from kilonova.model.migration import Migration, Status
from kilonova.model.states import Power, Vm
from kilonova.operations import live_migrate, live_steering
from kilonova.testing.bus import NatsServer
from kilonova.testing.embedded import member, server, settled
from kilonova.virt.fake.driver import FakeDriver
from tests.crash.scenes import boot
from tests.fleet.house import House, house_of
from tests.fleet.test_sessions import example_image
from tests.operations.live_hosts import SLOW

pytestmark = pytest.mark.postgresql


@pytest.fixture
async def house(request: pytest.FixtureRequest, own_bus: NatsServer, tmp_path: Path) -> AsyncIterator[House]:
    async with house_of(request, own_bus, tmp_path) as made:
        yield made


def driver(agent: AgentProcess) -> FakeDriver:
    assert agent.parts is not None and isinstance(agent.parts.driver, FakeDriver)
    return agent.parts.driver


class Two:
    """Two hosts, and a server on the first."""

    def __init__(self, house: House) -> None:
        self.house = house
        self.cloud: Any = house.controller

    async def open(self) -> str:
        self.first = await self.house.agent("h1")
        self.cloud.example_image = await example_image(self.house)
        uuid = await boot(self.cloud)
        assert (await settled(self.cloud, uuid)).vm_state == Vm.ACTIVE
        self.second = await self.house.agent("h2")
        for agent in (self.first, self.second):
            await self.house.served_by(agent)
        self.cloud.scheduler.forget()
        return uuid

    def admin(self) -> RequestContext:
        context = member(self.cloud)
        return RequestContext(
            request_id=context.request_id,
            user_id=context.user_id,
            project_id=context.project_id,
            roles=frozenset({"admin"}),
        )

    async def begin(self, uuid: str) -> str:
        return await live_migrate.submit(self.cloud.cloud, self.admin(), uuid)

    async def at(self, migration: str, status: str) -> Migration:
        async with asyncio.timeout(30):
            while True:
                found = await self.cloud.db.read(lambda tx: migrations.show(tx, migration))
                if found.status == status:
                    return found  # type: ignore[no-any-return]
                await asyncio.sleep(0.01)

    async def assert_at(self, uuid: str, host: str) -> None:
        found = await settled(self.cloud, uuid, 60)
        assert (found.vm_state, found.task_state, found.host, found.fault) == (Vm.ACTIVE, None, host, None)
        guests = {agent.host: driver(agent).guest_file.everything() for agent in (self.first, self.second)}
        assert guests.pop(host) == {uuid: Power.RUNNING}
        assert list(guests.values()) == [{}]
        held = await self.cloud.placement.held(uuid)
        there = next(agent for agent in (self.first, self.second) if agent.host == host)
        assert list(held) == [driver(there)._compute_id]
        assert "Permissions Violation" not in self.house.bus.log


@pytest.mark.capability("RPC-1")
async def test_a_guest_goes_over(house: House) -> None:
    """It does not run at both ends: it stays ``incoming`` until the source has said that it has gone."""
    two = Two(house)
    uuid = await two.open()
    migration = await two.begin(uuid)
    await two.assert_at(uuid, "h2")
    done = await two.at(migration, Status.COMPLETED)
    assert (done.source_compute, done.dest_compute) == ("h1", "h2")


async def test_it_is_aborted_over_the_bus(house: House) -> None:
    two = Two(house)
    uuid = await two.open()
    driver(two.first).live.rate = SLOW
    migration = await two.begin(uuid)
    running = await two.at(migration, Status.RUNNING)
    await live_steering.abort(two.cloud.cloud, two.admin(), uuid, running.id)
    await two.at(migration, Status.CANCELLED)
    await two.assert_at(uuid, "h1")


@pytest.mark.capability("MG-INIT-19")
async def test_a_source_s_agent_that_ends_takes_up_the_guest_in_its_next_life(house: House) -> None:
    """Other than Nova's, which aborts what it finds running when it starts."""
    two = Two(house)
    uuid = await two.open()
    driver(two.first).live.rate = SLOW
    migration = await two.begin(uuid)
    running = await two.at(migration, Status.RUNNING)
    await house.stop(two.first)
    await asyncio.sleep(1.0)
    two.first = await house.agent("h1")
    await house.served_by(two.first)
    assert driver(two.first).live.progress(uuid).phase == "running"
    assert (await server(two.cloud, uuid)).task_state == "migrating"
    await live_steering.force_complete(two.cloud.cloud, two.admin(), uuid, running.id)
    await two.at(migration, Status.COMPLETED)
    await two.assert_at(uuid, "h2")


async def test_a_destination_s_agent_that_ends_has_its_guest_all_the_same(house: House) -> None:
    two = Two(house)
    uuid = await two.open()
    driver(two.first).live.rate = SLOW
    migration = await two.begin(uuid)
    running = await two.at(migration, Status.RUNNING)
    await house.stop(two.second)
    await live_steering.force_complete(two.cloud.cloud, two.admin(), uuid, running.id)
    async with asyncio.timeout(30):
        while (await server(two.cloud, uuid)).host != "h2":
            await asyncio.sleep(0.01)
    two.second = await house.agent("h2")
    await two.at(migration, Status.COMPLETED)
    await two.assert_at(uuid, "h2")


async def test_the_bus_goes_away_meanwhile(house: House) -> None:
    two = Two(house)
    uuid = await two.open()
    driver(two.first).live.rate = SLOW
    migration = await two.begin(uuid)
    running = await two.at(migration, Status.RUNNING)
    house.bus.kill()
    await asyncio.sleep(1.0)
    assert driver(two.first).live.progress(uuid).phase == "running"
    house.bus.start()
    await live_steering.force_complete(two.cloud.cloud, two.admin(), uuid, running.id)
    await two.at(migration, Status.COMPLETED)
    await two.assert_at(uuid, "h2")
