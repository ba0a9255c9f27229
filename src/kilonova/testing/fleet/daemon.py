"""A process of a fleet: started, killed, stopped for a while, started again."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

TICK = os.sysconf("SC_CLK_TCK")
PATIENCE = 60.0  # seconds for anything, on a busy machine


class DidNotStart(Exception):
    """It ended, or did not say that it was ready in time; carries the end of what it wrote."""


class Daemon:
    """``command`` runs until it is told to end; what it writes goes to ``log``."""

    def __init__(self, name: str, command: Sequence[str], log: Path) -> None:
        self.name = name
        self.command = list(command)
        self.log = log
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def pid(self) -> int:
        assert self.process is not None, f"{self.name} was never started"
        return self.process.pid

    async def start(self, ready: bytes = b"") -> None:
        """Start it, and wait until a line that begins with ``ready`` is in its log.  Raises DidNotStart."""
        begin = self._spawn()
        deadline = time.monotonic() + PATIENCE
        while ready:
            written = self._since(begin)
            if any(line.startswith(ready) for line in written.splitlines()):
                return
            if not self.alive or time.monotonic() > deadline:
                raise DidNotStart(f"{self.name}: {written[-2000:].decode(errors='replace')}")
            await asyncio.sleep(0.02)

    def _spawn(self) -> int:
        """Where in the log its own words begin."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command, stdout=log, stderr=subprocess.STDOUT, cwd="/", start_new_session=True
            )
            return log.tell()

    def _since(self, begin: int) -> bytes:
        with self.log.open("rb") as log:
            log.seek(begin)
            return log.read()

    def send(self, number: int) -> None:
        """A signal, if it lives."""
        if self.alive:
            os.kill(self.pid, number)

    async def kill(self) -> None:
        """SIGKILL."""
        self.send(signal.SIGCONT)
        self.send(signal.SIGKILL)
        await self.ended()

    def pause(self) -> None:
        self.send(signal.SIGSTOP)

    def resume(self) -> None:
        self.send(signal.SIGCONT)

    async def stop(self) -> int:
        """SIGTERM; the exit status."""
        self.send(signal.SIGCONT)
        self.send(signal.SIGTERM)
        return await self.ended()

    async def ended(self) -> int:
        """The exit status, when it ends; one that takes too long is killed."""
        if self.process is None:
            return 0
        deadline = time.monotonic() + PATIENCE
        while self.process.poll() is None:
            if time.monotonic() > deadline:
                self.process.kill()
                self.process.wait()
            await asyncio.sleep(0.01)
        return self.process.returncode

    def children(self) -> list[int]:
        """The processes that its main thread has started and that live."""
        if not self.alive:
            return []
        return [int(each) for each in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]

    def cpu(self) -> float:
        """CPU seconds so far, user and system, of it and its children."""
        own, buried = _ticks(self.pid)
        return (own + buried + sum(_ticks(child)[0] for child in self.children())) / TICK

    def memory(self) -> float:
        """Resident MiB, of it and its children."""
        return sum(_resident(each) for each in (self.pid, *self.children()))


def _ticks(pid: int) -> tuple[int, int]:
    """CPU of a process, and of the children that it has buried."""
    fields = [int(each) for each in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[11:15]]
    return fields[0] + fields[1], fields[2] + fields[3]


def _resident(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024
