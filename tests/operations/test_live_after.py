"""What follows when the guest goes on at its destination, ports on the way, and guests that are nowhere."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kilonova.db import instances, migration_contexts
from kilonova.db import network_bindings as bindings
from kilonova.errors import HostFault, TryAgain, Unreachable
from kilonova.journal import attention
from kilonova.model.migration import Status
from kilonova.model.states import Power, Vm
from kilonova.operations import delete
from kilonova.rpc.moves import LiveOutcome, LivePlan, Located, Presence
from kilonova.testing.clock import FastClock
from kilonova.testing.embedded import server, settled
from tests.operations.live_hosts import SLOW, Live, live, rate_for
from tests.operations.mortal import Mortals

FAST: dict[str, object] = {"service_down_time": 20_000, "report_interval": 500_000}


@pytest.fixture(name="three")
async def _three(tmp_path: Path) -> AsyncIterator[Live]:
    async with live(tmp_path / "state") as made:
        yield made


three = _three


@pytest.fixture(name="fast")
async def _fast(tmp_path: Path) -> AsyncIterator[Live]:
    async with live(tmp_path / "state", clock=FastClock(40.0), DEFAULT=FAST) as made:
        yield made


fast = _fast


# ---- after the switch ----


@pytest.mark.capability("MG-LM-26", "MG-LM-27")
async def test_a_destination_that_cannot_settle_it_has_it_all_the_same(three: Live) -> None:
    uuid = await three.boot()
    three.driver("h2").faults.add("settle_live", HostFault("no definition"))
    found, migration = await three.move(uuid)
    assert (found.vm_state, found.task_state, found.host) == (Vm.ERROR, None, "h2")
    assert found.fault is not None and found.fault.message == "no definition"
    assert migration.status == Status.COMPLETED
    await three.assert_only_on(uuid, "h2")


@pytest.mark.capability("MG-LM-26")
async def test_a_destination_that_does_not_answer_is_asked_again(three: Live) -> None:
    uuid = await three.boot()
    three.driver("h2").faults.add("settle_live", Unreachable("no answer"), 2)
    three.driver("h1").faults.add("leave_live", TryAgain("libvirt is away"), 2)
    _, migration = await three.move(uuid)
    assert migration.status == Status.COMPLETED
    await three.assert_moved(uuid, "h2")


async def test_a_source_that_has_gone_down_is_rid_of_it_when_it_is_back(fast: Live) -> None:
    """And what the migration holds there is held until then."""
    mortals = Mortals(fast)
    uuid = await fast.boot(host="h2")
    fast.driver("h3").faults.hold("settle_live")
    migration = await fast.begin(uuid, host="h3")
    async with asyncio.timeout(15):
        while (await server(fast.cloud, uuid)).host != "h3":
            await asyncio.sleep(0.005)
    await mortals.lose_power("h2")
    fast.driver("h3").faults.release("settle_live")
    found = await settled(fast.cloud, uuid)
    assert (found.vm_state, found.host) == (Vm.ACTIVE, "h3")
    assert (await fast.migration(migration)).status == Status.COMPLETED
    there = await fast.everywhere(uuid)
    assert (there.guests, there.held_by_moves) == ({"h2": Power.SHUTDOWN, "h3": Power.RUNNING}, {"h2"})
    assert len(await fast.owed("h2")) == 1
    await mortals.heard_again("h2")
    await fast.cleared()
    await fast.assert_moved(uuid, "h3")
    await mortals.end()


@pytest.mark.capability("MG-LM-29")
@pytest.mark.parametrize("shared", [True, False])
async def test_a_destination_that_goes_down_is_rid_of_it_when_it_is_back(
    tmp_path: Path, shared: bool
) -> None:
    """The server is as before at once, and files that both share are not the destination's to remove."""
    async with live(tmp_path / "state", clock=FastClock(40.0), shared=shared, DEFAULT=FAST) as fast:
        mortals = Mortals(fast)
        uuid = await fast.boot(host="h2")
        fast.live("h2").rate = SLOW
        migration = await fast.begin(uuid, host="h3")
        await fast.at(migration, Status.RUNNING)
        (vif,) = (await server(fast.cloud, uuid)).vifs
        await mortals.lose_power("h3")
        found = await settled(fast.cloud, uuid)
        assert (found.vm_state, found.task_state, found.host) == (Vm.ACTIVE, None, "h2")
        assert (await fast.migration(migration)).status == Status.FAILED
        (owed,) = await fast.owed("h3")
        assert (owed.keep_files, owed.migration_uuid) == (shared, None)
        assert [each.port_id for each in owed.vifs] == [vif.port_id]
        _, refused = await fast.move(uuid, host="h3", forced=True)
        assert refused.status == Status.ERROR
        await mortals.heard_again("h3")
        await fast.cleared()
        if not shared:  # else the record of the destination stands for files that are not its own
            await fast.assert_only_on(uuid, "h2")
            assert await fast.nothing_left() == []
        await mortals.end()


# ---- ports ----


async def _held(three: Live, uuid: str) -> tuple[str, dict[str, Any]]:
    """A live migration that stands while the destination gets ready; its bindings there by port."""
    three.driver("h2").faults.hold("receive_live")
    migration = await three.begin(uuid)
    await three.at(migration, Status.PREPARING)
    return migration, await three.cloud.db.read(lambda tx: bindings.of_device(tx, uuid, "h2"))


@pytest.mark.capability("MG-LM-5", "OVS-13", "OVS-14", "OVS-15", "OVS-16", "OVS-17")
@pytest.mark.parametrize("delegates", [True, False])
async def test_a_destination_says_which_ports_os_vif_makes_there(
    three: Live, delegates: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mark goes with the binding's profile; both hosts hear it with the same port, in the same plan."""
    uuid = await three.boot()
    (vif,) = (await server(three.cloud, uuid)).vifs
    facts, plans = three.live("h2").check_arrival, list[LivePlan]()
    if not delegates:
        monkeypatch.setattr(
            three.live("h2"),
            "check_arrival",
            lambda guest: msgspec.structs.replace(facts(guest), delegates=()),
        )
    send = three.live("h1").send

    async def sent(guest: Any, plan: LivePlan) -> LiveOutcome:
        plans.append(plan)
        return await send(guest, plan)

    monkeypatch.setattr(three.live("h1"), "send", sent)
    migration, bound = await _held(three, uuid)
    assert bound[vif.port_id].profile == {"os_vif_delegation": delegates}
    assert (await three.everywhere(uuid)).bound == {"h1"}
    context = await three.cloud.db.read(lambda tx: migration_contexts.show(tx, migration))
    assert context is not None
    assert [each.delegate_create for each in context.new_vifs] == [delegates]
    assert [each.delegate_create for each in context.old_vifs] == [True]
    three.driver("h2").faults.release("receive_live")
    await settled(three.cloud, uuid)
    (plan,) = plans
    assert (plan.old_vifs, plan.new_vifs) == (context.old_vifs, context.new_vifs)
    (after,) = (await server(three.cloud, uuid)).vifs
    assert after.delegate_create == delegates
    assert after.profile == {"os_vif_delegation": delegates}


@pytest.mark.capability("MG-LM-13", "MG-LM-15")
@pytest.mark.parametrize("waits", [True, False], ids=["it waits", "it does not wait"])
@pytest.mark.parametrize("fatal", [True, False], ids=["fatal", "not fatal"])
async def test_ports_that_nobody_wires_at_the_destination(tmp_path: Path, waits: bool, fatal: bool) -> None:
    options: dict[str, object] = {"vif_plugging_timeout": 1, "vif_plugging_is_fatal": fatal}
    async with live(tmp_path / "state", "h2", DEFAULT=options) as two:
        uuid = await two.boot()
        two.live("h2").waits_for_plug = waits

        async def silent(vif: object) -> None:
            pass

        two.hosts["h2"].plugger._on_plugged = silent
        found, migration = await two.move(uuid)
        if waits and fatal:
            assert migration.status == Status.ERROR
            assert found.fault is not None and "did not wire the ports" in found.fault.message
            await two.assert_as_before(uuid)
        else:
            assert (migration.status, found.host) == (Status.COMPLETED, "h2")


# ---- where it is ----


async def _says(three: Live, name: str, monkeypatch: pytest.MonkeyPatch, presence: str | None) -> None:
    """Have a host say that of any guest; None: it does not answer."""

    async def locate(uuid: str) -> Located:
        if presence is None:
            raise Unreachable("no answer")
        return Located(uuid=uuid, presence=presence)

    monkeypatch.setattr(three.driver(name), "locate", locate)


async def test_an_undecided_pivot_is_neither_done_nor_undone_and_an_operator_is_asked_for(
    fast: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    uuid = await fast.boot()
    fast.driver("h1").faults.add("send_live", Unreachable("no answer"), 100_000)
    await _says(fast, "h1", monkeypatch, None)
    await _says(fast, "h2", monkeypatch, Presence.INCOMING)
    migration = await fast.begin(uuid, host="h2")
    async with asyncio.timeout(40):
        while not (stuck := await fast.cloud.db.read(attention.needing_attention)):
            await asyncio.sleep(0.01)
    assert stuck[0].why is not None and "does not yet know its outcome" in stuck[0].why
    found = await server(fast.cloud, uuid)
    assert (found.vm_state, found.task_state, found.host) == (Vm.ACTIVE, "migrating", "h1")
    there = await fast.everywhere(uuid)
    assert (there.held, there.held_by_moves, there.plugged) == ({"h2"}, {"h1"}, {"h1": 1, "h2": 1})
    await _says(fast, "h2", monkeypatch, Presence.RUNNING)  # and it is tried again by itself
    fast.driver("h1").faults.mend("send_live")
    fast.live("h1").move_on(uuid)
    async with asyncio.timeout(40):
        while (await fast.migration(migration)).status != Status.COMPLETED:
            await asyncio.sleep(0.01)
    await settled(fast.cloud, uuid)
    assert (await server(fast.cloud, uuid)).host == "h2"


async def test_a_guest_that_runs_at_its_destination_has_passed_whatever_becomes_of_the_source(
    fast: Live,
) -> None:
    """The source is cut off while it sends, and does not come back: the destination is believed."""
    mortals = Mortals(fast)
    uuid = await fast.boot(host="h2")
    fast.live("h2").rate = rate_for(60.0)
    migration = await fast.begin(uuid, host="h3")
    await fast.sends("h2", uuid)
    await mortals.silence("h2")
    await fast.set_seen("h2", 1)
    found = await settled(fast.cloud, uuid)
    assert (found.vm_state, found.task_state, found.host) == (Vm.ACTIVE, None, "h3")
    assert (await fast.migration(migration)).status == Status.COMPLETED
    assert len(await fast.owed("h2")) == 1
    await mortals.heard_again("h2")
    await fast.cleared()
    await fast.assert_moved(uuid, "h3")
    await mortals.end()


@pytest.mark.parametrize("there", [Presence.ABSENT, Presence.INCOMING])
async def test_a_source_that_an_operator_has_declared_dead_counts_as_such(fast: Live, there: str) -> None:
    """He has seen to it that nothing runs there: the guest has died, and its server may be evacuated."""
    mortals = Mortals(fast)
    uuid = await fast.boot(host="h2")
    fast.live("h2").rate = SLOW
    migration = await fast.begin(uuid, host="h3")
    await fast.sends("h2", uuid)
    await mortals.silence("h2")
    if there == Presence.ABSENT:
        fast.live("h3").forget(uuid)
    await fast.cloud.clock.sleep(30.0)
    assert (await fast.migration(migration)).status == Status.RUNNING
    await fast.force_down("h2")
    found = await settled(fast.cloud, uuid)
    assert (found.vm_state, found.task_state, found.host) == (Vm.ERROR, None, "h2")
    assert found.fault is not None and "has died" in found.fault.message
    assert (await fast.migration(migration)).status == Status.FAILED
    assert (await fast.everywhere(uuid)).held == {"h2"}
    await mortals.end()


@pytest.mark.parametrize("presence", [Presence.HELD, Presence.RUNNING])
async def test_a_guest_that_was_held_at_the_source_goes_on_there(
    fast: Live, monkeypatch: pytest.MonkeyPatch, presence: str
) -> None:
    uuid = await fast.boot()
    resumed = []
    agent = fast.hosts["h1"].driver
    resume = agent.resume

    async def watched(uuid: str) -> None:
        resumed.append(uuid)
        await resume(uuid)

    monkeypatch.setattr(agent, "resume", watched)
    await _says(fast, "h1", monkeypatch, presence)
    await _says(fast, "h2", monkeypatch, Presence.ABSENT)
    fast.driver("h1").faults.add("send_live", HostFault("the connection was lost"))
    found, migration = await fast.move(uuid, host="h2")
    assert (found.vm_state, found.host, migration.status) == (Vm.ACTIVE, "h1", Status.FAILED)
    assert found.fault is not None and "the connection was lost" in found.fault.message
    assert resumed == ([uuid] if presence == Presence.HELD else [])
    await fast.assert_only_on(uuid, "h1")


async def test_a_guest_that_goes_off_by_itself_meanwhile_is_stopped(fast: Live) -> None:
    uuid = await fast.boot()
    fast.live("h1").rate = rate_for(1000.0)
    migration = await fast.begin(uuid)
    await fast.at(migration, Status.RUNNING)
    fast.driver("h1").turn_off(uuid)
    found = await settled(fast.cloud, uuid)
    assert (found.vm_state, found.host, found.power_state) == (Vm.STOPPED, "h1", Power.SHUTDOWN)
    assert (await fast.migration(migration)).status == Status.FAILED
    assert await fast.nothing_left() == []


async def test_the_first_look_of_the_new_host_counts_whatever_numbers_the_old_one_had(three: Live) -> None:
    uuid = await three.boot()
    ahead = {"power_generation": 1 << 60}
    await three.cloud.db.write(lambda tx: instances.update(tx, uuid, expect_task=None, **ahead))
    found, _ = await three.move(uuid)
    assert (found.power_state, found.host) == (Power.RUNNING, "h2")
    assert found.power_generation < 1 << 60
    three.driver("h2").turn_off(uuid)
    async with asyncio.timeout(15):
        while (await server(three.cloud, uuid)).vm_state != Vm.STOPPED:
            await asyncio.sleep(0.005)


async def test_what_an_operator_has_abandoned_is_found_by_a_deletion(
    fast: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody knew where the guest was: both hosts are rid of it, and its claims are given back."""
    uuid = await fast.boot()
    fast.driver("h1").faults.add("send_live", Unreachable("no answer"), 100_000)
    await _says(fast, "h1", monkeypatch, None)
    migration = await fast.begin(uuid, host="h2")
    async with asyncio.timeout(40):
        while not (stuck := await fast.cloud.db.read(attention.needing_attention)):
            await asyncio.sleep(0.01)
    now = fast.cloud.clock.now()
    await fast.cloud.db.write(lambda tx: attention.resolve(tx, stuck[0].id, "abandon", "ann", now))
    fast.cloud.runner.wake()
    found = await settled(fast.cloud, uuid)
    assert (found.vm_state, found.task_state) == (Vm.ERROR, None)
    assert (await fast.migration(migration)).status == Status.ERROR
    there = await fast.everywhere(uuid)
    assert (there.held, there.held_by_moves) == ({"h2"}, {"h1"})  # nothing is concluded
    await delete.submit(fast.cloud.cloud, fast.admin(), uuid)
    assert (await settled(fast.cloud, uuid)).vm_state == Vm.DELETED
    await fast.cleared()
    there = await fast.everywhere(uuid)
    assert not there.guests and not there.plugged and not there.held and not there.held_by_moves
    assert await fast.nothing_left() == []
