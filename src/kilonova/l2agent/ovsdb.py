"""A client of OVSDB (RFC 7047) for asyncio: transactions, one monitor, reconnection.

The connection is kept by one task.  Whenever it is made anew the monitored tables are read again and the
whole content is given to the listener, so that nothing that happened meanwhile is missed.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import msgspec
import structlog

from kilonova.clock import Clock
from kilonova.errors import HostFault, Invalid, TryAgain, Unreachable
from kilonova.l2agent.jsonstream import JsonStream

log = structlog.get_logger("kilonova.l2agent")

Row = dict[str, Any]
Operation = dict[str, Any]
Updates = dict[str, dict[str, dict[str, Row]]]
"""Table -> row's uuid -> {"old": changed columns, "new": all monitored columns}."""

_DATABASE = "Open_vSwitch"
_FIRST_WAIT, _LONGEST_WAIT = 0.1, 5.0


class Listener(Protocol):
    """Hears of the monitored tables, in the event loop."""

    def content(self, updates: Updates) -> None:
        """Everything there is: forget what was known before."""

    def changed(self, updates: Updates) -> None: ...

    def lost(self) -> None:
        """The connection is gone; ``content`` follows when it is back."""


class Refusal(HostFault):
    """The database will not do this: a constraint, an unknown column."""


class Ovsdb:
    """One connection.  ``open`` first, ``close`` at the end; both from the loop that uses it."""

    def __init__(self, connection: str, clock: Clock, *, timeout: float = 10.0) -> None:
        """``connection`` is ``unix:PATH`` or ``tcp:ADDRESS:PORT``.  Raises Invalid for anything else."""
        self.connection = connection
        self._unix, self._tcp = _parse(connection)
        self._clock = clock
        self._timeout = timeout
        self._tables: Mapping[str, list[str]] = {}
        self._listener: Listener | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._monitor = 0  # the number of the call whose answer is the content of the tables
        self._number = 0
        self._keeper: asyncio.Task[None] | None = None
        self._reading: asyncio.Task[None] | None = None

    @property
    def directory(self) -> Path:
        """Where the switch keeps its sockets, as far as the connection tells."""
        return self._unix.parent if self._unix else Path("/run/openvswitch")

    @property
    def connected(self) -> bool:
        return self._writer is not None

    async def open(self, tables: Mapping[str, list[str]], listener: Listener) -> None:
        """Connect and monitor the named columns; returns when ``listener`` has the content.

        Raises Unreachable if there is no server now; once open, the connection is kept for ever.
        """
        self._tables, self._listener = tables, listener
        try:
            await self._connect()
        except (Unreachable, HostFault):
            await self._disconnect()
            raise
        self._keeper = asyncio.create_task(self._keep(), name="ovsdb")

    @contextlib.asynccontextmanager
    async def briefly(self) -> AsyncIterator[Ovsdb]:
        """Connected for a few transactions, instead of ``open``.  Raises Unreachable."""
        try:
            await self._connect()
            yield self
        finally:
            await self._disconnect()

    async def close(self) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper
            self._keeper = None
        await self._disconnect()

    async def transact(self, *operations: Operation) -> list[dict[str, Any]]:
        """Run operations in one transaction; gives the result of each.

        Raises Unreachable (it may or may not have been done), TryAgain (another was faster), Refusal.
        """
        results = await self._call("transact", [_DATABASE, *operations])
        for result in results:
            if result and "error" in result:
                text = f"{result['error']}: {result.get('details', '')}".rstrip(": ")
                if result["error"] in ("timed out", "aborted"):
                    raise TryAgain(f"The switch's database did not take a change: {text}")
                raise Refusal(f"The switch's database refuses a change: {text}")
        return [result or {} for result in results]

    async def _call(self, method: str, params: list[Any]) -> Any:
        if self._writer is None:
            raise Unreachable(f"The switch's database at {self.connection} is not connected.")
        self._number += 1
        number = self._number
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            self._send({"method": method, "params": params, "id": number})
            async with asyncio.timeout(self._timeout):
                return await answer
        except TimeoutError:
            if self._writer is not None:
                self._writer.transport.abort()  # the keeper makes a new connection
            raise Unreachable(
                f"The switch's database at {self.connection} did not answer in {self._timeout:g} seconds."
            ) from None
        finally:
            self._waiting.pop(number, None)

    def _send(self, message: dict[str, Any]) -> None:
        assert self._writer is not None
        self._writer.write(msgspec.json.encode(message))

    async def _connect(self) -> None:
        try:
            async with asyncio.timeout(self._timeout):
                if self._unix:
                    reader, writer = await asyncio.open_unix_connection(str(self._unix))
                else:
                    reader, writer = await asyncio.open_connection(*self._tcp)
                    link: socket.socket = writer.get_extra_info("socket")
                    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        except (OSError, TimeoutError) as error:
            reason = str(error) or "it does not answer"
            raise Unreachable(
                f"No connection to the switch's database at {self.connection}: {reason}. "
                "Is Open vSwitch running on this host?"
            ) from error
        self._writer = writer
        self._reading = asyncio.create_task(self._read(reader), name="ovsdb reader")
        if self._listener is not None:
            requests = {table: {"columns": columns} for table, columns in self._tables.items()}
            self._monitor = self._number + 1
            await self._call("monitor", [_DATABASE, "all", requests])

    async def _disconnect(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._reading
            self._reading = None
        self._hang_up()

    async def _keep(self) -> None:
        wait = _FIRST_WAIT
        while True:
            if self._reading is not None:
                await asyncio.wait([self._reading])
                await self._disconnect()
                log.warning("the switch's database is gone", connection=self.connection)
                assert self._listener is not None
                self._listener.lost()
            await self._clock.sleep(wait)
            try:
                await self._connect()
            except (Unreachable, HostFault):
                await self._disconnect()
                wait = min(wait * 2, _LONGEST_WAIT)
            else:
                log.info("the switch's database is back", connection=self.connection)
                wait = _FIRST_WAIT

    async def _read(self, reader: asyncio.StreamReader) -> None:
        stream = JsonStream()
        try:
            while data := await reader.read(1 << 16):
                for text in stream.feed(data):
                    self._hear(msgspec.json.decode(text))
        except (OSError, ValueError, msgspec.DecodeError) as error:
            log.warning("the switch's database broke off", connection=self.connection, error=str(error))
        except Exception:  # the keeper makes a new connection, and the listener gets everything once more
            log.exception("what the switch's database said was not understood", connection=self.connection)
        finally:
            self._hang_up()

    def _hang_up(self) -> None:
        if self._writer is not None:
            self._writer.transport.abort()
            self._writer = None
        gone = Unreachable(f"The switch's database at {self.connection} went away in the middle of a call.")
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(gone)

    def _hear(self, message: dict[str, Any]) -> None:
        match message.get("method"):
            case "echo":  # the server drops clients that do not answer
                self._send({"id": message["id"], "result": message["params"], "error": None})
            case "update":
                if self._listener is not None:
                    self._listener.changed(message["params"][1])
            case None:
                answer = self._waiting.get(message.get("id", 0))
                if answer is None or answer.done():
                    return
                if message.get("error"):
                    answer.set_exception(Refusal(f"The switch's database says: {message['error']}"))
                    return
                if message["id"] == self._monitor and self._listener is not None:
                    self._listener.content(message["result"])  # here, before any update that follows it
                answer.set_result(message["result"])


def _parse(connection: str) -> tuple[Path | None, tuple[str, int]]:
    kind, _, rest = connection.partition(":")
    if kind == "unix" and rest.startswith("/"):
        return Path(rest), ("", 0)
    if kind == "tcp":
        address, _, port = rest.rpartition(":")
        if address and port.isdigit() and 0 < int(port) < 65536:
            return None, (address.strip("[]"), int(port))
    raise Invalid(f"ovsdb_connection '{connection}' is neither unix:/PATH nor tcp:ADDRESS:PORT.")


def as_map(value: Any) -> dict[str, str]:
    """A map column: OVSDB sends ``["map", [[key, value], ...]]``."""
    return dict(value[1]) if isinstance(value, list) and value[0] == "map" else {}


def as_set(value: Any) -> list[Any]:
    """A set column: OVSDB sends one element bare, none or several as ``["set", [...]]``."""
    if isinstance(value, list) and value[0] == "set":
        return list(value[1])
    return [value]


def as_optional(value: Any) -> Any:
    """A column of at most one value; None if it is empty."""
    found = as_set(value)
    return found[0] if found else None
