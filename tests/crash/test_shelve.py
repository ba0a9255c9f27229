"""The four tests of every operation, for what makes images of servers and servers of them: each step fails;
each step runs twice; each undo runs twice; the process dies before and after each commit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import pytest
from sqlalchemy import select

from kilonova.app import EmbeddedCloud
from kilonova.db.tables.image import images
from kilonova.errors import Failed
from kilonova.journal.model import Done, Kind, Operation, Run, Wait
from kilonova.model.states import Power, Vm
from kilonova.operations import create_image, offload, shelve, unshelve
from kilonova.testing.embedded import fake_driver, kill, leaks, member, server, settled
from tests.crash.broken import changed, crash_at, failing, replaced
from tests.crash.conftest import Stage, crash_points
from tests.crash.scenes import boot
from tests.crash.world import World, but, log_of, world
from tests.operations.with_volumes import attached

CONTENT = b"written by the guest " * 50_000

Prepare = Callable[[EmbeddedCloud], Awaitable[str]]


async def _active(cloud: EmbeddedCloud) -> str:
    uuid = await boot(cloud)
    assert (await settled(cloud, uuid)).vm_state == Vm.ACTIVE
    fake_driver(cloud).disks.write(uuid, CONTENT)
    await attached(cloud, uuid)
    return uuid


async def _shelved(cloud: EmbeddedCloud) -> str:
    uuid = await _active(cloud)
    staying(cloud, -1)
    await shelve.submit(cloud.cloud, member(cloud), uuid)
    assert (await settled(cloud, uuid)).vm_state == Vm.SHELVED
    return uuid


async def _offloaded(cloud: EmbeddedCloud) -> str:
    uuid = await _active(cloud)
    staying(cloud, 0)
    await shelve.submit(cloud.cloud, member(cloud), uuid)
    assert (await settled(cloud, uuid)).vm_state == Vm.SHELVED_OFFLOADED
    return uuid


def staying(cloud: EmbeddedCloud, seconds: int) -> None:
    cloud.settings.options["DEFAULT"]["shelved_offload_time"] = seconds


@dataclass(frozen=True)
class Scene:
    """``power`` is the guest's in the end (None: it is gone); ``kept``: its image is there then."""

    operation: Operation
    action: str
    before: Prepare
    vm: str
    power: int | None
    kept: bool = True
    vm_failed: str = ""  # "": as it was
    image: str = "s-shelved"
    offload_time: int = -1


SCENES = {
    "shelve": Scene(shelve.SHELVE, "shelve", _active, Vm.SHELVED, Power.SHUTDOWN, vm_failed=Vm.STOPPED),
    "shelve_and_offload": Scene(
        shelve.SHELVE_AND_OFFLOAD,
        "shelve",
        _active,
        Vm.SHELVED_OFFLOADED,
        None,
        vm_failed=Vm.STOPPED,
        offload_time=0,
    ),
    "create_image": Scene(
        create_image.CREATE_IMAGE, "createImage", _active, Vm.ACTIVE, Power.RUNNING, image="snap"
    ),
    "shelve_offload": Scene(offload.OFFLOAD, "shelveOffload", _shelved, Vm.SHELVED_OFFLOADED, None),
    "unshelve": Scene(unshelve.UNSHELVE, "unshelve", _shelved, Vm.ACTIVE, Power.RUNNING, kept=False),
    "unshelve_offloaded": Scene(
        unshelve.UNSHELVE_OFFLOADED, "unshelve", _offloaded, Vm.ACTIVE, Power.RUNNING, kept=False
    ),
}


def _undone(operation: Operation) -> list[str]:
    """The steps whose failure is the operation's: those up to the first after which there is no way back."""
    names = []
    for step in operation.steps:
        if step.kind is Kind.RETRIABLE:
            break
        names.append(step.name)
        if step.kind is Kind.PIVOT:
            break
    return names


STEPS = [(name, step.name) for name, scene in SCENES.items() for step in scene.operation.steps]
FAILING = [(name, step) for name, scene in SCENES.items() for step in _undone(scene.operation)]
REPEATED = [pair for pair in STEPS if pair not in FAILING]
UNDOS = [
    (name, step.name)
    for name, scene in SCENES.items()
    for step in scene.operation.steps
    if step.undo is not None
]


async def begin(cloud: EmbeddedCloud, name: str, uuid: str) -> None:
    staying(cloud, SCENES[name].offload_time)
    if name == "create_image":
        await create_image.submit(cloud.cloud, member(cloud), uuid, "snap", {})
        return
    submit = {"shelve": shelve.submit, "shelveOffload": offload.submit, "unshelve": unshelve.submit}
    await submit[SCENES[name].action](cloud.cloud, member(cloud), uuid)


async def stored(cloud: EmbeddedCloud) -> list[tuple[str, str]]:
    """(name, status) of all images but the example; each active one has its data, and there are no others."""
    rows = await cloud.db.read(lambda tx: tx.all(select(images.c.id, images.c.name, images.c.status)))
    files = {path.name for path in cloud.places.images.iterdir() if path.name != ".lock"}
    assert files == {row[0] for row in rows}
    return [(row[1], row[2]) for row in rows if row[0] != cloud.example_image]


def whole_log(operation: Operation) -> list[tuple[str, str, int, str]]:
    return [(step.name, "do", 1, "Success") for step in operation.steps]


async def assert_success(cloud: EmbeddedCloud, name: str, uuid: str) -> None:
    scene = SCENES[name]
    found = await settled(cloud, uuid)
    assert (found.vm_state, found.task_state, found.fault) == (scene.vm, None, None)
    now = await world(cloud, uuid)
    assert now.guest == scene.power
    assert now.vifs == frozenset(now.bindings) and len(now.vifs) == 1
    nowhere = scene.power is None
    assert len(now.volumes) == 1 and now.disks == (() if nowhere else now.volumes)
    assert set(now.bindings.values()) == {("", "DOWN") if nowhere else (found.host, "ACTIVE")}
    assert len(now.claims) == (0 if nowhere else 1)
    assert (found.host is None) == nowhere
    assert await stored(cloud) == ([(scene.image, "active")] if scene.kept else [])
    remembered = scene.kept and name != "create_image"
    assert ("shelved_image_id" in found.system_metadata) == remembered
    assert fake_driver(cloud).disks.snapshots() == []
    if not nowhere:
        assert fake_driver(cloud).disks.content(uuid) == CONTENT
    assert await log_of(cloud, uuid, scene.action) == whole_log(scene.operation)
    assert await leaks(cloud) == []


async def assert_undone(
    cloud: EmbeddedCloud,
    name: str,
    uuid: str,
    before: World,
    *,
    died: bool = False,
    off: bool = False,
    complete: bool = False,
) -> None:
    """As it was; but a server that was turned off to be shelved stays off, as in Nova.

    ``died``: the process has, and with it what it knew of the switch.  ``off``: the guest is off, and nobody
    has been told yet.  ``complete``: all data of the image had come, which is not taken from its user then.
    """
    scene = SCENES[name]
    found = await settled(cloud, uuid)
    assert found.fault is not None
    now = await world(cloud, uuid)
    if now.vm_state == scene.vm_failed:
        assert now.guest == now.power_state == Power.SHUTDOWN
        before = but(before, vm_state=scene.vm_failed, guest=now.guest, power_state=now.power_state)
    if off:
        assert (now.guest, now.power_state) == (Power.SHUTDOWN, Power.RUNNING)
        before = but(before, guest=now.guest)
    elif name == "shelve_offload":  # its guest may have been forgotten, and is known again by a start
        before = but(
            before, guest=now.guest, power_state=now.power_state, plugged=now.plugged, disks=now.disks
        )
        assert now.guest in (Power.SHUTDOWN, -1)
    else:
        assert await leaks(cloud) == []
    plugged = now.plugged if died or name == "unshelve" else before.plugged  # a shelved server's may be
    assert now == but(before, plugged=plugged)
    fresh = name in ("shelve", "shelve_and_offload", "create_image")  # before it there was no image
    left = [("snap", "active")] if complete and name == "create_image" else []
    assert await stored(cloud) == (left if fresh else [("s-shelved", "active")])
    assert fake_driver(cloud).disks.snapshots() == []


async def start_of(cloud: EmbeddedCloud, name: str) -> tuple[str, World]:
    uuid = await SCENES[name].before(cloud)
    return uuid, await world(cloud, uuid)


@pytest.mark.capability("MG-GEN-1", "MG-SHV-6")
@pytest.mark.parametrize("after", [False, True], ids=["before it did anything", "when it had done all"])
@pytest.mark.parametrize(("name", "step_name"), FAILING)
async def test_a_step_that_fails_is_undone_with_all_before_it(
    cloud: EmbeddedCloud, name: str, step_name: str, after: bool
) -> None:
    uuid, before = await start_of(cloud, name)
    failing(cloud, name, step_name, Failed(f"ordered in {step_name}"), after=after)
    await begin(cloud, name, uuid)
    found = await settled(cloud, uuid)
    assert found.fault is not None and found.fault.message == f"ordered in {step_name}"
    off, complete = after and step_name == "shut_down", after and step_name == "upload"
    await assert_undone(cloud, name, uuid, before, off=off, complete=complete)


@pytest.mark.parametrize(("name", "step_name"), REPEATED)
async def test_a_step_after_the_pivot_that_fails_is_repeated(
    cloud: EmbeddedCloud, name: str, step_name: str
) -> None:
    step = SCENES[name].operation.step(step_name)
    failures = [Failed("once"), RuntimeError("twice")]

    async def fail(run: Run) -> Done | Wait:
        done = await step.do(run)
        if failures:
            raise failures.pop()
        return done

    uuid, _ = await start_of(cloud, name)
    replaced(cloud, name, changed(step, do=fail))
    await begin(cloud, name, uuid)
    await assert_success(cloud, name, uuid)
    assert failures == []


@pytest.mark.parametrize(("name", "step_name"), STEPS)
async def test_a_step_that_runs_twice_does_no_more_than_once(
    cloud: EmbeddedCloud, name: str, step_name: str
) -> None:
    step = SCENES[name].operation.step(step_name)
    calls = []

    async def twice(run: Run) -> Done | Wait:
        calls.append(step_name)
        await step.do(run)
        return await step.do(run)

    uuid, _ = await start_of(cloud, name)
    replaced(cloud, name, changed(step, do=twice))
    await begin(cloud, name, uuid)
    await assert_success(cloud, name, uuid)
    assert calls


def last_undone(name: str) -> str:
    return _undone(SCENES[name].operation)[-1]


@pytest.mark.parametrize(("name", "step_name"), UNDOS)
async def test_an_undo_that_runs_twice_does_no_more_than_once(
    cloud: EmbeddedCloud, name: str, step_name: str
) -> None:
    step = SCENES[name].operation.step(step_name)
    calls = []

    async def twice(run: Run) -> Done:
        calls.append(step_name)
        assert step.undo is not None
        await step.undo(run)
        return await step.undo(run)

    uuid, before = await start_of(cloud, name)
    replaced(cloud, name, changed(step, undo=twice))
    failing(
        cloud, name, last_undone(name), Failed("ordered at the end"), after=last_undone(name) == step_name
    )
    if last_undone(name) == step_name:  # both of the one step
        broken = cloud.runner.operations[name].step(step_name)
        replaced(cloud, name, changed(broken, undo=twice))
    await begin(cloud, name, uuid)
    await assert_undone(cloud, name, uuid, before)
    assert calls == [step_name]


@pytest.mark.capability("MG-INIT-12", "MG-INIT-16")
@pytest.mark.parametrize(("stage", "what"), crash_points("do", "done"), indirect=["stage"])
@pytest.mark.parametrize(("name", "step_name"), STEPS)
async def test_the_process_dies_before_or_after_a_commit(
    stage: Stage, name: str, step_name: str, what: str
) -> None:
    async with stage.cloud() as cloud:
        uuid, _ = await start_of(cloud, name)
        died = crash_at(cloud, name, step_name, what)
        await begin(cloud, name, uuid)
        await asyncio.wait_for(died.wait(), 60)
        await kill(cloud)
    async with stage.cloud() as cloud:
        await assert_success(cloud, name, uuid)


@pytest.mark.parametrize(("stage", "what"), crash_points("failed", "undo", "undone"), indirect=["stage"])
@pytest.mark.parametrize(("name", "step_name"), UNDOS)
async def test_the_process_dies_while_unwinding(stage: Stage, name: str, step_name: str, what: str) -> None:
    async with stage.cloud() as cloud:
        uuid, before = await start_of(cloud, name)
        failing(
            cloud, name, step_name if what == "failed" else last_undone(name), Failed("ordered"), after=True
        )
        died = crash_at(cloud, name, step_name, what)
        await begin(cloud, name, uuid)
        await asyncio.wait_for(died.wait(), 60)
        assert (await server(cloud, uuid)).task_state is not None
        await kill(cloud)
    async with stage.cloud() as cloud:
        await assert_undone(cloud, name, uuid, before, died=True, complete=what != "failed")
