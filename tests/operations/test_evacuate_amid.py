"""Evacuations amid other operations: what is given up for them, and what gives them up."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kilonova.errors import Conflict
from kilonova.journal.model import Done, Run, Wait
from kilonova.model.migration import Status
from kilonova.model.states import Vm
from kilonova.operations import delete, evacuate, reboot, stop
from kilonova.operations.evacuate import EVACUATE
from kilonova.testing.embedded import member, server, settled
from kilonova.virt.fake.guests import PREPARED
from tests.crash.broken import Gate, changed, replaced
from tests.operations.dead_hosts import Hosts, opened
from tests.operations.resized import ask_resize, parked


@pytest.fixture
async def three(tmp_path: Path) -> AsyncIterator[Hosts]:
    async with opened(tmp_path / "state") as made:
        yield made


async def test_what_hangs_on_a_dead_host_is_given_up(three: Hosts) -> None:
    uuid = await three.boot()
    three.hosts["h1"].driver.faults.hold("power_off")
    await stop.submit(three.cloud.cloud, member(three.cloud), uuid)
    await three.lose_power("h1")
    found = await three.evacuate(uuid)
    assert (found.vm_state, found.task_state, found.host) == (Vm.ACTIVE, None, "h2")
    three.hosts["h1"].driver.faults.release("power_off")


@pytest.mark.parametrize("step", ["unplug", "copy", "start"])
async def test_files_that_a_resize_had_put_aside_come_back_when_no_host_could_take_the_server(
    three: Hosts, step: str
) -> None:
    uuid = await three.boot()
    gate = Gate(three.cloud, "resize", step, after=False)
    await ask_resize(three, uuid)
    await gate.wait()
    await three.lose_power("h1")
    for name in ("h2", "h3"):
        await three.fill(name)
    await three.ask(uuid)
    gate.open()
    found = await settled(three.cloud, uuid, 60)
    assert (found.vm_state, found.host, found.flavor.name) == (Vm.ERROR, "h1", "m1.nano")
    assert parked(three, uuid) == {"h1"} and [each.host for each in await three.owed("h1")] == ["h1"]
    await three.come_back("h1")
    assert await three.cleared() == 1
    assert parked(three, uuid) == set() and await three.owed("h1") == []
    await reboot.submit(three.cloud.cloud, member(three.cloud), uuid, hard=True)
    assert (await settled(three.cloud, uuid)).vm_state == Vm.ACTIVE
    await three.assert_only_on(uuid, "h1")
    assert await three.complaints() == []


async def test_a_server_that_has_left_meanwhile_is_let_alone(three: Hosts) -> None:
    """What was under way was past its point of no return, and the evacuation had to wait for its end."""
    uuid = await three.boot()
    await three.lose_power("h1")
    step = EVACUATE.step("place")

    async def after_another(run: Run) -> Done | Wait:
        await three.change(uuid, host="h2")
        run.known.clear()
        return await step.do(run)

    replaced(three.cloud, "evacuate", changed(step, do=after_another))
    found = await three.evacuate(uuid)
    assert (found.vm_state, found.task_state, found.host) == (Vm.ACTIVE, None, "h2")
    assert found.fault is not None and "has moved from h1 to h2" in found.fault.message
    assert (await three.migrations(uuid))[0].status == Status.FAILED
    assert three.hosts["h2"].empty and await three.owed("h1") == []


async def test_of_two_evacuations_one_is_refused(three: Hosts) -> None:
    uuid = await three.boot()
    await three.lose_power("h1")
    gate = Gate(three.cloud, "evacuate", "prepare")
    await three.ask(uuid)
    await gate.wait()
    with pytest.raises(Conflict, match="rebuild"):
        await three.ask(uuid)
    gate.open()
    assert (await settled(three.cloud, uuid)).host == "h2"
    assert len(await three.migrations(uuid)) == 1


async def test_a_server_that_is_being_deleted_is_not_evacuated(three: Hosts) -> None:
    uuid = await three.boot()
    await three.lose_power("h1")
    await three.change(uuid, task_state="deleting")
    with pytest.raises(Conflict, match="task_state deleting"):
        await three.ask(uuid)


@pytest.mark.parametrize("step", [step.name for step in EVACUATE.steps])
async def test_a_server_is_deleted_while_it_is_evacuated(three: Hosts, step: str) -> None:
    uuid = await three.boot()
    await three.lose_power("h1")
    gate = Gate(three.cloud, "evacuate", step)
    await three.ask(uuid)
    await gate.wait()
    await delete.submit(three.cloud.cloud, member(three.cloud), uuid)
    gate.open()
    assert (await settled(three.cloud, uuid, 60)).vm_state == Vm.DELETED
    assert three.hosts["h2"].empty and three.hosts["h3"].empty
    assert [each.instance_uuid for each in await three.owed("h1")] == [uuid]
    await three.come_back("h1")
    await three.cleared()
    assert three.hosts["h1"].empty
    there = await three.everywhere(uuid)
    assert (there.held, there.held_by_moves, there.bound) == (set(), set(), set())
    assert await three.complaints() == []


@pytest.mark.capability("MG-INIT-4")
async def test_a_server_that_was_deleted_after_it_was_evacuated_is_removed_with_its_files(
    three: Hosts,
) -> None:
    uuid = await three.boot()
    await three.lose_power("h1")
    three.hosts["h2"].driver.guest_file.put(uuid, PREPARED)  # on shared storage
    await three.evacuate(uuid)
    await delete.submit(three.cloud.cloud, member(three.cloud), uuid)
    await settled(three.cloud, uuid)
    await three.come_back("h1")
    await three.cleared()
    assert three.hosts["h1"].empty and three.hosts["h2"].empty
    assert (await three.everywhere(uuid)).held_by_moves == set()
    assert await three.complaints() == []


async def test_a_server_that_moves_while_an_evacuation_is_asked_for_is_not_taken_from_its_new_host(
    three: Hosts,
) -> None:
    """Its old host was looked at, and its new one is up."""
    uuid = await three.boot()
    before = await server(three.cloud, uuid)
    gate = Gate(three.cloud, "resize", "finish")
    await ask_resize(three, uuid)
    await gate.wait()
    await three.lose_power("h1")
    with pytest.raises(Conflict, match="moved to h2"):
        await evacuate.submit(three.cloud.cloud, three.admin(), before)
    gate.open()
    found = await settled(three.cloud, uuid, 60)
    assert (found.vm_state, found.host) == (Vm.RESIZED, "h2")
