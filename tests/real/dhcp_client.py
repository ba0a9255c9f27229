"""A DHCP client: one DISCOVER and one REQUEST, and what was answered."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct

import msgspec

from tests.real.frames import mac_bytes
from tests.real.guests import Guest


class Lease(msgspec.Struct, frozen=True):
    address: str
    server: str
    options: dict[int, bytes]


async def ask_dhcp(guest: Guest, timeout: float = 30.0, *, every: float = 1.0) -> Lease | None:
    """A lease for the guest's MAC, asked for again and again; None if nobody answers in time."""
    link = await guest.inside(_open)
    try:
        async with asyncio.timeout(timeout):
            offer = await _ask(link, _message(guest.vif.mac, 1), 2, every)
            chosen = {50: socket.inet_aton(offer.address), 54: socket.inet_aton(offer.server)}
            return await _ask(link, _message(guest.vif.mac, 3, chosen), 5, every)
    except TimeoutError:
        return None
    finally:
        link.close()


def _open() -> socket.socket:
    link = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    link.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    link.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    link.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
    link.bind(("0.0.0.0", 68))
    link.setblocking(False)
    return link


async def _ask(link: socket.socket, message: bytes, kind: int, every: float) -> Lease:
    """Send until an answer of that kind comes."""
    loop = asyncio.get_running_loop()
    while True:
        link.sendto(message, ("255.255.255.255", 67))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(every):
                while True:
                    lease = _parse(await loop.sock_recv(link, 4096))
                    if lease.options.get(53) == bytes([kind]):
                        return lease


def _message(mac: str, kind: int, options: dict[int, bytes] | None = None) -> bytes:
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
