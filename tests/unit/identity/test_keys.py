"""The keys of tokens: made once, read by nobody else, changed under way."""

from __future__ import annotations

import os
import shutil
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import structlog

from kilonova.clock import SystemClock
from kilonova.errors import Failed
from kilonova.services.identity.keys import KEEP, KeyRing

NOW = SystemClock().now()


def seal(ring: KeyRing, text: str = "x") -> str:
    return ring.seal(text.encode(), NOW)


def test_only_we_can_read_them(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        KeyRing(tmp_path / "a" / "keys")
    finally:
        os.umask(before)
    directory = tmp_path / "a" / "keys"
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert [(each.name, stat.S_IMODE(each.stat().st_mode)) for each in directory.iterdir()] == [("1", 0o600)]


@pytest.mark.parametrize("mode", [0o604, 0o640, 0o620, 0o601])
def test_a_key_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    KeyRing(tmp_path)
    (tmp_path / "1").chmod(mode)
    with pytest.raises(Failed, match=f"{tmp_path}/1 can be read by others"):
        KeyRing(tmp_path)


@pytest.mark.parametrize("content", [b"", b"short", b"x" * 44, b"\xff" * 44])
def test_a_damaged_key_is_told_and_not_shown(tmp_path: Path, content: bytes) -> None:
    KeyRing(tmp_path)
    (tmp_path / "1").write_bytes(content)
    with pytest.raises(Failed, match=r"1 is damaged: delete it\.$"):
        KeyRing(tmp_path)


def test_a_place_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Failed, match=f"{tmp_path}/file"):
        KeyRing(tmp_path / "file")


def test_a_restart_opens_what_was_sealed(tmp_path: Path) -> None:
    sealed = seal(KeyRing(tmp_path))
    (tmp_path / "README").write_text("other files are no keys")
    (tmp_path / ".half-written").write_text("")
    assert KeyRing(tmp_path).open(sealed) == b"x"


def test_a_foreign_ring_does_not(tmp_path: Path) -> None:
    one, two = KeyRing(tmp_path / "1"), KeyRing(tmp_path / "2")
    assert two.open(seal(one)) is None and one.open(seal(one)) == b"x"


def test_rotation(tmp_path: Path) -> None:
    ring, other = KeyRing(tmp_path), KeyRing(tmp_path)
    sealed = [seal(ring)]
    for _ in range(KEEP - 1):
        ring.rotate()
        sealed.append(seal(ring))
    assert [other.open(each) for each in sealed] == [b"x"] * KEEP, "another process finds the new keys"
    assert [ring.open(each) for each in sealed] == [b"x"] * KEEP
    ring.rotate()
    assert [ring.open(each) for each in sealed] == [None] + [b"x"] * (KEEP - 1), "the oldest key is gone"
    assert len(list(tmp_path.iterdir())) == KEEP
    assert other.open(seal(ring)) == b"x"
    assert other.open(sealed[0]) is None


def test_a_key_that_was_stolen_can_be_taken_away(tmp_path: Path) -> None:
    ring, other = KeyRing(tmp_path), KeyRing(tmp_path)
    stolen = seal(ring)
    for _ in range(KEEP):
        ring.rotate()
    assert other.open(seal(ring)) == b"x"
    assert other.open(stolen) is None


def test_many_processes_that_start_at_once_have_one_key(tmp_path: Path) -> None:
    for round_ in range(5):
        directory = tmp_path / str(round_)
        with ThreadPoolExecutor(8) as pool:
            rings = list(pool.map(lambda _, directory=directory: KeyRing(directory), range(8)))
        assert [each.name for each in directory.iterdir()] == ["1"]
        sealed = seal(rings[0])
        assert all(ring.open(sealed) == b"x" for ring in rings)


def test_rotating_while_others_read(tmp_path: Path) -> None:
    """A key stays for two rotations after its own: so none may take more than one before each has read."""
    ring = KeyRing(tmp_path)
    turns = threading.Barrier(4)

    def read(reader: KeyRing) -> list[bytes | None]:
        found = []
        for _ in range(50):
            turns.wait(60)
            found.append(reader.open(seal(ring)))
        return found

    def rotate() -> None:
        for _ in range(50):
            turns.wait(60)
            ring.rotate()

    with ThreadPoolExecutor(4) as pool:
        turning = pool.submit(rotate)
        assert list(pool.map(read, [KeyRing(tmp_path) for _ in range(3)])) == [[b"x"] * 50] * 3
        turning.result()


def test_a_key_that_goes_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process has listed the directory just before a rotation took a key away."""
    ring = KeyRing(tmp_path)
    sealed = seal(ring)
    names, looks = KeyRing._names, []

    def stale(self: KeyRing) -> list[int]:
        looks.append(1)
        return [*names(self), 99] if len(looks) == 2 else names(self)

    monkeypatch.setattr(KeyRing, "_names", stale)
    assert KeyRing(tmp_path).open(sealed) == b"x"
    assert len(looks) == 3


def test_keys_that_cannot_be_read_again_do_not_end_the_service(tmp_path: Path) -> None:
    ring, foreign = KeyRing(tmp_path / "keys"), KeyRing(tmp_path / "foreign")
    sealed = seal(ring)
    for damage in ("a bad key", "no key", "no directory"):
        if damage == "a bad key":
            (tmp_path / "keys" / "2").write_text("")
        elif damage == "no key":
            for each in (tmp_path / "keys").iterdir():
                each.unlink()
        else:
            shutil.rmtree(tmp_path / "keys")
        with structlog.testing.capture_logs() as lines:
            assert ring.open(seal(foreign)) is None
        assert [each["log_level"] for each in lines] == ["error"], damage
        assert ring.open(sealed) == b"x"
        assert ring.open(seal(ring)) == b"x"
