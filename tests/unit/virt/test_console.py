"""The end of a console, also when it has been moved aside."""

from __future__ import annotations

from pathlib import Path

import pytest

from kilonova.virt.libvirt.console import tail


def written(directory: Path, **files: bytes) -> Path:
    log = directory / "console.log"
    for name, data in files.items():
        path = log if name == "now" else directory / f"console.log.{name[1:]}"
        path.write_bytes(data)
    return log


@pytest.mark.parametrize(
    ("limit", "expected"),
    [(0, None), (1, b"9"), (3, b"789"), (4, b"6789"), (6, b"456789"), (9, b"123456789"), (99, b"123456789")],
)
def test_over_as_many_files_as_it_takes(tmp_path: Path, limit: int, expected: bytes | None) -> None:
    log = written(tmp_path, now=b"789", n0=b"456", n1=b"123")
    assert tail(log, limit) == expected


def test_a_file_that_has_just_been_moved_aside(tmp_path: Path) -> None:
    assert tail(written(tmp_path, n0=b"456", n1=b"123"), 4) == b"3456"


def test_what_lies_behind_a_gap_belongs_to_something_else(tmp_path: Path) -> None:
    assert tail(written(tmp_path, now=b"789", n0=b"456", n2=b"old"), 99) == b"456789"


def test_no_log_is_not_an_empty_log(tmp_path: Path) -> None:
    assert tail(tmp_path / "console.log", 10) is None
    assert tail(written(tmp_path, now=b""), 10) == b""


def test_what_cannot_be_read_is_not_hidden(tmp_path: Path) -> None:
    (tmp_path / "console.log").mkdir()
    with pytest.raises(IsADirectoryError):
        tail(tmp_path / "console.log", 10)
