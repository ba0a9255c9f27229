"""Files of a guest between two agents: over real sockets and TLS, cut, changed, refused, and gone on with."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from kilonova.agent import transfer as transfer_module
from kilonova.agent import transfer_wire as wire
from kilonova.agent.transfer import NOTHING, TransferOptions, Transfers, most_of, transfer_options
from kilonova.agent.transfer_inbox import FileInbox
from kilonova.errors import TryAgain, Unreachable
from kilonova.testing.embedded import settings_for
from tests.unit.agent.transfer_stage import GUEST, MIB, UUID, Hand, Proxy, Stage, content


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    made = Stage(tmp_path)
    yield made
    made.inbox.close()


# ---- what is sent comes ----


def test_all_files_come_as_they_are(stage: Stage) -> None:
    stage.write("disk", content(5 * MIB + 17))
    stage.write("disk.config", content(300, 2))
    stage.write("disk.eph0", b"")
    stage.write("console.log", b"login: ")
    sender = stage.send()
    stage.assert_same()
    progress = sender.progress()
    assert progress.disk_total == progress.disk_processed == 5 * MIB + 17 + 300 + 7
    assert (progress.disk_remaining, progress.percent, progress.phase) == (0, 100, "copying")
    assert {path.stat().st_mode & 0o777 for path in stage.target.iterdir()} == {0o644}


def test_what_others_may_not_read_stays_so(stage: Stage) -> None:
    stage.write("disk", content(10)).chmod(0o600)
    stage.write("disk.base", content(10)).chmod(0o644)
    stage.send()
    modes = {path.name: path.stat().st_mode & 0o777 for path in stage.target.iterdir()}
    assert modes == {"disk": 0o600, "disk.base": 0o644}


def test_holes_are_neither_sent_nor_made(stage: Stage) -> None:
    path = stage.source / "disk"
    with path.open("wb") as file:
        file.write(content(MIB))
        file.seek(40 * MIB)
        file.write(content(10, 3))
        file.seek(60 * MIB)
        file.write(bytes(MIB))  # zeros that take space
        file.truncate(90 * MIB + 5)
    sender = stage.send()
    stage.assert_same()
    assert sender._sent < 3 * MIB
    assert (stage.target / "disk").stat().st_blocks * 512 <= 3 * MIB


def test_holes_are_as_they_were_and_not_of_whole_pieces(stage: Stage) -> None:
    """A raw disk's file system writes a little everywhere: what is allocated does not grow by the move."""
    path = stage.source / "disk"
    with path.open("wb") as file:
        for number in range(64):
            file.seek(number * MIB + 64 * 1024)
            file.write(content(4096, number))
        file.truncate(64 * MIB)
    sender = stage.send()
    stage.assert_same()
    assert sender._sent == 64 * 4096
    assert (stage.target / "disk").stat().st_blocks <= path.stat().st_blocks + 64
    assert sender.progress().disk_processed == 64 * MIB


def test_small_holes_are_sent_as_zeros(stage: Stage) -> None:
    with (stage.source / "disk").open("wb") as file:
        for number in range(64):
            file.seek(number * 8192)
            file.write(content(4096, number))
        file.truncate(MIB)
    assert stage.send()._sent == 63 * 8192 + 4096
    stage.assert_same()


@settings(max_examples=25, deadline=None)
@given(
    parts=st.lists(st.tuples(st.sampled_from(["data", "zeros", "hole"]), st.integers(1, 3 * MIB)), max_size=6)
)
def test_any_mixture_of_data_and_holes_comes_as_it_is(
    parts: list[tuple[str, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    stage = Stage(tmp_path_factory.mktemp("stage"))
    try:
        with (stage.source / "disk").open("wb") as file:
            for kind, size in parts:
                if kind == "hole":
                    file.seek(size, os.SEEK_CUR)
                else:
                    file.write(content(size, size) if kind == "data" else bytes(size))
            file.truncate(file.tell())
        stage.send()
        stage.assert_same()
    finally:
        stage.inbox.close()


def test_a_repeat_sends_nothing_again(stage: Stage) -> None:
    stage.write("disk", content(3 * MIB + 1))
    stage.send()
    before = (stage.target / "disk").stat()
    assert stage.send()._sent == 0
    assert (stage.target / "disk").stat().st_ino == before.st_ino
    stage.assert_same()


def test_what_the_destination_has_is_not_sent(stage: Stage) -> None:
    """A base image from its cache: linked, and left alone."""
    stage.write("disk.base", content(4 * MIB))
    cached = stage.target.parent / "cached"
    cached.write_bytes(content(4 * MIB))
    (stage.target / "disk.base").hardlink_to(cached)
    assert stage.send()._sent == 0
    assert (stage.target / "disk.base").stat().st_ino == cached.stat().st_ino


def test_what_the_destination_has_and_is_something_else_is_replaced_and_not_written_into(
    stage: Stage,
) -> None:
    stage.write("disk.base", content(2 * MIB))
    cached = stage.target.parent / "cached"
    cached.write_bytes(content(2 * MIB, 9))
    (stage.target / "disk.base").hardlink_to(cached)
    stage.send()
    stage.assert_same()
    assert cached.read_bytes() == content(2 * MIB, 9)


@pytest.mark.parametrize("links", [1, 2])
def test_what_passes_is_not_kept_in_the_page_cache(
    stage: Stage, links: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for what others read, too."""
    size = 40 * MIB
    source = stage.write("disk", content(size))
    if links == 2:
        (stage.source.parent / "cached").hardlink_to(source)
    dropped: dict[int, int] = {}
    real = os.posix_fadvise

    def fadvise(handle: int, offset: int, length: int, advice: int) -> None:
        if advice == os.POSIX_FADV_DONTNEED:
            assert offset <= dropped.get(os.fstat(handle).st_ino, 0)  # nothing is left out
            dropped[os.fstat(handle).st_ino] = offset + length
        real(handle, offset, length, advice)

    monkeypatch.setattr(os, "posix_fadvise", fadvise)
    stage.send()
    expected = {(stage.target / "disk").stat().st_ino: size}
    if links == 1:
        expected[source.stat().st_ino] = size
    assert dropped == expected


# ---- cut, and gone on with ----


@pytest.mark.parametrize("cut", [0, 100, 700, 1400, 2000, MIB, 2 * MIB + 12_345, 3 * MIB + 99_999])
def test_a_transfer_that_is_cut_goes_on_where_it_ended(stage: Stage, cut: int) -> None:
    stage.write("disk", content(4 * MIB))
    stage.cut(cut=cut)
    assert not (stage.target / "disk").exists()
    sender = stage.send()
    stage.assert_same()
    kept = max((cut - 20_000) // MIB, 0)  # but for the handshake and what TLS adds
    assert sender._sent <= (4 - kept) * MIB


def test_a_transfer_can_be_cut_at_any_byte(stage: Stage) -> None:
    data = content(2 * MIB + 77)
    stage.write("disk", data)
    for cut in random.Random(5).sample(range(2 * MIB), 25):
        if not (stage.target / "disk").exists():
            proxy = Proxy(stage.inbox.inbox, cut=cut)
            with contextlib.suppress(Unreachable):
                stage.send(proxy.inbox)
            proxy.close()
    stage.send()
    stage.assert_same()


def test_a_new_inbox_goes_on_where_the_old_one_ended(stage: Stage) -> None:
    """The destination's agent has died: another port, token and certificate, the same files."""
    stage.write("disk", content(5 * MIB))
    stage.cut(cut=3 * MIB)
    old = stage.inbox.inbox
    stage.inbox.close()
    with pytest.raises(Unreachable):
        stage.send(old)
    stage.inbox = FileInbox(stage.target, stage.limit, "127.0.0.1", range(0))
    assert stage.inbox.inbox.token != old.token and stage.inbox.inbox.fingerprint != old.fingerprint
    assert 0 < stage.send()._sent <= 4 * MIB
    stage.assert_same()


def test_a_draft_that_is_not_what_is_sent_is_begun_anew(stage: Stage) -> None:
    stage.write("disk", content(3 * MIB))
    (stage.target / "disk.part").write_bytes(content(2 * MIB, 8))
    assert stage.send()._sent == 3 * MIB
    stage.assert_same()


def test_of_a_draft_that_is_torn_in_the_middle_what_comes_before_is_kept(stage: Stage) -> None:
    """The host has died, and a piece of what was written was not on the disk yet."""
    data = content(200 * MIB)
    stage.write("disk", data)
    torn = bytearray(data[: 150 * MIB])
    torn[100 * MIB + 5] ^= 1
    (stage.target / "disk.part").write_bytes(torn)
    assert stage.send()._sent == 100 * MIB
    stage.assert_same()


def test_a_draft_whose_pieces_are_in_another_order_is_not_kept(stage: Stage) -> None:
    data = content(3 * MIB)
    stage.write("disk", data)
    (stage.target / "disk.part").write_bytes(data[MIB : 2 * MIB] + data[:MIB])
    assert stage.send()._sent == 3 * MIB
    stage.assert_same()


@pytest.mark.parametrize("there", ["zeros", "hole", "data"])
def test_zeros_are_the_same_as_a_hole_and_as_nothing_else(stage: Stage, there: str) -> None:
    """Pieces: zeros, data, zeros; there are two of them."""
    stage.write("disk", bytes(MIB) + content(MIB) + bytes(MIB))
    with (stage.target / "disk.part").open("wb") as file:
        if there != "hole":
            file.write(bytes(MIB) if there == "zeros" else bytes(MIB) + content(MIB))
        file.truncate(2 * MIB)
    assert stage.send()._sent == (0 if there == "data" else MIB)
    stage.assert_same()


def test_a_draft_with_a_torn_end_loses_only_that(stage: Stage) -> None:
    data = content(3 * MIB)
    stage.write("disk", data)
    (stage.target / "disk.part").write_bytes(data[: 2 * MIB] + b"\0" * 12_345)
    assert stage.send()._sent == MIB
    stage.assert_same()


def test_the_newest_sender_is_heard(stage: Stage) -> None:
    """The source's agent was restarted, and its old connection is not known to be dead."""
    stage.write("disk", content(2 * MIB))
    old = Hand(stage, *(wire.offer(path) for path in stage.paths()))
    assert old.begin() == wire.Have(0)
    began = time.monotonic()
    stage.send()
    assert time.monotonic() - began < wire.SILENCE / 2  # the old one is not waited for
    stage.assert_same()
    old.assert_cut()


# ---- transfers of an agent ----


@pytest.fixture
async def transfers(tmp_path: Path) -> AsyncIterator[Transfers]:
    made = Transfers(TransferOptions())
    yield made
    await made.shut_down()


async def test_an_inbox_is_opened_once_and_closed_for_good(transfers: Transfers, tmp_path: Path) -> None:
    inbox = await transfers.open(GUEST, tmp_path)
    assert await transfers.open(GUEST, tmp_path) == inbox
    await transfers.close(UUID)
    await transfers.close(UUID)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((inbox.address, inbox.port))
    assert await transfers.open(GUEST, tmp_path) != inbox


async def test_a_guest_without_files(transfers: Transfers) -> None:
    assert await transfers.open(GUEST, None) == NOTHING
    await transfers.send(UUID, (), NOTHING)
    assert transfers.progress(UUID) is None


async def test_progress_is_told_while_files_are_sent_and_a_cancel_ends_it(
    transfers: Transfers, tmp_path: Path
) -> None:
    (source := tmp_path / "source").mkdir()
    (target := tmp_path / "target").mkdir()
    (source / "disk").write_bytes(content(8 * MIB))
    slow = Transfers(TransferOptions(bandwidth=MIB))
    inbox = await transfers.open(GUEST, target)
    task = asyncio.create_task(slow.send(UUID, (source / "disk",), inbox))
    async with asyncio.timeout(20):
        while (seen := slow.progress(UUID)) is None or not seen.disk_processed:
            await asyncio.sleep(0.01)
    assert seen.disk_total == 8 * MIB and 0 < seen.percent < 100
    task.cancel()
    async with asyncio.timeout(20):
        with pytest.raises(asyncio.CancelledError):
            await task
    assert slow.progress(UUID) is None
    assert not (target / "disk").exists()


async def test_a_transfer_that_is_stopped_says_so(transfers: Transfers, tmp_path: Path) -> None:
    (target := tmp_path / "target").mkdir()
    (tmp_path / "disk").write_bytes(content(8 * MIB))
    slow = Transfers(TransferOptions(bandwidth=MIB))
    task = asyncio.create_task(slow.send(UUID, (tmp_path / "disk",), await transfers.open(GUEST, target)))
    async with asyncio.timeout(20):
        while slow.progress(UUID) is None:
            await asyncio.sleep(0.01)
        slow.stop_sending(UUID)
        with pytest.raises(TryAgain, match="stopped"):
            await task


async def test_closing_an_inbox_ends_what_comes(transfers: Transfers, tmp_path: Path) -> None:
    (target := tmp_path / "target").mkdir()
    (tmp_path / "disk").write_bytes(content(8 * MIB))
    slow = Transfers(TransferOptions(bandwidth=2 * MIB))
    inbox = await transfers.open(GUEST, target)
    task = asyncio.create_task(slow.send(UUID, (tmp_path / "disk",), inbox))
    async with asyncio.timeout(20):
        while not list(target.iterdir()):
            await asyncio.sleep(0.01)
        await transfers.close(UUID)
        written = (target / "disk.part").stat().st_size
        with pytest.raises(Unreachable):
            await task
    assert (target / "disk.part").stat().st_size == written


def test_what_a_guest_can_have() -> None:
    gib = 1 << 30
    more = replace(GUEST, flavor=replace(GUEST.flavor, ephemeral_gb=2, swap_mb=512))
    assert gib < most_of(GUEST) < gib + 300 * MIB
    assert most_of(more) - most_of(GUEST) == 2 * gib + 512 * MIB
    unbounded = replace(GUEST, flavor=replace(GUEST.flavor, root_gb=0))
    assert most_of(unbounded) > 1 << 59


def test_options(tmp_path: Path) -> None:
    options = transfer_options(settings_for(tmp_path))
    assert (options.address, options.ports, options.bandwidth) == ("127.0.0.1", range(0), 0)
    told = {
        "live_migration_inbound_addr": "192.0.2.7",
        "cold_migration_ports": "49300-49302",
        "cold_migration_bandwidth": 3,
    }
    options = transfer_options(settings_for(tmp_path, libvirt=told))
    assert (options.address, options.bandwidth) == ("192.0.2.7", 3 * MIB)
    assert list(options.ports) == [49300, 49301, 49302]
    one = settings_for(tmp_path, libvirt={"cold_migration_ports": "49300"})
    assert list(transfer_options(one).ports) == [49300]
    assert transfer_module.CONSOLE == 64 * MIB
