"""One file on its way in: what is there already, what comes, and when it counts."""

from __future__ import annotations

import os
from pathlib import Path

from kilonova.agent import transfer_wire as wire
from kilonova.agent.transfer_channel import Channel
from kilonova.agent.transfer_pieces import COMPARED, Comparison, DropBehind
from kilonova.fsync import fsync_directory


class IncomingFile:
    """``path`` is what it will be; until it is complete and on the disk it is a draft beside it."""

    def __init__(self, channel: Channel, path: Path, file: wire.Offer, comparison: Comparison) -> None:
        self._channel = channel
        self._path = path
        self._file = file
        self._comparison = comparison

    def take(self) -> None:
        """Raises OSError, Broken; what has come until then is kept."""
        size, total = self._file.size, wire.pieces_of(self._file.size)
        there = self._path.exists() and self._path.stat().st_size == size
        if there and self._compare(self._path, total, whole=True) == total:
            if self._channel.receive() != wire.End():
                raise wire.Broken(f"something more of {self._file.name}")
            return
        draft = self._path.with_name(self._path.name + wire.PART)
        handle = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            found = os.fstat(handle).st_size
            kept = total if found == size else min(found, size) // wire.PIECE
            first = 0 if there else self._compare(draft, kept)
            os.ftruncate(handle, min(first * wire.PIECE, size))
            self._write(handle, min(first * wire.PIECE, size))
            os.ftruncate(handle, size)
            os.fchmod(handle, 0o644 if self._file.public else 0o600)
            os.fsync(handle)
        finally:
            os.close(handle)
        draft.replace(self._path)
        fsync_directory(self._path.parent)

    def _compare(self, path: Path, there: int, *, whole: bool = False) -> int:
        """Tell what is there already; the piece that the sender goes on with."""
        self._channel.send(wire.Have(there, whole))
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            for first in range(0, there, COMPARED):
                last = min(first + COMPARED, there)
                self._channel.send(wire.Tags(self._comparison.tags(handle, self._file.size, first, last)))
        finally:
            os.close(handle)
        answer = self._channel.receive()
        if not isinstance(answer, wire.From) or not 0 <= answer.piece <= there:
            raise wire.Broken(f"{answer!r} for a file of which there are {there} pieces")
        if whole and answer.piece not in (0, there):
            raise wire.Broken(f"{answer!r} for a file that is of use as a whole only")
        return answer.piece

    def _write(self, handle: int, position: int) -> None:
        """Hear and write what comes until all is there.

        In one thread: what has come is still in the processor's cache when it is opened and written, and the
        connection holds what comes meanwhile.
        """
        buffer = memoryview(bytearray(wire.PIECE))
        behind = DropBehind(handle, position)
        while not isinstance(heard := self._channel.receive_into(buffer), wire.End):
            if not isinstance(heard, int | wire.Hole):
                raise wire.Broken(f"{type(heard).__name__} within {self._file.name}")
            length = heard.length if isinstance(heard, wire.Hole) else heard
            if not 0 < length <= self._file.size - position:
                raise wire.Broken(f"{length} bytes of {self._file.name} at {position}: there are none")
            if isinstance(heard, int):
                _write_all(handle, buffer[:length], position)
            position += length
            behind.passed(position)
        if position != self._file.size:
            raise wire.Broken(f"{self._file.name} ends after {position} of {self._file.size} bytes")


def _write_all(handle: int, view: memoryview, position: int) -> None:
    while view:
        count = os.pwrite(handle, view, position)
        view, position = view[count:], position + count
