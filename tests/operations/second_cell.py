"""A cloud with a second cell, its database and its bus, and one simulated host there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kilonova.agent.agent import Agent
from kilonova.agent.ledger import Ledger
from kilonova.app import EmbeddedCloud
from kilonova.cell_parts import CellParts, open_database
from kilonova.clock import Clock
from kilonova.db import cell_mappings, instance_mappings, instances, quotas
from kilonova.db.cell_mappings import CellMapping
from kilonova.db.engine import Database
from kilonova.db.schema import bring_up
from kilonova.desk import Desks
from kilonova.model.host import Inventory
from kilonova.model.instance import Instance
from kilonova.model.port import Vif
from kilonova.operations import create, power
from kilonova.operations.cells import Cells
from kilonova.operations.cloud import Cloud
from kilonova.operations.requests import CreateServer
from kilonova.registration import register
from kilonova.rpc.desk import IMAGE_PIECE
from kilonova.rpc.desk_sources import DeskImages
from kilonova.rpc.local import LocalHosts
from kilonova.testing.embedded import embedded, member
from kilonova.testing.empty_database import have_tables
from kilonova.vif.null import NullPlugger
from kilonova.virt.fake.driver import FakeDriver

CELL = "ce110000-0000-4000-8000-000000000001"


class LocalBus:
    """The hosts of a cell, in this process."""

    def __init__(self) -> None:
        self.hosts = LocalHosts()
        self.cloud: Cloud | None = None
        self.closed = False

    async def serve(self, cloud: Cloud) -> None:
        self.cloud = cloud

    async def close(self) -> None:
        self.closed = True


@dataclass
class Two:
    """A cloud whose host ``h1`` is in the first cell, and a second cell with the host ``far``."""

    whole: EmbeddedCloud
    parts: CellParts
    bus: LocalBus
    driver: FakeDriver

    @property
    def cells(self) -> Cells:
        assert self.parts.cells is not None
        return self.parts.cells

    @property
    def first(self) -> Cloud:
        return self.whole.cloud

    @property
    def second(self) -> Cloud:
        return self.cells.cloud(CELL)

    async def boot(self, **more: Any) -> list[Instance]:
        request = CreateServer(name="s", flavor_id="42", image_id=self.whole.example_image, **more)
        return await create.submit(self.first, member(self.whole), request)

    async def settled(self, cloud: Cloud, uuid: str) -> Instance:
        async with asyncio.timeout(20):
            while True:
                found = await cloud.db.read(
                    lambda tx: (cloud.journal.is_busy(tx, uuid), instances.show_any(tx, uuid))
                )
                if not found[0] and found[1] is not None:
                    return found[1]
                await asyncio.sleep(0.005)

    async def made(self, **more: Any) -> Instance:
        """One server in the second cell, active."""
        (server,) = await self.boot(host="far", **more)
        return await self.settled(self.second, server.uuid)

    async def mapping(self, uuid: str) -> instance_mappings.InstanceMapping | None:
        return await self.first.db.read(lambda tx: instance_mappings.show(tx, uuid))

    async def used(self) -> dict[str, int]:
        project = member(self.whole).project_id
        assert project is not None
        return await self.first.db.read(lambda tx: quotas.usage(tx, project))


@asynccontextmanager
async def _host(two: Two, path: Path, memory_mb: int) -> AsyncIterator[None]:
    async def plugged(vif: Vif) -> None:
        await two.whole.network.port_up(vif.port_id, "far")

    path.mkdir(exist_ok=True)
    kept = path / "compute_id"
    if not kept.exists():
        kept.write_text(two.whole.cloud.new_uuid())
    capacity = {
        "VCPU": Inventory(total=1000),
        "MEMORY_MB": Inventory(total=memory_mb),
        "DISK_GB": Inventory(total=10_000),
    }
    two.driver = FakeDriver("far", kept.read_text(), path, two.whole.clock, capacity)
    desk = Desks().serve(two.second, two.whole.image, two.whole.network).desk("far")
    agent = Agent(
        two.driver,
        NullPlugger(plugged),
        DeskImages(desk, IMAGE_PIECE),
        Ledger(path / "ledger.db", two.whole.clock),
        two.whole.clock,
        lambda report: power.observed(two.second, report, "far"),
    )
    await register(two.second, await agent.start_up())
    two.bus.hosts.add("far", agent)
    try:
        yield
    finally:
        await agent.shut_down_agent()


@pytest.fixture
async def two(tmp_path: Path) -> AsyncIterator[Two]:
    async with two_cells(tmp_path) as made:
        yield made


@asynccontextmanager
async def two_cells(
    directory: Path,
    clock: Clock | None = None,
    database: Callable[[], Database] | None = None,
    second: str | None = None,
    **more: dict[str, Any],
) -> AsyncIterator[Two]:
    """May be begun again in the same directory.  ``second``: where the second cell's database is."""
    options: dict[str, Any] = {
        "DEFAULT": {"host": "h1", **more.pop("DEFAULT", {})},
        "fake": {"vcpus": 100, "memory_mb": 10_000, "disk_gb": 1000},
        "api": {"cell_timeout": 5.0},
        **more,
    }
    connection = second
    if connection is None:
        await have_tables(directory / "second.db")
        connection = f"sqlite://{directory / 'second.db'}"
    async with embedded(directory / "state", clock, database, **options) as whole:
        db = open_database(connection, whole.clock)
        await bring_up(db)
        await db.close()
        if await whole.db.read(lambda tx: cell_mappings.find(tx, CELL)) is None:
            mapping = CellMapping(
                uuid=CELL, name="second", database_connection=connection, transport_url="", created_at=1
            )
            await whole.db.write(lambda tx: cell_mappings.insert(tx, mapping))
        bus = LocalBus()

        async def open_bus(mapping: CellMapping) -> LocalBus:
            return bus

        parts = CellParts(whole, open_bus)
        await parts.start()
        made = Two(whole, parts, bus, None)  # type: ignore[arg-type]
        try:
            async with _host(made, directory / "far", 20_000):
                yield made
        finally:
            await parts.stop()
