"""The log file on a disk that is full: nobody who logs is hurt, and what was lost is counted."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from kilonova.log import LogFile


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How many bytes the disk still takes."""
    room = {"bytes": 1_000_000}
    write = os.write

    def limited(handle: int, data: bytes) -> int:
        if handle < 3:
            return write(handle, data)
        taken = min(room["bytes"], len(data))
        if not taken:
            raise OSError(errno.ENOSPC, "No space left on device")
        room["bytes"] -= taken
        return write(handle, data[:taken])

    monkeypatch.setattr(os, "write", limited)
    return room


def test_lines_are_appended(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    for text in ("one\n", "two\n"):
        with LogFile(path) as file:
            assert file.write(text) == len(text)
    assert path.read_text() == "one\ntwo\n"
    assert path.stat().st_mode & 0o007 == 0  # requests and their faults are in it


def test_what_a_full_disk_does_not_take_is_counted(
    tmp_path: Path, disk: dict[str, int], capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.log"
    with LogFile(path) as file:
        file.write("before\n")
        disk["bytes"] = 0
        for index in range(5):
            file.write(f"lost {index}\n")
        disk["bytes"] = 1_000_000
        file.write("after\n")
        file.write("later\n")
    first, note, *rest = path.read_text().splitlines()
    assert (first, rest) == ("before", ["after", "later"])
    assert json.loads(note)["event"] == "5 lines were lost: No space left on device"
    said = capfd.readouterr().err.splitlines()
    assert said == ["kilonova: cannot log: No space left on device: lost 0"]  # once, not for each line


def test_a_line_that_was_cut_short_does_not_spoil_the_next(tmp_path: Path, disk: dict[str, int]) -> None:
    path = tmp_path / "x.log"
    with LogFile(path) as file:
        disk["bytes"] = 3
        file.write("torn line\n")
        disk["bytes"] = 1_000_000
        file.write("whole\n")
    lines = path.read_text().splitlines()
    assert lines[0] == "tor"
    assert json.loads(lines[1])["event"].startswith("1 lines were lost")
    assert lines[2] == "whole"
