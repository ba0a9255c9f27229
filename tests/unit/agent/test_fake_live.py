"""Guests of the fake hypervisor that move while they run: by the clock, through agents' ends, never twice."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from msgspec.structs import replace

from kilonova.errors import HostFault
from kilonova.model.host import Inventory
from kilonova.model.migration import Wish
from kilonova.model.states import Power
from kilonova.rpc.moves import LivePlan, LiveWish, Presence
from kilonova.testing.clock import VirtualClock, until
from kilonova.virt.fake.driver import FakeDriver
from kilonova.virt.fake.live import MIB, Fabric
from tests.unit.agent.host import NoImages, guest, volume

WISH = LiveWish()


class Two:
    """Two hypervisors of one process, or (``apart``) of two; the guest runs on the first."""

    def __init__(self, path: Path, *, apart: bool = False) -> None:
        self.path, self.apart = path, apart
        self.clock = VirtualClock()
        self.fabric = Fabric()

    async def driver(self, name: str) -> FakeDriver:
        directory = self.path / name
        directory.mkdir(exist_ok=True)
        made = FakeDriver(name, f"node-{name}", directory, self.clock, {"VCPU": Inventory(total=3)})
        if not self.apart:
            made.fabric = self.fabric
        await made.open(lambda uuid, state: None)
        return made

    async def open(self) -> LivePlan:
        self.one, self.two = await self.driver("h1"), await self.driver("h2")
        await self.one.prepare(guest(), NoImages())
        await self.one.start(guest(), paused=False)
        facts = await self.two.check_arrival(guest(), WISH)
        plan = await self.one.check_departure(guest(), WISH, facts)
        return await self.two.receive_live(guest(), plan, NoImages())

    async def where(self) -> tuple[str, str]:
        return (await self.one.locate("g1")).presence, (await self.two.locate("g1")).presence

    async def close(self) -> None:
        await self.one.close()
        await self.two.close()


@pytest.mark.parametrize("apart", [False, True])
async def test_a_guest_goes_over(tmp_path: Path, apart: bool) -> None:
    hosts = Two(tmp_path, apart=apart)
    plan = await hosts.open()
    assert (plan.destination, plan.block, plan.shared_path) == ("h2", True, False)
    assert await hosts.where() == (Presence.RUNNING, Presence.INCOMING)
    outcome = await hosts.one.send_live(guest(), plan)
    assert outcome.state == "completed"
    assert await hosts.where() == (Presence.LEFT, Presence.INCOMING if apart else Presence.RUNNING)
    assert await hosts.one.guests() == {}
    assert await hosts.one.send_live(guest(), plan) == outcome.__class__(state="completed")
    await hosts.two.settle_live(guest())
    await hosts.two.settle_live(guest())
    assert await hosts.two.guests() == {"g1": Power.RUNNING}
    await hosts.one.leave_live("g1", plan)
    await hosts.one.leave_live("g1", plan)
    assert await hosts.where() == (Presence.ABSENT, Presence.RUNNING)
    assert hosts.one.guest_file.everything() == {}
    await hosts.close()


async def test_it_takes_the_time_that_its_rate_says(tmp_path: Path) -> None:
    hosts = Two(tmp_path)
    plan = await hosts.open()
    total = plan.memory_mb * MIB + plan.disk_bytes
    hosts.one.live.rate, hosts.one.live.dirty_rate = total / 10, total / 20
    sending = asyncio.create_task(hosts.one.send_live(guest(), plan))
    await until(lambda: "g1" in hosts.one.live._rows, hosts.clock, step=0.0)
    start = hosts.clock.now()
    hosts.clock.advance(10.0)
    seen = await hosts.one.live_progress("g1")
    assert (seen.phase, seen.memory_total, seen.memory_processed) == ("running", total, total // 2)
    assert (seen.memory_remaining, seen.percent, seen.elapsed) == (total - total // 2, 50, 10_000)
    assert await hosts.where() == (Presence.LEAVING, Presence.INCOMING)
    await until(sending.done, hosts.clock)
    assert 20.0 <= (hosts.clock.now() - start) / 1e6 < 22.0
    assert (await hosts.one.live_progress("g1")).phase == "none"
    await hosts.close()


@pytest.mark.parametrize("apart", [False, True])
async def test_an_agent_that_ends_changes_nothing(tmp_path: Path, apart: bool) -> None:
    hosts = Two(tmp_path, apart=apart)
    plan = await hosts.open()
    hosts.one.live.rate = (plan.memory_mb * MIB + plan.disk_bytes) / 100
    sending = asyncio.create_task(hosts.one.send_live(guest(), plan))
    await until(lambda: "g1" in hosts.one.live._rows, hosts.clock, step=0.0)
    sending.cancel()
    await asyncio.gather(sending, return_exceptions=True)
    assert (await hosts.one.locate("g1")).presence == Presence.LEAVING
    await hosts.one.close()
    await hosts.two.close()
    hosts.clock.advance(50.0)
    hosts.one, hosts.two = await hosts.driver("h1"), await hosts.driver("h2")
    assert await hosts.where() == (Presence.LEAVING, Presence.INCOMING)
    assert (await hosts.one.live_progress("g1")).percent == 50
    sending = asyncio.create_task(hosts.one.send_live(guest(), plan))
    await until(sending.done, hosts.clock)
    assert (await sending).state == "completed"
    assert await hosts.where() == (Presence.LEFT, Presence.INCOMING if apart else Presence.RUNNING)
    await hosts.close()


async def test_it_is_aborted_and_may_go_later(tmp_path: Path) -> None:
    hosts = Two(tmp_path)
    plan = await hosts.open()
    assert await hosts.one.steer_live("g1", Wish.ABORT) is False  # nothing is sent
    hosts.one.live.rate = 1.0
    sending = asyncio.create_task(hosts.one.send_live(guest(), plan))
    await until(lambda: "g1" in hosts.one.live._rows, hosts.clock, step=0.0)
    assert await hosts.one.steer_live("g1", Wish.ABORT) is True
    assert (await sending).state == "cancelled"
    assert await hosts.one.steer_live("g1", Wish.ABORT) is False
    assert await hosts.where() == (Presence.RUNNING, Presence.INCOMING)
    hosts.one.live.rate = 0.0
    assert (await hosts.one.send_live(guest(), plan)).state == "completed"
    await hosts.close()


async def test_a_guest_never_leaves_for_a_host_that_does_not_await_it(tmp_path: Path) -> None:
    hosts = Two(tmp_path)
    plan = await hosts.open()
    await hosts.two.undefine("g1")
    await hosts.two.discard("g1")
    outcome = await hosts.one.send_live(guest(), plan)
    assert outcome.state == "failed" and "does not await" in outcome.reason
    assert await hosts.where() == (Presence.RUNNING, Presence.ABSENT)
    with pytest.raises(HostFault, match="has not come"):
        await hosts.two.settle_live(guest())
    with pytest.raises(HostFault, match="has not left"):
        await hosts.one.leave_live("g1", plan)
    assert await hosts.one.guests() == {"g1": Power.RUNNING}
    await hosts.close()


async def test_a_guest_that_goes_off_or_is_ended_is_not_sent(tmp_path: Path) -> None:
    hosts = Two(tmp_path)
    plan = await hosts.open()
    hosts.one.live.rate = 1.0
    sending = asyncio.create_task(hosts.one.send_live(guest(), plan))
    await until(lambda: "g1" in hosts.one.live._rows, hosts.clock, step=0.0)
    hosts.one.turn_off("g1")
    await until(sending.done, hosts.clock)
    assert (await sending).state == "failed"
    assert await hosts.where() == (Presence.OFF, Presence.INCOMING)
    assert (await hosts.one.send_live(guest(), plan)).state == "failed"
    await hosts.one.undefine("g1")
    await hosts.one.discard("g1")
    assert (await hosts.one.send_live(guest(), plan)).state == "gone"
    await hosts.close()


async def test_a_destination_takes_nothing_where_there_are_files(tmp_path: Path) -> None:
    hosts = Two(tmp_path)
    plan = await hosts.open()
    await hosts.two.receive_live(guest(), plan, NoImages())  # its own: a repeat
    with pytest.raises(HostFault, match="files of the guest g1"):
        await hosts.one.receive_live(guest(), plan, NoImages())
    await hosts.close()


@pytest.mark.parametrize("moment", ["on the way", "when it has left"])
async def test_a_host_that_loses_its_power_has_an_off_guest(tmp_path: Path, moment: str) -> None:
    hosts = Two(tmp_path)
    plan = await hosts.open()
    hosts.one.live.rate = 1.0 if moment == "on the way" else 0.0
    sending = asyncio.create_task(hosts.one.send_live(guest(), plan))
    await until(lambda: "g1" in hosts.one.live._rows, hosts.clock, step=0.0)
    hosts.one.live.power_cut()
    there = Presence.INCOMING if moment == "on the way" else Presence.RUNNING
    assert await hosts.where() == (Presence.OFF, there)
    sending.cancel()
    await asyncio.gather(sending, return_exceptions=True)
    await hosts.close()


async def test_post_copy_runs_at_both_ends_until_all_is_there(tmp_path: Path) -> None:
    hosts = Two(tmp_path)
    plan = await hosts.open()
    hosts.one.live.permit_post_copy = True
    hosts.one.live.rate = (plan.memory_mb * MIB + plan.disk_bytes) / 20
    sending = asyncio.create_task(hosts.one.send_live(guest(), plan))
    await until(lambda: "g1" in hosts.one.live._rows, hosts.clock, step=0.0)
    assert await hosts.one.steer_live("g1", Wish.FORCE_COMPLETE) is True
    assert (await hosts.one.live_progress("g1")).phase == "postcopy"
    assert (await hosts.one.locate("g1")).presence == Presence.POSTCOPY
    assert await hosts.one.steer_live("g1", Wish.ABORT) is False
    await until(sending.done, hosts.clock)
    assert (await sending).state == "completed"
    await hosts.close()


async def test_its_volumes_are_those_of_the_destination_when_it_has_gone(tmp_path: Path) -> None:
    hosts = Two(tmp_path)
    before, after = volume(1), replace(volume(1), attachment_id="new")
    here, there = (replace(guest(), volumes=(each,)) for each in (before, after))
    hosts.one, hosts.two = await hosts.driver("h1"), await hosts.driver("h2")
    await hosts.one.prepare(here, NoImages())
    await hosts.one.start(here, paused=False)
    facts = await hosts.two.check_arrival(there, WISH)
    plan = await hosts.one.check_departure(here, WISH, facts)
    hosts.two.unreachable.add("v1")
    with pytest.raises(HostFault, match="Volume v1"):
        await hosts.two.receive_live(there, plan, NoImages())
    hosts.two.unreachable.clear()
    plan = await hosts.two.receive_live(there, plan, NoImages())
    assert hosts.one.guest_file.volumes("g1") == (before,)
    await hosts.one.send_live(here, plan)
    assert hosts.one.guest_file.volumes("g1") == ()  # what it leaves is a shell
    assert hosts.two.guest_file.volumes("g1") == (after,)
    await hosts.two.settle_live(there)
    await hosts.one.leave_live("g1", plan)
    assert hosts.two.guest_file.volumes("g1") == (after,)
    await hosts.close()
