"""Snapshots on their way from a host to the image service."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path
from typing import Any

import pytest

from kilonova.agent.snapshots import UPLOADING, Snapshots
from kilonova.errors import HostFault, NotFound, TryAgain
from kilonova.model.states import Power
from kilonova.rpc.desk import IMAGE_PIECE
from tests.unit.agent.host import Host, command

CONTENT = b"0123456789" * 150_000  # two pieces and a part


class Store:
    """An image service that keeps what comes."""

    def __init__(self, there: bytes = b"") -> None:
        self.there = there
        self.put: list[int] = []
        self.finished: list[tuple[str, int, str, str]] = []
        self.fails: list[Exception] = []
        self.gate: asyncio.Event | None = None

    async def put_image(self, image_id: str, offset: int, data: bytes) -> int:
        assert len(data) <= IMAGE_PIECE
        self.put.append(offset)
        if self.gate is not None:
            await self.gate.wait()
        if self.fails:
            raise self.fails.pop()
        if offset <= len(self.there) < offset + len(data):
            self.there = self.there[:offset] + data
        return len(self.there)

    async def finish_image(self, image_id: str, size: int, sha512: str, disk_format: str) -> None:
        self.finished.append((image_id, size, sha512, disk_format))


@pytest.fixture
async def host(tmp_path: Path) -> Any:
    made = Host(tmp_path)
    await made.agent.start_up()
    await made.running("g1")
    made.driver.disks.write("g1", CONTENT)
    made.driver.guest_file.put("g1", Power.SHUTDOWN)
    yield made
    await made.agent.shut_down_agent()


def given(host: Host, store: Store) -> Store:
    host.agent._snapshots = Snapshots(host.driver, store)  # type: ignore[arg-type]
    return store


async def test_all_of_it_goes_once_and_the_file_with_it(host: Host) -> None:
    store = given(host, Store())
    for _ in range(2):
        await host.agent.snapshot(command(), "g1", "i1")
    assert host.driver.disks.snapshots() == [("g1", "i1")]
    await host.agent.upload_snapshot(command(), "g1", "i1")
    assert store.there == CONTENT
    assert store.put == [0, IMAGE_PIECE, 2 * IMAGE_PIECE]
    assert store.finished == [("i1", len(CONTENT), hashlib.sha512(CONTENT).hexdigest(), "raw")]
    assert host.driver.disks.snapshots() == []


@pytest.mark.parametrize("there", [1, IMAGE_PIECE, IMAGE_PIECE + 1, 2 * IMAGE_PIECE, len(CONTENT)])
async def test_what_has_come_is_not_sent_again(host: Host, there: int) -> None:
    store = given(host, Store(CONTENT[:there]))
    await host.agent.snapshot(command(), "g1", "i1")
    await host.agent.upload_snapshot(command(), "g1", "i1")
    assert store.there == CONTENT
    later = [at for at in (IMAGE_PIECE, 2 * IMAGE_PIECE) if min(at + IMAGE_PIECE, len(CONTENT)) > there]
    assert store.put == [0, *later]
    assert store.finished[0][2] == hashlib.sha512(CONTENT).hexdigest()


async def test_what_is_lost_on_the_other_side_is_noticed(host: Host) -> None:
    store = given(host, Store())
    await host.agent.snapshot(command(), "g1", "i1")
    own = store.put_image

    async def forgetful(image_id: str, offset: int, data: bytes) -> int:
        there = await own(image_id, offset, data)
        if offset == IMAGE_PIECE:
            store.there = b""
        return there

    store.put_image = forgetful  # type: ignore[method-assign]
    with pytest.raises(TryAgain):
        await host.agent.upload_snapshot(command(), "g1", "i1")
    assert host.driver.disks.snapshots() == [("g1", "i1")]  # to be sent again
    store.put_image = own  # type: ignore[method-assign]
    await host.agent.upload_snapshot(command(), "g1", "i1")
    assert store.there == CONTENT


@pytest.mark.parametrize(
    ("error", "raised"), [(NotFound("deleted"), HostFault), (TryAgain("later"), TryAgain)]
)
async def test_what_the_store_says_is_passed_on(host: Host, error: Exception, raised: type) -> None:
    store = given(host, Store())
    store.fails.append(error)
    await host.agent.snapshot(command(), "g1", "i1")
    with pytest.raises(raised, match=str(error)):
        await host.agent.upload_snapshot(command(), "g1", "i1")
    assert host.agent.handing_in("g1") is None
    assert store.finished == []


async def test_without_a_snapshot_there_is_nothing_to_send(host: Host) -> None:
    given(host, Store())
    with pytest.raises(HostFault, match="There is no snapshot"):
        await host.agent.upload_snapshot(command(), "g1", "i1")
    with pytest.raises(HostFault, match="not on this host"):
        await host.agent.snapshot(command(), "g2", "i1")


async def test_it_says_how_far_it_is(host: Host) -> None:
    store = given(host, Store())
    await host.agent.snapshot(command(), "g1", "i1")
    sent = []
    own = store.put_image

    async def watched(image_id: str, offset: int, data: bytes) -> int:
        found = await host.agent.mover.progress("g1")  # never behind the verb that runs
        sent.append((found.phase, found.disk_total, found.disk_processed, found.percent))
        return await own(image_id, offset, data)

    store.put_image = watched  # type: ignore[method-assign]
    await host.agent.upload_snapshot(command(), "g1", "i1")
    size = len(CONTENT)
    assert sent == [
        (UPLOADING, size, at, 100 - (size - at) * 100 // size) for at in (0, IMAGE_PIECE, 2 * IMAGE_PIECE)
    ]
    assert host.agent.handing_in("g1") is None


@pytest.mark.parametrize("verb", ["drop_snapshot", "discard", "destroy"])
async def test_who_wants_it_gone_waits_for_no_upload(host: Host, verb: str) -> None:
    store = given(host, Store())
    store.gate = asyncio.Event()
    await host.agent.snapshot(command(), "g1", "i1")
    upload = asyncio.create_task(host.agent.upload_snapshot(command(), "g1", "i1"))
    while not store.put:
        await asyncio.sleep(0)
    if verb == "drop_snapshot":
        await host.agent.drop_snapshot(command("d"), "g1", "i1")
    else:
        await getattr(host.agent, verb)(command("d"), "g1")
    with pytest.raises(TryAgain):
        await upload
    assert store.finished == []
    assert host.driver.disks.snapshots() == ([("g1", "i1")] if verb == "destroy" else [])


async def test_a_snapshot_outlives_the_agent(host: Host) -> None:
    await host.agent.snapshot(command(), "g1", "i1")
    await host.agent.shut_down_agent()
    host.restart()
    await host.agent.start_up()
    store = given(host, Store())
    await host.agent.upload_snapshot(command(), "g1", "i1")
    assert store.there == CONTENT
