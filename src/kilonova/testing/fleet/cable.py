"""A cable that can be cut: between a client and a server, also in one direction only."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path

Address = Path | int
"""A unix socket, or a port of loopback."""


class Cable:
    """Listens at ``here`` and passes on to ``there`` what comes, while it is whole.

    Cut, it loses what is sent and tells nobody, as a network does: no connection is closed.  A connection
    that was cut stays dead; whoever has it finds out by hearing nothing.
    """

    def __init__(self, here: Address, there: Address) -> None:
        self.here = here
        self.there = there
        self.up = True  # from the client to the server
        self.down = True
        self._server: asyncio.Server | None = None
        self._passing: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    async def open(self) -> None:
        if isinstance(self.here, Path):
            self._server = await asyncio.start_unix_server(self._connected, self.here)
            self.here.chmod(0o777)
        else:
            self._server = await asyncio.start_server(self._connected, "127.0.0.1", self.here)

    def cut(self, *, up: bool = True, down: bool = True) -> None:
        """Lose what goes up, down, or both."""
        self.up, self.down = self.up and not up, self.down and not down

    def mend(self) -> None:
        """New connections work again; what was lost on the old ones is gone, so these are closed."""
        if not (self.up and self.down):
            for writer in self._writers:
                writer.close()
        self.up = self.down = True

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for writer in self._writers:
            writer.close()
        for task in self._passing:
            task.cancel()
        await asyncio.gather(*self._passing, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            there_reader, there_writer = await self._connect()
        except OSError:
            writer.close()
            return
        self._writers.add(there_writer)
        ends = ((reader, there_writer, lambda: self.up), (there_reader, writer, lambda: self.down))
        for source, target, whole in ends:
            task = asyncio.create_task(_pass(source, target, whole))
            self._passing.add(task)
            task.add_done_callback(self._passing.discard)

    def _connect(self) -> Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        if isinstance(self.there, Path):
            return asyncio.open_unix_connection(self.there)
        return asyncio.open_connection("127.0.0.1", self.there)


async def _pass(
    source: asyncio.StreamReader, target: asyncio.StreamWriter, whole: Callable[[], bool]
) -> None:
    with contextlib.suppress(OSError):
        while data := await source.read(65536):
            if whole():
                target.write(data)
                await target.drain()
    target.close()
