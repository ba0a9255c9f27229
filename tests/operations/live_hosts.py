"""Simulated hosts between which guests move while they run, and all that such a move may leave behind."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import func, select

from kilonova.clock import Clock
from kilonova.db import instances, migrations
from kilonova.db.engine import Database
from kilonova.db.tables.cells import migration_contexts
from kilonova.db.tables.network import port_bindings
from kilonova.model.instance import Instance
from kilonova.model.migration import Migration
from kilonova.model.states import Power, Vm
from kilonova.operations import live_migrate, live_steering
from kilonova.testing.embedded import embedded, server, settled
from kilonova.testing.one_guest import Sight, complaints
from kilonova.testing.simulated_hosts import first_host, simulated_hosts
from kilonova.virt.fake.driver import FakeDriver
from kilonova.virt.fake.guests import PREPARED
from kilonova.virt.fake.live import MIB, FakeLive
from tests.operations.dead_hosts import Hosts

OPTIONS: dict[str, dict[str, object]] = {
    "DEFAULT": {"host": "h1", "vif_plugging_timeout": 5, "report_interval": 3600},
    "fake": {"vcpus": 1000, "memory_mb": 2_000_000, "disk_gb": 100_000},
}
SLOW = 1.0  # bytes a second: nothing that is sent like this comes to an end


@dataclass
class Live(Hosts):
    """``hosts`` are chosen in the order of their names; servers begin on h1."""

    def driver(self, name: str) -> FakeDriver:
        return self.hosts[name].driver

    def live(self, name: str) -> FakeLive:
        return self.hosts[name].driver.live

    async def begin(self, uuid: str, **how: object) -> str:
        """Ask for a live migration; its uuid."""
        return await live_migrate.submit(self.cloud.cloud, self.admin(), uuid, **how)  # type: ignore[arg-type]

    async def move(self, uuid: str, **how: object) -> tuple[Instance, Migration]:
        """Ask for one, and wait for its end."""
        migration = await self.begin(uuid, **how)
        found = await settled(self.cloud, uuid, 15)
        return found, await self.migration(migration)

    async def migration(self, uuid: str) -> Migration:
        found = await self.cloud.db.read(lambda tx: migrations.show(tx, uuid))
        assert found is not None
        return found

    async def at(self, migration: str, *statuses: str) -> Migration:
        """The migration, once it is at one of these statuses."""
        async with asyncio.timeout(30):
            while (found := await self.migration(migration)).status not in statuses:
                await asyncio.sleep(0.005)
        return found

    async def sends(self, name: str, uuid: str) -> None:
        """Wait until that host has begun to send the guest: a migration is said to be running before that."""
        async with asyncio.timeout(30):
            while uuid not in self.live(name)._rows:
                await asyncio.sleep(0.005)

    async def abort(self, migration: str, *, before: bool = True) -> None:
        found = await self.migration(migration)
        await live_steering.abort(
            self.cloud.cloud, self.admin(), found.instance_uuid, found.id, before=before
        )

    async def force_complete(self, migration: str) -> None:
        found = await self.migration(migration)
        await live_steering.force_complete(self.cloud.cloud, self.admin(), found.instance_uuid, found.id)

    async def paused(self) -> str:
        """A server that its user has paused."""
        uuid = await self.boot()
        self.driver("h1").guest_file.put(uuid, Power.PAUSED)
        changes = {"vm_state": Vm.PAUSED, "power_state": Power.PAUSED}
        await self.cloud.db.write(lambda tx: instances.update(tx, uuid, expect_task=None, **changes))
        return uuid

    async def assert_moved(self, uuid: str, host: str, *, plugged: bool | None = True) -> None:
        found = await server(self.cloud, uuid)
        assert (found.vm_state, found.task_state, found.host, found.node) == (Vm.ACTIVE, None, host, host)
        assert (found.fault, found.power_state, found.progress) == (None, Power.RUNNING, 0)
        await self.assert_only_on(uuid, host, plugged=plugged)
        assert await self.nothing_left() == []

    async def assert_as_before(self, uuid: str, *, plugged: bool | None = True) -> Instance:
        """It runs on h1, and nothing tells that it was to move but the records."""
        found = await server(self.cloud, uuid)
        assert (found.vm_state, found.task_state, found.host, found.progress) == (Vm.ACTIVE, None, "h1", 0)
        assert found.power_state == Power.RUNNING
        await self.assert_only_on(uuid, "h1", plugged=plugged)
        assert await self.nothing_left() == []
        return found

    async def one_guest(self, uuid: str, *, also_off: bool = False) -> list[str]:
        """Complaints about a cloud at rest of which this is the only server, see `one_guest`."""
        plugged = (await self.everywhere(uuid)).plugged
        sights = {
            name: Sight(
                power=None if (state := host.driver.guest_file.state(uuid)) == PREPARED else state,
                plugged=plugged.get(name, 0),
                files=state is not None,
                aside=host.driver.guest_file.is_parked(uuid),
            )
            for name, host in self.hosts.items()
        }
        return await self.cloud.db.read(lambda tx: complaints(tx, uuid, sights, also_off=also_off))

    async def nothing_left(self) -> list[str]:
        """Every complaint, of a cloud at rest, about what moves use for a while."""
        result = list(await self.complaints())
        for table in (port_bindings, migration_contexts):
            count = await self.cloud.db.read(
                lambda tx, table=table: tx.scalar(select(func.count()).select_from(table))  # type: ignore[misc]
            )
            result += [f"{count} rows are left in {table.name}"] if count else []
        for name, host in self.hosts.items():
            result += [
                f"{uuid} is still {row.role} at {name}" for uuid, row in host.driver.live._rows.items()
            ]
            result += [f"{name} still has the probe {probe}" for probe in host.driver.storage.probes]
        return result


def rate_for(seconds: float, memory_mb: int = 128, disk_gb: int = 1) -> float:
    """At which a guest of the flavor 42 takes so long, with its disk."""
    return (memory_mb * MIB + disk_gb * 1024 * MIB) / seconds


@contextlib.asynccontextmanager
async def live(
    state_dir: Path,
    *names: str,
    clock: Clock | None = None,
    database: Callable[[], Database] | None = None,
    shared: bool = False,
    **options: dict[str, object],
) -> AsyncIterator[Live]:
    """h1 and ``names`` (h2, h3); ``shared``: with one directory of guests' files."""
    merged = {group: {**values, **options.pop(group, {})} for group, values in OPTIONS.items()} | options
    async with (
        embedded(state_dir, clock=clock, database=database, **merged) as cloud,
        simulated_hosts(cloud, *(names or ("h2", "h3"))) as others,
    ):
        made = Live(cloud, {each.name: each for each in (first_host(cloud), *others)})
        if shared:
            for each in others:
                each.driver.storage = first_host(cloud).driver.storage
        yield made
