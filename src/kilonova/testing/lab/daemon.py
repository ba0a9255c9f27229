"""A process on a host of the lab, steered from outside it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from kilonova.testing.fleet.daemon import PATIENCE, Daemon, DidNotStart

ENTER = ("nsenter", "--net", "--mount", "--uts", "--ipc", "--pid")


def entering(init: int, command: Sequence[str]) -> list[str]:
    """The command, as run on the host whose first process has this pid; it ends with whoever waits for it."""
    return [*ENTER, "--target", str(init), "--", "setpriv", "--pdeathsig", "KILL", *command]


class HostDaemon(Daemon):
    """Its ``process`` is the one that waits for it; ``pid`` is its own, as we see it."""

    def __init__(self, name: str, command: Sequence[str], log: Path, init: Callable[[], int]) -> None:
        super().__init__(name, command, log)
        self._inside = list(command)
        self._init = init

    def _spawn(self) -> int:
        self.command = entering(self._init(), self._inside)  # the host may have been started anew
        return super()._spawn()

    @property
    def pid(self) -> int:
        """Raises DidNotStart for one that has ended."""
        outer = super().pid
        children = Path(f"/proc/{outer}/task/{outer}/children")
        deadline = time.monotonic() + PATIENCE
        while self.alive and time.monotonic() < deadline:
            if found := children.read_text().split():
                return int(found[0])
        raise DidNotStart(f"{self.name} does not run.")

    def send(self, number: int) -> None:
        if not self.alive:
            return
        os.kill(self.pid, number)
        if number == signal.SIGCONT:
            os.kill(super().pid, number)  # who waits for a process stops with it

    async def buried(self) -> None:
        """The host has gone, and it with the host: have who waits for it end, too."""
        if self.alive:
            os.kill(super().pid, signal.SIGCONT)
        await self.ended()
