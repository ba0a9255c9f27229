"""The four tests that every operation gets: each step fails; each step runs twice; each undo runs twice;
the process dies before and after each commit.  They say which step it was and compare the world."""

from __future__ import annotations

import asyncio

import pytest

from kilonova.app import EmbeddedCloud
from kilonova.errors import Failed
from kilonova.journal.model import Done, Operation, Run, Wait
from kilonova.model.states import Vm
from kilonova.operations.registry import OPERATIONS
from kilonova.testing.embedded import kill, server, settled
from tests.crash.broken import changed, crash_at, failing, last_fails, replaced
from tests.crash.conftest import Stage, crash_points
from tests.crash.scenes import SCENES, STEPS, UNDOS, Scene
from tests.crash.world import NOTHING, World, assert_sound, but, log_of, world

FORWARD_ONLY = {"delete"}
ELSEWHERE = {
    "attach_interface": "test_interfaces.py",
    "attach_volume": "test_volumes.py",
    "attach_volume_offloaded": "test_volumes.py",
    "confirm_resize": "test_resize.py",
    "create_image": "test_shelve.py",
    "detach_interface": "test_interfaces.py",
    "detach_volume": "test_volumes.py",
    "detach_volume_offloaded": "test_volumes.py",
    "evacuate": "test_evacuate.py",
    "free_volumes": "test_volumes.py",
    "live_migrate": "test_live_migrate.py",
    "resize": "test_resize.py",
    "revert_resize": "test_resize.py",
    "shelve": "test_shelve.py",
    "shelve_and_offload": "test_shelve.py",
    "shelve_offload": "test_shelve.py",
    "unshelve": "test_shelve.py",
    "unshelve_offloaded": "test_shelve.py",
}
"""Operations between hosts, which get the same four tests in files of their own."""


def test_every_operation_has_a_scene() -> None:
    assert set(SCENES) | set(ELSEWHERE) == set(OPERATIONS)


def whole_log(operation: Operation) -> list[tuple[str, str, int, str]]:
    return [(step.name, "do", 1, "Success") for step in operation.steps]


def undone_log(operation: Operation, failed: str) -> list[tuple[str, str, int, str]]:
    """What is written when a step fails: those before it, itself, and the undos backwards."""
    names = [step.name for step in operation.steps]
    done = operation.steps[: names.index(failed)]
    undone = [step for step in operation.steps[: names.index(failed) + 1] if step.undo is not None]
    return [
        *((step.name, "do", 1, "Success") for step in done),
        (failed, "do", 1, "Error"),
        *((step.name, "undo", 1, "Success") for step in reversed(undone)),
    ]


async def assert_success(cloud: EmbeddedCloud, name: str, uuid: str) -> None:
    scene = SCENES[name]
    found = await settled(cloud, uuid)
    assert (found.vm_state, found.task_state) == (scene.vm, None), found.fault
    assert found.fault is None
    now = await world(cloud, uuid)
    assert now.guest == scene.power
    if scene.power is None:
        assert but(now, plugged=frozenset()) == World(vm_state=Vm.DELETED, deleted=True, place=now.place)
    else:
        assert len(now.claims) == len(now.bindings) == 1
        assert now.vifs == frozenset(now.bindings)
        assert set(now.bindings.values()) == {(found.host, "ACTIVE")}
    assert await log_of(cloud, uuid, name) == whole_log(scene.operation)
    await assert_sound(cloud)


async def assert_undone(cloud: EmbeddedCloud, scene: Scene, uuid: str, before: World) -> None:
    """The world is as it was; only a server that was to be made is there, to say why it is not."""
    found = await settled(cloud, uuid)
    assert found.fault is not None
    expected = but(NOTHING, vm_state=Vm.ERROR, plugged=before.plugged) if scene.undone else before
    assert await world(cloud, uuid) == expected


async def start_of(cloud: EmbeddedCloud, name: str) -> tuple[str, World]:
    """The server that the operation is to change, and the world before."""
    uuid = await SCENES[name].before(cloud)
    return uuid, await world(cloud, uuid)


@pytest.mark.capability("MG-GEN-1")
@pytest.mark.parametrize("after", [False, True], ids=["before it did anything", "when it had done all"])
@pytest.mark.parametrize(("name", "step_name"), [pair for pair in STEPS if pair[0] not in FORWARD_ONLY])
async def test_a_step_that_fails_is_undone_with_all_before_it(
    cloud: EmbeddedCloud, name: str, step_name: str, after: bool
) -> None:
    scene = SCENES[name]
    uuid, before = await start_of(cloud, name)
    failing(cloud, name, step_name, Failed(f"ordered in {step_name}"), after=after)
    uuid = await scene.begin(cloud, uuid)
    found = await settled(cloud, uuid)
    assert found.fault is not None and found.fault.message == f"ordered in {step_name}"
    assert await log_of(cloud, uuid, name) == undone_log(scene.operation, step_name)
    if name in ("reboot", "resume_guest"):  # whether it runs is not known then: an error (Nova's rule)
        assert found.vm_state == Vm.ERROR
        return
    if after and not scene.undone:  # the guest has changed, and the next look at it will tell
        now = await world(cloud, uuid)
        before = but(before, guest=now.guest, power_state=now.power_state)
    else:
        await assert_sound(cloud)
    await assert_undone(cloud, scene, uuid, before)


@pytest.mark.parametrize("step_name", [step for name, step in STEPS if name in FORWARD_ONLY])
async def test_a_step_of_a_delete_that_fails_is_repeated(cloud: EmbeddedCloud, step_name: str) -> None:
    step = SCENES["delete"].operation.step(step_name)
    failures = [Failed("once"), RuntimeError("twice")]

    async def fail(run: Run) -> Done | Wait:
        done = await step.do(run)
        if failures:
            raise failures.pop()
        return done

    uuid, _ = await start_of(cloud, "delete")
    replaced(cloud, "delete", changed(step, do=fail))
    await SCENES["delete"].begin(cloud, uuid)
    await assert_success(cloud, "delete", uuid)
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

    uuid, _ = await start_of(cloud, name)
    replaced(cloud, name, changed(step, do=twice))
    uuid = await scene.begin(cloud, uuid)
    await assert_success(cloud, name, uuid)
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

    uuid, before = await start_of(cloud, name)
    replaced(cloud, name, changed(step, undo=twice))
    last = last_fails(cloud, name)
    uuid = await scene.begin(cloud, uuid)
    await assert_undone(cloud, scene, uuid, before)
    assert calls == [step_name]
    assert await log_of(cloud, uuid, name) == undone_log(scene.operation, last)
    await assert_sound(cloud)


@pytest.mark.capability("MG-INIT-8", "MG-INIT-12", "MG-INIT-16")
@pytest.mark.parametrize(("stage", "what"), crash_points("do", "done"), indirect=["stage"])
@pytest.mark.parametrize(("name", "step_name"), STEPS)
async def test_the_process_dies_before_or_after_a_commit(
    stage: Stage, name: str, step_name: str, what: str
) -> None:
    scene = SCENES[name]
    async with stage.cloud() as cloud:
        uuid, _ = await start_of(cloud, name)
        died = crash_at(cloud, name, step_name, what)
        uuid = await scene.begin(cloud, uuid)
        await asyncio.wait_for(died.wait(), 60)
        await kill(cloud)
    async with stage.cloud() as cloud:
        await assert_success(cloud, name, uuid)


@pytest.mark.parametrize(("stage", "what"), crash_points("failed", "undo", "undone"), indirect=["stage"])
@pytest.mark.parametrize(("name", "step_name"), UNDOS)
async def test_the_process_dies_while_unwinding(stage: Stage, name: str, step_name: str, what: str) -> None:
    """``failed``: right after it was written down that this step has failed, before any undo."""
    scene = SCENES[name]
    async with stage.cloud() as cloud:
        uuid, before = await start_of(cloud, name)
        if what == "failed":
            failing(cloud, name, last := step_name, Failed("ordered"), after=True)
        else:
            last = last_fails(cloud, name)
        died = crash_at(cloud, name, step_name, what)
        uuid = await scene.begin(cloud, uuid)
        await asyncio.wait_for(died.wait(), 60)
        assert (await server(cloud, uuid)).vm_state == Vm.BUILDING
        await kill(cloud)
    async with stage.cloud() as cloud:
        await assert_undone(cloud, scene, uuid, before)
        assert await log_of(cloud, uuid, name) == undone_log(scene.operation, last)
        await assert_sound(cloud)
