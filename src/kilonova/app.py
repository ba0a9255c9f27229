"""The composition root: who knows whom.  Here and nowhere else are parts put together."""

from __future__ import annotations

import asyncio
import socket
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from starlette.types import ASGIApp

from kilonova import clouds_yaml
from kilonova.agent.agent import Agent
from kilonova.agent.ledger import Ledger
from kilonova.api import app as compute_api
from kilonova.api.policy import Policy
from kilonova.clock import Clock, SystemClock
from kilonova.db import flavors, hosts
from kilonova.db.engine import Database
from kilonova.db.schema import bring_up
from kilonova.db.sqlite import SqliteDatabase
from kilonova.host_parts import HostParts, host_parts
from kilonova.journal.journal import Journal
from kilonova.journal.runner import Runner
from kilonova.model.context import RequestContext
from kilonova.model.host import HostReport
from kilonova.operations import external_event, power
from kilonova.operations.cloud import Cloud
from kilonova.operations.registry import OPERATIONS
from kilonova.periodic import Periodic, spacing
from kilonova.registration import register
from kilonova.rpc.local import LocalHosts
from kilonova.scheduler.select import Scheduler
from kilonova.services.identity import api as identity_api
from kilonova.services.identity.bootstrap import Bootstrapped, bootstrap
from kilonova.services.identity.builtin import BuiltinIdentity
from kilonova.services.identity.passwords import Cost, Passwords
from kilonova.services.image import api as image_api
from kilonova.services.image.builtin import BuiltinImage
from kilonova.services.metadata.documents import config_drive
from kilonova.services.network import api as network_api
from kilonova.services.network.builtin import BuiltinNetwork
from kilonova.services.network.first_start import first_start
from kilonova.services.network.work import Options as NetworkOptions
from kilonova.services.placement import api as placement_api
from kilonova.services.placement.builtin import BuiltinPlacement
from kilonova.settings import PORTS, Settings
from kilonova.state_dir import StateDir
from kilonova.web.server import ByPort, HttpServer, bind

Progress = Callable[[str], None]

EXAMPLE_IMAGE = "cirros-0.6.2-x86_64-disk"  # DevStack's name, which clients' own tests look for


@dataclass
class EmbeddedCloud:
    """A whole cloud in one process.

    ``assemble`` puts it together, ``start`` brings it to where it can accept a boot, ``serve`` opens its
    ports, ``stop`` ends it; whatever was unfinished goes on at the next start.
    """

    settings: Settings
    state: StateDir
    clock: Clock
    db: Database
    identity: BuiltinIdentity
    image: BuiltinImage
    network: BuiltinNetwork
    placement: BuiltinPlacement
    hosts: LocalHosts
    scheduler: Scheduler
    runner: Runner
    journal: Journal
    cloud: Cloud
    accounts: Bootstrapped | None = None
    host: HostParts | None = None
    agent: Agent | None = None
    server: HttpServer | None = None
    example_image: str = ""  # what a fake cloud can boot at once
    periodic: Periodic | None = None
    _sockets: dict[str, socket.socket] = field(default_factory=dict)

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
        identity = _identity(settings, db, clock, state)
        image = BuiltinImage(db, clock, state.private("images"))
        network = BuiltinNetwork(
            db, clock, new_uuid, options=NetworkOptions(bridge=settings.text("integration_bridge", "ovs"))
        )
        placement = BuiltinPlacement(db, clock)
        local = LocalHosts()
        scheduler = Scheduler(
            db,
            placement,
            clock,
            service_down_time=settings.number("service_down_time"),
            default_zone=settings.text("default_availability_zone"),
        )
        runner = _runner(settings, db, clock)
        journal = Journal(clock, runner)
        cloud = Cloud(
            settings=settings,
            clock=clock,
            new_uuid=new_uuid,
            db=db,
            identity=identity,
            image=image,
            network=network,
            placement=placement,
            hosts=local,
            scheduler=scheduler,
            journal=journal,
            config_drive=config_drive(settings.text("dhcp_domain")),
        )
        runner.cloud = cloud
        network.on_event = partial(external_event.deliver, cloud)
        return cls(
            settings,
            state,
            clock,
            db,
            identity,
            image,
            network,
            placement,
            local,
            scheduler,
            runner,
            journal,
            cloud,
        )

    async def start(self, progress: Progress = lambda text: None) -> None:
        """First things on a first start; then the host, then the work that was left."""
        progress("accounts, flavors and a network")
        await self.image.recover()
        passwords = self.state.passwords()
        self.accounts = await bootstrap(
            self.db,
            self.clock,
            passwords["admin"],
            passwords["demo"],
            passwords=self.identity.passwords,
        )
        await self.db.write(lambda tx: flavors.seed(tx, self.clock.now()))
        await first_start(self.network, self.accounts.projects["admin"])
        progress(f"the {self.settings.driver} hypervisor of this host")
        await self._start_host()
        progress("unfinished operations")
        await self.runner.start(sole=True)
        await self.network.deliver_pending()

    async def _start_host(self) -> None:
        """Open the hypervisor, adopt its guests, and say what the host has."""
        parts = self.host = await host_parts(self.settings, self.state, self.clock, self.network, self.db)
        ledger = Ledger(self.state.private("agent") / "ledger.db", self.clock)
        self.agent = Agent(
            parts.driver,
            parts.plugger,
            self.image,
            ledger,
            self.clock,
            lambda report: power.observed(self.cloud, report),
            max_concurrent_builds=self.settings.number("max_concurrent_builds"),
        )
        report = parts.completed(await self.agent.start_up())
        await self.register(report)
        self.hosts.add(report.host, self.agent)
        if self.settings.driver == "fake":
            example = await self.image.add_local(self._administrator(), EXAMPLE_IMAGE, bytes(1 << 20))
            self.example_image = example.id
        self._begin_periodic(report, parts)

    def _begin_periodic(self, report: HostReport, parts: HostParts) -> None:
        number = self.settings.number
        age = number("remove_unused_original_minimum_age_seconds", "image_cache")
        cache_interval = spacing(number("manager_interval", "image_cache"))
        if not self.settings.flag("remove_unused_base_images", "image_cache"):
            cache_interval = None
        self.periodic = Periodic(self.clock)
        self.periodic.every(number("report_interval"), "service report", lambda: self.alive(report))
        self.periodic.every(
            spacing(number("sync_power_state_interval")),
            "power states",
            lambda: power.synchronise(self.cloud, report.host),
        )
        self.periodic.every(cache_interval, "image cache", lambda: parts.driver.remove_unused_images(age))

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

    def apps(self) -> dict[str, ASGIApp]:
        """The HTTP face of each service, by its name."""
        settings = self.settings
        urls = {name: settings.url(name) for name in ("identity", "compute", "placement", "image", "network")}
        policy = Policy(self.state.path / "policy.yaml")
        return {
            "identity": identity_api.app(self.identity, urls, urls["identity"]),
            "compute": compute_api.app(self.cloud, self.identity, policy),
            "placement": placement_api.app(self.placement, self.identity),
            "image": image_api.app(self.image, self.identity, urls["image"]),
            "network": network_api.app(self.network, self.identity, urls["network"]),
        }

    def listen(self) -> None:
        """Open the ports; who calls before ``serve`` waits.  Raises Failed for a port that is taken."""
        for name in PORTS:
            self._sockets[name] = bind(self.settings.listen, self.settings.port(name))

    async def serve(self) -> None:
        """Answer at the ports, opening them if need be, and write ``clouds.yaml``."""
        if not self._sockets:
            self.listen()
        by_port = {self.settings.port(name): app for name, app in self.apps().items()}
        self.server = HttpServer(ByPort(by_port), list(self._sockets.values()))
        await self.server.start()
        clouds_yaml.write(
            self.state.path / "clouds.yaml", self.settings.url("identity"), self.state.passwords()
        )

    async def stop(self) -> None:
        """Take no more requests, let steps end, let go.  Guests run on."""
        if self.periodic is not None:
            await self.periodic.stop()
        await asyncio.gather(self.runner.stop(), self._stop_serving())
        if self.host is not None:
            await self.host.stop()
        if self.agent is not None:
            await self.agent.shut_down_agent()
        await self.network.close()
        await self.image.close()
        self.identity.close()
        await self.db.close()
        self.state.close()

    async def _stop_serving(self) -> None:
        if self.server is not None:
            await self.server.stop()
        for each in self._sockets.values():
            each.close()


def _identity(settings: Settings, db: Database, clock: Clock, state: StateDir) -> BuiltinIdentity:
    cost = Cost(
        settings.number("password_hash_rounds", "identity"),
        settings.number("scrypt_block_size", "identity"),
        settings.number("scrypt_parallelism", "identity"),
    )
    return BuiltinIdentity(
        db,
        clock,
        state.private("keys"),
        lifetime=settings.number("expiration", "token"),
        expired_window=settings.number("allow_expired_window", "token"),
        passwords=Passwords(clock, cost),
    )


def _runner(settings: Settings, db: Database, clock: Clock) -> Runner:
    return Runner(
        db,
        clock,
        f"embedded-{new_uuid()}",
        OPERATIONS,
        lease=settings.real("lease", "journal"),
        concurrency=settings.number("concurrency", "journal"),
    )


def new_uuid() -> str:
    return str(uuid.uuid4())
