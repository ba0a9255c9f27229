"""The process dies on the way from one host to the next."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from kilonova.app import EmbeddedCloud
from kilonova.errors import HostFault
from kilonova.model.states import Power, Vm
from kilonova.testing.embedded import audits, kill, settled
from kilonova.testing.simulated_hosts import SimulatedHost, first_host, simulated_hosts
from tests.crash.broken import crash_at
from tests.crash.conftest import Stage, crash_points
from tests.crash.scenes import BOOT_UNDOS, boot
from tests.crash.world import log_of


@contextlib.asynccontextmanager
async def two_hosts(stage: Stage) -> AsyncIterator[tuple[EmbeddedCloud, SimulatedHost, SimulatedHost]]:
    """The first is chosen before the second."""
    options: dict[str, dict[str, object]] = {
        "DEFAULT": {"host": "h1"},
        "fake": {"vcpus": 1000, "memory_mb": 2_000_000, "disk_gb": 100_000},
    }
    async with stage.cloud(**options) as cloud, simulated_hosts(cloud, "h2") as (second,):
        yield cloud, first_host(cloud), second


@pytest.mark.capability("MG-BLD-15")
@pytest.mark.parametrize(("stage", "what"), crash_points("undo", "undone"), indirect=["stage"])
@pytest.mark.parametrize("step", BOOT_UNDOS)
async def test_the_process_dies_while_a_host_is_given_up(stage: Stage, step: str, what: str) -> None:
    async with two_hosts(stage) as (cloud, first, _):
        first.driver.faults.add("resume", HostFault("no power"))
        died = crash_at(cloud, "create", step, what)
        uuid = await boot(cloud)
        await asyncio.wait_for(died.wait(), 60)
        await kill(cloud)
    async with two_hosts(stage) as (cloud, first, second):
        server = await settled(cloud, uuid)
        assert (server.vm_state, server.host, server.fault) == (Vm.ACTIVE, "h2", None)
        assert first.empty
        assert second.driver.guest_file.everything() == {uuid: Power.RUNNING}
        assert list(await cloud.placement.held(uuid)) == [second.compute_id]
        log = await log_of(cloud, uuid, "create")
        assert ("resume", "do", 1, "Error") in log and ("resume", "do", 2, "Success") in log
        assert [step for step, phase, _, _ in log if phase == "undo"] == list(reversed(BOOT_UNDOS))
        assert await audits(cloud) == []


@pytest.mark.parametrize("stage", ["sqlite"], indirect=True)
@pytest.mark.parametrize(("step", "what"), [("place", "do"), ("place", "done"), ("start", "done")])
async def test_the_process_dies_at_the_next_host(stage: Stage, step: str, what: str) -> None:
    """And the round before, with the host that is not to be tried again, is remembered."""
    async with two_hosts(stage) as (cloud, first, _):
        first.driver.faults.add("prepare", HostFault("disk full"))
        died = crash_at(cloud, "create", step, what, 2)
        uuid = await boot(cloud)
        await asyncio.wait_for(died.wait(), 60)
        await kill(cloud)
    async with two_hosts(stage) as (cloud, first, second):
        server = await settled(cloud, uuid)
        assert (server.vm_state, server.host) == (Vm.ACTIVE, "h2")
        assert first.empty
        assert second.driver.guest_file.everything() == {uuid: Power.RUNNING}
        assert await audits(cloud) == []
