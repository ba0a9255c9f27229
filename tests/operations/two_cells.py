"""A server that moves between two cells, and what there is of it anywhere."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import func, select, update

from kilonova.db import audit_facts, instances, migrations, quotas
from kilonova.db.cell_mappings import FIRST_CELL
from kilonova.db.engine import Database, Tx
from kilonova.db.tables import cells as cell_tables
from kilonova.db.tables.compute import hosts as hosts_table
from kilonova.db.tables.compute import instances as servers_table
from kilonova.db.tables.journal import action_events, actions, signals
from kilonova.model.context import RequestContext
from kilonova.model.instance import Instance
from kilonova.model.migration import Migration
from kilonova.model.states import Vm
from kilonova.operations import attach_volume, confirm_resize, resize, revert_resize
from kilonova.operations.attach_volume import Wish
from kilonova.operations.cloud import Cloud
from kilonova.resources import audit
from kilonova.rpc import versions
from kilonova.testing.embedded import audits, kill, member
from kilonova.testing.simulated_hosts import first_host
from kilonova.virt.fake.driver import FakeDriver
from tests.operations.second_cell import CELL, Two, two_cells
from tests.operations.with_volumes import Had, had, new_volume

BIGGER = "1"  # m1.tiny; servers are booted as m1.nano


@dataclass
class Between:
    """``h1`` is in the first cell, ``far`` in the second."""

    two: Two

    @property
    def clouds(self) -> dict[str, Cloud]:
        return {FIRST_CELL: self.two.first, CELL: self.two.second}

    @property
    def drivers(self) -> dict[str, FakeDriver]:
        return {"h1": first_host(self.two.whole).driver, "far": self.two.driver}

    def admin(self) -> RequestContext:
        return msgspec.structs.replace(member(self.two.whole), roles=frozenset({"admin", "member"}))

    async def boot(self, host: str = "h1") -> str:
        (made,) = await self.two.boot(host=host)
        found = await self.settled(made.uuid)
        assert (found.vm_state, found.host) == (Vm.ACTIVE, host), found.fault
        return made.uuid

    async def boot_with_volume(self, host: str = "h1") -> str:
        uuid, whole = await self.boot(host), self.two.whole
        wish = Wish(volume_id=await new_volume(whole))
        await attach_volume.submit(await self.home(uuid), member(whole), uuid, wish)
        (volume,) = (await self.settled(uuid)).volumes
        assert volume.connection is not None
        return uuid

    async def home(self, uuid: str) -> Cloud:
        return await self.two.first.of_server(uuid)

    async def server(self, uuid: str) -> Instance:
        found = await (await self.home(uuid)).db.read(lambda tx: instances.show_any(tx, uuid))
        assert found is not None
        return found

    async def settled(self, uuid: str) -> Instance:
        """When nothing goes on with it in any cell, and nothing of it is between two."""
        async with asyncio.timeout(30):
            while True:
                if not any([await self._is_busy(cloud, uuid) for cloud in self.clouds.values()]):
                    return await self.server(uuid)
                await asyncio.sleep(0.005)

    async def is_open(self, uuid: str) -> bool:
        """Whether an operation of it is not finished in some cell."""
        asked = [
            await cloud.db.read(partial(cloud.journal.is_busy, instance_uuid=uuid))
            for cloud in self.clouds.values()
        ]
        return any(asked)

    async def _is_busy(self, cloud: Cloud, uuid: str) -> bool:
        def look(tx: Tx) -> bool:
            found = instances.show_any(tx, uuid)
            waits = tx.scalar(select(func.count()).select_from(cell_tables.arrivals))
            return cloud.journal.is_busy(tx, uuid) or bool(waits) or bool(found and found.leaving)

        return await cloud.db.read(look)

    async def ask_resize(self, uuid: str, flavor: str = BIGGER) -> None:
        home, found = await self.home(uuid), await self.server(uuid)
        await resize.resize(home, member(self.two.whole), found, flavor, across=True)

    async def ask_migrate(self, uuid: str, host: str | None = None, *, across: bool = True) -> None:
        home, found = await self.home(uuid), await self.server(uuid)
        await resize.migrate(home, self.admin(), found, host=host, across=across)

    async def resized(self, uuid: str, flavor: str = BIGGER) -> Instance:
        await self.ask_resize(uuid, flavor)
        return await self.settled(uuid)

    async def confirmed(self, uuid: str) -> Instance:
        await confirm_resize.submit(await self.home(uuid), member(self.two.whole), uuid)
        return await self.settled(uuid)

    async def reverted(self, uuid: str) -> Instance:
        await revert_resize.submit(await self.home(uuid), member(self.two.whole), uuid)
        return await self.settled(uuid)

    async def know_versions(self, version: str) -> None:
        """As if the hosts' agents, which are in this process, had told it over the bus."""
        await self.two.first.db.write(lambda tx: tx.run(update(hosts_table).values(version=version)))

    async def kill(self) -> None:
        """End the controller as SIGKILL would: steps stop where they are, nothing is given back."""
        parts = self.two.parts
        await parts._periodic.stop()
        for part in parts._parts.values():
            part.runner._stopping = True
            tasks = [*part.runner._loops, *(task for _, task in part.runner._running.values())]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await part.db.close()
        parts._parts.clear()
        await kill(self.two.whole)

    # ---- what there is ----

    async def rows(self, uuid: str) -> dict[str, dict[str, int]]:
        """Cell -> table -> how many rows of the server, where there are any."""
        return {cell: await cloud.db.read(lambda tx: _count(tx, uuid)) for cell, cloud in self.clouds.items()}

    async def migrations(self, uuid: str) -> list[Migration]:
        home = await self.home(uuid)
        return await home.db.read(lambda tx: migrations.page(tx, {"instance_uuid": uuid}, newest_first=False))

    async def held(self, consumer: str) -> set[str]:
        names = {driver._compute_id: name for name, driver in self.drivers.items()}
        return {names[each] for each in await self.two.whole.placement.held(consumer)}

    async def used(self) -> dict[str, int]:
        project = str(member(self.two.whole).project_id)
        return await self.two.first.db.read(lambda tx: quotas.usage(tx, project))

    def guests(self, uuid: str) -> dict[str, int]:
        states = {name: driver.guest_file.state(uuid) for name, driver in self.drivers.items()}
        return {name: state for name, state in states.items() if state is not None}

    async def assert_has_volume(self, uuid: str, host: str) -> None:
        """One, at that host and nowhere else."""
        found = await self.server(uuid)
        for name, driver in self.drivers.items():
            assert driver.guest_file.volumes(uuid) == (found.volumes if name == host else ())
        (volume,) = found.volumes
        assert await had(self.two.whole, volume.volume_id) == Had("in-use", ((host, "attached"),))

    def parked(self, uuid: str) -> set[str]:
        return {name for name, driver in self.drivers.items() if driver.guest_file.is_parked(uuid)}

    async def assert_only_in(self, uuid: str, cell: str) -> None:
        """Its row, its operations and all that belongs to it are in that cell, and nothing in the other."""
        rows = await self.rows(uuid)
        assert rows[cell].pop("instances") == 1
        assert rows.pop(cell)["actions"] >= 1
        assert rows == {other: {} for other in rows}
        mapping = await self.two.mapping(uuid)
        assert (mapping.cell_uuid if mapping else FIRST_CELL) == cell
        server = await self.server(uuid)
        assert (server.leaving, server.residence) == (None, mapping.residence if mapping else 0)
        await self.assert_sound()

    async def assert_sound(self) -> None:
        assert await audits(self.two.whole) == []
        facts = [await cloud.db.read(audit_facts.of_cell) for cloud in self.clouds.values()]
        assert audit.findings(await self.two.first.db.read(audit_facts.of_top), facts) == []


def _count(tx: Tx, uuid: str) -> dict[str, int]:
    tables: dict[str, Any] = {
        "instances": servers_table.c.uuid,
        **{
            each.name: each.c.instance_uuid
            for each in (
                actions,
                signals,
                cell_tables.migrations,
                cell_tables.migration_contexts,
                cell_tables.leftovers,
                cell_tables.arrivals,
            )
        },
    }
    found = {
        name: int(tx.scalar(select(func.count()).where(column == uuid))) for name, column in tables.items()
    }
    mine = select(actions.c.id)
    found["events of nobody"] = int(
        tx.scalar(select(func.count()).where(action_events.c.action_id.not_in(mine)))
    )
    return {name: count for name, count in found.items() if count}


@asynccontextmanager
async def between(
    path: Path,
    database: Callable[[], Database] | None = None,
    second: str | None = None,
    **options: Any,
) -> AsyncIterator[Between]:
    """``database`` and ``second`` as for ``two_cells``."""
    async with two_cells(path, database=database, second=second, **options) as two:
        two.driver.fabric = first_host(two.whole).driver.fabric
        made = Between(two)
        await made.know_versions(versions.VERSION)
        yield made


__all__ = ["BIGGER", "CELL", "FIRST_CELL", "Between", "between"]
