"""The image cache: one fetch for many, nothing but what was uploaded, nothing left of what failed."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import struct
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec
import pytest

from kilonova.clock import SECOND
from kilonova.errors import Failed, HostFault, KilonovaError, Unreachable
from kilonova.model.instance import ImageMeta
from kilonova.testing.clock import VirtualClock
from kilonova.threads import Threads
from kilonova.virt.libvirt import image_cache
from kilonova.virt.libvirt.image_cache import ImageCache
from tests.real.guests import eventually
from tests.unit.virt.sources import Images

DATA = bytes(range(256)) * 64


@pytest.fixture
def threads() -> Iterator[Threads]:
    made = Threads("test-files", 2)
    yield made
    made.close()


@pytest.fixture
async def cache(tmp_path: Path, threads: Threads) -> AsyncIterator[ImageCache]:
    made = ImageCache(tmp_path / "_base", "me", VirtualClock(), threads)
    made.open()
    yield made


@pytest.fixture
def images() -> Images:
    return Images()


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that even a small image is written in several goes."""
    monkeypatch.setattr(image_cache, "PIECE", 4096)


def files(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "_base").iterdir())


async def test_an_image_is_fetched_once_and_then_found(
    cache: ImageCache, images: Images, tmp_path: Path
) -> None:
    image = images.add(DATA)
    found = await cache.ensure(image, images)
    assert found.path.read_bytes() == DATA
    assert (found.format, found.virtual_size) == ("raw", len(DATA))
    assert await cache.ensure(image, images) == found
    assert images.reads == [image.id]
    assert files(tmp_path) == [f"{image.id}.raw"]


async def test_ten_guests_at_once_fetch_it_once(cache: ImageCache, images: Images) -> None:
    image = images.add(DATA)
    images.gate = asyncio.Event()
    waiting = [asyncio.create_task(cache.ensure(image, images)) for _ in range(10)]
    await eventually(lambda: len(images.reads) == 1)
    images.gate.set()
    found = await asyncio.gather(*waiting)
    assert len(set(found)) == 1
    assert images.reads == [image.id]


async def test_different_images_do_not_wait_for_each_other(cache: ImageCache, images: Images) -> None:
    slow, quick = images.add(DATA), images.add(DATA[:1000])
    images.gate = asyncio.Event()
    first = asyncio.create_task(cache.ensure(slow, images))
    await eventually(lambda: len(images.reads) == 1)
    images.gate, gate = None, images.gate
    assert (await cache.ensure(quick, images)).virtual_size == 1000
    assert not first.done()
    gate.set()
    await first


async def test_who_gives_up_does_not_end_the_fetch_of_the_others(
    cache: ImageCache, images: Images, tmp_path: Path
) -> None:
    image = images.add(DATA)
    images.gate = asyncio.Event()
    first = asyncio.create_task(cache.ensure(image, images))
    second = asyncio.create_task(cache.ensure(image, images))
    await eventually(lambda: len(images.reads) == 1)
    first.cancel()
    await asyncio.wait({first})
    assert first.cancelled()
    images.gate.set()
    assert (await second).path.read_bytes() == DATA
    assert images.reads == [image.id]


async def test_when_all_give_up_nothing_is_left_and_the_next_one_gets_it(
    cache: ImageCache, images: Images, tmp_path: Path
) -> None:
    image = images.add(DATA)
    images.gate = asyncio.Event()
    waiting = [asyncio.create_task(cache.ensure(image, images)) for _ in range(2)]
    await eventually(lambda: len(images.reads) == 1)
    for each in waiting:
        each.cancel()
    await asyncio.wait(waiting)
    assert files(tmp_path) == []
    assert images.ended == 1  # the stream was closed, too
    images.gate = None
    assert (await cache.ensure(image, images)).path.read_bytes() == DATA


async def test_a_failure_is_everybodys_and_is_not_remembered(
    cache: ImageCache, images: Images, tmp_path: Path
) -> None:
    image = images.add(DATA)
    images.breaks[image.id] = (2, Unreachable("The image service does not answer."))
    results = await asyncio.gather(*(cache.ensure(image, images) for _ in range(5)), return_exceptions=True)
    assert [type(each) for each in results] == [Unreachable] * 5
    assert images.reads == [image.id]
    assert files(tmp_path) == []
    images.breaks.clear()
    assert (await cache.ensure(image, images)).path.read_bytes() == DATA


@pytest.mark.parametrize(
    ("served", "words"),
    [
        (DATA[:-1], r"Only 16383 of the 16384 bytes"),
        (DATA + b"x", r"should have 16384 bytes, and more came"),
        (DATA[:-1] + b"x", r"is not what was uploaded: its sha512 is"),
        (b"", r"Only 0 of the 16384 bytes"),
    ],
)
async def test_other_data_than_was_uploaded_is_not_used(
    cache: ImageCache, images: Images, tmp_path: Path, served: bytes, words: str
) -> None:
    image = images.add(DATA)
    images.served[image.id] = served
    with pytest.raises(HostFault, match=words):
        await cache.ensure(image, images)
    assert files(tmp_path) == []


@pytest.mark.parametrize(
    "known",
    [
        {"hash_algo": "sha256", "hash_value": hashlib.sha256(DATA).hexdigest().upper()},
        {"hash_algo": None, "hash_value": None, "checksum": hashlib.md5(DATA).hexdigest()},
        {"hash_algo": None, "hash_value": None},
    ],
)
async def test_whatever_hash_the_image_service_has(
    cache: ImageCache, images: Images, known: dict[str, str | None]
) -> None:
    image = images.add(DATA, **known)
    assert (await cache.ensure(image, images)).path.read_bytes() == DATA
    if any(known.values()):
        other = images.add(DATA, **known)
        images.served[other.id] = DATA[:-1] + b"x"
        with pytest.raises(HostFault, match="is not what was uploaded"):
            await cache.ensure(other, images)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"disk_format": "vmdk"}, "disk format 'vmdk'.*raw"),
        ({"container_format": "ova"}, "container format 'ova'"),
        ({"hash_algo": "crc32"}, "'crc32'"),
    ],
)
async def test_images_that_no_host_can_use(
    cache: ImageCache, images: Images, change: dict[str, str], words: str
) -> None:
    with pytest.raises(Failed, match=words):
        await cache.ensure(images.add(DATA, **change), images)


async def test_an_image_that_is_gone(cache: ImageCache, images: Images, tmp_path: Path) -> None:
    image = images.add(DATA)
    del images.data[image.id]
    with pytest.raises(Failed, match=f"{image.id} is no longer there"):
        await cache.ensure(image, images)
    assert files(tmp_path) == []


async def test_an_image_larger_than_the_disk_is_not_even_asked_for(
    cache: ImageCache, images: Images, tmp_path: Path
) -> None:
    with pytest.raises(HostFault, match=r"no space for image .* MiB are free in .*_base"):
        await cache.ensure(images.add(DATA, size=1 << 60), images)
    assert images.reads == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
async def test_a_disk_that_fills_up_meanwhile(
    cache: ImageCache, images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """tests/real has a disk that is full for real."""
    written = []

    def write(handle: int, data: bytes) -> int:
        written.append(len(data))
        if sum(written) > 9000:
            raise OSError(number, os.strerror(number))
        return len(data)

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(HostFault, match="The disk of this host is full"):
        await cache.ensure(images.add(DATA), images)
    assert len(written) > 1
    assert files(tmp_path) == []
    assert images.ended == 1  # nobody goes on sending


async def test_ids_that_are_no_file_names(cache: ImageCache, images: Images, tmp_path: Path) -> None:
    for image_id in ("../../etc/passwd", "a/b", ".hidden", "x" * 300, ""):
        meta = msgspec.structs.replace(images.add(DATA), id=image_id)
        images.data[image_id] = DATA
        found = await cache.ensure(meta, images)
        assert found.path.parent == tmp_path / "_base"
        assert found.path.name.startswith("id-")
    assert len(files(tmp_path)) == 5


async def test_what_a_killed_process_left_is_removed_and_others_work_is_not(
    cache: ImageCache, tmp_path: Path
) -> None:
    (tmp_path / "_base" / "a.raw.me.0011.part").write_bytes(b"half")
    (tmp_path / "_base" / "a.raw.other.0011.part").write_bytes(b"half")
    (tmp_path / "_base" / "b.raw").write_bytes(b"whole")
    cache.open()
    assert files(tmp_path) == ["a.raw.other.0011.part", "b.raw"]


async def test_only_what_is_unused_and_old_is_removed(
    images: Images, tmp_path: Path, threads: Threads
) -> None:
    clock = VirtualClock()
    cache = ImageCache(tmp_path / "_base", "me", clock, threads)
    cache.open()
    old, used, fresh = [await cache.ensure(images.add(bytes([n]) * 10), images) for n in range(3)]
    os.link(used.path, tmp_path / "disk.base")
    half = tmp_path / "_base" / "x.raw.me.1.part"
    half.write_bytes(b"")
    now = clock.now() // SECOND
    for each in (old.path, used.path, half):
        os.utime(each, (now - 1000, now - 1000))
    os.utime(fresh.path, (now - 10, now - 10))
    assert await cache.remove_unused(2000) == []
    assert await cache.remove_unused(500) == [old.path.name]
    assert fresh.path.exists() and used.path.exists() and half.exists()
    (tmp_path / "disk.base").unlink()
    assert await cache.remove_unused(500) == [used.path.name]


async def test_asking_for_an_image_keeps_it(images: Images, tmp_path: Path, threads: Threads) -> None:
    from kilonova.clock import SystemClock

    cache = ImageCache(tmp_path / "_base", "me", SystemClock(), threads)
    cache.open()
    image = images.add(DATA)
    found = await cache.ensure(image, images)
    os.utime(found.path, (0, 0))
    await cache.ensure(image, images)
    assert await cache.remove_unused(3600) == []


# ---- what is in a qcow2 ----


def qcow2(tmp_path: Path, *options: str, name: str = "made.qcow2") -> bytes:
    path = tmp_path / name
    command = ["qemu-img", "create", "-q", "-f", "qcow2", *options, path.name]
    subprocess.run([*command, *([] if "-b" in options else ["1M"])], check=True, cwd=tmp_path)
    return path.read_bytes()


def meta_of(images: Images, data: bytes) -> ImageMeta:
    return images.add(data, disk_format="qcow2")


async def test_a_plain_qcow2(cache: ImageCache, images: Images, tmp_path: Path) -> None:
    for options in ((), ("-o", "compat=0.10"), ("-o", "cluster_size=4096")):
        found = await cache.ensure(meta_of(images, qcow2(tmp_path, *options)), images)
        assert (found.format, found.virtual_size) == ("qcow2", 1 << 20)
        assert found.path.suffix == ".qcow2"


def with_backing_file(tmp_path: Path) -> bytes:
    (tmp_path / "secret").write_bytes(b"s" * 4096)
    return qcow2(tmp_path, "-F", "raw", "-b", str(tmp_path / "secret"))


def with_data_file(tmp_path: Path) -> bytes:
    return qcow2(tmp_path, "-o", f"data_file={tmp_path / 'data.raw'}")


def encrypted(tmp_path: Path) -> bytes:
    data = bytearray(qcow2(tmp_path))
    data[32:36] = struct.pack(">I", 2)
    return bytes(data)


def no_qcow2(tmp_path: Path) -> bytes:
    return b"not a qcow2 at all" * 100


def cut_off(tmp_path: Path) -> bytes:
    return qcow2(tmp_path)[:60]


def unknown_feature(tmp_path: Path) -> bytes:
    data = bytearray(qcow2(tmp_path))
    data[72] = 0x80
    return bytes(data)


def corrupt(tmp_path: Path) -> bytes:
    data = bytearray(qcow2(tmp_path))
    data[79] |= 2
    return bytes(data)


def of_version_9(tmp_path: Path) -> bytes:
    data = bytearray(qcow2(tmp_path))
    data[7] = 9
    return bytes(data)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (with_backing_file, "has a backing file"),
        (with_data_file, "has an external data file"),
        (encrypted, "has encryption"),
        (no_qcow2, "is said to be qcow2 and is not"),
        (cut_off, "is said to be qcow2 and is not"),
        (of_version_9, "is said to be qcow2 and is not"),
        (unknown_feature, "cannot be read.*[Uu]nsupported"),
        (corrupt, "is marked as corrupt"),
    ],
)
async def test_a_qcow2_that_must_not_be_opened(
    cache: ImageCache, images: Images, tmp_path: Path, make: object, words: str
) -> None:
    data = make(tmp_path)  # type: ignore[operator]
    with pytest.raises(Failed, match=words):
        await cache.ensure(meta_of(images, data), images)
    assert files(tmp_path) == []


async def test_raw_data_is_never_looked_into(cache: ImageCache, images: Images, tmp_path: Path) -> None:
    """A raw image that is a qcow2 inside is bytes to us, and to QEMU, which is told so."""
    data = with_backing_file(tmp_path)
    found = await cache.ensure(images.add(data), images)
    assert (found.format, found.virtual_size) == ("raw", len(data))


async def test_a_damaged_entry_is_said(cache: ImageCache, images: Images, tmp_path: Path) -> None:
    image = meta_of(images, qcow2(tmp_path))
    found = await cache.ensure(image, images)
    found.path.write_bytes(b"gone")
    with pytest.raises(KilonovaError, match="is damaged: remove it"):
        await cache.ensure(image, images)
