"""The fake hypervisor: what can be set on it, and that its guests are no less real than its process."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from msgspec.structs import replace

from kilonova.errors import HostFault, NotFound, TryAgain
from kilonova.model.host import Inventory
from kilonova.model.states import Power
from kilonova.rpc.moves import LiveWish
from kilonova.testing.clock import VirtualClock
from kilonova.virt.fake.driver import FakeDriver
from tests.unit.agent.host import NoImages, guest, volume


async def opened(path: Path, clock: VirtualClock, **more: float) -> tuple[FakeDriver, list[tuple[str, int]]]:
    driver = FakeDriver("h1", "node-1", path, clock, {"VCPU": Inventory(total=3)}, **more)
    events: list[tuple[str, int]] = []
    await driver.open(lambda uuid, state: events.append((uuid, state)))
    return driver, events


async def test_it_has_what_it_was_given(tmp_path: Path) -> None:
    driver, _ = await opened(tmp_path, VirtualClock())
    report = await driver.report()
    assert (report.host, report.compute_id, report.hypervisor_type) == ("h1", "node-1", "fake")
    assert report.inventories == {"VCPU": Inventory(total=3)}
    await driver.close()


async def test_a_guest_from_its_disks_to_its_end(tmp_path: Path) -> None:
    clock = VirtualClock()
    driver, events = await opened(tmp_path, clock)
    with pytest.raises(HostFault, match="disks"):
        await driver.start(guest(), paused=True)
    await driver.prepare(guest(), NoImages())
    assert await driver.guests() == {} and await driver.power_state("g1") == Power.NOSTATE
    await driver.start(guest(), paused=True)
    assert await driver.power_state("g1") == Power.PAUSED
    await driver.resume("g1")
    assert await driver.guests() == {"g1": Power.RUNNING}
    await driver.start(guest(), paused=False)  # it runs: nothing happens
    assert driver.guest_file.starts("g1")[0] == 1
    clock.advance(60)
    assert await driver.request_reboot("g1") is True
    assert driver.guest_file.starts("g1") == (2, clock.now())
    await driver.request_shutdown("g1")
    assert events == [("g1", Power.SHUTDOWN)]
    await driver.power_off("g1")  # it is off
    assert events == [("g1", Power.SHUTDOWN)]
    await driver.undefine("g1")
    assert driver.guest_file.everything() != {} and await driver.guests() == {}
    await driver.discard("g1")
    assert driver.guest_file.everything() == {}
    for verb in (driver.resume, driver.request_reboot, driver.diagnostics):
        with pytest.raises(NotFound):
            await verb("g1")
    await driver.close()


async def test_guests_are_there_when_it_comes_again(tmp_path: Path) -> None:
    clock = VirtualClock()
    driver, _ = await opened(tmp_path, clock)
    for uuid in ("g1", "g2"):
        await driver.prepare(guest(uuid), NoImages())
        await driver.start(guest(uuid), paused=False)
    await driver.power_off("g2")
    driver, _ = await opened(tmp_path, clock)  # the other one was not closed: it was killed
    assert await driver.guests() == {"g1": Power.RUNNING, "g2": Power.SHUTDOWN}
    assert (await driver.console_output("g1", 1000)).startswith(b"fake guest g1\nstarted 1 times")
    assert await driver.console_output("g1", 7) == b"login: "


async def test_faults_delays_and_gates(tmp_path: Path) -> None:
    clock = VirtualClock()
    driver, _ = await opened(tmp_path, clock, delay=2.0)
    preparing = asyncio.create_task(driver.prepare(guest(), NoImages()))
    await asyncio.sleep(0)
    clock.advance(1.9)
    await asyncio.sleep(0)
    assert not preparing.done()
    clock.advance(0.1)
    await preparing
    driver.delay = 0.0
    driver.faults.add("start", TryAgain("busy"), times=2)
    driver.faults.add("start", HostFault("broken"))
    for error in (TryAgain, TryAgain, HostFault):
        with pytest.raises(error):
            await driver.start(guest(), paused=False)
    await driver.start(guest(), paused=False)
    assert driver.faults.left("start") == 0
    driver.faults.hold("resume")
    resuming = asyncio.create_task(driver.resume("g1"))
    await asyncio.sleep(0)
    assert not resuming.done()
    driver.faults.release("resume")
    await resuming
    driver.faults.add("resume", TryAgain("busy"), times=9)
    driver.faults.mend("resume")
    await driver.resume("g1")
    await driver.close()


async def test_hosts_that_move_guests_at_the_same_time_do_not_take_each_other_s_probe_for_their_own(
    tmp_path: Path,
) -> None:
    """They would adopt files that never came."""
    paths = [tmp_path / name for name in ("one", "other")]
    for path in paths:
        path.mkdir()
    one, other = [(await opened(path, VirtualClock()))[0] for path in paths]
    probe = await one.put_probe()
    await other.put_probe()
    assert await one.see_probe(probe)
    assert not await other.see_probe(probe)
    await one.remove_probe(probe)
    assert not await one.see_probe(probe)
    await one.close()
    await other.close()


async def test_its_guests_have_their_volumes_until_they_let_go(tmp_path: Path) -> None:
    one, two = volume(1), volume(2)
    driver, _ = await opened(tmp_path, VirtualClock())
    await driver.prepare(guest(), NoImages())
    await driver.start(replace(guest(), volumes=(one,)), paused=False)
    await driver.attach_volume(guest(), two)
    await driver.attach_volume(guest(), replace(two, attachment_id="another"))  # it has it already
    assert driver.guest_file.volumes("g1") == (one, two)
    await driver.detach_volume(guest(), one)
    await driver.close()
    driver, _ = await opened(tmp_path, VirtualClock())  # they outlive the process
    assert driver.guest_file.volumes("g1") == (two,)
    driver.guest_file.lose_power()
    assert driver.guest_file.volumes("g1") == (two,)
    await driver.undefine("g1")
    assert driver.guest_file.volumes("g1") == ()
    await driver.start(replace(guest(), volumes=(one, two)), paused=False)
    await driver.discard("g1")
    assert driver.guest_file.volumes("g1") == ()
    await driver.close()
    driver, _ = await opened(tmp_path, VirtualClock())
    assert driver.guest_file.volumes("g1") == ()
    await driver.close()


@pytest.mark.parametrize("hidden", ["v1", "/volumes/v1"])
async def test_a_volume_may_be_out_of_its_reach(tmp_path: Path, hidden: str) -> None:
    driver, _ = await opened(tmp_path, VirtualClock())
    spec = replace(guest(), volumes=(volume(2), volume(1)))
    driver.unreachable.add(hidden)
    for verb in (
        driver.check_room(spec),
        driver.prepare(spec, NoImages()),
        driver.begin_receiving(spec),
        driver.adopt_parked(spec),
        driver.check_arrival(spec, LiveWish()),
        driver.check_volumes(spec.volumes),
        driver.attach_volume(spec, volume(1)),
    ):
        with pytest.raises(HostFault, match=r"Volume v1 .* there is no /volumes/v1"):
            await verb
    assert driver.guest_file.everything() == {}
    driver.unreachable.clear()
    await driver.check_volumes(spec.volumes)
    await driver.close()
