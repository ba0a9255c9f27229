"""Several controllers with one directory of images: nobody takes away what another one is at."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from kilonova.errors import Failed
from kilonova.services.image.files import ImageFiles

IMAGE = str(uuid.UUID(int=1))


@contextlib.contextmanager
def taken(directory: Path, *, shared: bool = True) -> Iterator[ImageFiles]:
    files = ImageFiles(directory, shared=shared)
    files.take()
    try:
        yield files
    finally:
        files.release()


def test_an_upload_of_a_living_process_stays_and_a_dead_ones_goes(tmp_path: Path) -> None:
    with taken(tmp_path) as one, taken(tmp_path) as other:
        alive, dead = uuid.uuid4().hex, uuid.uuid4().hex
        at_work = one.part(IMAGE, alive)
        at_work.open()
        left = one.part(IMAGE, dead)
        left.path.write_bytes(b"half an image")
        assert other.remove_parts() == 1
        assert not left.path.exists() and at_work.path.exists()
        assert other.is_alive(IMAGE, alive) and not other.is_alive(IMAGE, dead)
        at_work._close()  # as the end of its process would
        assert not other.is_alive(IMAGE, alive)
        assert other.remove_parts() == 1 and not at_work.path.exists()


def test_who_shares_keeps_those_out_who_do_not(tmp_path: Path) -> None:
    with taken(tmp_path), pytest.raises(Failed, match="Another process"):
        ImageFiles(tmp_path).take()
    with taken(tmp_path, shared=False), pytest.raises(Failed, match="Another process"):
        ImageFiles(tmp_path, shared=True).take()


def test_a_piece_is_what_is_there_from_its_offset_on(tmp_path: Path) -> None:
    with taken(tmp_path) as files:
        (tmp_path / IMAGE).write_bytes(b"0123456789")
        assert files.piece(IMAGE, 0, 4) == b"0123"
        assert files.piece(IMAGE, 8, 4) == b"89"
        assert files.piece(IMAGE, 10, 4) == b""
