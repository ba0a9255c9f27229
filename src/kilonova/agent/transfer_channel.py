"""What agents say to each other after their greeting: sealed records, of half a mebibyte where they are data.

TLS has records of 16 KiB, each of which costs Python a call and the kernel two; that, and not the cipher, is
what makes it slow here.  So only the greeting is TLS's: within it each side tells a key that it has made for
what it will say on this one connection.  A record is

    four bytes: the length of its content, and in the first bit whether that is data or a message
    the content, sealed with AES-256-GCM, which vouches for these four bytes, too
    sixteen bytes: the tag

and the nonce is the record's number, which is not sent.  A record that is changed, left out, repeated, out of
order, or of another connection or direction is therefore none; that nothing is missing at the end is told by
the messages.
"""

from __future__ import annotations

import hmac
import os
import select
import socket
import struct
import time

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from kilonova.agent import transfer_wire as wire

KEY = 32
TAG = 16
RECORD = wire.PIECE + TAG  # the longest, without its head
RECORDS_A_KEY = 1 << 16  # 32 GiB: GCM's bound is 2^-67 there, where TLS allows 2^-57
DRAIN = 10.0  # seconds

_HEAD = struct.Struct(">I")
_DATA = 1 << 31


def new_key() -> bytes:
    return os.urandom(KEY)


class _Direction:
    """A key that nobody else seals with, and the number of its next record."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._cipher = AESGCM(key)
        self._number = 0

    def next(self) -> tuple[AESGCM, bytes]:
        """The cipher for a record, and its nonce."""
        if self._number == RECORDS_A_KEY:
            self._key = hmac.digest(self._key, b"kilonova transfer: next key", "sha256")
            self._cipher = AESGCM(self._key)
            self._number = 0
        nonce = self._number.to_bytes(12, "big")
        self._number += 1
        return self._cipher, nonce


class Channel:
    """``ours`` and ``theirs``: the keys of both directions.  One thread sends, one receives."""

    def __init__(self, connection: socket.socket, ours: bytes, theirs: bytes) -> None:
        self._connection = connection
        self._sending = _Direction(ours)
        self._receiving = _Direction(theirs)
        self._record = memoryview(bytearray(_HEAD.size + RECORD))
        self._sealed = memoryview(bytearray(RECORD))
        self._incoming = select.poll()
        self._incoming.register(connection, select.POLLIN)

    def send(self, message: wire.Message) -> None:
        """Raises OSError."""
        self._send(wire.encode(message), 0)

    def send_data(self, data: memoryview) -> None:
        """At most PIECE bytes.  Raises OSError."""
        self._send(data, _DATA)

    def _send(self, content: bytes | memoryview, kind: int) -> None:
        head = _HEAD.pack(kind | len(content))
        record = self._record[: len(head) + len(content) + TAG]
        record[: len(head)] = head
        cipher, nonce = self._sending.next()
        cipher.encrypt_into(nonce, content, head, record[len(head) :])
        self._connection.sendall(record)

    def receive_into(self, buffer: memoryview) -> wire.Message | int:
        """The next message, or how many bytes of data there are at the beginning of ``buffer`` (of PIECE
        bytes).  Raises OSError, Broken."""
        head = bytearray(_HEAD.size)
        wire.fill(self._connection, memoryview(head))
        (found,) = _HEAD.unpack(head)
        length, data = found & ~_DATA, bool(found & _DATA)
        if length > (wire.PIECE if data else wire.LONGEST_FRAME):
            raise wire.Broken(f"a record of {length} bytes")
        sealed, content = self._sealed[: length + TAG], buffer[:length]
        wire.fill(self._connection, sealed)
        cipher, nonce = self._receiving.next()
        try:
            cipher.decrypt_into(nonce, sealed, head, content)
        except InvalidTag as error:
            raise wire.Broken("a record that was not sent, or not in its turn") from error
        return length if data else wire.decode(content)

    def receive(self) -> wire.Message:
        """The next message that is no sign of life.  Raises OSError, Broken, also for data."""
        buffer = memoryview(bytearray(wire.PIECE))
        while True:
            message = self.receive_into(buffer)
            if isinstance(message, int):
                raise wire.Broken("data where a message should be")
            if not isinstance(message, wire.Working):
                return message

    def is_spoken_to(self) -> bool:
        """Whether there is something to receive, or the other side is gone."""
        return bool(self._incoming.poll(0))

    def drain(self) -> None:
        """Let the other side hear what was said last: bytes that nobody has read would reset the connection
        when it ends, and take that with them.  Raises OSError."""
        self._connection.shutdown(socket.SHUT_WR)
        until = time.monotonic() + DRAIN
        while self._connection.recv_into(self._sealed) and time.monotonic() < until:
            pass
