"""How the files of guests are read: where they have data, and whether two hosts have the same pieces."""

from __future__ import annotations

import errno
import hmac
import os
from collections.abc import Iterator

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from kilonova.agent.transfer_channel import TAG
from kilonova.agent.transfer_wire import PIECE, pieces_of

LEAST_HOLE = 1 << 16  # bytes: a smaller one costs more to be left out than to be sent
COMPARED = 128  # pieces at a time
WINDOW = 8 << 20  # bytes after which the kernel is told what has been passed
BEHIND = 256 << 20  # bytes that may still be on their way to the disk then
NO_DATA = bytes(TAG)  # the tag of zeros
_ZEROS = bytes(PIECE)


def extents(handle: int, size: int, start: int) -> Iterator[tuple[int, int]]:
    """Beginning and end of what has data from ``start`` on, of PIECE bytes at most; between are holes.

    Raises OSError.
    """
    begin = _seek(handle, start, os.SEEK_DATA, size)
    while begin < size:
        end = _seek(handle, begin, os.SEEK_HOLE, size)
        after = _seek(handle, end, os.SEEK_DATA, size)
        while end < after < end + LEAST_HOLE:
            end = _seek(handle, after, os.SEEK_HOLE, size)
            after = _seek(handle, end, os.SEEK_DATA, size)
        for each in range(begin, end, PIECE):
            yield each, min(each + PIECE, end)
        begin = after


def _seek(handle: int, start: int, what: int, size: int) -> int:
    try:
        return min(os.lseek(handle, start, what), size)
    except OSError as error:
        if error.errno == errno.ENXIO:  # there is nothing but a hole up to the end
            return size
        if error.errno == errno.EINVAL:  # this file system cannot tell
            return start if what == os.SEEK_DATA else size
        raise


def read(handle: int, view: memoryview, start: int) -> None:
    """Fill ``view``.  Raises OSError, also when the file has become shorter."""
    while view:
        count = os.preadv(handle, [view], start)
        if not count:
            raise OSError(f"it ends after {start} bytes")
        view, start = view[count:], start + count


def is_zero(view: memoryview) -> bool:
    return view == (_ZEROS if len(view) == PIECE else _ZEROS[: len(view)])


class DropBehind:
    """A file that passes once, from ``position`` on, is not to push out of the page cache what others read.

    What was written is sent to the disk at once, so little is left for the end; what is there already, or was
    only read, is dropped.
    """

    def __init__(self, handle: int, position: int) -> None:
        self._handle = handle
        self._done = position

    def passed(self, position: int) -> None:
        if position - self._done >= WINDOW:
            begin = max(self._done - BEHIND, 0)
            os.posix_fadvise(self._handle, begin, position - begin, os.POSIX_FADV_DONTNEED)
            self._done = position


class Comparison:
    """The tags (GMAC) of one file's pieces, for who holds the connection's ``key`` and the file's number.

    The key is new with each connection, so nobody can have made two pieces that have the same tag.
    """

    def __init__(self, key: bytes, number: int) -> None:
        self._cipher = AESGCM(hmac.digest(key, b"kilonova transfer: comparison", "sha256"))
        self._number = number.to_bytes(4, "big")
        self._buffer = memoryview(bytearray(PIECE))

    def tags(self, handle: int, size: int, first: int, last: int) -> bytes:
        """Of the pieces from ``first`` to before ``last``, one after the other.  Raises OSError."""
        made = bytearray()
        data_at = first * PIECE  # where the next data is, as far as has been looked
        for number in range(first, min(last, pieces_of(size))):
            start, end = number * PIECE, min((number + 1) * PIECE, size)
            if data_at <= start:
                data_at = _seek(handle, start, os.SEEK_DATA, size)
            if data_at >= end:
                made += NO_DATA
                continue
            view = self._buffer[: end - start]
            read(handle, view, start)
            nonce = self._number + number.to_bytes(8, "big")
            made += NO_DATA if is_zero(view) else self._cipher.encrypt(nonce, b"", view)
        return bytes(made)


def agreeing(ours: bytes, theirs: bytes) -> int:
    """How many pieces are the same, from the first on."""
    count = min(len(ours), len(theirs)) // TAG
    for number in range(count):
        place = slice(number * TAG, (number + 1) * TAG)
        if not hmac.compare_digest(ours[place], theirs[place]):
            return number
    return count
