"""Shelved over the bus: pieces of a snapshot go to whatever controller hears them, and only from its host."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from kilonova.agent_process import AgentProcess
from kilonova.desk import Desks
from kilonova.errors import Invalid, NotFound, TooLarge
from kilonova.model.states import Vm
from kilonova.operations import delete, shelve, unshelve
from kilonova.rpc.desk import IMAGE_PIECE
from kilonova.testing.bus import NatsServer
from kilonova.testing.embedded import member, server, settled
from kilonova.virt.fake.driver import FakeDriver
from tests.crash.broken import Gate
from tests.crash.scenes import boot
from tests.fleet.house import House, house_of
from tests.fleet.test_sessions import example_image

pytestmark = pytest.mark.postgresql

CONTENT = bytes(range(256)) * 8_000  # two megabytes: four pieces


@pytest.fixture
async def house(request: pytest.FixtureRequest, own_bus: NatsServer, tmp_path: Path) -> AsyncIterator[House]:
    async with house_of(request, own_bus, tmp_path) as made:
        yield made


def driver(agent: AgentProcess) -> FakeDriver:
    assert agent.parts is not None and isinstance(agent.parts.driver, FakeDriver)
    return agent.parts.driver


async def active(house: House) -> str:
    cloud: Any = house.controller
    cloud.example_image = await example_image(house)
    uuid = await boot(cloud)
    assert (await settled(cloud, uuid)).vm_state == Vm.ACTIVE
    return uuid


@pytest.mark.capability("RPC-1", "MG-SHV-1", "MG-SHV-5")
async def test_a_server_goes_from_one_host_to_another_by_way_of_the_image_service(house: House) -> None:
    first = await house.agent("h1")
    cloud: Any = house.controller
    uuid = await active(house)
    driver(first).disks.write(uuid, CONTENT)
    await shelve.submit(cloud.cloud, member(cloud), uuid)
    assert (await settled(cloud, uuid)).vm_state == Vm.SHELVED_OFFLOADED
    assert driver(first).guest_file.everything() == {} and driver(first).disks.snapshots() == []
    second = await house.agent("h2")
    await house.served_by(second)
    cloud.scheduler.forget()
    await unshelve.submit(cloud.cloud, member(cloud), uuid, host="h2")
    found = await settled(cloud, uuid)
    assert (found.vm_state, found.host, found.fault) == (Vm.ACTIVE, "h2", None)
    assert driver(second).disks.content(uuid) == CONTENT
    assert "Permissions Violation" not in house.bus.log


async def test_an_agent_that_dies_while_it_hands_in_goes_on_in_its_next_life(house: House) -> None:
    agent = await house.agent("h1")
    cloud: Any = house.controller
    uuid = await active(house)
    driver(agent).disks.write(uuid, CONTENT)
    image = cloud.image
    own, sent, cut = image.put_piece, [], asyncio.Event()

    async def put_piece(image_id: str, host: str, offset: int, data: bytes) -> int:
        sent.append(offset)
        there = await own(image_id, host, offset, data)
        if len(sent) == 2:
            cut.set()
            await asyncio.sleep(3600)
        return int(there)

    image.put_piece = put_piece
    await shelve.submit(cloud.cloud, member(cloud), uuid)
    await asyncio.wait_for(cut.wait(), 30)
    await house.stop(agent)
    again = await house.agent("h1")
    await house.served_by(again)
    assert (await settled(cloud, uuid, 60)).vm_state == Vm.SHELVED_OFFLOADED
    assert sent == [0, IMAGE_PIECE, 0, 2 * IMAGE_PIECE, 3 * IMAGE_PIECE]
    found = await server(cloud, uuid)
    kept = await image.show(member(cloud), found.system_metadata["shelved_image_id"])
    assert kept.hash_value == hashlib.sha512(CONTENT).hexdigest()
    await delete.submit(cloud.cloud, member(cloud), uuid)
    assert (await settled(cloud, uuid)).vm_state == Vm.DELETED


async def test_what_a_host_may_not_hand_in(house: House) -> None:
    """Neither for another host, nor before or after an operation wants it, nor too much at a time."""
    mine, other = await house.agent("h1"), await house.agent("h2")
    cloud: Any = house.controller
    uuid = await active(house)
    here = (await server(cloud, uuid)).host
    mine, other = (mine, other) if here == "h1" else (other, mine)
    driver(mine).disks.write(uuid, CONTENT)
    gate = Gate(cloud, "shelve_and_offload", "upload")
    await shelve.submit(cloud.cloud, member(cloud), uuid)
    await gate.wait()
    from sqlalchemy import select

    from kilonova.db.tables.image import images

    query = select(images.c.id).where(images.c.name == "s-shelved")
    image_id = await cloud.db.read(lambda tx: tx.scalar(query))
    for agent in (mine, other):  # it is not open yet
        with pytest.raises(NotFound):
            await agent.desk.put_image(image_id, 0, b"x")
    await cloud.image.open_upload(image_id, here)
    for refused in (
        other.desk.put_image(image_id, 0, b"x"),
        other.desk.put_image(cloud.example_image, 0, b"x"),
    ):
        with pytest.raises(NotFound):
            await refused
    with pytest.raises(NotFound):
        await other.desk.finish_image(image_id, 1, hashlib.sha512(b"x").hexdigest(), "raw")
    with pytest.raises(Invalid):
        await mine.desk.put_image(image_id, 0, b"")
    desk = Desks().serve(cloud.cloud, cloud.image, cloud.network).desk(str(here))
    with pytest.raises(TooLarge, match=str(IMAGE_PIECE)):
        await desk.put_image(image_id, 0, bytes(IMAGE_PIECE + 1))
    gate.open()
    assert (await settled(cloud, uuid)).vm_state == Vm.SHELVED_OFFLOADED
    with pytest.raises(NotFound):
        await mine.desk.put_image(image_id, 0, b"x")
    with pytest.raises(NotFound):  # it was given back, and is no server of this host any more
        await mine.desk.image(image_id, 0)
