"""What a controller does for the agent of one host: the built-in side of `rpc.desk`.

Embedded or over the bus, an agent gets here only what concerns its own host.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import structlog

from kilonova.clock import SECOND
from kilonova.db import hosts, instances, network_ports
from kilonova.db.engine import Tx
from kilonova.errors import Conflict, NotFound, TryAgain
from kilonova.model.host import HostReport
from kilonova.model.instance import Instance
from kilonova.model.states import Power
from kilonova.model.wiring import NetworkDetails, PortDetails
from kilonova.operations import power
from kilonova.operations.cloud import Cloud
from kilonova.registration import register
from kilonova.rpc import subjects, versions
from kilonova.rpc.desk import IMAGE_PIECE, Desk, Welcome
from kilonova.rpc.messages import Observed
from kilonova.services.image.builtin import BuiltinImage
from kilonova.services.network.builtin import BuiltinNetwork

log = structlog.get_logger("kilonova.desk")

PASSWORD_PIECE = 255  # characters of a value of system_metadata, in which Nova keeps a password
REMEMBERED = 60 * SECOND  # for how long a host may go on with an image that it may have


@dataclass
class _Served:
    cloud: Cloud
    image: BuiltinImage
    network: BuiltinNetwork
    images_of: dict[tuple[str, str], int] = field(default_factory=dict)  # (host, image) -> until when


class Desks:
    """A DeskDirectory; ``serve`` tells it of whom."""

    def __init__(self) -> None:
        self._served: _Served | None = None

    def serve(self, cloud: Cloud, image: BuiltinImage, network: BuiltinNetwork) -> Desks:
        self._served = _Served(cloud, image, network)
        return self

    def desk(self, host: str) -> Desk:
        if self._served is None:
            raise TryAgain("The controller is not ready yet.")
        return _HostDesk(self._served, host)


class _HostDesk:
    def __init__(self, served: _Served, host: str) -> None:
        self._cloud = served.cloud
        self._image = served.image
        self._network = served.network
        self._images_of = served.images_of
        self._host = host

    async def hello(self, report: HostReport, session: str, *, again: bool = False) -> Welcome:
        if report.host != self._host:
            log.error("an agent reports as another host", host=self._host, says=report.host)
            raise NotFound(f"You are the host '{self._host}' and none other.")
        spoken = report.version or versions.OLDEST
        versions.check_agent(report.host, spoken)
        if versions.parsed(spoken) < versions.parsed(versions.VERSION):
            log.warning(
                "an agent is older than this controller, and is spoken to in its version",
                host=report.host,
                version=spoken,
                ours=versions.VERSION,
            )
        subjects.checked_session(session)
        if again:
            await self._check_session(session)
        await register(self._cloud, report, session)
        return Welcome(version=versions.VERSION, now=self._cloud.clock.now())

    async def _check_session(self, session: str) -> None:
        """News of an agent that was replaced must not make it the one that serves."""
        known = await self._cloud.db.read(lambda tx: hosts.session(tx, self._host))
        if known is None or known[0] != session:
            raise Conflict(
                f"This agent does not serve as the host '{self._host}' any more: it has to begin anew."
            )

    async def observed(self, seen: tuple[Observed, ...], *, all_at: int = 0) -> None:
        here = set(await self._cloud.db.read(lambda tx: instances.uuids_by_host(tx, self._host)))
        for each in seen:
            if each.uuid in here:
                await power.observed(self._cloud, each)
            else:
                log.info("a guest is of no server of this host", host=self._host, uuid=each.uuid)
        gone = here - {each.uuid for each in seen} if all_at else set()
        for uuid in sorted(gone):
            nothing = Observed(uuid=uuid, power_state=Power.NOSTATE, generation=all_at)
            await power.observed(self._cloud, nothing)

    async def port(self, port_id: str) -> PortDetails | None:
        return await self._network.port(port_id, self._host)

    async def network(self, network_id: str) -> NetworkDetails | None:
        bound = await self._cloud.top.read(lambda tx: network_ports.hosts_of_network(tx, network_id))
        return await self._network.network(network_id) if self._host in bound else None

    async def port_up(self, port_id: str) -> None:
        await self._network.port_up(port_id, self._host)

    async def port_down(self, port_id: str) -> None:
        await self._network.port_down(port_id, self._host)

    async def image(self, image_id: str, offset: int) -> bytes:
        await self._check_image(image_id)
        return await self._image.piece(image_id, max(offset, 0), IMAGE_PIECE)

    async def _check_image(self, image_id: str) -> None:
        key, now = (self._host, image_id), self._cloud.clock.now()
        if self._images_of.get(key, 0) > now:
            return
        here = await self._cloud.db.read(lambda tx: instances.by_host(tx, self._host))
        if not any(each.image is not None and each.image.id == image_id for each in here):
            raise NotFound(f"No server of host '{self._host}' is made of image {image_id}.")
        self._images_of[key] = now + REMEMBERED

    async def guest_at(self, network_id: str, address: str) -> Instance | None:
        uuid = await self._network.find_instance(network_id, address)
        return None if uuid is None else await self._mine(uuid)

    async def keep_password(self, uuid: str, password: str) -> None:
        if await self._mine(uuid) is not None:
            await self._cloud.db.write(lambda tx: _keep_password(tx, uuid, password))

    async def _mine(self, uuid: str) -> Instance | None:
        found = await self._cloud.db.read(lambda tx: instances.show(tx, uuid))
        return found if found is not None and found.host == self._host else None


def _keep_password(tx: Tx, uuid: str, password: str) -> None:
    """In pieces, as Nova keeps it; encrypted as it is."""
    found = instances.show(tx, uuid)
    if found is None:
        return
    pieces = {
        f"password_{number}": password[number * PASSWORD_PIECE : (number + 1) * PASSWORD_PIECE]
        for number in range(4)
    }
    kept = {**found.system_metadata, **pieces}
    instances.update(tx, uuid, expect_task=instances.ANY, system_metadata=kept)
