"""The disk under a cloud is full: requests are refused in clear words, nothing is lost, and it goes on."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.process.cloud import Cloud, Load, is_root

SIZE = 24  # MiB


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if not is_root():
        pytest.skip("only root can mount a small disk")
    path = tmp_path / "disk"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}m", "tmpfs", str(path)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    yield path
    subprocess.run(["umount", "--lazy", str(path)], check=True)


def fill(path: Path) -> Path:
    """Leave no room on the disk."""
    filler = path / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 12):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue
    return filler


async def boot_until_refused(cloud: Cloud, load: Load, image: str) -> None:
    client = await cloud.client()
    for index in range(2000):
        await load.boot(f"full{index}", image, client)
        if load.refused:
            break
    client.close()


async def more_when_there_is_room(cloud: Cloud, load: Load, image: str) -> None:
    """Accepted, and done."""
    load.refused.clear()
    client = await cloud.client()
    for index in range(3):
        await load.boot(f"room{index}", image, client)
    client.close()
    assert load.refused == []
    servers = await cloud.settled()
    assert set(load.accepted) <= set(servers)
    assert {each["status"] for each in servers.values()} <= {"ACTIVE", "ERROR"}
    last = [each for each in servers.values() if each["name"].startswith("room")]
    assert [each["status"] for each in last] == ["ACTIVE"] * 3


def test_a_full_disk_is_told_and_survived(small_disk: Path) -> None:
    cloud = Cloud(small_disk / "state")
    try:
        cloud.start()
        image = asyncio.run(cloud.image())
        load = Load(cloud)
        filler = fill(small_disk)
        asyncio.run(boot_until_refused(cloud, load, image))
        ((status, body),) = load.refused
        assert status == 503, body
        fault = json.loads(body)["serviceUnavailable"]
        assert fault["code"] == 503
        assert "full" in fault["message"] and "Free some space" in fault["message"]
        servers = asyncio.run(cloud.servers())  # it can be read all the time
        assert set(load.accepted) <= set(servers)
        filler.unlink()
        asyncio.run(more_when_there_is_room(cloud, load, image))
        cloud.stop()
    finally:
        cloud.clear()
    assert asyncio.run(cloud.stopped()).leaks == []


def test_a_start_on_a_full_disk_is_refused_and_harms_nothing(small_disk: Path) -> None:
    cloud = Cloud(small_disk / "state")
    try:
        filler = fill(small_disk)
        cloud.config = small_disk.with_suffix(".conf")  # on another disk
        cloud.configure("")
        cloud.spawn()
        assert cloud.ended() == 1
        text = "\n".join(cloud.errors)
        assert "Traceback" not in text and cloud.errors[-1].startswith("Error: "), text
        filler.unlink()
        cloud.start()
        cloud.stop()
    finally:
        cloud.clear()
    assert asyncio.run(cloud.stopped()).leaks == []
