"""Which datapath the integration bridge is to have: the kernel's, or the one inside ovs-vswitchd."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct

_GENERIC = 16  # NETLINK_GENERIC
_CONTROLLER = 0x10  # the family of families
_GET_FAMILY = 3
_FAMILY_NAME = 2
_REQUEST, _ERROR = 1, 2


def kernel_has_datapath() -> bool:
    """Whether this kernel knows Open vSwitch: asks for its generic netlink family by name."""
    name = b"ovs_datapath\0"
    attribute = struct.pack("=HH", 4 + len(name), _FAMILY_NAME) + name
    attribute += b"\0" * (-len(attribute) % 4)
    body = struct.pack("=BBH", _GET_FAMILY, 1, 0) + attribute
    message = struct.pack("=IHHII", 16 + len(body), _CONTROLLER, _REQUEST, 1, 0) + body
    with contextlib.suppress(OSError), socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _GENERIC) as link:
        link.settimeout(2)
        link.bind((0, 0))
        link.send(message)
        (kind,) = struct.unpack_from("=H", link.recv(8192), 4)
        return bool(kind != _ERROR)
    return False


async def choose_datapath(wanted: str) -> str:
    """``system`` or ``netdev``: what was configured, and with ``auto`` the kernel's if there is one."""
    if wanted != "auto":
        return wanted
    return "system" if await asyncio.to_thread(kernel_has_datapath) else "netdev"
