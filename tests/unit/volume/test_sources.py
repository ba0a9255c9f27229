"""Volumes that are made from images and from other volumes."""

from __future__ import annotations

import asyncio
import hashlib
import os
import subprocess
import uuid
from pathlib import Path
from typing import Any

import pytest

from kilonova.db import volumes
from kilonova.errors import Conflict, Invalid
from kilonova.model.image import Image
from kilonova.services.volume.files import GIB
from kilonova.services.volume.records import NewVolume
from tests.unit.volume.conftest import ALICE, House

MIB = 1 << 20


def stored(house: House, path: Path, **fields: Any) -> str:
    """The id of an image with what is in a file."""
    data, image_id = path.read_bytes(), str(uuid.uuid4())
    values: dict[str, Any] = {"disk_format": "qcow2", "virtual_size": None, "name": "disk", **fields}
    house.images.images[image_id] = Image(
        id=image_id,
        size=len(data),
        hash_algo="sha512",
        hash_value=hashlib.sha512(data).hexdigest(),
        **values,
    )
    house.images.data[image_id] = [data[at : at + MIB] for at in range(0, len(data), MIB)]
    return image_id


def qcow2(directory: Path, content: bytes, size: str = "100M", at: int = 7 * MIB) -> Path:
    """A qcow2 file that has some content at a place."""
    raw, made = directory / "content.raw", directory / "disk.qcow2"
    with raw.open("wb") as file:
        file.seek(at)
        file.write(content)
    subprocess.run(["truncate", "-s", size, str(raw)], check=True)
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-c", raw, made], check=True)
    return made


def part(path: Path, at: int, size: int) -> bytes:
    with path.open("rb") as file:
        file.seek(at)
        return file.read(size)


async def test_a_qcow2_image_becomes_a_raw_volume(house: House, tmp_path: Path) -> None:
    content = os.urandom(MIB)
    properties = {"hw_disk_bus": "scsi"}
    image_id = stored(house, qcow2(tmp_path, content), properties=properties, min_disk=1)
    volume = await house.made(size_gb=2, image_id=image_id)
    found = await house.service.check(ALICE, volume.id)
    assert (found.status, found.bootable, found.size_gb) == ("available", True, 2)
    assert found.image_metadata["image_id"] == image_id
    assert found.image_metadata["hw_disk_bus"] == "scsi" and found.image_metadata["min_disk"] == "1"
    assert house.files() == [volume.id]
    there = house.directory / volume.id
    assert part(there, 7 * MIB, MIB) == content
    assert part(there, 0, MIB) == part(there, 8 * MIB, MIB) == bytes(MIB)
    assert there.stat().st_size == 2 * GIB and there.stat().st_blocks * 512 < 4 * MIB


async def test_a_raw_image_leaves_its_zeros_out(house: House, tmp_path: Path) -> None:
    raw = tmp_path / "disk.raw"
    content = os.urandom(5000) + bytes(20 * MIB) + os.urandom(12_345) + bytes(10_000)
    raw.write_bytes(content)
    volume = await house.made(image_id=stored(house, raw, disk_format="raw"))
    there = house.directory / volume.id
    assert part(there, 0, len(content)) == content
    assert there.stat().st_size == GIB and there.stat().st_blocks * 512 < MIB


async def test_while_it_is_downloaded_it_says_so(house: House, tmp_path: Path) -> None:
    reached, go_on = asyncio.Event(), asyncio.Event()

    async def wait() -> None:
        reached.set()
        await go_on.wait()

    house.images.before_piece = wait
    image_id = stored(house, qcow2(tmp_path, b"x"))
    volume = await house.service.create(ALICE, NewVolume(size_gb=1, image_id=image_id))
    await asyncio.wait_for(reached.wait(), 20)
    assert (await house.service.check(ALICE, volume.id)).status == "downloading"
    with pytest.raises(Conflict, match="downloading"):
        await house.service.reserve(ALICE, volume.id, "server", "a")
    with pytest.raises(Conflict):
        await house.service.remove(ALICE, volume.id)
    go_on.set()
    await house.service.idle()
    assert (await house.service.check(ALICE, volume.id)).status == "available"


@pytest.mark.parametrize(
    ("fields", "size", "said"),
    [
        ({"status": "queued"}, 1, "queued, not active"),
        ({"disk_format": "vmdk"}, 1, "vmdk"),
        ({"min_disk": 3}, 2, "cannot be smaller than the image minDisk"),
        ({"virtual_size": 2 * GIB + 1}, 2, "3GB"),
    ],
)
async def test_an_image_that_will_not_do_is_refused_at_once(
    house: House, tmp_path: Path, fields: dict[str, Any], size: int, said: str
) -> None:
    image_id = stored(house, qcow2(tmp_path, b"x"), **fields)
    with pytest.raises(Invalid, match=said):
        await house.service.create(ALICE, NewVolume(size_gb=size, image_id=image_id))
    with pytest.raises(Invalid, match="Invalid image identifier"):
        await house.service.create(ALICE, NewVolume(size_gb=size, image_id=str(uuid.uuid4())))
    assert house.files() == []


def with_backing(directory: Path) -> Path:
    made = directory / "evil.qcow2"
    command = ["qemu-img", "create", "-q", "-f", "qcow2", "-u", "-F", "raw", "-b", "/etc/passwd", made, "1M"]
    subprocess.run(command, check=True)
    return made


def other_size(directory: Path) -> Path:
    return qcow2(directory, b"x", "1500M")


def no_qcow2(directory: Path) -> Path:
    made = directory / "text"
    made.write_bytes(b"not a disk" * 1000)
    return made


@pytest.mark.parametrize(
    ("make", "said"), [(with_backing, "backing file"), (other_size, "needs"), (no_qcow2, "qcow2")]
)
async def test_what_is_downloaded_is_looked_at_before_it_is_opened(
    house: House, tmp_path: Path, make: Any, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(*_: object, **__: object) -> str:
        raise AssertionError("no program must open it")

    image_id = stored(house, make(tmp_path))
    monkeypatch.setattr("kilonova.programs.run", never)
    volume = await house.made(image_id=image_id)
    assert (await house.service.check(ALICE, volume.id)).status == "error"
    assert said in await fault(house, volume.id)
    assert house.files() == []


async def fault(house: House, volume_id: str) -> str:
    found = await house.db.read(lambda tx: volumes.show(tx, volume_id))
    assert found is not None and found.status == "error"
    return str(found.fault)


@pytest.mark.parametrize("damage", ["shorter", "longer", "other"])
async def test_what_was_not_stored_is_not_taken(house: House, tmp_path: Path, damage: str) -> None:
    image_id = stored(house, qcow2(tmp_path, b"x"))
    pieces = house.images.data[image_id]
    if damage == "shorter":
        pieces[-1] = pieces[-1][:-1]
    elif damage == "longer":
        pieces.append(b"more")
    else:
        pieces[0] = pieces[0][:-1] + b"!"
    volume = await house.made(image_id=image_id)
    assert (await house.service.check(ALICE, volume.id)).status == "error"
    assert house.files() == []


async def test_an_image_that_is_gone_meanwhile(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image_id = stored(house, qcow2(tmp_path, b"x"))
    show = house.images.show
    calls = 0

    async def once(context: Any, wanted: str) -> Image:
        nonlocal calls
        calls += 1
        if calls == 2:
            house.images.images.clear()
        return await show(context, wanted)

    monkeypatch.setattr(house.images, "show", once)
    volume = await house.made(image_id=image_id)
    assert (await house.service.check(ALICE, volume.id)).status == "error"


# ---- copies ----


async def test_a_copy_has_what_its_source_has_and_goes_its_own_way(house: House) -> None:
    source = await house.made(size_gb=1)
    content = os.urandom(3 * MIB)
    with (house.directory / source.id).open("r+b") as file:
        file.seek(500 * MIB)
        file.write(content)
    copy = await house.made(size_gb=2, source_volume=source.id)
    there = house.directory / copy.id
    assert part(there, 500 * MIB, 3 * MIB) == content
    assert there.stat().st_size == 2 * GIB and there.stat().st_blocks * 512 < 4 * MIB
    same = await house.service.create(ALICE, NewVolume(source_volume=source.id))
    assert same.size_gb == 1
    await house.service.idle()
    await house.service.remove(ALICE, source.id)
    await house.service.idle()
    assert part(there, 500 * MIB, 3 * MIB) == content


async def test_a_copy_is_bootable_and_of_a_type_as_its_source(house: House, tmp_path: Path) -> None:
    source = await house.made(image_id=stored(house, qcow2(tmp_path, b"x")))
    copy = await house.made(source_volume=source.id)
    assert (copy.bootable, copy.image_metadata, copy.type_id) == (True, source.image_metadata, source.type_id)


async def test_only_what_nobody_writes_is_copied(house: House) -> None:
    source = await house.made(size_gb=2)
    with pytest.raises(Invalid, match="smaller than original volume size 2GB"):
        await house.service.create(ALICE, NewVolume(size_gb=1, source_volume=source.id))
    await house.service.reserve(ALICE, source.id, "server", "a1")
    with pytest.raises(Conflict, match="available can be copied"):
        await house.service.create(ALICE, NewVolume(source_volume=source.id))
    await house.service.release("a1")


async def test_nobody_gets_a_volume_that_is_being_copied(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kilonova.services.volume import filling

    source = await house.made()
    go_on = asyncio.Event()
    real = filling.Filling._copy

    async def slow(self: Any, *paths: Path) -> None:
        await go_on.wait()
        await real(self, *paths)

    monkeypatch.setattr(filling.Filling, "_copy", slow)
    copy = await house.service.create(ALICE, NewVolume(source_volume=source.id))
    for work in (
        house.service.reserve(ALICE, source.id, "server", "a1"),
        house.service.remove(ALICE, source.id),
        house.service.remove(ALICE, source.id, force=True),
        house.service.delete(source.id),
        house.service.extend(ALICE, source.id, 2),
        house.service.attaching.set_reserved(ALICE, source.id, reserved=True),
    ):
        with pytest.raises(Conflict):
            await work
    go_on.set()
    await house.service.idle()
    await house.service.reserve(ALICE, source.id, "server", "a1")
    assert (await house.service.check(ALICE, copy.id)).status == "available"


async def test_qemu_img_that_fails_is_told_of(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kilonova.programs import ProgramFailed

    async def fail(*command: str, **_: object) -> str:
        raise ProgramFailed(command, 1, "qemu-img: error while writing: No space left on device")

    monkeypatch.setattr("kilonova.programs.run", fail)
    volume = await house.made(image_id=stored(house, qcow2(tmp_path, b"x")))
    assert await fault(house, volume.id) == "There is not enough room for this volume."
    assert house.files() == []
