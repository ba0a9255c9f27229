"""The four tests that every operation gets: each step fails; each step runs twice; each undo runs twice;
the process dies before and after each commit.  They say which step it was and compare the world."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from kilonova.app import EmbeddedCloud
from kilonova.errors import Failed
from kilonova.journal.model import ActionRow, Done, Operation, Run, Step, Wait
from kilonova.testing.embedded import Holdings, audits, embedded, holdings, kill, server, settled
from tests.crash.scenes import SCENES, STEPS, UNDOS, Scene


def test_every_operation_has_a_scene() -> None:
    from kilonova.operations.registry import OPERATIONS

    assert set(SCENES) == set(OPERATIONS)


def replaced(cloud: EmbeddedCloud, name: str, step: Step) -> None:
    """Put another step in the place of the one of that name."""
    operation = cloud.runner.operations[name]
    steps = tuple(step if each.name == step.name else each for each in operation.steps)
    values = {field: getattr(operation, field) for field in operation.__dataclass_fields__}
    operations = {**cloud.runner.operations, name: Operation(**{**values, "steps": steps})}
    cloud.runner.operations = operations


def changed(step: Step, **new: object) -> Step:
    values = {field: getattr(step, field) for field in step.__dataclass_fields__}
    return Step(**{**values, **new})


async def assert_success(cloud: EmbeddedCloud, scene: Scene, uuid: str) -> None:
    found = await settled(cloud, uuid)
    assert (found.vm_state, found.task_state) == (scene.vm, None), found.fault
    held = await holdings(cloud, uuid)
    assert held.guest == scene.power
    assert held.open_actions == 0
    if scene.power is None:
        assert held.nothing
    else:
        assert found.power_state == scene.power
        assert len(held.ports) == 1 and len(held.claims) == 1
    assert await audits(cloud) == []


async def assert_failure(cloud: EmbeddedCloud, scene: Scene, uuid: str, before: Holdings | None) -> None:
    found = await settled(cloud, uuid)
    assert (found.vm_state, found.task_state) == (scene.vm_failed, None)
    assert found.fault is not None
    held = await holdings(cloud, uuid)
    if scene.undone:
        assert held.nothing
        assert found.host is None and found.vifs == ()
    else:
        assert before is not None
        assert (held.claims, held.ports) == (before.claims, before.ports)
    assert await audits(cloud) == []


@pytest.mark.parametrize(("name", "step_name"), [pair for pair in STEPS if pair[0] != "delete"])
async def test_a_step_that_fails_is_undone_with_all_before_it(
    cloud: EmbeddedCloud, name: str, step_name: str
) -> None:
    scene = SCENES[name]
    step = scene.operation.step(step_name)

    async def fail(run: Run) -> Done | Wait:
        if step_name != "wired":
            await step.do(run)
        raise Failed(f"ordered in {step_name}")

    uuid = await scene.before(cloud)
    before = await holdings(cloud, uuid) if uuid else None
    replaced(cloud, name, changed(step, do=fail))
    uuid = await scene.begin(cloud, uuid)
    found = await settled(cloud, uuid)
    assert found.fault is not None and found.fault.message == f"ordered in {step_name}"
    if name == "reboot":  # whether it still runs is not known then, which is an error (Nova's rule)
        assert found.vm_state == "error"
        return
    await assert_failure(cloud, scene, uuid, before)


@pytest.mark.parametrize("step_name", [step for name, step in STEPS if name == "delete"])
async def test_a_step_of_a_delete_that_fails_is_repeated(cloud: EmbeddedCloud, step_name: str) -> None:
    scene = SCENES["delete"]
    step = scene.operation.step(step_name)
    failures = [Failed("once"), RuntimeError("twice")]

    async def fail(run: Run) -> Done | Wait:
        done = await step.do(run)
        if failures:
            raise failures.pop()
        return done

    uuid = await scene.before(cloud)
    replaced(cloud, "delete", changed(step, do=fail))
    await scene.begin(cloud, uuid)
    await assert_success(cloud, scene, uuid)
    assert failures == []


@pytest.mark.parametrize(("name", "step_name"), STEPS)
async def test_a_step_that_runs_twice_does_no_more_than_once(
    cloud: EmbeddedCloud, name: str, step_name: str
) -> None:
    scene = SCENES[name]
    step = scene.operation.step(step_name)
    calls = []

    async def twice(run: Run) -> Done | Wait:
        calls.append(step_name)
        await step.do(run)
        return await step.do(run)

    uuid = await scene.before(cloud)
    replaced(cloud, name, changed(step, do=twice))
    uuid = await scene.begin(cloud, uuid)
    await assert_success(cloud, scene, uuid)
    assert calls


@pytest.mark.parametrize(("name", "step_name"), UNDOS)
async def test_an_undo_that_runs_twice_does_no_more_than_once(
    cloud: EmbeddedCloud, name: str, step_name: str
) -> None:
    scene = SCENES[name]
    step = scene.operation.step(step_name)
    calls = []

    async def twice(run: Run) -> Done:
        calls.append(step_name)
        assert step.undo is not None
        await step.undo(run)
        return await step.undo(run)

    async def fail(run: Run) -> Done | Wait:
        raise Failed("ordered at the end")

    last = scene.operation.steps[-1]
    replaced(cloud, name, changed(step, undo=twice))
    replaced(cloud, name, changed(last, do=fail))
    uuid = await scene.begin(cloud, await scene.before(cloud))
    await assert_failure(cloud, scene, uuid, None)
    assert calls == [step_name]


class Crash(asyncio.CancelledError):
    """The process dies here."""


def crash_at(cloud: EmbeddedCloud, name: str, step: str, what: str) -> asyncio.Event:
    died = asyncio.Event()

    def look(row: ActionRow, at: str, happened: str) -> None:
        if (row.operation, at, happened) == (name, step, what):
            died.set()
            raise Crash

    cloud.runner.on_step = look
    return died


@pytest.mark.parametrize("what", ["do", "done"])
@pytest.mark.parametrize(("name", "step_name"), STEPS)
async def test_the_process_dies_before_or_after_a_commit(
    tmp_path: Path, name: str, step_name: str, what: str
) -> None:
    scene = SCENES[name]
    async with embedded(tmp_path / "state") as cloud:
        uuid = await scene.before(cloud)
        died = crash_at(cloud, name, step_name, what)
        uuid = await scene.begin(cloud, uuid)
        await asyncio.wait_for(died.wait(), 10)
        await kill(cloud)
    async with embedded(tmp_path / "state") as cloud:
        await assert_success(cloud, scene, uuid)


@pytest.mark.parametrize("what", ["undo", "undone"])
@pytest.mark.parametrize(("name", "step_name"), UNDOS)
async def test_the_process_dies_while_unwinding(tmp_path: Path, name: str, step_name: str, what: str) -> None:
    scene = SCENES[name]

    async def fail(run: Run) -> Done | Wait:
        raise Failed("ordered at the end")

    last = scene.operation.steps[-1]
    async with embedded(tmp_path / "state") as cloud:
        replaced(cloud, name, changed(last, do=fail))
        died = crash_at(cloud, name, step_name, what)
        uuid = await scene.begin(cloud, await scene.before(cloud))
        await asyncio.wait_for(died.wait(), 10)
        await kill(cloud)
    async with embedded(tmp_path / "state") as cloud:
        await assert_failure(cloud, scene, uuid, None)


@pytest.mark.parametrize("what", ["do", "done"])
@pytest.mark.parametrize("step_name", [step for name, step in STEPS if name == "create"])
async def test_a_delete_in_every_phase_of_a_boot(cloud: EmbeddedCloud, step_name: str, what: str) -> None:
    from kilonova.operations import delete
    from kilonova.testing.embedded import member
    from tests.crash.scenes import boot

    reached, goes_on = asyncio.Event(), asyncio.Event()
    step = SCENES["create"].operation.step(step_name)

    async def slow(run: Run) -> Done | Wait:
        if what == "done":
            done = await step.do(run)
        reached.set()
        await goes_on.wait()
        return done if what == "done" else await step.do(run)

    replaced(cloud, "create", changed(step, do=slow))
    uuid = await boot(cloud)
    await asyncio.wait_for(reached.wait(), 10)
    await delete.submit(cloud.cloud, member(cloud), uuid)
    goes_on.set()
    await settled(cloud, uuid)
    assert (await server(cloud, uuid)).deleted_at is not None
    assert (await holdings(cloud, uuid)).nothing
    assert await audits(cloud) == []
