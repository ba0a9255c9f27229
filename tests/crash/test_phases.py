"""What comes while something else is under way: deletes in every phase; actions that exclude each other."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from sqlalchemy import func, select

from kilonova.app import EmbeddedCloud
from kilonova.db import instances
from kilonova.db.tables.journal import actions
from kilonova.errors import Conflict, Failed, NotFound, TryAgain
from kilonova.journal import attention
from kilonova.model.states import Power, Task, Vm
from kilonova.operations import delete, power, reboot, start, stop
from kilonova.testing.embedded import fake_driver, kill, leaks, member, server, settled
from kilonova.testing.simulated_hosts import first_host
from tests.crash.broken import Gate, UndoGate, failing, last_fails
from tests.crash.conftest import Stage
from tests.crash.scenes import BOOT_UNDOS, CASES, active, boot
from tests.crash.world import NOTHING, assert_sound, but, log_of, world

STEPS = [step.name for step in CASES["create"].operation.steps]


async def ask_to_delete(cloud: EmbeddedCloud, uuid: str) -> None:
    await delete.submit(cloud.cloud, member(cloud), uuid)


async def assert_gone(cloud: EmbeddedCloud, uuid: str) -> None:
    await settled(cloud, uuid)
    now = await world(cloud, uuid)
    assert now == but(NOTHING, vm_state=Vm.DELETED, deleted=True, place=now.place)
    await assert_sound(cloud)


async def number_of(cloud: EmbeddedCloud, uuid: str, action: str) -> int:
    query = select(func.count()).where(actions.c.instance_uuid == uuid, actions.c.action == action)
    return int(await cloud.db.read(lambda tx: tx.scalar(query)))


# ---- deletes ----


@pytest.mark.capability("MG-BLD-19")
@pytest.mark.parametrize("after", [False, True], ids=["before its work", "after its work"])
@pytest.mark.parametrize("step", STEPS)
async def test_a_delete_in_every_phase_of_a_boot(cloud: EmbeddedCloud, step: str, after: bool) -> None:
    gate = Gate(cloud, "create", step, after=after)
    uuid = await boot(cloud)
    await gate.wait()
    await ask_to_delete(cloud, uuid)
    assert (await server(cloud, uuid)).task_state == Task.DELETING
    gate.open()
    await assert_gone(cloud, uuid)
    assert (await server(cloud, uuid)).fault is None  # a user who deletes is told of no failure


@pytest.mark.parametrize("stage", ["sqlite"], indirect=True)
@pytest.mark.parametrize("step", STEPS)
async def test_a_delete_in_every_phase_of_a_boot_survives_the_process(stage: Stage, step: str) -> None:
    async with stage.cloud() as cloud:
        gate = Gate(cloud, "create", step)
        uuid = await boot(cloud)
        await gate.wait()
        cloud.runner.interrupt = lambda ids: None  # type: ignore[method-assign] # no time to hear of it
        await ask_to_delete(cloud, uuid)
        await kill(cloud)
    async with stage.cloud() as cloud:
        await assert_gone(cloud, uuid)


@pytest.mark.parametrize("step", BOOT_UNDOS)
async def test_a_delete_while_a_boot_is_undone(cloud: EmbeddedCloud, step: str) -> None:
    last_fails(cloud, "create")
    gate = UndoGate(cloud, "create", step)
    uuid = await boot(cloud)
    await gate.wait()
    await ask_to_delete(cloud, uuid)
    gate.open()
    await assert_gone(cloud, uuid)
    assert await number_of(cloud, uuid, "delete") == 1


async def test_a_delete_of_a_server_in_error(cloud: EmbeddedCloud) -> None:
    failing(cloud, "create", "start", Failed("no"), after=True)
    uuid = await boot(cloud)
    assert (await settled(cloud, uuid)).vm_state == Vm.ERROR
    await ask_to_delete(cloud, uuid)
    await assert_gone(cloud, uuid)


@pytest.mark.capability("API-96")
@pytest.mark.parametrize("step", [step.name for step in CASES["delete"].operation.steps])
async def test_a_second_delete_is_accepted_and_does_nothing(cloud: EmbeddedCloud, step: str) -> None:
    uuid = await boot(cloud)
    await settled(cloud, uuid)
    gate = Gate(cloud, "delete", step)
    await ask_to_delete(cloud, uuid)
    await gate.wait()
    await ask_to_delete(cloud, uuid)
    gate.open()
    await assert_gone(cloud, uuid)
    assert await number_of(cloud, uuid, "delete") == 1
    with pytest.raises(NotFound):
        await ask_to_delete(cloud, uuid)


@pytest.mark.capability("API-7")
async def test_of_deletes_at_the_same_moment_one_is_made(staged: EmbeddedCloud) -> None:
    uuid = await boot(staged)
    await settled(staged, uuid)
    asks = (ask_to_delete(staged, uuid) for _ in range(10))
    heard = await asyncio.gather(*asks, return_exceptions=True)
    assert None in heard and {type(each) for each in heard} <= {type(None), NotFound}, (
        "it may be gone by then"
    )
    await assert_gone(staged, uuid)
    assert await number_of(staged, uuid, "delete") == 1


@pytest.mark.capability("MG-GEN-1")
@pytest.mark.parametrize("name", ["stop", "start", "reboot"])
async def test_a_delete_wins_over_what_is_under_way(cloud: EmbeddedCloud, name: str) -> None:
    case = CASES[name]
    scene = await case.before(cloud)
    gate = Gate(cloud, name, case.operation.steps[-1].name)
    await case.begin(cloud, scene)
    await gate.wait()
    await ask_to_delete(cloud, scene.uuid)
    await assert_gone(cloud, scene.uuid)  # without the gate: what waits there is interrupted


async def test_a_delete_of_what_needs_attention_comes_when_that_is_abandoned(
    cloud: EmbeddedCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The undo of a boot cannot be done; the delete waits for a decision, and then takes all away."""
    monkeypatch.setattr("kilonova.journal.walk.UNDO_ATTEMPTS", 1)
    last_fails(cloud, "create")
    fake_driver(cloud).faults.add("undefine", TryAgain("libvirt is away"), 3)
    uuid = await boot(cloud)
    await settled(cloud, uuid)
    (stuck,) = await cloud.db.read(attention.needing_attention)
    assert stuck.why == "undoing 'start': libvirt is away"
    await ask_to_delete(cloud, uuid)
    assert (await world(cloud, uuid)).guest == Power.PAUSED
    now = cloud.clock.now()
    await cloud.db.write(lambda tx: attention.resolve(tx, stuck.id, "abandon", "ann", now))
    cloud.runner.wake()
    await assert_gone(cloud, uuid)


async def test_a_delete_that_was_abandoned_can_be_asked_for_again(cloud: EmbeddedCloud) -> None:
    uuid = await boot(cloud)
    await settled(cloud, uuid)
    gate = Gate(cloud, "delete", "discard")
    await ask_to_delete(cloud, uuid)
    await gate.wait()
    await _stuck(cloud, uuid)
    (stuck,) = await cloud.db.read(attention.needing_attention)
    now = cloud.clock.now()
    await cloud.db.write(lambda tx: attention.resolve(tx, stuck.id, "abandon", "ann", now))
    cloud.runner.wake()
    found = await settled(cloud, uuid)
    assert (found.vm_state, found.task_state) == (Vm.ERROR, None)
    assert found.fault is not None and "ann abandoned the operation 'delete'" in found.fault.message
    gate.open()
    await ask_to_delete(cloud, uuid)
    await assert_gone(cloud, uuid)


async def _stuck(cloud: EmbeddedCloud, uuid: str) -> None:
    """Write down what the runner would after ten minutes of failures."""
    from sqlalchemy import update

    query = update(actions).where(actions.c.instance_uuid == uuid, actions.c.open)
    change = query.values(state="attention", why="it failed", owner=None, wake_at=1 << 62)
    await cloud.db.write(lambda tx: tx.run(change))


# ---- what excludes each other ----

Act = Callable[..., Awaitable[Any]]


async def assert_refused(cloud: EmbeddedCloud, uuid: str, act: Act, said: str, **more: object) -> None:
    before = await world(cloud, uuid)
    with pytest.raises(Conflict, match=said):
        await act(cloud.cloud, member(cloud), uuid, **more)
    assert await world(cloud, uuid) == before


@pytest.mark.capability("API-8")
@pytest.mark.parametrize("step", STEPS)
async def test_during_a_boot_nothing_but_a_delete_may_begin(cloud: EmbeddedCloud, step: str) -> None:
    gate = Gate(cloud, "create", step)
    uuid = await boot(cloud)
    await gate.wait()
    for name, act, more in (
        ("stop", stop.submit, {}),
        ("start", start.submit, {}),
        ("reboot", reboot.submit, {"hard": False}),
        ("reboot", reboot.submit, {"hard": True}),
    ):
        with pytest.raises(Conflict):
            await act(cloud.cloud, member(cloud), uuid, **more)
        assert await number_of(cloud, uuid, name) == 0  # a refused one leaves no action behind
    gate.open()
    assert (await settled(cloud, uuid)).vm_state == Vm.ACTIVE
    await assert_sound(cloud)


async def test_during_a_stop_no_reboot_begins(cloud: EmbeddedCloud) -> None:
    uuid = await active(cloud)
    gate = Gate(cloud, "stop", "shut_down")
    await stop.submit(cloud.cloud, member(cloud), uuid)
    await gate.wait()
    for hard in (False, True):
        await assert_refused(cloud, uuid, reboot.submit, "task_state powering-off", hard=hard)
    await assert_refused(cloud, uuid, stop.submit, "task_state powering-off")
    await assert_refused(cloud, uuid, start.submit, "vm_state active")
    gate.open()
    assert (await settled(cloud, uuid)).vm_state == Vm.STOPPED
    await assert_sound(cloud)


@pytest.mark.capability("API-7", "MG-GEN-7")
async def test_of_ten_conflicting_actions_exactly_one_wins(staged: EmbeddedCloud) -> None:
    uuid = await boot(staged)
    await settled(staged, uuid)

    async def soft_reboot(uuid: str) -> str:
        await reboot.submit(staged.cloud, member(staged), uuid, hard=False)
        return "reboot"

    async def shut_down(uuid: str) -> str:
        await stop.submit(staged.cloud, member(staged), uuid)
        return "stop"

    gates = [
        Gate(staged, "reboot", "reboot"),
        Gate(staged, "stop", "shut_down"),
    ]
    asked = [soft_reboot, shut_down] * 5
    results = await asyncio.gather(*(ask(uuid) for ask in asked), return_exceptions=True)
    for gate in gates:
        gate.open()
    won = [each for each in results if isinstance(each, str)]
    assert len(won) == 1
    assert all(isinstance(each, Conflict) for each in results if not isinstance(each, str))
    found = await settled(staged, uuid)
    assert (found.vm_state, found.task_state) == ({"stop": Vm.STOPPED, "reboot": Vm.ACTIVE}[won[0]], None)
    assert {name: await number_of(staged, uuid, name) for name in ("stop", "reboot")} == {
        "stop": int(won[0] == "stop"),
        "reboot": int(won[0] == "reboot"),
    }
    assert await leaks(staged) == []


async def test_two_reconcilers_and_a_user_want_the_same_stop(staged: EmbeddedCloud) -> None:
    """The guest went off by itself: its event, the periodic look and the user all come at once."""
    uuid = await boot(staged)
    await settled(staged, uuid)
    assert staged.agent is not None
    gate = Gate(staged, "stop", "shut_down")
    driver = fake_driver(staged)
    driver._event = None  # the event is one of those below
    driver.turn_off(uuid)

    async def look() -> None:
        assert staged.agent is not None
        await power.observed(staged.cloud, await staged.agent.observe(uuid), first_host(staged).name)

    async def ask() -> None:
        await stop.submit(staged.cloud, member(staged), uuid)

    results = await asyncio.gather(look(), ask(), look(), look(), return_exceptions=True)
    assert all(each is None or isinstance(each, Conflict) for each in results), results
    await gate.wait()
    assert (await server(staged, uuid)).task_state == Task.POWERING_OFF
    assert await number_of(staged, uuid, "stop") == 1
    gate.open()
    found = await settled(staged, uuid)
    assert (found.vm_state, found.power_state) == (Vm.STOPPED, Power.SHUTDOWN)
    assert await log_of(staged, uuid, "stop") == [("shut_down", "do", 1, "Success")]
    assert await leaks(staged) == []


async def test_a_lost_compare_and_set_changes_nothing(staged: EmbeddedCloud) -> None:
    uuid = await boot(staged)
    await settled(staged, uuid)
    before = await world(staged, uuid)
    assert not await staged.db.write(
        lambda tx: instances.update(tx, uuid, expect_task=(Task.REBOOTING,), task_state=Task.DELETING)
    )
    assert await world(staged, uuid) == before
