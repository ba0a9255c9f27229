"""The control plane: services, scheduler, journal and their HTTP faces, put together.

An embedded cloud has one beside its host; of a large cloud's controllers each is one.
"""

from __future__ import annotations

import socket
import uuid
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Self

import msgspec
from starlette.types import ASGIApp

from kilonova import clouds_yaml
from kilonova.api import app as compute_api
from kilonova.api.policy import Policy
from kilonova.clock import Clock
from kilonova.db import flavors
from kilonova.db.engine import Database
from kilonova.journal.journal import Journal
from kilonova.journal.runner import Runner
from kilonova.operations import external_event
from kilonova.operations.cloud import Cloud
from kilonova.operations.leftovers import left_to_dead_hosts
from kilonova.operations.registry import OPERATIONS
from kilonova.rpc.host import HostDirectory
from kilonova.scheduler.options import options_of
from kilonova.scheduler.select import Scheduler
from kilonova.services.identity import api as identity_api
from kilonova.services.identity.bootstrap import Bootstrapped, bootstrap
from kilonova.services.identity.builtin import BuiltinIdentity
from kilonova.services.identity.passwords import Cost, Passwords
from kilonova.services.image import api as image_api
from kilonova.services.image.builtin import BuiltinImage
from kilonova.services.image.inspect import inspect
from kilonova.services.metadata.documents import config_drive
from kilonova.services.network import api as network_api
from kilonova.services.network.builtin import BuiltinNetwork
from kilonova.services.network.first_start import first_start
from kilonova.services.network.work import Options as NetworkOptions
from kilonova.services.placement import api as placement_api
from kilonova.services.placement.builtin import BuiltinPlacement
from kilonova.services.placement.options import Options as PlacementOptions
from kilonova.services.volume import api as volume_api
from kilonova.services.volume.builtin import BuiltinVolumes
from kilonova.services.volume.records import QUOTAS
from kilonova.services.volume.records import Options as VolumeOptions
from kilonova.settings import PORTS, Settings
from kilonova.web.server import ByPort, HttpServer, bind


class Places(msgspec.Struct, frozen=True, kw_only=True):
    """Where a control plane keeps what is not in its database."""

    keys: Path  # of tokens; the same on every controller
    images: Path
    volumes: Path | None  # None: this controller makes none
    policy: Path  # of the compute API; need not exist
    clouds_yaml: Path
    shared: bool = False  # whether other controllers have the same images and volumes


@dataclass(kw_only=True)
class ControlPlane:
    """``compose`` puts it together, ``first_things`` makes what a first start needs, ``serve`` answers."""

    settings: Settings
    places: Places
    clock: Clock
    db: Database
    identity: BuiltinIdentity
    image: BuiltinImage
    network: BuiltinNetwork
    placement: BuiltinPlacement
    volume: BuiltinVolumes
    hosts: HostDirectory
    scheduler: Scheduler
    runner: Runner
    journal: Journal
    cloud: Cloud
    accounts: Bootstrapped | None = None
    server: HttpServer | None = None
    _sockets: dict[str, socket.socket] = field(default_factory=dict)

    @classmethod
    def compose(
        cls,
        settings: Settings,
        places: Places,
        clock: Clock,
        db: Database,
        hosts: HostDirectory,
        owner: str,
        **own: Any,
    ) -> Self:
        """``owner`` names the process in the journal, ``own`` are the fields that only ``cls`` has."""
        identity = _identity(settings, db, clock, places.keys)
        image = BuiltinImage(db, clock, places.images, shared=places.shared)
        network = BuiltinNetwork(db, clock, new_uuid, options=_network_options(settings))
        placement = BuiltinPlacement(db, clock, _placement_options(settings))
        volume = _volumes(settings, places, db, clock, image)
        scheduler = Scheduler(db, placement, clock, options_of(settings))
        runner = _runner(settings, db, clock, owner)
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
            volume=volume,
            hosts=hosts,
            scheduler=scheduler,
            journal=journal,
            config_drive=config_drive(settings.text("dhcp_domain")),
        )
        runner.cloud, runner.let_go = cloud, left_to_dead_hosts
        network.on_event = partial(external_event.deliver, cloud)
        return cls(
            settings=settings,
            places=places,
            clock=clock,
            db=db,
            identity=identity,
            image=image,
            network=network,
            placement=placement,
            volume=volume,
            hosts=hosts,
            scheduler=scheduler,
            runner=runner,
            journal=journal,
            cloud=cloud,
            **own,
        )

    async def first_things(self, admin_password: str, demo_password: str) -> None:
        """Make accounts, flavors and a network at the first start of all; later passwords change nothing."""
        await self.image.recover()
        self.accounts = await bootstrap(
            self.db, self.clock, admin_password, demo_password, passwords=self.identity.passwords
        )
        await self.db.write(lambda tx: flavors.seed(tx, self.clock.now()))
        await first_start(self.network, self.accounts.projects["admin"])

    def apps(self) -> dict[str, ASGIApp]:
        """The HTTP face of each service, by its name."""
        settings = self.settings
        urls = {name: settings.url(name) for name in PORTS}
        policy = Policy(self.places.policy)
        return {
            "identity": identity_api.app(self.identity, urls, urls["identity"]),
            "compute": compute_api.app(self.cloud, self.identity, policy),
            "placement": placement_api.app(self.placement, self.identity),
            "image": image_api.app(self.image, self.identity, urls["image"]),
            "network": network_api.app(self.network, self.identity, urls["network"]),
            "volume": volume_api.app(self.volume, self.identity, urls["volume"]),
        }

    def listen(self) -> None:
        """Open the ports; who calls before ``serve`` waits.  Raises Failed for a port that is taken."""
        for name in PORTS:
            self._sockets[name] = bind(self.settings.listen, self.settings.port(name))

    async def serve(self) -> None:
        """Answer at the ports, opening them if need be."""
        if not self._sockets:
            self.listen()
        by_port = {self.settings.port(name): app for name, app in self.apps().items()}
        self.server = HttpServer(ByPort(by_port), list(self._sockets.values()))
        await self.server.start()

    def write_clouds_yaml(self, passwords: dict[str, str]) -> None:
        clouds_yaml.write(self.places.clouds_yaml, self.settings.url("identity"), passwords)

    async def stop_serving(self) -> None:
        if self.server is not None:
            await self.server.stop()
        for each in self._sockets.values():
            each.close()

    async def close(self) -> None:
        """Let go of everything; the runner and the ports have been stopped."""
        await self.network.close()
        await self.volume.close()
        await self.image.close()
        self.identity.close()
        await self.db.close()


def _identity(settings: Settings, db: Database, clock: Clock, keys: Path) -> BuiltinIdentity:
    cost = Cost(
        settings.number("password_hash_rounds", "identity"),
        settings.number("scrypt_block_size", "identity"),
        settings.number("scrypt_parallelism", "identity"),
    )
    return BuiltinIdentity(
        db,
        clock,
        keys,
        lifetime=settings.number("expiration", "token"),
        expired_window=settings.number("allow_expired_window", "token"),
        passwords=Passwords(clock, cost),
    )


def _network_options(settings: Settings) -> NetworkOptions:
    return NetworkOptions(
        bridge=settings.text("integration_bridge", "ovs"),
        mtu=settings.number("global_physnet_mtu"),
        tunnels=bool(settings.text("local_ip", "ovs") or settings.texts("tunnel_types", "agent")),
    )


def _placement_options(settings: Settings) -> PlacementOptions:
    group = "placement"
    breadth = settings.text("allocation_candidates_generation_strategy", group) == "breadth-first"
    return PlacementOptions(
        randomize=settings.flag("randomize_allocation_candidates", group),
        most=settings.number("max_allocation_candidates", group),
        strategy="breadth-first" if breadth else "depth-first",
        nobodys_project=settings.text("incomplete_consumer_project_id", group),
        nobodys_user=settings.text("incomplete_consumer_user_id", group),
    )


def _volumes(
    settings: Settings, places: Places, db: Database, clock: Clock, image: BuiltinImage
) -> BuiltinVolumes:
    group = "volume"
    limits = {
        "volumes": settings.number("quota_volumes", group),
        "gigabytes": settings.number("quota_gigabytes", group),
        "per_volume_gigabytes": settings.number("per_volume_size_limit", group),
    }
    return BuiltinVolumes(
        db,
        clock,
        new_uuid,
        places.volumes,
        image,
        lambda file, form: inspect(file, form).virtual_size,
        options=VolumeOptions(
            zone=settings.text("storage_availability_zone", group), quotas={**QUOTAS, **limits}
        ),
        shared=places.shared,
    )


def _runner(settings: Settings, db: Database, clock: Clock, owner: str) -> Runner:
    return Runner(
        db,
        clock,
        owner,
        OPERATIONS,
        lease=settings.real("lease", "journal"),
        concurrency=settings.number("concurrency", "journal"),
    )


def new_uuid() -> str:
    return str(uuid.uuid4())
