"""A guest that is being sent is watched over: on a virtual clock, with a job that a test has made up."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kilonova.clock import SECOND
from kilonova.errors import HostFault, TryAgain
from kilonova.rpc.moves import Progress
from kilonova.testing.clock import VirtualClock
from kilonova.virt.libvirt.live_monitor import INTERVAL, Monitor, ramp, size_in_gib
from kilonova.virt.libvirt.live_options import LiveOptions

GIB = 1 << 30


class Job:
    """Implements LiveJob: goes on for ``length`` seconds; ``heard`` has what was asked of it, and when."""

    def __init__(self, clock: VirtualClock, length: float, *, begun: float = 0.0) -> None:
        self.clock = clock
        self.start = clock.now() - int(begun * SECOND)
        self.end = clock.now() + int(length * SECOND)
        self.heard: list[tuple[str, int, float]] = []
        self.phase = "running"
        self.refuses = 0
        self.looks = 0
        self.gone = False

    @property
    def elapsed(self) -> float:
        return (self.clock.now() - self.start) / SECOND

    async def look(self) -> Progress | None:
        self.looks += 1
        if self.gone:
            raise TryAgain("libvirtd is gone")
        if self.clock.now() >= self.end:
            return None
        return Progress(uuid="g", phase=self.phase, elapsed=int(self.elapsed * 1000))

    async def allow_downtime(self, milliseconds: int) -> None:
        self._hear("downtime", milliseconds)

    async def abort(self) -> None:
        self._hear("abort", 0)
        self.end = self.clock.now()

    async def force_complete(self) -> None:
        self._hear("force_complete", 0)

    def _hear(self, what: str, value: int) -> None:
        if self.refuses:
            self.refuses -= 1
            raise HostFault("not now")
        self.heard.append((what, value, self.elapsed))

    def of(self, what: str) -> list[tuple[int, float]]:
        return [(value, at) for name, value, at in self.heard if name == what]


async def watched(job: Job, gib: float = 4.0, **options: Any) -> Monitor:
    """The monitor, when the job has come to its end."""
    monitor = Monitor("g", job, LiveOptions(**options), gib, job.clock)
    await finish(job.clock, asyncio.create_task(monitor.watch(lambda: True)))
    return monitor


async def finish(clock: VirtualClock, task: asyncio.Task[None]) -> None:
    while not task.done():
        for _ in range(5):
            await asyncio.sleep(0)
        if not task.done():
            assert clock.advance_to_next()
    await task


@pytest.mark.capability("MG-LM-19")
def test_the_ramp() -> None:
    options = LiveOptions(downtime=500, downtime_steps=10, downtime_delay=75)
    steps = ramp(options, 4.0)
    assert len(steps) == 11
    assert steps[0] == (0, 50) and steps[-1] == (3000, 500)
    assert steps[1] == (300, 95)


@pytest.mark.capability("MG-LM-19")
@given(st.integers(100, 5000), st.integers(3, 50), st.integers(3, 300), st.floats(2, 4096))
def test_any_ramp_rises_to_what_is_permitted(downtime: int, steps: int, delay: int, gib: float) -> None:
    found = ramp(LiveOptions(downtime=downtime, downtime_steps=steps, downtime_delay=delay), gib)
    assert len(found) == steps + 1
    assert found == sorted(found)
    assert found[0] == (0, downtime // steps)
    assert found[-1][0] == delay * gib * steps and downtime - 1 <= found[-1][1] <= downtime


@pytest.mark.capability("MG-LM-19")
def test_size_counts_at_least_two_gib_each() -> None:
    assert size_in_gib(64, []) == 2
    assert size_in_gib(8192, [1 << 20, 20 * GIB]) == 8 + 2 + 20


@pytest.mark.capability("MG-LM-19")
async def test_the_guest_may_stop_for_longer_as_time_goes_by() -> None:
    job = Job(VirtualClock(), 1000)
    await watched(job)
    assert [value for value, _ in job.of("downtime")] == [50, 95, 140, 185]
    for number, (_, at) in enumerate(job.of("downtime")):
        assert number * 300 <= at <= number * 300 + INTERVAL


@pytest.mark.capability("MG-LM-19")
async def test_who_takes_over_goes_on_where_the_job_is() -> None:
    job = Job(VirtualClock(), 100, begun=650)
    await watched(job)
    assert [value for value, _ in job.of("downtime")] == [140]


@pytest.mark.capability("MG-LM-20")
@pytest.mark.parametrize("action", ["abort", "force_complete"])
async def test_the_limit_counts_gib_and_is_heard_once(action: str) -> None:
    job = Job(VirtualClock(), 100)
    await watched(job, completion_timeout=10, timeout_action=action)
    ((_, at),) = job.of(action)
    assert 40 < at <= 40 + 2 * INTERVAL
    assert not job.of("abort" if action == "force_complete" else "force_complete")


@pytest.mark.capability("MG-LM-20")
async def test_no_limit() -> None:
    job = Job(VirtualClock(), 5000)
    await watched(job, completion_timeout=0)
    assert not job.of("abort")


@pytest.mark.capability("MG-LM-20", "MG-LM-22")
async def test_in_post_copy_nothing_is_done_any_more() -> None:
    job = Job(VirtualClock(), 100)
    job.phase = "postcopy"
    await watched(job, completion_timeout=1)
    assert job.heard == []


@pytest.mark.capability("MG-LM-20")
async def test_what_was_refused_is_tried_again() -> None:
    job = Job(VirtualClock(), 100)
    job.refuses = 1  # the downtime
    await watched(job)
    assert [value for value, _ in job.of("downtime")] == [50]
    late = Job(VirtualClock(), 100, begun=0)
    monitor = Monitor("g", late, LiveOptions(completion_timeout=5), 4.0, late.clock)
    task = asyncio.create_task(monitor.watch(lambda: True))
    while late.elapsed < 20:
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        late.clock.advance_to_next()
    late.refuses = 1
    await finish(late.clock, task)
    assert len(late.of("abort")) == 1


@pytest.mark.capability("MG-LM-21")
async def test_an_end_that_cannot_be_forced_yet_is_forced_later() -> None:
    job = Job(VirtualClock(), 100)
    monitor = Monitor("g", job, LiveOptions(), 4.0, job.clock)
    monitor.force_complete()
    job.refuses = 3
    await finish(job.clock, asyncio.create_task(monitor.watch(lambda: True)))
    ((_, at),) = job.of("force_complete")
    assert INTERVAL < at <= 4 * INTERVAL


@pytest.mark.capability("MG-LM-18")
async def test_it_looks_twice_a_second_and_waits_for_a_job_that_has_not_begun() -> None:
    clock = VirtualClock()
    job = Job(clock, 0)  # libvirt has not begun it yet
    over = False
    monitor = Monitor("g", job, LiveOptions(), 4.0, clock)
    task = asyncio.create_task(monitor.watch(lambda: over))
    for _ in range(4):
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        clock.advance(INTERVAL)
    assert not task.done() and job.looks == 4
    job.end = clock.now() + 10 * SECOND
    over = True
    await finish(clock, task)
    assert 22 <= job.looks <= 26


async def test_libvirtd_that_is_gone_ends_the_watch() -> None:
    job = Job(VirtualClock(), 100)
    job.gone = True
    with pytest.raises(TryAgain):
        await watched(job)
