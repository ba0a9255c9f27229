"""A host was booted: guests that ran are to run again, or their servers are stopped, as its options say."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kilonova.db import hosts
from kilonova.errors import HostFault, Unreachable
from kilonova.journal import actions
from kilonova.model.states import Power, Task, Vm
from kilonova.operations import create_image, delete, stop
from kilonova.operations.resume_guest import resume_guests
from kilonova.rpc.messages import GuestSpec
from kilonova.testing.embedded import embedded, fake_driver, leaks, member, server, settled
from kilonova.testing.simulated_hosts import first_host
from tests.crash.broken import Gate
from tests.operations.booted import booted
from tests.operations.dead_hosts import Hosts, opened
from tests.operations.resized import assert_waits, reverted
from tests.operations.resized import resized as resize_it
from tests.operations.test_power import active, becomes, names


@pytest.fixture
async def three(tmp_path: Path) -> AsyncIterator[Hosts]:
    async with opened(tmp_path / "state") as made:
        yield made


async def known_boot(three: Hosts, name: str) -> str:
    found = await three.cloud.db.read(lambda tx: hosts.show(tx, name))
    assert found is not None
    return found.boot_id


async def actions_of(three: Hosts, uuid: str) -> list[str]:
    """The newest first."""
    return await names(three.cloud, uuid)


# ---- which ----


@pytest.mark.capability("MG-INIT-20")
@pytest.mark.parametrize("resumes", [True, False])
async def test_a_cloud_whose_machine_was_booted(tmp_path: Path, resumes: bool) -> None:
    options: dict[str, object] = {"host": "h1", "resume_guests_state_on_host_boot": resumes}
    async with embedded(tmp_path / "state", DEFAULT=options) as cloud:
        uuid = await active(cloud)
        fake_driver(cloud).guest_file.lose_power()
    async with embedded(tmp_path / "state", DEFAULT=options) as cloud:
        if not resumes:
            await becomes(cloud, uuid, Vm.STOPPED, Power.SHUTDOWN)
            assert await names(cloud, uuid) == ["stop", "create"]
            return
        found = await settled(cloud, uuid)
        assert (found.vm_state, found.task_state, found.power_state) == (Vm.ACTIVE, None, Power.RUNNING)
        plugged = first_host(cloud).plugger.plugged()
        assert plugged == {found.vifs[0].port_id: uuid}  # by another process than before, so by this start
        assert await names(cloud, uuid) == ["start", "create"]
        assert await leaks(cloud) == []


async def test_an_agent_that_only_starts_again_has_guests_that_went_off_stopped(three: Hosts) -> None:
    uuid = await three.boot()
    three.hosts["h1"].driver.guest_file.put(uuid, Power.SHUTDOWN)
    await booted(three, "h1", power_cut=False)
    await becomes(three.cloud, uuid, Vm.STOPPED, Power.SHUTDOWN)
    assert await actions_of(three, uuid) == ["stop", "create"]


async def test_what_is_not_known_of_a_host_is_no_boot(three: Hosts) -> None:
    """Its agent was of an earlier release until now."""
    uuid = await three.boot()
    before = await known_boot(three, "h1")
    await three.cloud.db.write(lambda tx: hosts.note_boot(tx, "h1", ""))
    await booted(three, "h1")
    await becomes(three.cloud, uuid, Vm.STOPPED, Power.SHUTDOWN)
    assert await known_boot(three, "h1") not in ("", before)


@pytest.mark.capability("MG-INIT-7")
@pytest.mark.parametrize(
    ("vm_state", "power_state"),
    [
        (Vm.STOPPED, Power.SHUTDOWN),
        (Vm.ERROR, Power.RUNNING),
        (Vm.SOFT_DELETED, Power.SHUTDOWN),
        (Vm.SUSPENDED, Power.SUSPENDED),
        (Vm.PAUSED, Power.PAUSED),
        (Vm.ACTIVE, Power.PAUSED),
        (Vm.SHELVED, Power.SHUTDOWN),
    ],
)
async def test_guests_that_did_not_run_or_are_not_to_are_left_alone(
    three: Hosts, vm_state: str, power_state: int
) -> None:
    uuid = await three.boot()
    await three.change(uuid, vm_state=vm_state, power_state=power_state)
    three.hosts["h1"].driver.guest_file.lose_power()
    assert await resume_guests(three.cloud.cloud, "h1") == 0
    assert three.hosts["h1"].driver.guest_file.state(uuid) == Power.SHUTDOWN
    assert await actions_of(three, uuid) == ["create"]


@pytest.mark.capability("MG-INIT-6", "MG-INIT-20")
async def test_who_has_left_or_was_deleted_meanwhile_is_not_started(three: Hosts) -> None:
    moved, deleted, stays = [await three.boot() for _ in range(3)]
    await three.lose_power("h1")
    await three.evacuate(moved, host="h2")
    await delete.submit(three.cloud.cloud, member(three.cloud), deleted)
    assert (await settled(three.cloud, deleted)).deleted_at is not None
    assert {each.instance_uuid for each in await three.owed("h1")} == {moved, deleted}
    await three.come_back("h1")
    await booted(three, "h1")
    assert (await settled(three.cloud, stays)).vm_state == Vm.ACTIVE
    await three.cleared()
    assert three.hosts["h1"].driver.guest_file.everything() == {stays: Power.RUNNING}
    await three.assert_only_on(moved, "h2")
    assert await actions_of(three, moved) == ["evacuate", "create"]
    assert await three.complaints() == []


async def test_all_of_a_resize_that_waits_for_its_user_is_there_after_a_boot(three: Hosts) -> None:
    uuid, faulty = await three.boot(), await three.boot()
    for each in (uuid, faulty):
        assert_waits(await resize_it(three, each), "h2")
    await booted(three, "h2")  # whose boot was not known: there is nothing to do for it
    three.hosts["h2"].driver.guest_file.put(uuid, Power.RUNNING)
    three.hosts["h2"].driver.guest_file.put(faulty, Power.RUNNING)
    await three.hosts["h2"].agent.tell_of_guests()
    await booted(three, "h2")
    for each in (uuid, faulty):
        assert_waits(await settled(three.cloud, each), "h2")
    three.hosts["h2"].driver.faults.add("start", HostFault("no room"), 2)
    await booted(three, "h2")
    found = await settled(three.cloud, faulty)
    assert (found.vm_state, found.task_state) == (Vm.RESIZED, None)
    assert found.fault is not None and found.fault.message == "no room"
    assert (await reverted(three, faulty)).vm_state == Vm.ACTIVE
    await three.assert_only_on(faulty, "h1")


# ---- when ----


async def test_a_busy_server_runs_again_when_what_is_done_to_it_has_ended(three: Hosts) -> None:
    uuid = await three.boot()
    gate = Gate(three.cloud, "create_image", "snapshot")
    await create_image.submit(three.cloud.cloud, member(three.cloud), uuid, "copy", {})
    await gate.wait()
    await booted(three, "h1")
    found = await server(three.cloud, uuid)
    assert (found.vm_state, found.power_state) == (Vm.ACTIVE, Power.SHUTDOWN)
    gate.open()
    await becomes(three.cloud, uuid, Vm.ACTIVE, Power.RUNNING)
    await settled(three.cloud, uuid)
    assert await actions_of(three, uuid) == ["start", "createImage", "create"]  # and no stop


async def test_what_a_busy_server_has_become_counts(three: Hosts) -> None:
    """It was stopped by its user while the host went off; or is on another host by now."""
    stopped, moving = await three.boot(), await three.boot()
    gate = Gate(three.cloud, "stop", "shut_down")
    await stop.submit(three.cloud.cloud, member(three.cloud), stopped)
    await gate.wait()
    move = Gate(three.cloud, "evacuate", "place")
    await three.lose_power("h1")
    await three.ask(moving, host="h2")
    await move.wait()
    await three.come_back("h1")
    await booted(three, "h1")
    await three.force_down("h1")
    gate.open()
    move.open()
    assert (await settled(three.cloud, stopped, 60)).vm_state == Vm.STOPPED
    moved = await settled(three.cloud, moving, 60)
    assert (moved.host, moved.vm_state, moved.task_state, moved.fault) == ("h2", Vm.ACTIVE, None, None)
    assert await actions_of(three, moving) == ["start", "evacuate", "create"]  # which had nothing to do
    guests = three.hosts["h1"].driver.guest_file
    assert guests.state(stopped) == Power.SHUTDOWN
    assert guests.state(moving) != Power.RUNNING


async def test_it_is_said_once_that_a_host_was_booted(three: Hosts) -> None:
    uuid = await three.boot()
    before = await known_boot(three, "h1")
    await booted(three, "h1")
    assert await known_boot(three, "h1") != before
    await settled(three.cloud, uuid)
    await booted(three, "h1", power_cut=False)
    await settled(three.cloud, uuid)
    assert await actions_of(three, uuid) == ["start", "create"]


async def test_a_report_that_is_repeated_starts_nothing_twice(three: Hosts) -> None:
    """The controller died before it had noted that the host was booted."""
    uuid = await three.boot()
    before = await known_boot(three, "h1")
    await booted(three, "h1")
    await three.cloud.db.write(lambda tx: hosts.note_boot(tx, "h1", before))
    await booted(three, "h1", power_cut=False)
    found = await settled(three.cloud, uuid)
    assert (found.vm_state, found.task_state, found.power_state) == (Vm.ACTIVE, None, Power.RUNNING)
    assert three.hosts["h1"].driver.guest_file.starts(uuid)[0] == 2


# ---- what goes wrong ----


@pytest.mark.capability("MG-INIT-20")
@pytest.mark.parametrize("verb", ["plug", "start"])
async def test_a_guest_that_does_not_start_is_in_error_and_says_why(
    three: Hosts, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    uuid, other = await three.boot(), await three.boot()
    agent = three.hosts["h1"].agent
    whole = getattr(agent, verb)

    async def fails(command: object, guest: GuestSpec, **more: object) -> object:
        if guest.uuid == uuid:
            raise HostFault("there is no switch")
        return await whole(command, guest, **more)

    monkeypatch.setattr(agent, verb, fails)
    await booted(three, "h1")
    found = await settled(three.cloud, uuid)
    assert (found.vm_state, found.task_state) == (Vm.ERROR, None)
    assert found.fault is not None and found.fault.message == "there is no switch"
    assert (await settled(three.cloud, other)).vm_state == Vm.ACTIVE


async def test_a_host_that_is_off_again_starts_its_guests_at_its_next_boot(
    three: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    uuid = await three.boot()
    agent, asked = three.hosts["h1"].agent, asyncio.Event()

    async def silent(command: object, guest: object) -> None:
        asked.set()
        raise Unreachable("no answer")

    monkeypatch.setattr(agent, "plug", silent)
    await booted(three, "h1")
    await asked.wait()
    assert (await server(three.cloud, uuid)).task_state == Task.POWERING_ON
    await three.cut_off("h1")
    found = await settled(three.cloud, uuid)
    assert (found.vm_state, found.task_state, found.power_state) == (Vm.ACTIVE, None, Power.NOSTATE)
    assert found.fault is None
    monkeypatch.undo()
    await three.come_back("h1")
    await booted(three, "h1")
    found = await settled(three.cloud, uuid)
    assert (found.vm_state, found.power_state) == (Vm.ACTIVE, Power.RUNNING)
    assert await actions_of(three, uuid) == ["start", "start", "create"]


async def test_a_server_that_is_deleted_before_it_runs_again(three: Hosts) -> None:
    uuid = await three.boot()
    gate = Gate(three.cloud, "resume_guest", "power_on")
    await booted(three, "h1")
    await gate.wait()
    await delete.submit(three.cloud.cloud, member(three.cloud), uuid)
    assert (await settled(three.cloud, uuid)).deleted_at is not None
    assert three.hosts["h1"].empty
    assert await three.complaints() == []


async def test_the_user_sees_that_it_was_started(three: Hosts) -> None:
    uuid = await three.boot()
    await booted(three, "h1")
    found = await settled(three.cloud, uuid)
    action, _ = await three.cloud.db.read(lambda tx: actions.list_actions(tx, uuid))
    assert (action.action, action.project_id, action.message) == ("start", found.project_id, None)
    assert action.request_id.startswith("req-")
