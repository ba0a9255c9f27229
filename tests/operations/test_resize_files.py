"""Files that really travel between simulated hosts: seen, cut, taken back, and given up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from kilonova.agent.transfer import TransferOptions
from kilonova.errors import HostFault, TryAgain, Unreachable
from kilonova.operations import delete, resize_copy, resize_ends
from kilonova.rpc.messages import Command, GuestSpec
from kilonova.testing.embedded import member, server, settled
from tests.operations.dead_hosts import Hosts, opened
from tests.operations.resized import (
    ask_resize,
    assert_both_sides,
    assert_waits,
    resized,
)

MIB = 1 << 20


@pytest.fixture
async def three(tmp_path: Path) -> AsyncIterator[Hosts]:
    async with opened(tmp_path / "state") as made:
        yield made


class Files:
    """Gives the guests of two hosts a real file."""

    def __init__(self, three: Hosts, tmp_path: Path, *, bandwidth: int = 0) -> None:
        self.source, self.target = tmp_path / "source", tmp_path / "target"
        for each in (self.source, self.target):
            each.mkdir()
        (self.source / "disk").write_bytes(b"\x01" * (8 * MIB))
        sender, receiver = three.hosts["h1"].driver, three.hosts["h2"].driver
        begin = receiver.begin_receiving

        async def parked_files(uuid: str) -> tuple[Path, ...]:
            return (self.source / "disk",)

        async def begin_receiving(guest: GuestSpec) -> Path:
            await begin(guest)
            return self.target

        sender.parked_files = parked_files  # type: ignore[method-assign]
        receiver.begin_receiving = begin_receiving  # type: ignore[method-assign, assignment]
        transfers = three.hosts["h1"].agent.mover.transfers
        transfers._options = TransferOptions(bandwidth=bandwidth)


@pytest.mark.capability("MG-RSZ-5")
async def test_files_are_sent_and_users_see_how_far_they_are(
    three: Hosts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resize_copy, "LOOK", 0.05)
    files = Files(three, tmp_path, bandwidth=4 * MIB)
    uuid = await three.boot()
    await ask_resize(three, uuid)
    async with asyncio.timeout(30):
        while not 0 < (await server(three.cloud, uuid)).progress < 100:
            await asyncio.sleep(0.02)
    (migration,) = await three.migrations(uuid)
    assert migration.disk_total == 8 * MIB
    assert migration.disk_processed is not None and migration.disk_remaining is not None
    assert migration.disk_processed + migration.disk_remaining == 8 * MIB
    assert_waits(await settled(three.cloud, uuid, 60), "h2")
    assert (files.target / "disk").read_bytes() == (files.source / "disk").read_bytes()
    assert three.hosts["h2"].agent.mover.transfers._inboxes == {}


async def test_a_transfer_that_is_cut_goes_on(three: Hosts, tmp_path: Path) -> None:
    files = Files(three, tmp_path, bandwidth=4 * MIB)
    uuid = await three.boot()
    await ask_resize(three, uuid)
    inboxes = three.hosts["h2"].agent.mover.transfers
    async with asyncio.timeout(30):
        while not (files.target / "disk.part").exists():
            await asyncio.sleep(0.02)
        await inboxes.close(uuid)  # as if the destination's agent had died
    assert_waits(await settled(three.cloud, uuid, 60), "h2")
    assert (files.target / "disk").read_bytes() == (files.source / "disk").read_bytes()
    await assert_both_sides(three, uuid, "h1", "h2")


async def test_files_that_are_taken_back_are_sent_no_more(three: Hosts, tmp_path: Path) -> None:
    """Over the bus a command goes on when nobody waits for it any more."""
    Files(three, tmp_path, bandwidth=MIB // 4)
    uuid = await three.boot()
    source, destination = three.hosts["h1"], three.hosts["h2"].agent.mover
    found = await server(three.cloud, uuid)
    guest = GuestSpec(uuid=uuid, name="s", hostname="s", project_id="p", flavor=found.flavor)
    command = Command(id="c")
    await source.driver.park(uuid)
    inbox = await destination.open_inbox(command, guest)
    sending = asyncio.create_task(source.agent.mover.send_files(command, uuid, inbox))
    async with asyncio.timeout(20):
        while not (await source.agent.mover.progress(uuid)).disk_processed:
            await asyncio.sleep(0.02)
    async with asyncio.timeout(10):  # all of it would take half a minute
        await source.agent.mover.unpark(command, uuid)
    with pytest.raises(TryAgain, match="stopped"):
        await sending
    await destination.close_inbox(command, uuid)


async def test_a_delete_ends_a_transfer(three: Hosts, tmp_path: Path) -> None:
    files = Files(three, tmp_path, bandwidth=MIB)
    uuid = await three.boot()
    await ask_resize(three, uuid)
    async with asyncio.timeout(30):
        while not (files.target / "disk.part").exists():
            await asyncio.sleep(0.02)
    await delete.submit(three.cloud.cloud, member(three.cloud), uuid)
    assert (await settled(three.cloud, uuid, 20)).deleted_at is not None
    for host in three.hosts.values():
        assert host.agent.mover.transfers._inboxes == host.agent.mover.transfers._senders == {}
        assert host.empty
    assert await three.complaints() == []


async def test_a_destination_without_room_is_given_up_for_another(
    three: Hosts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Files(three, tmp_path)
    sender = three.hosts["h1"].agent.mover.transfers
    send, asked = sender.send, []

    async def no_room(uuid: str, paths: Any, inbox: Any) -> None:
        asked.append(inbox.port)
        if inbox.port:
            raise HostFault("The disk of the destination is full")
        await send(uuid, (), inbox)

    monkeypatch.setattr(sender, "send", no_room)
    uuid = await three.boot()
    assert_waits(await resized(three, uuid), "h3")
    assert len(asked) == 2 and three.hosts["h2"].empty


async def test_a_way_for_files_that_does_not_open_is_not_tried_for_ever(
    three: Hosts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resize_ends, "PATIENCE", 0.5)
    Files(three, tmp_path)
    sender = three.hosts["h1"].agent.mover.transfers
    send = sender.send

    async def closed(uuid: str, paths: Any, inbox: Any) -> None:
        if inbox.port:
            raise Unreachable("Connection refused")
        await send(uuid, (), inbox)

    monkeypatch.setattr(sender, "send", closed)
    uuid = await three.boot()
    assert_waits(await resized(three, uuid), "h3")
    (migration,) = await three.migrations(uuid)
    assert migration.dest_compute == "h3" and three.hosts["h2"].empty


def _size(draft: Path) -> int:
    """0 when it is not there: it is renamed when it is whole."""
    try:
        return draft.stat().st_size
    except FileNotFoundError:
        return 0


async def test_a_transfer_that_gets_on_is_not_given_up_however_often_it_is_cut(
    three: Hosts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resize_copy, "LOOK", 0.02)
    monkeypatch.setattr(resize_ends, "PATIENCE", 1.5)
    files = Files(three, tmp_path, bandwidth=4 * MIB)
    uuid = await three.boot()
    await ask_resize(three, uuid)
    inboxes, cuts, size = three.hosts["h2"].agent.mover.transfers, 0, 0
    draft = files.target / "disk.part"
    async with asyncio.timeout(60):
        while (await server(three.cloud, uuid)).task_state is not None:
            if (now := _size(draft)) > size + MIB:
                size, cuts = now, cuts + 1
                await inboxes.close(uuid)
            await asyncio.sleep(0.02)
    assert cuts > 2
    assert_waits(await server(three.cloud, uuid), "h2")
