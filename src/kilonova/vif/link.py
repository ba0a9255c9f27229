"""The state of a network device of the host."""

from __future__ import annotations

import fcntl
import socket
import struct

from kilonova.errors import HostFault
from kilonova.programs import run

_GET_FLAGS = 0x8913
_UP = 1


def is_up(name: str) -> bool:
    """Raises HostFault if there is no such device."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as link:
        try:
            answer = fcntl.ioctl(link, _GET_FLAGS, struct.pack("16sH22x", name.encode(), 0))
        except OSError as error:
            raise HostFault(f"The device {name} cannot be looked at: {error.strerror}.") from error
    return bool(struct.unpack_from("H", answer, 16)[0] & _UP)


async def set_up(name: str) -> None:
    """Raises HostFault."""
    await run("ip", "link", "set", "dev", name, "up")
