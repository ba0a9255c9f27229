"""PostgreSQL and NATS on scratch directories, as a fleet's own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

from kilonova.testing.fleet.daemon import PATIENCE, Daemon, DidNotStart
from kilonova.testing.ports import free_port


def _binaries() -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    if not found:
        raise DidNotStart("PostgreSQL is not installed: `apt install postgresql`.")
    return found[-1].parent


def _as_postgres(command: list[str]) -> list[str]:
    """PostgreSQL refuses to run as root."""
    return (
        ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups", *command]
        if os.geteuid() == 0
        else command
    )


class PostgresServer(Daemon):
    """On a unix socket in its directory only.  ``safe``: what is committed survives a kill of the machine."""

    def __init__(self, directory: Path, *, safe: bool = True) -> None:
        self.directory = directory
        self._data = directory / "data"
        self._bin = _binaries()
        options = ["listen_addresses=", "max_connections=200", f"fsync={'on' if safe else 'off'}"]
        command = [str(self._bin / "postgres"), "-D", str(self._data), "-k", str(directory)]
        for option in options:
            command += ["-c", option]
        super().__init__("postgres", _as_postgres(command), directory / "postgres.log")

    def conninfo(self, database: str) -> str:
        return f"host={self.directory} user=kilonova dbname={database}"

    async def up(self) -> None:
        """Start it, made if need be, and wait until it answers."""
        if not self._data.exists():
            self.directory.mkdir(parents=True, exist_ok=True)
            self.directory.chmod(0o777)
            command = [
                str(self._bin / "initdb"),
                "-D",
                str(self._data),
                "-A",
                "trust",
                "-U",
                "kilonova",
                "-N",
            ]
            await asyncio.to_thread(
                subprocess.run, _as_postgres(command), check=True, capture_output=True, cwd="/"
            )
        (self._data / "postmaster.pid").unlink(missing_ok=True)
        await self.start()
        deadline = time.monotonic() + PATIENCE
        ready = [str(self._bin / "pg_isready"), "-q", "-h", str(self.directory)]
        while (await asyncio.to_thread(subprocess.run, ready, check=False)).returncode:
            if not self.alive or time.monotonic() > deadline:
                raise DidNotStart(f"PostgreSQL: {self.log.read_text()[-2000:]}")
            await asyncio.sleep(0.05)

    async def make(self, database: str) -> None:
        command = [str(self._bin / "createdb"), "-h", str(self.directory), "-U", "kilonova", database]
        await asyncio.to_thread(subprocess.run, command, check=True, capture_output=True)

    async def kill(self) -> None:
        """SIGKILL to the postmaster and all of its children, as an end of the machine would be."""
        children = self.children()
        await super().kill()
        _signal(children, signal.SIGKILL)

    async def stop(self) -> int:
        """The fast way, which does not wait for clients to leave."""
        self.resume()
        self.send(signal.SIGINT)
        return await self.ended()

    def pause(self) -> None:
        """The postmaster and its children: a connection is served by one of these."""
        super().pause()
        _signal(self.children(), signal.SIGSTOP)

    def resume(self) -> None:
        super().resume()
        _signal(self.children(), signal.SIGCONT)


def _signal(pids: list[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


class NatsServer(Daemon):
    """On a port of ``address``; ``config`` is what its configuration has beside that."""

    def __init__(self, directory: Path, config: str = "", address: str = "127.0.0.1") -> None:
        program = shutil.which("nats-server", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
        if program is None:
            raise DidNotStart("nats-server is not installed: `apt install nats-server`.")
        directory.mkdir(parents=True, exist_ok=True)
        self.address = address
        self.port = free_port()
        self.monitor = f"http://127.0.0.1:{free_port()}"
        self.file = directory / "nats.conf"
        monitor = self.monitor.removeprefix("http://")
        self.file.write_text(f'listen: "{address}:{self.port}"\nhttp: "{monitor}"\n{config}')
        super().__init__("nats-server", [program, "-c", str(self.file)], directory / "nats.log")

    @property
    def url(self) -> str:
        return f"nats://{self.address}:{self.port}"

    async def up(self) -> None:
        """Start it and wait until it answers.  Raises DidNotStart."""
        await self.start()
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                _, writer = await asyncio.open_connection(self.address, self.port)
            except OSError:
                if not self.alive or time.monotonic() > deadline:
                    raise DidNotStart(f"nats-server: {self.log.read_text()[-2000:]}") from None
                await asyncio.sleep(0.02)
            else:
                writer.close()
                return
