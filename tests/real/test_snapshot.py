"""Snapshots of guests that run: all that was on the disk is in them, and what goes wrong leaves nothing."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import libvirt_qemu
import pytest

from kilonova.errors import HostFault, KilonovaError
from kilonova.model.states import Power
from kilonova.rpc.messages import GuestSpec
from kilonova.virt.libvirt import running_copy
from kilonova.virt.libvirt.running_copy import RunningCopy
from tests.real import tiny_guest
from tests.real.guests import eventually
from tests.real.libvirt_host import Host, kill_libvirtd, opened, start_libvirtd
from tests.unit.virt.sources import guest

pytestmark = [pytest.mark.real, pytest.mark.slow]

SIZE = 256 << 20  # bytes of disk: takes a second or so to be copied, unless it is
SPEED = 16 << 20  # bytes a second
ROUNDS = 10
SLOW: set[str] = set()  # guests of which a copy that is begun is
IMAGE = str(uuid.UUID(int=9))


@pytest.fixture
async def host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[Host]:
    monkeypatch.setattr(running_copy, "LOOK", 0.02)
    monkeypatch.setattr(RunningCopy, "_begin", begun_slowly)
    async with opened(tmp_path / "instances") as made:
        yield made


_begin = RunningCopy._begin


def begun_slowly(copy: RunningCopy, link: Any, uuid: str, target: Path) -> None:
    """As it is begun; but it would be over before a test comes to disturb it."""
    _begin(copy, link, uuid, target)
    if uuid in SLOW:
        domain = copy._find(link, uuid)
        for each in ask_qemu(domain, "query-block-jobs"):
            ask_qemu(domain, "block-job-set-speed", device=each["device"], speed=SPEED)


def ask_qemu(domain: Any, verb: str, **arguments: object) -> Any:
    question = json.dumps({"execute": verb, "arguments": arguments})
    return json.loads(libvirt_qemu.qemuMonitorCommand(domain, question, 0))["return"]


async def running(host: Host) -> tuple[GuestSpec, bytes]:
    """A guest with a large disk, and what is on it."""
    disk = tiny_guest.image(0)
    disk += os.urandom(SIZE - len(disk))
    spec = guest(host.images.add(disk))
    await host.driver.prepare(spec, host.images)
    await host.driver.start(spec, paused=False)
    return spec, disk


def here(host: Host, spec: GuestSpec) -> Path:
    return host.instances / spec.uuid


def kept(host: Host, spec: GuestSpec) -> list[str]:
    return sorted(path.name for path in here(host, spec).iterdir() if path.name.startswith("snapshot"))


def job(spec: GuestSpec) -> str:
    done = subprocess.run(["virsh", "-q", "domjobinfo", spec.uuid], capture_output=True, text=True)
    return done.stdout.split()[2] if done.stdout else "None"


async def begun(host: Host, spec: GuestSpec) -> asyncio.Task[None]:
    """A snapshot that is being made, and will be for some seconds; the first one that is slowed in time."""
    SLOW.add(spec.uuid)
    for _ in range(ROUNDS):
        task = asyncio.create_task(host.driver.snapshot(spec.uuid, IMAGE))
        await until_under_way(host, spec, task)
        if not task.done():
            SLOW.clear()
            return task
        await task
        await host.driver.drop_snapshot(spec.uuid, IMAGE)
    raise AssertionError("it was too fast to be disturbed: make the disk larger")


async def until_under_way(host: Host, spec: GuestSpec, task: asyncio.Task[None]) -> None:
    await eventually(lambda: task.done() or any(name.endswith(".new") for name in kept(host, spec)))
    await eventually(lambda: task.done() or job(spec) != "None")


async def assert_whole(host: Host, spec: GuestSpec, disk: bytes, directory: Path) -> None:
    await host.driver.snapshot(spec.uuid, IMAGE)
    assert kept(host, spec) == [f"snapshot-{IMAGE}.qcow2"]
    data = await host.driver.snapshot_data(spec.uuid, IMAGE)
    file, raw = directory / "snapshot", directory / "raw"
    file.write_bytes(await data.read(0, data.size))
    subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", str(file), str(raw)], check=True)
    assert raw.read_bytes() == disk
    await host.driver.drop_snapshot(spec.uuid, IMAGE)
    assert kept(host, spec) == []


@pytest.mark.capability("MG-SNP-1")
async def test_it_has_all_that_is_on_the_disk_and_the_guest_goes_on(host: Host, tmp_path: Path) -> None:
    spec, disk = await running(host)
    await assert_whole(host, spec, disk, tmp_path)
    assert await host.driver.power_state(spec.uuid) == Power.RUNNING
    assert job(spec) == "None"


async def test_one_that_is_interrupted_leaves_nothing(host: Host, tmp_path: Path) -> None:
    spec, disk = await running(host)
    task = await begun(host, spec)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (kept(host, spec), job(spec)) == ([], "None")
    await assert_whole(host, spec, disk, tmp_path)


async def test_what_an_agent_that_was_killed_had_begun_is_ended(host: Host, tmp_path: Path) -> None:
    spec, disk = await running(host)
    copy: Any = host.driver._running_copy
    draft = here(host, spec) / f"snapshot-{IMAGE}.qcow2.new"
    SLOW.add(spec.uuid)
    for _ in range(ROUNDS):
        draft.unlink(missing_ok=True)
        await host.driver._connection.call(lambda link: copy._begin(link, spec.uuid, draft))
        if job(spec) != "None":
            break
    SLOW.clear()
    assert job(spec) != "None"
    await host.driver.close()
    host.driver = host.new_driver()
    await host.open()
    await assert_whole(host, spec, disk, tmp_path)


async def test_a_guest_that_ends_meanwhile_is_copied_when_it_is_off(host: Host, tmp_path: Path) -> None:
    spec, disk = await running(host)
    task = await begun(host, spec)
    await host.driver.power_off(spec.uuid)
    with pytest.raises(HostFault):
        await task
    assert kept(host, spec) == []
    await assert_whole(host, spec, disk, tmp_path)


async def test_libvirtd_dies_meanwhile(host: Host, tmp_path: Path) -> None:
    spec, disk = await running(host)
    task = await begun(host, spec)
    kill_libvirtd()
    start_libvirtd()
    with contextlib.suppress(KilonovaError):  # it may also have been done by then
        await task

    async def again() -> bool:
        try:
            await assert_whole(host, spec, disk, tmp_path)
        except KilonovaError:
            return False
        return True

    await eventually(again, 120)
    assert await host.driver.power_state(spec.uuid) == Power.RUNNING
