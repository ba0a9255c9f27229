"""More hosts for a fake cloud in this process, each with a hypervisor, a switch and an agent of its own."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial

from kilonova.agent.agent import Agent
from kilonova.agent.ledger import Ledger
from kilonova.app import EmbeddedCloud, new_uuid
from kilonova.db import hosts
from kilonova.desk import Desks
from kilonova.model.host import HostReport, Inventory
from kilonova.model.port import Vif
from kilonova.periodic import Periodic
from kilonova.rpc.desk import IMAGE_PIECE
from kilonova.rpc.desk_sources import DeskImages
from kilonova.rpc.messages import Observed
from kilonova.vif.null import NullPlugger
from kilonova.virt.fake.driver import FakeDriver


@dataclass
class SimulatedHost:
    name: str
    compute_id: str
    driver: FakeDriver
    plugger: NullPlugger
    agent: Agent

    @property
    def empty(self) -> bool:
        """Whether nothing of any guest is here."""
        return not self.driver.guest_file.everything() and not self.plugger.plugged()


def first_host(cloud: EmbeddedCloud) -> SimulatedHost:
    """The host that a fake cloud has by itself."""
    parts, agent = cloud.host, cloud.agent
    assert parts is not None and agent is not None
    assert isinstance(parts.driver, FakeDriver) and isinstance(parts.plugger, NullPlugger)
    return SimulatedHost(parts.driver._host, parts.driver._compute_id, parts.driver, parts.plugger, agent)


@contextlib.asynccontextmanager
async def simulated_hosts(
    cloud: EmbeddedCloud, *names: str, memory_mb: int = 1_000_000
) -> AsyncIterator[list[SimulatedHost]]:
    """Hosts that have registered; each has less than the one before, so that it is chosen later."""
    made = []
    for number, name in enumerate(names):
        made.append(await _add(cloud, name, number, memory_mb))
    periodic = Periodic(cloud.clock)
    for each in made:
        report = await each.driver.report()
        periodic.every(cloud.settings.number("report_interval"), each.name, partial(cloud.alive, report))
    try:
        yield made
    finally:
        await periodic.stop()
        for each in made:
            await each.agent.shut_down_agent()


async def _report_alive(cloud: EmbeddedCloud, report: HostReport) -> None:
    while True:
        await cloud.clock.sleep(cloud.settings.number("report_interval"))
        if not await cloud.db.write(lambda tx: hosts.heartbeat(tx, report.host, cloud.clock.now())):
            await cloud.register(report)


async def _add(cloud: EmbeddedCloud, name: str, number: int, memory_mb: int) -> SimulatedHost:
    async def plugged(vif: Vif) -> None:
        await cloud.network.port_up(vif.port_id, name)

    path = cloud.state.private("agent") / name
    path.mkdir(exist_ok=True)
    kept = path / "compute_id"
    if not kept.exists():
        kept.write_text(new_uuid())
    capacity = {
        "VCPU": Inventory(total=500 - 50 * number),
        "MEMORY_MB": Inventory(total=memory_mb - 1000 * number),
        "DISK_GB": Inventory(total=50_000 - 5_000 * number),
    }
    driver = FakeDriver(name, kept.read_text(), path, cloud.clock, capacity)
    driver.fabric = first_host(cloud).driver.fabric
    plugger = NullPlugger(plugged)
    desk = Desks().serve(cloud.cloud, cloud.image, cloud.network).desk(name)

    async def observed(report: Observed) -> None:
        await desk.observed((report,))

    agent = Agent(
        driver,
        plugger,
        DeskImages(desk, IMAGE_PIECE),
        Ledger(path / "ledger.db", cloud.clock),
        cloud.clock,
        observed,
    )
    report = await agent.start_up()
    await cloud.register(report)
    await agent.tell_of_guests()
    cloud.local.add(name, agent)
    return SimulatedHost(name, report.compute_id, driver, plugger, agent)
