"""What two agents say to each other while the files of a guest travel.

They greet each other within TLS, in frames of four bytes of length and a message (``send``, ``receive``), and
tell each other keys.  Then TLS is left, and all that follows goes through a `Channel` under these keys.
"""

from __future__ import annotations

import contextlib
import re
import socket
import struct
from pathlib import Path

import msgspec

PIECE = 1 << 19  # fewer bytes cost more calls, more do not stay in a processor's cache from hand to hand
LONGEST_FRAME = 1 << 16
MOST_FILES = 16
SILENCE = 60.0  # seconds without a word after which the other side is given up
SYNC = 900.0  # seconds that a file may take to be on the disk
PART = ".part"  # ends the names of files that are not complete

_LENGTH = struct.Struct(">I")
_NAME = re.compile(r"[a-z][a-z0-9]{0,31}(\.[a-z0-9]{1,31})?")


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """One file: ``size`` of it, ``allocated`` of that on the disk; ``public``: others may read it."""

    name: str
    size: int
    allocated: int
    public: bool = False


class Hello(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """``key`` seals what the sender will say; agents of before have none."""

    token: str
    files: tuple[Offer, ...]
    key: bytes = b""


class Begin(msgspec.Struct, frozen=True, tag=True):
    name: str


class Have(msgspec.Struct, frozen=True, tag=True):
    """The first ``pieces`` may be there: their `Tags` follow.  ``whole``: only all of them are of use."""

    pieces: int
    whole: bool = False


class Tags(msgspec.Struct, frozen=True, tag=True):
    """Of the next pieces that are there, one after the other."""

    tags: bytes


class From(msgspec.Struct, frozen=True, tag=True):
    """What begins with this piece will come, as data and holes."""

    piece: int


class Hole(msgspec.Struct, frozen=True, tag=True):
    """So many zeros."""

    length: int


class End(msgspec.Struct, frozen=True, tag=True):
    """Of a file."""


class Working(msgspec.Struct, frozen=True, tag=True):
    """Still there."""


class Ready(msgspec.Struct, frozen=True, tag=True):
    """Go on: the offer is taken (``key`` seals what the inbox will say), or the file is on the disk."""

    key: bytes = b""


class Refused(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """``host``: another host may do better."""

    message: str
    host: bool = True


Message = Hello | Begin | Have | Tags | From | Hole | End | Working | Ready | Refused
encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Message).decode


class Broken(Exception):
    """The other side is gone, or does not say what it should."""


class NotTaken(Exception):
    """What is offered can never be taken."""


def decode(data: bytearray | memoryview) -> Message:
    """Raises Broken."""
    try:
        message: Message = _decode(data)
    except msgspec.MsgspecError as error:
        raise Broken(f"a message that is none: {error}") from error
    return message


def send(connection: socket.socket, message: Message) -> None:
    """Raises OSError."""
    data = encode(message)
    connection.sendall(_LENGTH.pack(len(data)) + data)


def receive(connection: socket.socket) -> Message:
    """Raises OSError, Broken."""
    head = bytearray(_LENGTH.size)
    fill(connection, memoryview(head))
    (length,) = _LENGTH.unpack(head)
    if length > LONGEST_FRAME:
        raise Broken(f"a message of {length} bytes")
    data = bytearray(length)
    fill(connection, memoryview(data))
    return decode(data)


def fill(connection: socket.socket, view: memoryview) -> None:
    """Read until ``view`` is full.  Raises OSError, Broken."""
    while view:
        count = connection.recv_into(view)
        if not count:
            raise Broken("the connection has ended")
        view = view[count:]


def cut(connection: socket.socket) -> None:
    """Whoever reads or writes wakes up and fails.  From any thread.

    Not by SSLSocket's own ``shutdown``: that forgets TLS first, and what another thread is about to say
    would go out in clear.
    """
    with contextlib.suppress(OSError):
        socket.socket.shutdown(connection, socket.SHUT_RDWR)


def check_offers(files: tuple[Offer, ...], limit: int) -> None:
    """Raises NotTaken for names that are none of a guest's files, and for more than ``limit`` bytes."""
    names = [file.name for file in files]
    wrong = [name for name in names if not _NAME.fullmatch(name) or name.endswith(PART)]
    if wrong or len(set(names)) != len(names) or len(names) > MOST_FILES:
        raise NotTaken(f"files with the names {names!r}"[:500])
    if any(file.size < 0 or file.allocated < 0 for file in files):
        raise NotTaken("files of less than nothing")
    total = sum(file.size for file in files)
    if total > limit:
        raise NotTaken(f"files of {total} bytes, where the guest can have {limit}")


def offer(path: Path) -> Offer:
    """Raises OSError."""
    found = path.lstat()
    return Offer(
        name=path.name,
        size=found.st_size,
        allocated=found.st_blocks * 512,
        public=bool(found.st_mode & 0o004),
    )


def pieces_of(size: int) -> int:
    return -(-size // PIECE)
