"""Resizing servers and migrating them cold: where they are and what they hold, from the beginning on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from kilonova.db import migration_contexts
from kilonova.errors import Conflict, Failed, HostFault, OverQuota, TryAgain
from kilonova.journal import actions, attention
from kilonova.model.instance import Instance
from kilonova.model.migration import Status
from kilonova.model.states import Power, Task, Vm
from kilonova.operations import delete, reboot, start, stop
from kilonova.testing.embedded import member, server, settled
from tests.crash.broken import Gate, failing
from tests.operations.dead_hosts import Hosts, opened
from tests.operations.resized import (
    ask_resize,
    assert_both_sides,
    assert_settled,
    assert_waits,
    confirmed,
    migrated,
    resized,
    reverted,
    stopped,
    used,
)


@pytest.fixture
async def three(tmp_path: Path) -> AsyncIterator[Hosts]:
    async with opened(tmp_path / "state") as made:
        yield made


@pytest.mark.capability("MG-RSZ-1", "MG-RSZ-5", "MG-RSZ-7", "RT-4")
async def test_a_resize_moves_the_server_and_keeps_both_sides_until_it_is_decided(three: Hosts) -> None:
    uuid = await three.boot()
    before = await server(three.cloud, uuid)
    found = await resized(three, uuid)
    assert_waits(found, "h2")
    assert (found.node, found.flavor.name, found.flavor.memory_mb) == ("h2", "m1.tiny", 512)
    assert found.launched_at is not None and before.launched_at is not None
    assert found.launched_at > before.launched_at
    await assert_both_sides(three, uuid, "h1", "h2")
    (migration,) = await three.migrations(uuid)
    assert (migration.migration_type, migration.status) == ("resize", Status.FINISHED)
    assert (migration.source_compute, migration.dest_compute) == ("h1", "h2")
    assert (migration.source_node, migration.dest_node) == ("h1", "h2")
    assert migration.old_flavor_id == before.flavor.id and migration.new_flavor_id == found.flavor.id
    assert migration.dest_host == "127.0.0.1"
    new = three.hosts["h2"].compute_id
    assert await three.cloud.placement.held(uuid) == {new: {"VCPU": 1, "MEMORY_MB": 512, "DISK_GB": 1}}
    old = three.hosts["h1"].compute_id
    assert await three.cloud.placement.held(migration.uuid) == {
        old: {"VCPU": 1, "MEMORY_MB": 128, "DISK_GB": 1}
    }
    assert await three.complaints() == []


@pytest.mark.capability("MG-RSZ-9", "RT-8")
@pytest.mark.parametrize("off", [False, True])
async def test_confirm_gives_up_what_the_server_had_before(three: Hosts, off: bool) -> None:
    uuid = await three.boot()
    if off:
        await stopped(three, uuid)
    await resized(three, uuid)
    found = await confirmed(three, uuid)
    power = Power.SHUTDOWN if off else Power.RUNNING
    assert (found.vm_state, found.task_state, found.host) == (Vm.STOPPED if off else Vm.ACTIVE, None, "h2")
    await assert_settled(three, uuid, "h2", power)
    (migration,) = await three.migrations(uuid)
    assert migration.status == Status.CONFIRMED
    assert await three.cloud.db.read(lambda tx: migration_contexts.of_instance(tx, uuid)) == []
    (last, *_) = await three.cloud.db.read(lambda tx: actions.list_actions(tx, uuid))
    assert last.action == "confirmResize"  # nobody had to stop it


@pytest.mark.capability("MG-RSZ-9")
async def test_one_that_was_turned_off_while_it_waited_is_stopped_when_it_is_confirmed(three: Hosts) -> None:
    uuid = await three.boot()
    await resized(three, uuid)
    three.hosts["h2"].driver.turn_off(uuid)
    async with asyncio.timeout(20):
        while (await server(three.cloud, uuid)).power_state != Power.SHUTDOWN:
            await asyncio.sleep(0.01)
    assert (await server(three.cloud, uuid)).vm_state == Vm.RESIZED
    assert (await confirmed(three, uuid)).vm_state == Vm.STOPPED
    await assert_settled(three, uuid, "h2", Power.SHUTDOWN)


@pytest.mark.capability("MG-RSZ-11", "MG-RSZ-12", "MG-RSZ-13", "API-107", "RT-9")
@pytest.mark.parametrize("off", [False, True])
async def test_revert_gives_back_all_that_the_server_had(three: Hosts, off: bool) -> None:
    uuid = await three.boot()
    if off:
        await stopped(three, uuid)
    before = await server(three.cloud, uuid)
    held = await three.cloud.placement.held(uuid)
    await resized(three, uuid)
    found = await reverted(three, uuid)
    power = Power.SHUTDOWN if off else Power.RUNNING
    assert (found.vm_state, found.task_state, found.fault) == (before.vm_state, None, None)
    assert (found.host, found.node, found.flavor) == ("h1", "h1", before.flavor)
    assert found.availability_zone == before.availability_zone
    assert [vif.port_id for vif in found.vifs] == [vif.port_id for vif in before.vifs]
    assert await three.cloud.placement.held(uuid) == held
    await assert_settled(three, uuid, "h1", power)
    (migration,) = await three.migrations(uuid)
    assert migration.status == Status.REVERTED
    assert await three.cloud.db.read(lambda tx: migration_contexts.of_instance(tx, uuid)) == []
    assert_waits(await resized(three, uuid), "h2", power)  # and it can be resized again


async def test_a_revert_starts_a_guest_that_was_turned_off_while_it_waited(three: Hosts) -> None:
    """As in Nova it is what it was before the resize that counts."""
    uuid = await three.boot()
    await resized(three, uuid)
    three.hosts["h2"].driver.turn_off(uuid)
    assert (await reverted(three, uuid)).vm_state == Vm.ACTIVE
    await assert_settled(three, uuid, "h1")


@pytest.mark.capability("MG-RSZ-7")
async def test_what_was_off_stays_off_and_can_be_started_there(three: Hosts) -> None:
    uuid = await three.boot()
    await stopped(three, uuid)
    assert_waits(await resized(three, uuid), "h2", Power.SHUTDOWN)
    await assert_both_sides(three, uuid, "h1", "h2", Power.SHUTDOWN)
    await confirmed(three, uuid)
    await start.submit(three.cloud.cloud, member(three.cloud), uuid)
    assert (await settled(three.cloud, uuid)).vm_state == Vm.ACTIVE
    await assert_settled(three, uuid, "h2")


@pytest.mark.capability("MG-RSZ-1", "MG-RSZ-2")
async def test_a_cold_migration_keeps_the_flavor(three: Hosts) -> None:
    uuid = await three.boot()
    before = await server(three.cloud, uuid)
    found = await migrated(three, uuid)
    assert_waits(found, "h2")
    assert found.flavor == before.flavor
    (migration,) = await three.migrations(uuid)
    assert (migration.migration_type, migration.new_flavor_id) == ("migration", before.flavor.id)
    (action, *_) = await three.cloud.db.read(lambda tx: actions.list_actions(tx, uuid))
    assert action.action == "migrate"
    await confirmed(three, uuid)
    assert_waits(await migrated(three, uuid, "h3"), "h3")
    await assert_both_sides(three, uuid, "h2", "h3")
    await reverted(three, uuid)
    await assert_settled(three, uuid, "h2")


async def test_what_is_seen_of_a_resize_on_its_way(three: Hosts) -> None:
    """Task states in Nova's order, with the statuses of the migration."""
    uuid = await three.boot()
    seen: list[tuple[str | None, str]] = []
    gates = {name: Gate(three.cloud, "resize", name) for name in ("place", "stop", "fit", "plug")}
    await ask_resize(three, uuid)
    for gate in gates.values():
        await gate.wait()
        (migration,) = await three.migrations(uuid)
        seen.append(((await server(three.cloud, uuid)).task_state, migration.status))
        gate.open()
    assert seen == [
        (Task.RESIZE_PREP, Status.PRE_MIGRATING),
        (Task.RESIZE_MIGRATING, Status.MIGRATING),
        (Task.RESIZE_MIGRATED, Status.POST_MIGRATING),
        (Task.RESIZE_FINISH, Status.POST_MIGRATING),
    ]
    assert_waits(await settled(three.cloud, uuid, 60), "h2")
    (action, *_) = await three.cloud.db.read(lambda tx: actions.list_actions(tx, uuid))
    events = await three.cloud.db.read(lambda tx: actions.events(tx, action.id))
    names = [each.event for each in events]
    nova = ["conductor_migrate_server", "cold_migrate", "compute_prep_resize", "compute_resize_instance"]
    assert [name for name in names if name in (*nova, "compute_finish_resize")] == [
        *nova,
        "compute_finish_resize",
    ]


async def test_a_resize_waits_for_its_turn_with_the_task_that_is_under_way(three: Hosts) -> None:
    uuid = await three.boot()
    gate = Gate(three.cloud, "resize", "copy")
    await ask_resize(three, uuid)
    await gate.wait()
    for refused in (ask_resize(three, uuid), stop.submit(three.cloud.cloud, member(three.cloud), uuid)):
        with pytest.raises(Conflict, match="resize_migrating"):
            await refused
    gate.open()
    assert_waits(await settled(three.cloud, uuid, 60), "h2")
    with pytest.raises(Conflict, match="vm_state resized"):
        await ask_resize(three, uuid)


# ---- where to ----


@pytest.mark.capability("API-105")
async def test_the_same_host_will_do_only_where_that_is_allowed(three: Hosts) -> None:
    for name in ("h2", "h3"):
        await three.fill(name)
    uuid = await three.boot()
    found = await resized(three, uuid)
    assert (found.vm_state, found.task_state, found.host) == (Vm.ACTIVE, None, "h1")
    assert found.fault is not None and "No valid host" in found.fault.message
    await assert_settled(three, uuid, "h1")
    three.cloud.settings.options["DEFAULT"]["allow_resize_to_same_host"] = True
    found = await migrated(three, uuid)  # which this is not for
    assert (found.vm_state, found.host) == (Vm.ACTIVE, "h1") and found.fault is not None
    await assert_settled(three, uuid, "h1")
    assert_waits(await resized(three, uuid), "h1")
    await assert_both_sides(three, uuid, "h1", "h1")
    assert (await three.everywhere(uuid)).plugged == {"h1": 1}


@pytest.mark.capability("MG-RSZ-3")
@pytest.mark.parametrize("decide", [confirmed, reverted])
async def test_a_resize_on_one_host_can_be_confirmed_and_reverted(
    three: Hosts, decide: Callable[[Hosts, str], Awaitable[Instance]]
) -> None:
    three.cloud.settings.options["DEFAULT"]["allow_resize_to_same_host"] = True
    for name in ("h2", "h3"):
        await three.fill(name)
    uuid = await three.boot()
    assert_waits(await resized(three, uuid), "h1")
    found = await decide(three, uuid)
    assert (found.vm_state, found.host) == (Vm.ACTIVE, "h1")
    assert found.flavor.name == ("m1.tiny" if decide is confirmed else "m1.nano")
    await assert_settled(three, uuid, "h1")


@pytest.mark.capability("MG-RSZ-7", "MG-RSZ-9", "MG-RSZ-11")
@pytest.mark.parametrize("decide", [confirmed, reverted])
async def test_files_on_storage_that_both_hosts_have_are_not_sent(
    three: Hosts, decide: Callable[[Hosts, str], Awaitable[Instance]]
) -> None:
    for name in ("h2", "h3"):
        three.hosts[name].driver.storage = three.hosts["h1"].driver.storage
    three.hosts["h1"].driver.faults.add("parked_files", Failed("nobody should ask for them"))
    uuid = await three.boot()
    assert_waits(await resized(three, uuid), "h2")
    assert three.hosts["h1"].driver.storage.probes == set()
    await decide(three, uuid)
    assert three.hosts["h1"].driver.storage.parked == set()


@pytest.mark.capability("MG-RSZ-4")
@pytest.mark.parametrize(
    "verb", ["check_room", "begin_receiving", "fit_disks", "start", "resume", "see_probe"]
)
async def test_the_next_host_takes_it_when_one_cannot(three: Hosts, verb: str) -> None:
    uuid = await three.boot()
    three.hosts["h2"].driver.faults.add(verb, HostFault("ordered"))
    found = await resized(three, uuid)
    assert_waits(found, "h3")
    await assert_both_sides(three, uuid, "h1", "h3")
    assert three.hosts["h2"].empty
    (migration,) = await three.migrations(uuid)
    assert (migration.status, migration.dest_compute) == (Status.FINISHED, "h3")
    assert await three.complaints() == []


@pytest.mark.capability("MG-RSZ-4")
async def test_the_next_host_takes_it_when_one_does_not_wire_its_ports(three: Hosts) -> None:
    uuid = await three.boot()
    await three.wires_nothing("h2")
    assert_waits(await resized(three, uuid), "h3")
    assert three.hosts["h2"].empty
    assert await three.complaints() == []


@pytest.mark.capability("MG-RSZ-4")
async def test_the_next_host_takes_it_when_ports_cannot_be_bound_at_one(
    three: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = three.cloud.network
    add = network.add_bindings

    async def refuse(uuid: str, host: str, *more: Any) -> Any:
        if host == "h2":
            raise Failed("Binding failed")
        return await add(uuid, host, *more)

    monkeypatch.setattr(network, "add_bindings", refuse)
    uuid = await three.boot()
    assert_waits(await resized(three, uuid), "h3")
    await assert_both_sides(three, uuid, "h1", "h3")


async def test_news_of_ports_that_were_plugged_at_the_source_are_not_taken_for_the_destinations(
    three: Hosts,
) -> None:
    uuid = await three.boot()
    await three.wires_nothing("h2")
    gate = Gate(three.cloud, "resize", "bind")
    await ask_resize(three, uuid)
    await gate.wait()
    cloud, (vif,) = three.cloud.cloud, (await server(three.cloud, uuid)).vifs
    await cloud.db.write(lambda tx: cloud.journal.signal(tx, uuid, "network-vif-plugged", vif.port_id))
    gate.open()
    assert_waits(await settled(three.cloud, uuid, 60), "h3")
    assert await three.complaints() == []


async def test_what_was_seen_at_the_new_host_is_forgotten_by_who_comes_back(three: Hosts) -> None:
    """A guest is started there paused, also that of a server which is off, and its agent tells of it."""
    uuid = await three.boot()
    await stopped(three, uuid)
    failing(three.cloud, "resize", "finish", Failed("ordered"))
    gate = Gate(three.cloud, "resize", "finish")
    await ask_resize(three, uuid)
    await gate.wait()
    await three.hosts["h2"].agent.tell_of_guests()
    async with asyncio.timeout(30):
        while (await server(three.cloud, uuid)).power_state != Power.PAUSED:
            await asyncio.sleep(0.02)
    gate.open()
    found = await settled(three.cloud, uuid, 60)
    assert (found.vm_state, found.host, found.power_state) == (Vm.STOPPED, "h1", Power.SHUTDOWN)
    await assert_settled(three, uuid, "h1", Power.SHUTDOWN)


async def test_the_new_host_is_heard_whatever_the_clock_of_the_old_one_said(three: Hosts) -> None:
    uuid = await three.boot()
    future = 1 << 60
    await three.change(uuid, power_generation=future)
    await resized(three, uuid)
    three.hosts["h2"].driver.turn_off(uuid)
    async with asyncio.timeout(20):
        while (await server(three.cloud, uuid)).power_state != Power.SHUTDOWN:
            await asyncio.sleep(0.01)
    await three.change(uuid, power_generation=future)
    assert (await reverted(three, uuid)).power_state == Power.RUNNING


@pytest.mark.capability("MG-RSZ-1", "MG-RSZ-8")
async def test_when_no_host_can_the_server_runs_where_it_was_and_each_says_why(three: Hosts) -> None:
    """Nova leaves it in error at the destination."""
    uuid = await three.boot()
    before = await server(three.cloud, uuid)
    for name in ("h2", "h3"):
        three.hosts[name].driver.faults.add("start", HostFault(f"no luck with {name}"))
    found = await resized(three, uuid)
    assert (found.vm_state, found.task_state, found.host) == (Vm.ACTIVE, None, "h1")
    assert (found.flavor, found.power_state) == (before.flavor, Power.RUNNING)
    assert found.fault is not None
    assert all(f"no luck with {name}" in found.fault.message for name in ("h2", "h3"))
    await assert_settled(three, uuid, "h1")
    assert three.hosts["h2"].empty and three.hosts["h3"].empty
    (migration,) = await three.migrations(uuid)
    assert migration.status == Status.ERROR


@pytest.mark.capability("MG-RSZ-2")
async def test_a_host_that_was_named_is_the_only_one(three: Hosts) -> None:
    uuid = await three.boot()
    three.hosts["h3"].driver.faults.add("start", HostFault("no luck"))
    found = await migrated(three, uuid, "h3")
    assert (found.vm_state, found.host) == (Vm.ACTIVE, "h1")
    assert found.fault is not None and found.fault.message == "no luck"
    await assert_settled(three, uuid, "h1")
    assert three.hosts["h2"].empty


@pytest.mark.parametrize("verb", ["put_probe", "request_shutdown", "park", "parked_files"])
async def test_what_fails_at_the_source_is_not_tried_with_other_hosts(three: Hosts, verb: str) -> None:
    uuid = await three.boot()
    error = HostFault("ordered") if verb != "parked_files" else Failed("ordered")
    three.hosts["h1"].driver.faults.add(verb, error)
    found = await resized(three, uuid)
    assert (found.vm_state, found.host) == (Vm.ACTIVE, "h1")
    assert found.fault is not None and "ordered" in found.fault.message
    await assert_settled(three, uuid, "h1")
    (migration,) = await three.migrations(uuid)
    assert migration.status == Status.ERROR


async def test_a_guest_that_does_not_start_again_is_in_error_and_can_be_rebooted(three: Hosts) -> None:
    uuid = await three.boot()
    driver = three.hosts["h1"].driver
    driver.faults.add("start", HostFault("QEMU is broken"))
    three.hosts["h2"].driver.faults.add("fit_disks", Failed("no"))
    found = await resized(three, uuid)
    assert (found.vm_state, found.task_state, found.host) == (Vm.ERROR, None, "h1")
    await reboot.submit(three.cloud.cloud, member(three.cloud), uuid, hard=True)
    assert (await settled(three.cloud, uuid)).vm_state == Vm.ACTIVE
    await assert_settled(three, uuid, "h1")


@pytest.mark.capability("MG-RSZ-1")
@pytest.mark.parametrize(("policy", "to"), [("anti-affinity", "h3"), ("affinity", None)])
async def test_the_policy_of_its_group_holds(three: Hosts, policy: str, to: str | None) -> None:
    group = await three.group(policy)
    uuid = await three.boot(hints={"group": group})
    other = await three.boot(hints={"group": group})
    assert (await server(three.cloud, other)).host == ("h2" if to else "h1")
    found = await resized(three, uuid)
    if to:
        assert_waits(found, to)
    else:
        assert (found.vm_state, found.host) == (Vm.ACTIVE, "h1") and found.fault is not None


# ---- quota ----


@pytest.mark.capability("API-103")
async def test_quota_follows_the_flavor(three: Hosts) -> None:
    uuid = await three.boot()
    small, large = {"instances": 1, "cores": 1, "ram": 128}, {"instances": 1, "cores": 1, "ram": 512}
    assert await used(three) == small
    gate = Gate(three.cloud, "resize", "place")
    await ask_resize(three, uuid)
    await gate.wait()
    assert await used(three) == large  # booked before anything is done
    gate.open()
    await settled(three.cloud, uuid, 60)
    assert await used(three) == large
    await reverted(three, uuid)
    assert await used(three) == small
    await resized(three, uuid)
    await confirmed(three, uuid)
    assert await used(three) == large
    gate = Gate(three.cloud, "resize", "activate")
    await ask_resize(three, uuid, "42")
    await gate.wait()
    assert await used(three) == large  # until it has moved
    gate.open()
    assert_waits(await settled(three.cloud, uuid, 60), "h1")
    assert await used(three) == small
    three.cloud.settings.options["quota"]["ram"] = 128
    assert (await reverted(three, uuid)).flavor.name == "m1.tiny"  # whatever the limit is by now
    assert await used(three) == large
    assert await three.complaints() == []


@pytest.mark.parametrize(("step", "after"), [("activate", True), ("finish", False), ("finish", True)])
async def test_quota_of_a_resize_to_less_that_fails(three: Hosts, step: str, after: bool) -> None:
    uuid = await three.boot()
    await resized(three, uuid)
    await confirmed(three, uuid)
    before = await used(three)
    failing(three.cloud, "resize", step, Failed("ordered"), after=after)
    found = await resized(three, uuid, "42")
    assert (found.vm_state, found.flavor.name) == (Vm.ACTIVE, "m1.tiny")
    assert await used(three) == before
    assert await three.complaints() == []


@pytest.mark.capability("API-103")
async def test_a_server_does_not_grow_beyond_the_quota(three: Hosts) -> None:
    three.cloud.settings.options["quota"]["ram"] = 511
    uuid = await three.boot()
    with pytest.raises(OverQuota, match="Quota exceeded for ram"):
        await ask_resize(three, uuid)
    assert (await server(three.cloud, uuid)).task_state is None
    assert await three.migrations(uuid) == []
    assert await three.complaints() == []


@pytest.mark.parametrize(("host", "verb"), [("h1", "unpark"), ("h2", "undefine"), ("h2", "discard")])
async def test_what_was_abandoned_is_cleared_up_by_a_delete(
    three: Hosts, monkeypatch: pytest.MonkeyPatch, host: str, verb: str
) -> None:
    monkeypatch.setattr("kilonova.journal.walk.UNDO_ATTEMPTS", 1)
    uuid = await three.boot()
    three.hosts["h2"].driver.faults.add("resume", Failed("no"))
    three.hosts[host].driver.faults.add(verb, TryAgain("it hangs"))
    await resized(three, uuid)
    (stuck,) = await three.cloud.db.read(attention.needing_attention)
    now = three.cloud.clock.now()
    await three.cloud.db.write(lambda tx: attention.resolve(tx, stuck.id, "abandon", "ann", now))
    three.cloud.runner.wake()
    async with asyncio.timeout(20):
        while (found := await server(three.cloud, uuid)).vm_state != Vm.ERROR:
            await asyncio.sleep(0.01)
    assert found.task_state is None and found.fault is not None and found.fault.message == "no"
    assert await used(three) == {"instances": 1, "cores": 1, "ram": 128}
    await delete.submit(three.cloud.cloud, member(three.cloud), uuid)
    await settled(three.cloud, uuid, 60)
    await three.cleared()
    assert all(each.empty for each in three.hosts.values())
    there = await three.everywhere(uuid)
    assert (there.bound, there.held, there.held_by_moves) == (set(), set(), set())
    assert await three.complaints() == []
