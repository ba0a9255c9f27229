"""The files of a guest."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kilonova import programs
from kilonova.clock import SystemClock
from kilonova.errors import Failed, HostFault
from kilonova.rpc.messages import GuestSpec
from kilonova.threads import Threads
from kilonova.virt.libvirt import disks
from kilonova.virt.libvirt.disks import GuestFiles
from kilonova.virt.libvirt.image_cache import ImageCache
from tests.real.guests import eventually
from tests.unit.virt.sources import Images, guest

GIB = 1 << 30
DATA = bytes(1 << 20)


class Host:
    def __init__(self, directory: Path, threads: Threads, drive: str = "iso9660") -> None:
        self.directory = directory
        self.cache = ImageCache(directory / "_base", "me", SystemClock(), threads)
        self.cache.open()
        self.files = GuestFiles(directory, self.cache, threads, drive)
        self.images = Images()

    async def prepare(self, spec: GuestSpec) -> None:
        await self.files.prepare(spec, self.images)

    def names(self, spec: GuestSpec) -> list[str]:
        return sorted(path.name for path in self.files.of(spec.uuid).iterdir())


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    threads = Threads("test-files", 2)
    yield Host(tmp_path, threads)
    threads.close()


def info(path: Path) -> dict[str, Any]:
    command = ["qemu-img", "info", "--output=json", "--backing-chain", str(path)]
    chain = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    result: dict[str, Any] = {**chain[0], "chain": [Path(each["filename"]).name for each in chain]}
    return result


def inodes(directory: Path) -> dict[str, int]:
    return {path.name: path.stat().st_ino for path in directory.iterdir()}


async def test_the_root_disk_is_an_overlay_as_large_as_the_flavor_says(host: Host) -> None:
    spec = guest(host.images.add(DATA), flavor={"root_gb": 3})
    await host.prepare(spec)
    here = host.files.of(spec.uuid)
    found = info(here / "disk")
    assert (found["format"], found["virtual-size"]) == ("qcow2", 3 * GIB)
    assert found["chain"] == ["disk", "disk.base"]
    assert (found["backing-filename"], found["backing-filename-format"]) == ("disk.base", "raw")
    assert host.names(spec) == ["disk", "disk.base"]
    assert (here / "disk").stat().st_mode & 0o777 == 0o600
    assert here.stat().st_mode & 0o777 == 0o711


async def test_a_flavor_without_a_disk_takes_the_images_size(host: Host) -> None:
    spec = guest(host.images.add(DATA))
    await host.prepare(spec)
    assert info(host.files.of(spec.uuid) / "disk")["virtual-size"] == len(DATA)


async def test_guests_of_one_image_share_its_data_and_keep_it(host: Host) -> None:
    image = host.images.add(DATA)
    first, second = guest(image), guest(image)
    await asyncio.gather(host.prepare(first), host.prepare(second))
    assert host.images.reads == [image.id]
    bases = [host.files.of(each.uuid) / "disk.base" for each in (first, second)]
    assert os.path.samefile(*bases)
    assert await host.cache.remove_unused(-1) == []
    await host.files.discard(first.uuid)
    await host.files.discard(second.uuid)
    assert await host.cache.remove_unused(-1) == [f"{image.id}.raw"]


async def test_what_is_there_is_kept(host: Host) -> None:
    spec = guest(host.images.add(DATA), flavor={"root_gb": 1, "swap_mb": 1, "ephemeral_gb": 1})
    await host.prepare(spec)
    before = inodes(host.files.of(spec.uuid))
    assert sorted(before) == ["disk", "disk.base", "disk.eph0", "disk.swap"]
    await host.prepare(spec)
    assert inodes(host.files.of(spec.uuid)) == before
    assert len(host.images.reads) == 1


async def test_other_disks_have_what_their_use_needs(host: Host) -> None:
    spec = guest(host.images.add(DATA), flavor={"swap_mb": 2, "ephemeral_gb": 1})
    await host.prepare(spec)
    swap, ephemeral = (host.files.of(spec.uuid) / name for name in ("disk.swap", "disk.eph0"))
    assert swap.stat().st_size == 2 << 20
    assert b"SWAPSPACE2" in swap.read_bytes()[:4096]
    assert ephemeral.stat().st_size == GIB
    assert ephemeral.stat().st_blocks * 512 < 100 << 20  # it takes no space before it is used
    label = subprocess.run(["/sbin/e2label", ephemeral], check=True, capture_output=True, text=True)
    assert label.stdout.strip() == "ephemeral0"
    windows = guest(host.images.add(DATA, properties={"os_type": "windows"}), flavor={"ephemeral_gb": 1})
    await host.prepare(windows)
    with (host.files.of(windows.uuid) / "disk.eph0").open("rb") as blank:
        assert not any(blank.read(65536))


async def test_the_list_of_disks_is_what_prepare_makes(host: Host) -> None:
    spec = guest(host.images.add(DATA), flavor={"swap_mb": 1, "ephemeral_gb": 1}, config_drive={"a/b": b"c"})
    await host.prepare(spec)
    found = host.files.disks(spec)
    assert [(each.path.name, each.format, each.kind) for each in found] == [
        ("disk", "qcow2", "disk"),
        ("disk.eph0", "raw", "disk"),
        ("disk.swap", "raw", "disk"),
        ("disk.config", "raw", "cdrom"),
    ]
    assert all(each.path.exists() for each in found)
    assert [each.boot for each in found] == [True, False, False, False]
    assert [each.readonly for each in found] == [False, False, False, True]


@pytest.mark.parametrize("root_gb", [0, 2])
async def test_an_iso_is_a_cdrom_and_the_disk_beside_it_is_empty(host: Host, root_gb: int) -> None:
    spec = guest(host.images.add(DATA, disk_format="iso"), flavor={"root_gb": root_gb})
    await host.prepare(spec)
    await host.prepare(spec)
    cdrom, *rest = host.files.disks(spec)
    assert (cdrom.kind, cdrom.readonly, cdrom.boot, cdrom.format) == ("cdrom", True, True, "raw")
    assert cdrom.path.read_bytes() == DATA
    assert len(rest) == (1 if root_gb else 0)
    for disk in rest:
        found = info(disk.path)
        assert (found["virtual-size"], found["chain"]) == (root_gb * GIB, ["disk"])


async def test_a_flavor_that_is_too_small_for_the_image(host: Host) -> None:
    big = host.directory / "big.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", big, "3G"], check=True)
    image = host.images.add(big.read_bytes(), disk_format="qcow2")
    with pytest.raises(Failed, match=r"flavor 'm1.tiny' \(2 GiB\) is smaller than the image's \(3.00 GiB\)"):
        await host.prepare(guest(image, flavor={"root_gb": 2}))
    fits = guest(image, flavor={"root_gb": 3})
    await host.prepare(fits)
    assert info(host.files.of(fits.uuid) / "disk")["backing-filename-format"] == "qcow2"


async def test_no_image_and_no_uuid(host: Host) -> None:
    with pytest.raises(Failed, match="has no image"):
        await host.prepare(guest(None))
    for name in ("../other", "", "x"):
        with pytest.raises(Failed, match="no guest's uuid"):
            await host.files.discard(name)


@pytest.mark.parametrize("stage", range(6))
async def test_prepare_can_be_interrupted_anywhere_and_repeated(
    host: Host, monkeypatch: pytest.MonkeyPatch, stage: int
) -> None:
    """Cut off before the n-th program or settling of a file: the next time completes it, and no file was
    ever there by half."""
    spec = guest(host.images.add(DATA), flavor={"swap_mb": 1, "ephemeral_gb": 1}, config_drive={"x": b"y"})
    left = stage

    def cut() -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise asyncio.CancelledError

    real_run, real_settle = programs.run, disks.settle

    async def run(*command: str, **more: Any) -> str:
        cut()
        return await real_run(*command, **more)

    def settle(draft: Path, path: Path) -> None:
        cut()
        real_settle(draft, path)

    with monkeypatch.context() as patch:
        patch.setattr(programs, "run", run)
        patch.setattr(disks, "settle", settle)
        with pytest.raises(asyncio.CancelledError):
            await host.prepare(spec)
    for name in host.names(spec):
        if name == "disk":
            assert info(host.files.of(spec.uuid) / name)["virtual-size"] == len(DATA)
        if name == "disk.swap":
            assert b"SWAPSPACE2" in (host.files.of(spec.uuid) / name).read_bytes()[:4096]
    await host.prepare(spec)
    assert host.names(spec) == ["disk", "disk.base", "disk.config", "disk.eph0", "disk.swap"]


async def test_what_a_killed_process_left_is_removed(host: Host) -> None:
    spec = guest(host.images.add(DATA))
    here = host.files.of(spec.uuid)
    (here / ".config-drive-x" / "openstack").mkdir(parents=True)
    (here / "disk.new").write_bytes(b"half")
    (here / "disk.config.new").write_bytes(b"half")
    await host.prepare(spec)
    assert host.names(spec) == ["disk", "disk.base"]


async def test_discard_removes_everything_and_may_be_repeated(host: Host) -> None:
    spec = guest(host.images.add(DATA), config_drive={"x": b"y"})
    await host.prepare(spec)
    (host.files.of(spec.uuid) / "console.log.0").write_bytes(b"x")
    for _ in range(2):
        await host.files.discard(spec.uuid)
        assert not host.files.of(spec.uuid).exists()
    other = guest(host.images.add(DATA))
    await host.prepare(other)
    assert host.names(other) == ["disk", "disk.base"]


async def test_a_guest_that_goes_while_its_image_comes(host: Host) -> None:
    spec = guest(host.images.add(DATA))
    host.images.gate = asyncio.Event()
    task = asyncio.create_task(host.prepare(spec))
    await eventually(lambda: len(host.images.reads) == 1)
    task.cancel()
    await asyncio.wait({task})
    await host.files.discard(spec.uuid)
    assert [path.name for path in host.directory.iterdir()] == ["_base"]
    assert list((host.directory / "_base").iterdir()) == []


async def test_what_cannot_be_written_is_the_hosts_fault(host: Host) -> None:
    spec = guest(host.images.add(DATA))
    host.files.of(spec.uuid).write_bytes(b"a file where the directory should be")
    with pytest.raises(HostFault, match=f"files of guest {spec.uuid} cannot be made"):
        await host.prepare(spec)


async def test_a_program_that_says_that_the_disk_is_full(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = guest(host.images.add(DATA))

    async def run(*command: str, **more: Any) -> str:
        raise programs.ProgramFailed(command, 1, "qemu-img: disk.new: No space left on device")

    monkeypatch.setattr(programs, "run", run)
    with pytest.raises(HostFault, match=r"The disk of this host is full: the files of guest"):
        await host.prepare(spec)
