"""The ports of guests on this host: wired as the network service says, or dead.

The order is the promise: a port's network, tunnels and flows are there before it gets its VLAN, and it is in
the dead VLAN before they go.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable

import msgspec
import structlog

from kilonova.errors import Invalid, KilonovaError, NotFound, TryAgain
from kilonova.l2agent import flows
from kilonova.l2agent.announcing import announcements
from kilonova.l2agent.answers import gathered
from kilonova.l2agent.networks import LocalNetworks
from kilonova.l2agent.openflow import FlowTable
from kilonova.l2agent.source import WiringSource
from kilonova.l2agent.switch import Switch, SwitchPort
from kilonova.l2agent.zones import Zones
from kilonova.model.wiring import PortDetails

log = structlog.get_logger("kilonova.l2agent")


class Wired(msgspec.Struct, frozen=True, kw_only=True):
    """A port whose flows are in."""

    details: PortDetails
    name: str
    ofport: int
    zone: int

    def is_right(self, port: SwitchPort | None) -> bool:
        """Whether the switch has it as it should be."""
        return (
            port is not None
            and (port.ofport, port.zone) == (self.ofport, self.zone)
            and port.is_access(self.details.vlan)
        )


class LocalPorts:
    """``converge`` looks at some ports and does what is missing for them."""

    def __init__(
        self,
        source: WiringSource,
        switch: Switch,
        flow_table: FlowTable,
        networks: LocalNetworks,
        host: str,
        reach_peers: Callable[[], Awaitable[None]],
    ) -> None:
        """``reach_peers`` connects the networks that are new here to their other hosts."""
        self._source = source
        self._switch = switch
        self._flow_table = flow_table
        self._networks = networks
        self._host = host
        self._reach_peers = reach_peers
        self._zones = Zones()
        self._wired: dict[str, Wired] = {}
        self._hoped: dict[str, PortDetails] = {}  # those that are to be wired and could not be so far
        self._told: set[str] = set()  # those that the network service was told to be up
        self._tell_down: set[str] = set()
        self._begun = False
        self._late: set[str] = set()  # those whose guests may have come before they could be wired
        self._arrived: set[str] = set()  # those that are to be announced
        self._stale: set[str] = set()  # names of ports that had neither device nor owner

    def ids(self) -> set[str]:
        return set(self._wired)

    def named(self, name: str) -> str | None:
        """The wired port whose device has that name."""
        return next((port_id for port_id, wired in self._wired.items() if wired.name == name), None)

    def is_right(self, port_id: str, port: SwitchPort | None) -> bool:
        return self._wired[port_id].is_right(port)

    def details(self) -> list[PortDetails]:
        """The ports that are wired or are to be."""
        return [*(wired.details for wired in self._wired.values()), *self._hoped.values()]

    def flows(self) -> list[str]:
        """The flows of all wired ports, with the numbers that the switch's ports have now."""
        seen = self._switch.guest_ports()
        found: list[str] = []
        for port_id, wired in self._wired.items():
            port = seen.get(port_id)
            if port is not None and port.ofport is not None:
                found += flows.port_flows(wired.details, port.ofport, wired.zone)
        return found

    async def converge(self, port_ids: Iterable[str]) -> dict[str, KilonovaError]:
        """Returns the errors of those that failed and are to be tried again."""
        seen = self._switch.guest_ports()
        unwire: list[str] = []
        asked: list[str] = []
        for port_id in sorted(port_ids):
            port = seen.get(port_id)
            (unwire if port is None or port.ofport is None else asked).append(port_id)
        calls = {port_id: self._source.port(port_id, self._host) for port_id in asked}
        answers, failed = await gathered(calls)
        self._late |= failed.keys()
        self._told -= {port_id for port_id, new in answers.items() if new is not None and not new.up}
        wire = {port_id: new for port_id, new in answers.items() if new is not None and new.admin_state_up}
        unwire += answers.keys() - wire.keys()
        await self._unwire(unwire)
        failed |= await self._wire(wire)
        failed |= await self._tell(self._tell_down, up=False)
        return failed

    async def remove_stale(self) -> None:
        """Remove ports that have no device and that the network service does not have here.

        A host that was powered off comes back with all ports that it had.  What is about to be plugged looks
        the same for a moment, so only what has looked so twice goes.
        """
        seen = {port_id: port for port_id, port in self._switch.guest_ports().items() if port.ofport is None}
        answers, _ = await gathered({port_id: self._source.port(port_id, self._host) for port_id in seen})
        stale = {seen[port_id].name for port_id, answer in answers.items() if answer is None}
        for name in sorted(stale & self._stale):
            log.info("removing a port of which nothing is left", name=name)
            await self._switch.remove_port(name)
        self._stale = stale

    # ---- in ----

    async def _wire(self, wanted: dict[str, PortDetails]) -> dict[str, KilonovaError]:
        await self._unwire([port_id for port_id, new in wanted.items() if self._has_moved(port_id, new)])
        if not self._begun:
            self._begun = True
            self._late |= wanted.keys()
        self._late |= wanted.keys() & self._hoped.keys()
        self._hoped |= {port_id: new for port_id, new in wanted.items() if port_id not in self._wired}
        fresh = {new.network_id for port_id, new in wanted.items() if self._needs_lease(port_id, new)}
        bad = await self._networks.converge(fresh, [*wanted.values(), *self.details()])
        await self._reach_peers()
        failed = {port_id: bad[new.network_id] for port_id, new in wanted.items() if new.network_id in bad}
        ready = {port_id: new for port_id, new in wanted.items() if port_id not in failed}
        try:
            failed |= await self._let_in(ready)
        except KilonovaError:
            for port_id, new in ready.items():  # one that cannot be wired must not keep out the others
                try:
                    failed |= await self._let_in({port_id: new})
                except KilonovaError as error:
                    failed[port_id] = error
            nonsense = [port_id for port_id in ready if isinstance(failed.get(port_id), Invalid)]
            await self._unwire(nonsense)  # what it was once allowed holds no more
        self._late |= failed.keys()
        return failed | await self._tell(ready.keys() - failed.keys(), up=True)

    def _has_moved(self, port_id: str, new: PortDetails) -> bool:
        old = self._wired.get(port_id)
        return old is not None and (old.details.vlan, old.details.network_id) != (new.vlan, new.network_id)

    def _needs_lease(self, port_id: str, new: PortDetails) -> bool:
        old = self._wired.get(port_id)
        return old is None or (old.details.mac, old.details.addresses) != (new.mac, new.addresses)

    async def _let_in(self, wanted: dict[str, PortDetails]) -> dict[str, KilonovaError]:
        """Flows, then VLANs; returns when the switch has confirmed both, with those that went meanwhile."""
        seen = self._switch.guest_ports()
        taken = {port.zone for port in self._switch.ports().values() if port.zone is not None}
        lines: list[str] = []
        fresh: dict[str, Wired] = {}
        access: list[tuple[SwitchPort, int, int]] = []
        for port_id, details in wanted.items():
            port = seen.get(port_id)
            if port is None or port.ofport is None:  # gone again meanwhile; that change was heard, too
                continue
            zone, is_new = self._zones.of(port_id, port.zone, taken)
            if is_new:
                await self._flow_table.forget_connections(zone)
            wired = Wired(details=details, name=port.name, ofport=port.ofport, zone=zone)
            if self._wired.get(port_id) != wired:
                new = flows.port_flows(details, port.ofport, zone)
                lines += [flows.delete(flows.port_cookie(zone)), *flows.adding(new)]
            fresh[port_id] = wired
            if not wired.is_right(port):
                access.append((port, details.vlan, zone))
        await self._flow_table.change(lines)
        dead = {port.iface_id for port, _, _ in access}
        self._arrived |= {
            each for each in fresh if self._has_arrived(each, fresh[each].details, each in dead)
        }
        self._wired |= fresh
        for port_id in fresh:
            self._hoped.pop(port_id, None)
            self._late.discard(port_id)
        if access:
            await self._switch.wire(access)
        if access or not fresh.keys() <= self._told:  # an earlier try may have been left unconfirmed
            await self._switch.applied()
        now = self._switch.guest_ports()
        await self._announce(now)
        changed = [port_id for port_id, wired in fresh.items() if not wired.is_right(now.get(port_id))]
        return {port_id: TryAgain("It was changed while it was wired.") for port_id in changed}

    def _has_arrived(self, port_id: str, new: PortDetails, dead: bool) -> bool:
        """Whether others may think its guest elsewhere, which need not say a word by itself."""
        old = self._wired.get(port_id)
        passive = old is not None and not old.details.active
        return new.active and (passive or (dead and port_id in self._late))

    async def _announce(self, ports: dict[str, SwitchPort]) -> None:
        """Say to their networks which guests are here now that were elsewhere, if they can be heard."""
        for port_id in tuple(self._arrived):
            wired = self._wired.get(port_id)
            if wired is not None and not wired.is_right(ports.get(port_id)):
                continue
            if wired is not None:
                for frame in announcements(wired.details):
                    await self._flow_table.send_from(wired.ofport, frame)
                log.info("guest has arrived", port=port_id)
            self._arrived.discard(port_id)

    # ---- out ----

    async def _unwire(self, port_ids: Collection[str]) -> None:
        seen = self._switch.guest_ports()
        alive = {
            port_id: seen[port_id] for port_id in port_ids if port_id in seen and not seen[port_id].is_dead
        }
        if alive:
            await self._switch.kill(list(alive.values()))
        known = [port_id for port_id in port_ids if port_id in self._wired]
        cookies = [flows.port_cookie(self._wired[port_id].zone) for port_id in known]
        await self._flow_table.change([flows.delete(cookie) for cookie in cookies])
        networks = {self._wired.pop(port_id).details.network_id for port_id in known}
        for port_id in port_ids:
            self._hoped.pop(port_id, None)
            self._late.discard(port_id)
            self._zones.release(port_id)
            if port_id in self._told or port_id in alive:  # what a former life wired, it also told
                self._tell_down.add(port_id)
        left = await self._networks.converge(networks, self.details())  # their leases go
        for network_id, error in left.items():
            log.warning("a lease could not be taken back", network=network_id, error=str(error))

    # ---- news ----

    async def _tell(self, port_ids: Collection[str], *, up: bool) -> dict[str, KilonovaError]:
        """Tell the network service what it does not know yet.  Returns what it could not be told."""
        if up:
            self._tell_down -= set(port_ids)
            news = sorted(port_id for port_id in port_ids if port_id in self._wired)
            news = [port_id for port_id in news if port_id not in self._told]
        else:
            news = sorted(port_ids)
        say = self._source.port_up if up else self._source.port_down
        _, failed = await gathered({port_id: say(port_id, self._host) for port_id in news})
        failed = {port_id: error for port_id, error in failed.items() if not isinstance(error, NotFound)}
        for port_id in news:
            if port_id in failed:
                continue
            if up:
                self._told.add(port_id)
            else:
                self._told.discard(port_id)
                self._tell_down.discard(port_id)
            log.info("port is wired" if up else "port is not wired any more", port=port_id)
        return failed
