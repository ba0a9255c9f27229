"""A whole cloud without HTTP, for tests: started, killed and started again on one state directory."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import functools
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec

from kilonova.app import EmbeddedCloud
from kilonova.clock import Clock
from kilonova.db import instances, network_ledger, quotas, volume_ledger
from kilonova.db import placement as placement_db
from kilonova.db.engine import Database
from kilonova.journal import attention
from kilonova.model.context import RequestContext
from kilonova.model.instance import Instance
from kilonova.settings import Settings, read_options
from kilonova.testing import audit
from kilonova.testing.empty_database import have_tables
from kilonova.virt.fake.driver import FakeDriver


def default_options() -> dict[str, dict[str, object]]:
    """All options by group, as they are without a file, for a test to change."""
    return copy.deepcopy(_defaults())


@functools.cache
def _defaults() -> dict[str, dict[str, object]]:
    """Read once: it would be a quarter of what a test with a small cloud takes."""
    return read_options(None)


def settings_for(state_dir: Path, **options: dict[str, object]) -> Settings:
    """Settings of a fake cloud; ``options`` by group, e.g. ``quota={"instances": 3}``."""
    found = default_options()
    found["identity"]["password_hash_rounds"] = 1  # what a real one costs is proven where it is made
    for group, values in options.items():
        found[group].update(values)
    return Settings(state_dir=state_dir, driver="fake", options=found)


@contextlib.asynccontextmanager
async def embedded(
    state_dir: Path,
    clock: Clock | None = None,
    database: Callable[[], Database] | None = None,
    **options: dict[str, object],
) -> AsyncIterator[EmbeddedCloud]:
    """A started cloud; stopped in an orderly way at the end, unless it was killed."""
    if database is None:
        await have_tables(state_dir / "kilonova.db")
    cloud = await EmbeddedCloud.assemble(settings_for(state_dir, **options), clock, database)
    await cloud.start()
    try:
        yield cloud
    finally:
        if not cloud.runner.stopping:
            await cloud.stop()


async def kill(cloud: EmbeddedCloud) -> None:
    """End it as SIGKILL would: steps stop where they are, nothing is given back."""
    runner = cloud.runner
    runner._stopping = True
    tasks = [*runner._loops, *(task for _, task in runner._running.values())]
    if cloud.periodic is not None:
        await cloud.periodic.stop()
    if cloud.clearing is not None:
        await cloud.clearing.stop()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await cloud.network.close()
    await cloud.volume.close()
    await cloud.image.close()
    cloud.identity.close()
    await cloud.db.close()
    fake_driver(cloud).guest_file.close()
    cloud.state.close()


def fake_driver(cloud: EmbeddedCloud) -> FakeDriver:
    assert cloud.host is not None
    driver = cloud.host.driver
    assert isinstance(driver, FakeDriver)
    return driver


def member(cloud: EmbeddedCloud, request_id: str = "req-test") -> RequestContext:
    """A member of the project ``demo``."""
    assert cloud.accounts is not None
    return RequestContext(
        request_id=request_id,
        user_id=cloud.accounts.users["demo"],
        project_id=cloud.accounts.projects["demo"],
        roles=frozenset({"member", "reader"}),
    )


class Holdings(msgspec.Struct, frozen=True, kw_only=True):
    """What a server, or all of them, have: empty when nothing is left of it."""

    claims: dict[str, dict[str, int]]
    ports: tuple[str, ...]
    guest: int | None
    open_actions: int

    @property
    def nothing(self) -> bool:
        return not self.claims and not self.ports and self.guest is None and not self.open_actions


async def holdings(cloud: EmbeddedCloud, uuid: str) -> Holdings:
    opened = await cloud.db.read(attention.open_actions)
    return Holdings(
        claims=await cloud.placement.held(uuid),
        ports=tuple(vif.port_id for vif in await cloud.network.vifs(uuid)),
        guest=fake_driver(cloud).guest_file.state(uuid),
        open_actions=sum(action.instance_uuid == uuid for action in opened),
    )


async def audits(cloud: EmbeddedCloud) -> list[Any]:
    """Where counters differ from what they count: quota and placement."""
    return [
        *await cloud.db.read(quotas.audit),
        *await cloud.db.read(placement_db.audit),
        *await cloud.db.read(volume_ledger.audit),
    ]


async def leaks(cloud: EmbeddedCloud) -> list[str]:
    """Everything in an idle cloud that belongs to nobody, or is not as its server says."""
    await delivered(cloud)
    guests = fake_driver(cloud).guest_file.everything()
    return await cloud.db.read(lambda tx: audit.leaks(tx, guests))


async def delivered(cloud: EmbeddedCloud, seconds: float = 10.0) -> None:
    """Give news of ports, which travel behind the operations that they are of, that time to arrive."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while True:
                if not await cloud.db.read(network_ledger.pending):
                    return
                await asyncio.sleep(0.005)


async def server(cloud: EmbeddedCloud, uuid: str) -> Instance:
    found = await cloud.db.read(lambda tx: instances.show_any(tx, uuid))
    assert found is not None, f"no server {uuid}"
    return found


async def settled(cloud: EmbeddedCloud, uuid: str, seconds: float = 20.0) -> Instance:
    """The server, once no operation of it is open.  Raises TimeoutError."""
    async with asyncio.timeout(seconds):
        while True:
            opened = await cloud.db.read(attention.open_actions)
            mine = [action for action in opened if action.instance_uuid == uuid]
            if not mine or all(action.state == "attention" for action in mine):
                return await server(cloud, uuid)
            await asyncio.sleep(0.005)
