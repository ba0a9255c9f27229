"""What a controller does for the agent of one host: the built-in side of `rpc.desk`.

Embedded or over the bus, an agent gets here only what concerns its own host.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import structlog

from kilonova.clock import SECOND
from kilonova.db import hosts, instances, migrations, network_bindings
from kilonova.db.engine import Tx
from kilonova.errors import Conflict, NotFound, TooLarge, TryAgain
from kilonova.model.host import HostReport
from kilonova.model.instance import Instance
from kilonova.model.states import Power
from kilonova.model.wiring import NetworkDetails, PortDetails
from kilonova.operations import begin, power
from kilonova.operations.cloud import Cloud
from kilonova.operations.rehome import in_its_cell
from kilonova.operations.shelved_image import SHELVED_IMAGE
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
    on_word: Callable[[], None]
    images_of: dict[tuple[str, str], int] = field(default_factory=dict)  # (host, image) -> until when


class Desks:
    """A DeskDirectory; ``serve`` tells it of whom."""

    def __init__(self) -> None:
        self._served: _Served | None = None

    def serve(
        self,
        cloud: Cloud,
        image: BuiltinImage,
        network: BuiltinNetwork,
        on_word: Callable[[], None] = lambda: None,
    ) -> Desks:
        """``on_word`` is called when a host reports, or tells of a guest that is not its own."""
        self._served = _Served(cloud, image, network, on_word)
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
        self._on_word = served.on_word
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
        self._on_word()
        return Welcome(version=versions.VERSION, now=self._cloud.clock.now())

    async def _check_session(self, session: str) -> None:
        """News of an agent that was replaced must not make it the one that serves."""
        known = await self._cloud.db.read(lambda tx: hosts.session(tx, self._host))
        if known is None or known[0] != session:
            raise Conflict(
                f"This agent does not serve as the host '{self._host}' any more: it has to begin anew."
            )

    async def observed(self, seen: tuple[Observed, ...], *, all_at: int = 0) -> None:
        here = await self._cloud.db.read(lambda tx: self._own(tx, seen, everybody=bool(all_at)))
        for each in seen:
            if each.uuid in here:
                await power.observed(self._cloud, each, self._host)
            elif (cloud := await self._other_cloud(each.uuid)) is not None:
                await power.observed(cloud, each, self._host)
            else:
                log.warning("a guest is of no server of this host", host=self._host, uuid=each.uuid)
                self._on_word()
        gone = here - {each.uuid for each in seen} if all_at else set()
        for uuid in sorted(gone):
            nothing = Observed(uuid=uuid, power_state=Power.NOSTATE, generation=all_at)
            await power.observed(self._cloud, nothing, self._host)

    def _own(self, tx: Tx, seen: tuple[Observed, ...], *, everybody: bool) -> set[str]:
        """The host's servers among those that were seen, or all of them; what changes comes one by one, and
        must not cost a look at all that the host has."""
        if everybody:
            return set(instances.uuids_by_host(tx, self._host))
        return instances.those_of_host(tx, self._host, (each.uuid for each in seen))

    async def _other_cloud(self, uuid: str) -> Cloud | None:
        """The cell of a server that is on this host, and on its way between two cells."""
        if self._cloud.cells is None:
            return None
        cloud = await self._cloud.of_server(uuid)
        there = await cloud.db.read(lambda tx: instances.those_of_host(tx, self._host, (uuid,)))
        return cloud if there else None

    async def port(self, port_id: str) -> PortDetails | None:
        return await self._network.port(port_id, self._host)

    async def network(self, network_id: str) -> NetworkDetails | None:
        return await self._network.network(network_id, self._host)

    async def tell_peers(self, network_id: str) -> None:
        await self._network.tell_peers(network_id, self._host)

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
        if not await self._has_use_for(image_id):
            raise NotFound(f"No server of host '{self._host}' is made of image {image_id}.")
        self._images_of[key] = now + REMEMBERED

    async def _has_use_for(self, image_id: str) -> bool:
        """Also for a server that comes from another cell, where it is known so far."""

        def look(tx: Tx) -> bool:
            return any(_is_made_of(each, image_id) for each in _here_or_coming(tx, self._host))

        if await self._cloud.db.read(look):
            return True
        cells = self._cloud.cells
        return cells is not None and any(each.answer for each in await cells.each(look))

    async def put_image(self, image_id: str, offset: int, data: bytes) -> int:
        if len(data) > IMAGE_PIECE:
            raise TooLarge(f"A piece of an image has at most {IMAGE_PIECE} bytes, not {len(data)}.")
        return await self._image.put_piece(image_id, self._host, offset, data)

    async def finish_image(self, image_id: str, size: int, sha512: str, disk_format: str) -> None:
        await self._image.finish_upload(image_id, self._host, size, sha512, disk_format)

    async def guest_at(self, network_id: str, address: str) -> Instance | None:
        uuid = await self._network.find_instance(network_id, address)
        return None if uuid is None else await self._mine(uuid)

    async def keep_password(self, uuid: str, password: str) -> None:
        if await self._mine(uuid) is not None:
            cloud = await self._cloud.of_server(uuid)
            await cloud.db.write(lambda tx: _keep_password(tx, uuid, password))

    async def _mine(self, uuid: str) -> Instance | None:
        async def show(cloud: Cloud) -> Instance:
            return await cloud.db.read(lambda tx: begin.found(tx, uuid))

        cells = self._cloud.cells
        try:
            found = await (show(self._cloud) if cells is None else in_its_cell(cells, uuid, show))
        except NotFound:
            return None
        if found.host == self._host:
            return found
        coming = await self._cloud.top.read(lambda tx: network_bindings.has_port_of(tx, uuid, self._host))
        return found if coming else None  # while it moves it may run here before its record says so


def _here_or_coming(tx: Tx, host: str) -> list[Instance]:
    coming = (instances.show(tx, uuid) for uuid in migrations.arriving(tx, host))
    return [*instances.by_host(tx, host), *(each for each in coming if each is not None)]


def _is_made_of(instance: Instance, image_id: str) -> bool:
    """A server that was shelved comes back from another image than it was made of."""
    image = instance.image
    return (image is not None and image.id == image_id) or (
        instance.system_metadata.get(SHELVED_IMAGE) == image_id
    )


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
