"""The layer-2 agent of a host: wires the ports of guests as the network service says.

One task converges.  It is woken by the switch (a port came, changed, went), by the network service (a port
or a network changed), by the switch's restart, and by time; then it looks at what is and does what is
missing.  ``port_up`` is said when the switch has confirmed everything.

The integration bridge is the agent's: what has no flows of it passes nothing (fail mode "secure").
Tunnels and patch ports are trunks; other ports that somebody may add are dead until they carry an
``iface-id`` that the network service knows.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import structlog

from kilonova.clock import Clock
from kilonova.errors import Invalid, KilonovaError
from kilonova.l2agent import flows
from kilonova.l2agent.answers import gathered
from kilonova.l2agent.datapath import choose_datapath
from kilonova.l2agent.network import ServeMetadata, place_of
from kilonova.l2agent.networks import LocalNetworks
from kilonova.l2agent.openflow import FlowTable, FlowWatch, answers
from kilonova.l2agent.options import L2Options
from kilonova.l2agent.ovsdb import Ovsdb
from kilonova.l2agent.ports import LocalPorts
from kilonova.l2agent.source import WiringSource
from kilonova.l2agent.switch import TABLES, Switch
from kilonova.l2agent.todo import EVERYTHING, Key, Todo
from kilonova.l2agent.tunnels import Tunnels

log = structlog.get_logger("kilonova.l2agent")

_FLOWS: Key = ("flows", "")
_TRUNKS: Key = ("trunks", "")
_TUNNELS: Key = ("tunnels", "")
_HELLO = 10.0  # seconds that the switch has to answer at the start
_BREATH = 1.0  # seconds before a server that has ended is started again, however often it ends


class L2Agent:
    """``start`` and ``stop``; guests and their wiring outlive it."""

    def __init__(
        self,
        source: WiringSource,
        ovsdb: Ovsdb,
        clock: Clock,
        options: L2Options,
        serve_metadata: ServeMetadata,
    ) -> None:
        self._source = source
        self._ovsdb = ovsdb
        self._options = options
        self._todo = Todo(clock)
        self._switch = Switch(ovsdb, options.bridge, self._switch_changed, self._todo.hurry)
        self._flows = FlowTable(ovsdb.directory, options.bridge)
        self._watch = FlowWatch(self._flows.socket, clock, self._switch_answers)
        place = place_of(options)
        self._networks = LocalNetworks(
            source, self._switch, self._flows, serve_metadata, place, self._network_broken
        )
        self._ports = LocalPorts(
            source, self._switch, self._flows, self._networks, options.host, self._reach_peers
        )
        self._tunnels = Tunnels(self._switch, options, place.owner)
        self._reached = -1  # the revision of the networks that tunnels were made for
        self._known: set[str] = set()  # networks that had tunnels made for them
        self._untold: set[str] = set()  # networks of which their other hosts are to be told
        self._trunks: dict[str, int] = {}
        self._datapath: str | None = None
        self._watched = asyncio.Event()  # the watch has its first connection
        self._adopted = False  # whether everything was once looked at without a failure
        self._unsubscribe: Callable[[], None] | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def datapath_type(self) -> str:
        """What the bridge has, after ``start``: ``system`` or ``netdev``."""
        return self._switch.datapath_type or "system"

    async def start(self) -> None:
        """Take over the bridge (made if need be) and begin to converge.

        Raises Unreachable if Open vSwitch does not run, HostFault if it cannot have the bridge.
        """
        await self._ovsdb.open(TABLES, self._switch)
        try:
            await self._ensure_bridge()
            await answers(self._flows.socket, _HELLO)
            await self._flows.match_fragments()
            await self._flows.change(flows.adding(flows.base_flows()))
        except BaseException:
            await self._ovsdb.close()
            raise
        self._unsubscribe = self._source.subscribe(self._source_changed)
        self._watch.start()
        self._todo.everything()
        self._task = asyncio.create_task(self._run(), name="l2 agent")

    async def stop(self) -> None:
        """End; guests keep their network, DHCP goes on, metadata is not served any more."""
        if self._unsubscribe is not None:
            self._unsubscribe()
            self._unsubscribe = None
        await self._watch.stop()
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        await self._networks.close()
        await self._ovsdb.close()

    def namespace(self, network_id: str) -> str | None:
        """The namespace of a network that is on this host now, for ``reach.open_connection_in``."""
        network = self._networks.get(network_id)
        return network.namespace if network else None

    # ---- what wakes it ----

    def _switch_changed(self, names: set[str]) -> None:
        ports = self._switch.ports()
        devices = self._networks.devices()
        for name in names:
            port = ports.get(name)
            known = self._ports.named(name)
            if known is not None and not self._ports.is_right(known, port):
                self._todo.add("port", known)
            if port is not None and port.iface_id is not None and port.iface_id != known:
                self._todo.add("port", port.iface_id)
            if name in devices and (port is None or port.ofport is None):
                self._todo.add("network", devices[name])
            if name in self._trunks or (port is not None and port.is_trunk):
                self._todo.add(*_TRUNKS)
        if self._tunnels.concerned(names) and not self._tunnels.are_right():
            self._todo.add(*_TUNNELS)
        if not self._switch.exists:
            self._todo.everything()

    def _source_changed(self, kind: str, thing: str) -> None:
        if kind in ("port", "network"):
            self._todo.add(kind, thing)
        else:
            self._todo.everything()

    def _network_broken(self, network_id: str) -> None:
        self._todo.later(("network", network_id), _BREATH)

    async def _switch_answers(self) -> None:
        self._todo.add(*_FLOWS)
        self._watched.set()

    # ---- the loop ----

    async def _run(self) -> None:
        with contextlib.suppress(TimeoutError):  # or all would be looked at twice
            async with asyncio.timeout(_HELLO):
                await self._watched.wait()
        while True:
            keys = await self._todo.take(self._options.compare_interval)
            try:
                await self._ensure_bridge()
                await self._converge(keys)
            except KilonovaError as error:
                log.warning("wiring is late", error=str(error), host=self._options.host)
                self._todo.again(keys)
            except Exception:  # a fault with one thing must not end the wiring of all others
                log.exception("wiring failed", keys=sorted(keys), host=self._options.host)
                self._todo.again(keys)

    async def _converge(self, keys: set[Key]) -> None:
        everything = EVERYTHING in keys or _FLOWS in keys
        if _FLOWS in keys:
            await self._restore_flows()
        ports = {thing for kind, thing in keys if kind == "port"}
        networks = {thing for kind, thing in keys if kind == "network"}
        if everything:
            ports |= self._switch.guest_ports().keys() | self._ports.ids()
            networks |= self._networks.ids()
        if everything or _TRUNKS in keys:
            await self._converge_trunks()
        failed = self._failures("port", await self._ports.converge(ports))
        known = self._ports.details()
        failed |= self._failures("network", await self._networks.converge(networks, known))
        # What makes no sense is not going to be anything; what failed otherwise may be in use, made by a
        # former life of ours, and we have not yet heard of it.
        clear = all(isinstance(error, Invalid) for error in failed.values())
        if self._adopted or clear:
            await self._networks.keep_only({port.network_id for port in known})
        if everything or "tunnels" in {kind for kind, _ in keys} or self._reached != self._networks.revision:
            await self._converge_tunnels(complete=self._adopted or clear)
        failed |= await self._tell_peers()
        if everything and (self._adopted or clear):
            await self._tidy()
        elif not self._adopted and not failed:
            self._todo.everything()  # what kept us from it is over
        self._todo.done(keys - failed.keys())
        self._todo.again(set(failed))

    async def _tidy(self) -> None:
        """Undo what others did to the flows, and remove what a former life left."""
        await self._flows.replace(self._all_flows())
        await self._ports.remove_stale()
        if not self._adopted:
            await self._networks.remove_strays()
            self._adopted = True

    async def _reach_peers(self) -> None:
        """Tunnels for what is new, before ports are wired that may be waited for."""
        if self._reached != self._networks.revision:
            await self._converge_tunnels(complete=self._adopted)
            await self._tell_peers()

    async def _converge_tunnels(self, *, complete: bool) -> None:
        revision, reach = self._networks.revision, dict(self._networks.reach())
        carried = self._tunnels.carried()
        if self._tunnels.enabled:
            self._untold |= {
                network_id
                for network_id, (vlan, peers) in reach.items()
                if peers and vlan not in carried and network_id not in self._known
            }
        self._known = set(reach)
        await self._tunnels.converge(reach.values(), complete=complete)
        await self._converge_trunks()
        self._reached = revision

    async def _tell_peers(self) -> dict[Key, KilonovaError]:
        """Tell the other hosts of networks that are new here."""
        self._untold &= self._known
        told = {each: self._source.tell_peers(each, self._options.host) for each in self._untold}
        _, failed = await gathered(told)
        self._untold &= failed.keys()
        return self._failures("tunnels", failed)

    def _failures(self, kind: str, errors: dict[str, KilonovaError]) -> dict[Key, KilonovaError]:
        for thing, error in errors.items():
            log.warning(f"the {kind} is not ready", id=thing, error=str(error), host=self._options.host)
        return {(kind, thing): error for thing, error in errors.items()}

    # ---- the bridge ----

    async def _ensure_bridge(self) -> None:
        if self._datapath is None:
            wanted = self._options.datapath_type
            if wanted == "auto" and self._switch.datapath_type == "netdev":
                wanted = "netdev"  # the bridge is in use as it is
            self._datapath = await choose_datapath(wanted)
        await self._switch.ensure(self._datapath)

    async def _converge_trunks(self) -> None:
        """Trunks carry every VLAN, also one that we killed while it was taken for a guest's port."""
        dead = [port for port in self._switch.ports().values() if port.is_trunk and port.is_dead]
        if dead:
            await self._switch.revive(dead)
        trunks = self._trunk_numbers()
        if trunks == self._trunks:
            return
        lines = [flows.delete(flows.trunk_cookie(old)) for old in self._trunks.values()]
        for number in trunks.values():
            lines += flows.adding(flows.trunk_flows(number))
        lines.append(flows.delete(flows.trunk_cookie(0)))
        lines += flows.adding(flows.all_trunks_flows(trunks.values()))
        await self._flows.change(lines)
        self._trunks = trunks

    def _trunk_numbers(self) -> dict[str, int]:
        ports = {name: port.ofport for name, port in self._switch.ports().items() if port.is_trunk}
        return {name: number for name, number in ports.items() if number is not None}

    async def _restore_flows(self) -> None:
        """After a restart the switch has no flows and new devices, perhaps under the same numbers.

        Its flows may be back already, by a comparison that was late; nothing else is.
        """
        self._networks.mark_lost()
        await self._flows.match_fragments()
        if await self._flows.has(flows.base_cookie()):
            return
        log.warning("the switch has lost its flows", bridge=self._options.bridge)
        await self._switch.applied()
        await self._flows.replace(self._all_flows())

    def _all_flows(self) -> list[str]:
        wanted = flows.base_flows() + self._networks.flows() + self._ports.flows()
        self._trunks = self._trunk_numbers()
        for number in self._trunks.values():
            wanted += flows.trunk_flows(number)
        return wanted + flows.all_trunks_flows(self._trunks.values())
