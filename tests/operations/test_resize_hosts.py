"""Resizes while hosts go down and come back, files that really travel, and decisions that nobody makes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from kilonova.clock import SECOND
from kilonova.db import instances, migrations
from kilonova.errors import Conflict, Failed, HostFault, TryAgain, Unreachable
from kilonova.journal import attention
from kilonova.journal.model import Done, Run, Wait
from kilonova.model.migration import Status
from kilonova.model.states import Power, Task, Vm
from kilonova.operations import confirm_resize, delete, resize_ends, revert_resize
from kilonova.testing.embedded import member, server, settled
from tests.crash.broken import Gate, changed, replaced
from tests.operations.dead_hosts import Hosts, opened
from tests.operations.resized import (
    ask_resize,
    assert_both_sides,
    assert_settled,
    assert_waits,
    confirmed,
    migrated,
    parked,
    resized,
    reverted,
)


@pytest.fixture
async def three(tmp_path: Path) -> AsyncIterator[Hosts]:
    async with opened(tmp_path / "state") as made:
        yield made


async def resized_from(three: Hosts, source: str, target: str) -> str:
    """A server that waits for a decision on another host than the one that the cloud has by itself."""
    uuid = await three.boot(host=source)
    assert_waits(await migrated(three, uuid, target), target)
    return uuid


# ---- hosts that are down ----


@pytest.mark.capability("MG-RSZ-9")
async def test_a_resize_is_confirmed_though_the_source_is_down(three: Hosts) -> None:
    uuid = await resized_from(three, "h2", "h3")
    await three.lose_power("h2")
    found = await confirmed(three, uuid)
    assert (found.vm_state, found.host, found.fault) == (Vm.ACTIVE, "h3", None)
    there = await three.everywhere(uuid)
    assert (there.bound, there.held, there.held_by_moves) == ({"h3"}, {"h3"}, {"h2"})
    assert [each.instance_uuid for each in await three.owed("h2")] == [uuid]
    assert await three.cloud.db.read(lambda tx: migrations.in_status(tx, uuid, None, ("confirmed",)))
    await three.come_back("h2")
    await three.cleared()
    await assert_settled(three, uuid, "h3")
    assert await three.owed("h2") == []


async def test_a_source_that_does_not_answer_for_a_while_is_waited_for(three: Hosts) -> None:
    uuid = await resized_from(three, "h2", "h3")
    driver = three.hosts["h2"].driver
    driver.faults.add("drop_parked", Unreachable("busy"))
    assert (await confirmed(three, uuid)).vm_state == Vm.ACTIVE
    assert driver.faults.left("drop_parked") == 0
    await assert_settled(three, uuid, "h3")
    assert await three.owed("h2") == []


async def test_files_on_shared_storage_are_dropped_by_the_host_that_is_up(three: Hosts) -> None:
    three.hosts["h3"].driver.storage = three.hosts["h2"].driver.storage
    uuid = await resized_from(three, "h2", "h3")
    three.silence("h2")
    assert (await confirmed(three, uuid)).vm_state == Vm.ACTIVE
    assert three.hosts["h3"].driver.storage.parked == set()


@pytest.mark.capability("MG-RSZ-11")
@pytest.mark.parametrize("down", ["h2", "h3"])
async def test_nothing_is_reverted_while_one_of_both_is_down(three: Hosts, down: str) -> None:
    uuid = await resized_from(three, "h2", "h3")
    await three.cut_off(down)
    found = await reverted(three, uuid)
    assert (found.vm_state, found.task_state, found.host) == (Vm.RESIZED, None, "h3")
    assert found.fault is not None and f"while the host {down} is down" in found.fault.message
    await three.come_back(down)
    await assert_both_sides(three, uuid, "h2", "h3")
    assert (await reverted(three, uuid)).vm_state == Vm.ACTIVE
    await assert_settled(three, uuid, "h2")


@pytest.mark.parametrize("step", ["unpark", "switch", "start", "resume", "finish"])
async def test_a_destination_that_goes_down_after_the_point_of_no_return_is_left(
    three: Hosts, step: str
) -> None:
    uuid = await resized_from(three, "h2", "h3")
    gate = Gate(three.cloud, "revert_resize", step)
    await revert_resize.submit(three.cloud.cloud, member(three.cloud), uuid)
    await gate.wait()
    await three.lose_power("h3")
    gate.open()
    found = await settled(three.cloud, uuid, 60)
    assert (found.vm_state, found.host, found.fault) == (Vm.ACTIVE, "h2", None)
    await three.come_back("h3")
    await three.cleared()
    await assert_settled(three, uuid, "h2")


@pytest.mark.capability("MG-RSZ-13")
@pytest.mark.parametrize("verb", ["start", "resume"])
async def test_a_reverted_guest_that_does_not_start_is_in_error_where_it_was(three: Hosts, verb: str) -> None:
    uuid = await resized_from(three, "h2", "h3")
    three.hosts["h2"].driver.faults.add(verb, HostFault("QEMU is broken"))
    found = await reverted(three, uuid)
    assert (found.vm_state, found.task_state, found.host) == (Vm.ERROR, None, "h2")
    assert found.fault is not None and found.fault.message == "QEMU is broken"
    assert three.hosts["h3"].empty and parked(three, uuid) == set()
    there = await three.everywhere(uuid)
    assert (there.bound, there.held, there.held_by_moves) == ({"h2"}, {"h2"}, set())
    (migration,) = await three.migrations(uuid)
    assert migration.status == Status.REVERTED


@pytest.mark.capability("MG-RSZ-12")
@pytest.mark.parametrize(("fatal", "after"), [(True, Vm.ERROR), (False, Vm.ACTIVE)])
async def test_ports_that_are_not_wired_after_a_revert(three: Hosts, fatal: bool, after: str) -> None:
    three.cloud.settings.options["DEFAULT"] |= {"vif_plugging_timeout": 1, "vif_plugging_is_fatal": fatal}
    uuid = await resized_from(three, "h2", "h3")
    await three.wires_nothing("h2")
    found = await reverted(three, uuid)
    assert (found.vm_state, found.host) == (after, "h2")
    assert (found.fault is not None and "did not wire" in found.fault.message) == fatal


async def test_a_revert_that_fails_leaves_the_server_as_it_was(three: Hosts) -> None:
    uuid = await resized_from(three, "h2", "h3")
    three.hosts["h2"].driver.faults.add("unpark", HostFault("no"))
    found = await reverted(three, uuid)
    assert (found.vm_state, found.task_state, found.host) == (Vm.RESIZED, None, "h3")
    assert found.fault is not None
    await assert_both_sides(three, uuid, "h2", "h3")
    assert (await confirmed(three, uuid)).vm_state == Vm.ACTIVE
    await assert_settled(three, uuid, "h3")


async def test_a_revert_that_fails_where_both_have_the_same_files(three: Hosts) -> None:
    three.hosts["h3"].driver.storage = three.hosts["h2"].driver.storage
    uuid = await resized_from(three, "h2", "h3")
    three.hosts["h2"].driver.faults.add("unpark", HostFault("no"))
    found = await reverted(three, uuid)
    assert (found.vm_state, found.task_state, found.host) == (Vm.RESIZED, None, "h3")
    assert three.hosts["h2"].driver.storage.parked == {uuid}
    assert (await three.everywhere(uuid)).guests["h3"] == Power.RUNNING


async def test_a_source_that_gives_no_answer_has_its_files_put_aside_again(three: Hosts) -> None:
    """It has put them back, went down before anybody heard of it, and is there again later."""
    uuid = await resized_from(three, "h2", "h3")
    step = three.cloud.runner.operations["revert_resize"].step("unpark")

    async def go_down(run: Run) -> Done | Wait:
        await step.do(run)
        await three.cut_off("h2")
        return await step.do(run)

    replaced(three.cloud, "revert_resize", changed(step, do=go_down))
    await revert_resize.submit(three.cloud.cloud, member(three.cloud), uuid)
    async with asyncio.timeout(30):
        while [each.state for each in await three.cloud.db.read(attention.open_actions)] != ["unwinding"]:
            await asyncio.sleep(0.02)
    await three.come_back("h2")
    found = await settled(three.cloud, uuid, 60)
    assert (found.vm_state, found.host) == (Vm.RESIZED, "h3")
    assert found.fault is not None and "h2" in found.fault.message
    await assert_both_sides(three, uuid, "h2", "h3")
    assert (await confirmed(three, uuid)).vm_state == Vm.ACTIVE
    await assert_settled(three, uuid, "h3")


async def test_a_source_with_the_same_files_is_waited_for(three: Hosts) -> None:
    """What it may have put back is what the guest at the destination would need."""
    three.hosts["h3"].driver.storage = three.hosts["h2"].driver.storage
    uuid = await resized_from(three, "h2", "h3")
    gate = Gate(three.cloud, "revert_resize", "unpark")
    await revert_resize.submit(three.cloud.cloud, member(three.cloud), uuid)
    await gate.wait()
    await three.cut_off("h2")
    gate.open()
    await asyncio.sleep(1.0)
    (action,) = await three.cloud.db.read(attention.open_actions)
    assert (action.state, action.error) == ("running", None)
    await three.come_back("h2")
    found = await settled(three.cloud, uuid, 60)
    assert (found.vm_state, found.host, found.fault) == (Vm.ACTIVE, "h2", None)


async def test_a_destination_that_goes_down_before_it_has_wired_is_not_waited_for(
    three: Hosts,
) -> None:
    three.cloud.settings.options["DEFAULT"]["vif_plugging_timeout"] = 300
    uuid = await three.boot()
    await three.wires_nothing("h2")
    await ask_resize(three, uuid)
    async with asyncio.timeout(30):
        while [each.state for each in await three.cloud.db.read(attention.open_actions)] != ["waiting"]:
            await asyncio.sleep(0.02)
    await three.lose_power("h2")
    found = await settled(three.cloud, uuid, 40)
    assert_waits(found, "h3")
    await three.come_back("h2")
    await three.cleared()
    await assert_both_sides(three, uuid, "h1", "h3")


@pytest.mark.capability("MG-RSZ-4")
@pytest.mark.parametrize("step", ["check", "bind", "copy", "fit", "plug", "start", "finish"])
async def test_a_destination_that_goes_down_is_given_up_for_another(three: Hosts, step: str) -> None:
    uuid = await three.boot()
    gate = Gate(three.cloud, "resize", step)
    await ask_resize(three, uuid)
    await gate.wait()
    await three.lose_power("h2")
    gate.open()
    assert_waits(await settled(three.cloud, uuid, 60), "h3")
    await three.come_back("h2")
    await three.cleared()
    await assert_both_sides(three, uuid, "h1", "h3")
    assert three.hosts["h2"].empty
    assert await three.complaints() == []


async def test_a_destination_that_goes_down_owes_no_files_that_others_have_too(three: Hosts) -> None:
    """They are those of the guest at the source by the time when it is cleared."""
    three.hosts["h2"].driver.storage = three.hosts["h1"].driver.storage
    uuid = await three.boot()
    gate = Gate(three.cloud, "resize", "fit")
    await ask_resize(three, uuid)
    await gate.wait()
    await three.lose_power("h2")
    gate.open()
    assert_waits(await settled(three.cloud, uuid, 60), "h3")
    (owed,) = await three.owed("h2")
    assert owed.keep_files


async def test_a_source_that_goes_down_fails_the_resize_and_is_as_it_was_when_it_is_back(
    three: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kilonova.journal.walk.UNASKED", 1)
    uuid = await three.boot(host="h2")
    gate = Gate(three.cloud, "resize", "copy")
    await ask_resize(three, uuid)
    await gate.wait()
    await three.lose_power("h2")
    monkeypatch.setattr("kilonova.journal.walk.UNDO_ATTEMPTS", 1)
    gate.open()
    await settled(three.cloud, uuid, 60)  # in need of attention, as only that host can take its files back
    await three.come_back("h2")
    async with asyncio.timeout(30):
        while (found := await server(three.cloud, uuid)).task_state is not None:
            await asyncio.sleep(0.05)
    assert (found.vm_state, found.host, found.power_state) == (Vm.ACTIVE, "h2", Power.RUNNING)
    assert found.fault is not None and "has gone down" in found.fault.message
    await assert_settled(three, uuid, "h2")


@pytest.mark.parametrize("step", ["park", "copy", "plug", "finish"])
async def test_a_server_whose_source_went_down_on_the_way_can_be_deleted(
    three: Hosts, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kilonova.journal.walk.UNDO_ATTEMPTS", 1)
    monkeypatch.setattr("kilonova.journal.walk.UNASKED", 1)
    uuid = await three.boot(host="h2")
    gate = Gate(three.cloud, "resize", step)
    await ask_resize(three, uuid)
    await gate.wait()
    await three.lose_power("h2")
    await delete.submit(three.cloud.cloud, member(three.cloud), uuid)
    gate.open()
    async with asyncio.timeout(30):
        while (await server(three.cloud, uuid)).deleted_at is None:
            await asyncio.sleep(0.05)
    await settled(three.cloud, uuid, 60)
    assert three.hosts["h1"].empty and three.hosts["h3"].empty
    await three.come_back("h2")
    await three.cleared()
    assert three.hosts["h2"].empty
    assert await three.complaints() == []


async def test_nobody_asks_a_source_that_is_down(three: Hosts) -> None:
    uuid = await three.boot(host="h2")
    await three.cut_off("h2")
    with pytest.raises(Conflict, match="Service is unavailable"):
        await ask_resize(three, uuid)


async def test_a_deleted_server_whose_source_is_down_is_cleared_there_later(three: Hosts) -> None:
    uuid = await resized_from(three, "h2", "h3")
    await three.lose_power("h2")
    await delete.submit(three.cloud.cloud, member(three.cloud), uuid)
    assert (await settled(three.cloud, uuid, 60)).deleted_at is not None
    assert three.hosts["h3"].empty
    await three.come_back("h2")
    await three.cleared()
    assert all(host.empty for host in three.hosts.values())
    assert await three.complaints() == []


# ---- hosts that answer, and get nothing done ----


@pytest.mark.parametrize("verb", ["park", "request_shutdown"])
async def test_a_source_that_gets_nothing_done_is_not_waited_for_for_ever(
    three: Hosts, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resize_ends, "PATIENCE", 0.5)
    uuid = await three.boot()
    three.hosts["h1"].driver.faults.add(verb, TryAgain("libvirtd hangs"), 4)
    found = await resized(three, uuid)
    assert (found.vm_state, found.host) == (Vm.ACTIVE, "h1")
    assert found.fault is not None and "libvirtd hangs" in found.fault.message
    three.hosts["h1"].driver.faults.mend(verb)
    await assert_settled(three, uuid, "h1")


async def test_a_destination_that_gets_nothing_done_is_given_up(
    three: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resize_ends, "PATIENCE", 0.5)
    uuid = await three.boot()
    three.hosts["h2"].driver.faults.add("fit_disks", TryAgain("libvirtd hangs"), 9)
    assert_waits(await resized(three, uuid), "h3")


# ---- decisions that nobody makes ----


async def age(three: Hosts, uuid: str, seconds: int) -> None:
    """As if it had waited for so long."""
    (migration,) = await three.migrations(uuid)
    moment = three.cloud.clock.now() - seconds * SECOND
    await three.cloud.db.write(lambda tx: migrations.update(tx, migration.uuid, updated_at=moment))


@pytest.mark.capability("MG-RSZ-15", "MG-PER-6")
async def test_what_waits_for_too_long_is_confirmed(three: Hosts) -> None:
    uuid = await three.boot()
    await resized(three, uuid)
    await age(three, uuid, 100)
    cloud = three.cloud
    assert await confirm_resize.confirm_overdue(cloud.cloud) == 0  # the default is never
    cloud.settings.options["DEFAULT"]["resize_confirm_window"] = 101
    assert await confirm_resize.confirm_overdue(cloud.cloud) == 0
    cloud.settings.options["DEFAULT"]["resize_confirm_window"] = 99
    await confirm_resize.confirm_all_overdue(cloud.cloud)
    found = await settled(cloud, uuid)
    assert (found.vm_state, found.host) == (Vm.ACTIVE, "h2")
    await assert_settled(three, uuid, "h2")
    assert await confirm_resize.confirm_overdue(cloud.cloud) == 0


@pytest.mark.capability("MG-PER-6")
@pytest.mark.parametrize(
    ("values", "status"),
    [
        ({"vm_state": Vm.ERROR}, Status.ERROR),
        ({"vm_state": Vm.ACTIVE}, Status.ERROR),
        ({"task_state": Task.RESIZE_REVERTING}, Status.ERROR),
        ({"task_state": Task.DELETING}, Status.FINISHED),
        ({"task_state": Task.RESIZE_FINISH}, Status.FINISHED),
        ({"locked": "admin"}, Status.CONFIRMED),
    ],
)
async def test_servers_that_are_not_as_they_should_be(
    three: Hosts, values: dict[str, Any], status: str
) -> None:
    uuid = await three.boot()
    await resized(three, uuid)
    await age(three, uuid, 100)
    three.cloud.settings.options["DEFAULT"]["resize_confirm_window"] = 1
    await three.change(uuid, **values)
    begun = await confirm_resize.confirm_overdue(three.cloud.cloud)
    assert begun == (status == Status.CONFIRMED)
    await settled(three.cloud, uuid)
    (migration,) = await three.migrations(uuid)
    assert migration.status == status


async def test_a_migration_of_a_server_that_is_gone_is_in_error(three: Hosts) -> None:
    uuid = await three.boot()
    await resized(three, uuid)
    await age(three, uuid, 100)
    three.cloud.settings.options["DEFAULT"]["resize_confirm_window"] = 1
    now = three.cloud.clock.now()
    await three.cloud.db.write(lambda tx: instances.mark_deleted(tx, uuid, now))
    assert await confirm_resize.confirm_overdue(three.cloud.cloud) == 0
    (migration,) = await three.migrations(uuid)
    assert migration.status == Status.ERROR


async def test_a_host_that_fails_for_good_while_a_server_is_confirmed(three: Hosts) -> None:
    uuid = await three.boot()
    await resized(three, uuid)
    three.hosts["h1"].driver.faults.add("drop_parked", Failed("the disk is read-only"), 2)
    assert (await confirmed(three, uuid)).vm_state == Vm.ACTIVE
    await assert_settled(three, uuid, "h2")
    assert replace(await server(three.cloud, uuid)).fault is None
