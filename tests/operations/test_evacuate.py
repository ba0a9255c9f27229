"""Evacuating servers from hosts that are down: to where, from what files, and what failures leave behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kilonova.errors import Failed, HostFault, Invalid
from kilonova.model.migration import Status
from kilonova.model.states import Power, Vm
from kilonova.operations import reboot, shelve, stop, unshelve
from kilonova.operations.leftovers import OWES
from kilonova.testing.embedded import member, server, settled
from kilonova.virt.fake.guests import PREPARED
from tests.crash.broken import Gate, failing
from tests.operations.dead_hosts import Hosts, opened, runs_on


@pytest.fixture
async def three(tmp_path: Path) -> AsyncIterator[Hosts]:
    async with opened(tmp_path / "state") as made:
        yield made


@pytest.mark.capability("MG-EVC-6", "MG-EVC-3")
async def test_a_server_runs_on_another_host_when_its_own_is_down(three: Hosts) -> None:
    uuid = await three.boot()
    await three.lose_power("h1")
    await three.change(uuid, power_generation=2**62, power_state=Power.SHUTDOWN)  # its clock was ahead
    found = await three.evacuate(uuid)
    assert (found.vm_state, found.task_state, found.host, found.node) == (Vm.ACTIVE, None, "h2", "h2")
    assert (found.power_state, found.fault) == (Power.RUNNING, None)
    (migration,) = await three.migrations(uuid)
    assert (migration.migration_type, migration.status) == ("evacuation", Status.DONE)
    assert (migration.source_compute, migration.dest_compute) == ("h1", "h2")
    there = await three.everywhere(uuid)
    assert (there.bound, there.held, there.held_by_moves) == ({"h2"}, {"h2"}, {"h1"})
    assert three.hosts["h2"].driver.guest_file.state(uuid) == Power.RUNNING
    assert [each.instance_uuid for each in await three.owed("h1")] == [uuid]


@pytest.mark.capability("MG-EVC-6")
async def test_what_was_off_stays_off(three: Hosts) -> None:
    uuid = await three.boot()
    await stop.submit(three.cloud.cloud, member(three.cloud), uuid)
    assert (await settled(three.cloud, uuid)).vm_state == Vm.STOPPED
    await three.lose_power("h1")
    found = await three.evacuate(uuid)
    assert (found.vm_state, found.host, found.power_state) == (Vm.STOPPED, "h2", Power.SHUTDOWN)
    await three.come_back("h1")
    await three.cleared()
    await three.assert_only_on(uuid, "h2", Power.SHUTDOWN)


@pytest.mark.parametrize("before", [Vm.ACTIVE, Vm.ERROR])
@pytest.mark.parametrize(("stop", "after"), [(False, Vm.ACTIVE), (True, Vm.STOPPED)])
async def test_running_servers_and_those_in_error_run_or_are_left_off(
    three: Hosts, before: str, stop: bool, after: str
) -> None:
    uuid = await three.boot()
    await three.lose_power("h1")
    await three.change(uuid, vm_state=before)
    found = await three.evacuate(uuid, stop=stop)
    assert (found.vm_state, found.host, found.fault) == (after, "h2", None)


@pytest.mark.capability("API-44")
async def test_a_host_that_is_up_is_not_evacuated(three: Hosts) -> None:
    uuid = await three.boot()
    with pytest.raises(Invalid, match=r"^Compute service of h1 is still in use\.$"):
        await three.ask(uuid)
    assert await three.migrations(uuid) == []
    await three.force_down("h1")
    assert (await three.evacuate(uuid)).host == "h2"


async def test_hosts_that_are_silent_by_an_outage_of_ours_are_not_evacuated(three: Hosts) -> None:
    uuid = await three.boot()
    await three.cut_off("h1")
    three.cloud.scheduler.interrupted()
    with pytest.raises(Invalid, match="still in use"):
        await three.ask(uuid)


async def test_an_outage_of_ours_in_the_middle_is_waited_for(three: Hosts) -> None:
    uuid = await three.boot()
    await three.cut_off("h1")
    gate = Gate(three.cloud, "evacuate", "still_down")
    await three.ask(uuid)
    await gate.wait()
    three.cloud.scheduler.interrupted()
    gate.open()
    await asyncio.sleep(1)
    assert (await server(three.cloud, uuid)).host == "h1"
    three.cloud.scheduler._hearing_since = 0
    found = await settled(three.cloud, uuid)
    assert (found.vm_state, found.host, found.fault) == (Vm.ACTIVE, "h2", None)


# ---- faults ----


@pytest.mark.capability("MG-EVC-2")
@pytest.mark.parametrize("verb", ["locate", "prepare", "start"])
async def test_a_host_that_cannot_is_left_for_another(three: Hosts, verb: str) -> None:
    uuid = await three.boot()
    await three.lose_power("h1")
    three.hosts["h2"].driver.faults.add(verb, HostFault("no room"))
    found = await three.evacuate(uuid)
    assert (found.vm_state, found.host) == (Vm.ACTIVE, "h3")
    assert three.hosts["h2"].empty
    await three.come_back("h1")
    await three.cleared()
    await three.assert_only_on(uuid, "h3")
    assert await three.complaints() == []


@pytest.mark.capability("MG-EVC-2")
async def test_a_host_where_such_a_guest_is_will_not_do(three: Hosts) -> None:
    uuid = await three.boot()
    await three.lose_power("h1")
    three.hosts["h2"].driver.guest_file.put(uuid, Power.SHUTDOWN)
    found = await three.evacuate(uuid)
    assert found.host == "h3"
    assert three.hosts["h2"].driver.guest_file.state(uuid) == Power.SHUTDOWN  # it is not ours to take away


async def test_ports_that_nobody_wires_there(three: Hosts) -> None:
    uuid = await three.boot()
    await three.lose_power("h1")
    await three.wires_nothing("h2")
    found = await three.evacuate(uuid)
    assert (found.vm_state, found.host, found.fault) == (Vm.ACTIVE, "h3", None)
    assert three.hosts["h2"].empty


@pytest.mark.capability("MG-EVC-1")
async def test_no_host_is_left(three: Hosts) -> None:
    uuid = await three.boot()
    for name in ("h1", "h2", "h3"):
        await three.force_down(name)
    found = await three.evacuate(uuid)
    assert (found.vm_state, found.task_state, found.host) == (Vm.ERROR, None, "h1")
    assert found.fault is not None and found.fault.message.startswith("No valid host was found.")
    (migration,) = await three.migrations(uuid)
    assert (migration.status, migration.dest_compute) == (Status.ERROR, None)
    there = await three.everywhere(uuid)
    assert (there.held, there.held_by_moves, there.bound) == ({"h1"}, set(), {"h1"})
    assert await three.owed("h1") == []


@pytest.mark.capability("MG-EVC-1")
async def test_a_forced_host_without_room_leaves_the_server_as_it_was(three: Hosts) -> None:
    uuid = await three.boot()
    await three.lose_power("h1")
    await three.fill("h3")
    found = await three.evacuate(uuid, host="h3", forced=True)
    assert (found.vm_state, found.task_state, found.host) == (Vm.ACTIVE, None, "h1")
    (migration,) = await three.migrations(uuid)
    assert migration.status == Status.ERROR
    there = await three.everywhere(uuid)
    assert (there.held, there.held_by_moves) == ({"h1"}, set())
    found = await three.evacuate(uuid, host="h3")  # asked of the scheduler, and refused by it
    assert (found.vm_state, found.host) == (Vm.ERROR, "h1")
    found = await three.evacuate(uuid, host="h2", forced=True)
    assert (found.vm_state, found.host) == (Vm.ACTIVE, "h2")


@pytest.mark.capability("MG-EVC-2", "MG-EVC-4")
async def test_the_policy_of_its_group_is_kept(three: Hosts) -> None:
    group = await three.group("anti-affinity")
    first = await three.boot(hints={"group": group})
    second = await three.boot(hints={"group": group})
    assert [(await server(three.cloud, each)).host for each in (first, second)] == ["h1", "h2"]
    await three.lose_power("h1")
    found = await three.evacuate(first, host="h2", forced=True)
    assert (found.vm_state, found.host) == (Vm.ACTIVE, "h1")
    (migration,) = await three.migrations(first)
    assert (migration.status, migration.dest_compute) == (Status.FAILED, None)
    there = await three.everywhere(first)
    assert (there.held, there.held_by_moves) == ({"h1"}, set())
    assert (await three.evacuate(first)).host == "h3"


# ---- files ----


@pytest.mark.capability("MG-EVC-3", "MG-INIT-3")
async def test_files_on_shared_storage_are_used_and_kept(three: Hosts) -> None:
    uuid = await three.boot()
    await three.lose_power("h1")
    three.hosts["h2"].driver.guest_file.put(uuid, PREPARED)
    found = await three.evacuate(uuid)
    assert found.host == "h2"
    assert [each.keep_files for each in await three.owed("h1")] == [True]
    await three.come_back("h1")
    await three.cleared()
    assert three.hosts["h1"].driver.guest_file.state(uuid) == PREPARED
    assert not three.hosts["h1"].plugger.plugged()
    assert await three.owed("h1") == []


@pytest.mark.parametrize("step", ["prepare", "start", "still_down"])
async def test_files_on_shared_storage_outlive_a_failure(three: Hosts, step: str) -> None:
    uuid = await three.boot()
    await three.lose_power("h1")
    three.hosts["h2"].driver.guest_file.put(uuid, PREPARED)
    failing(three.cloud, "evacuate", step, Failed("ordered"), after=True)
    found = await three.evacuate(uuid)
    assert (found.vm_state, found.host) == (Vm.ERROR, "h1")
    assert three.hosts["h2"].driver.guest_file.state(uuid) == PREPARED
    assert not three.hosts["h2"].plugger.plugged()


@pytest.mark.capability("MG-EVC-2")
@pytest.mark.parametrize(("said", "there"), [(True, False), (False, True)])
async def test_who_is_wrong_about_shared_storage_hears_it(three: Hosts, said: bool, there: bool) -> None:
    uuid = await three.boot()
    await three.lose_power("h1")
    if there:
        three.hosts["h2"].driver.guest_file.put(uuid, PREPARED)
    found = await three.evacuate(uuid, on_shared_storage=said)
    assert (found.vm_state, found.host) == (Vm.ERROR, "h1")
    assert found.fault is not None and found.fault.message.startswith("Invalid shared storage")
    assert (await three.evacuate(uuid, on_shared_storage=there)).vm_state == Vm.ACTIVE


# ---- hosts that come back, and others that go ----


@pytest.mark.capability("MG-INIT-3", "MG-INIT-4", "MG-EVC-7", "RT-32")
async def test_a_host_that_comes_back_is_cleared(three: Hosts) -> None:
    uuid, other = await three.boot(), await three.boot()
    await three.lose_power("h1")
    await three.evacuate(uuid)
    assert await three.cleared() == 0  # it cannot be heard
    assert (await three.everywhere(uuid)).held_by_moves == {"h1"}
    await three.come_back("h1")
    assert await three.cleared() == 1
    await three.assert_only_on(uuid, "h2")
    assert (await three.migrations(uuid))[0].status == Status.COMPLETED
    assert three.hosts["h1"].driver.guest_file.everything() == {other: Power.SHUTDOWN}
    assert set(three.hosts["h1"].plugger.plugged().values()) == {other}
    assert await three.cleared() == 0


@pytest.mark.capability("MG-INIT-3")
async def test_a_guest_that_never_stopped_running_is_ended_at_the_first_contact(three: Hosts) -> None:
    uuid = await three.boot()
    await three.cut_off("h1")
    await three.evacuate(uuid)
    assert runs_on(await three.everywhere(uuid)) == {"h1", "h2"}  # nobody can hinder it
    (port,) = (await server(three.cloud, uuid)).vifs
    assert await three.cloud.network.port(port.port_id, "h1") is None  # but it is not wired there any more
    await three.come_back("h1")
    await three.cleared()
    await three.assert_only_on(uuid, "h2")


async def test_a_host_that_is_up_again_in_time_keeps_its_guest(three: Hosts) -> None:
    uuid = await three.boot()
    await three.cut_off("h1")
    gate = Gate(three.cloud, "evacuate", "wired", after=False)
    await three.ask(uuid)
    await gate.wait()
    await three.come_back("h1")
    gate.open()
    found = await settled(three.cloud, uuid)
    assert (found.vm_state, found.task_state, found.host) == (Vm.ACTIVE, None, "h1")
    assert found.fault is not None and "h1 is up again" in found.fault.message
    await three.assert_only_on(uuid, "h1")
    assert (await three.migrations(uuid))[0].status == Status.FAILED
    assert await three.complaints() == []


@pytest.mark.parametrize("forced", [False, True])
@pytest.mark.capability("API-116")
async def test_an_old_host_that_can_be_heard_is_cleared_before_the_new_guest_runs(
    three: Hosts, forced: bool
) -> None:
    uuid = await three.boot()
    if forced:
        await three.force_down("h1")  # while it runs on
    else:
        await three.cut_off("h1")
    gate = Gate(three.cloud, "evacuate", "fence")
    before_run = Gate(three.cloud, "evacuate", "run")
    await three.ask(uuid)
    await gate.wait()
    await three.come_back("h1")
    gate.open()
    await before_run.wait()
    there = await three.everywhere(uuid)
    assert there.guests == {"h2": Power.PAUSED}
    before_run.open()
    await settled(three.cloud, uuid)
    await three.assert_only_on(uuid, "h2")
    assert (await three.migrations(uuid))[0].status == Status.COMPLETED


async def test_a_host_that_is_up_and_does_not_answer_keeps_the_new_guest_waiting(three: Hosts) -> None:
    """Until it is down, too: it may run the guest."""
    uuid = await three.boot()
    await three.cut_off("h1")
    gate = Gate(three.cloud, "evacuate", "fence")
    await three.ask(uuid)
    await gate.wait()
    await three.set_seen("h1", three.cloud.clock.now())
    gate.open()
    await asyncio.sleep(1)
    assert runs_on(await three.everywhere(uuid)) == {"h1"}
    await three.force_down("h1")
    found = await settled(three.cloud, uuid, 60)
    assert (found.vm_state, found.host) == (Vm.ACTIVE, "h2")
    await three.come_back("h1")
    await three.cleared()
    await three.assert_only_on(uuid, "h2")


@pytest.mark.parametrize("step", ["look", "prepare", "plug", "start"])
async def test_the_new_host_goes_down_on_the_way(three: Hosts, step: str) -> None:
    uuid = await three.boot()
    await three.lose_power("h1")
    gate = Gate(three.cloud, "evacuate", step)
    await three.ask(uuid)
    await gate.wait()
    await three.lose_power("h2")
    gate.open()
    found = await settled(three.cloud, uuid, 60)
    assert (found.vm_state, found.host) == (Vm.ACTIVE, "h3")
    for name in ("h1", "h2"):
        await three.come_back(name)
    await three.cleared()
    await three.assert_only_on(uuid, "h3")
    assert await three.complaints() == []


async def test_the_new_host_goes_down_just_before_the_guest_runs(three: Hosts) -> None:
    uuid = await three.boot()
    await three.lose_power("h1")
    gate = Gate(three.cloud, "evacuate", "run")
    await three.ask(uuid)
    await gate.wait()
    await three.lose_power("h2")
    gate.open()
    found = await settled(three.cloud, uuid, 60)
    assert (found.vm_state, found.task_state, found.host) == (Vm.ERROR, None, "h2")
    assert found.fault is not None and found.fault.message == "The host h2 has gone down."
    found = await three.evacuate(uuid)
    assert (found.vm_state, found.host) == (Vm.ACTIVE, "h3")
    for name in ("h1", "h2"):
        await three.come_back(name)
    await three.cleared()
    await three.assert_only_on(uuid, "h3")
    assert [each.status for each in await three.migrations(uuid)] == [Status.COMPLETED] * 2
    assert await three.complaints() == []


async def test_a_guest_that_does_not_run_there_leaves_the_server_in_error(three: Hosts) -> None:
    uuid = await three.boot()
    await three.lose_power("h1")
    three.hosts["h2"].driver.faults.add("resume", HostFault("no power"))
    found = await three.evacuate(uuid)
    assert (found.vm_state, found.task_state, found.host) == (Vm.ERROR, None, "h2")
    assert found.fault is not None and found.fault.message == "no power"
    await reboot.submit(three.cloud.cloud, member(three.cloud), uuid, hard=True)
    assert (await settled(three.cloud, uuid)).vm_state == Vm.ACTIVE


async def test_a_server_does_not_come_back_before_its_old_host_is_cleared(three: Hosts) -> None:
    uuid = await three.boot()
    await three.lose_power("h1")
    await three.evacuate(uuid, host="h2")
    await three.set_seen("h1", three.cloud.clock.now())  # it gives signs, and does not answer so far
    await three.lose_power("h2")
    refused = await three.evacuate(uuid, host="h1", forced=True)
    assert (refused.vm_state, refused.host) == (Vm.ACTIVE, "h2")
    assert refused.fault is not None and OWES in refused.fault.message
    assert (await three.evacuate(uuid)).host == "h3"
    await three.lose_power("h3")
    for name in ("h1", "h2"):
        await three.come_back(name)
    await three.cleared()
    found = await three.evacuate(uuid)
    assert (found.vm_state, found.host) == (Vm.ACTIVE, "h1")
    await three.come_back("h3")
    await three.cleared()
    await three.assert_only_on(uuid, "h1")
    assert await three.complaints() == []


async def test_a_shelved_server_does_not_come_back_to_such_a_host_either(three: Hosts) -> None:
    uuid = await three.boot()
    await three.lose_power("h1")
    await three.evacuate(uuid)
    await shelve.submit(three.cloud.cloud, member(three.cloud), uuid)
    assert (await settled(three.cloud, uuid)).vm_state == Vm.SHELVED_OFFLOADED
    await three.set_seen("h1", three.cloud.clock.now())  # it gives signs, and does not answer so far
    three.cloud.scheduler.forget()
    await unshelve.submit(three.cloud.cloud, member(three.cloud), uuid)
    assert (await settled(three.cloud, uuid)).host == "h2"
