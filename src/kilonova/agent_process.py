"""The agent of one host as a process of its own: hands on the bus, without database or credentials.

What it needs of the cloud it asks at the controllers' desk; guests outlive it, and are found again.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field

import structlog

from kilonova.agent.agent import Agent
from kilonova.agent.fences import Fences
from kilonova.agent.ledger import Ledger
from kilonova.clock import Clock, SystemClock
from kilonova.errors import Unreachable
from kilonova.host_parts import HostParts, agent_options, host_name, host_parts
from kilonova.model.host import HostReport
from kilonova.periodic import Periodic, spacing
from kilonova.rpc import subjects
from kilonova.rpc.calls import Caller
from kilonova.rpc.desk import IMAGE_PIECE
from kilonova.rpc.desk_sources import DeskImages, DeskWiring
from kilonova.rpc.nats_agent import AgentOnBus, Serving
from kilonova.rpc.nats_desk import NatsDesk
from kilonova.rpc.nats_link import Link
from kilonova.rpc.nats_options import bus_options
from kilonova.rpc.outbox import Outbox
from kilonova.settings import Settings
from kilonova.state_dir import StateDir

log = structlog.get_logger("kilonova.agent")

Progress = Callable[[str], None]

PATIENCE = 10.0  # seconds between words to the user that the bus does not answer


@dataclass(kw_only=True)
class AgentProcess:
    """``assemble``, ``start`` and ``stop``.

    ``over`` is set, and ``why`` tells the reason, when another agent has taken over.
    """

    settings: Settings
    state: StateDir
    clock: Clock
    host: str
    session: str
    link: Link
    caller: Caller
    desk: NatsDesk
    wiring: DeskWiring
    outbox: Outbox
    fences: Fences
    periodic: Periodic
    parts: HostParts | None = None
    agent: Agent | None = None
    on_bus: AgentOnBus | None = None
    over: asyncio.Event = field(default_factory=asyncio.Event)
    why: str = ""

    @classmethod
    def assemble(cls, settings: Settings, clock: Clock | None = None) -> AgentProcess:
        """Raises Failed for a state directory in use and for settings that cannot be."""
        clock = clock or SystemClock()
        state = StateDir.open(settings.state_dir)
        host = host_name(settings)
        options = bus_options(settings)
        link = Link(options, clock, f"agent {host}", subjects.inbox(options.prefix, host))
        caller = Caller(link, clock)
        desk = NatsDesk(caller, options.prefix, host)
        return cls(
            settings=settings,
            state=state,
            clock=clock,
            host=host,
            session=uuid.uuid4().hex,
            link=link,
            caller=caller,
            desk=desk,
            wiring=DeskWiring(desk),
            outbox=Outbox(desk, clock),
            fences=Fences(state.private("agent") / "fences.db", clock),
            periodic=Periodic(clock),
        )

    async def start(self, progress: Progress = lambda text: None) -> None:
        """Come to where controllers can ask for anything; waits for them as long as it takes.

        Raises Failed for a host that cannot run guests; Conflict or Invalid for one that is not wanted.
        """
        self.link.open()
        await self._connected(progress)
        await self.caller.open(self.session)
        progress(f"the {self.settings.driver} hypervisor of this host")
        parts = self.parts = await host_parts(self.settings, self.state, self.clock, self.wiring, self.desk)
        self.agent = Agent(
            parts.driver,
            parts.plugger,
            DeskImages(self.desk, IMAGE_PIECE),
            Ledger(self.state.private("agent") / "ledger.db", self.clock),
            self.clock,
            self.outbox.put,
            agent_options(self.settings),
        )
        first = await self.agent.start_up(parts.reports.first)
        progress("a controller")
        self.on_bus = AgentOnBus(
            self.link, self.clock, self.desk, self._serving(first), self.settings.number("report_interval")
        )
        await self.on_bus.open()
        await self.agent.tell_of_guests()
        self.outbox.start()
        self.link.on_back.append(lambda: self.wiring.changed("everything", ""))
        self._begin_periodic(parts)

    async def _connected(self, progress: Progress) -> None:
        while not self.link.connected:
            progress(f"the bus at {self.link.options.shown}")
            try:
                await self.link.wait(PATIENCE)
            except Unreachable as error:
                log.warning("the bus does not answer yet", error=str(error))
                progress(str(error))

    def _serving(self, first: HostReport) -> Serving:
        assert self.agent is not None and self.parts is not None
        reports, waiting = self.parts.reports, [first]

        async def report() -> HostReport:
            return waiting.pop() if waiting else reports.latest

        return Serving(
            host=self.host,
            session=self.session,
            agent=self.agent,
            report=report,
            changed=self.wiring.changed,
            guard=self.fences.guard,
            superseded=self._end,
        )

    def _end(self, why: str) -> None:
        if not self.over.is_set():
            log.critical("this agent ends", host=self.host, reason=why)
            self.why = why
            self.over.set()

    def _begin_periodic(self, parts: HostParts) -> None:
        interval = spacing(self.settings.number("sync_power_state_interval"))
        self.periodic.every(interval, "power states", self._tell_of_all_guests)
        parts.keep_reports(
            self.periodic, self.settings, lambda report: self.desk.hello(report, self.session, again=True)
        )
        parts.keep_image_cache(self.periodic, self.settings)

    async def _tell_of_all_guests(self) -> None:
        assert self.agent is not None
        seen, generation = await self.agent.survey()
        await self.desk.observed(seen, all_at=generation)

    async def stop(self) -> None:
        """Take no more commands, let those under way end, let go.  Guests run on."""
        await self.periodic.stop()
        if self.on_bus is not None:
            await self.on_bus.close()
        await self.outbox.stop()
        if self.parts is not None:
            await self.parts.stop()
        if self.agent is not None:
            await self.agent.shut_down_agent()
        await self.caller.close()
        await self.link.close()
        self.fences.close()
        self.state.close()
