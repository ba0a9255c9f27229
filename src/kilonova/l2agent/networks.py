"""All networks that have ports on this host."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Collection, Iterable

import structlog

from kilonova.errors import KilonovaError, NotFound
from kilonova.l2agent import flows
from kilonova.l2agent.answers import gathered
from kilonova.l2agent.network import LocalNetwork, Place, ServeMetadata, recorded_networks
from kilonova.l2agent.openflow import FlowTable
from kilonova.l2agent.source import WiringSource
from kilonova.l2agent.switch import Switch
from kilonova.model.wiring import NetworkDetails, PortDetails

log = structlog.get_logger("kilonova.l2agent")


class LocalNetworks:
    """Makes networks when their first port comes and removes them after their last.

    ``on_broken(network_id)`` is called in the event loop when one needs to be looked at again.
    """

    def __init__(
        self,
        source: WiringSource,
        switch: Switch,
        flow_table: FlowTable,
        serve_metadata: ServeMetadata,
        place: Place,
        on_broken: Callable[[str], None],
    ) -> None:
        self._source = source
        self._switch = switch
        self._flow_table = flow_table
        self._serve_metadata = serve_metadata
        self._place = place
        self._on_broken = on_broken
        self._networks: dict[str, LocalNetwork] = {}
        self._reach: dict[str, tuple[int, tuple[str, ...]]] = {}
        self.revision = 0  # grows when what ``reach`` gives changes
        self._installed: dict[str, tuple[int, list[str]]] = {}  # the VLAN and the flows that are in

    def get(self, network_id: str) -> LocalNetwork | None:
        return self._networks.get(network_id)

    def ids(self) -> set[str]:
        return set(self._networks)

    def devices(self) -> dict[str, str]:
        """The networks by their own devices on the switch."""
        return {network.device: network_id for network_id, network in self._networks.items()}

    def reach(self) -> dict[str, tuple[int, tuple[str, ...]]]:
        """The networks, with their VLANs and where tunnels to their other hosts end."""
        return self._reach

    async def converge(
        self, network_ids: Iterable[str], ports: Collection[PortDetails]
    ) -> dict[str, KilonovaError]:
        """Make or bring up to date those of the networks that have ``ports`` here.

        Gives the error of each that failed; the others are ready when this returns.
        """
        wanted = sorted(set(network_ids) & {port.network_id for port in ports})
        calls = {network_id: self._converge(network_id, ports) for network_id in wanted}
        _, failed = await gathered(calls)
        return failed

    async def _converge(self, network_id: str, ports: Collection[PortDetails]) -> None:
        details = await self._source.network(network_id)
        if details is None:
            raise NotFound(f"The network service does not know the network {network_id} of a port.")
        network = self._networks.get(network_id)
        if network is None:
            network = self._networks[network_id] = self._local(network_id)
        macs = {port.mac.lower() for port in ports if port.network_id == network_id}
        await network.ensure(details, macs)
        await self._install(network_id, details, network.ofport)
        reach = (details.vlan, details.peers)
        if self._reach.get(network_id) != reach:
            self._reach[network_id] = reach
            self.revision += 1

    async def _install(self, network_id: str, details: NetworkDetails, ofport: int | None) -> None:
        if ofport is None:
            return
        new = flows.network_flows(details, ofport)
        vlan, old = self._installed.get(network_id, (details.vlan, []))
        if new == old:
            return
        await self._flow_table.change([flows.delete(flows.network_cookie(vlan)), *flows.adding(new)])
        self._installed[network_id] = (details.vlan, new)

    async def keep_only(self, used: set[str]) -> None:
        """Remove the networks that nobody uses any more."""
        for network_id in sorted(self._networks.keys() - used):
            installed = self._installed.pop(network_id, None)
            if installed is not None:
                await self._flow_table.change([flows.delete(flows.network_cookie(installed[0]))])
            await self._networks[network_id].remove()
            del self._networks[network_id]
            if self._reach.pop(network_id, None) is not None:
                self.revision += 1
            log.info("network has left the host", network=network_id)

    async def remove_strays(self) -> None:
        """What a former life left and nobody uses.  Only what it wrote down, or marked on the switch."""
        recorded = await asyncio.to_thread(recorded_networks, self._place.directory)
        ports = self._switch.ports().values()
        marked = [port.network_id for port in ports if port.owner == self._place.owner]
        stray = {*recorded, *(network_id for network_id in marked if network_id)} - self._networks.keys()
        for network_id in sorted(stray):
            log.info("removing a network that is not used here any more", network=network_id)
            await self._local(network_id).remove()

    def _local(self, network_id: str) -> LocalNetwork:
        on_broken = functools.partial(self._on_broken, network_id)
        return LocalNetwork(network_id, self._switch, self._serve_metadata, self._place, on_broken)

    def mark_lost(self) -> None:
        """The switch was restarted: its flows are gone, and its devices are new ones."""
        self._installed.clear()
        for network in self._networks.values():
            network.mark_lost()

    def flows(self) -> list[str]:
        """The flows of all networks, with the numbers that the switch's ports have now."""
        found: list[str] = []
        for network in self._networks.values():
            if network.details is not None and network.ofport is not None:
                found += flows.network_flows(network.details, network.ofport)
        return found

    async def close(self) -> None:
        for network in self._networks.values():
            await network.close()
