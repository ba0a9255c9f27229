"""The image service itself: the life of an image, what a failed or killed upload leaves, who may what."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from kilonova.db.engine import Database, DatabaseUnavailable, Tx
from kilonova.errors import Conflict, Failed, Forbidden, Invalid, NotFound, TooLarge, TryAgain
from kilonova.services.image.builtin import BuiltinImage
from kilonova.services.image.fields import NewImage
from kilonova.services.image.files import PartFile
from kilonova.services.image.inspect import UnsafeImage
from kilonova.services.image.patch import Change
from tests.unit.image.conftest import ADMIN, ALICE, BOB, READER, UNSCOPED, Ticking, chunks

DATA = os.urandom(3 << 20) + b"the end"


def new(name: str = "disk", **values: object) -> NewImage:
    return NewImage(
        **{"name": name, "owner": "alice", "disk_format": "raw", "container_format": "bare", **values}
    )


def files(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "images").iterdir() if path.name != ".lock")


async def whole(images: BuiltinImage, image_id: str) -> list[bytes]:
    return [piece async for piece in images.read(image_id)]


async def test_what_is_uploaded_is_read_again(images: BuiltinImage, tmp_path: Path) -> None:
    image = await images.create(ALICE, new(properties={"hw_disk_bus": "virtio"}))
    assert (image.status, image.size) == ("queued", None)
    pieces = [DATA[at : at + 10_000] for at in range(0, len(DATA), 10_000)]
    active = await images.upload(ALICE, image.id, chunks(*pieces), len(DATA))
    assert active.status == "active"
    assert active.checksum == hashlib.md5(DATA).hexdigest()
    assert (active.hash_algo, active.hash_value) == ("sha512", hashlib.sha512(DATA).hexdigest())
    assert active.size == active.virtual_size == len(DATA)
    read = await whole(images, image.id)
    assert b"".join(read) == DATA
    assert max(map(len, read)) == 1 << 20
    assert files(tmp_path) == [image.id]
    model = await images.show(ALICE, image.id)
    assert (model.status, model.size, model.disk_format) == ("active", len(DATA), "raw")
    assert model.properties == {"hw_disk_bus": "virtio"}
    assert model.hash_value == active.hash_value


async def test_data_are_given_once_and_only_to_an_image_with_formats(images: BuiltinImage) -> None:
    bare = await images.create(ALICE, NewImage(name="no format", owner="alice"))
    with pytest.raises(Invalid, match="disk_format"):
        await images.upload(ALICE, bare.id, chunks(b"x"))
    image = await images.create(ALICE, new())
    await images.upload(ALICE, image.id, chunks(b"x"))
    with pytest.raises(Conflict, match="active to saving"):
        await images.upload(ALICE, image.id, chunks(b"y"))
    assert await whole(images, image.id) == [b"x"]


async def test_two_uploads_at_once_have_one_winner(images: BuiltinImage) -> None:
    image = await images.create(ALICE, new())
    results = await asyncio.gather(
        *(images.upload(ALICE, image.id, chunks(bytes([n]) * 100)) for n in range(5)),
        return_exceptions=True,
    )
    assert sum(isinstance(each, Conflict) for each in results) == 4
    winner = next(n for n, each in enumerate(results) if not isinstance(each, Conflict))
    assert await whole(images, image.id) == [bytes([winner]) * 100]


async def test_an_image_without_data_may_be_active(images: BuiltinImage) -> None:
    image = await images.create(ALICE, new(disk_format="qcow2"))
    active = await images.upload(ALICE, image.id, chunks())
    assert (active.status, active.size, active.virtual_size) == ("active", 0, 0)


async def broken(*, after: bytes) -> AsyncIterator[bytes]:
    yield after
    raise Invalid("The upload ended before all data were sent.")


async def nothing_more() -> AsyncIterator[bytes]:
    yield b"x"
    await asyncio.Event().wait()


@pytest.mark.parametrize(
    ("source", "declared", "error"),
    [
        (lambda: broken(after=DATA), None, Invalid),
        (lambda: chunks(b"abc"), 4, Invalid),
        (lambda: chunks(b"abc", b"de"), 4, Invalid),
        (lambda: chunks(b"abc"), 1 << 30, TooLarge),
        (lambda: chunks(*[bytes(1 << 20)] * 9), None, TooLarge),
        (lambda: chunks(b"QFI\xfb" + bytes(600)), None, UnsafeImage),
    ],
)
async def test_a_failed_upload_leaves_a_queued_image_and_nothing_else(
    images: BuiltinImage, tmp_path: Path, source: object, declared: int | None, error: type[Exception]
) -> None:
    image = await images.create(ALICE, new())
    with pytest.raises(error):
        await images.upload(ALICE, image.id, source(), declared)  # type: ignore[operator]
    found = await images.get(ALICE, image.id)
    assert (found.status, found.size, found.checksum, found.upload) == ("queued", None, None, None)
    assert files(tmp_path) == []
    with pytest.raises(NotFound, match="no data"):
        await whole(images, image.id)
    assert (await images.upload(ALICE, image.id, chunks(b"right"))).status == "active"


async def test_an_upload_that_stands_still_is_given_up(db: Database, tmp_path: Path) -> None:
    images = BuiltinImage(db, Ticking(), tmp_path / "images", stall=0.05)
    await images.recover()
    image = await images.create(ALICE, new())
    with pytest.raises(Invalid, match="stood still"):
        await images.upload(ALICE, image.id, nothing_more())
    assert (await images.get(ALICE, image.id)).status == "queued"
    assert files(tmp_path) == []
    await images.close()


async def test_a_cancelled_upload_leaves_nothing(images: BuiltinImage, tmp_path: Path) -> None:
    image = await images.create(ALICE, new())
    started = asyncio.Event()

    async def source() -> AsyncIterator[bytes]:
        yield DATA
        yield DATA
        started.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(images.upload(ALICE, image.id, source()))
    await started.wait()
    assert (await images.get(ALICE, image.id)).status == "saving"
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await images.get(ALICE, image.id)).status == "queued"
    assert files(tmp_path) == []


@pytest.mark.parametrize(
    ("number", "error", "text"),
    [
        (errno.ENOSPC, TooLarge, "not enough room"),
        (errno.EDQUOT, TooLarge, "not enough room"),
        (errno.EIO, TryAgain, "cannot be written"),
    ],
)
@pytest.mark.parametrize("place", ["write", "seal"])
async def test_a_store_that_fails_says_so_and_keeps_nothing(
    images: BuiltinImage,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    error: type[Exception],
    text: str,
    place: str,
) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    image = await images.create(ALICE, new())
    with monkeypatch.context() as patch:
        patch.setattr(PartFile, place, fail)
        with pytest.raises(error, match=text):
            await images.upload(ALICE, image.id, chunks(DATA, DATA))
    assert (await images.get(ALICE, image.id)).status == "queued"
    assert files(tmp_path) == []


@pytest.mark.real
async def test_a_full_disk_says_so_and_keeps_nothing(db: Database, tmp_path: Path) -> None:
    small = tmp_path / "images"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(small)], check=True)
    try:
        images = BuiltinImage(db, Ticking(), small)
        await images.recover()
        image = await images.create(ALICE, new())
        with pytest.raises(TooLarge, match="not enough room"):
            await images.upload(ALICE, image.id, chunks(DATA))
        assert (await images.get(ALICE, image.id)).status == "queued"
        assert files(tmp_path) == []
        assert (await images.upload(ALICE, image.id, chunks(DATA[: 1 << 20]))).status == "active"
        await images.close()
    finally:
        subprocess.run(["umount", str(small)], check=True)


async def test_deleting_takes_the_data_away(images: BuiltinImage, tmp_path: Path) -> None:
    image = await images.create(ALICE, new())
    await images.upload(ALICE, image.id, chunks(DATA))
    reader = images.read(image.id)
    first = await anext(reader)
    await images.delete(ALICE, image.id)
    assert files(tmp_path) == []
    with pytest.raises(NotFound):
        await images.get(ALICE, image.id)
    with pytest.raises(NotFound):
        await whole(images, image.id)
    rest = [piece async for piece in reader]  # who had begun reading reads on
    assert first + b"".join(rest) == DATA


async def test_an_image_deleted_during_its_upload_is_gone_when_that_ends(
    images: BuiltinImage, tmp_path: Path
) -> None:
    image = await images.create(ALICE, new())

    async def source() -> AsyncIterator[bytes]:
        yield b"x"
        await images.delete(ALICE, image.id)
        with pytest.raises(Conflict):  # the id is not free before the upload has ended
            await images.create(ALICE, new(id=image.id))
        yield b"y"

    with pytest.raises(NotFound, match="deleted while"):
        await images.upload(ALICE, image.id, source())
    assert files(tmp_path) == []
    again = await images.create(ALICE, new(id=image.id))
    assert again.status == "queued"


async def test_what_a_killed_process_left_is_set_right_at_the_next_start(
    db: Database, tmp_path: Path
) -> None:
    killed = BuiltinImage(db, Ticking(), tmp_path / "images")
    await killed.recover()
    stopped, renamed, deleted, whole_one = [await killed.create(ALICE, new()) for _ in range(4)]
    await killed.upload(ALICE, whole_one.id, chunks(b"whole"))
    reached: asyncio.Queue[str] = asyncio.Queue()

    async def source(image_id: str) -> AsyncIterator[bytes]:
        yield b"x" * (2 << 20)
        await reached.put(image_id)
        await asyncio.Event().wait()

    tasks = [
        asyncio.create_task(killed.upload(ALICE, image.id, source(image.id)))
        for image in (stopped, renamed, deleted)
    ]
    for _ in tasks:
        await reached.get()
    await killed.delete(ALICE, deleted.id)
    # One was killed after its data had got their name and before the commit.
    (tmp_path / "images" / renamed.id).write_bytes(b"complete")
    killed._files.release()  # a killed process holds no lock, and its tasks run no further

    fresh = BuiltinImage(db, Ticking(), tmp_path / "images")
    await fresh.recover()
    assert (await fresh.get(ALICE, stopped.id)).status == "queued"
    assert (await fresh.get(ALICE, renamed.id)).status == "queued"
    with pytest.raises(NotFound):
        await fresh.get(ALICE, deleted.id)
    assert files(tmp_path) == [whole_one.id]
    assert (await fresh.upload(ALICE, stopped.id, chunks(b"at last"))).status == "active"
    for task in tasks:  # and a slow old one that lives on does no harm
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert await whole(fresh, stopped.id) == [b"at last"]
    await killed.close()
    await fresh.close()


async def test_files_that_are_not_ours_are_left_alone(db: Database, tmp_path: Path) -> None:
    directory = tmp_path / "images"
    directory.mkdir()
    (directory / "notes.txt").write_text("mine")
    (directory / "disk.part").write_text("mine")
    images = BuiltinImage(db, Ticking(), directory)
    await images.recover()
    assert files(tmp_path) == ["disk.part", "notes.txt"]
    await images.close()


async def test_a_directory_belongs_to_one_process(images: BuiltinImage, db: Database, tmp_path: Path) -> None:
    other = BuiltinImage(db, Ticking(), tmp_path / "images")
    with pytest.raises(Failed, match="Another process"):
        await other.recover()
    await images.recover()  # the holder may do it again
    await other.close()


class Unsteady:
    """A database whose n-th write is done, or not done, and in either case reported as lost."""

    def __init__(self, db: Database, number: int, *, done: bool) -> None:
        self._db, self._left, self._done = db, number, done
        self.name, self.read, self.close = db.name, db.read, db.close

    async def write(self, fn: Callable[[Tx], Any]) -> Any:
        self._left -= 1
        if self._left == 0 and not self._done:
            raise DatabaseUnavailable("lost")
        result = await self._db.write(fn)
        if self._left == 0:
            raise DatabaseUnavailable("lost")
        return result


@pytest.mark.parametrize("done", [True, False])
async def test_a_commit_that_nobody_heard_of_is_believed(db: Database, tmp_path: Path, done: bool) -> None:
    images = BuiltinImage(Unsteady(db, 3, done=done), Ticking(), tmp_path / "images")
    await images.recover()
    image = await images.create(ALICE, new())
    with pytest.raises(DatabaseUnavailable):  # the third write makes the image active
        await images.upload(ALICE, image.id, chunks(b"data"))
    found = await images.get(ALICE, image.id)
    assert (found.status, found.upload) == ("active" if done else "queued", None)
    assert files(tmp_path) == ([image.id] if done else [])
    await images.close()


@pytest.mark.parametrize("image_id", ["../../etc/passwd", "x", "", "A" * 36, "\0", ".lock"])
async def test_only_ids_become_file_names(images: BuiltinImage, image_id: str) -> None:
    with pytest.raises(NotFound):
        await whole(images, image_id)


async def test_who_sees_and_who_changes(images: BuiltinImage) -> None:
    public = await images.create(ADMIN, new("public", owner="admin", visibility="public"))
    for visibility in ("private", "shared"):
        image = await images.create(ALICE, new(visibility=visibility))
        assert (await images.get(READER, image.id)).id == image.id
        assert (await images.get(ADMIN, image.id)).id == image.id
        for stranger in (BOB, UNSCOPED):
            with pytest.raises(NotFound):
                await images.get(stranger, image.id)
            with pytest.raises(NotFound):
                await images.delete(stranger, image.id)
        with pytest.raises(Forbidden):
            await images.update(READER, image.id, [Change("replace", "name", "x")])
    for anyone in (BOB, UNSCOPED, READER):
        assert (await images.get(anyone, public.id)).name == "public"
        with pytest.raises(Forbidden):
            await images.delete(anyone, public.id)
    with pytest.raises(Forbidden):
        await images.create(ALICE, new(visibility="public"))
    with pytest.raises(Forbidden):
        await images.create(READER, new())
    with pytest.raises(Forbidden):
        await images.create(UNSCOPED, new())


async def test_a_protected_image_stays(images: BuiltinImage) -> None:
    image = await images.create(ALICE, new(protected=True))
    for anyone in (ALICE, ADMIN):
        with pytest.raises(Forbidden, match="protected"):
            await images.delete(anyone, image.id)
    await images.update(ALICE, image.id, [Change("replace", "protected", False)])
    await images.delete(ALICE, image.id)


async def test_changing_nothing_changes_no_time(images: BuiltinImage) -> None:
    image = await images.create(ALICE, new())
    same = await images.update(ALICE, image.id, [Change("replace", "name", "disk")])
    assert same.updated_at == image.updated_at
    other = await images.update(ALICE, image.id, [Change("replace", "name", "other")])
    assert other.updated_at > image.updated_at


async def test_deactivating_needs_data(images: BuiltinImage) -> None:
    image = await images.create(ALICE, new())
    with pytest.raises(Forbidden):
        await images.set_active(ALICE, image.id, active=False)
    await images.upload(ALICE, image.id, chunks(b"x"))
    for _ in range(2):
        await images.set_active(ALICE, image.id, active=False)
        assert (await images.show(ALICE, image.id)).status == "deactivated"
    await images.set_active(ALICE, image.id, active=True)
    assert (await images.show(ALICE, image.id)).status == "active"


async def test_members_see_what_is_shared_and_accept_it_themselves(images: BuiltinImage) -> None:
    image = await images.create(ALICE, new())
    member = await images.members.add(ALICE, image.id, "bob")
    assert member.status == "pending"
    with pytest.raises(Conflict):
        await images.members.add(ALICE, image.id, "bob")
    assert (await images.get(BOB, image.id)).membership == "pending"
    with pytest.raises(Forbidden):
        await images.members.set_status(ALICE, image.id, "bob", "accepted")
    with pytest.raises(Forbidden):
        await images.members.add(BOB, image.id, "carol")
    with pytest.raises(Forbidden):
        await images.members.remove(BOB, image.id, "bob")
    accepted = await images.members.set_status(BOB, image.id, "bob", "accepted")
    assert accepted.status == (await images.members.show(ALICE, image.id, "bob")).status == "accepted"
    await images.members.add(ALICE, image.id, "carol")
    assert [each.member for each in await images.members.list(ALICE, image.id)] == ["bob", "carol"]
    assert [each.member for each in await images.members.list(BOB, image.id)] == ["bob"]
    with pytest.raises(NotFound):
        await images.members.show(BOB, image.id, "carol")
    with pytest.raises(NotFound):
        await images.members.set_status(BOB, image.id, "carol", "accepted")
    with pytest.raises(Invalid):
        await images.members.set_status(BOB, image.id, "bob", "perhaps")
    await images.members.remove(ALICE, image.id, "bob")
    with pytest.raises(NotFound):
        await images.get(BOB, image.id)
    with pytest.raises(NotFound):
        await images.members.remove(ALICE, image.id, "bob")
    await images.update(ALICE, image.id, [Change("replace", "visibility", "private")])
    with pytest.raises(Forbidden, match="Only shared"):
        await images.members.add(ALICE, image.id, "bob")


async def test_members_have_a_limit(images: BuiltinImage) -> None:
    image = await images.create(ALICE, new())
    for number in range(128):
        await images.members.add(ALICE, image.id, f"p{number}")
    with pytest.raises(TooLarge):
        await images.members.add(ALICE, image.id, "one more")


async def test_a_deleted_image_takes_its_members_along(images: BuiltinImage) -> None:
    image = await images.create(ALICE, new())
    await images.members.add(ALICE, image.id, "bob")
    await images.delete(ALICE, image.id)
    await images.create(ALICE, new(id=image.id))
    assert await images.members.list(ALICE, image.id) == []


async def test_local_images_are_put_in_once(images: BuiltinImage, tmp_path: Path) -> None:
    source = tmp_path / "guest.img"
    source.write_bytes(DATA)
    first = await images.add_local(ADMIN, "cirros", source, properties={"os_distro": "cirros"})
    assert (first.status, first.visibility, first.size) == ("active", "public", len(DATA))
    assert (await images.show(BOB, first.id)).properties == {"os_distro": "cirros"}
    assert (await images.add_local(ADMIN, "cirros", b"other")).id == first.id
    assert b"".join(await whole(images, first.id)) == DATA
    tiny = await images.add_local(ADMIN, "tiny", b"x" * 512)
    assert (tiny.size, tiny.id != first.id) == (512, True)


async def test_a_local_image_that_cannot_be_had_leaves_nothing(images: BuiltinImage, tmp_path: Path) -> None:
    with pytest.raises(TryAgain):
        await images.add_local(ADMIN, "gone", tmp_path / "missing")
    with pytest.raises(UnsafeImage):
        await images.add_local(ADMIN, "gone", b"not a qcow2", disk_format="qcow2")
    assert files(tmp_path) == []
    assert (await images.add_local(ADMIN, "gone", b"x")).status == "active"


async def test_a_first_start_that_was_killed_is_gone_on_with(images: BuiltinImage) -> None:
    record = await images._local_record(ADMIN, "cirros", "raw", {})
    image = await images.add_local(ADMIN, "cirros", b"x")
    assert (image.id, image.status) == (record.id, "active")
