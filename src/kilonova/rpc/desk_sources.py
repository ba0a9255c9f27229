"""The desk in the shapes that the parts of a host ask for: a source of images, and one of wiring."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable

from kilonova.model.wiring import NetworkDetails, PortDetails
from kilonova.rpc.desk import Desk

AHEAD = 4  # pieces of an image that are asked for at a time


class DeskImages:
    """An ImageStore: where images are read, and snapshots handed in."""

    def __init__(self, desk: Desk, piece: int) -> None:
        self._desk = desk
        self._piece = piece  # bytes of every piece but the last

    async def read(self, image_id: str) -> AsyncIterator[bytes]:
        """Raises what the desk raises, and before the first piece if there is no such image."""
        asked: deque[asyncio.Task[bytes]] = deque()
        offset = 0
        try:
            while True:
                while len(asked) < AHEAD:
                    asked.append(asyncio.create_task(self._desk.image(image_id, offset)))
                    offset += self._piece
                found = await asked.popleft()
                if found:
                    yield found
                if len(found) < self._piece:
                    return
        finally:
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)

    async def put_image(self, image_id: str, offset: int, data: bytes) -> int:
        return await self._desk.put_image(image_id, offset, data)

    async def finish_image(self, image_id: str, size: int, sha512: str, disk_format: str) -> None:
        await self._desk.finish_image(image_id, size, sha512, disk_format)


class DeskWiring:
    """A WiringSource.  ``changed`` is to be called with what the controllers say has changed."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._subscribers: list[Callable[[str, str], None]] = []

    async def port(self, port_id: str, host: str) -> PortDetails | None:
        return await self._desk.port(port_id)

    async def network(self, network_id: str) -> NetworkDetails | None:
        return await self._desk.network(network_id)

    async def tell_peers(self, network_id: str, host: str) -> None:
        await self._desk.tell_peers(network_id)

    async def port_up(self, port_id: str, host: str) -> None:
        await self._desk.port_up(port_id)

    async def port_down(self, port_id: str, host: str) -> None:
        await self._desk.port_down(port_id)

    def subscribe(self, changed: Callable[[str, str], None]) -> Callable[[], None]:
        self._subscribers.append(changed)
        return lambda: self._subscribers.remove(changed)

    def changed(self, kind: str, thing: str) -> None:
        for each in tuple(self._subscribers):
            each(kind, thing)
