"""The bus of a cell besides the first: NATS servers, often the deployment's own, and a prefix of subjects."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass

from msgspec.structs import replace

from kilonova.clock import Clock
from kilonova.control_plane import ControlPlane
from kilonova.db import hosts
from kilonova.db.cell_mappings import CellMapping
from kilonova.desk import Desks
from kilonova.errors import Invalid
from kilonova.news import WiringNews
from kilonova.operations.cloud import Cloud
from kilonova.operations.leftovers import Clearing
from kilonova.roll import Roll
from kilonova.rpc import subjects, versions
from kilonova.rpc.calls import Caller
from kilonova.rpc.nats_desk import Ear, HostVoice
from kilonova.rpc.nats_hosts import NatsHosts
from kilonova.rpc.nats_link import BusOptions, Link
from kilonova.rpc.nats_options import bus_options
from kilonova.settings import Settings

_TRANSPORT = re.compile(r"(nats|tls)://([^/\s@]*)/([A-Za-z0-9_-]{1,64}(?:\.[A-Za-z0-9_-]{1,64})*)")


def read_transport(settings: Settings, url: str) -> BusOptions:
    """``nats://host:4222,host2:4222/PREFIX``; without hosts the servers of [nats].  Certificates are those of
    [nats]; so is the key, unless there is one for this prefix beside it: ``controller-PREFIX.nk`` where
    [nats]nkey_seed_file is ``controller.nk``.

    Raises Invalid.
    """
    found = _TRANSPORT.fullmatch(url)
    if found is None:
        raise Invalid(
            "A cell's bus is nats://host:4222/PREFIX, with letters, digits, '-', '_' and '.' in the prefix; "
            "passwords have no place in it, keys are files of [nats]."
        )
    scheme, servers, prefix = found.groups()
    own = bus_options(settings)
    listed = tuple(f"{scheme}://{each}" for each in servers.split(",") if each)
    seed = own.seed_file
    if seed is not None:
        its_own = seed.with_name(f"{seed.stem}-{prefix}{seed.suffix}")
        seed = its_own if its_own.exists() else seed
    return replace(own, servers=listed or own.servers, prefix=prefix, seed_file=seed)


@dataclass
class CellBus:
    """Hears and calls the hosts of one cell."""

    plane: ControlPlane
    link: Link
    caller: Caller
    hosts: NatsHosts
    desks: Desks
    ear: Ear
    roll: Roll
    news: WiringNews
    clearing: Clearing | None = None
    _end_news: Callable[[], None] = lambda: None

    @classmethod
    async def open(cls, plane: ControlPlane, clock: Clock, mapping: CellMapping) -> CellBus:
        """A bus that does not answer may come later.  Raises Invalid for a transport that is none."""
        options = read_transport(plane.settings, mapping.transport_url)
        owner = plane.runner.owner
        link = Link(options, clock, owner, subjects.inbox(options.prefix, subjects.CONTROLLERS))
        caller = Caller(link, clock)
        voice = HostVoice(link, options.prefix)
        pin = versions.pinned(plane.settings.text("compute", "upgrade_levels"))
        directory = NatsHosts(
            caller, options.prefix, lambda host: plane.db.read(lambda tx: hosts.session(tx, host)), pin
        )
        roll = Roll(plane.db, clock, voice)
        desks = Desks()
        ear = Ear(link, clock, options.prefix, desks, roll.heard)
        return cls(plane, link, caller, directory, desks, ear, roll, WiringNews(plane.db, clock, voice))

    async def serve(self, cloud: Cloud) -> None:
        self.clearing = Clearing(cloud)
        self.desks.serve(cloud, self.plane.image, self.plane.network, self.clearing.soon)
        self.link.open()
        await self.caller.open(self.plane.runner.owner)
        self._end_news = self.plane.network.subscribe(self.news.changed)
        self.roll.start()
        await self.ear.open()
        self.clearing.start()

    async def close(self) -> None:
        if self.clearing is not None:
            await self.clearing.stop()
        self._end_news()
        await self.ear.close()
        await asyncio.gather(self.roll.stop(), self.news.stop(), self.caller.close())
        await self.link.close()
