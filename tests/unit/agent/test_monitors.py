"""Monitors: which are loaded, and what the CPU monitor makes of the driver's counters."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from kilonova.agent import monitors
from kilonova.agent.monitors import Plugin, load, virt_driver
from kilonova.agent.monitors.contract import CPU_METRICS, MonitoredHost
from kilonova.errors import Failed, HostFault
from kilonova.model.host import Inventory, Metric
from kilonova.testing.clock import VirtualClock
from kilonova.virt.fake.driver import FakeDriver


@pytest.fixture
def host(tmp_path: Path) -> MonitoredHost:
    clock = VirtualClock()
    return MonitoredHost(FakeDriver("h1", "node-1", tmp_path, clock, {"VCPU": Inventory(total=8)}), clock)


class Some:
    """A monitor of one metric."""

    made: ClassVar[list[Some]] = []

    def __init__(self, host: MonitoredHost) -> None:
        self.host = host
        self.fault: Exception | None = None
        Some.made.append(self)

    def metric_names(self) -> frozenset[str]:
        return frozenset({"x"})

    async def add_metrics(self, metrics: list[Metric]) -> None:
        metrics.append(Metric(name="x", value=1.0, timestamp=1, source="some"))
        if self.fault is not None:
            raise self.fault


def known(*names: str, kind: str = "cpu", make: Callable[..., Any] = Some) -> list[Plugin]:
    return [Plugin(kind, name, lambda: make) for name in names]


@pytest.fixture(autouse=True)
def forget() -> None:
    Some.made = []


# ---- loading ----


@pytest.mark.capability("MON-2")
@pytest.mark.parametrize("spelling", ["one", "cpu.one", "nova.compute.monitors.cpu.one"])
async def test_monitors_are_chosen_by_name(host: MonitoredHost, spelling: str) -> None:
    loaded = load(host, [spelling], known("one"))
    assert [each.name for each in await loaded.collect()] == ["x"]
    assert [each.host for each in Some.made] == [host]


@pytest.mark.capability("MON-3")
def test_one_monitor_of_a_type(host: MonitoredHost) -> None:
    with capture_logs() as logs:
        load(host, ["one", "two", "other"], [*known("one", "two"), *known("other", kind="disk")])
    assert len(Some.made) == 2
    (warning,) = logs
    assert (warning["log_level"], warning["monitor"], warning["loaded"]) == ("warning", "cpu.two", "cpu.one")


@pytest.mark.capability("MON-4")
async def test_monitors_that_are_not_chosen(host: MonitoredHost) -> None:
    with capture_logs() as logs:
        assert await load(host, [], known("one", "two")).collect() == ()
    assert logs == [] and Some.made == []
    with capture_logs() as logs:
        load(host, ["two"], known("one", "two"))
    assert [(each["log_level"], each["monitor"]) for each in logs] == [("warning", "cpu.one")]
    assert len(Some.made) == 1


@pytest.mark.capability("MON-1")
async def test_monitors_of_other_packages_are_entry_points(
    host: MonitoredHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = "nova.compute.monitors.cpu"
    theirs = EntryPoint("theirs", "tests.unit.agent.test_monitors:Some", group)
    broken = EntryPoint("broken", "no.such.module:Thing", group)
    monkeypatch.setattr(
        monitors.metadata, "entry_points", lambda group: {group: [theirs, broken]}.get(group, [])
    )
    assert [each.shown for each in monitors.plugins()] == ["cpu.virt_driver", "cpu.broken", "cpu.theirs"]
    assert [each.name for each in await load(host, ["theirs"]).collect()] == ["x"]
    assert Some.made[0].host is host
    with pytest.raises(Failed, match=r"The monitor cpu\.broken cannot be loaded: No module named 'no'"):
        load(host, ["broken"])


def test_names_that_are_none(host: MonitoredHost) -> None:
    with pytest.raises(Failed, match=r"compute_monitors names cpu\.three, four, which is not installed"):
        load(host, ["one", "four", "cpu.three"], known("one"))


@pytest.mark.capability("RT-21")
async def test_a_monitor_that_fails_is_logged_and_tells_nothing(host: MonitoredHost) -> None:
    loaded = load(host, ["one", "other"], [*known("one"), *known("other", kind="disk")])
    Some.made[0].fault = HostFault("broken")
    with capture_logs() as logs:
        found = await loaded.collect()
    assert [each.name for each in found] == ["x"]  # of the other
    assert [(each["log_level"], each["event"]) for each in logs] == [("error", "a monitor failed")]


# ---- the CPU monitor ----


def stats(user: int, kernel: int, idle: int, iowait: int, frequency: int = 2400) -> dict[str, int]:
    return {"user": user, "kernel": kernel, "idle": idle, "iowait": iowait, "frequency": frequency}


async def seen(monitor: virt_driver.Monitor, host: MonitoredHost, now: dict[str, int]) -> dict[str, float]:
    assert isinstance(host.driver, FakeDriver)
    host.driver.cpu_times = now
    found: list[Metric] = []
    await monitor.add_metrics(found)
    return {each.name: each.value for each in found}


@pytest.mark.capability("MB-1", "MB-3", "MV-1")
async def test_ten_metrics_of_one_look(host: MonitoredHost) -> None:
    monitor = virt_driver.Monitor(host)
    before = Metric(name="x", value=1.0, timestamp=1, source="some")
    found = [before]
    await monitor.add_metrics(found)
    assert found[0] is before
    assert {each.name for each in found[1:]} == monitor.metric_names() == set(CPU_METRICS)
    assert sorted(CPU_METRICS) == sorted(
        [
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
        ]
    )
    assert {each.timestamp for each in found[1:]} == {host.clock.now()}
    assert {each.source for each in found[1:]} == {"fake"}


@pytest.mark.capability("MB-2", "MV-1")
async def test_the_driver_is_asked_once(host: MonitoredHost, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = 0

    async def cpu_stats() -> dict[str, int]:
        nonlocal asked
        asked += 1
        return stats(asked, 0, 0, 0)

    monkeypatch.setattr(host.driver, "cpu_stats", cpu_stats)
    await virt_driver.Monitor(host).add_metrics([])
    assert asked == 1


@pytest.mark.capability("MV-2", "MV-3", "MV-4")
async def test_shares_of_what_has_passed(host: MonitoredHost) -> None:
    monitor = virt_driver.Monitor(host)
    first = await seen(monitor, host, stats(user=100, kernel=50, idle=800, iowait=50))
    assert first == {  # since boot
        "cpu.frequency": 2400,
        "cpu.user.time": 100,
        "cpu.kernel.time": 50,
        "cpu.idle.time": 800,
        "cpu.iowait.time": 50,
        "cpu.user.percent": 10,
        "cpu.kernel.percent": 5,
        "cpu.idle.percent": 80,
        "cpu.iowait.percent": 5,
        "cpu.percent": 20,
    }
    second = await seen(monitor, host, stats(user=101, kernel=51, idle=800, iowait=51, frequency=1000))
    assert second["cpu.frequency"] == 1000 and second["cpu.user.time"] == 101
    assert second["cpu.user.percent"] == 33  # cut off, and
    assert second["cpu.percent"] == 100  # not the sum of what was cut off
    assert second["cpu.idle.percent"] == 0


@pytest.mark.capability("MV-6")
async def test_when_no_time_has_passed_all_shares_are_0(host: MonitoredHost) -> None:
    monitor = virt_driver.Monitor(host)
    await seen(monitor, host, stats(1, 2, 3, 4))
    again = await seen(monitor, host, stats(1, 2, 3, 4))
    assert {value for name, value in again.items() if "percent" in name} == {0}


async def test_counters_that_begin_again(host: MonitoredHost) -> None:
    monitor = virt_driver.Monitor(host)
    await seen(monitor, host, stats(1000, 1000, 1000, 1000))
    again = await seen(monitor, host, stats(user=1, kernel=1, idle=2, iowait=0))
    assert again["cpu.user.percent"] == 25 and again["cpu.percent"] == 50


@pytest.mark.capability("MV-5")
@pytest.mark.parametrize("missing", ["user", "kernel", "idle", "iowait", "frequency", ""])
async def test_what_the_driver_does_not_tell(host: MonitoredHost, missing: str) -> None:
    told = {key: value for key, value in stats(1, 1, 1, 1).items() if missing and key != missing}
    with pytest.raises(HostFault, match=f"fake does not tell the CPU's .*{missing}"):
        await seen(virt_driver.Monitor(host), host, told)


COUNTERS = st.tuples(*(st.integers(0, 10**15) for _ in range(4)))


@given(before=COUNTERS, passed=COUNTERS)
def test_shares_are_whole_and_add_up(before: tuple[int, ...], passed: tuple[int, ...]) -> None:
    last = dict(zip(virt_driver.KINDS, before, strict=True))
    now = {kind: last[kind] + more for kind, more in zip(virt_driver.KINDS, passed, strict=True)}
    found = virt_driver._percentages(now, last)
    assert all(isinstance(share, int) and 0 <= share <= 100 for share in found.values())
    parts = sum(found[f"cpu.{kind}.percent"] for kind in virt_driver.KINDS)
    assert parts == 0 if not any(passed) else 97 <= parts <= 100
    assert 0 <= found["cpu.percent"] + found["cpu.idle.percent"] <= 100
