"""One HTTP server for all services of a process: a socket for each port, the app chosen by the port."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from kilonova.clock import Clock, SystemClock
from kilonova.errors import Failed
from kilonova.web.connection import Connection, Limits, ServerConfig

BACKLOG = 2048
GRACE = 2.0  # seconds that requests in progress have when the server stops
FAREWELL = 0.5  # seconds in which they hear that their clients are gone, before they are cancelled
LARGEST_PORT = 65_535


class _Server(uvicorn.Server):
    """Signals belong to the process, not to one of its servers."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class ByPort:
    """The app of the port that a request came in by."""

    def __init__(self, apps: dict[int, ASGIApp]) -> None:
        self._apps = apps

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._apps[scope["server"][1]](scope, receive, send)


class HttpServer:
    """Serves apps on sockets that are bound already, so that a taken port is reported before anything
    else is begun."""

    def __init__(
        self,
        app: ASGIApp,
        sockets: list[socket.socket],
        *,
        clock: Clock | None = None,
        limits: Limits | None = None,
    ) -> None:
        """``clock`` is what the seconds of ``limits`` are told by."""
        for each in sockets:  # inherited; asyncio leaves it off, and a small answer would wait 40 ms
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sockets = sockets
        self._clock = clock or SystemClock()
        config = ServerConfig(
            app,
            http=Connection,
            ws="none",
            loop="none",
            lifespan="off",
            log_config=None,
            log_level="error",
            access_log=False,
            server_header=False,
            timeout_keep_alive=75,
            proxy_headers=False,  # whoever sends X-Forwarded-For is who he is
            timeout_graceful_shutdown=int(2 * (GRACE + FAREWELL)),  # should never be needed
            backlog=BACKLOG,
        )
        config.limits = limits or Limits()
        self._server = _Server(config)
        self._task: asyncio.Task[None] | None = None
        self._watch: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._task = asyncio.create_task(self._server.serve(sockets=self._sockets), name="http")
        while not self._server.started and not self._task.done():  # noqa: ASYNC110 - uvicorn has no event
            await asyncio.sleep(0)
        if self._task.done():
            await self._task
        self._watch = asyncio.create_task(self._tick(), name="http-limits")

    async def stop(self) -> None:
        """Take no more requests, finish those in progress (two seconds at most), hang up."""
        if self._task is None:
            return
        self._server.should_exit = True
        _, late = await asyncio.wait({self._task}, timeout=GRACE)
        if late:
            for connection in self._connections():
                connection.transport.abort()
            _, late = await asyncio.wait({self._task}, timeout=FAREWELL)
        for request in list(self._server.server_state.tasks) if late else []:
            request.cancel()
        await self._task
        if self._watch is not None:
            self._watch.cancel()

    def _connections(self) -> list[Connection]:
        return [each for each in self._server.server_state.connections if isinstance(each, Connection)]

    async def _tick(self) -> None:
        while True:
            await self._clock.sleep(1)
            for connection in self._connections():
                connection.tick()


def bind(address: str, port: int) -> socket.socket:
    """A listening socket.  Raises Failed with what to do when the port is taken, or there is none such."""
    if not 0 <= port <= LARGEST_PORT:
        raise Failed(f"There is no port {port}: the last is {LARGEST_PORT}. Choose a smaller --port-offset.")
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((address, port))
        made.listen(BACKLOG)
    except OSError as error:
        made.close()
        raise Failed(
            f"Cannot listen on {address}:{port}: {error.strerror}. "
            "Stop what uses that port, or choose others with --port-offset."
        ) from error
    made.setblocking(False)
    return made
