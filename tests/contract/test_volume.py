"""What every volume service behind the Protocol does."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from kilonova.errors import Conflict, NotFound
from kilonova.services.volume.port import VolumeService
from tests.contract.rigs import Rig, caller, new

SERVER, OTHER = "11111111-1111-4111-8111-111111111111", "22222222-2222-4222-8222-222222222222"
NOWHERE = "33333333-3333-4333-8333-333333333333"


@pytest.fixture
def volume(rig: Rig) -> VolumeService:
    assert rig.volume is not None
    return rig.volume


async def made(rig: Rig, who: str = "alice", **fields: object) -> str:
    """The id of a new volume that is there."""
    body = {"volume": {"size": 1, **fields}}
    id = (await rig.rest("POST", "/v3/volumes", body, who)).expect(202).json["volume"]["id"]
    async with asyncio.timeout(30):
        while True:
            found = (await rig.rest("GET", f"/v3/volumes/{id}", None, who)).expect(200).json["volume"]
            if found["status"] == "available":
                return str(id)
            assert found["status"] in ("creating", "downloading")
            await asyncio.sleep(0.01)


async def multiattach(rig: Rig) -> str:
    """The name of a type whose volumes several servers may have."""
    name = f"many-{new()}"
    body = {"volume_type": {"name": name, "extra_specs": {"multiattach": "<is> True"}}}
    (await rig.rest("POST", "/v3/types", body, "admin")).expect(200)
    return name


async def status(volume: VolumeService, id: str) -> tuple[str, tuple[str, ...]]:
    found = await volume.check(caller("alice"), id)
    return found.status, found.servers


async def gone(volume: VolumeService, id: str) -> None:
    async with asyncio.timeout(30):
        with pytest.raises(NotFound):
            while (await status(volume, id))[0] == "deleting":
                await asyncio.sleep(0.01)


async def test_a_volume_is_shown_as_it_was_made(rig: Rig, volume: VolumeService) -> None:
    id = await made(rig, size=2, name="data")
    found = await volume.check(caller("alice"), id)
    assert (found.id, found.name, found.size_gb, found.status) == (id, "data", 2, "available")
    assert (found.multiattach, found.bootable, found.image_metadata, found.servers) == (False, False, {}, ())
    assert found.availability_zone
    for who in ("reader", "admin"):
        assert (await volume.check(caller(who), id)).id == id


@pytest.mark.parametrize("id", [NOWHERE, "", "no", "x" * 300, "../../etc/passwd", "\u00e9"])
async def test_a_volume_that_is_not_there(volume: VolumeService, id: str) -> None:
    with pytest.raises(NotFound):
        await volume.check(caller("admin"), id)
    with pytest.raises(NotFound):
        await volume.reserve(caller("admin"), id, SERVER, new())
    with pytest.raises(NotFound):
        await volume.begin_detaching(caller("admin"), id)
    await volume.roll_detaching(id)
    await volume.delete(id)


async def test_another_project_s_volume_is_not_there(rig: Rig, volume: VolumeService) -> None:
    id = await made(rig)
    for work in (
        volume.check(caller("bob"), id),
        volume.reserve(caller("bob"), id, SERVER, new()),
        volume.begin_detaching(caller("bob"), id),
    ):
        with pytest.raises(NotFound):
            await work
    assert await status(volume, id) == ("available", ())


async def test_from_reserved_to_available_again(rig: Rig, volume: VolumeService) -> None:
    id, attachment = await made(rig), new()
    reserved = await volume.reserve(caller("alice"), id, SERVER, attachment)
    assert (reserved.status, reserved.servers) == ("reserved", (SERVER,))
    connection = await volume.connect(attachment, "compute1", "/dev/vdb")
    assert connection.kind == "file" and Path(connection.path).is_file()
    assert Path(connection.path).stat().st_size == 1 << 30
    assert await status(volume, id) == ("attaching", (SERVER,))
    await volume.complete(attachment)
    assert await status(volume, id) == ("in-use", (SERVER,))
    await volume.begin_detaching(caller("alice"), id)
    assert await status(volume, id) == ("detaching", (SERVER,))
    await volume.release(attachment)
    assert await status(volume, id) == ("available", ())


async def test_every_verb_may_be_repeated(rig: Rig, volume: VolumeService) -> None:
    id, attachment = await made(rig), new()
    for _ in range(2):
        await volume.reserve(caller("alice"), id, SERVER, attachment)
    first = await volume.connect(attachment, "compute1", None)
    assert await volume.connect(attachment, "compute1", None) == first
    for _ in range(2):
        await volume.complete(attachment)
    await volume.reserve(caller("alice"), id, SERVER, attachment)
    await volume.connect(attachment, "compute1", None)
    assert await status(volume, id) == ("in-use", (SERVER,)), "a repetition takes nothing back"
    for _ in range(2):
        await volume.begin_detaching(caller("alice"), id)
    for _ in range(2):
        await volume.roll_detaching(id)
    assert await status(volume, id) == ("in-use", (SERVER,))
    for _ in range(2):
        await volume.release(attachment)
    for _ in range(2):
        await volume.delete(id)
    await gone(volume, id)


async def test_nobody_else_gets_a_volume(rig: Rig, volume: VolumeService) -> None:
    id, attachment = await made(rig), new()
    await volume.reserve(caller("alice"), id, SERVER, attachment)
    for _ in range(2):  # reserved, then in use
        with pytest.raises(Conflict):
            await volume.reserve(caller("alice"), id, OTHER, new())
        await volume.connect(attachment, "compute1", None)
        await volume.complete(attachment)
    with pytest.raises(Conflict):
        await volume.delete(id)
    assert await status(volume, id) == ("in-use", (SERVER,))


async def test_a_server_that_moves_has_a_volume_twice(rig: Rig, volume: VolumeService) -> None:
    id, old, young = await made(rig), new(), new()
    await volume.reserve(caller("alice"), id, SERVER, old)
    await volume.connect(old, "compute1", "/dev/vdb")
    await volume.complete(old)
    await volume.reserve(caller("alice"), id, SERVER, young)
    await volume.connect(young, "compute2", "/dev/vdb")
    assert await status(volume, id) == ("in-use", (SERVER,))
    with pytest.raises(Conflict):
        await volume.reserve(caller("alice"), id, OTHER, new())
    await volume.complete(young)
    await volume.release(old)
    assert await status(volume, id) == ("in-use", (SERVER,))
    await volume.release(young)
    assert await status(volume, id) == ("available", ())


async def test_a_server_moves_with_a_volume_that_is_being_detached(rig: Rig, volume: VolumeService) -> None:
    id, old, young = await made(rig), new(), new()
    await volume.reserve(caller("alice"), id, SERVER, old)
    await volume.connect(old, "compute1", None)
    await volume.complete(old)
    await volume.begin_detaching(caller("alice"), id)
    await volume.reserve(caller("alice"), id, SERVER, young)
    with pytest.raises(Conflict):
        await volume.reserve(caller("alice"), id, OTHER, new())
    assert await status(volume, id) == ("detaching", (SERVER,))


async def test_a_move_that_is_given_up_leaves_the_old_one(rig: Rig, volume: VolumeService) -> None:
    id, old, young = await made(rig), new(), new()
    await volume.reserve(caller("alice"), id, SERVER, old)
    await volume.connect(old, "compute1", "/dev/vdb")
    await volume.complete(old)
    await volume.reserve(caller("alice"), id, SERVER, young)
    await volume.release(young)
    assert await status(volume, id) == ("in-use", (SERVER,))
    with pytest.raises(NotFound):
        await volume.connect(young, "compute2", None)


async def test_a_multiattach_volume_has_several_servers(rig: Rig, volume: VolumeService) -> None:
    id = await made(rig, volume_type=await multiattach(rig))
    attachments = {SERVER: new(), OTHER: new()}
    for server, attachment in attachments.items():
        assert (await volume.reserve(caller("alice"), id, server, attachment)).multiattach
        await volume.connect(attachment, "compute1", None)
        await volume.complete(attachment)
    assert await status(volume, id) == ("in-use", (SERVER, OTHER))
    await volume.begin_detaching(caller("alice"), id)
    await volume.release(attachments[SERVER])
    assert await status(volume, id) == ("in-use", (OTHER,))
    with pytest.raises(Conflict):
        await volume.delete(id)
    await volume.release(attachments[OTHER])
    assert await status(volume, id) == ("available", ())


async def test_only_what_is_in_use_is_detached(rig: Rig, volume: VolumeService) -> None:
    id, attachment = await made(rig), new()
    with pytest.raises(Conflict):
        await volume.begin_detaching(caller("alice"), id)
    await volume.reserve(caller("alice"), id, SERVER, attachment)
    with pytest.raises(Conflict):
        await volume.begin_detaching(caller("alice"), id)
    await volume.roll_detaching(id)
    assert await status(volume, id) == ("reserved", (SERVER,))


async def test_an_attachment_that_is_not_there(volume: VolumeService) -> None:
    for attachment in (new(), "", "x" * 300):
        with pytest.raises(NotFound):
            await volume.connect(attachment, "compute1", None)
        with pytest.raises(NotFound):
            await volume.complete(attachment)
        await volume.release(attachment)


async def test_an_attachment_is_of_one_volume(rig: Rig, volume: VolumeService) -> None:
    one, two, attachment = await made(rig), await made(rig), new()
    await volume.reserve(caller("alice"), one, SERVER, attachment)
    with pytest.raises(Conflict):
        await volume.reserve(caller("alice"), two, SERVER, attachment)
    assert await status(volume, two) == ("available", ())


def _lost(result: object) -> bool:
    return isinstance(result, Conflict)


async def test_of_those_who_race_for_a_volume_one_gets_it(rig: Rig, volume: VolumeService) -> None:
    id = await made(rig)
    servers = [new() for _ in range(8)]
    results = await asyncio.gather(
        *(volume.reserve(caller("alice"), id, server, new()) for server in servers), return_exceptions=True
    )
    assert sum(map(_lost, results)) == 7
    winners = [server for server, each in zip(servers, results, strict=True) if not _lost(each)]
    assert await status(volume, id) == ("reserved", tuple(winners))


async def test_the_same_reservation_sent_twice_at_once_is_one(rig: Rig, volume: VolumeService) -> None:
    id, attachment = await made(rig), new()
    results = await asyncio.gather(
        *(volume.reserve(caller("alice"), id, SERVER, attachment) for _ in range(6))
    )
    assert {each.servers for each in results} == {(SERVER,)}
    await volume.release(attachment)
    assert await status(volume, id) == ("available", ())
