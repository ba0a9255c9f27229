"""What a monitor is."""

from __future__ import annotations

from typing import Protocol

import msgspec

from kilonova.clock import Clock
from kilonova.model.host import Metric
from kilonova.virt.driver import Driver

CPU_METRICS = (
    "cpu.frequency",
    "cpu.user.time",
    "cpu.kernel.time",
    "cpu.idle.time",
    "cpu.iowait.time",
    "cpu.user.percent",
    "cpu.kernel.percent",
    "cpu.idle.percent",
    "cpu.iowait.percent",
    "cpu.percent",
)
"""What monitors of the type ``cpu`` offer: MHz, nanoseconds, and whole per cent of all processors."""


class MonitoredHost(msgspec.Struct, frozen=True):
    """All that a monitor gets to see."""

    driver: Driver
    clock: Clock


class Monitor(Protocol):
    """Made with a MonitoredHost as its only argument."""

    def metric_names(self) -> frozenset[str]:
        """The metrics that it offers."""

    async def add_metrics(self, metrics: list[Metric]) -> None:
        """Add all of them as they are now; figures that belong together come from one look.

        Raises HostFault when they cannot be had; then nothing was added.
        """
