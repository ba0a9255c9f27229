"""UDP between stand-in guests."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

from tests.real.guests import Guest


async def answers(guest: Guest, address: str, port: int, wait: float = 30.0, size: int = 4) -> bool:
    """Whether a UDP echo server answers; asked again and again."""
    link = await guest.udp(0, connect=None)
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(wait):
            while True:
                link.sendto(b"q" * size, (address, port))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.3):
                        return await loop.sock_recv(link, 65536) == b"q" * size
    except TimeoutError:
        return False
    finally:
        link.close()


@contextlib.asynccontextmanager
async def udp_echo(guest: Guest, *ports: int) -> AsyncIterator[None]:
    loop = asyncio.get_running_loop()

    async def serve(link: socket.socket) -> None:
        while True:
            data, sender = await loop.sock_recvfrom(link, 65536)
            await loop.sock_sendto(link, data, sender)

    links = [await guest.udp(port) for port in ports]
    tasks = [asyncio.create_task(serve(link)) for link in links]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for link in links:
            link.close()
