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
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

from kilonova.errors import Unreachable
from kilonova.l2agent import namespace
from kilonova.l2agent.reach import open_connection_in
from kilonova.model.port import Vif
from kilonova.programs import run
from tests.real.frames import checksum

T = TypeVar("T")

_TUNSETIFF = 0x400454CA
_TAP, _NO_PI = 0x0002, 0x1000
_ALL_PROTOCOLS = socket.htons(3)
_PINGS = itertools.count(1)


async def eventually(check: Callable[[], Awaitable[bool] | bool], timeout: float = 60.0) -> None:
    """Wait until something holds; TimeoutError if it does not."""
    async with asyncio.timeout(timeout):
        while True:
            result = check()
            if result if isinstance(result, bool) else await result:
                return
            await asyncio.sleep(0.02)


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
        self._inner = await self.inside(lambda: _tap("eth0"))
        up = [f"link set dev eth0 address {self.vif.mac} mtu 1442 up"]
        if self.address:
            up.append(f"addr add {self.address}/24 dev eth0")
        await self.ip(*up)
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

    async def inside(self, work: Callable[[], T]) -> T:
        return await namespace.inside(self.namespace, work)

    async def ip(self, *lines: str) -> None:
        """Run commands of ip(8) in the guest."""
        await run("ip", "-n", self.namespace, "-batch", "-", stdin="\n".join(lines) + "\n")

    async def add_addresses(self, *addresses: str) -> None:
        """Addresses with their prefix lengths, usable at once."""
        await self.ip(*(f"addr add {address} dev eth0{_at_once(address)}" for address in addresses))

    # ---- talking ----

    async def pings(self, address: str, wait: float = 30.0, size: int = 8) -> bool:
        """Whether an echo request of so many bytes of content is answered; repeated until ``wait`` ends."""
        six = ":" in address
        family, protocol = (
            (socket.AF_INET6, socket.IPPROTO_ICMPV6) if six else (socket.AF_INET, socket.IPPROTO_ICMP)
        )

        def open_socket() -> socket.socket:
            link = socket.socket(family, socket.SOCK_RAW, protocol)
            link.setblocking(False)
            return link

        link = await self.inside(open_socket)
        number = next(_PINGS) & 0xFFFF
        try:
            async with asyncio.timeout(wait):
                while not await _pong(link, address, number, size):
                    pass
        except TimeoutError:
            return False
        finally:
            link.close()
        return True

    async def connects(self, address: str, port: int, wait: float = 30.0) -> bool:
        """Whether a TCP connection can be opened."""
        try:
            _, writer = await open_connection_in(self.namespace, address, port, timeout=wait)
        except Unreachable:
            return False
        writer.close()
        return True

    @contextlib.asynccontextmanager
    async def echo_server(self, *ports: int) -> AsyncIterator[None]:
        """TCP servers in the guest that send back what they get."""

        writers: list[asyncio.StreamWriter] = []

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writers.append(writer)
            with contextlib.suppress(OSError):
                while data := await reader.read(4096):
                    writer.write(data)
                    await writer.drain()
            writer.close()

        def listen(port: int) -> socket.socket:
            link = socket.socket()
            link.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            link.bind(("0.0.0.0", port))
            link.listen()
            link.setblocking(False)
            return link

        servers = []
        try:
            for port in ports:
                link = await self.inside(lambda port=port: listen(port))  # type: ignore[misc]
                servers.append(await asyncio.start_server(serve, sock=link))
            yield
        finally:
            for server in servers:
                server.close()
            for writer in writers:
                writer.transport.abort()

    async def udp(self, port: int, connect: str | None = None) -> socket.socket:
        """A UDP socket of the guest, bound to a port."""

        def open_socket() -> socket.socket:
            link = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            link.bind(("0.0.0.0", port))
            if connect is not None:
                link.connect((connect, port))
            link.setblocking(False)
            return link

        return await self.inside(open_socket)

    # ---- the wire ----

    async def send(self, *frames: bytes) -> None:
        """Put whole Ethernet frames on the guest's wire, whatever its kernel thinks of them."""

        def transmit() -> None:
            with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as link:
                link.bind(("eth0", 0))
                for frame in frames:
                    link.send(frame.ljust(60, b"\0"))

        await self.inside(transmit)

    @contextlib.asynccontextmanager
    async def tap_wire(self) -> AsyncIterator[Wiretap]:
        """Record all frames that reach the guest."""
        async with tap_wire(self.namespace, "eth0") as wire:
            yield wire


@contextlib.asynccontextmanager
async def tap_wire(name: str, device: str) -> AsyncIterator[Wiretap]:
    """Record all frames that come in by a device of a network namespace."""

    def listen() -> socket.socket:
        link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, _ALL_PROTOCOLS)
        link.bind((device, 3))
        link.setblocking(False)
        return link

    wire = Wiretap(await namespace.inside(name, listen))
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
            while True:
                frame, origin = self._link.recvfrom(65536)
                if origin[2] != socket.PACKET_OUTGOING:
                    self.frames.append(frame)

    def saw(self, part: bytes) -> bool:
        return any(part in frame for frame in self.frames)

    def senders(self) -> set[str]:
        """The MAC addresses that frames came from."""
        return {frame[6:12].hex(":") for frame in self.frames}

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._link)
        self._link.close()


def _at_once(address: str) -> str:
    return " nodad" if ":" in address else ""


async def _pong(link: socket.socket, address: str, number: int, size: int) -> bool:
    """Send one echo request and wait a moment for its answer."""
    kind, answer, skip = (128, 129, 0) if ":" in address else (8, 0, 20)
    message = struct.pack("!BBHHH", kind, 0, 0, number, 1) + b"p" * size
    message = message[:2] + struct.pack("!H", checksum(message)) + message[4:]
    loop = asyncio.get_running_loop()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.3):
            try:
                await loop.sock_sendto(link, message, (address, 0))
            except OSError:  # nobody says where that is
                await asyncio.sleep(0.1)
                return False
            while True:
                data, sender = await loop.sock_recvfrom(link, 65536)
                if (sender[0], data[skip], data[skip + 4 : skip + 6]) == (address, answer, message[4:6]):
                    return True
    return False


def _tap(name: str) -> int:
    """A handle on a tap of the namespace that the calling thread is in; made if it is not there."""
    handle = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.ioctl(handle, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _TAP | _NO_PI))
    except OSError:
        os.close(handle)
        raise
    return handle
