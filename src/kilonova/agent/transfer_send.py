"""Sending the files of one guest to another host's inbox, in threads of its own."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from kilonova.agent import transfer_wire as wire
from kilonova.agent.transfer_certificate import client_context, fingerprint_of
from kilonova.agent.transfer_channel import KEY, Channel, new_key
from kilonova.agent.transfer_pieces import COMPARED, Comparison, DropBehind, agreeing, extents, is_zero, read
from kilonova.errors import Failed, HostFault, TryAgain, Unreachable
from kilonova.rpc.moves import Inbox, Progress

CONNECT = 15.0  # seconds


class FileSender:
    """``bandwidth``: bytes a second at most, 0: any number."""

    def __init__(self, uuid: str, paths: tuple[Path, ...], inbox: Inbox, bandwidth: int) -> None:
        self._uuid = uuid
        self._paths = paths
        self._inbox = inbox
        self._bandwidth = bandwidth
        self._stopped = threading.Event()
        self._connection: socket.socket | None = None
        self._began = time.monotonic()
        self._total = 0
        self._processed = 0
        self._sent = 0
        self._buffer = memoryview(bytearray(wire.PIECE))
        self._due = self._began  # when the next byte may go

    def progress(self) -> Progress:
        elapsed = time.monotonic() - self._began
        return Progress(
            uuid=self._uuid,
            phase="copying",
            disk_total=self._total,
            disk_processed=self._processed,
            disk_remaining=self._total - self._processed,
            rate=int(self._sent / elapsed) if elapsed > 0 else 0,
            elapsed=int(elapsed * 1000),
        )

    def stop(self) -> None:
        """End it as soon as may be: `send` raises TryAgain then.  May be called from anywhere."""
        self._stopped.set()
        connection = self._connection
        if connection is not None:
            wire.cut(connection)

    def send(self) -> None:
        """Send all that the other side has not yet; returns when it has checked and kept it.

        Raises Unreachable (ask again, it goes on there), HostFault (there it cannot be), Failed, TryAgain
        (stopped).  Not from the event loop.
        """
        where = f"{self._inbox.address}:{self._inbox.port}"
        try:
            with self._connect() as connection:
                self._connection = connection
                if self._stopped.is_set():
                    raise TryAgain("The transfer was stopped.")
                connection.do_handshake()
                if fingerprint_of(connection) != self._inbox.fingerprint:
                    raise Unreachable(
                        f"Somebody else answers at {where}: its certificate is not the inbox's."
                    )
                self._send_all(connection)
        except _Unreadable as error:
            raise Failed(f"The files of guest {self._uuid} cannot be read: {error}") from error
        except (OSError, wire.Broken) as error:
            if self._stopped.is_set():
                raise TryAgain("The transfer was stopped.") from error
            raise Unreachable(f"The way for files to {where} was cut: {error}.") from error

    def _connect(self) -> ssl.SSLSocket:
        raw = socket.create_connection((self._inbox.address, self._inbox.port), CONNECT)
        try:
            raw.settimeout(wire.SILENCE)
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return client_context().wrap_socket(raw, do_handshake_on_connect=False)
        except BaseException:
            raw.close()
            raise

    def _send_all(self, connection: ssl.SSLSocket) -> None:
        with _unreadable():
            offers = tuple(wire.offer(path) for path in self._paths)
        self._total, self._processed = sum(each.size for each in offers), 0
        key = new_key()
        wire.send(connection, wire.Hello(token=self._inbox.token, files=offers, key=key))
        ready = _taken(wire.receive(connection))
        if len(ready.key) != KEY:
            raise HostFault(
                f"The agent at {self._inbox.address} takes files as a former release did: upgrade it."
            )
        connection.unwrap()
        channel = Channel(connection, ours=key, theirs=ready.key)
        for number, (path, offer) in enumerate(zip(self._paths, offers, strict=True)):
            with _unreadable():
                handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                self._send_one(channel, handle, offer, Comparison(key, number))
            finally:
                os.close(handle)
            connection.settimeout(wire.SYNC)
            _taken(channel.receive())
            connection.settimeout(wire.SILENCE)

    def _send_one(self, channel: Channel, handle: int, offer: wire.Offer, comparison: Comparison) -> None:
        channel.send(wire.Begin(offer.name))
        first = self._agreed(channel, handle, offer, comparison)
        channel.send(wire.From(first))
        position = min(first * wire.PIECE, offer.size)
        self._processed += position
        alone = os.fstat(handle).st_nlink == 1  # a base image is others', too, and stays where they read it
        behind = DropBehind(handle, position)
        for start, end in _extents(handle, offer.size, position):
            data = self._buffer[: end - start]
            with _unreadable():
                read(handle, data, start)
            if is_zero(data):
                data = data[:0]
            hole = (start if data else end) - position
            if hole:
                channel.send(wire.Hole(hole))
            if data:
                channel.send_data(data)
                self._sent += len(data)
                self._pace(len(data))
            self._processed += end - position
            position = end
            if alone:
                behind.passed(position)
            if channel.is_spoken_to():  # before all has come: that is a refusal, or makes no sense
                _taken(channel.receive())
                raise wire.Broken("it was taken before it was sent")
        channel.send(wire.End())

    def _agreed(self, channel: Channel, handle: int, offer: wire.Offer, comparison: Comparison) -> int:
        """How many pieces of what is there already are the same as here."""
        have = channel.receive()
        total = wire.pieces_of(offer.size)
        if not isinstance(have, wire.Have) or not 0 <= have.pieces <= total:
            raise _surprise(have)
        same = looked = 0
        while looked < have.pieces:
            last = min(looked + COMPARED, have.pieces)
            theirs = channel.receive()
            if not isinstance(theirs, wire.Tags):
                raise _surprise(theirs)
            if same == looked:
                with _unreadable():
                    ours = comparison.tags(handle, offer.size, looked, last)
                same += agreeing(ours, theirs.tags)
            looked = last
            channel.send(wire.Working())
        return same if same == total or not have.whole else 0

    def _pace(self, length: int) -> None:
        if self._bandwidth:
            now = time.monotonic()
            self._due = max(self._due, now) + length / self._bandwidth
            self._stopped.wait(self._due - now)


class _Unreadable(Exception):
    """A file here cannot be read."""


@contextlib.contextmanager
def _unreadable() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _Unreadable(str(error)) from error


def _extents(handle: int, size: int, position: int) -> Iterator[tuple[int, int]]:
    """Where there is data, and at last the end.  Raises _Unreadable."""
    with _unreadable():
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        yield from extents(handle, size, position)
        if os.fstat(handle).st_size < size:  # which looks like a hole at the end
            raise OSError(f"it has less than {size} bytes now")
    yield size, size


def _taken(answer: wire.Message) -> wire.Ready:
    """Raises HostFault, Failed, Broken."""
    if isinstance(answer, wire.Refused):
        raise (HostFault if answer.host else Failed)(answer.message)
    if not isinstance(answer, wire.Ready):
        raise _surprise(answer)
    return answer


def _surprise(message: wire.Message) -> wire.Broken:
    return wire.Broken(f"{type(message).__name__} is no answer")
