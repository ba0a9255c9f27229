"""The CPU monitor: ten metrics out of the hypervisor's counters."""

from __future__ import annotations

from collections.abc import Mapping

from kilonova.agent.monitors.contract import CPU_METRICS, MonitoredHost
from kilonova.errors import HostFault
from kilonova.model.host import Metric

KINDS = ("user", "kernel", "idle", "iowait")
BUSY = ("user", "kernel", "iowait")


class Monitor:
    """Percentages are shares of what has passed since the last look; of the first look, since boot."""

    def __init__(self, host: MonitoredHost) -> None:
        self._driver = host.driver
        self._clock = host.clock
        self._last: dict[str, int] = dict.fromkeys(KINDS, 0)

    def metric_names(self) -> frozenset[str]:
        return frozenset(CPU_METRICS)

    async def add_metrics(self, metrics: list[Metric]) -> None:
        now = await self._driver.cpu_stats()
        missing = sorted({*KINDS, "frequency"} - now.keys())
        if missing:
            raise HostFault(f"The driver {self._driver.name} does not tell the CPU's {', '.join(missing)}.")
        values: dict[str, int] = {"cpu.frequency": now["frequency"]}
        values |= {f"cpu.{kind}.time": now[kind] for kind in KINDS}
        values |= _percentages(now, self._last)
        self._last = {kind: now[kind] for kind in KINDS}
        at, source = self._clock.now(), self._driver.name
        metrics += [
            Metric(name=name, value=float(values[name]), timestamp=at, source=source) for name in CPU_METRICS
        ]


def _percentages(now: Mapping[str, int], last: Mapping[str, int]) -> dict[str, int]:
    """Whole per cent, cut off.  All are 0 when no time has passed; counters that have begun again count
    from there."""
    if any(now[kind] < last[kind] for kind in KINDS):
        last = dict.fromkeys(KINDS, 0)
    passed = {kind: now[kind] - last[kind] for kind in KINDS}
    whole = sum(passed.values())

    def share(*kinds: str) -> int:
        return sum(passed[kind] for kind in kinds) * 100 // whole if whole else 0

    return {"cpu.percent": share(*BUSY), **{f"cpu.{kind}.percent": share(kind) for kind in KINDS}}
