"""One connection of a client: uvicorn's protocol, with limits on what a client may send and how slowly."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any

import msgspec
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What a client may do.  Whole seconds; bytes."""

    head_bytes: int = 65_536  # request line and headers
    head_seconds: int = 30  # until they are complete
    body_seconds: int = 120  # in which at least ``body_bytes`` of a body that is waited for must come
    body_bytes: int = 512
    write_seconds: int = 60  # without taking what is sent
    idle_seconds: int = 75  # between two requests
    linger_seconds: int = 30  # to send the rest of a body that was answered already


class ServerConfig(uvicorn.Config):
    """uvicorn's configuration, and our limits."""

    limits: Limits = Limits()


class Connection(HttpToolsProtocol):
    """``tick`` is called once a second; it ends a connection that has used up its time.

    A request that cannot be read is answered when those before it are, and is the last of its connection.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        assert isinstance(config, ServerConfig)
        self._limits = config.limits
        self._in_head = True  # between the first byte, or the connection, and the end of the headers
        self._in_message = False
        self._head_bytes = 0
        self._received = 0
        self._refusal = HTTPStatus.BAD_REQUEST
        self._deaf = False
        self._state = "head"
        self._seconds = 0

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        self._received += len(data)
        was_in_head = self._in_head
        super().data_received(data)
        if was_in_head and self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > self._limits.head_bytes:
                self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)

    def eof_received(self) -> bool:  # type: ignore[override]  # asyncio asks for it, uvicorn's says nothing
        """A client that sends no more (as busybox' nc does) may wait for its answer: it gets that first."""
        cycle = self.cycle
        if cycle is None or cycle.response_complete or cycle.more_body:
            return False  # there is nothing to answer, and never will be
        self._deaf = True
        cycle.keep_alive = False
        return True

    def on_message_begin(self) -> None:
        self._in_head = self._in_message = True
        self._head_bytes = self._seconds = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_head = False
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > self._limits.head_bytes:
            self._refusal = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
            raise ValueError("the parser turns it into an error of its own")
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._in_message = False
        super().on_message_complete()

    def _unsupported_upgrade_warning(self) -> None:
        """The request is answered as if it had not asked for an upgrade: that is no news."""

    def send_400_response(self, msg: str) -> None:
        self._refuse(self._refusal)

    def _refuse(self, status: HTTPStatus) -> None:
        """Answer what cannot be a request, once nothing is before it, and read on only to throw away."""
        if self._deaf or self.transport.is_closing():
            return
        self._deaf = True
        cycle = self.cycle
        busy = cycle is not None and not cycle.response_complete
        if busy and not cycle.more_body:
            cycle.keep_alive = False
            return
        if busy and cycle.response_started:
            self.transport.close()
            return
        if busy:  # who reads that body hears that the client is gone
            cycle.disconnected = True
            cycle.message_event.set()
        text = f"{status.value} {status.phrase}".encode()
        head = b"HTTP/1.1 %s\r\ncontent-type: text/plain\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
        self.transport.write(head % (text, len(text)) + text)
        self.transport.write_eof()  # closing with something unread would take the answer from the client

    def tick(self) -> None:
        """A second has passed."""
        state = self._now_in()
        if state != self._state:
            self._state, self._seconds, self._received = state, 0, 0
        self._seconds += 1
        limit = self._limit(state)
        if limit is None or self._seconds < limit:
            return
        if state == "body" and self._received >= self._limits.body_bytes:
            self._seconds = self._received = 0
        elif state == "write":
            self.transport.abort()
        elif state == "body" or (state == "head" and self._in_message):
            self._refuse(HTTPStatus.REQUEST_TIMEOUT)
        else:
            self.transport.close()

    def _limit(self, state: str) -> int | None:
        """Seconds that a connection may be in a state."""
        limits = self._limits
        return {
            "head": limits.head_seconds,
            "body": limits.body_seconds,
            "write": limits.write_seconds,
            "idle": limits.idle_seconds,
            "linger": limits.linger_seconds,
        }.get(state)

    def _now_in(self) -> str:
        """What the connection waits for; "work" when that is us."""
        cycle = self.cycle
        if self.flow.write_paused or self.transport.is_closing():
            return "write"
        if cycle is not None and not (cycle.response_complete or cycle.disconnected):
            return "body" if cycle.more_body and not self.flow.read_paused else "work"
        if self._deaf:
            return "linger"
        if self._in_head:
            return "head"
        return "linger" if self._in_message else "idle"
