"""The flow table of a bridge: changed in atomic bundles by ovs-ofctl, and watched over a connection.

A switch that restarts has lost its flows and says so to nobody; but its management connection breaks.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path

import structlog

from kilonova.clock import Clock
from kilonova.errors import Unreachable
from kilonova.programs import run

log = structlog.get_logger("kilonova.l2agent")

_VERSION = 5  # OpenFlow 1.4, the first with bundles
_HELLO, _ECHO_REQUEST, _ECHO_REPLY = 0, 2, 3
_HEADER = struct.Struct("!BBHI")
_RETRY = 0.1


class FlowTable:
    """The flows of one bridge, as lines that ovs-ofctl reads."""

    def __init__(self, directory: Path, bridge: str) -> None:
        self.socket = directory / f"{bridge}.mgmt"

    async def change(self, lines: list[str]) -> None:
        """Apply ``add ...`` and ``delete ...`` lines in order, all at one moment.

        Returns when the switch has confirmed them.  Raises HostFault, TryAgain.
        """
        if lines:
            await self._ofctl("add-flows", lines)

    async def replace(self, flows: list[str]) -> None:
        """Make these the only flows, at one moment; those that are there already keep their counters."""
        await self._ofctl("replace-flows", flows)

    async def match_fragments(self) -> None:
        """Have the first fragment of a packet match by its ports, which OVS by itself takes for 0.

        Holds until the switch ends.
        """
        await run(*self._command("set-frags"), self._target, "nx-match")

    async def dump(self) -> list[str]:
        """The flows that are in, without statistics."""
        text = await run(*self._command("dump-flows"), self._target, "--no-stats", "--no-names")
        return [line.strip() for line in text.splitlines() if "actions=" in line]

    async def has(self, cookie: int) -> bool:
        """Whether any flow of that cookie is in."""
        command = [*self._command("dump-flows"), self._target, f"cookie={cookie:#x}/-1", "--no-stats"]
        return "actions=" in await run(*command)

    async def send_from(self, ofport: int, frame: bytes) -> None:
        """Forward a frame as if it had come in by a port; its flows are not asked."""
        packet = f"in_port={ofport},packet={frame.hex()},actions=NORMAL"
        await run(*self._command("packet-out"), self._target, packet)

    async def forget_connections(self, zone: int) -> None:
        """Empty a zone of connection tracking."""
        await run("ovs-ofctl", "ct-flush-zone", self._target, str(zone))

    @property
    def _target(self) -> str:
        return f"unix:{self.socket}"

    def _command(self, verb: str) -> list[str]:
        return ["ovs-ofctl", "-O", "OpenFlow14", verb]

    async def _ofctl(self, verb: str, lines: list[str]) -> None:
        command = [*self._command("--bundle"), verb, self._target, "-"]
        await run(*command, stdin="\n".join(lines) + "\n")


async def answers(path: Path, timeout: float) -> None:
    """Return when the switch behind a bridge's management socket says hello.

    Raises Unreachable if it does not within ``timeout`` seconds.
    """
    try:
        async with asyncio.timeout(timeout):
            reader, writer = await asyncio.open_unix_connection(str(path))
            try:
                writer.write(_hello())
                await reader.readexactly(_HEADER.size)
            finally:
                writer.transport.abort()
    except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
        reason = str(error) or f"it said nothing within {timeout:g} seconds"
        raise Unreachable(
            f"The switch at {path} does not answer: {reason}. Is ovs-vswitchd running?"
        ) from error


def _hello() -> bytes:
    return _HEADER.pack(_VERSION, _HELLO, _HEADER.size, 1)


class FlowWatch:
    """Keeps a management connection to the bridge; calls ``on_up`` each time when it has been made."""

    def __init__(self, path: Path, clock: Clock, on_up: Callable[[], Awaitable[None]]) -> None:
        self._path = path
        self._clock = clock
        self._on_up = on_up
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._keep(), name="openflow")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    async def _keep(self) -> None:
        while True:
            try:
                await self._session()
            except (OSError, asyncio.IncompleteReadError) as error:
                log.debug("no connection to the bridge", path=str(self._path), error=str(error))
            await self._clock.sleep(_RETRY)

    async def _session(self) -> None:
        reader, writer = await asyncio.open_unix_connection(str(self._path))
        try:
            writer.write(_hello())
            greeted = False
            while True:
                _, kind, length, number = _HEADER.unpack(await reader.readexactly(_HEADER.size))
                body = await reader.readexactly(max(0, length - _HEADER.size))
                if kind == _ECHO_REQUEST:
                    header = _HEADER.pack(_VERSION, _ECHO_REPLY, _HEADER.size + len(body), number)
                    writer.write(header + body)
                if not greeted:
                    greeted = True
                    await self._on_up()
        finally:
            writer.transport.abort()
