"""What goes wrong on real hosts, and that nothing is left of it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from kilonova.errors import HostFault, TryAgain, Unreachable
from kilonova.model.states import Power
from kilonova.rpc.messages import GuestSpec
from kilonova.virt.libvirt import connection, domains, image_cache
from tests.real import tiny_guest
from tests.real.guests import eventually
from tests.real.libvirt_host import (
    LIBVIRTD_PID,
    PAUSED,
    RUNNING,
    SHUTDOWN,
    Host,
    kill_libvirtd,
    kill_process,
    opened,
    port,
    qemu_pid,
    start_libvirtd,
    tap,
)
from tests.unit.virt.sources import guest

pytestmark = pytest.mark.real


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    async with opened(tmp_path / "instances") as made:
        yield made


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MiB."""
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "small", place], check=True)
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def qemu_processes() -> set[int]:
    notes = set(Path("/run/libvirt/qemu").glob("*.pid")) - {Path("/run/libvirt/qemu/driver.pid")}
    return {int(note.read_text()) for note in notes}


# ---- QEMU ----


async def test_a_guest_that_wants_more_memory_than_there_is(host: Host) -> None:
    spec = await host.prepared(flavor={"memory_mb": 1 << 30})
    with pytest.raises(HostFault, match=f"Guest {spec.uuid} does not start: .*[Cc]annot.*memory"):
        await host.driver.start(spec, paused=True)
    assert await host.driver.power_state(spec.uuid) in (SHUTDOWN, Power.NOSTATE)
    await host.driver.undefine(spec.uuid)
    await host.driver.discard(spec.uuid)
    assert await host.driver.guests() == {}
    assert qemu_processes() == set()
    assert [path.name for path in host.instances.iterdir()] == ["_base"]


async def test_a_damaged_disk_is_said_in_qemus_words(host: Host) -> None:
    spec = await host.prepared()
    (host.files(spec) / "disk").write_bytes(b"rubbish" * 1000)
    with pytest.raises(HostFault, match=r"qcow2"):
        await host.driver.start(spec, paused=True)


async def test_a_tap_that_was_not_plugged(host: Host) -> None:
    vif = port()
    spec = await host.prepared(vifs=(vif,))
    with pytest.raises(HostFault, match=vif.devname):
        await host.driver.start(spec, paused=True)
    with tap(vif):
        await host.driver.start(spec, paused=True)  # the repeat succeeds
        await host.driver.power_off(spec.uuid)


async def test_qemu_that_is_killed_is_reported(host: Host) -> None:
    spec = await host.running()
    kill_process(qemu_pid(spec))
    await host.is_told(spec, SHUTDOWN)
    assert await host.driver.power_state(spec.uuid) == SHUTDOWN
    await host.driver.start(spec, paused=False)
    assert await host.driver.power_state(spec.uuid) == RUNNING


async def test_a_paused_guest_does_not_hear_the_power_button(host: Host) -> None:
    spec = await host.prepared()
    await host.driver.start(spec, paused=True)
    await host.driver.request_shutdown(spec.uuid)
    assert await host.driver.power_state(spec.uuid) == PAUSED
    await host.driver.power_off(spec.uuid)
    assert await host.driver.power_state(spec.uuid) == SHUTDOWN


@pytest.mark.parametrize("delay", [0, 0.005, 0.02, 0.05, 0.1])
async def test_a_start_that_is_given_up_leaves_no_guest_behind_the_undo(host: Host, delay: float) -> None:
    """What the agent's actor does when a server is deleted while it starts."""
    spec = await host.prepared()
    task = asyncio.create_task(host.driver.start(spec, paused=True))
    await asyncio.sleep(delay)
    task.cancel()
    await asyncio.wait({task})
    await host.driver.undefine(spec.uuid)
    assert await host.driver.guests() == {}
    assert qemu_processes() == set()


async def test_undefine_forgets_saved_memory_too(host: Host) -> None:
    spec = await host.running()
    await host.driver._connection.call(lambda link: link.lookupByUUIDString(spec.uuid).managedSave(0))
    saved = Path(f"/var/lib/libvirt/qemu/save/{spec.uuid}.save")
    assert saved.exists()
    await host.driver.undefine(spec.uuid)
    assert await host.driver.power_state(spec.uuid) == Power.NOSTATE
    assert not saved.exists()


async def test_two_clouds_on_one_libvirt_do_not_see_each_others_guests(host: Host, tmp_path: Path) -> None:
    async with opened(tmp_path / "other") as other:
        mine, theirs = await host.running(), await other.running(tiny_guest.DEAF)
        assert await host.driver.guests() == {mine.uuid: RUNNING}
        assert await other.driver.guests() == {theirs.uuid: RUNNING}
        host.told.clear()
        await other.driver.power_off(theirs.uuid)
        await other.is_told(theirs, SHUTDOWN)
        await host.driver.power_off(mine.uuid)
        await host.is_told(mine, SHUTDOWN)
        assert {uuid for uuid, _ in host.told} == {mine.uuid}


# ---- libvirtd ----


async def test_no_libvirtd_when_the_agent_starts(tmp_path: Path) -> None:
    host = Host(tmp_path / "instances")
    kill_libvirtd()
    try:
        with pytest.raises(Unreachable, match="Is it running"):
            await host.open()
    finally:
        start_libvirtd()
    await host.driver.close()
    host.driver = host.new_driver()

    async def opens() -> bool:
        try:
            await host.open()
        except Unreachable:
            return False
        return True

    await eventually(opens, 60)
    assert await host.driver.guests() == {}
    await host.close()


async def test_a_libvirtd_that_hangs_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "KEEPALIVE", (1, 1))
    monkeypatch.setattr(connection, "OPEN_TIMEOUT", 1.0)
    async with opened(tmp_path / "instances") as host:
        spec = await host.running()
        pid = int(LIBVIRTD_PID.read_text())
        os.kill(pid, signal.SIGSTOP)
        try:
            async with asyncio.timeout(60):
                with pytest.raises(TryAgain):
                    await host.driver.power_state(spec.uuid)
                with pytest.raises(TryAgain):
                    await host.driver.power_off(spec.uuid)
        finally:
            os.kill(pid, signal.SIGCONT)

        async def answers() -> bool:
            try:
                return await host.driver.power_state(spec.uuid) == RUNNING
            except TryAgain:
                return False

        await eventually(answers, 60)
        await host.driver.power_off(spec.uuid)
        await host.is_told(spec, SHUTDOWN)


async def test_what_happens_while_libvirtd_is_away_is_told_when_it_is_back(host: Host) -> None:
    """And without anybody asking for anything."""
    dies, lives = await host.running(), await host.running()
    host.told.clear()
    kill_libvirtd()
    kill_process(qemu_pid(dies))
    start_libvirtd()
    await host.is_told(dies, SHUTDOWN)
    assert {uuid for uuid, _ in host.told} == {dies.uuid}
    kill_process(qemu_pid(lives))
    await host.is_told(lives, SHUTDOWN)


async def test_calls_in_the_middle_of_which_libvirtd_dies_are_to_be_repeated(host: Host) -> None:
    spec = await host.running()
    os.kill(int(LIBVIRTD_PID.read_text()), signal.SIGSTOP)
    verbs = [host.driver.power_state(spec.uuid), host.driver.power_off(spec.uuid), host.driver.guests()]
    calls = [asyncio.create_task(verb) for verb in verbs]
    await asyncio.sleep(0)  # they are asked ...
    await eventually(host.driver._connection._threads._jobs.empty)  # ... and under way
    kill_libvirtd()
    for result in await asyncio.gather(*calls, return_exceptions=True):
        assert isinstance(result, TryAgain), result
    start_libvirtd()
    await eventually(lambda: host.sees({spec.uuid: RUNNING}), 60)
    await host.driver.power_off(spec.uuid)
    assert await host.driver.guests() == {spec.uuid: SHUTDOWN}


@pytest.fixture
async def held(host: Host) -> AsyncIterator[GuestSpec]:
    """A guest that libvirtd has never finished starting, as when it was killed in the middle."""
    spec = await host.prepared()
    await host.driver.start(spec, paused=True)
    pid, status = qemu_pid(spec), Path(f"/run/libvirt/qemu/{spec.uuid}.xml")
    kill_libvirtd()
    kill_process(pid)
    text = status.read_text()
    starting = text.replace("reason='user'", "reason='starting up'").replace(f"pid='{pid}'", "pid='0'")
    job = "<job type='none' async='start' phase='none' flags='0x1'/>"
    status.write_text(starting.replace("</domstatus>", f"{job}</domstatus>"))
    start_libvirtd()
    await eventually(lambda: host.sees({spec.uuid: Power.NOSTATE}), 60)
    yield spec
    kill_libvirtd()
    status.unlink()
    start_libvirtd()
    await eventually(lambda: host.sees({spec.uuid: SHUTDOWN}), 60)


async def test_a_guest_that_libvirtd_holds_is_not_taken_for_started(
    host: Host, held: GuestSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await host.driver.power_state(held.uuid) == Power.NOSTATE
    with pytest.raises(TryAgain, match="is being started"):
        await host.driver.start(held, paused=True)
    monkeypatch.setattr(domains, "STARTING_PATIENCE", 0.0)
    with pytest.raises(HostFault, match=f"remove /run/libvirt/qemu/{held.uuid}.xml"):
        await host.driver.start(held, paused=True)


# ---- the disk ----


async def test_a_disk_that_fills_up_while_an_image_comes(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_cache, "PIECE", 1 << 20)
    async with opened(small_disk / "instances") as host:
        large = host.images.add(os.urandom(8 << 20), size=0)  # nobody has said how large it is
        waiting = [host.driver.prepare(guest(large), host.images) for _ in range(3)]
        for result in await asyncio.gather(*waiting, return_exceptions=True):
            assert isinstance(result, HostFault) and "The disk of this host is full" in str(result)
        assert host.images.reads == [large.id]
        assert list((host.instances / "_base").iterdir()) == []

        known = host.images.add(os.urandom(8 << 20))
        with pytest.raises(HostFault, match=r"There is no space for image .* 8 MiB"):
            await host.driver.prepare(guest(known), host.images)
        assert host.images.reads == [large.id]

        spec = await host.running()  # what fits works
        assert await host.driver.power_state(spec.uuid) == RUNNING


async def test_a_disk_that_fills_up_while_a_guests_files_are_made(small_disk: Path) -> None:
    async with opened(small_disk / "instances") as host:
        spec = host.tiny(config_drive={"openstack/latest/user_data": os.urandom(1900 << 10)})
        with pytest.raises(HostFault, match=f"disk of this host is full: the files of guest {spec.uuid}"):
            await host.driver.prepare(spec, host.images)
        names = sorted(path.name for path in host.files(spec).iterdir())
        assert names == ["disk", "disk.base"]
        await host.driver.discard(spec.uuid)
        assert not host.files(spec).exists()
