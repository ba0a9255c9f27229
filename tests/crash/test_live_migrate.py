"""The four tests of every operation, for a live migration: each step fails; each step runs twice; each undo
runs twice; the process dies before and after each commit.

In the end the guest goes on at one host only, with its claim and its ports, and nothing is left at the other.
"""

from __future__ import annotations

import asyncio
from functools import partial

import pytest

from kilonova.db import migrations
from kilonova.errors import Failed
from kilonova.journal import attention
from kilonova.journal.model import Done, Kind, Run, Wait
from kilonova.model.migration import LIVE, Migration, Status
from kilonova.model.states import Power, Task, Vm
from kilonova.operations import live_queue
from kilonova.operations.live_migrate import LIVE_MIGRATE
from kilonova.testing.embedded import kill, server, settled
from tests.crash.broken import changed, crash_at, failing, replaced
from tests.crash.conftest import Stage, crash_points
from tests.crash.world import log_of
from tests.operations.live_hosts import Live, live
from tests.operations.with_volumes import attached

NAME = LIVE_MIGRATE.name
STEPS = [step.name for step in LIVE_MIGRATE.steps]
PIVOT = "migrate"
BEFORE = STEPS[: STEPS.index(PIVOT)]
AFTER = [step.name for step in LIVE_MIGRATE.steps if step.kind is Kind.RETRIABLE]
UNDOS = [step.name for step in LIVE_MIGRATE.steps if step.undo is not None]
WAYS_BACK = [(step, after) for step in BEFORE for after in (False, True)] + [(PIVOT, False)]
WHOLE = [(name, "do", 1, "Success") for name in STEPS]


async def booted(three: Live) -> str:
    """A server that runs, and has a volume."""
    uuid = await three.boot()
    await attached(three.cloud, uuid)
    return uuid


async def assert_moved(three: Live, uuid: str, migration: str, *, died: bool = False) -> None:
    found = await settled(three.cloud, uuid, 60)
    assert len(found.volumes) == 1  # where it is, `complaints` looks
    await three.assert_moved(uuid, "h2", plugged=None if died else True)
    assert three.driver("h1").guest_file.everything() == {}
    assert (await three.migration(migration)).status == Status.COMPLETED
    assert await log_of(three.cloud, uuid, "live-migration") == WHOLE


async def assert_undone(three: Live, uuid: str, migration: str, failed: str, *, died: bool = False) -> None:
    await settled(three.cloud, uuid, 60)
    found = await three.assert_as_before(uuid, plugged=None if died else True)
    assert found.fault is not None
    assert three.hosts["h2"].driver.guest_file.everything() == {}
    ended = await three.migration(migration)
    assert (ended.status, ended.dest_compute) == (Status.FAILED if failed == PIVOT else Status.ERROR, None)
    place = STEPS.index(failed)
    undone = [step.name for step in reversed(LIVE_MIGRATE.steps[: place + 1]) if step.undo is not None]
    assert await log_of(three.cloud, uuid, "live-migration") == [
        *WHOLE[:place],
        (failed, "do", 1, "Error"),
        *((name, "undo", 1, "Success") for name in undone),
    ]


@pytest.mark.capability("MG-LM-28", "MG-LM-30", "OVS-27")
@pytest.mark.parametrize(("step_name", "after"), WAYS_BACK)
async def test_a_step_that_fails_is_undone_with_all_before_it(
    stage: Stage, step_name: str, after: bool
) -> None:
    async with live(stage.state_dir, "h2", database=stage.database) as three:
        uuid = await booted(three)
        failing(three.cloud, NAME, step_name, Failed(f"ordered in {step_name}"), after=after)
        migration = await three.begin(uuid)
        await assert_undone(three, uuid, migration, step_name)
        found = await server(three.cloud, uuid)
        assert found.fault is not None and found.fault.message == f"ordered in {step_name}"


async def test_a_guest_that_has_passed_is_not_undone_whatever_fails_then(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An operator is asked for, and the guest runs on where it has come to."""
    monkeypatch.setattr("kilonova.journal.walk.UNDO_ATTEMPTS", 1)
    async with live(stage.state_dir, "h2", database=stage.database) as three:
        uuid = await booted(three)
        failing(three.cloud, NAME, PIVOT, Failed("ordered"), after=True)
        await three.begin(uuid)
        found = await settled(three.cloud, uuid, 60)
        assert (found.vm_state, found.task_state) == (Vm.ACTIVE, Task.MIGRATING)
        (stuck,) = await three.cloud.db.read(attention.needing_attention)
        assert stuck.why is not None and "nothing is undone" in stuck.why
        there = await three.everywhere(uuid)
        assert there.guests["h2"] == Power.RUNNING and there.guests["h1"] != Power.RUNNING
        assert (there.held, there.held_by_moves) == ({"h2"}, {"h1"})


@pytest.mark.parametrize("step_name", AFTER)
async def test_a_step_after_the_point_of_no_return_is_repeated(stage: Stage, step_name: str) -> None:
    step, failures = LIVE_MIGRATE.step(step_name), [Failed("once"), RuntimeError("twice")]

    async def fail(run: Run) -> Done | Wait:
        done = await step.do(run)
        if failures:
            raise failures.pop()
        return done

    async with live(stage.state_dir, "h2", database=stage.database) as three:
        uuid = await booted(three)
        replaced(three.cloud, NAME, changed(step, do=fail))
        migration = await three.begin(uuid)
        await assert_moved(three, uuid, migration)
        assert failures == []


@pytest.mark.parametrize("step_name", STEPS)
async def test_a_step_that_runs_twice_does_no_more_than_once(stage: Stage, step_name: str) -> None:
    step, calls = LIVE_MIGRATE.step(step_name), []

    async def twice(run: Run) -> Done | Wait:
        calls.append(step_name)
        await step.do(run)
        return await step.do(run)

    async with live(stage.state_dir, "h2", database=stage.database) as three:
        uuid = await booted(three)
        replaced(three.cloud, NAME, changed(step, do=twice))
        migration = await three.begin(uuid)
        await assert_moved(three, uuid, migration)
        assert calls


@pytest.mark.parametrize("step_name", UNDOS)
async def test_an_undo_that_runs_twice_does_no_more_than_once(stage: Stage, step_name: str) -> None:
    step, calls = LIVE_MIGRATE.step(step_name), []

    async def twice(run: Run) -> Done:
        calls.append(step_name)
        assert step.undo is not None
        await step.undo(run)
        return await step.undo(run)

    async with live(stage.state_dir, "h2", database=stage.database) as three:
        uuid = await booted(three)
        replaced(three.cloud, NAME, changed(step, undo=twice))
        failing(three.cloud, NAME, PIVOT, Failed("ordered at the pivot"))
        if step_name == PIVOT:
            operation = three.cloud.runner.operations[NAME]
            replaced(three.cloud, NAME, changed(operation.step(PIVOT), undo=twice))
        migration = await three.begin(uuid)
        await assert_undone(three, uuid, migration, PIVOT)
        assert calls == [step_name]


@pytest.mark.capability("MG-INIT-19")
@pytest.mark.parametrize(("stage", "what"), crash_points("do", "done"), indirect=["stage"])
@pytest.mark.parametrize("step_name", STEPS)
async def test_the_process_dies_before_or_after_a_commit(stage: Stage, step_name: str, what: str) -> None:
    """Controller and source agent in one: what was under way goes on, better than Nova's error."""
    async with live(stage.state_dir, "h2", database=stage.database) as three:
        uuid = await booted(three)
        died = crash_at(three.cloud, NAME, step_name, what)
        migration = await three.begin(uuid)
        await asyncio.wait_for(died.wait(), 60)
        await kill(three.cloud)
    async with live(stage.state_dir, "h2", database=stage.database) as three:
        await assert_moved(three, uuid, migration, died=True)


@pytest.mark.parametrize(("stage", "what"), crash_points("failed", "undo", "undone"), indirect=["stage"])
@pytest.mark.parametrize("step_name", UNDOS)
async def test_the_process_dies_while_unwinding(stage: Stage, step_name: str, what: str) -> None:
    async with live(stage.state_dir, "h2", database=stage.database) as three:
        uuid = await booted(three)
        last = step_name if what == "failed" else PIVOT
        failing(three.cloud, NAME, last, Failed("ordered"), after=last != PIVOT)
        died = crash_at(three.cloud, NAME, step_name, what)
        migration = await three.begin(uuid)
        await asyncio.wait_for(died.wait(), 60)
        await kill(three.cloud)
    async with live(stage.state_dir, "h2", database=stage.database) as three:
        await assert_undone(three, uuid, migration, last, died=True)


@pytest.mark.capability("MG-LM-14")
async def test_of_many_at_the_same_moment_one_has_its_turn(stage: Stage) -> None:
    """Whatever races: they look at the same rows, one after the other."""
    async with live(stage.state_dir, "h2", database=stage.database) as three:
        servers = [await three.boot() for _ in range(8)]
        three.driver("h1").faults.hold("arrive")
        moves = await asyncio.gather(*(three.begin(each) for each in servers))
        for each in moves:
            await three.at(each, Status.QUEUED, Status.RUNNING)
        for _ in range(20):
            found = [(await three.migration(each)).status for each in moves]
            assert sorted(found) == [Status.QUEUED] * 7 + [Status.RUNNING]
            await asyncio.sleep(0.01)
        three.driver("h1").faults.release("arrive")
        for uuid, each in zip(servers, moves, strict=True):
            await settled(three.cloud, uuid, 60)
            assert (await three.migration(each)).status == Status.COMPLETED
        assert await three.nothing_left() == []


async def test_of_many_that_get_in_line_at_the_same_moment_one_has_its_turn(stage: Stage) -> None:
    async with live(stage.state_dir, "h2", database=stage.database) as three:
        cloud, admin = three.cloud.cloud, three.admin()
        for number in range(10):
            lined_up = [
                Migration(
                    uuid=cloud.new_uuid(),
                    instance_uuid=cloud.new_uuid(),
                    project_id=str(admin.project_id),
                    user_id=str(admin.user_id),
                    migration_type=LIVE,
                    status=Status.ACCEPTED,
                    created_at=cloud.clock.now(),
                    source_compute=f"host{number}",
                )
                for _ in range(6)
            ]
            for each in lined_up:
                await cloud.db.write(partial(migrations.insert, migration=each))
            takes = (partial(live_queue.take, cloud=cloud, migration=each) for each in lined_up)
            turns = await asyncio.gather(*(cloud.db.write(take) for take in takes))
            found = [(await three.migration(each.uuid)).status for each in lined_up]
            assert sorted(found) == [Status.PREPARING] + [Status.QUEUED] * 5, number
            assert sum(turns) <= 1
