"""Stand-in guests: a network namespace with a real kernel's network behind a tap that os-vif plugged.

What the guest's kernel sends is carried to the tap, and back, by the test's event loop, as QEMU would.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import itertools
import os
import socket
import struct
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable

import msgspec

from kilonova.errors import HostFault, Unreachable
from kilonova.l2agent import namespace
from kilonova.l2agent.programs import run
from kilonova.l2agent.reach import open_connection_in
from kilonova.model.port import Vif
from kilonova.model.wiring import DhcpHost, DhcpSubnet, FilterRule, NetworkDetails, PortDetails

_TUNSETIFF = 0x400454CA
_TAP, _NO_PI = 0x0002, 0x1000
_ALL_PROTOCOLS = socket.htons(3)

ANY_EGRESS = (
    FilterRule(direction="egress", ethertype="IPv4"),
    FilterRule(direction="egress", ethertype="IPv6"),
)
PING_IN = FilterRule(direction="ingress", ethertype="IPv4", protocol="icmp")


def tcp_in(port: int, remote: tuple[str, ...] | None = None) -> FilterRule:
    return FilterRule(
        direction="ingress",
        ethertype="IPv4",
        protocol="tcp",
        port_min=port,
        port_max=port,
        remote=remote,
    )


async def eventually(check: Callable[[], Awaitable[bool] | bool], timeout: float = 10.0) -> None:
    """Wait until something holds; TimeoutError if it does not."""
    async with asyncio.timeout(timeout):
        while True:
            result = check()
            if result if isinstance(result, bool) else await result:
                return
            await asyncio.sleep(0.02)


class Cloud:
    """A network service in memory: implements l2agent.source.WiringSource."""

    def __init__(self) -> None:
        self.ports: dict[str, PortDetails] = {}
        self.networks: dict[str, NetworkDetails] = {}
        self.news: list[tuple[str, str]] = []
        self.answers = True
        self._changed: list[Callable[[str, str], None]] = []
        self._up: dict[str, asyncio.Event] = {}
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
        self, network_id: str, address: str, rules: tuple[FilterRule, ...] = (PING_IN,), **more: object
    ) -> Vif:
        """A port of the network; its rules always let everything out."""
        port_id, number = str(uuid.uuid4()), next(self._numbers)
        network = self.networks[network_id]
        details = PortDetails(
            port_id=port_id,
            network_id=network_id,
            vlan=network.vlan,
            mac=f"fa:16:3e:00:00:{number:02x}",
            addresses=(address,),
            rules=(*ANY_EGRESS, *rules),
        )
        details = msgspec.structs.replace(details, **more)
        self.ports[port_id] = details
        self._up[port_id] = asyncio.Event()
        lease = DhcpHost(mac=details.mac, address=address, hostname=f"guest{number}")
        self.networks[network_id] = msgspec.structs.replace(network, hosts=(*network.hosts, lease))
        return Vif(
            port_id=port_id,
            mac=details.mac,
            network_id=network_id,
            network_name="net",
            mtu=network.mtu,
            details={"datapath_type": "netdev"},
        )

    def change(self, vif: Vif, **changes: object) -> None:
        """Change a port's details and tell the agent."""
        self.ports[vif.port_id] = msgspec.structs.replace(self.ports[vif.port_id], **changes)
        self.tell("port", vif.port_id)

    def rules(self, vif: Vif, *rules: FilterRule) -> None:
        self.change(vif, rules=(*ANY_EGRESS, *rules))

    def tell(self, kind: str, thing: str) -> None:
        for changed in self._changed:
            changed(kind, thing)

    async def up(self, *vifs: Vif, timeout: float = 20.0) -> None:
        """Wait until the agent has said so."""
        async with asyncio.timeout(timeout):
            for vif in vifs:
                await self._up[vif.port_id].wait()

    def is_up(self, vif: Vif) -> bool:
        return self._up[vif.port_id].is_set()

    # what the agent calls

    def source(self) -> Source:
        return Source(self)


class Source:
    """The face of the cloud that an agent sees."""

    def __init__(self, cloud: Cloud) -> None:
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

    async def port_up(self, port_id: str, host: str) -> None:
        self._check()
        self._cloud.news.append(("up", port_id))
        self._cloud._up[port_id].set()

    async def port_down(self, port_id: str, host: str) -> None:
        self._check()
        self._cloud.news.append(("down", port_id))
        self._cloud._up[port_id].clear()

    def subscribe(self, changed: Callable[[str, str], None]) -> Callable[[], None]:
        self._cloud._changed.append(changed)
        return lambda: self._cloud._changed.remove(changed)


class Guest:
    """``open`` when its port is plugged, ``close`` at the end."""

    def __init__(self, vif: Vif, address: str | None = None, name: str = "") -> None:
        self.vif = vif
        self.address = address
        self.namespace = "g-" + (name or vif.port_id[:8])
        self._tap = self._inner = -1

    async def open(self) -> None:
        await namespace.create(self.namespace)
        self._tap = _tap(self.vif.devname)
        self._inner = await namespace.inside(self.namespace, lambda: _tap("eth0"))
        up = [f"link set dev eth0 address {self.vif.mac} mtu 1442 up"]
        if self.address:
            up.append(f"addr add {self.address}/24 dev eth0")
        await run("ip", "-n", self.namespace, "-batch", "-", stdin="\n".join(up) + "\n")
        loop = asyncio.get_running_loop()
        loop.add_reader(self._tap, self._carry, self._tap, self._inner)
        loop.add_reader(self._inner, self._carry, self._inner, self._tap)

    def _carry(self, source: int, target: int) -> None:
        with contextlib.suppress(BlockingIOError):
            for _ in range(64):
                frame = os.read(source, 65536)
                with contextlib.suppress(OSError):  # a device that is down takes nothing
                    os.write(target, frame)

    async def close(self) -> None:
        loop = asyncio.get_running_loop()
        for handle in (self._tap, self._inner):
            if handle >= 0:
                loop.remove_reader(handle)
                os.close(handle)
        self._tap = self._inner = -1
        await namespace.remove(self.namespace)

    async def shell(self, *command: str, timeout: float = 20.0) -> str:
        return await run("ip", "netns", "exec", self.namespace, *command, timeout=timeout)

    async def pings(self, address: str, wait: float = 1.0) -> bool:
        """One echo request; whether the answer came."""
        try:
            await self.shell("ping", "-c", "1", "-W", str(wait), "-n", address)
        except HostFault:
            return False
        return True

    async def connects(self, address: str, port: int, timeout: float = 1.0) -> bool:
        try:
            _, writer = await open_connection_in(self.namespace, address, port, timeout=timeout)
        except Unreachable:
            return False
        writer.close()
        return True

    @contextlib.asynccontextmanager
    async def echo_server(self, port: int) -> AsyncIterator[None]:
        """A TCP server in the guest that sends back what it gets."""

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError):
                while data := await reader.read(4096):
                    writer.write(data)
                    await writer.drain()
            writer.close()

        def listen() -> socket.socket:
            link = socket.socket()
            link.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            link.bind(("0.0.0.0", port))
            link.listen()
            link.setblocking(False)
            return link

        server = await asyncio.start_server(serve, sock=await namespace.inside(self.namespace, listen))
        try:
            yield
        finally:
            server.close()

    async def send(self, *frames: bytes) -> None:
        """Put whole Ethernet frames on the guest's wire, whatever its kernel thinks of them."""

        def transmit() -> None:
            with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as link:
                link.bind(("eth0", 0))
                for frame in frames:
                    link.send(frame.ljust(60, b"\0"))

        await namespace.inside(self.namespace, transmit)

    @contextlib.asynccontextmanager
    async def tap_wire(self) -> AsyncIterator[Wiretap]:
        """Record all frames that reach the guest."""

        def listen() -> socket.socket:
            link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, _ALL_PROTOCOLS)
            link.bind(("eth0", 3))
            link.setblocking(False)
            return link

        wire = Wiretap(await namespace.inside(self.namespace, listen))
        try:
            yield wire
        finally:
            wire.close()


class Wiretap:
    def __init__(self, link: socket.socket) -> None:
        self._link = link
        self.frames: list[bytes] = []
        asyncio.get_running_loop().add_reader(link, self._read)

    def _read(self) -> None:
        with contextlib.suppress(BlockingIOError):
            frame, origin = self._link.recvfrom(65536)
            if origin[2] != socket.PACKET_OUTGOING:
                self.frames.append(frame)

    def saw(self, part: bytes) -> bool:
        return any(part in frame for frame in self.frames)

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._link)
        self._link.close()


def _tap(name: str) -> int:
    """A handle on a tap of the namespace that the calling thread is in; made if it is not there."""
    handle = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.ioctl(handle, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _TAP | _NO_PI))
    except OSError:
        os.close(handle)
        raise
    return handle


# ---- frames ----


def mac_bytes(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def _checksum(data: bytes) -> int:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF


def udp_frame(
    *, src_mac: str, dst_mac: str, src: str, dst: str, sport: int, dport: int, data: bytes, vlan: int = 0
) -> bytes:
    """Ethernet, IPv4 and UDP (without its checksum, which IPv4 allows)."""
    udp = struct.pack("!HHHH", sport, dport, 8 + len(data), 0) + data
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 1, 0, 64, 17, 0)
    ends = socket.inet_aton(src) + socket.inet_aton(dst)
    check = struct.pack("!H", _checksum(head + ends))
    tag = struct.pack("!HH", 0x8100, vlan) if vlan else b""
    return mac_bytes(dst_mac) + mac_bytes(src_mac) + tag + b"\x08\x00" + head[:10] + check + ends + udp


def arp_frame(*, src_mac: str, sender_mac: str, sender: str, target: str, op: int = 1) -> bytes:
    body = struct.pack("!HHBBH", 1, 0x0800, 6, 4, op) + mac_bytes(sender_mac) + socket.inet_aton(sender)
    return b"\xff" * 6 + mac_bytes(src_mac) + b"\x08\x06" + body + b"\0" * 6 + socket.inet_aton(target)


# ---- a DHCP client ----


class Lease(msgspec.Struct, frozen=True):
    address: str
    server: str
    options: dict[int, bytes]


async def ask_dhcp(guest: Guest, timeout: float = 5.0) -> Lease | None:
    """DISCOVER and REQUEST, each once; None if nobody answers in time."""

    def open_client() -> socket.socket:
        link = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        link.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        link.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        link.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
        link.bind(("0.0.0.0", 68))
        link.setblocking(False)
        return link

    link = await namespace.inside(guest.namespace, open_client)
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(timeout):
            link.sendto(_dhcp(guest.vif.mac, 1), ("255.255.255.255", 67))
            offer = _parse(await loop.sock_recv(link, 4096))
            chosen = {50: socket.inet_aton(offer.address), 54: socket.inet_aton(offer.server)}
            link.sendto(_dhcp(guest.vif.mac, 3, chosen), ("255.255.255.255", 67))
            return _parse(await loop.sock_recv(link, 4096))
    except TimeoutError:
        return None
    finally:
        link.close()


def _dhcp(mac: str, kind: int, options: dict[int, bytes] | None = None) -> bytes:
    head = struct.pack("!BBBBIHH", 1, 1, 6, 0, 0x4B4E0001, 0, 0x8000) + bytes(16)
    wanted = {53: bytes([kind]), 55: bytes([1, 3, 6, 12, 15, 26, 121]), **(options or {})}
    packed = b"".join(bytes([code, len(value)]) + value for code, value in wanted.items())
    return head + mac_bytes(mac).ljust(16, b"\0") + bytes(192) + b"\x63\x82\x53\x63" + packed + b"\xff"


def _parse(answer: bytes) -> Lease:
    options: dict[int, bytes] = {}
    rest = answer[240:]
    while rest and rest[0] != 255:
        if rest[0] == 0:
            rest = rest[1:]
            continue
        options[rest[0]] = rest[2 : 2 + rest[1]]
        rest = rest[2 + rest[1] :]
    return Lease(socket.inet_ntoa(answer[16:20]), socket.inet_ntoa(options[54]), options)
