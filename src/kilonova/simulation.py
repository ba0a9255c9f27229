"""Many hosts in one process: real agents on the real bus, each with a hypervisor of records.

What they share is the connection, and the files of what guests there are and of what was done.
"""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgspec
import structlog

from kilonova.agent.agent import Agent
from kilonova.agent.fences import Fences
from kilonova.agent.ledger import Ledger
from kilonova.agent.report import HostReports, host_reports
from kilonova.clock import Clock, SystemClock
from kilonova.errors import Unreachable
from kilonova.model.host import HostReport, Inventory
from kilonova.model.port import Vif
from kilonova.periodic import Periodic, spacing
from kilonova.rpc import subjects
from kilonova.rpc.calls import Caller
from kilonova.rpc.desk import IMAGE_PIECE
from kilonova.rpc.desk_sources import DeskImages
from kilonova.rpc.nats_agent import AgentOnBus, Serving
from kilonova.rpc.nats_desk import NatsDesk
from kilonova.rpc.nats_link import Link
from kilonova.rpc.nats_options import bus_options
from kilonova.rpc.outbox import Outbox
from kilonova.settings import Settings
from kilonova.state_dir import StateDir
from kilonova.vif.null import NullPlugger
from kilonova.virt.fake.driver import FakeDriver
from kilonova.virt.fake.guests import opened
from kilonova.virt.fake.hardware import hardware_from
from kilonova.virt.fake.live import Fabric

log = structlog.get_logger("kilonova.simulation")

AT_ONCE = 32  # hosts that start at a time
NAMESPACE = uuid.UUID("6f0f3d5e-5c1b-5a0e-9a59-6c1d52f3b8aa")  # of their compute ids


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """Which hosts: ``prefix`` and a number from ``first`` on; how slow they are, and what goes wrong.

    ``faults`` are chances (0 to 1) by verb of the hypervisor.
    """

    prefix: str = "sim-"
    first: int = 1
    hosts: int = 1
    delay: float = 0.0
    faults: dict[str, float] = {}
    seed: int = 0

    def names(self) -> list[str]:
        return [f"{self.prefix}{number:05}" for number in range(self.first, self.first + self.hosts)]


@dataclass
class _Host:
    driver: FakeDriver
    agent: Agent
    desk: NatsDesk
    outbox: Outbox
    reports: HostReports
    session: str
    on_bus: AgentOnBus | None = None


@dataclass(kw_only=True)
class Simulation:
    """``assemble``, ``start`` and ``stop``."""

    name: str
    settings: Settings
    plan: Plan
    state: StateDir
    clock: Clock
    link: Link
    caller: Caller
    fences: Fences
    ledger: Ledger
    guests: Any
    periodic: Periodic
    fabric: Fabric = field(default_factory=Fabric)
    hosts: dict[str, _Host] = field(default_factory=dict)

    @classmethod
    def assemble(cls, settings: Settings, plan: Plan, clock: Clock | None = None) -> Simulation:
        """Raises Failed for a state directory in use."""
        clock = clock or SystemClock()
        state = StateDir.open(settings.state_dir)
        directory = state.private("agent")
        options = bus_options(settings)
        me = f"simulation-{uuid.uuid4().hex}"
        link = Link(options, clock, me, subjects.inbox(options.prefix, me))
        return cls(
            name=me,
            settings=settings,
            plan=plan,
            state=state,
            clock=clock,
            link=link,
            caller=Caller(link, clock),
            fences=Fences(directory / "fences.db", clock),
            ledger=Ledger(directory / "ledger.db", clock),
            guests=opened(directory / "fake-guests.db"),
            periodic=Periodic(clock),
        )

    async def start(self, progress: Callable[[int], None] = lambda number: None) -> None:
        """Have all hosts report; ``progress`` hears how many have."""
        self.link.open()
        while not self.link.connected:
            try:
                await self.link.wait(10)
            except Unreachable as error:
                log.warning("the bus does not answer yet", error=str(error))
        await self.caller.open(self.name, subjects.inbox_of_any(self.link.options.prefix))
        turns, done = asyncio.Semaphore(AT_ONCE), 0

        async def one(name: str) -> None:
            nonlocal done
            async with turns:
                await self._start_host(name)
            done += 1
            progress(done)

        async with asyncio.TaskGroup() as group:
            for name in self.plan.names():
                group.create_task(one(name))
        interval = spacing(self.settings.number("sync_power_state_interval"))
        for name, host in self.hosts.items():
            self.periodic.every(interval, f"power states of {name}", partial(_survey, host))

    async def _start_host(self, name: str) -> None:
        host = self.hosts[name] = self._make(name)
        first = await host.agent.start_up(host.reports.first)
        waiting = [first]

        async def report() -> HostReport:
            return waiting.pop() if waiting else host.reports.latest

        serving = Serving(
            host=name,
            session=host.session,
            agent=host.agent,
            report=report,
            changed=lambda kind, thing: None,
            guard=self.fences.guard,
            superseded=lambda why: log.critical("a simulated host is superseded", host=name, reason=why),
        )
        interval = self.settings.number("report_interval")
        host.on_bus = AgentOnBus(self.link, self.clock, host.desk, serving, interval)
        await host.on_bus.open()
        await host.agent.tell_of_guests()
        host.outbox.start()

    def _make(self, name: str) -> _Host:
        settings = self.settings
        prefix = self.link.options.prefix
        desk = NatsDesk(self.caller.behind(subjects.inbox(prefix, name)), prefix, name)
        hardware = hardware_from(settings)
        capacity = {
            "VCPU": Inventory(total=settings.number("vcpus", "fake")),
            "MEMORY_MB": Inventory(total=settings.number("memory_mb", "fake")),
            "DISK_GB": Inventory(total=settings.number("disk_gb", "fake")),
        }
        driver = FakeDriver(
            name,
            str(uuid.uuid5(NAMESPACE, name)),
            self.guests,
            self.clock,
            hardware.capacity(capacity),
            delay=self.plan.delay,
            hardware=hardware,
        )
        driver.fabric = self.fabric
        source = random.Random(f"{self.plan.seed} {name}")
        for verb, chance in self.plan.faults.items():
            driver.faults.often(verb, chance, source)

        async def plugged(vif: Vif) -> None:
            await desk.port_up(vif.port_id)

        outbox = Outbox(desk, self.clock)
        agent = Agent(
            driver,
            NullPlugger(plugged),
            DeskImages(desk, IMAGE_PIECE),
            self.ledger,
            self.clock,
            outbox.put,
        )
        reports = host_reports(driver, self.clock, settings)
        reports.details = {"datapath_type": "netdev"}
        return _Host(driver, agent, desk, outbox, reports, uuid.uuid4().hex)

    def running(self) -> dict[str, dict[str, int]]:
        """Host -> its guests and their power states."""
        return {name: host.driver.guest_file.everything() for name, host in self.hosts.items()}

    async def stop(self) -> None:
        await self.periodic.stop()
        hosts = list(self.hosts.values())
        await asyncio.gather(*(host.on_bus.close() for host in hosts if host.on_bus is not None))
        await asyncio.gather(*(host.outbox.stop() for host in hosts))
        await self.caller.close()
        await self.link.close()
        self.ledger.close()
        self.fences.close()
        self.guests.close()
        self.state.close()


async def _survey(host: _Host) -> None:
    seen, generation = await host.agent.survey()
    await host.desk.observed(seen, all_at=generation)
