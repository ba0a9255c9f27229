"""A network service in memory, as layer-2 agents see it."""

from __future__ import annotations

import asyncio
import itertools
import uuid
from collections.abc import Awaitable, Callable
from typing import Protocol

import msgspec

from kilonova.errors import Unreachable
from kilonova.model.port import Vif
from kilonova.model.wiring import DhcpHost, DhcpSubnet, FilterRule, NetworkDetails, PortDetails

ANY_EGRESS = (
    FilterRule(direction="egress", ethertype="IPv4"),
    FilterRule(direction="egress", ethertype="IPv6"),
)
PING_IN = FilterRule(direction="ingress", ethertype="IPv4", protocol="icmp")


def rule_in(
    protocol: str | None, low: int | None = None, high: int | None = None, **more: object
) -> FilterRule:
    """An ingress rule for IPv4, of one port or a range of them."""
    rule = FilterRule(
        direction="ingress",
        ethertype="IPv4",
        protocol=protocol,
        port_min=low,
        port_max=low if high is None else high,
    )
    return msgspec.structs.replace(rule, **more)


def tcp_in(port: int, remote: tuple[str, ...] | None = None) -> FilterRule:
    return rule_in("tcp", port, remote=remote)


async def nothing(kind: str, port_id: str) -> None:
    """Nobody looks at news."""


class HasVif(Protocol):
    vif: Vif


def _vif(thing: Vif | HasVif) -> Vif:
    return thing if isinstance(thing, Vif) else thing.vif


class MemoryCloud:
    """Ports and networks are changed at will; ``source`` is a layer-2 agent's view."""

    def __init__(self, bridge: str = "br-int") -> None:
        self.bridge = bridge
        self.ports: dict[str, PortDetails] = {}
        self.networks: dict[str, NetworkDetails] = {}
        self.news: list[tuple[str, str]] = []  # ("up" or "down", the port's id), as agents say it
        self.answers = True
        self.changed: list[Callable[[str, str], None]] = []
        self.is_up: dict[str, asyncio.Event] = {}
        self.on_news: Callable[[str, str], Awaitable[None]] = nothing  # while the agent waits for us
        self._numbers = itertools.count(1)

    def network(self, vlan: int, cidr: str = "10.0.0.0/24", **more: object) -> str:
        network_id = str(uuid.uuid4())
        first = cidr.rsplit(".", 1)[0]
        subnet = DhcpSubnet(cidr=cidr, server=f"{first}.2", gateway=f"{first}.1", dns=("9.9.9.9",))
        self.networks[network_id] = msgspec.structs.replace(
            NetworkDetails(network_id=network_id, vlan=vlan, mtu=1442, subnets=(subnet,), hosts=()), **more
        )
        return network_id

    def port(
        self,
        network_id: str,
        address: str,
        rules: tuple[FilterRule, ...] = (PING_IN,),
        egress: tuple[FilterRule, ...] = ANY_EGRESS,
        **more: object,
    ) -> Vif:
        """A port of the network."""
        port_id, number = str(uuid.uuid4()), next(self._numbers)
        network = self.networks[network_id]
        details = PortDetails(
            port_id=port_id,
            network_id=network_id,
            vlan=network.vlan,
            mac=f"fa:16:3e:00:00:{number:02x}",
            addresses=(address,),
            rules=(*egress, *rules),
        )
        details = msgspec.structs.replace(details, **more)
        self.ports[port_id] = details
        self.is_up[port_id] = asyncio.Event()
        lease = DhcpHost(mac=details.mac, address=address, hostname=f"guest{number}")
        network = self.networks[network_id]
        self.networks[network_id] = msgspec.structs.replace(network, hosts=(*network.hosts, lease))
        return Vif(
            port_id=port_id,
            mac=details.mac,
            network_id=network_id,
            network_name="net",
            mtu=network.mtu,
            bridge=self.bridge,
            details={"datapath_type": "netdev"},
        )

    def change(self, thing: Vif | HasVif, **changes: object) -> None:
        """Change a port's details and tell the agent."""
        port_id = _vif(thing).port_id
        self.ports[port_id] = msgspec.structs.replace(self.ports[port_id], **changes)
        self.tell("port", port_id)

    def change_network(self, network_id: str, **changes: object) -> None:
        self.networks[network_id] = msgspec.structs.replace(self.networks[network_id], **changes)
        self.tell("network", network_id)

    def rules(self, thing: Vif | HasVif, *rules: FilterRule) -> None:
        """Other ingress rules for a port."""
        self.change(thing, rules=(*ANY_EGRESS, *rules))

    def withdraw(self, thing: Vif | HasVif) -> Callable[[], None]:
        """As when a user deletes a port, or it is not bound yet.  What is returned brings it back."""
        port_id = _vif(thing).port_id
        details = self.ports.pop(port_id)
        self.tell("port", port_id)

        def again() -> None:
            self.ports[port_id] = details
            self.tell("port", port_id)

        return again

    def tell(self, kind: str, thing: str) -> None:
        for changed in self.changed:
            changed(kind, thing)

    async def up(self, *vifs: Vif, timeout: float = 60.0) -> None:
        """Wait until the agent has said so."""
        async with asyncio.timeout(timeout):
            for vif in vifs:
                await self.is_up[vif.port_id].wait()

    def source(self) -> Source:
        return Source(self)


class Source:
    """Implements l2agent.source.WiringSource."""

    def __init__(self, cloud: MemoryCloud) -> None:
        self._cloud = cloud

    def _check(self) -> None:
        if not self._cloud.answers:
            raise Unreachable("The network service does not answer.")

    async def port(self, port_id: str, host: str) -> PortDetails | None:
        self._check()
        return self._cloud.ports.get(port_id)

    async def network(self, network_id: str) -> NetworkDetails | None:
        self._check()
        return self._cloud.networks.get(network_id)

    async def tell_peers(self, network_id: str, host: str) -> None:
        self._check()
        self._cloud.tell("network", network_id)

    async def port_up(self, port_id: str, host: str) -> None:
        self._check()
        await self._cloud.on_news("up", port_id)
        self._cloud.news.append(("up", port_id))
        self._cloud.is_up[port_id].set()

    async def port_down(self, port_id: str, host: str) -> None:
        self._check()
        await self._cloud.on_news("down", port_id)
        self._cloud.news.append(("down", port_id))
        if port_id in self._cloud.is_up:  # of a port that nobody knows there is nothing to note
            self._cloud.is_up[port_id].clear()

    def subscribe(self, changed: Callable[[str, str], None]) -> Callable[[], None]:
        self._cloud.changed.append(changed)
        return lambda: self._cloud.changed.remove(changed)
