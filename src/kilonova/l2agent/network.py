"""One network on this host: its namespace with a port on the switch, DHCP and the metadata address."""

from __future__ import annotations

import ipaddress
import shutil
import socket
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from kilonova.errors import HostFault, Invalid, TryAgain
from kilonova.l2agent import namespace
from kilonova.l2agent.dhcp import DhcpServer
from kilonova.l2agent.files import write_whole
from kilonova.l2agent.flows import METADATA_ADDRESS, server_mac
from kilonova.l2agent.options import L2Options
from kilonova.l2agent.switch import NETWORK, OWNER, Switch, SwitchPort
from kilonova.model.wiring import NetworkDetails

Closer = Callable[[], Awaitable[None]]
ServeMetadata = Callable[[str, socket.socket], Awaitable[Closer]]
"""``await serve(network_id, listening_socket)`` begins to serve; what it gives ends it again."""


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where an agent keeps its things, and how they are marked as its own."""

    directory: Path
    prefix: str  # of namespaces and devices
    owner: str
    domain: str  # the DHCP domain


def place_of(options: L2Options) -> Place:
    """Where the agent with these options keeps its things."""
    return Place(
        directory=options.directory / "networks",
        prefix=options.prefix,
        owner=_owner(options.directory),
        domain=options.dhcp_domain,
    )


def _owner(directory: Path) -> str:
    """The name under which this host's agent marks what it makes; the same for ever."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "owner"
    if not path.exists():
        write_whole(path, str(uuid.uuid4()))
    return path.read_text()


class LocalNetwork:
    """Made and kept by ``ensure``, which converges; taken away by ``remove``.

    ``on_broken`` is called in the event loop when a part of it has ended and ``ensure`` is needed.
    """

    def __init__(
        self,
        network_id: str,
        switch: Switch,
        serve_metadata: ServeMetadata,
        place: Place,
        on_broken: Callable[[], None] = lambda: None,
    ) -> None:
        self.network_id = network_id
        self.namespace = namespace.namespace_name(network_id, place.prefix)
        self.device = namespace.device_name(network_id, place.prefix)
        self.details: NetworkDetails | None = None
        self._directory = place.directory / _directory_name(network_id)
        self._switch = switch
        self._serve_metadata = serve_metadata
        self._place = place
        self._dhcp = DhcpServer(self.namespace, self.device, self._directory, place.domain, on_broken)
        self._ready: tuple[NetworkDetails, SwitchPort] | None = None
        self._closer: Closer | None = None
        self._socket: socket.socket | None = None

    @property
    def ofport(self) -> int | None:
        port = self._switch.ports().get(self.device)
        return port.ofport if port else None

    async def ensure(self, details: NetworkDetails, macs: set[str]) -> None:
        """Be as ``details`` say, with leases for ``macs`` (lower case).

        Raises HostFault, TryAgain; Invalid for details that make no sense.
        """
        leases = tuple(host for host in details.hosts if host.mac.lower() in macs)
        details = msgspec.structs.replace(details, hosts=leases)
        try:
            await self._ensure(details)
        except OSError as error:  # a full disk, an address that another program has taken
            raise HostFault(f"The network {self.network_id} cannot be had on this host: {error}") from error
        self.details = details

    async def _ensure(self, details: NetworkDetails) -> None:
        shape = msgspec.structs.replace(details, hosts=(), peers=())
        moved = False
        if self._ready is None or self._ready != (shape, self._switch.ports().get(self.device)):
            self._ready = None
            moved = await self._ensure_device(details)
            self._ready = (shape, self._switch.ports()[self.device])
        await self._dhcp.ensure(details, restart=moved)
        if self._closer is None:
            await self._open_metadata()

    def mark_lost(self) -> None:
        """The switch was restarted: the device may be a new one, outside the namespace."""
        self._ready = None

    async def _ensure_device(self, details: NetworkDetails) -> bool:
        """Whether the device is a new one."""
        self._directory.mkdir(parents=True, exist_ok=True)  # before anything that it tells to be ours
        write_whole(self._directory / "network", self.network_id)
        await namespace.create(self.namespace)
        await self._switch.add_internal_port(
            self.device,
            vlan=details.vlan,
            mac=server_mac(self.network_id),
            mtu=details.mtu,
            external_ids={OWNER: self._place.owner, NETWORK: self.network_id},
        )
        await self._switch.applied()
        if self.ofport is None:
            raise TryAgain(f"Open vSwitch did not make the device {self.device}.")
        moved = await namespace.adopt_device(self.namespace, self.device)
        await namespace.set_addresses(self.namespace, self.device, _addresses(details), details.mtu)
        return moved

    async def _open_metadata(self) -> None:
        self._socket = await namespace.inside(self.namespace, _listen)
        try:
            self._closer = await self._serve_metadata(self.network_id, self._socket)
        except BaseException:
            self._socket.close()
            self._socket = None
            raise

    async def close(self) -> None:
        """End what ends with this process; namespace and DHCP stay."""
        self._dhcp.leave()
        if self._closer is not None:
            closer, self._closer = self._closer, None
            await closer()
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    async def remove(self) -> None:
        """Take everything away."""
        await self.close()
        self._ready = None
        await self._dhcp.stop()
        await self._switch.remove_port(self.device)
        await namespace.remove(self.namespace)
        shutil.rmtree(self._directory, ignore_errors=True)


def recorded_networks(directory: Path) -> list[str]:
    """The networks of which something may be left here, by what ``ensure`` wrote down."""
    return [path.read_text() for path in sorted(directory.glob("*/network"))]


def _directory_name(network_id: str) -> str:
    return namespace.namespace_name(network_id, "net")


def _addresses(details: NetworkDetails) -> list[str]:
    addresses = []
    for subnet in details.subnets:
        if not subnet.server:  # nobody serves it
            continue
        try:
            length = ipaddress.ip_network(subnet.cidr, strict=False).prefixlen
            addresses.append(f"{ipaddress.ip_address(subnet.server)}/{length}")
        except ValueError as error:
            raise Invalid(f"The subnet {subnet.cidr} makes no sense: {error}") from error
    return [*addresses, f"{METADATA_ADDRESS}/32"]


def _listen() -> socket.socket:
    link = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        link.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        link.bind((METADATA_ADDRESS, 80))
        link.listen(128)
        link.setblocking(False)
    except BaseException:
        link.close()
        raise
    return link
