"""Snapshots of libvirt's guests, and guests that are made of them: real files and the real qemu-img."""

from __future__ import annotations

import asyncio
import os
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kilonova import programs
from kilonova.errors import Failed, HostFault
from kilonova.rpc.messages import GuestSpec
from kilonova.threads import Threads
from kilonova.virt.libvirt import live_files
from kilonova.virt.libvirt.snapshot import Snapshots
from tests.unit.virt.sources import guest
from tests.unit.virt.test_disks import Host, info

MIB = 1 << 20
IMAGE = str(uuid.UUID(int=7))


class Shelf:
    def __init__(self, host: Host, threads: Threads) -> None:
        self.host = host
        self.snapshots = Snapshots(host.files, threads)

    async def written(self, base: bytes, at: int, text: str, **more: Any) -> GuestSpec:
        """A guest of an image, which has written something."""
        made = guest(self.host.images.add(base), **more)
        await self.host.prepare(made)
        _io(self.host.files.of(made.uuid) / "disk", f"write -P {ord(text)} {at} 4k")
        return made

    async def taken(self, spec: GuestSpec) -> bytes:
        """All that the snapshot has in it, as it is handed in."""
        data = await self.snapshots.data(spec.uuid, IMAGE)
        pieces = [await data.read(at, 10_000) for at in range(0, data.size, 10_000)]
        found = b"".join(pieces)
        assert (len(found), data.disk_format) == (data.size, "qcow2")
        assert await data.read(data.size, 10) == b""
        return found


def _io(path: Path, *commands: str) -> str:
    options = [part for each in commands for part in ("-c", each)]
    done = subprocess.run(["qemu-io", "-f", "qcow2", *options, str(path)], check=True, capture_output=True)
    return done.stdout.decode()


def raw(path: Path) -> bytes:
    """What a guest would read."""
    target = path.with_name("read-back")
    subprocess.run(["qemu-img", "convert", "-O", "raw", str(path), str(target)], check=True)
    return target.read_bytes()


@pytest.fixture
def shelf(tmp_path: Path) -> Iterator[Shelf]:
    threads = Threads("test-files", 2)
    (tmp_path / "instances").mkdir()
    yield Shelf(Host(tmp_path / "instances", threads), threads)
    threads.close()


async def test_a_snapshot_has_the_image_and_what_was_written(shelf: Shelf, tmp_path: Path) -> None:
    base = bytes(MIB) + b"base" * (MIB // 4)
    made = await shelf.written(base, 4096, "w")
    await shelf.snapshots.make(made.uuid, IMAGE)
    file = tmp_path / "snapshot"
    file.write_bytes(await shelf.taken(made))
    assert info(file)["chain"] == ["snapshot"]  # it needs no other file
    expected = bytearray(base)
    expected[4096:8192] = b"w" * 4096
    assert raw(file) == bytes(expected)
    assert file.stat().st_size < len(base) + MIB  # nothing that nobody has written
    # the guest's own disk is as it was
    assert info(shelf.host.files.of(made.uuid) / "disk")["chain"] == ["disk", "disk.base"]


async def test_it_is_made_once_and_goes_when_it_is_dropped(shelf: Shelf) -> None:
    made = await shelf.written(bytes(MIB), 0, "a")
    await shelf.snapshots.make(made.uuid, IMAGE)
    first = await shelf.taken(made)
    _io(shelf.host.files.of(made.uuid) / "disk", "write -P 98 0 4k")
    await shelf.snapshots.make(made.uuid, IMAGE)
    assert await shelf.taken(made) == first
    (kept,) = [name for name in shelf.host.names(made) if name.startswith("snapshot")]
    assert (shelf.host.files.of(made.uuid) / kept).stat().st_mode & 0o777 == 0o600
    for _ in range(2):
        await shelf.snapshots.drop(made.uuid, IMAGE)
    assert shelf.host.names(made) == ["disk", "disk.base"]
    with pytest.raises(HostFault, match="There is no snapshot"):
        await shelf.snapshots.data(made.uuid, IMAGE)
    await shelf.snapshots.make(made.uuid, IMAGE)
    assert await shelf.taken(made) != first


async def test_without_a_disk_there_is_no_snapshot(shelf: Shelf) -> None:
    nobody = str(uuid.uuid4())
    with pytest.raises(HostFault, match="is not on this host"):
        await shelf.snapshots.make(nobody, IMAGE)
    await shelf.snapshots.drop(nobody, IMAGE)


@pytest.mark.parametrize("name", ["", "../x", "x/../../etc/passwd", "a" * 36, "7"])
async def test_names_that_are_no_images(shelf: Shelf, name: str) -> None:
    made = await shelf.written(bytes(MIB), 0, "a")
    for verb in (shelf.snapshots.make, shelf.snapshots.data, shelf.snapshots.drop):
        with pytest.raises(Failed, match="no image's uuid"):
            await verb(made.uuid, name)
    with pytest.raises(Failed, match="no guest's uuid"):
        await shelf.snapshots.make(f"../{made.uuid}", IMAGE)


async def test_a_snapshot_that_is_interrupted_leaves_nothing(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await shelf.written(bytes(MIB), 0, "a")
    here = shelf.host.files.of(made.uuid)
    own, started = programs.run, asyncio.Event()

    async def slow(*command: str, **how: Any) -> str:
        if "convert" in command:
            await own(*command, **how)
            started.set()
            await asyncio.Event().wait()
        return await own(*command, **how)

    monkeypatch.setattr("kilonova.virt.libvirt.snapshot.programs.run", slow)
    task = asyncio.create_task(shelf.snapshots.make(made.uuid, IMAGE))
    await asyncio.wait_for(started.wait(), 30)
    assert [path.name for path in here.glob("*.new")]
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert shelf.host.names(made) == ["disk", "disk.base"]


async def test_a_full_disk_is_told(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    made = await shelf.written(bytes(MIB), 0, "a")

    async def full(*command: str, **how: Any) -> str:
        raise programs.ProgramFailed(command, 1, "qemu-img: error while writing: No space left on device")

    monkeypatch.setattr("kilonova.virt.libvirt.snapshot.programs.run", full)
    with pytest.raises(HostFault, match="The disk of this host is full"):
        await shelf.snapshots.make(made.uuid, IMAGE)


async def test_a_disk_that_is_broken_is_told(shelf: Shelf) -> None:
    made = await shelf.written(bytes(MIB), 0, "a")
    (shelf.host.files.of(made.uuid) / "disk.base").unlink()
    with pytest.raises(HostFault, match="qemu-img"):
        await shelf.snapshots.make(made.uuid, IMAGE)
    assert shelf.host.names(made) == ["disk"]


# ---- guests that are made of one ----


@pytest.mark.parametrize("root_gb", [0, 1])
async def test_a_guest_that_comes_back_needs_no_image(shelf: Shelf, tmp_path: Path, root_gb: int) -> None:
    """So that what is deleted, or fetched again elsewhere by the id of its first image, cannot hurt it."""
    first = await shelf.written(b"x" * MIB, 8192, "w", flavor={"root_gb": root_gb})
    await shelf.snapshots.make(first.uuid, IMAGE)
    image = shelf.host.images.add(await shelf.taken(first), disk_format="qcow2")
    back = guest(image, flavor={"root_gb": root_gb}, flat_root=True)
    for _ in range(2):
        await shelf.host.prepare(back)
    here = shelf.host.files.of(back.uuid)
    assert shelf.host.names(back) == ["disk"]
    found = info(here / "disk")
    assert found["chain"] == ["disk"] and found["format"] == "qcow2"
    assert found["virtual-size"] == (MIB if root_gb == 0 else 1 << 30)
    content = bytearray(b"x" * MIB)
    content[8192:12288] = b"w" * 4096
    assert raw(here / "disk")[:MIB] == bytes(content)
    os.unlink(here / "read-back")
    # what it writes is its own: the cache still has what came
    _io(here / "disk", "write -P 1 0 4k")
    (cached,) = (tmp_path / "instances" / "_base").glob("*.qcow2")
    assert cached.read_bytes() == shelf.host.images.data[image.id]
    # and it can be put away again
    await shelf.snapshots.make(back.uuid, IMAGE)
    file = tmp_path / "again"
    file.write_bytes(await shelf.taken(back))
    assert raw(file)[:4096] == b"\1" * 4096


async def test_one_that_is_larger_than_its_flavor_is_refused(shelf: Shelf) -> None:
    first = await shelf.written(bytes(MIB), 0, "w", flavor={"root_gb": 2})
    await shelf.snapshots.make(first.uuid, IMAGE)
    image = shelf.host.images.add(await shelf.taken(first), disk_format="qcow2")
    with pytest.raises(Failed, match="smaller"):
        await shelf.host.prepare(guest(image, flavor={"root_gb": 1}, flat_root=True))


@pytest.mark.parametrize("flat", [False, True])
async def test_what_comes_live_comes_onto_what_it_was_on(shelf: Shelf, flat: bool) -> None:
    """A disk that has no image beneath it must not get one: what is zero would be the image's bytes there."""
    made = guest(shelf.host.images.add(b"x" * MIB))
    shelf.host.files.of(made.uuid).mkdir()
    await shelf.host.files.prepare_empty(made, shelf.host.images, {"disk": MIB}, flat=flat)
    here = shelf.host.files.of(made.uuid)
    assert shelf.host.names(made) == (["disk"] if flat else ["disk", "disk.base"])
    assert raw(here / "disk") == (bytes(MIB) if flat else b"x" * MIB)
    sizes = live_files.sizes(shelf.host.files.disks(made))
    assert (sizes.flat_root, sizes.virtual) == (flat, {"disk": MIB})
    assert (len(shelf.host.images.reads) == 0) == flat
