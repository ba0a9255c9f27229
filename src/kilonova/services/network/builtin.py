"""The built-in network service: compute's view of it, and the layer-2 agents'."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog

from kilonova.clock import Clock
from kilonova.db import network_addresses as addresses
from kilonova.db import network_bindings
from kilonova.db import network_groups as groups
from kilonova.db import network_ledger as ledger
from kilonova.db import network_ports as ports
from kilonova.db.engine import Database, Tx, UniqueViolation
from kilonova.db.lanes import Queued
from kilonova.db.network_records import Event
from kilonova.errors import Failed, Refused, TryAgain
from kilonova.model.context import RequestContext
from kilonova.model.port import Profiles, RequestedNetwork, Vif
from kilonova.model.wiring import NetworkDetails, PortDetails
from kilonova.services.network import attaching, bindings, servers, wiring
from kilonova.services.network.checks import check
from kilonova.services.network.port import NetworkService, OnePort, PortRequest
from kilonova.services.network.unbinding import unbind
from kilonova.services.network.vifs import vifs_of
from kilonova.services.network.work import Options, Work

T = TypeVar("T")
log = structlog.get_logger("kilonova.network")

OnEvent = Callable[[str, str, str, str], Awaitable[None]]
"""Hears (instance uuid, event name, tag, status); the tag is the port's id."""

RACES = 10  # times that a transaction which lost a race for an address, a MAC or a VLAN is repeated
COALESCE = 0.2  # seconds in which changes of security groups' members become one look at who is affected
MANY = 500  # ports that are affected; for each so many more the next look comes that much later


def random_mac() -> str:
    """A MAC address with Neutron's first half."""
    tail = secrets.token_bytes(3)
    return f"fa:16:3e:{tail[0]:02x}:{tail[1]:02x}:{tail[2]:02x}"


class BuiltinNetwork:
    """NetworkService and WiringSource on our own database.

    ``on_event`` is called for each event that compute has to hear, at least once: what was not heard because
    the process died is said again by ``deliver_pending``.
    """

    def __init__(
        self,
        db: Database,
        clock: Clock,
        new_uuid: Callable[[], str],
        *,
        options: Options | None = None,
        on_event: OnEvent | None = None,
        new_mac: Callable[[], str] = random_mac,
    ) -> None:
        self.options = options or Options()
        self.on_event = on_event
        self._db = db
        self._clock = clock
        self._new_uuid = new_uuid
        self._new_mac = new_mac
        self._subscribers: list[Callable[[str, str], None]] = []
        self._groups: set[str] = set()  # whose members changed, and nobody has been told yet
        self._teller: asyncio.Task[None] | None = None

    # -- transactions ---------------------------------------------------------------------------------

    def physical_networks(self, networks: tuple[RequestedNetwork, ...] | None) -> tuple[str, ...]:
        """All networks here are VLANs of one."""
        return () if networks == () else (self.options.physical_network,)

    async def write(self, fn: Callable[[Work], T], lane: str = "") -> T:
        """Run ``fn`` in a transaction, and tell subscribers and compute what it changed.

        One of a ``lane`` (`db.lanes`) waits for the others of it without a connection.  A transaction that
        lost a race is repeated.  Raises what ``fn`` raises, and TryAgain when races do not end.
        """
        events: list[Event] = []

        def transaction(tx: Tx) -> T:
            work = self._work(tx)
            result = fn(work)
            events[:] = work.events
            if self._subscribers and (work.ports or work.networks or work.groups):
                tx.call_after_commit(lambda: self._announce(work))
            return result

        for _ in range(RACES):
            try:
                result = await self._db.write(Queued(lane, transaction) if lane else transaction)
                break
            except UniqueViolation as error:
                lost = error
        else:
            raise TryAgain(
                "The network service is busy: others took what this needed again and again."
            ) from lost
        await self._deliver(events)
        return result

    async def read(self, fn: Callable[[Work], T]) -> T:
        """Run ``fn``, which changes nothing, on a snapshot."""
        return await self._db.read(lambda tx: fn(self._work(tx)))

    def _work(self, tx: Tx) -> Work:
        return Work(
            tx,
            self._clock.now(),
            self._new_uuid,
            self._new_mac,
            self.options,
            listening=self.on_event is not None,
        )

    # -- compute's view -------------------------------------------------------------------------------

    async def check(
        self,
        context: RequestContext,
        networks: tuple[RequestedNetwork, ...] | None,
        security_groups: tuple[str, ...],
        count: int,
        auto: bool,
    ) -> int:
        """See NetworkService."""
        return await self.read(lambda work: check(work, context, networks, security_groups, count, auto))

    async def allocate(
        self, request: PortRequest, host: str, host_details: dict[str, str]
    ) -> tuple[Vif, ...]:
        """See NetworkService."""
        owner = f"compute:{request.availability_zone}"
        target = servers.Target(request.instance_uuid, owner, request.hostname, host, host_details)

        def make(work: Work) -> tuple[Vif, ...]:
            servers.allocate(work, request, target)
            return vifs_of(work.tx, request.instance_uuid, self.options.bridge)

        try:
            return await self.write(make, f"ports {request.project_id}")
        except Refused as error:
            raise Failed(str(error)) from error

    async def bind(self, instance_uuid: str, host: str, host_details: dict[str, str]) -> tuple[Vif, ...]:
        """Bind all ports of a server to a host, and to no other.  Raises Failed."""
        return await self._bound(
            instance_uuid, host, lambda work: servers.rebind(work, instance_uuid, host, host_details)
        )

    async def unbind(self, instance_uuid: str) -> tuple[Vif, ...]:
        """See NetworkService."""

        def leave(work: Work) -> tuple[Vif, ...]:
            unbind(work, instance_uuid)
            return vifs_of(work.tx, instance_uuid, self.options.bridge)

        return await self.write(leave)

    async def add_bindings(
        self,
        instance_uuid: str,
        host: str,
        host_details: dict[str, str],
        profiles: Profiles | None = None,
    ) -> tuple[Vif, ...]:
        """See NetworkService."""
        return await self._bound(
            instance_uuid,
            host,
            lambda work: bindings.add(work, instance_uuid, host, host_details, profiles),
        )

    async def activate_bindings(self, instance_uuid: str, host: str) -> tuple[Vif, ...]:
        """See NetworkService."""
        return await self._bound(
            instance_uuid, host, lambda work: bindings.activate(work, instance_uuid, host)
        )

    async def _bound(self, instance_uuid: str, host: str, change: Callable[[Work], None]) -> tuple[Vif, ...]:
        """The server's ports as they are at the host after the change."""

        def write(work: Work) -> tuple[Vif, ...]:
            change(work)
            return vifs_of(work.tx, instance_uuid, self.options.bridge, host)

        try:
            return await self.write(write)
        except Refused as error:
            raise Failed(str(error)) from error

    async def remove_bindings(self, instance_uuid: str, host: str) -> None:
        """See NetworkService."""
        await self.write(lambda work: bindings.remove(work, instance_uuid, host))

    async def attach(self, request: OnePort, host: str, host_details: dict[str, str]) -> Vif:
        """See NetworkService."""

        def write(work: Work) -> Vif:
            attaching.attach(work, request, host, host_details)
            vifs = vifs_of(work.tx, request.instance_uuid, self.options.bridge)
            return next(vif for vif in vifs if vif.port_id == request.port_id)

        return await self.write(write, f"ports {request.project_id}")

    async def release(self, instance_uuid: str, port_id: str) -> None:
        """See NetworkService."""
        await self.write(lambda work: servers.release_one(work, instance_uuid, port_id))

    async def add_fixed_ip(self, instance_uuid: str, network_id: str) -> None:
        """See NetworkService."""
        await self.write(lambda work: attaching.add_fixed_ip(work, instance_uuid, network_id))

    async def remove_fixed_ip(self, instance_uuid: str, address: str) -> None:
        """See NetworkService."""
        await self.write(lambda work: attaching.remove_fixed_ip(work, instance_uuid, address))

    async def deallocate(self, instance_uuid: str) -> None:
        """See NetworkService."""
        await self.write(lambda work: servers.deallocate(work, instance_uuid))

    async def vifs(self, instance_uuid: str) -> tuple[Vif, ...]:
        """See NetworkService."""
        return await self._db.read(lambda tx: vifs_of(tx, instance_uuid, self.options.bridge))

    async def security_groups(self, instance_uuid: str) -> tuple[str, ...]:
        """See NetworkService."""
        return tuple(await self._db.read(lambda tx: groups.names_of_device(tx, instance_uuid)))

    async def find_instance(self, network_id: str, address: str) -> str | None:
        """The server that has an address on a network: who asks the metadata service."""
        return await self._db.read(lambda tx: addresses.instance_at(tx, network_id, address))

    # -- the layer-2 agents' view ---------------------------------------------------------------------

    async def port(self, port_id: str, host: str) -> PortDetails | None:
        """See WiringSource."""
        return await self._db.read(lambda tx: wiring.port_details(tx, port_id, host))

    async def network(self, network_id: str, host: str | None = None) -> NetworkDetails | None:
        """See WiringSource.  ``host`` is who asks: None is told of every network."""
        return await self._db.read(lambda tx: wiring.network_details(tx, network_id, host))

    async def tell_peers(self, network_id: str, host: str) -> None:
        """See WiringSource."""
        self._say("network", network_id)

    async def port_up(self, port_id: str, host: str) -> None:
        """See WiringSource.  A second one is silent, unless compute has not heard the first.

        From a host with a binding that is not active the port's own status stays as it is.
        """
        await self._turn(port_id, host, "ACTIVE", "network-vif-plugged")

    async def port_down(self, port_id: str, host: str) -> None:
        """See WiringSource."""
        await self._turn(port_id, host, "DOWN", "network-vif-unplugged")

    async def _turn(self, port_id: str, host: str, status: str, event: str) -> None:
        def turn(work: Work) -> None:
            row = ports.turn(work.tx, port_id, host, status, work.now)
            if row is not None:
                device_id, nic_index = row
                if device_id and nic_index is not None:
                    work.tell(device_id, event, port_id)
            elif not network_bindings.turn(work.tx, port_id, host, status):
                work.events = ledger.pending_of_port(work.tx, port_id)
            elif status == "ACTIVE":  # a move waits for it; the port has not left its own host otherwise
                port = ports.port(work.tx, port_id)
                if port is not None and port.serves_instance:
                    work.tell(port.device_id, event, port_id)

        await self.write(turn)

    def subscribe(self, changed: Callable[[str, str], None]) -> Callable[[], None]:
        """See WiringSource."""
        self._subscribers.append(changed)

        def end() -> None:
            if changed in self._subscribers:
                self._subscribers.remove(changed)

        return end

    # -- telling --------------------------------------------------------------------------------------

    def _announce(self, work: Work) -> None:
        for port_id in work.ports:
            self._say("port", port_id)
        for network_id in work.networks:
            self._say("network", network_id)
        if work.groups:
            self._groups |= work.groups
            if self._teller is None or self._teller.done():
                self._teller = asyncio.get_running_loop().create_task(self._tell_of_groups())

    def _say(self, kind: str, changed_id: str) -> None:
        for subscriber in tuple(self._subscribers):
            subscriber(kind, changed_id)

    async def _tell_of_groups(self) -> None:
        """Tell of the ports whose rules name a group that gained or lost a member.

        A burst of boots in one project changes the default group at each one; its ports are told once.
        """
        affected: list[str] = []
        while self._groups:
            await self._clock.sleep(COALESCE * (1 + len(affected) // MANY))
            changed, self._groups = sorted(self._groups), set()
            try:
                affected = await self._db.read(lambda tx, ids=changed: groups.ports_letting_in(tx, ids))  # type: ignore[misc]
            except Exception as error:
                # the agents also compare everything now and then, so this is late and not lost
                log.error("cannot tell of security groups", groups=changed, error=repr(error), exc_info=True)
                return
            for port_id in affected:
                self._say("port", port_id)

    async def deliver_pending(self) -> int:
        """Tell compute what it did not hear before the process ended; how many events that were."""
        events = await self._db.read(ledger.pending)
        await self._deliver(events)
        return len(events)

    async def _deliver(self, events: list[Event]) -> None:
        if self.on_event is None or not events:
            return
        for event in events:
            await self.on_event(event.instance_uuid, event.name, event.tag, event.status)
        await self._db.write(lambda tx: ledger.delete_events(tx, [event.id for event in events]))

    async def close(self) -> None:
        """End what runs in the background."""
        if self._teller is not None:
            self._teller.cancel()
            await asyncio.gather(self._teller, return_exceptions=True)


def _conforms(service: BuiltinNetwork) -> NetworkService:
    """For the type checker."""
    return service
