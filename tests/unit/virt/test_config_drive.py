"""Config drives: what a guest finds on them."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kilonova import programs
from kilonova.errors import Failed, HostFault
from kilonova.threads import Threads
from kilonova.virt.libvirt import config_drive

CONTENT = {
    "openstack/latest/meta_data.json": b'{"uuid": "1"}',
    "openstack/latest/user_data": b"#!/bin/sh\n" + b"x" * 5000,
    "openstack/2012-08-10/meta_data.json": b"{}",
    "ec2/latest/meta-data.json": b"[]",
    "openstack/content/0000": bytes(range(256)),
}


@pytest.fixture
def threads() -> Iterator[Threads]:
    made = Threads("test-files", 2)
    yield made
    made.close()


def output(*command: object) -> bytes:
    return subprocess.run([str(word) for word in command], check=True, capture_output=True).stdout


def read_iso(path: Path, name: str) -> bytes:
    out = path.with_name("extracted")
    out.unlink(missing_ok=True)
    output("xorriso", "-osirrox", "on", "-indev", f"stdio:{path}", "-extract", f"/{name}", out)
    data = out.read_bytes()
    out.unlink()
    return data


def read_vfat(path: Path, name: str) -> bytes:
    return output("mtype", "-i", path, f"::{name}")


@pytest.mark.parametrize(("form", "read"), [("iso9660", read_iso), ("vfat", read_vfat)])
async def test_every_file_is_there_and_the_same_content_gives_the_same_bytes(
    tmp_path: Path, threads: Threads, form: str, read: object
) -> None:
    first, second = tmp_path / "one", tmp_path / "two"
    await config_drive.write(CONTENT, first, form, threads)
    for name, data in CONTENT.items():
        assert read(first, name) == data  # type: ignore[operator]
    await config_drive.write(dict(reversed(CONTENT.items())), second, form, threads)
    assert first.read_bytes() == second.read_bytes()
    assert first.stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]


async def test_the_label_that_cloud_init_looks_for(tmp_path: Path, threads: Threads) -> None:
    await config_drive.write(CONTENT, tmp_path / "iso", "iso9660", threads)
    await config_drive.write(CONTENT, tmp_path / "vfat", "vfat", threads)
    descriptors = [
        (tmp_path / "iso").read_bytes()[sector * 2048 : (sector + 1) * 2048] for sector in (16, 17)
    ]
    assert descriptors[0][40:72] == b"config-2".ljust(32)
    assert descriptors[1][40:72].decode("utf-16-be").rstrip(" \0") == "config-2"  # Joliet's
    assert b"RRIP_1991A" in (tmp_path / "iso").read_bytes()
    # mtools writes labels in capitals; cloud-init knows both
    assert "CONFIG-2" in output("mdir", "-i", tmp_path / "vfat", "::").decode()


async def test_no_time_but_one_of_ours_is_on_it(tmp_path: Path, threads: Threads) -> None:
    path = tmp_path / "iso"
    await config_drive.write(CONTENT, path, "iso9660", threads)
    descriptor = path.read_bytes()[16 * 2048 : 17 * 2048]
    assert descriptor[813:827] == b"20231114221320"


async def test_a_drive_is_replaced_by_one_with_other_content(tmp_path: Path, threads: Threads) -> None:
    path = tmp_path / "drive"
    await config_drive.write(CONTENT, path, "iso9660", threads)
    await config_drive.write({"a": b"new"}, path, "iso9660", threads)
    assert read_iso(path, "a") == b"new"
    await config_drive.write({}, path, "vfat", threads)
    assert path.stat().st_size >= 32 << 20


@pytest.mark.parametrize(
    "name",
    ["", "/etc/passwd", "../x", "a/../b", "a//b", "./a", "a/.", "a b", "-o", "a/\n", "é", "a" * 201, "..."],
)
async def test_paths_that_are_not_for_a_drive(tmp_path: Path, threads: Threads, name: str) -> None:
    if name == "-o":
        await config_drive.write({name: b"x"}, tmp_path / "drive", "vfat", threads)
        assert read_vfat(tmp_path / "drive", name) == b"x"  # a file's name, no option
        return
    with pytest.raises(Failed, match="cannot be a path on a config drive"):
        await config_drive.write({name: b"x"}, tmp_path / "drive", "iso9660", threads)
    assert list(tmp_path.iterdir()) == []


async def test_a_file_cannot_be_a_directory_too(tmp_path: Path, threads: Threads) -> None:
    with pytest.raises(Failed, match="a part of its path is a file"):
        await config_drive.write({"a": b"", "a/b": b""}, tmp_path / "drive", "iso9660", threads)


async def test_too_much_for_a_drive(tmp_path: Path, threads: Threads) -> None:
    with pytest.raises(Failed, match="65 MiB of content, at most 64"):
        await config_drive.write({"a": bytes(65 << 20)}, tmp_path / "drive", "iso9660", threads)


async def test_a_failure_leaves_nothing(
    tmp_path: Path, threads: Threads, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run(*command: str, **more: object) -> str:
        raise programs.ProgramFailed(command, 1, "broken")

    monkeypatch.setattr(programs, "run", run)
    with pytest.raises(HostFault, match=r"'xorriso .* failed with code 1: broken"):
        await config_drive.write(CONTENT, tmp_path / "drive", "iso9660", threads)
    assert list(tmp_path.iterdir()) == []
