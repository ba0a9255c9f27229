"""The hands of a host: what they do once, what they end, what they say, and what they keep to themselves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kilonova.errors import Conflict, Failed, HostFault, NotFound, TryAgain, Unreachable
from kilonova.model.states import Power
from tests.unit.agent.host import Host, command, guest


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    made = Host(tmp_path)
    await made.agent.start_up()
    yield made
    await made.agent.shut_down_agent()


async def reached(host: Host, verb: str, times: int = 1) -> None:
    """Wait until the driver has begun with it so often."""
    async with asyncio.timeout(10):
        while host.driver.count(verb) < times:
            await asyncio.sleep(0)


# ---- start-up ----


@pytest.mark.capability("MG-GEN-12")
async def test_guests_outlive_the_agent_and_are_adopted(host: Host) -> None:
    await host.running("g1", "g2", "g3")
    await host.agent.shut_down(command(), "g2", timeout=0, clean=False)
    await host.agent.prepare(command(), guest("only-disks"))
    before = (await host.agent.observe("g1")).generation
    await host.agent.shut_down_agent()
    host.reports.clear()
    host.restart()
    report = await host.agent.start_up()
    assert report.host == "h1" and report.inventories["VCPU"].total == 8
    assert host.reported == []  # whether the host was booted is to be known first
    await host.agent.tell_of_guests()
    assert sorted(host.reported) == [("g1", Power.RUNNING), ("g2", Power.SHUTDOWN), ("g3", Power.RUNNING)]
    assert all(each.generation > before for each in host.reports)
    assert (await host.agent.observe("only-disks")).power_state == Power.NOSTATE
    assert (await host.agent.observe("nobody")).power_state == Power.NOSTATE


# ---- graceful shutdown ----


@pytest.mark.capability("MG-PWR-1")
async def test_a_guest_that_hears_the_button_goes_off_at_once(host: Host) -> None:
    await host.running("g1")
    seen = await host.agent.shut_down(command(), "g1", timeout=60, clean=True)
    assert seen.power_state == Power.SHUTDOWN
    assert host.driver.verbs == [("request_shutdown", 0), ("power_off", 0)]


@pytest.mark.capability("MG-PWR-1")
async def test_a_deaf_guest_is_asked_again_and_then_turned_off(host: Host) -> None:
    await host.running("g1")
    host.driver.ignores_shutdown.add("g1")
    seen = await host.finish(host.agent.shut_down(command(), "g1", timeout=35, clean=True))
    assert seen.power_state == Power.SHUTDOWN
    assert host.driver.verbs == [
        ("request_shutdown", 0),
        ("request_shutdown", 10),
        ("request_shutdown", 20),
        ("request_shutdown", 30),
        ("power_off", 35),
    ]


async def test_a_guest_that_takes_its_time_is_not_cut_off(host: Host) -> None:
    await host.running("g1")
    host.driver.ignores_shutdown.add("g1")
    stopping = asyncio.create_task(host.agent.shut_down(command(), "g1", timeout=60, clean=True))
    await reached(host, "request_shutdown")
    host.clock.advance(4)
    assert not stopping.done()
    host.driver.turn_off("g1")
    assert (await stopping).power_state == Power.SHUTDOWN
    assert [verb for verb in host.driver.verbs if verb[0] == "request_shutdown"] == [("request_shutdown", 0)]
    assert host.reports == []  # it was our own doing


@pytest.mark.capability("MG-PWR-1")
@pytest.mark.parametrize(("timeout", "clean"), [(60.0, False), (0.0, True)])
async def test_without_time_it_is_turned_off_at_once(host: Host, timeout: float, clean: bool) -> None:
    await host.running("g1")
    await host.agent.shut_down(command(), "g1", timeout=timeout, clean=clean)
    assert host.driver.verbs == [("power_off", 0)]
    await host.agent.shut_down(command(), "g1", timeout=60, clean=True)  # it is off: nobody is asked
    assert host.driver.count("request_shutdown") == 0
    assert (await host.agent.shut_down(command(), "nobody", timeout=60, clean=True)).power_state == 0


async def test_a_shutdown_is_ended_by_a_removal(host: Host) -> None:
    await host.running("g1")
    host.driver.ignores_shutdown.add("g1")
    stopping = asyncio.create_task(host.agent.shut_down(command(), "g1", timeout=3600, clean=True))
    await reached(host, "request_shutdown")
    await host.agent.destroy(command(), "g1")
    with pytest.raises(TryAgain):
        await stopping
    assert (await host.agent.observe("g1")).power_state == Power.NOSTATE


# ---- reboot ----


async def starts(host: Host, uuid: str = "g1") -> int:
    return host.driver.guest_file.starts(uuid)[0]


async def test_a_reboot_is_done_once_for_each_command(host: Host) -> None:
    await host.running("g1")
    first = await host.agent.reboot(command("7.1.reboot"), guest(), hard=True, timeout=1)
    again = await host.agent.reboot(command("7.1.reboot"), guest(), hard=True, timeout=1)
    assert first == again and first.power_state == Power.RUNNING
    assert await starts(host) == 2
    await host.agent.shut_down_agent()
    host.restart()  # it dies before the controller has heard of it
    await host.agent.start_up()
    assert await host.agent.reboot(command("7.1.reboot"), guest(), hard=True, timeout=1) == first
    assert await starts(host) == 2
    await host.agent.reboot(command("8.1.reboot"), guest(), hard=True, timeout=1)
    assert await starts(host) == 3


async def test_a_reboot_that_failed_is_done_again(host: Host) -> None:
    await host.running("g1")
    host.driver.faults.add("start", HostFault("no memory"))
    with pytest.raises(HostFault):
        await host.agent.reboot(command("7"), guest(), hard=True, timeout=1)
    seen = await host.agent.reboot(command("7"), guest(), hard=True, timeout=1)
    assert (seen.power_state, await starts(host)) == (Power.RUNNING, 2)


@pytest.mark.capability("UT-8")
async def test_a_soft_reboot_is_a_hard_one_when_the_guest_cannot_or_will_not(host: Host) -> None:
    await host.running("g1")
    await host.agent.reboot(command("1"), guest(), hard=False, timeout=1)
    assert [verb for verb, _ in host.driver.verbs] == ["request_reboot"]
    host.driver.ignores_shutdown.add("g1")
    await host.agent.reboot(command("2"), guest(), hard=False, timeout=1)
    assert [verb for verb, _ in host.driver.verbs[1:]] == ["request_reboot", "power_off", "start"]
    await host.agent.shut_down(command(), "g1", timeout=0, clean=False)
    host.driver.verbs.clear()
    seen = await host.agent.reboot(command("3"), guest(), hard=False, timeout=1)
    assert [verb for verb, _ in host.driver.verbs] == ["power_off", "start"]
    assert seen.power_state == Power.RUNNING
    assert host.plugger.log == ["+port-g1", "+port-g1"]  # with each hard one its ports are plugged anew


# ---- what is reported ----


async def test_a_change_by_itself_is_reported(host: Host) -> None:
    await host.running("g1", "g2")
    host.driver.turn_off("g1")
    await host.quiet()
    assert host.reported == [("g1", Power.SHUTDOWN)]
    known = host.reports[0].generation
    assert (await host.agent.observe("g1")).generation > known


@pytest.mark.capability("MG-LCE-2")
async def test_what_is_reported_is_what_is_so_now(host: Host) -> None:
    await host.running("g1")
    host.driver.turn_off("g1")
    host.driver.guest_file.put("g1", Power.RUNNING)  # it has been started again meanwhile
    await host.quiet()
    assert host.reported == [("g1", Power.RUNNING)]


async def test_own_doings_are_not_reported(host: Host) -> None:
    await host.running("g1")
    await host.agent.reboot(command(), guest(), hard=True, timeout=1)
    await host.agent.shut_down(command(), "g1", timeout=60, clean=True)
    await host.agent.start(command(), guest(), paused=True)
    await host.agent.resume(command(), "g1")
    await host.agent.destroy(command(), "g1")
    await host.quiet()
    assert host.reports == []


async def test_what_happens_at_the_very_end_of_a_verb_is_not_lost(host: Host) -> None:
    await host.running("g1")
    host.driver.dies_after_looks = 1
    seen = await host.agent.resume(command(), "g1")
    await host.quiet()
    assert seen.power_state == Power.RUNNING
    assert host.reported == [("g1", Power.SHUTDOWN)]
    assert host.reports[0].generation > seen.generation


async def test_what_happens_in_a_verb_that_fails_is_not_lost(host: Host) -> None:
    await host.running("g1")
    host.driver.faults.hold("resume")
    host.driver.faults.add("resume", Failed("stuck"))
    resuming = asyncio.create_task(host.agent.resume(command(), "g1"))
    await reached(host, "resume")
    host.driver.turn_off("g1")
    assert host.reports == []
    host.driver.faults.release("resume")
    with pytest.raises(Failed):
        await resuming
    await host.quiet()
    assert host.reported == [("g1", Power.SHUTDOWN)]


async def test_a_verb_stays_quiet_though_another_ends_within_it(host: Host) -> None:
    await host.running("g1")
    host.driver.faults.hold("resume")
    resuming = asyncio.create_task(host.agent.resume(command(), "g1"))
    await reached(host, "resume")
    host.driver.faults.hold("undefine")
    ending = asyncio.create_task(host.agent.destroy(command(), "g1"))
    with pytest.raises(TryAgain):
        await resuming
    host.driver.turn_off("g1")
    host.driver.faults.release("undefine")
    await ending
    await host.quiet()
    assert host.reports == []


@pytest.mark.capability("MG-LCE-4")
async def test_a_guest_that_goes_off_and_on_again_was_not_stopped(host: Host) -> None:
    host.driver.stopped_delay = 15.0
    await host.running("g1", "g2")
    for uuid in ("g1", "g2"):
        host.driver.turn_off(uuid)
    await host.later(14.9)
    assert host.reported == []
    host.driver.turn_on("g1")
    await host.quiet()
    assert host.reported == [("g1", Power.RUNNING)]
    await host.later(0.2)
    assert host.reported == [("g1", Power.RUNNING), ("g2", Power.SHUTDOWN)]
    await host.later(60)
    assert len(host.reported) == 2


@pytest.mark.capability("MG-LCE-4")
async def test_each_stop_is_waited_for_anew_and_a_crash_is_not(host: Host) -> None:
    host.driver.stopped_delay = 15.0
    await host.running("g1", "g2")
    host.driver.turn_off("g1")
    await host.later(10)
    host.driver.turn_on("g1")
    host.driver.turn_off("g1")
    host.driver.guest_file.put("g2", Power.CRASHED)
    assert host.driver._event is not None
    host.driver._event("g2", Power.CRASHED)
    await host.later(10)
    assert host.reported == [("g2", Power.CRASHED)]
    await host.later(5.1)
    assert host.reported == [("g2", Power.CRASHED), ("g1", Power.SHUTDOWN)]


async def test_who_waits_for_a_guest_to_go_off_hears_it_at_once(host: Host) -> None:
    host.driver.stopped_delay = 15.0
    await host.running("g1")
    seen = await host.agent.shut_down(command(), "g1", timeout=60, clean=True)
    assert seen.power_state == Power.SHUTDOWN
    assert host.driver.verbs == [("request_shutdown", 0), ("power_off", 0)]
    await host.quiet()
    assert host.reports == []


async def test_what_goes_off_while_the_agent_ends_is_seen_at_its_next_start(host: Host) -> None:
    host.driver.stopped_delay = 15.0
    await host.running("g1")
    host.driver.turn_off("g1")
    await host.agent.shut_down_agent()
    await host.later(60)
    assert host.reported == []
    host.restart()
    await host.agent.start_up()
    await host.agent.tell_of_guests()
    assert host.reported == [("g1", Power.SHUTDOWN)]


@pytest.mark.capability("MG-LCE-5")
async def test_without_events_what_guests_do_is_found_by_looking(host: Host) -> None:
    await host.agent.shut_down_agent()
    host.hears_events = False
    host.restart()
    await host.agent.start_up()
    host.driver.stopped_delay = 15.0
    await host.running("g1")
    host.driver.turn_off("g1")
    await host.later(60)
    assert host.reported == []
    seen, _ = await host.agent.survey()
    assert [(each.uuid, each.power_state) for each in seen] == [("g1", Power.SHUTDOWN)]


async def test_a_report_that_fails_hurts_nobody(host: Host) -> None:
    await host.running("g1")
    host.refuses_reports = True
    host.driver.turn_off("g1")
    await host.quiet()
    host.refuses_reports = False
    await host.running("g1")
    host.driver.turn_off("g1")
    await host.quiet()
    assert host.reported == [("g1", Power.SHUTDOWN)]


# ---- faults and limits ----


async def test_a_removal_ends_a_build(host: Host) -> None:
    host.driver.faults.hold("prepare")
    building = asyncio.create_task(host.agent.prepare(command(), guest()))
    await reached(host, "prepare")
    await host.agent.discard(command(), "g1")
    with pytest.raises(TryAgain):
        await building
    assert host.driver.guest_file.state("g1") is None


async def test_so_many_builds_at_a_time(tmp_path: Path) -> None:
    for limit, begun in ((2, 2), (0, 5)):  # 0: as many as come
        directory = tmp_path / str(limit)
        directory.mkdir()
        host = Host(directory, builds=limit)
        await host.agent.start_up()
        host.driver.faults.hold("prepare")
        tasks = [asyncio.create_task(host.agent.prepare(command(), guest(f"g{n}"))) for n in range(5)]
        await reached(host, "prepare", begun)
        for _ in range(20):
            await asyncio.sleep(0)
        assert host.driver.count("prepare") == begun
        if limit:
            await host.agent.discard(command(), "g4")  # one that waits for its turn is ended as well
            with pytest.raises(TryAgain):
                await tasks.pop()
        host.driver.faults.release("prepare")
        await asyncio.gather(*tasks)
        await host.agent.shut_down_agent()


@pytest.mark.capability("MG-PWR-10")
async def test_guests_that_are_not_there(host: Host) -> None:
    with pytest.raises(HostFault, match="There is no guest"):
        await host.agent.resume(command(), "g1")
    with pytest.raises(HostFault, match="not on this host"):
        await host.agent.start(command(), guest(), paused=False)
    with pytest.raises(NotFound):
        await host.agent.console_output("g1")
    with pytest.raises(Conflict, match="power state 0"):
        await host.agent.diagnostics("g1")
    for gone in (host.agent.destroy, host.agent.discard):
        await gone(command(), "g1")
    await host.agent.unplug(command(), "g1", guest().vifs)
    assert host.plugger.log == ["-port-g1"]


async def test_a_fault_that_nobody_foresaw_is_the_hosts(host: Host) -> None:
    host.driver.faults.add("prepare", KeyError("of the driver"))
    with pytest.raises(HostFault, match="Unexpected fault on this host: KeyError"):
        await host.agent.prepare(command(), guest())
    for error in (Failed("no"), TryAgain("later"), Unreachable("nobody")):  # these say what they mean
        host.driver.faults.add("prepare", error)
        with pytest.raises(type(error)):
            await host.agent.prepare(command(), guest())


async def test_what_a_guest_said_and_counts(host: Host) -> None:
    await host.running("g1")
    assert (await host.agent.console_output("g1")).startswith(b"fake guest g1\nstarted 1 times")
    host.clock.advance(90)
    found = await host.agent.diagnostics("g1")
    assert (found.state, found.uptime, found.memory_maximum) == ("running", 90, 64)
    assert [nic.mac_address for nic in found.nics] == ["fa:16:3e:00:00:01"]
