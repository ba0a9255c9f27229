"""Reaching guests from the host: connections that start in a network's namespace."""

from __future__ import annotations

import asyncio
import socket

from kilonova.errors import Unreachable
from kilonova.l2agent import namespace


async def open_connection_in(
    name: str, address: str, port: int, *, timeout: float = 10.0
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """As asyncio.open_connection, but from inside the network namespace ``name``.

    Raises NotFound if there is no such namespace, Unreachable if nobody answers there.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET

    def open_socket() -> socket.socket:
        return socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)

    link = await namespace.inside(name, open_socket)
    try:
        async with asyncio.timeout(timeout):
            await asyncio.get_running_loop().sock_connect(link, (address, port))
            return await asyncio.open_connection(sock=link)
    except (OSError, TimeoutError) as error:
        link.close()
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "no answer"
        raise Unreachable(f"{address} port {port} in {name} cannot be reached: {reason}.") from error
    except BaseException:
        link.close()
        raise
