"""A whole cloud in one process: a control plane, and the host that it runs guests on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kilonova.agent.agent import Agent
from kilonova.agent.ledger import Ledger
from kilonova.clock import Clock, SystemClock
from kilonova.control_plane import ControlPlane, Places, new_uuid
from kilonova.db import hosts
from kilonova.db.engine import Database
from kilonova.db.schema import bring_up
from kilonova.db.sqlite import SqliteDatabase
from kilonova.desk import Desks
from kilonova.host_parts import HostParts, agent_options, host_name, host_parts
from kilonova.model.context import RequestContext
from kilonova.model.host import HostReport
from kilonova.operations import confirm_resize, offload, power
from kilonova.operations.leftovers import Clearing
from kilonova.periodic import Periodic, spacing
from kilonova.registration import register
from kilonova.rpc.desk import IMAGE_PIECE
from kilonova.rpc.desk_sources import DeskImages
from kilonova.rpc.local import LocalHosts
from kilonova.settings import Settings
from kilonova.state_dir import StateDir

__all__ = ["EmbeddedCloud", "new_uuid"]

Progress = Callable[[str], None]

RECOVER = 60.0  # seconds between looks for volumes that had to wait
SWEEP = 600.0  # seconds between looks for pieces of images that came too late
EXAMPLE_IMAGE = "cirros-0.6.2-x86_64-disk"  # DevStack's name, which clients' own tests look for


@dataclass(kw_only=True)
class EmbeddedCloud(ControlPlane):
    """``assemble`` puts it together, ``start`` brings it to where it can accept a boot, ``serve`` opens its
    ports, ``stop`` ends it; whatever was unfinished goes on at the next start.
    """

    state: StateDir
    local: LocalHosts
    host: HostParts | None = None
    agent: Agent | None = None
    example_image: str = ""  # what a fake cloud can boot at once
    periodic: Periodic | None = None
    clearing: Clearing | None = None

    @classmethod
    async def assemble(
        cls, settings: Settings, clock: Clock | None = None, database: Callable[[], Database] | None = None
    ) -> EmbeddedCloud:
        """``database`` makes another one than that in the state directory.

        Raises Failed when the state directory is in use, or of another release.
        """
        clock = clock or SystemClock()
        state = StateDir.open(settings.state_dir)
        db = database() if database else SqliteDatabase(state.path / "kilonova.db", clock)
        await bring_up(db)
        volumes = settings.text("directory", "volume")
        places = Places(
            keys=state.private("keys"),
            images=state.private("images"),
            volumes=Path(volumes) if volumes else state.searchable("volumes"),
            policy=state.path / "policy.yaml",
            clouds_yaml=state.path / "clouds.yaml",
        )
        local = LocalHosts()
        owner = f"embedded-{new_uuid()}"
        return cls.compose(settings, places, clock, db, local, owner, state=state, local=local)

    async def start(self, progress: Progress = lambda text: None) -> None:
        """First things on a first start; then the host, then the work that was left."""
        progress("accounts, flavors and a network")
        passwords = self.state.passwords()
        await self.first_things(passwords["admin"], passwords["demo"])
        await self.volume.recover()
        progress(f"the {self.settings.driver} hypervisor of this host")
        await self._start_host()
        progress("unfinished operations")
        await self.runner.start(sole=True)
        self.clearing = Clearing(self.cloud)
        self.clearing.start()
        await self.network.deliver_pending()

    async def _start_host(self) -> None:
        """Open the hypervisor, adopt its guests, and say what the host has."""
        desk = Desks().serve(self.cloud, self.image, self.network).desk(host_name(self.settings))
        parts = self.host = await host_parts(self.settings, self.state, self.clock, self.network, desk)
        ledger = Ledger(self.state.private("agent") / "ledger.db", self.clock)
        self.agent = Agent(
            parts.driver,
            parts.plugger,
            DeskImages(desk, IMAGE_PIECE),
            ledger,
            self.clock,
            lambda report: desk.observed((report,)),
            agent_options(self.settings),
        )
        report = await self.agent.start_up(parts.reports.first)
        await self.register(report)
        await self.agent.tell_of_guests()
        self.local.add(report.host, self.agent)
        if self.settings.driver == "fake":
            example = await self.image.add_local(self._administrator(), EXAMPLE_IMAGE, bytes(1 << 20))
            self.example_image = example.id
        self._begin_periodic(report, parts)

    def _begin_periodic(self, report: HostReport, parts: HostParts) -> None:
        number = self.settings.number
        self.periodic = Periodic(self.clock)
        self.periodic.every(
            number("report_interval"), "service report", lambda: self.alive(parts.reports.latest)
        )
        self.periodic.every(
            spacing(number("sync_power_state_interval")),
            "power states",
            lambda: power.synchronise(self.cloud, report.host),
        )
        self.periodic.every(SWEEP, "pieces of images", self.image.sweep)
        self.periodic.every(RECOVER, "unfinished volumes", self.volume.recover)
        self.periodic.every(
            spacing(number("shelved_poll_interval")),
            "shelved servers",
            lambda: offload.offload_all_aged(self.cloud),
        )
        self.periodic.every(
            confirm_resize.EVERY, "resizes", lambda: confirm_resize.confirm_all_overdue(self.cloud)
        )
        parts.keep_reports(self.periodic, self.settings, self.register)
        parts.keep_image_cache(self.periodic, self.settings)

    def _administrator(self) -> RequestContext:
        assert self.accounts is not None
        return RequestContext(
            request_id=f"req-{new_uuid()}",
            user_id=self.accounts.users["admin"],
            project_id=self.accounts.projects["admin"],
            roles=frozenset({"admin"}),
        )

    async def register(self, report: HostReport) -> None:
        """Take over what a host says of itself.  Raises Conflict for a host that has changed its identity."""
        await register(self.cloud, report)

    async def alive(self, report: HostReport) -> None:
        """Note that a host lives; one whose service was deleted while its agent runs is registered anew."""
        if not await self.db.write(lambda tx: hosts.heartbeat(tx, report.host, self.clock.now())):
            await self.register(report)

    async def serve(self) -> None:
        """Answer at the ports, opening them if need be, and write ``clouds.yaml``."""
        await super().serve()
        self.write_clouds_yaml(self.state.passwords())

    async def stop(self) -> None:
        """Take no more requests, let steps end, let go.  Guests run on."""
        if self.periodic is not None:
            await self.periodic.stop()
        if self.clearing is not None:
            await self.clearing.stop()
        await asyncio.gather(self.runner.stop(), self.stop_serving())
        if self.host is not None:
            await self.host.stop()
        if self.agent is not None:
            await self.agent.shut_down_agent()
        await self.close()
        self.state.close()
