"""Which files a controller can have QEMU open, and whose they become."""

from __future__ import annotations

import os
import struct
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from kilonova.errors import HostFault
from kilonova.model.volume import Attachment, Connection
from kilonova.virt.libvirt import volumes
from kilonova.virt.libvirt.qcow2 import MAGIC
from kilonova.virt.libvirt.volumes import (
    Mode,
    QemuUser,
    VolumeDirectory,
    VolumeFile,
    When,
    _may_open,
    cache_mode,
)

US = QemuUser(os.geteuid(), os.getegid())
OTHER = QemuUser(64055, 64056)
BACKING, DATA_FILE = 8, 72  # where a qcow2 says that it needs other files


root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files to others")


@pytest.fixture
def searchable() -> Iterator[Path]:
    """A directory in which everybody finds what he knows the name of."""
    with tempfile.TemporaryDirectory(prefix="kn-volumes-") as made:
        Path(made).chmod(0o711)
        yield Path(made)


@pytest.fixture
def directory(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[VolumeDirectory]:
    open_to_all = "searchable" in request.fixturenames
    made = VolumeDirectory(request.getfixturevalue("searchable") if open_to_all else tmp_path)
    yield made
    made.close()


def attachment(directory: Path, volume_id: str = "", **more: str) -> Attachment:
    volume_id = volume_id or str(uuid.uuid4())
    fields = {"kind": "file", "path": str(directory / volume_id), **more}
    return Attachment(id="b", volume_id=volume_id, attachment_id="a", connection=Connection(**fields))


def made(directory: Path, content: bytes = b"\0" * 512, mode: int = 0o600, **more: str) -> Attachment:
    found = attachment(directory, **more)
    path = directory / found.volume_id
    path.write_bytes(content)
    path.chmod(mode)
    return found


async def used(
    directory: VolumeDirectory, volume: Attachment, user: QemuUser | None = US, when: When = "starting"
) -> VolumeFile:
    (found,) = await directory.usable((volume,), user, when)
    return found


async def test_a_volume_is_its_own_file(directory: VolumeDirectory, tmp_path: Path) -> None:
    volume = made(tmp_path)
    found = await used(directory, volume)
    assert (found.path, found.format, found.owned) == (tmp_path / volume.volume_id, "raw", True)
    assert not (await used(directory, volume, None)).owned  # whose QEMU will be is libvirt's to say
    assert await directory.usable((), US, "starting") == ()


async def test_no_other_file_is_opened(directory: VolumeDirectory, tmp_path: Path) -> None:
    volume, other = made(tmp_path), made(tmp_path)
    own = str(tmp_path / volume.volume_id)
    for path in (
        "/etc/shadow",
        str(tmp_path / other.volume_id),
        f"{tmp_path}/../{tmp_path.name}/{volume.volume_id}",
        f"{own}/",
        f"/{own}",
        own.upper(),
        volume.volume_id,
        "",
        "nbd://elsewhere/volume",
    ):
        with pytest.raises(HostFault, match=f"{volume.volume_id} is said to be .* could be {own} only"):
            await used(directory, attachment(tmp_path, volume.volume_id, path=path))
    for name in ("..", "shadow", volume.volume_id.upper(), "{" + volume.volume_id + "}", ""):
        with pytest.raises(HostFault, match="is no volume's uuid"):
            await used(directory, replace(attachment(tmp_path, "x"), volume_id=name))


@given(st.text(max_size=60), st.text(max_size=60))
def test_whatever_a_controller_says(volume_id: str, path: str) -> None:
    """What is allowed is below the directory, with the name of the volume."""
    here = Path("/volumes")
    directory = VolumeDirectory(here)
    try:
        found = directory._allowed(attachment(here, volume_id or "x", path=path))
    except HostFault:
        return
    assert found.parent == here and str(uuid.UUID(volume_id)) == found.name


async def test_what_is_no_plain_file(directory: VolumeDirectory, tmp_path: Path) -> None:
    real = made(tmp_path)
    folder, link, pipe, missing = (attachment(tmp_path) for _ in range(4))
    (tmp_path / folder.volume_id).mkdir()
    (tmp_path / link.volume_id).symlink_to(tmp_path / real.volume_id)
    os.mkfifo(tmp_path / pipe.volume_id)
    for volume in (folder, link, pipe):
        with pytest.raises(HostFault, match=f"{volume.volume_id} cannot be had .* is no file with data"):
            await used(directory, volume)
    with pytest.raises(HostFault, match=f"{missing.volume_id} cannot be had .* there is no {tmp_path}"):
        await directory.usable((real, missing), US, "looking")


async def test_other_kinds_of_volumes(directory: VolumeDirectory, tmp_path: Path) -> None:
    for volume in (
        made(tmp_path, kind="rbd"),
        made(tmp_path, format="vmdk"),
        made(tmp_path, format="luks"),
    ):
        with pytest.raises(HostFault, match="this host knows files, raw or qcow2"):
            await used(directory, volume)
    with pytest.raises(HostFault, match="is not connected to this host"):
        await used(directory, replace(made(tmp_path), connection=None))


async def test_a_host_without_a_directory(tmp_path: Path) -> None:
    nowhere = VolumeDirectory(None)
    with pytest.raises(HostFault, match=r"set \[volume\]directory"):
        await used(nowhere, made(tmp_path))
    assert await nowhere.usable((), US, "starting") == ()
    nowhere.close()


def qcow2(at: int = 0, value: int = 0) -> bytes:
    head = bytearray(struct.pack(">4sIQIIQI", MAGIC, 3, 0, 0, 16, 1 << 20, 0).ljust(512, b"\0"))
    struct.pack_into(">Q", head, at or 100, value)
    return bytes(head)


async def test_a_qcow2_must_need_no_other_file(directory: VolumeDirectory, tmp_path: Path) -> None:
    assert (await used(directory, made(tmp_path, qcow2(), format="qcow2"))).format == "qcow2"
    for content in (qcow2(BACKING, 200), qcow2(DATA_FILE, 4), b"nothing of that kind"):
        with pytest.raises(HostFault, match="no qcow2 that needs no other file"):
            await used(directory, made(tmp_path, content, format="qcow2"))
    # The same in a raw volume is what a guest has written, and means nothing.
    assert (await used(directory, made(tmp_path, qcow2(BACKING, 200)))).format == "raw"


@given(st.integers(0, 0o777), st.sampled_from([0, 1, 2]), st.sampled_from([1, 2]))
def test_what_a_mode_says(bits: int, uid: int, gid: int) -> None:
    """As the kernel has it: the first of owner, group and others that one is counts alone."""
    mode, user = Mode(1, 1, bits), QemuUser(uid, gid)
    part = bits >> 6 if uid == 1 else bits >> 3 if gid == 1 else bits
    assert mode.lets(user) is (uid == 0 or part & 6 == 6)


async def open_to(path: Path, user: QemuUser) -> bool:
    """Whether the kernel lets that user read and write it."""
    return await _may_open(path, Mode(-1, -1, 0), user)


@root
async def test_qemu_gets_what_it_could_not_open(directory: VolumeDirectory, searchable: Path) -> None:
    volume = made(searchable)
    path = searchable / volume.volume_id
    os.chown(path, 1000, 1000)  # of controllers that are somebody
    before = path.stat()
    needless: tuple[tuple[QemuUser | None, When], ...]
    needless = ((QemuUser(0, 0), "starting"), (None, "starting"), (OTHER, "looking"))
    for user, when in needless:
        await used(directory, volume, user, when)
        assert path.stat().st_ctime_ns == before.st_ctime_ns
    assert not await open_to(path, OTHER)
    await used(directory, volume, OTHER)
    after = path.stat()
    assert (after.st_uid, after.st_gid, after.st_mode & 0o777) == (1000, OTHER.gid, 0o660)
    assert await open_to(path, OTHER) and await open_to(path, QemuUser(1000, 5))
    await used(directory, volume, OTHER, "arriving")
    await used(directory, replace(volume, multiattach=True), OTHER)
    assert path.stat().st_ctime_ns == after.st_ctime_ns


@root
async def test_what_qemu_can_open_by_other_means_is_left_alone(
    directory: VolumeDirectory, searchable: Path
) -> None:
    for uid, gid, mode in ((OTHER.uid, 0, 0o600), (0, OTHER.gid, 0o660), (0, 0, 0o666)):
        volume = made(searchable, mode=mode)
        path = searchable / volume.volume_id
        os.chown(path, uid, gid)
        await used(directory, volume, OTHER, "arriving")
        await used(directory, volume, OTHER)
        assert (path.stat().st_uid, path.stat().st_gid, path.stat().st_mode & 0o777) == (uid, gid, mode)


@root
async def test_nothing_is_taken_from_another_hosts_qemu(directory: VolumeDirectory, searchable: Path) -> None:
    volume, elsewhere = made(searchable), QemuUser(107, 107)
    what = f"{volume.volume_id} cannot be had on this host: QEMU, which is user 64055 of group 64056 here"
    with pytest.raises(HostFault, match=what):
        await used(directory, volume, OTHER, "arriving")
    shared = replace(volume, multiattach=True)
    await used(directory, shared, elsewhere)  # nobody's yet
    assert (searchable / volume.volume_id).stat().st_gid == elsewhere.gid
    with pytest.raises(HostFault, match=what):
        await used(directory, shared, OTHER)
    assert (searchable / volume.volume_id).stat().st_gid == elsewhere.gid
    await used(directory, volume, OTHER)  # one at a time: the other has it no more
    assert (searchable / volume.volume_id).stat().st_gid == OTHER.gid


@root
async def test_what_cannot_be_given(
    directory: VolumeDirectory, searchable: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fchown(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "fchown", fchown)
    volume = made(searchable)
    with pytest.raises(HostFault, match=f"{volume.volume_id} cannot be given to QEMU.*not permitted"):
        await used(directory, volume, OTHER)


async def test_a_directory_that_cannot_be_looked_at(
    directory: VolumeDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = made(tmp_path)

    def gone(path: Path) -> str:
        raise OSError(116, "Stale file handle")

    monkeypatch.setattr(volumes, "cache_mode", gone)
    with pytest.raises(HostFault, match=f"{volume.volume_id} .* cannot be looked at: Stale file handle"):
        await used(directory, volume)


def test_the_cache_is_left_out_where_that_can_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "volume"
    path.write_bytes(b"\0" * 512)
    found = {}
    opened = os.open

    def fails(number: int) -> None:
        def fail(*_: object) -> int:
            raise OSError(number, "no")

        monkeypatch.setattr(os, "open", fail)

    for number in (
        22,
        13,
    ):  # no direct I/O there; not for us to open (root of an NFS server that trusts none)
        fails(number)
        found[number] = cache_mode(path)
    monkeypatch.setattr(os, "open", opened)
    assert found == {22: "writeback", 13: "none"}
    assert cache_mode(path) in ("none", "writeback")
