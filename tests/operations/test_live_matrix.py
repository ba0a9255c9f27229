"""Deaths and silences in each step of a live migration: one guest is left, with all that is its own.

A server is on h2 and goes to h3.  At a step, before its work or after it, somebody dies or falls silent, and
is back later.  Then the operation has ended, the guest is where its server is and nowhere else, what
is claimed is what is used, and ports are bound and plugged where the guest is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from kilonova.journal import attention
from kilonova.model.migration import Status
from kilonova.model.states import Power, Vm
from kilonova.operations.live_migrate import LIVE_MIGRATE
from kilonova.testing.clock import FastClock
from kilonova.testing.embedded import server
from tests.crash.broken import Gate
from tests.operations.live_hosts import Live, live, rate_for
from tests.operations.mortal import Mortals
from tests.operations.with_volumes import attached

STEPS = [step.name for step in LIVE_MIGRATE.steps]
FACTOR = 40.0
OPTIONS: dict[str, object] = {"service_down_time": 20_000, "report_interval": 500_000}
AWAY = 15.0  # seconds for which somebody is away


async def _controller(all_: Mortals) -> None:
    await all_.kill_controller()


def _silence(
    *names: str,
) -> tuple[Callable[[Mortals], Awaitable[None]], Callable[[Mortals], Awaitable[None]]]:
    async def begin(all_: Mortals) -> None:
        for name in names:
            await all_.silence(name)

    async def end(all_: Mortals) -> None:
        for name in names:
            await all_.heard_again(name)

    return begin, end


def _restart(name: str) -> tuple[Callable[[Mortals], Awaitable[None]], Callable[[Mortals], Awaitable[None]]]:
    return lambda all_: all_.kill_agent(name), lambda all_: all_.new_agent(name)


def _power(name: str) -> tuple[Callable[[Mortals], Awaitable[None]], Callable[[Mortals], Awaitable[None]]]:
    return lambda all_: all_.lose_power(name), lambda all_: all_.heard_again(name)


async def _nobody(all_: Mortals) -> None:
    pass


DEATHS = {
    "the controller dies": (_controller, _nobody),
    "the source's agent dies": _restart("h2"),
    "the destination's agent dies": _restart("h3"),
    "the source is cut off": _silence("h2"),
    "the destination is cut off": _silence("h3"),
    "the bus is away": _silence("h2", "h3"),
    "the source loses its power": _power("h2"),
    "the destination loses its power": _power("h3"),
}
MOMENTS = [(step, after) for step in STEPS for after in (False, True)]
POINTS = [(death, *moment) for death in DEATHS for moment in MOMENTS] + [
    (death, "on the way", False) for death in DEATHS
]


def test_how_many_points_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print(f" {len(POINTS)} points: {len(DEATHS)} deaths at {len(MOMENTS) + 1} moments ", end="")
    assert len(POINTS) == 200


async def ended(three: Live, uuid: str) -> None:
    """Wait for the end of all that is being done to the server."""
    async with asyncio.timeout(40):
        while await three.cloud.db.read(attention.open_actions):
            await asyncio.sleep(0.01)


@pytest.mark.capability("MG-INIT-19")
@pytest.mark.parametrize(("death", "step", "after"), POINTS)
async def test_whoever_dies(tmp_path: Path, death: str, step: str, after: bool) -> None:
    clock = FastClock(FACTOR)
    async with live(tmp_path / "state", clock=clock, DEFAULT=OPTIONS) as three:
        uuid = await three.boot(host="h2")
        await attached(three.cloud, uuid)
        mortals = Mortals(three)
        begin, end = DEATHS[death]
        gate = None
        if step == "on the way":
            three.live("h2").rate = rate_for(10.0)
        else:
            gate = Gate(three.cloud, "live_migrate", step, after=after)
        migration = await three.begin(uuid, host="h3")
        if gate is None:
            await three.at(migration, Status.RUNNING)
            await clock.sleep(3.0)
        else:
            await gate.wait()
        await begin(mortals)
        if gate is not None:
            gate.open()
        await clock.sleep(AWAY)
        await end(mortals)
        await ended(three, uuid)
        await three.cleared()
        await assert_one(three, uuid, power_lost="power" in death)
        await mortals.end()


async def assert_one(three: Live, uuid: str, *, power_lost: bool) -> None:
    complaints = await three.one_guest(uuid, also_off=power_lost)
    assert [
        each for each in complaints if not (power_lost and "noted" in each)
    ] == []  # it has not reported yet
    found = await server(three.cloud, uuid)
    assert found.host in ("h2", "h3") and len(found.volumes) == 1
    if not power_lost:
        assert (found.vm_state, found.power_state) == (Vm.ACTIVE, Power.RUNNING)
        assert await three.nothing_left() == []
    elif found.power_state != Power.RUNNING:
        assert found.vm_state in (Vm.STOPPED, Vm.ERROR, Vm.ACTIVE)
