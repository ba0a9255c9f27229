"""A nats-server of a test's own, which can be killed and started again, and a wire that can be cut."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from nats.aio.client import Client

from kilonova.testing.ports import free_port

PATIENCE = 30.0  # seconds for anything on a busy machine


class NatsServer:
    """On a port of its own; ``config`` goes into its configuration, paths in it may be relative."""

    def __init__(self, directory: Path, config: str = "") -> None:
        self.directory = directory
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None
        directory.mkdir(parents=True, exist_ok=True)
        self.configure(config)

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        file = self.directory / "nats.log"
        return file.read_text() if file.exists() else "it has said nothing"

    def configure(self, config: str) -> None:
        """What it is told at its next start or reload."""
        (self.directory / "nats.conf").write_text(
            f'listen: "127.0.0.1:{self.port}"\nlog_file: "{self.directory}/nats.log"\n{config}\n'
        )

    def start(self) -> None:
        """Raises FileNotFoundError if it is not installed, TimeoutError."""
        program = shutil.which("nats-server", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
        if program is None:
            raise FileNotFoundError("nats-server is not installed: tools/apt/test.txt names its package.")
        until_we_end = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
        command = [*until_we_end, program, "-c", str(self.directory / "nats.conf")]
        self.process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        end = time.monotonic() + PATIENCE
        while not self._greets():
            if self.process.poll() is not None or time.monotonic() > end:
                raise TimeoutError(f"nats-server did not start: {self.log}")
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(0.02)

    def _greets(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1) as connection:
                return connection.recv(4) == b"INFO"
        except OSError:
            return False

    def send(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(PATIENCE)

    def reload(self) -> None:
        """Have it read its configuration again; comes back when it has."""
        done = self.log.count("Reloaded server configuration")
        self.send(signal.SIGHUP)
        end = time.monotonic() + PATIENCE
        while self.log.count("Reloaded server configuration") == done:
            if time.monotonic() > end:
                raise TimeoutError(f"nats-server did not reload: {self.log}")
            assert self.process is not None
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(0.02)

    def clear(self) -> None:
        """Leave nothing behind, whatever the test did."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait(PATIENCE)


class Wire:
    """Between clients and a server: each direction can be cut without anybody being told."""

    def __init__(self, port: int) -> None:
        self.port = 0
        self.connections = 0
        self.swallow_answers = self.swallow_questions = False
        self._to = port
        self._server: asyncio.Server | None = None
        self._writers: list[asyncio.StreamWriter] = []
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = int(self._server.sockets[0].getsockname()[1])

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        there, back = await asyncio.open_connection("127.0.0.1", self._to)
        self._writers += [writer, back]
        for work in (
            self._pass(reader, back, lambda: self.swallow_questions),
            self._pass(there, writer, lambda: self.swallow_answers),
        ):
            task = asyncio.create_task(work)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, cut: Callable[[], bool]
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                if not cut():
                    writer.write(data)
                    await writer.drain()
        writer.close()

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for writer in self._writers:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


async def settled(client: Client) -> None:
    """Wait until the server has all that the client said: the first flush may overtake it (see NatsLink)."""
    await client.flush()
    await client.flush()


async def when(condition: Callable[[], object], seconds: float = PATIENCE) -> None:
    """Come back as soon as the condition holds.  Raises TimeoutError."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - what it looks at tells nobody
            await asyncio.sleep(0.005)


async def when_so(condition: Callable[[], Awaitable[object]], seconds: float = PATIENCE) -> None:
    """The same for a condition that must be awaited."""
    async with asyncio.timeout(seconds):
        while not await condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
