"""Ports of a guest that comes live are plugged again and again: Nova's `live_migration_retry_count`."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from kilonova.errors import HostFault, TryAgain
from kilonova.model.port import Vif
from kilonova.rpc.moves import LivePlan
from tests.unit.agent.host import Host, command, guest

PLAN = LivePlan(destination="h1", shared_path=False, block=True)


class Stubborn:
    """Refuses so many times."""

    def __init__(self, host: Host, refusals: int) -> None:
        self.host, self.refusals = host, refusals
        self.at: list[int] = []  # seconds

    async def plug(self, vif: Vif, instance_uuid: str, instance_name: str) -> None:
        self.at.append((self.host.clock.now() - self.host.driver.begin) // 1_000_000)
        if len(self.at) <= self.refusals:
            raise HostFault(f"the switch refuses {vif.port_id}")

    async def unplug(self, vif: Vif, instance_uuid: str, instance_name: str) -> None:
        raise AssertionError("nobody has asked for that")


async def coming(path: Path, refusals: int) -> tuple[Host, Stubborn]:
    host = Host(path)
    await host.agent.start_up()
    plugger = Stubborn(host, refusals)
    host.agent.mover._plugger = plugger
    return host, plugger


@pytest.mark.capability("MG-LM-12")
async def test_a_port_is_plugged_once_a_second_until_it_is(tmp_path: Path) -> None:
    host, plugger = await coming(tmp_path, refusals=29)
    await host.finish(host.agent.mover.receive_live(command(), guest(), PLAN))
    assert plugger.at == list(range(30))
    await host.agent.shut_down_agent()


@pytest.mark.capability("MG-LM-12")
async def test_thirty_times_are_enough(tmp_path: Path) -> None:
    host, plugger = await coming(tmp_path, refusals=1000)
    with pytest.raises(HostFault, match="the switch refuses port-g1"):
        await host.finish(host.agent.mover.receive_live(command(), guest(), PLAN))
    assert plugger.at == list(range(30))
    await host.agent.shut_down_agent()


async def test_who_wants_the_guest_gone_does_not_wait_for_that(tmp_path: Path) -> None:
    host, plugger = await coming(tmp_path, refusals=1000)
    task = asyncio.ensure_future(host.agent.mover.receive_live(command(), guest(), PLAN))
    async with asyncio.timeout(10):
        while not plugger.at:
            await asyncio.sleep(0)
    await host.agent.destroy(command(), "g1")
    with pytest.raises(TryAgain):
        await task
    assert len(plugger.at) == 1
    await host.agent.shut_down_agent()
