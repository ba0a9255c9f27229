"""An HTTP server on a port of its own and raw connections to it, on the loop of ``kilonova up``."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import pytest
import uvloop
from starlette.types import ASGIApp

from kilonova.testing.clock import VirtualClock
from kilonova.web.connection import Limits
from kilonova.web.server import HttpServer, bind

PATIENCE = 60.0  # seconds; what a busy machine may take


def pytest_asyncio_loop_factories(
    config: Any, item: Any
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"uvloop": uvloop.new_event_loop}


class Client:
    """A socket to the server, to write to and read from byte by byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        async with asyncio.timeout(PATIENCE):
            await self.writer.drain()

    async def answer(self, *, head: bool = False) -> tuple[int, dict[str, str], bytes]:
        """The next answer: status, headers, body (``head``: of which there is none)."""
        async with asyncio.timeout(PATIENCE):
            start, *lines = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")[:-2]
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
            status = int(start.split()[1])
            length = 0 if head or status == 100 else int(headers.get("content-length", 0))
            return status, headers, await self.reader.readexactly(length)

    async def rest(self) -> bytes:
        """What comes until the server hangs up."""
        async with asyncio.timeout(PATIENCE):
            data = b""
            with contextlib.suppress(ConnectionError):
                while piece := await self.reader.read(65536):
                    data += piece
            return data

    async def is_open(self) -> bool:
        """Whether the server has not hung up by now."""
        try:
            async with asyncio.timeout(0.05):
                return bool(await self.reader.read(1))
        except TimeoutError:
            return True
        except ConnectionError:
            return False

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()


class Server:
    """A running HttpServer whose seconds pass when the test says so."""

    def __init__(self, server: HttpServer, port: int, clock: VirtualClock) -> None:
        self.http = server
        self.port = port
        self.clock = clock
        self.clients: list[Client] = []

    async def connect(self) -> Client:
        client = Client(*await asyncio.open_connection("127.0.0.1", self.port))
        self.clients.append(client)
        return client

    async def ask(self, data: bytes) -> tuple[int, dict[str, str], bytes]:
        """One request on a connection of its own."""
        client = await self.connect()
        await client.send(data)
        return await client.answer()

    async def pass_seconds(self, number: int) -> None:
        """Let seconds pass, and the server see each of them."""
        for _ in range(number):
            await asyncio.sleep(0.001)  # the loop takes up what has come in
            self.clock.advance(1)
            await asyncio.sleep(0)

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not condition():
                await asyncio.sleep(0.001)

    @property
    def connections(self) -> int:
        return len(self.http._connections())


Serve = Callable[..., Awaitable[Server]]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Start a server of an app; all are stopped at the end."""
    started: list[Server] = []

    async def start(app: ASGIApp, **limits: int) -> Server:
        listening = bind("127.0.0.1", 0)
        clock = VirtualClock()
        server = HttpServer(app, [listening], clock=clock, limits=Limits(**limits))
        await server.start()
        started.append(Server(server, listening.getsockname()[1], clock))
        return started[-1]

    yield start
    for each in started:
        for client in each.clients:
            await client.close()
        await each.http.stop()
