"""Two directories with an inbox between them, and what sits on the way or speaks as a sender."""

from __future__ import annotations

import contextlib
import random
import socket
import ssl
import threading
from pathlib import Path

import pytest
from msgspec.structs import replace

from kilonova.agent import transfer_wire as wire
from kilonova.agent.transfer_certificate import client_context
from kilonova.agent.transfer_channel import Channel
from kilonova.agent.transfer_inbox import FileInbox
from kilonova.agent.transfer_send import FileSender
from kilonova.errors import Unreachable
from kilonova.model.flavor import Flavor
from kilonova.rpc.messages import GuestSpec
from kilonova.rpc.moves import Inbox

UUID = "0b6f3f0e-7d57-4b8b-9a43-1d1d2f0f8c11"
MIB = 1 << 20
KEY = bytes(range(32))
GUEST = GuestSpec(
    uuid=UUID,
    name="s",
    hostname="s",
    project_id="p",
    flavor=Flavor(id=1, flavorid="1", name="f", vcpus=1, memory_mb=64, root_gb=1),
)


def content(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


class Stage:
    """A source's directory, a destination's, and an inbox."""

    def __init__(self, tmp_path: Path, limit: int = 1 << 30) -> None:
        self.source, self.target = tmp_path / "source", tmp_path / "target"
        self.source.mkdir()
        self.target.mkdir()
        self.limit = limit
        self.inbox = FileInbox(self.target, limit, "127.0.0.1", range(0))

    def write(self, name: str, data: bytes) -> Path:
        path = self.source / name
        path.write_bytes(data)
        return path

    def paths(self) -> tuple[Path, ...]:
        return tuple(sorted(self.source.iterdir()))

    def sender(self, inbox: Inbox | None = None, bandwidth: int = 0) -> FileSender:
        return FileSender(UUID, self.paths(), inbox or self.inbox.inbox, bandwidth)

    def send(self, inbox: Inbox | None = None) -> FileSender:
        sender = self.sender(inbox)
        sender.send()
        return sender

    def cut(self, **how: int) -> None:
        """Send with a cut on the way, until the inbox has heard all that came."""
        proxy = Proxy(self.inbox.inbox, **how)
        with pytest.raises(Unreachable):
            self.send(proxy.inbox)
        proxy.close()
        while self.inbox._open:
            threading.Event().wait(0.005)

    def assert_same(self) -> None:
        assert {path.name: path.read_bytes() for path in self.source.iterdir()} == {
            path.name: path.read_bytes() for path in self.target.iterdir()
        }


class Proxy:
    """Passes bytes on, ``cut`` after so many towards the inbox, or with the byte at ``flip`` changed."""

    def __init__(self, inbox: Inbox, *, cut: int | None = None, flip: int | None = None) -> None:
        self._inbox, self._cut, self._flip = inbox, cut, flip
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.inbox = replace(inbox, port=self._listener.getsockname()[1])
        self.passed = 0
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        here, _ = self._listener.accept()
        there = socket.create_connection((self._inbox.address, self._inbox.port))
        threading.Thread(target=self._back, args=(there, here), daemon=True).start()
        with here, there, contextlib.suppress(OSError):
            while data := here.recv(65536):
                if self._flip is not None and self.passed <= self._flip < self.passed + len(data):
                    changed = bytearray(data)
                    changed[self._flip - self.passed] ^= 1
                    data = bytes(changed)
                if self._cut is not None and self.passed + len(data) > self._cut:
                    there.sendall(data[: self._cut - self.passed])
                    for each in (here, there):
                        each.shutdown(socket.SHUT_RDWR)
                    return
                there.sendall(data)
                self.passed += len(data)

    def _back(self, there: socket.socket, here: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := there.recv(65536):
                here.sendall(data)
        with contextlib.suppress(OSError):  # nobody is there any more, and the other side is to know
            here.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.close()


class Hand:
    """A sender that says what a test wants; ``key`` None: as agents of the former release did."""

    def __init__(self, stage: Stage, *files: wire.Offer, key: bytes | None = KEY) -> None:
        inbox = stage.inbox.inbox
        raw = socket.create_connection((inbox.address, inbox.port))
        raw.settimeout(20)
        self.connection: ssl.SSLSocket = client_context().wrap_socket(raw)
        wire.send(self.connection, wire.Hello(token=inbox.token, files=files, key=key or b""))
        self.greeting = wire.receive(self.connection)
        if isinstance(self.greeting, wire.Ready):
            self.connection.unwrap()
            self.channel = Channel(self.connection, ours=KEY, theirs=self.greeting.key)

    def say(self, *messages: wire.Message | bytes) -> None:
        """Bytes are data."""
        for each in messages:
            if isinstance(each, bytes):
                self.channel.send_data(memoryview(each))
            else:
                self.channel.send(each)

    def begin(self, name: str = "disk") -> wire.Message:
        self.say(wire.Begin(name))
        return self.hear()

    def hear(self) -> wire.Message:
        return self.channel.receive()

    def assert_cut(self) -> None:
        """At once, and not because nothing was said for long."""
        with pytest.raises((wire.Broken, ConnectionError)):
            wire.fill(self.connection, memoryview(bytearray(1)))
        self.connection.close()


def sealed(*contents: wire.Message | bytes, key: bytes = KEY) -> list[bytes]:
    """The records of one direction, each as it would be on the wire."""
    here, there = socket.socketpair()
    made = []
    with here, there:
        channel = Channel(here, ours=key, theirs=key)
        for each in contents:
            if isinstance(each, bytes):
                channel.send_data(memoryview(each))
            else:
                channel.send(each)
            made.append(there.recv(1 << 20))
    return made


def offered(name: str = "disk", size: int = 10, allocated: int = 10) -> wire.Offer:
    return wire.Offer(name=name, size=size, allocated=allocated)
