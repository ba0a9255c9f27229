"""The four tests of every operation, for an evacuation: each step fails; each step runs twice; each undo
runs twice; the process dies before and after each commit.

In the end the guest is on one host only, or all is as it was; and when the old host comes back it is cleared.
"""

from __future__ import annotations

import asyncio

import pytest

from kilonova.errors import Failed
from kilonova.journal.model import Done, Kind, Run, Wait
from kilonova.model.migration import Status
from kilonova.model.states import Power, Vm
from kilonova.operations.evacuate import EVACUATE
from kilonova.testing.embedded import kill, settled
from tests.crash.broken import changed, crash_at, failing, replaced
from tests.crash.conftest import Stage, crash_points
from tests.crash.world import log_of
from tests.operations.dead_hosts import Hosts, opened
from tests.operations.with_volumes import Had, attached, had

STEPS = [step.name for step in EVACUATE.steps]
BEFORE = STEPS[: STEPS.index("switch") + 1]  # what fails there is undone
AFTER = [step.name for step in EVACUATE.steps if step.kind is Kind.RETRIABLE]
UNDOS = [step.name for step in EVACUATE.steps if step.undo is not None]
WHOLE = [(name, "do", 1, "Success") for name in STEPS]


async def down(three: Hosts) -> str:
    """A server with a volume, whose host has just lost its power."""
    uuid = await three.boot(host="h2")
    await attached(three.cloud, uuid)
    await three.lose_power("h2")
    return uuid


async def assert_evacuated(three: Hosts, uuid: str, *, died: bool = False) -> None:
    cloud = three.cloud
    found = await settled(cloud, uuid, 60)
    assert (found.vm_state, found.task_state, found.host, found.fault) == (Vm.ACTIVE, None, "h1", None)
    assert len(found.volumes) == 1  # where it is, `complaints` looks
    assert await log_of(cloud, uuid, "evacuate") == WHOLE
    there = await three.everywhere(uuid)
    assert there.guests == {"h1": Power.RUNNING, "h2": Power.SHUTDOWN}
    assert (there.bound, there.held, there.held_by_moves) == ({"h1"}, {"h1"}, {"h2"})
    (migration,) = await three.migrations(uuid)
    assert migration.status == Status.DONE
    await three.come_back("h2")
    await three.cleared()
    await three.assert_only_on(uuid, "h1", plugged=None if died else True)
    (migration,) = await three.migrations(uuid)
    assert migration.status == Status.COMPLETED
    assert await three.complaints() == []


async def assert_undone(three: Hosts, uuid: str, status: str = Status.FAILED) -> None:
    found = await settled(three.cloud, uuid, 60)
    assert (found.vm_state, found.task_state, found.host) == (Vm.ERROR, None, "h2")
    assert found.fault is not None
    there = await three.everywhere(uuid)
    assert there.guests == {"h2": Power.SHUTDOWN}
    assert (there.bound, there.held, there.held_by_moves) == ({"h2"}, {"h2"}, set())
    assert three.hosts["h1"].empty and three.hosts["h3"].empty
    (migration,) = await three.migrations(uuid)
    assert (migration.status, migration.dest_compute) == (status, None)
    (volume,) = found.volumes
    assert await had(three.cloud, volume.volume_id) == Had("in-use", (("h2", "attached"),))
    assert await three.owed("h1") == await three.owed("h2") == []


@pytest.mark.capability("MG-EVC-5")
@pytest.mark.parametrize("after", [False, True], ids=["before it did anything", "when it had done all"])
@pytest.mark.parametrize("step_name", BEFORE[:-1])
async def test_a_step_that_fails_is_undone_with_all_before_it(
    stage: Stage, step_name: str, after: bool
) -> None:
    async with opened(stage.state_dir, database=stage.database) as three:
        uuid = await down(three)
        failing(three.cloud, "evacuate", step_name, Failed(f"ordered in {step_name}"), after=after)
        await three.ask(uuid)
        await assert_undone(three, uuid)
        found = await settled(three.cloud, uuid)
        assert found.fault is not None and found.fault.message == f"ordered in {step_name}"


@pytest.mark.parametrize("step_name", AFTER)
async def test_a_step_after_the_point_of_no_return_is_repeated(stage: Stage, step_name: str) -> None:
    step, failures = EVACUATE.step(step_name), [Failed("once"), RuntimeError("twice")]

    async def fail(run: Run) -> Done | Wait:
        done = await step.do(run)
        if failures:
            raise failures.pop()
        return done

    async with opened(stage.state_dir, database=stage.database) as three:
        uuid = await down(three)
        replaced(three.cloud, "evacuate", changed(step, do=fail))
        await three.ask(uuid)
        await assert_evacuated(three, uuid)
        assert failures == []


@pytest.mark.parametrize("step_name", STEPS)
async def test_a_step_that_runs_twice_does_no_more_than_once(stage: Stage, step_name: str) -> None:
    step, calls = EVACUATE.step(step_name), []

    async def twice(run: Run) -> Done | Wait:
        calls.append(step_name)
        await step.do(run)
        return await step.do(run)

    async with opened(stage.state_dir, database=stage.database) as three:
        uuid = await down(three)
        replaced(three.cloud, "evacuate", changed(step, do=twice))
        await three.ask(uuid)
        await assert_evacuated(three, uuid)
        assert calls


@pytest.mark.parametrize("step_name", UNDOS)
async def test_an_undo_that_runs_twice_does_no_more_than_once(stage: Stage, step_name: str) -> None:
    step, calls = EVACUATE.step(step_name), []
    assert step.undo is not None

    async def twice(run: Run) -> Done:
        calls.append(step_name)
        assert step.undo is not None
        await step.undo(run)
        return await step.undo(run)

    async with opened(stage.state_dir, database=stage.database) as three:
        uuid = await down(three)
        replaced(three.cloud, "evacuate", changed(step, undo=twice))
        failing(three.cloud, "evacuate", "still_down", Failed("ordered at the end"))
        await three.ask(uuid)
        await assert_undone(three, uuid)
        assert calls == [step_name]


@pytest.mark.parametrize(("stage", "what"), crash_points("do", "done"), indirect=["stage"])
@pytest.mark.parametrize("step_name", STEPS)
async def test_the_process_dies_before_or_after_a_commit(stage: Stage, step_name: str, what: str) -> None:
    async with opened(stage.state_dir, database=stage.database) as three:
        uuid = await down(three)
        died = crash_at(three.cloud, "evacuate", step_name, what)
        await three.ask(uuid)
        await asyncio.wait_for(died.wait(), 60)
        await kill(three.cloud)
    async with opened(stage.state_dir, database=stage.database, off=("h2",)) as three:
        await assert_evacuated(three, uuid, died=True)


@pytest.mark.parametrize(("stage", "what"), crash_points("failed", "undo", "undone"), indirect=["stage"])
@pytest.mark.parametrize("step_name", UNDOS)
async def test_the_process_dies_while_unwinding(stage: Stage, step_name: str, what: str) -> None:
    async with opened(stage.state_dir, database=stage.database) as three:
        uuid = await down(three)
        last = step_name if what == "failed" else "still_down"
        failing(three.cloud, "evacuate", last, Failed("ordered"), after=True)
        died = crash_at(three.cloud, "evacuate", step_name, what)
        await three.ask(uuid)
        await asyncio.wait_for(died.wait(), 60)
        await kill(three.cloud)
    async with opened(stage.state_dir, database=stage.database, off=("h2",)) as three:
        await assert_undone(three, uuid)
