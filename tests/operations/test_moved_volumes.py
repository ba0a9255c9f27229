"""Volumes of servers that move: at the end each is at the one host that has the guest, and in the guest."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from kilonova.errors import Failed, HostFault, Invalid
from kilonova.journal import attention
from kilonova.journal.model import Done, Run
from kilonova.model.instance import Instance
from kilonova.model.states import Vm
from kilonova.operations import delete, reboot, shelve, unshelve
from kilonova.operations.resume_guest import resume_guests
from kilonova.testing.embedded import member, server, settled
from tests.crash.broken import changed, failing, replaced
from tests.operations.dead_hosts import Hosts
from tests.operations.live_hosts import Live, live
from tests.operations.resized import ask_resize, confirmed, migrated, resized, reverted
from tests.operations.with_volumes import Had, attached, detached, had, ids


@pytest.fixture
async def three(tmp_path: Path) -> AsyncIterator[Live]:
    async with live(tmp_path / "state") as made:
        yield made


async def with_two(three: Hosts) -> tuple[str, list[str]]:
    """A server that runs on h1, and its volumes."""
    uuid = await three.boot()
    return uuid, [await attached(three.cloud, uuid), await attached(three.cloud, uuid)]


async def assert_at(three: Hosts, uuid: str, volumes: list[str], host: str | None) -> None:
    """Each volume is in use there and nowhere else, and the guest has it."""
    for each in volumes:
        assert await had(three.cloud, each) == Had("in-use", ((host, "attached"),))
    found = await server(three.cloud, uuid)
    assert [each.volume_id for each in found.volumes] == volumes
    assert await three.complaints() == []


@pytest.mark.capability("MG-LM-11", "MG-LM-25")
async def test_live(three: Live) -> None:
    uuid, volumes = await with_two(three)
    before = await ids(three.cloud, uuid)
    await three.move(uuid)
    await three.assert_moved(uuid, "h2")
    await assert_at(three, uuid, volumes, "h2")
    assert before.isdisjoint(await ids(three.cloud, uuid))


@pytest.mark.capability("MG-EVC-6")
async def test_evacuation(three: Live) -> None:
    uuid, volumes = await with_two(three)
    before = await ids(three.cloud, uuid)
    await three.lose_power("h1")
    found = await three.evacuate(uuid)
    assert (found.vm_state, found.host) == (Vm.ACTIVE, "h2"), found.fault
    assert before.isdisjoint(await ids(three.cloud, uuid))
    await three.come_back("h1")
    assert await three.cleared() == 1
    await assert_at(three, uuid, volumes, "h2")


@pytest.mark.capability("MG-RSZ-7")
async def test_cold_migration_and_its_confirmation(three: Live) -> None:
    uuid, volumes = await with_two(three)
    found = await migrated(three, uuid)
    assert (found.vm_state, found.host) == (Vm.RESIZED, "h2"), found.fault
    await assert_at(three, uuid, volumes, "h2")
    await confirmed(three, uuid)
    await assert_at(three, uuid, volumes, "h2")


@pytest.mark.capability("MG-RSZ-12")
async def test_resize_and_its_revert(three: Live) -> None:
    uuid, volumes = await with_two(three)
    assert (await resized(three, uuid)).host == "h2"
    await assert_at(three, uuid, volumes, "h2")
    found = await reverted(three, uuid)
    assert (found.vm_state, found.host) == (Vm.ACTIVE, "h1"), found.fault
    await assert_at(three, uuid, volumes, "h1")


async def test_a_resize_at_the_same_host_leaves_them_alone(tmp_path: Path) -> None:
    options = {"allow_resize_to_same_host": True}
    async with live(tmp_path / "state", DEFAULT=options) as three:
        uuid, volumes = await with_two(three)
        before = await ids(three.cloud, uuid)
        assert (await resized(three, uuid)).host == "h1"
        await assert_at(three, uuid, volumes, "h1")
        assert await ids(three.cloud, uuid) == before
        await reverted(three, uuid)
        await assert_at(three, uuid, volumes, "h1")
        assert await ids(three.cloud, uuid) == before


# ---- on no host ----


async def put_away(three: Hosts, uuid: str) -> None:
    await shelve.submit(three.cloud.cloud, member(three.cloud), uuid)
    found = await settled(three.cloud, uuid, 60)
    assert (found.vm_state, found.host) == (Vm.SHELVED_OFFLOADED, None), found.fault


async def back(three: Hosts, uuid: str) -> Instance:
    await unshelve.submit(three.cloud.cloud, member(three.cloud), uuid)
    return await settled(three.cloud, uuid, 60)


@pytest.mark.capability("MG-SHV-3", "MG-SHV-5")
async def test_shelved_away_and_back(three: Live) -> None:
    """Nobody gets them meanwhile; they are where they were in the guest."""
    uuid, volumes = await with_two(three)
    devices = [each.device for each in (await server(three.cloud, uuid)).volumes]
    before = await ids(three.cloud, uuid)
    await put_away(three, uuid)
    away = (await server(three.cloud, uuid)).volumes
    assert [each.connection for each in away] == [None, None]
    assert before.isdisjoint(await ids(three.cloud, uuid))
    await assert_at(three, uuid, volumes, None)
    other = await three.boot()
    with pytest.raises(Invalid, match="is in-use"):
        await attached(three.cloud, other, volumes[0])
    await three.fill("h1")
    found = await back(three, uuid)
    assert (found.vm_state, found.host) == (Vm.ACTIVE, "h2"), found.fault
    assert [each.device for each in found.volumes] == devices
    await assert_at(three, uuid, volumes, "h2")


async def test_one_that_a_server_on_no_host_gets_has_its_place_when_it_is_back(three: Live) -> None:
    uuid = await three.boot()
    volumes = [await attached(three.cloud, uuid)]
    await put_away(three, uuid)
    volumes.append(await attached(three.cloud, uuid))
    assert (await server(three.cloud, uuid)).volumes[1].device is None
    found = await back(three, uuid)
    assert [each.device for each in found.volumes] == ["/dev/vdb", "/dev/vdc"]
    await assert_at(three, uuid, volumes, "h1")
    await detached(three.cloud, uuid, volumes[1])
    await assert_at(three, uuid, volumes[:1], "h1")


@pytest.mark.capability("MG-SHV-6")
async def test_a_failed_return_leaves_them_on_no_host(three: Live) -> None:
    uuid, volumes = await with_two(three)
    await put_away(three, uuid)
    before = (await server(three.cloud, uuid)).volumes
    for host in three.hosts.values():
        host.driver.faults.add("start", HostFault("no power"))
    found = await back(three, uuid)
    assert (found.vm_state, found.task_state, found.volumes) == (Vm.SHELVED_OFFLOADED, None, before)
    await assert_at(three, uuid, volumes, None)
    assert (await back(three, uuid)).vm_state == Vm.ACTIVE
    await assert_at(three, uuid, volumes, "h1")


async def test_shelved_where_it_is_it_keeps_them(three: Live) -> None:
    three.cloud.settings.options["DEFAULT"]["shelved_offload_time"] = -1
    uuid, volumes = await with_two(three)
    before = await ids(three.cloud, uuid)
    await shelve.submit(three.cloud.cloud, member(three.cloud), uuid)
    assert (await settled(three.cloud, uuid, 60)).vm_state == Vm.SHELVED
    await assert_at(three, uuid, volumes, "h1")
    assert (await back(three, uuid)).vm_state == Vm.ACTIVE
    await assert_at(three, uuid, volumes, "h1")
    assert await ids(three.cloud, uuid) == before


# ---- without a move ----


async def test_a_guest_has_them_after_a_hard_reboot_and_a_boot_of_its_host(three: Live) -> None:
    uuid, volumes = await with_two(three)
    before = await ids(three.cloud, uuid)
    await reboot.submit(three.cloud.cloud, member(three.cloud), uuid, hard=True)
    await settled(three.cloud, uuid)
    await assert_at(three, uuid, volumes, "h1")
    three.driver("h1").guest_file.lose_power()
    assert await resume_guests(three.cloud.cloud, "h1") == 1
    assert (await settled(three.cloud, uuid)).vm_state == Vm.ACTIVE
    await assert_at(three, uuid, volumes, "h1")
    assert await ids(three.cloud, uuid) == before


# ---- of a server that is deleted ----

ABANDONED = [
    ("evacuate", lambda three, uuid: three.ask(uuid)),
    ("resize", ask_resize),
    ("live_migrate", lambda three, uuid: three.begin(uuid)),
]


@pytest.mark.parametrize(("name", "begin"), ABANDONED, ids=[name for name, _ in ABANDONED])
async def test_what_an_operator_has_abandoned_is_nobodys_when_the_server_is_deleted(
    three: Live, monkeypatch: pytest.MonkeyPatch, name: str, begin: Callable[[Live, str], Awaitable[object]]
) -> None:
    """Both attachments of each volume were there."""
    monkeypatch.setattr("kilonova.journal.walk.UNDO_ATTEMPTS", 1)
    uuid, volumes = await with_two(three)
    if name == "evacuate":
        await three.lose_power("h1")
    step = three.cloud.runner.operations[name].step("volumes")

    async def broken(run: Run) -> Done:
        raise Failed("it hangs")

    replaced(three.cloud, name, changed(step, undo=broken))
    failing(three.cloud, name, "bind", Failed("no"))
    await begin(three, uuid)
    async with asyncio.timeout(20):
        while not (stuck := await three.cloud.db.read(attention.needing_attention)):
            await asyncio.sleep(0.01)
    assert len((await had(three.cloud, volumes[0])).by) == 2
    now = three.cloud.clock.now()
    await three.cloud.db.write(lambda tx: attention.resolve(tx, stuck[0].id, "abandon", "ann", now))
    three.cloud.runner.wake()
    await settled(three.cloud, uuid)
    await delete.submit(three.cloud.cloud, member(three.cloud), uuid)
    assert (await settled(three.cloud, uuid, 60)).vm_state == Vm.DELETED
    for each in volumes:
        assert await had(three.cloud, each) == Had("available", ())


# ---- what the audit says ----


async def test_an_attachment_too_many_and_one_at_another_host_are_complained_of(three: Live) -> None:
    uuid, (first, _) = await with_two(three)
    volume, context = three.cloud.volume, member(three.cloud)
    extra = three.cloud.cloud.new_uuid()
    await volume.reserve(context, first, uuid, extra)
    assert any(extra in each and "is no server's" in each for each in await three.complaints())
    await volume.release(extra)
    mine = (await server(three.cloud, uuid)).volumes[1]
    await volume.connect(mine.attachment_id, "h2", mine.device)
    await volume.complete(mine.attachment_id)
    said = [each for each in await three.complaints() if mine.attachment_id in each]
    assert any("is no server's" in each and "'h2'" in each for each in said)
    assert any("is not there" in each and "'h1'" in each for each in said)
