"""Aborting live migrations, bringing them to their end, and deleting servers meanwhile: in every phase."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kilonova.clock import SECOND
from kilonova.db import instances, migrations
from kilonova.errors import Conflict, Failed, HostFault, Invalid, NotFound, Unreachable
from kilonova.journal import actions as journal
from kilonova.model.migration import LIVE, RESIZE, Status, Wish
from kilonova.model.states import Power, Task, Vm
from kilonova.operations import delete, live_steering
from kilonova.operations.live_migrate import LIVE_MIGRATE
from kilonova.testing.clock import FastClock
from kilonova.testing.embedded import kill, server, settled
from tests.crash.broken import Gate
from tests.crash.world import log_of
from tests.operations.live_hosts import SLOW, Live, live, rate_for

STEPS = [step.name for step in LIVE_MIGRATE.steps]
BEFORE = STEPS[: STEPS.index("migrate")]
AFTER = STEPS[STEPS.index("migrate") + 1 :]
CALM: dict[str, object] = {"service_down_time": 100_000}  # of a clock that runs fast


@pytest.fixture(name="three")
async def _three(tmp_path: Path) -> AsyncIterator[Live]:
    """A second is a twentieth of one here."""
    async with live(tmp_path / "state", clock=FastClock(), DEFAULT=CALM) as made:
        yield made


three = _three


async def under_way(three: Live, rate: float = SLOW) -> tuple[str, str]:
    """A server that is being sent, and does not come to an end by itself; its migration."""
    uuid = await three.boot()
    three.live("h1").rate = rate
    migration = await three.begin(uuid)
    await three.at(migration, Status.RUNNING)
    return uuid, migration


# ---- abort ----


@pytest.mark.capability("MG-LM-23", "MG-LM-28", "MG-LM-29", "OVS-22")
async def test_one_that_runs_is_aborted(three: Live) -> None:
    uuid, migration = await under_way(three)
    assert (await three.everywhere(uuid)).plugged == {"h1": 1, "h2": 1}
    await three.abort(migration, before=False)
    found = await settled(three.cloud, uuid)
    assert found.fault is None  # a user who aborts is told of no failure
    await three.assert_as_before(uuid)
    assert three.hosts["h2"].empty
    ended = await three.migration(migration)
    assert (ended.status, ended.dest_compute) == (Status.CANCELLED, None)
    names = [each.action for each in await three.cloud.db.read(lambda tx: journal.list_actions(tx, uuid))]
    assert "live_migration_cancel" in names


@pytest.mark.capability("MG-LM-23")
async def test_one_that_is_prepared_is_aborted_when_that_has_come_back(three: Live) -> None:
    uuid = await three.boot()
    three.driver("h2").faults.hold("receive_live")
    migration = await three.begin(uuid)
    await three.at(migration, Status.PREPARING)
    await three.abort(migration)
    assert (await three.migration(migration)).status == Status.PREPARING
    three.driver("h2").faults.release("receive_live")
    await settled(three.cloud, uuid)
    assert (await three.migration(migration)).status == Status.CANCELLED
    await three.assert_as_before(uuid)


@pytest.mark.capability("MG-LM-23", "API-43")
@pytest.mark.parametrize("status", [value for name, value in vars(Status).items() if name.isupper()])
@pytest.mark.parametrize("before", [True, False])
async def test_in_other_states_it_is_refused(three: Live, status: str, before: bool) -> None:
    uuid, migration = await under_way(three)
    good = status in (("running", "queued", "preparing") if before else ("running",))
    await three.cloud.db.write(lambda tx: migrations.update(tx, migration, status=status))
    if good:
        await three.abort(migration, before=before)
    else:
        number = (await three.migration(migration)).id
        said = f"Migration {number} state of instance {uuid} is {status}. Cannot abort while"
        with pytest.raises(Invalid) as caught:
            await three.abort(migration, before=before)
        assert str(caught.value).startswith(said)
    assert ((await three.migration(migration)).wish == Wish.ABORT) == good
    await three.cloud.db.write(lambda tx: migrations.update(tx, migration, status="running", wish=Wish.ABORT))
    await settled(three.cloud, uuid)


async def test_what_is_no_live_migration_of_that_server_is_not_found(three: Live) -> None:
    uuid, migration = await under_way(three)
    other = await three.boot()
    number = (await three.migration(migration)).id
    cloud, admin = three.cloud.cloud, three.admin()
    with pytest.raises(NotFound, match=f"Migration {number + 7} not found for instance {uuid}"):
        await live_steering.abort(cloud, admin, uuid, number + 7)
    with pytest.raises(Invalid, match=f"Migration {number + 7} not found for instance {uuid}"):
        await live_steering.force_complete(cloud, admin, uuid, number + 7)
    with pytest.raises(Conflict, match=f"Cannot 'live_migration_cancel' instance {other} while it is in"):
        await live_steering.abort(cloud, admin, other, number)
    await three.cloud.db.write(lambda tx: migrations.update(tx, migration, migration_type=RESIZE))
    with pytest.raises(NotFound):
        await live_steering.abort(cloud, admin, uuid, number)
    await three.cloud.db.write(lambda tx: migrations.update(tx, migration, migration_type=LIVE))
    await three.abort(migration)
    await settled(three.cloud, uuid)


@pytest.mark.parametrize("error", [Unreachable("no answer"), HostFault("nobody watches over it")])
@pytest.mark.parametrize("verb", ["steer_live", "live_progress"])
async def test_a_wish_that_the_source_did_not_hear_is_said_again(
    three: Live, verb: str, error: Exception
) -> None:
    """What goes wrong with looking and steering does not disturb the sending."""
    three.driver("h1").faults.add(verb, error, 2)
    uuid, migration = await under_way(three)
    async with asyncio.timeout(10):
        while uuid not in three.live("h1")._rows:
            await asyncio.sleep(0.001)
    three.driver("h1").faults.add("send_live", Failed("it was called a second time"))
    await three.abort(migration)
    await settled(three.cloud, uuid)
    assert (await three.migration(migration)).status == Status.CANCELLED
    assert three.driver("h1").faults.left("steer_live") == 0
    assert three.driver("h1").faults.left("send_live") == 1
    await three.assert_as_before(uuid)


async def test_an_abort_is_heard_by_whoever_runs_it_then(tmp_path: Path) -> None:
    async with live(tmp_path / "state", clock=FastClock(), DEFAULT=CALM) as three:
        uuid, migration = await under_way(three)
        three.driver("h1").faults.add("steer_live", Unreachable("no answer"), 1000)
        await three.abort(migration)
        await kill(three.cloud)
    async with live(tmp_path / "state", clock=FastClock(), DEFAULT=CALM) as three:
        await settled(three.cloud, uuid)
        assert (await three.migration(migration)).status == Status.CANCELLED
        await three.assert_as_before(uuid, plugged=None)


@pytest.mark.parametrize("step", BEFORE)
async def test_an_abort_before_it_moves_is_heard_at_the_next_step(three: Live, step: str) -> None:
    uuid = await three.boot()
    gate = Gate(three.cloud, "live_migrate", step)
    migration = await three.begin(uuid)
    await gate.wait()
    await three.cloud.db.write(lambda tx: migrations.update(tx, migration, wish=Wish.ABORT))
    gate.open()
    found = await settled(three.cloud, uuid)
    assert (found.fault, (await three.migration(migration)).status) == (None, Status.CANCELLED)
    failed = [row for row in await log_of(three.cloud, uuid, "live-migration") if row[3] == "Error"]
    assert failed == [(step, "do", 1, "Error")]  # nothing more was done for it
    await three.assert_as_before(uuid)


@pytest.mark.parametrize("step", AFTER)
async def test_an_abort_that_comes_too_late_changes_nothing(three: Live, step: str) -> None:
    uuid = await three.boot()
    gate = Gate(three.cloud, "live_migrate", step)
    migration = await three.begin(uuid)
    await gate.wait()
    await three.abort(migration)
    gate.open()
    await settled(three.cloud, uuid)
    assert (await three.migration(migration)).status == Status.COMPLETED
    await three.assert_moved(uuid, "h2")


# ---- force complete ----


@pytest.mark.capability("API-42", "MG-LM-21")
async def test_one_that_would_never_end_is_brought_to_its_end(three: Live) -> None:
    three.live("h1").dirty_rate = 2 * SLOW
    uuid, migration = await under_way(three)
    await three.force_complete(migration)
    await settled(three.cloud, uuid)
    await three.assert_moved(uuid, "h2")
    names = [each.action for each in await three.cloud.db.read(lambda tx: journal.list_actions(tx, uuid))]
    assert "live_migration_force_complete" in names


async def test_one_that_is_being_brought_to_its_end_can_still_be_aborted(three: Live) -> None:
    three.driver("h1").faults.hold("arrive")
    uuid, migration = await under_way(three)
    await three.force_complete(migration)
    async with asyncio.timeout(10):
        while three.live("h1")._rows[uuid].rate:
            await asyncio.sleep(0.005)
    await three.abort(migration)
    await settled(three.cloud, uuid)
    assert (await three.migration(migration)).status == Status.CANCELLED
    await three.assert_as_before(uuid)


@pytest.mark.capability("API-42")
async def test_only_one_that_runs_is_forced(three: Live) -> None:
    uuid, migration = await under_way(three)
    number = (await three.migration(migration)).id
    for status in ("queued", "preparing", "running (post-copy)", "completed", "accepted"):
        await three.cloud.db.write(lambda tx, status=status: migrations.update(tx, migration, status=status))  # type: ignore[misc]
        with pytest.raises(Invalid) as caught:
            await three.force_complete(migration)
        assert str(caught.value) == (
            f"Migration {number} state of instance {uuid} is {status}. "
            "Cannot force_complete while the migration is in this state."
        )
    await three.cloud.db.write(lambda tx: migrations.update(tx, migration, status="running"))
    changes = {"vm_state": Vm.PAUSED}
    await three.cloud.db.write(lambda tx: instances.update(tx, uuid, expect_task=instances.ANY, **changes))
    with pytest.raises(Conflict, match="while it is in vm_state paused"):
        await three.force_complete(migration)
    await three.abort(migration)
    await settled(three.cloud, uuid)


@pytest.mark.capability("MG-LM-22", "MG-LCE-3")
async def test_after_a_switch_to_post_copy_its_ports_are_at_the_destination_at_once(three: Live) -> None:
    three.live("h1").permit_post_copy = True
    uuid, migration = await under_way(three, rate_for(60.0))
    await three.force_complete(migration)
    await three.at(migration, Status.POSTCOPY)
    async with asyncio.timeout(10):
        while (await three.everywhere(uuid)).bound != {"h2"}:
            await asyncio.sleep(0.005)
    assert (await server(three.cloud, uuid)).host == "h1"
    with pytest.raises(Invalid, match="post-copy"):
        await three.abort(migration)
    await settled(three.cloud, uuid)
    await three.assert_moved(uuid, "h2")


async def test_a_guest_that_dies_in_post_copy_is_undone_with_its_ports(three: Live) -> None:
    three.live("h1").permit_post_copy = True
    uuid, migration = await under_way(three, SLOW)
    await three.force_complete(migration)
    async with asyncio.timeout(10):
        while (await three.everywhere(uuid)).bound != {"h2"}:
            await asyncio.sleep(0.005)
    three.driver("h1").turn_off(uuid)
    found = await settled(three.cloud, uuid)
    assert (found.vm_state, found.task_state, found.host) == (Vm.STOPPED, None, "h1")
    assert (await three.migration(migration)).status == Status.FAILED
    there = await three.everywhere(uuid)
    assert (there.guests, there.bound, there.held) == ({"h1": Power.SHUTDOWN}, {"h1"}, {"h1"})
    assert there.plugged == {"h1": 1}
    assert await three.nothing_left() == []


# ---- figures ----


@pytest.mark.capability("MG-LM-18")
async def test_how_far_it_has_come_is_noted_every_five_seconds(three: Live) -> None:
    uuid, migration = await under_way(three, rate_for(40.0))
    seen: list[tuple[int, int | None, int]] = []
    async with asyncio.timeout(30):
        while (found := await three.migration(migration)).status == Status.RUNNING:
            if found.memory_total is not None and (not seen or seen[-1][1] != found.memory_processed):
                at = three.cloud.clock.now()
                seen.append((at, found.memory_processed, (await server(three.cloud, uuid)).progress))
                assert found.memory_processed is not None and found.memory_remaining is not None
                assert found.memory_processed + found.memory_remaining == found.memory_total
            await asyncio.sleep(0.001)
    assert 4 <= len(seen) <= 10
    assert sorted(seen) == seen and 0 < seen[-1][2] < 100
    pauses = [(after[0] - before[0]) / SECOND for before, after in itertools.pairwise(seen)]
    assert min(pauses[1:-1]) > 4.0, pauses
    done = await three.migration(migration)
    assert (done.memory_remaining, done.memory_processed) == (0, done.memory_total)
    assert (await server(three.cloud, uuid)).progress == 0


# ---- deletes ----


@pytest.mark.parametrize("after", [False, True], ids=["before its work", "after its work"])
@pytest.mark.parametrize("step", STEPS)
async def test_a_delete_in_every_phase_leaves_nothing_anywhere(three: Live, step: str, after: bool) -> None:
    uuid = await three.boot()
    gate = Gate(three.cloud, "live_migrate", step, after=after)
    migration = await three.begin(uuid)
    await gate.wait()
    await delete.submit(three.cloud.cloud, three.admin(), uuid)
    assert (await server(three.cloud, uuid)).task_state == Task.DELETING
    gate.open()
    await settled(three.cloud, uuid)
    assert (await server(three.cloud, uuid)).vm_state == Vm.DELETED
    assert all(host.empty for host in three.hosts.values())
    assert await three.cloud.placement.held(uuid) == await three.cloud.placement.held(migration) == {}
    assert await three.nothing_left() == []
    passed = step in AFTER or (step == "migrate" and after)
    status = (await three.migration(migration)).status
    assert status == (Status.COMPLETED if passed else Status.CANCELLED)


@pytest.mark.parametrize("elsewhere", [False, True], ids=["asked here", "asked of another process"])
async def test_a_delete_while_it_is_sent_aborts_it(three: Live, elsewhere: bool) -> None:
    uuid, migration = await under_way(three)
    if elsewhere:
        three.cloud.runner.interrupt = lambda ids: None  # type: ignore[method-assign]
    await delete.submit(three.cloud.cloud, three.admin(), uuid)
    await settled(three.cloud, uuid)
    assert (await server(three.cloud, uuid)).vm_state == Vm.DELETED
    assert (await three.migration(migration)).status == Status.CANCELLED
    assert all(host.empty for host in three.hosts.values())
    assert await three.nothing_left() == []


async def test_a_failure_after_an_abort_is_no_fault(three: Live) -> None:
    """It has failed by itself before it heard: it is cancelled all the same."""
    uuid, migration = await under_way(three)
    three.driver("h1").faults.hold("steer_live")
    await three.abort(migration)
    await asyncio.sleep(0.1)
    three.live("h2").forget(uuid)  # it is not awaited any more
    three.driver("h1").faults.release("steer_live")
    found = await settled(three.cloud, uuid)
    assert ((await three.migration(migration)).status, found.fault) == (Status.CANCELLED, None)
    await three.assert_as_before(uuid)


async def test_a_migration_that_fails_by_itself_is_failed_and_says_why(three: Live) -> None:
    uuid, migration = await under_way(three)
    three.live("h2").forget(uuid)
    found = await settled(three.cloud, uuid)
    assert (await three.migration(migration)).status == Status.FAILED
    assert found.fault is not None
    assert found.fault.message == "Live migration failed: The host h2 does not await it."
    await three.assert_as_before(uuid)
