"""A controller of a large cloud: one of any number, all equal, on one PostgreSQL and one NATS."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import structlog

from kilonova.cell_bus import CellBus
from kilonova.cell_parts import CellParts
from kilonova.clock import Clock, SystemClock
from kilonova.control_plane import ControlPlane, Places, new_uuid
from kilonova.db import hosts
from kilonova.db.engine import Database
from kilonova.db.postgresql import PostgresqlDatabase
from kilonova.db.schema import check
from kilonova.desk import Desks
from kilonova.errors import Failed, Unreachable
from kilonova.news import WiringNews
from kilonova.operations import confirm_resize, offload
from kilonova.operations.leftovers import Clearing
from kilonova.periodic import Periodic, spacing
from kilonova.roll import Roll
from kilonova.rpc import subjects, versions
from kilonova.rpc.calls import Caller
from kilonova.rpc.nats_desk import Ear, HostVoice
from kilonova.rpc.nats_hosts import NatsHosts
from kilonova.rpc.nats_link import Link
from kilonova.rpc.nats_options import bus_options
from kilonova.settings import Settings
from kilonova.state_dir import StateDir

log = structlog.get_logger("kilonova.controller")

RECOVER = 60.0  # seconds between looks for what a controller that died has left to others
FIRST_WAIT = 5.0  # seconds for the bus to answer before we begin without it


def places_of(settings: Settings, state: StateDir) -> Places:
    """Where this controller keeps its files: token keys, images and volumes are the same on all of them."""
    keys = settings.text("key_repository", "fernet_tokens")
    images = settings.text("filesystem_store_datadir", "glance_store")
    volumes = settings.text("directory", "volume")
    return Places(
        keys=Path(keys) if keys else state.private("keys"),
        images=Path(images) if images else state.private("images"),
        volumes=Path(volumes) if volumes else None,
        policy=state.path / "policy.yaml",
        clouds_yaml=state.path / "clouds.yaml",
        shared=True,
    )


def open_database(settings: Settings) -> Database:
    """The cloud's PostgreSQL.  Raises Failed if it is not configured."""
    connection = settings.text("connection", "database")
    if not connection:
        raise Failed(
            "A controller needs [database]connection, e.g. postgresql://kilonova:secret@db.example/kilonova."
        )
    url = connection.replace("postgresql+psycopg://", "postgresql://", 1)
    return PostgresqlDatabase(url, threads=settings.number("max_pool_size", "database"))


@dataclass(kw_only=True)
class Controller(ControlPlane):
    """``assemble``, ``start``, ``serve`` and ``stop``; what it was at when it ends, others take over."""

    state: StateDir
    link: Link
    caller: Caller
    bus_hosts: NatsHosts
    ear: Ear
    roll: Roll
    news: WiringNews
    periodic: Periodic
    clearing: Clearing | None = None
    cells: CellParts | None = None
    _end_news: Callable[[], None] = lambda: None

    @classmethod
    async def assemble(cls, settings: Settings, clock: Clock | None = None) -> Controller:
        """Raises Failed for settings that are not enough, a state directory in use, a database of another
        release; DatabaseUnavailable."""
        clock = clock or SystemClock()
        state = StateDir.open(settings.state_dir)
        owner = f"controller-{new_uuid()}"
        db = open_database(settings)
        try:
            await check(db)
        except BaseException:
            await db.close()
            raise
        options = bus_options(settings)
        link = Link(options, clock, owner, subjects.inbox(options.prefix, subjects.CONTROLLERS))
        caller = Caller(link, clock)
        voice = HostVoice(link, options.prefix)
        pin = versions.pinned(settings.text("compute", "upgrade_levels"))
        bus_hosts = NatsHosts(
            caller, options.prefix, lambda host: db.read(lambda tx: hosts.session(tx, host)), pin
        )
        roll = Roll(db, clock, voice)
        places = places_of(settings, state)
        desks = Desks()
        cloud = cls.compose(
            settings,
            places,
            clock,
            db,
            bus_hosts,
            owner,
            state=state,
            link=link,
            caller=caller,
            bus_hosts=bus_hosts,
            ear=Ear(link, clock, options.prefix, desks, roll.heard),
            roll=roll,
            news=WiringNews(db, clock, voice),
            periodic=Periodic(clock),
        )
        cloud.clearing = Clearing(cloud.cloud)
        desks.serve(cloud.cloud, cloud.image, cloud.network, cloud.clearing.soon)
        return cloud

    async def start(self, progress: Callable[[str], None] = lambda text: None) -> None:
        """Take part: hear the hosts, and take up operations.  A bus that does not answer may come later."""
        progress("images")
        await self.image.recover()
        progress("volumes")
        await self.volume.recover()
        progress(f"the bus at {self.link.options.shown}")
        self.link.open()
        try:
            await self.link.wait(FIRST_WAIT)
        except Unreachable as error:
            log.error("the bus does not answer yet", error=str(error))
            progress(str(error))
        await self.caller.open(self.runner.owner)
        self.scheduler.interrupted()  # who was silent before we listened says nothing
        self.roll.on_outage = self.scheduler.interrupted
        self.link.on_lost.append(self.scheduler.interrupted)
        self.link.on_back.append(self.scheduler.interrupted)
        self._end_news = self.network.subscribe(self.news.changed)
        self.roll.start()
        await self.ear.open()
        progress("unfinished operations")
        await self.runner.start(sole=False)
        assert self.clearing is not None
        self.clearing.start()
        self.cells = CellParts(self, partial(CellBus.open, self, self.clock))
        await self.cells.start()
        self.periodic.every(RECOVER, "interrupted uploads", self.image.recover)
        self.periodic.every(RECOVER, "unfinished volumes", self.volume.recover)
        self.periodic.every(RECOVER, "events that nobody heard", self.network.deliver_pending)
        self.periodic.every(
            spacing(self.settings.number("shelved_poll_interval")),
            "shelved servers",
            lambda: offload.offload_all_aged(self.cloud),
        )
        self.periodic.every(
            confirm_resize.EVERY, "resizes", lambda: confirm_resize.confirm_all_overdue(self.cloud)
        )
        await self.network.deliver_pending()

    async def stop(self) -> None:
        """Take no more requests, let steps end, give the rest to the others."""
        await self.periodic.stop()
        if self.clearing is not None:
            await self.clearing.stop()
        await asyncio.gather(self.runner.stop(), self.stop_serving())
        if self.cells is not None:
            await self.cells.stop()
        self._end_news()
        await self.ear.close()
        await asyncio.gather(self.roll.stop(), self.news.stop(), self.caller.close())
        await self.link.close()
        await self.close()
        self.state.close()
