"""Watching over a guest that is being sent: it may stop ever longer, and not for ever.

The job itself says for how long it has been going on, so whoever takes over goes on where another was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

import structlog

from kilonova.clock import SECOND, Clock
from kilonova.errors import HostFault
from kilonova.rpc.moves import Progress
from kilonova.virt.libvirt.live_options import LiveOptions

log = structlog.get_logger("kilonova.virt")

INTERVAL = 0.5  # seconds between looks
SAY = 30  # seconds between lines in the log
LEAST_GIB = 2
GIB = 1 << 30


class LiveJob(Protocol):
    """What can be done with a guest that is being sent.  All raise HostFault, and TryAgain."""

    async def look(self) -> Progress | None:
        """None: nothing is being sent."""

    async def allow_downtime(self, milliseconds: int) -> None: ...
    async def abort(self) -> None: ...

    async def force_complete(self) -> None:
        """By post-copy if that is permitted, else by pausing the guest."""


def size_in_gib(memory_mb: int, disks: Iterable[int]) -> float:
    """By which delays and limits are multiplied: the memory and each disk that is sent (bytes), with at
    least 2 each (MG-LM-19)."""
    return max(LEAST_GIB, memory_mb / 1024) + sum(max(LEAST_GIB, disk / GIB) for disk in disks)


def ramp(options: LiveOptions, gib: float) -> list[tuple[float, int]]:
    """After how many seconds the guest may be stopped for how many milliseconds."""
    steps = options.downtime_steps
    first = options.downtime / steps
    rise = (options.downtime - first) / steps
    return [(options.downtime_delay * gib * i, int(first + rise * i)) for i in range(steps + 1)]


class Monitor:
    def __init__(self, uuid: str, job: LiveJob, options: LiveOptions, gib: float, clock: Clock) -> None:
        self._uuid = uuid
        self._job = job
        self._options = options
        self._ramp = ramp(options, gib)
        self._limit = options.completion_timeout * gib * 1000  # milliseconds
        self._clock = clock
        self._allowed = 0
        self._timed_out = False
        self._end_wanted = False
        self._said_at = 0

    def force_complete(self) -> None:
        """As soon as QEMU lets it: not before it has begun, for one thing."""
        self._end_wanted = True

    async def watch(self, is_over: Callable[[], bool]) -> None:
        """Until nothing is sent any more and ``is_over``.  Raises TryAgain when libvirtd is gone."""
        while True:
            seen = await self._job.look()
            if seen is not None:
                await self._steer(seen)
            elif is_over():
                return
            await self._clock.sleep(INTERVAL)

    async def _steer(self, seen: Progress) -> None:
        self._say(seen)
        if seen.phase == "postcopy":  # it comes to its end, and cannot be called back
            return
        elapsed = seen.elapsed or 0
        allowed = [downtime for at, downtime in self._ramp if elapsed >= at * 1000][-1]
        try:
            if allowed != self._allowed:
                await self._job.allow_downtime(allowed)
                self._allowed = allowed
            if self._end_wanted:
                await self._job.force_complete()
                self._end_wanted = False
            if self._limit and elapsed > self._limit and not self._timed_out:
                await self._run_out(elapsed)
                self._timed_out = True
        except HostFault as error:  # it has ended just now, or the next look tries again
            log.warning("a guest that is being sent was not steered", instance=self._uuid, error=str(error))

    async def _run_out(self, elapsed: int) -> None:
        action = self._options.timeout_action
        log.warning("a live migration takes too long", instance=self._uuid, ms=elapsed, action=action)
        await (self._job.abort() if action == "abort" else self._job.force_complete())

    def _say(self, seen: Progress) -> None:
        if self._clock.now() - self._said_at < SAY * SECOND:
            return
        self._said_at = self._clock.now()
        log.info(
            "a guest is being sent",
            instance=self._uuid,
            percent=seen.percent,
            memory_remaining=seen.memory_remaining,
            disk_remaining=seen.disk_remaining,
            elapsed_ms=seen.elapsed,
        )
