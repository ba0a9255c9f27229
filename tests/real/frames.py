"""Ethernet frames made by hand, honest ones and others."""

from __future__ import annotations

import ipaddress
import socket
import struct

BROADCAST = "ff:ff:ff:ff:ff:ff"
ALL_NODES = "33:33:00:00:00:01"

TCP, UDP, ICMP, ICMPV6 = 6, 17, 1, 58


def mac_bytes(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def checksum(data: bytes) -> int:
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total >> 16) + (total & 0xFFFF)
    return ~total & 0xFFFF


def ethernet(*, src_mac: str, dst_mac: str, kind: int, body: bytes, vlan: int = 0) -> bytes:
    """``vlan`` other than 0 puts a tag in front."""
    tag = struct.pack("!HH", 0x8100, vlan) if vlan else b""
    return mac_bytes(dst_mac) + mac_bytes(src_mac) + tag + struct.pack("!H", kind) + body


def ipv4(src: str, dst: str, protocol: int, body: bytes, *, fragment: int = 0) -> bytes:
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 1, fragment, 64, protocol, 0)
    ends = socket.inet_aton(src) + socket.inet_aton(dst)
    return head[:10] + struct.pack("!H", checksum(head + ends)) + ends + body


def ipv6(src: str, dst: str, protocol: int, body: bytes) -> bytes:
    ends = ipaddress.IPv6Address(src).packed + ipaddress.IPv6Address(dst).packed
    return struct.pack("!IHBB", 6 << 28, len(body), protocol, 255) + ends + body


def _pseudo(src: str, dst: str, protocol: int, length: int) -> bytes:
    ends = ipaddress.ip_address(src).packed + ipaddress.ip_address(dst).packed
    if ":" in src:
        return ends + struct.pack("!IHBB", length, 0, 0, protocol)
    return ends + struct.pack("!BBH", 0, protocol, length)


def udp_frame(
    *, src_mac: str, dst_mac: str, src: str, dst: str, sport: int, dport: int, data: bytes, vlan: int = 0
) -> bytes:
    """Ethernet, IPv4 or IPv6 by the addresses, and UDP."""
    udp = struct.pack("!HHHH", sport, dport, 8 + len(data), 0) + data
    udp = udp[:6] + struct.pack("!H", checksum(_pseudo(src, dst, UDP, len(udp)) + udp) or 0xFFFF) + udp[8:]
    kind, packet = (0x86DD, ipv6(src, dst, UDP, udp)) if ":" in src else (0x0800, ipv4(src, dst, UDP, udp))
    return ethernet(src_mac=src_mac, dst_mac=dst_mac, kind=kind, body=packet, vlan=vlan)


def tcp_frame(
    *,
    src_mac: str,
    dst_mac: str,
    src: str,
    dst: str,
    sport: int,
    dport: int,
    flags: int = 2,
    data: bytes = b"",
) -> bytes:
    """Ethernet, IPv4 and TCP; ``flags`` 2 is SYN, 16 ACK."""
    tcp = struct.pack("!HHIIBBHHH", sport, dport, 1000, 0, 5 << 4, flags, 8192, 0, 0) + data
    tcp = tcp[:16] + struct.pack("!H", checksum(_pseudo(src, dst, TCP, len(tcp)) + tcp)) + tcp[18:]
    return ethernet(src_mac=src_mac, dst_mac=dst_mac, kind=0x0800, body=ipv4(src, dst, TCP, tcp))


def arp_frame(
    *, src_mac: str, sender_mac: str, sender: str, target: str, op: int = 1, vlan: int = 0, kind: int = 0x0806
) -> bytes:
    """An ARP message to everybody; with ``kind`` 0x8035 and ``op`` 3 a RARP one that asks for the sender."""
    asked = mac_bytes(sender_mac) if kind == 0x8035 else b"\0" * 6
    body = struct.pack("!HHBBH", 1, 0x0800, 6, 4, op) + mac_bytes(sender_mac) + socket.inet_aton(sender)
    body += asked + socket.inet_aton(target)
    return ethernet(src_mac=src_mac, dst_mac=BROADCAST, kind=kind, body=body, vlan=vlan)


def icmp6_frame(*, src_mac: str, dst_mac: str, src: str, dst: str, kind: int, body: bytes) -> bytes:
    """Ethernet, IPv6 and ICMPv6 of a type, with what follows type, code and checksum."""
    icmp = struct.pack("!BBH", kind, 0, 0) + body
    icmp = icmp[:2] + struct.pack("!H", checksum(_pseudo(src, dst, ICMPV6, len(icmp)) + icmp)) + icmp[4:]
    return ethernet(src_mac=src_mac, dst_mac=dst_mac, kind=0x86DD, body=ipv6(src, dst, ICMPV6, icmp))


def advertisement_frame(*, src_mac: str, src: str, target: str, says_mac: str = "") -> bytes:
    """A neighbour advertisement to everybody: ``target`` is at ``says_mac``."""
    option = b"\2\1" + mac_bytes(says_mac or src_mac)
    body = b"\x20\0\0\0" + ipaddress.IPv6Address(target).packed + option
    return icmp6_frame(src_mac=src_mac, dst_mac=ALL_NODES, src=src, dst="ff02::1", kind=136, body=body)
