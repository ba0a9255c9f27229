"""Frames that tell a network where a guest is now: its switches learn the way, its neighbours the address."""

from __future__ import annotations

import ipaddress
import struct

from kilonova.model.wiring import PortDetails

_ARP, _RARP, _IPV6 = 0x0806, 0x8035, 0x86DD
_ICMPV6, _ADVERTISEMENT = 58, 136
_OVERRIDE = 0x20000000
_ALL_NODES = ipaddress.IPv6Address("ff02::1").packed


def announcements(port: PortDetails) -> list[bytes]:
    """What a guest would send to all: for each address what RFC 5227 and RFC 4861 say, else a RARP."""
    mac = bytes.fromhex(port.mac.replace(":", ""))
    found = []
    for text in port.addresses:
        address = ipaddress.ip_address(text)
        found.append(
            _arp(mac, address.packed) if address.version == 4 else _advertisement(mac, address.packed)
        )
    return found or [_rarp(mac)]


def _arp(mac: bytes, address: bytes) -> bytes:
    body = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1) + mac + address + bytes(6) + address
    return _ethernet(b"\xff" * 6, mac, _ARP, body)


def _rarp(mac: bytes) -> bytes:
    """As QEMU sends it."""
    body = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 3) + mac + bytes(4) + mac + bytes(4)
    return _ethernet(b"\xff" * 6, mac, _RARP, body)


def _advertisement(mac: bytes, address: bytes) -> bytes:
    body = struct.pack("!BBHI", _ADVERTISEMENT, 0, 0, _OVERRIDE) + address + b"\x02\x01" + mac
    pseudo = address + _ALL_NODES + struct.pack("!II", len(body), _ICMPV6)
    body = body[:2] + struct.pack("!H", _checksum(pseudo + body)) + body[4:]
    header = struct.pack("!IHBB", 6 << 28, len(body), _ICMPV6, 255) + address + _ALL_NODES
    return _ethernet(b"\x33\x33" + _ALL_NODES[-4:], mac, _IPV6, header + body)


def _ethernet(target: bytes, source: bytes, kind: int, body: bytes) -> bytes:
    return (target + source + struct.pack("!H", kind) + body).ljust(60, b"\0")


def _checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total >> 16) + (total & 0xFFFF)
    return 0xFFFF - total
