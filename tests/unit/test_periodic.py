"""Jobs that are done again and again."""

from __future__ import annotations

import asyncio

import pytest

from kilonova.periodic import Periodic, spacing
from kilonova.testing.clock import VirtualClock


async def turns() -> None:
    """Let whoever can go on do so."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_job_is_done_at_its_interval_also_after_it_failed() -> None:
    clock = VirtualClock()
    periodic = Periodic(clock)
    done: list[str] = []

    async def job() -> None:
        done.append("job")
        if len(done) == 1:
            raise RuntimeError("ordered")

    async def never() -> None:
        done.append("never")

    periodic.every(10, "job", job)
    periodic.every(None, "never", never)
    await turns()
    assert done == []
    for expected in (1, 2, 3):
        clock.advance(9.9)
        await turns()
        assert len(done) == expected - 1
        clock.advance(0.2)
        await turns()
        assert len(done) == expected
    await periodic.stop()
    clock.advance(100)
    await turns()
    assert done == ["job"] * 3


@pytest.mark.parametrize(("option", "seconds"), [(0, 60), (-1, None), (7, 7)])
def test_the_spacing_of_an_option(option: int, seconds: int | None) -> None:
    assert spacing(option) == seconds
