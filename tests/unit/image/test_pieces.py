"""Images that hosts hand in piece by piece: who may, what is kept, and what is left when it goes wrong."""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kilonova.db import images as rows
from kilonova.db.engine import Database
from kilonova.db.images import DELETED, StoredImage
from kilonova.errors import Conflict, Invalid, KilonovaError, NotFound, TooLarge, TryAgain
from kilonova.services.image.builtin import BuiltinImage
from kilonova.services.image.files import ImageFiles
from kilonova.services.image.port import NewSnapshot
from tests.unit.image.conftest import ADMIN, ALICE, BOB, Ticking, chunks

DATA = bytes(range(256)) * 40
HASH = hashlib.sha512(DATA).hexdigest()


def new(**more: Any) -> NewSnapshot:
    values = {"id": str(uuid.uuid4()), "name": "s-shelved", "owner": "alice", **more}
    return NewSnapshot(**values)


async def opened(images: BuiltinImage, host: str = "h1") -> str:
    snapshot = new()
    await images.add_snapshot(snapshot)
    assert await images.open_upload(snapshot.id, host) is False
    return snapshot.id


async def row(db: Database, image_id: str) -> StoredImage | None:
    return await db.read(lambda tx: rows.show(tx, image_id, None))


async def hand_in(images: BuiltinImage, image_id: str, data: bytes = DATA, size: int = 1000) -> None:
    for offset in range(0, len(data), size):
        piece = data[offset : offset + size]
        assert await images.put_piece(image_id, "h1", offset, piece) == offset + len(piece)


def files(path: Path) -> list[str]:
    return sorted(each.name for each in (path / "images").iterdir() if each.name != ".lock")


async def test_an_image_comes_in_pieces(images: BuiltinImage, db: Database, tmp_path: Path) -> None:
    snapshot = new(min_disk=3, min_ram=64, properties={"a": "b"})
    await images.add_snapshot(snapshot)
    await images.add_snapshot(snapshot)  # the step that makes it may be repeated
    made = await images.get(ALICE, snapshot.id)
    assert (made.status, made.visibility, made.owner, made.name) == (
        "queued",
        "private",
        "alice",
        "s-shelved",
    )
    assert (made.min_disk, made.min_ram, made.properties) == (3, 64, {"a": "b"})
    for _ in range(2):
        assert await images.open_upload(snapshot.id, "h1") is False
    assert (await images.get(ALICE, snapshot.id)).status == "saving"
    await hand_in(images, snapshot.id)
    for _ in range(2):
        await images.finish_upload(snapshot.id, "h1", len(DATA), HASH, "raw")
    found = await images.get(ALICE, snapshot.id)
    assert (found.status, found.size, found.upload, found.disk_format) == ("active", len(DATA), None, "raw")
    assert (found.hash_algo, found.hash_value) == ("sha512", HASH)
    assert (found.checksum, found.virtual_size) == (hashlib.md5(DATA).hexdigest(), len(DATA))
    assert b"".join([piece async for piece in images.read(snapshot.id)]) == DATA
    assert await images.open_upload(snapshot.id, "h1") is True
    assert files(tmp_path) == [snapshot.id]
    with pytest.raises(NotFound):
        await images.put_piece(snapshot.id, "h1", 0, b"more")
    with pytest.raises(NotFound):
        await images.finish_upload(snapshot.id, "h1", 1, HASH, "raw")


async def test_an_id_that_is_anothers(images: BuiltinImage) -> None:
    snapshot = new()
    await images.add_snapshot(snapshot)
    with pytest.raises(Conflict):
        await images.add_snapshot(new(id=snapshot.id, owner="bob"))


async def test_nobody_but_the_host_writes_it(images: BuiltinImage, tmp_path: Path) -> None:
    image_id = await opened(images)
    for host in ("h2", "", "h1 ", "H1"):
        with pytest.raises(NotFound):
            await images.put_piece(image_id, host, 0, DATA)
        with pytest.raises(NotFound):
            await images.finish_upload(image_id, host, len(DATA), HASH, "raw")
    assert files(tmp_path) == []
    with pytest.raises(Conflict):
        await images.open_upload(image_id, "h2")
    with pytest.raises(Conflict):
        await images.upload(ALICE, image_id, chunks(DATA))
    for never in (str(uuid.uuid4()), "../../etc/passwd", ""):
        with pytest.raises(NotFound):
            await images.put_piece(never, "h1", 0, DATA)
        with pytest.raises(NotFound):
            await images.open_upload(never, "h1")


async def test_an_image_of_a_user_is_no_hosts(images: BuiltinImage) -> None:
    """Neither one that waits for its data nor one that is being uploaded."""
    from kilonova.services.image.fields import NewImage

    made = await images.create(
        ALICE, NewImage(owner="alice", disk_format="raw", container_format="bare", name="by host h1")
    )
    with pytest.raises(NotFound):
        await images.put_piece(made.id, "h1", 0, DATA)
    gate = asyncio.Event()

    async def slow() -> Any:
        yield DATA
        await gate.wait()

    upload = asyncio.create_task(images.upload(ALICE, made.id, slow()))
    while (await images.get(ALICE, made.id)).status != "saving":
        await asyncio.sleep(0)
    with pytest.raises(NotFound):
        await images.put_piece(made.id, "h1", 0, DATA)
    with pytest.raises(Conflict):
        await images.open_upload(made.id, "h1")
    gate.set()
    assert (await upload).status == "active"


@pytest.mark.parametrize(("offset", "data"), [(-1, b"x"), (0, b""), (5, b"")])
async def test_pieces_that_are_none(images: BuiltinImage, offset: int, data: bytes) -> None:
    image_id = await opened(images)
    with pytest.raises(Invalid):
        await images.put_piece(image_id, "h1", offset, data)


async def test_it_may_not_be_larger_than_images_are(images: BuiltinImage) -> None:
    image_id = await opened(images)
    with pytest.raises(TooLarge):
        await images.put_piece(image_id, "h1", 8 << 20, b"x")


async def test_pieces_are_taken_in_order_and_repeats_change_nothing(images: BuiltinImage) -> None:
    image_id = await opened(images)
    put: Callable[..., Any] = lambda offset, data: images.put_piece(image_id, "h1", offset, data)  # noqa: E731
    assert await put(3, b"defg") == 0  # what is in front of it has not come
    assert await put(0, b"abc") == 3
    assert await put(0, b"abc") == 3
    assert await put(4, b"efg") == 3
    assert await put(2, b"cdefg") == 7  # a piece of which a part is there
    assert await put(0, b"abc") == 7
    await images.finish_upload(image_id, "h1", 7, hashlib.sha512(b"abcdefg").hexdigest(), "raw")


@given(
    data=st.binary(max_size=60).map(lambda tail: b"." + tail),  # which is the beginning of no format
    order=st.lists(st.tuples(st.integers(0, 59), st.integers(1, 20)), max_size=40),
)
@settings(max_examples=60, deadline=None)
def test_whatever_comes_in_whatever_order_is_what_was_sent(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, order: list[tuple[int, int]]
) -> None:
    """The file is always a beginning of the data, and its length is what is told."""
    kept = ImageFiles(tmp_path_factory.mktemp("images"))
    image_id = str(uuid.UUID(int=1))
    path = kept.directory / f"{image_id}.pieces"
    for offset, size in order:
        piece = data[offset : offset + size]
        if piece:
            there = kept.put_piece(image_id, offset, piece)
            found = path.read_bytes() if path.exists() else b""
            assert found == data[:there]
    for offset in range(0, len(data), 7):
        kept.put_piece(image_id, offset, data[offset : offset + 7])
    sealed = kept.seal_pieces(image_id, len(data), hashlib.sha512(data).hexdigest(), "raw")
    assert sealed.size == len(data)
    assert (kept.directory / image_id).read_bytes() == data and not path.exists()


@pytest.mark.parametrize(
    ("sent", "size", "digest"),
    [
        (DATA[:-1], len(DATA), HASH),
        (DATA + b"x", len(DATA), HASH),
        (DATA[:-1] + b"x", len(DATA), HASH),
        (b"", len(DATA), HASH),
    ],
)
async def test_what_is_not_what_was_sent_is_forgotten(
    images: BuiltinImage, tmp_path: Path, sent: bytes, size: int, digest: str
) -> None:
    image_id = await opened(images)
    if sent:
        await hand_in(images, image_id, sent)
    with pytest.raises(TryAgain):
        await images.finish_upload(image_id, "h1", size, digest, "raw")
    assert files(tmp_path) == []
    assert (await images.get(ALICE, image_id)).status == "saving"
    await hand_in(images, image_id)
    await images.finish_upload(image_id, "h1", len(DATA), HASH, "raw")


async def test_it_must_be_what_it_is_said_to_be(images: BuiltinImage) -> None:
    """A host that was broken into hands in nothing that other hosts would stumble over."""
    data = b"QFI\xfb" + bytes(2000)
    image_id = await opened(images)
    await hand_in(images, image_id, data)
    for said in ("raw", "qcow2", "iso"):
        with pytest.raises(Invalid):
            await images.finish_upload(image_id, "h1", len(data), hashlib.sha512(data).hexdigest(), said)
    assert (await images.get(ALICE, image_id)).status == "saving"


async def test_the_process_dies_between_the_file_and_the_row(
    images: BuiltinImage, db: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image_id = await opened(images)
    await hand_in(images, image_id)

    def die(*_: object) -> None:
        raise KilonovaError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(images._pieces, "_finish", die)
        with pytest.raises(KilonovaError, match="killed"):
            await images.finish_upload(image_id, "h1", len(DATA), HASH, "raw")
    assert files(tmp_path) == [image_id]
    assert (await images.get(ALICE, image_id)).status == "saving"
    await images.finish_upload(image_id, "h1", len(DATA), HASH, "raw")
    assert (await images.get(ALICE, image_id)).status == "active"


# ---- another start, other controllers, deletions ----


@pytest.mark.parametrize("shared", [False, True])
async def test_what_is_being_handed_in_outlives_the_controller(
    images: BuiltinImage, db: Database, tmp_path: Path, shared: bool
) -> None:
    image_id = await opened(images)
    await images.put_piece(image_id, "h1", 0, DATA[:1000])
    await images.close()
    other = BuiltinImage(db, Ticking(), tmp_path / "images", shared=shared)
    await other.recover()
    await other.recover()
    assert (await other.get(ALICE, image_id)).status == "saving"
    assert await other.put_piece(image_id, "h1", 1000, DATA[1000:]) == len(DATA)
    await other.finish_upload(image_id, "h1", len(DATA), HASH, "raw")
    await other.close()


async def test_a_user_deletes_it(images: BuiltinImage, db: Database, tmp_path: Path) -> None:
    image_id = await opened(images)
    await hand_in(images, image_id)
    await images.delete(ALICE, image_id)
    assert await db.read(rows.left_behind) == []
    assert files(tmp_path) == []
    for offset in (0, 1000):
        with pytest.raises(NotFound):
            await images.put_piece(image_id, "h1", offset, DATA)
    with pytest.raises(NotFound):
        await images.finish_upload(image_id, "h1", len(DATA), HASH, "raw")
    with pytest.raises(NotFound):
        await images.open_upload(image_id, "h1")
    with pytest.raises(NotFound):
        await images.get(BOB, image_id)
    assert files(tmp_path) == []


async def test_it_is_removed_by_those_who_have_made_it(
    images: BuiltinImage, db: Database, tmp_path: Path
) -> None:
    queued, saving, active, kept = new(), await opened(images), await opened(images), await opened(images)
    await images.add_snapshot(queued)
    await images.put_piece(saving, "h1", 0, DATA)
    for image_id in (active, kept):
        await hand_in(images, image_id)
        await images.finish_upload(image_id, "h1", len(DATA), HASH, "raw")
    from kilonova.services.image.patch import Change

    await images.update(ALICE, kept, [Change("replace", "protected", True)])
    for image_id in (queued.id, saving, active, kept, str(uuid.uuid4())):
        for _ in range(2):
            await images.remove_snapshot(image_id)
    assert files(tmp_path) == [kept]
    for image_id in (queued.id, saving, active):
        assert await row(db, image_id) is None
    assert await db.read(rows.left_behind) == []
    assert (await images.get(ALICE, kept)).status == "active"


async def test_a_process_that_dies_while_it_removes_one(
    images: BuiltinImage, db: Database, tmp_path: Path
) -> None:
    from msgspec.structs import replace

    image_id = await opened(images)
    await hand_in(images, image_id)
    found = await row(db, image_id)
    assert found is not None
    await db.write(lambda tx: rows.save(tx, replace(found, status=DELETED)))
    await images.recover()
    assert files(tmp_path) == [] and await db.read(rows.left_behind) == []


async def test_a_piece_that_comes_too_late_leaves_nothing_for_long(
    images: BuiltinImage, tmp_path: Path
) -> None:
    """It was let in before the image was deleted, and is written after that."""
    gone, there = await opened(images), await opened(images)
    await images.put_piece(there, "h1", 0, DATA)
    await images.remove_snapshot(gone)
    images._files.put_piece(gone, 0, DATA)
    images._files.put_piece(gone, len(DATA), DATA)
    other = str(uuid.uuid4())
    assert images._files.put_piece(other, 10, DATA) == 0  # and one in the middle begins no file
    assert files(tmp_path) == sorted([f"{gone}.pieces", f"{there}.pieces"])
    await images.sweep()
    assert files(tmp_path) == [f"{there}.pieces"]


async def test_a_full_disk_is_told(images: BuiltinImage, monkeypatch: pytest.MonkeyPatch) -> None:
    image_id = await opened(images)

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("kilonova.services.image.files.os.pwrite", full)
    with pytest.raises(TooLarge, match="not enough room"):
        await images.put_piece(image_id, "h1", 0, DATA)


async def test_administrators_see_it_and_others_do_not(images: BuiltinImage) -> None:
    image_id = await opened(images)
    assert (await images.get(ADMIN, image_id)).id == image_id
    with pytest.raises(NotFound):
        await images.get(BOB, image_id)
