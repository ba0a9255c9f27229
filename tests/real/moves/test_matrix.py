"""Whoever dies, stops, loses its power or is cut off at whatever moment of a move: one guest is left.

A point of the matrix is a kind of move, a moment in it (before each step of its plan, and while memory or
files are on their way) and a fault: a victim, and what is done to it.  `make test` runs a sample;
``make test-moves`` runs all, or what MATRIX says:

    3/20                         the third of twenty parts, each of which has points of all sorts
    live_migrate-*-nats-server*  those of these names
"""

from __future__ import annotations

import asyncio
import fnmatch
import os
import random
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import select

from kilonova.db import migrations
from kilonova.db.engine import Tx
from kilonova.db.tables.journal import actions
from kilonova.model.states import Power, Vm
from tests.real.moves.faults import FAULTS
from tests.real.moves.gate import Asked
from tests.real.moves.kinds import KINDS, ON_THE_WAY, POINTS, Point
from tests.real.moves.outcomes import Outcome, note
from tests.real.moves.sample import SAMPLE
from tests.real.moves.stage import PEACE, Stage, stage
from tests.real.real_cloud import SDKS_OWN, wait_until

pytestmark = [pytest.mark.real, *SDKS_OWN]

WISH = os.environ.get("MATRIX", "")


def chosen(wish: str) -> list[Point]:
    """Raises ValueError for a wish that is none."""
    if not wish:
        return SAMPLE
    if wish == "all":
        return POINTS
    if part := re.fullmatch(r"(\d+)/(\d+)", wish):
        number, parts = map(int, part.groups())
        return random.Random(0).sample(POINTS, len(POINTS))[number - 1 :: parts]
    found = [point for point in POINTS if fnmatch.fnmatch(str(point), wish)]
    if not found:
        raise ValueError(f"no point is called {wish}")
    return found


class Stages:
    """One after the other: a point that fails may leave a cloud in which nothing goes right any more."""

    def __init__(self) -> None:
        self._made: Any = None
        self.sound = False

    def get(self) -> Stage:
        if not self.sound:
            self.close()
            self._made = stage()
            self._stage: Stage = self._made.__enter__()
        self.sound = False  # until the point has come to its end
        return self._stage

    def close(self) -> None:
        if self._made is not None:
            self._made.__exit__(None, None, None)
            self._made = None


@pytest.fixture(scope="module")
def stages() -> Iterator[Stages]:
    made = Stages()
    yield made
    made.close()


@pytest.mark.parametrize("point", chosen(WISH), ids=str)
def test_one_guest_is_left(stages: Stages, point: Point) -> None:
    on = stages.get()
    kind, fault = KINDS[point.kind], FAULTS[point.fault]
    kind.prepare(on)
    source, ups = on.ends.source, on.says(on.host())[0]
    last = on.read(_last_action)
    strike(on, point)
    begin = time.monotonic()
    left = on.wait_for_the_end()
    took = time.monotonic() - begin
    assert left == [], f"{took:.0f} s after all is well again: {[(each.state, each.error) for each in left]}"
    on.host_is_back()
    also_off = fault.power_lost
    try:
        wait_until(lambda: not on.complaints(also_off=also_off), max(1.0, PEACE - took))
    except TimeoutError:
        assert on.complaints(also_off=also_off) == []
    outcome = outcome_of(on, last)
    note(point, Outcome(outcome, took))
    print(f"{point}: {outcome} {took:.1f} s")
    has_what_it_had(on, point, ups)
    names_the_cause(on, last, fault.words)
    on.tidy()
    assert source.alive
    stages.sound = True


def test_the_sample_has_everything_once(capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print(f" {len(POINTS)} points, {len(SAMPLE)} of them in the sample ", end="")
    assert set(SAMPLE) <= set(POINTS)
    faults = [FAULTS[point.fault] for point in SAMPLE]
    assert {fault.victim for fault in faults} == {fault.victim for fault in FAULTS.values()}
    assert {fault.sort for fault in faults} == {fault.sort for fault in FAULTS.values()}

    def phases(points: list[Point]) -> set[tuple[str, str]]:
        return {(point.kind, KINDS[point.kind].phase(point.moment)) for point in points}

    assert phases(SAMPLE) == phases(POINTS)


def strike(on: Stage, point: Point) -> None:
    """Have the move come to the moment, the fault begin and be over."""
    kind, fault = KINDS[point.kind], FAULTS[point.fault]
    on.gate.shut(kind.operation, kind.number(point.moment))
    asked = Asked(lambda: kind.begin(on))
    on.gate.wait(asked)
    if point.moment == ON_THE_WAY:
        on.gate.open()
        wait_until(lambda: kind.is_sent(on), PEACE, "nothing is sent")
    asyncio.run(fault.begin(on.ends))
    if fault.victim != "PostgreSQL":  # which holds the gate
        on.gate.open()
    time.sleep(fault.outage if WISH else fault.brief)
    asyncio.run(fault.end(on.ends))
    on.gate.open()
    asked.answered()


def _last_action(tx: Tx) -> int:
    return int(tx.scalar(select(actions.c.id).order_by(actions.c.id.desc()).limit(1)))


def outcome_of(on: Stage, last: int) -> str:
    """The status of the migration, or that it was not even begun."""
    if on.read(_last_action) == last:
        return "not begun"
    return str(
        on.read(lambda tx: migrations.page(tx, {"instance_uuid": on.uuid}, newest_first=True)[0].status)
    )


def has_what_it_had(on: Stage, point: Point, ups: int) -> None:
    """The guest runs, on the disk that it had, and was started anew only where that belongs to the move."""
    row, host = on.row(), on.host()
    assert on.has_pattern(host) or point.kind == "evacuate"  # whose guests are made anew
    if row.power_state != Power.RUNNING:
        assert FAULTS[point.fault].power_lost or row.vm_state == Vm.ERROR
        return
    on.is_alive(host)
    if point.kind in ("live_migrate", "confirm_resize") and not FAULTS[point.fault].power_lost:
        assert on.says(host)[0] == ups, "it was started anew"
    assert row.vm_state in (Vm.ACTIVE, Vm.RESIZED, Vm.ERROR)


def names_the_cause(on: Stage, last: int, words: str) -> None:
    """Whoever reads why the move has failed knows where to look."""

    def failed(tx: Tx) -> list[str]:
        query = select(actions.c.operation).where(actions.c.id > last, actions.c.state == "failed")
        return [str(row[0]) for row in tx.all(query)]

    row, operations = on.row(), on.read(failed)
    for what in [*operations, *([row.vm_state] if row.vm_state == Vm.ERROR else [])]:
        assert row.fault is not None, f"{what}: the server does not tell why"
        assert words, f"{what}: it should not fail: {row.fault.message}"
        assert re.search(words, row.fault.message), f"{what}: {row.fault.message}"
