"""What a kill leaves, at any moment, the next start ends."""

from __future__ import annotations

import asyncio
import hashlib
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kilonova.db import volume_ledger, volumes
from kilonova.db.engine import Tx
from kilonova.db.volumes import StoredVolume
from kilonova.errors import Failed, NotFound, TryAgain
from kilonova.model.image import Image
from kilonova.services.volume import files as files_module
from kilonova.services.volume.files import GIB, Draft, VolumeFiles
from kilonova.services.volume.records import NewVolume
from tests.unit.volume.conftest import ALICE, House

DATA = os.urandom(3_000_000)


def an_image(house: House, data: bytes = DATA, **fields: Any) -> str:
    image_id = str(uuid.uuid4())
    house.images.images[image_id] = Image(
        id=image_id,
        name="disk",
        size=len(data),
        virtual_size=len(data),
        hash_algo="sha512",
        hash_value=hashlib.sha512(data).hexdigest(),
        **{"disk_format": "raw", **fields},
    )
    house.images.data[image_id] = [data[at : at + (1 << 20)] for at in range(0, len(data), 1 << 20)]
    return image_id


async def row(house: House, volume_id: str) -> StoredVolume | None:
    return await house.db.read(lambda tx: volumes.show(tx, volume_id))


async def settled(house: House, *ids: str) -> None:
    """Nothing is under way, and what there is belongs to a volume."""
    assert house.files() == sorted(ids)
    assert await house.db.read(volume_ledger.audit) == []
    for each in ids:
        found = await row(house, each)
        assert found is not None and (found.status, found.maker, found.fault) == ("available", None, None)


MOMENTS: list[tuple[type, str, bool]] = [
    (Draft, "open", False),
    (Draft, "open", True),
    (Draft, "publish", False),
    (Draft, "publish", True),
    (Draft, "close", False),
    (Draft, "close", True),
    (VolumeFiles, "exists", False),
]
"""A call of the making, and whether the kill comes after it."""


def kill_at(patch: pytest.MonkeyPatch, owner: type, name: str, after: bool) -> asyncio.Event:
    """From then on nothing is done any more, as if the process had been killed there."""
    real = getattr(owner, name)
    reached = asyncio.Event()
    loop = asyncio.get_running_loop()

    def dying(self: Any, *args: Any) -> Any:
        if after:
            real(self, *args)
        if isinstance(self, Draft):
            _dead(self)
        loop.call_soon_threadsafe(reached.set)
        raise asyncio.CancelledError  # which nothing answers, as nothing answers a kill

    patch.setattr(owner, name, dying)
    return reached


@pytest.mark.parametrize(("owner", "name", "after"), MOMENTS)
@pytest.mark.parametrize("source", ["blank", "image", "copy"])
async def test_a_making_that_was_killed_is_ended(
    house: House, source: str, owner: type, name: str, after: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    new, kept = NewVolume(size_gb=1), []
    if source == "image":
        new = NewVolume(size_gb=1, image_id=an_image(house))
    if source == "copy":
        original = await house.made()
        write(house.directory / original.id, DATA)
        new, kept = NewVolume(source_volume=original.id), [original.id]
    with monkeypatch.context() as patch:
        reached = kill_at(patch, owner, name, after)
        if (owner, name) != (Draft, "close"):  # which a killed process does not come to
            patch.setattr(Draft, "close", _dead)
        volume = await house.service.create(ALICE, new)
        await asyncio.wait_for(reached.wait(), 20)
        await house.killed()
    found = await row(house, volume.id)
    assert found is not None and found.status in ("creating", "downloading")
    service = house.service = house.another()
    await service.recover()
    await service.idle()
    await settled(house, *kept, volume.id)
    there = house.directory / volume.id
    assert there.stat().st_size == GIB
    assert beginning(there) == (bytes(len(DATA)) if source == "blank" else DATA)


def write(path: Path, data: bytes) -> None:
    with path.open("r+b") as file:
        file.write(data)


def beginning(path: Path, size: int = len(DATA)) -> bytes:
    with path.open("rb") as file:
        return file.read(size)


async def changed(house: House, volume_id: str, **values: Any) -> None:
    def run(tx: Tx) -> None:
        volume = volumes.lock(tx, volume_id)
        assert volume is not None
        volumes.save(tx, msgspec.structs.replace(volume, **values))

    await house.db.write(run)


async def test_a_deletion_that_was_killed_is_ended(house: House) -> None:
    before, after = await house.made(), await house.made()
    for volume in (before, after):
        await changed(house, volume.id, status="deleting")
    (house.directory / after.id).unlink()  # it came as far as this
    await house.again()
    await settled(house)
    for volume in (before, after):
        with pytest.raises(NotFound):
            await house.service.check(ALICE, volume.id)
    assert await house.db.read(lambda tx: volume_ledger.usages(tx, "alice")) == {"volumes": 0, "gigabytes": 0}


async def test_a_growth_that_was_killed_is_ended(house: House) -> None:
    before, after = await house.made(), await house.made()

    def grow(tx: Tx) -> None:
        volume_ledger.use(tx, "alice", "gigabytes", 4)

    await house.db.write(grow)
    for volume in (before, after):
        await changed(house, volume.id, status="extending", growing_to=3)
    os.truncate(house.directory / after.id, 3 * GIB)
    await house.again()
    await settled(house, *sorted((before.id, after.id)))
    for volume in (before, after):
        assert (await house.service.check(ALICE, volume.id)).size_gb == 3
        assert (house.directory / volume.id).stat().st_size == 3 * GIB


async def test_a_file_that_comes_after_the_deletion_is_removed(house: House) -> None:
    volume = await house.made()
    await house.service.remove(ALICE, volume.id)
    await house.service.idle()
    (house.directory / volume.id).write_bytes(b"late")
    await house.service.recover()
    await settled(house)


async def test_a_deleted_volume_is_forgotten_after_a_day(house: House) -> None:
    volume = await house.made()
    await house.service.remove(ALICE, volume.id)
    await house.service.idle()
    await house.service.recover()
    assert volume.id in await house.db.read(volumes.known)
    house.clock.advance(86_401)
    await house.service.recover()
    assert volume.id not in await house.db.read(volumes.known)


async def test_files_of_others_are_left_alone(house: House) -> None:
    strange = [str(uuid.uuid4()), "notes.txt", f"{uuid.uuid4()}.qcow2"]
    for name in strange:
        (house.directory / name).write_bytes(b"mine")
    await house.again()
    assert house.files() == sorted(strange)


async def test_a_volume_deleted_by_force_while_it_is_made_leaves_nothing(house: House) -> None:
    image_id, reached, go_on = an_image(house), asyncio.Event(), asyncio.Event()

    async def wait() -> None:
        reached.set()
        await go_on.wait()

    house.images.before_piece = wait
    volume = await house.service.create(ALICE, NewVolume(size_gb=1, image_id=image_id))
    await asyncio.wait_for(reached.wait(), 20)
    assert (await house.service.check(ALICE, volume.id)).status == "downloading"
    await house.service.remove(ALICE, volume.id, force=True)
    go_on.set()
    await house.service.idle()
    await settled(house)


async def test_a_directory_is_one_process_s(house: House) -> None:
    other = house.another()
    with pytest.raises(Failed, match="Another process uses the volume directory"):
        await other.recover()
    await house.killed()
    await other.recover()


# ---- several controllers with one directory ----


async def test_what_a_dead_controller_was_at_another_ends(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    await house.killed()
    one, two = house.another(shared=True), house.another(shared=True)
    await one.recover()
    await two.recover()
    image_id, reached, never = an_image(house), asyncio.Event(), asyncio.Event()

    async def wait() -> None:
        reached.set()
        await never.wait()

    house.images.before_piece = wait
    volume = await one.create(ALICE, NewVolume(size_gb=1, image_id=image_id))
    await asyncio.wait_for(reached.wait(), 20)
    house.clock.advance(3600)
    await two.recover()
    found = await row(house, volume.id)
    assert found is not None and (found.status, found.maker) == ("downloading", volume.maker), "it lives"
    drafts = house.files()
    assert len(drafts) == 2
    with monkeypatch.context() as patch:
        patch.setattr(Draft, "close", _dead)
        await house.killed(one)
    assert house.files() == drafts, "a killed process removes nothing"
    go_on = asyncio.Event()
    house.images.before_piece = go_on.wait
    await two.recover()
    found = await row(house, volume.id)
    assert found is not None and found.maker != volume.maker, "who was taken for dead ends nothing any more"
    go_on.set()
    await two.idle()
    await two.recover()
    await settled(house, volume.id)
    assert beginning(house.directory / volume.id) == DATA


async def test_what_another_controller_has_deleted_is_not_left_by_its_maker(house: House) -> None:
    await house.killed()
    one, two = house.another(shared=True), house.another(shared=True)
    await one.recover()
    await two.recover()
    reached, go_on = asyncio.Event(), asyncio.Event()

    async def wait() -> None:
        reached.set()
        await go_on.wait()

    house.images.before_piece = wait
    volume = await one.create(ALICE, NewVolume(size_gb=1, image_id=an_image(house)))
    await asyncio.wait_for(reached.wait(), 20)
    await two.remove(ALICE, volume.id, force=True)
    await two.idle()
    assert await row(house, volume.id) is None
    go_on.set()
    await one.idle()
    await settled(house)


def _dead(draft: Draft) -> None:
    """All that the system does for a process that was killed."""
    if draft._lock is not None:
        draft._lock.close()


async def test_a_maker_that_is_late_replaces_nothing(house: House) -> None:
    """It was taken for dead, and comes back when another has made the volume and it has been written to."""
    volume = await house.made()
    path = house.directory / volume.id
    write(path, b"precious")
    late = Draft(house.directory, volume.id, "0" * 32)
    late.open(GIB)
    late.publish()
    late.close()
    assert beginning(path, 8) == b"precious"
    await settled(house, volume.id)


def test_a_late_growth_does_not_shrink(tmp_path: Path) -> None:
    there = VolumeFiles(tmp_path)
    volume_id = str(uuid.uuid4())
    (tmp_path / volume_id).write_bytes(b"x" * 100)
    there.grow(volume_id, 300)
    there.grow(volume_id, 200)
    assert (tmp_path / volume_id).stat().st_size == 300


# ---- failures ----


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (OSError(28, "No space left on device"), "not enough room"),
        (OSError(5, "Input/output error"), "storage failed: Input/output error"),
        (RuntimeError("secret"), "see the log"),
    ],
)
async def test_what_cannot_be_made_is_in_error_and_says_why(
    house: House, broken: Exception, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise broken

    monkeypatch.setattr(Draft, "publish", fail)
    volume = await house.made()
    found = await row(house, volume.id)
    assert found is not None and found.status == "error" and said in str(found.fault)
    assert "secret" not in str(found.fault)
    assert house.files() == []
    await house.service.remove(ALICE, volume.id)
    await house.service.idle()
    await settled(house)


async def test_what_cannot_be_removed_is_not_forgotten(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = await house.made()
    with monkeypatch.context() as patch:
        patch.setattr(VolumeFiles, "remove", _broken)
        await house.service.remove(ALICE, volume.id)
        await house.service.idle()
    assert (await house.service.check(ALICE, volume.id)).status == "error_deleting"
    assert await house.db.read(volume_ledger.audit) == []
    await house.service.remove(ALICE, volume.id)
    await house.service.idle()
    await settled(house)


async def test_what_cannot_grow_is_as_large_as_it_was(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = await house.made()
    with monkeypatch.context() as patch:
        patch.setattr(VolumeFiles, "grow", _broken)
        await house.service.extend(ALICE, volume.id, 4)
        await house.service.idle()
    found = await house.service.check(ALICE, volume.id)
    assert (found.status, found.size_gb) == ("error_extending", 1)
    assert await house.db.read(volume_ledger.audit) == []


def _broken(*_: object) -> None:
    raise OSError(5, "Input/output error")


async def test_a_database_that_is_away_is_waited_for(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    from kilonova.errors import DatabaseUnavailable

    real: Callable[..., Any] = house.db.write
    away = False

    async def write(fn: Any) -> Any:
        if away:
            raise DatabaseUnavailable("away")
        return await real(fn)

    monkeypatch.setattr(house.db, "write", write)
    published = files_module.Draft.publish

    def publish(draft: Draft) -> None:
        nonlocal away
        published(draft)
        away = True

    monkeypatch.setattr(Draft, "publish", publish)
    volume = await house.service.create(ALICE, NewVolume(size_gb=1))
    await house.service.idle()
    away = False
    assert (await house.service.check(ALICE, volume.id)).status == "creating"
    await house.service.recover()
    await house.service.idle()
    await settled(house, volume.id)


async def test_an_image_service_that_is_silent_is_waited_for(house: House) -> None:
    silent = True

    async def wait() -> None:
        if silent:
            raise TryAgain("not now")

    house.images.before_piece = wait
    volume = await house.made(image_id=an_image(house))
    found = await row(house, volume.id)
    assert found is not None and (found.status, found.fault) == ("downloading", None)
    silent = False
    await house.service.recover()
    await house.service.idle()
    await settled(house, volume.id)
    assert beginning(house.directory / volume.id) == DATA
