"""Taking in the files of one guest: a port that is open for one transfer, in threads of its own.

Whoever connects must show the token that was made for this transfer; the newest who does is heard.  A file
has its name when it is complete and on the disk; until then it is a draft, which a later try goes on with.
"""

from __future__ import annotations

import contextlib
import errno
import hmac
import os
import secrets
import socket
import ssl
import threading
from pathlib import Path

import structlog

from kilonova.agent import transfer_wire as wire
from kilonova.agent.transfer_certificate import server_context
from kilonova.agent.transfer_channel import KEY, Channel, new_key
from kilonova.agent.transfer_incoming import IncomingFile
from kilonova.agent.transfer_pieces import Comparison
from kilonova.errors import HostFault
from kilonova.rpc.moves import Inbox

log = structlog.get_logger("kilonova.transfer")

STRANGERS = 8  # connections that have not shown the token yet


class FileInbox:
    """``directory`` takes the files, of ``limit`` bytes at most; ``address`` is what the sender connects to.

    Raises HostFault if no port of ``ports`` (empty: any) is free.
    """

    def __init__(self, directory: Path, limit: int, address: str, ports: range) -> None:
        self._directory = directory
        self._limit = limit
        self._token = secrets.token_urlsafe(32)
        self._context, fingerprint = server_context()
        self._listener = _listener(address, ports)
        self._turn = threading.Lock()  # of whoever is heard
        self._heard: socket.socket | None = None
        self._open: set[socket.socket] = set()
        self._guard = threading.Lock()  # of the two above
        self._closed = False
        port = self._listener.getsockname()[1]
        self.inbox = Inbox(address=address, port=port, token=self._token, fingerprint=fingerprint)
        self._threads: set[threading.Thread] = set()
        self._acceptor = threading.Thread(target=self._accept, name="inbox", daemon=True)
        self._acceptor.start()

    def close(self) -> None:
        """Hear nobody any more; returns when nothing is written any more.  Not from the event loop."""
        with self._guard:
            self._closed = True
            connections = list(self._open)
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes who accepts
        for connection in connections:
            wire.cut(connection)
        self._acceptor.join()  # from now on there are no more threads
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def _accept(self) -> None:
        while not self._closed:
            try:
                raw, _ = self._listener.accept()
            except OSError:
                if self._closed:
                    return
                continue
            with self._guard:
                self._threads = {thread for thread in self._threads if thread.is_alive()}
                welcome = not self._closed and len(self._open) < STRANGERS
                if welcome:
                    self._open.add(raw)
            if not welcome:
                raw.close()
                continue
            thread = threading.Thread(target=self._serve, args=(raw,), name="inbox", daemon=True)
            self._threads.add(thread)
            thread.start()

    def _serve(self, raw: socket.socket) -> None:
        raw.settimeout(wire.SILENCE)
        try:
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._context.wrap_socket(
                raw, server_side=True, do_handshake_on_connect=False
            ) as connection:
                with self._guard:
                    self._open.discard(raw)  # wrapping has taken its place
                    self._open.add(connection)
                    if self._closed:
                        return
                try:
                    connection.do_handshake()
                    self._hear(connection)
                finally:
                    with self._guard:
                        self._open.discard(connection)
        except (OSError, wire.Broken) as error:
            if not self._closed:
                log.info("a transfer was cut", directory=str(self._directory), reason=str(error))
        finally:
            with self._guard:
                self._open.discard(raw)
            raw.close()

    def _hear(self, connection: ssl.SSLSocket) -> None:
        hello = wire.receive(connection)
        if not isinstance(hello, wire.Hello) or not hmac.compare_digest(
            hello.token.encode(), self._token.encode()
        ):
            log.warning("somebody without the token wants to send files", peer=connection.getpeername()[0])
            return
        with self._guard:
            before, self._heard = self._heard, connection
        if before is not None:
            wire.cut(before)
        with self._turn:
            with self._guard:
                if self._heard is not connection or self._closed:
                    return
            try:
                channel = self._agreed(connection, hello)
                if channel is not None:
                    self._take(channel, hello)
            finally:
                with self._guard:
                    if self._heard is connection:
                        self._heard = None

    def _agreed(self, connection: ssl.SSLSocket, hello: wire.Hello) -> Channel | None:
        """Leave TLS for what follows, if the offer is taken; None: it is not, and that is said."""
        try:
            if len(hello.key) != KEY:
                raise wire.NotTaken(
                    "the source's agent sends files as a former release did, and has to be upgraded"
                )
            wire.check_offers(hello.files, self._limit)
            self._check_space(hello.files)
        except (wire.NotTaken, _Full) as error:
            wire.send(connection, _refusal(error))
            return None
        key = new_key()
        wire.send(connection, wire.Ready(key))
        connection.unwrap()
        return Channel(connection, ours=key, theirs=hello.key)

    def _take(self, channel: Channel, hello: wire.Hello) -> None:
        for number, file in enumerate(hello.files):
            begin = channel.receive()
            if begin != wire.Begin(file.name):
                raise wire.Broken(f"'{file.name}' was offered, and {type(begin).__name__} came")
            comparison = Comparison(hello.key, number)
            try:
                IncomingFile(channel, self._directory / file.name, file, comparison).take()
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                full = f"The disk of the destination is full: {file.name} ({file.size} bytes) does not fit."
                channel.send(_refusal(_Full(full)))
                channel.drain()
                return
            channel.send(wire.Ready())

    def _check_space(self, files: tuple[wire.Offer, ...]) -> None:
        """Before anything is sent that will not fit.  Raises _Full."""
        needed = 0
        for file in files:
            path = self._directory / file.name
            there = path if path.exists() else path.with_name(path.name + wire.PART)
            needed += file.allocated - (there.stat().st_blocks * 512 if there.exists() else 0)
        found = os.statvfs(self._directory)
        free = found.f_bavail * found.f_frsize
        if needed > free:
            raise _Full(
                f"There is no room for the guest's files: {needed >> 20} MiB are to come, and "
                f"{free >> 20} MiB are free."
            )


class _Full(Exception):
    """No space is left for what comes."""


def _listener(address: str, ports: range) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    failure: OSError | None = None
    for port in ports or (0,):
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((address, port))
            listener.listen(STRANGERS)
        except OSError as error:
            listener.close()
            failure = error
        else:
            return listener
    raise HostFault(f"No port can be opened for files at {address}: {failure}.")


def _refusal(error: Exception) -> wire.Refused:
    if isinstance(error, _Full):
        return wire.Refused(message=str(error))
    return wire.Refused(message=f"It is not taken: {error}.", host=False)
