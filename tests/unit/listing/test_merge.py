"""Merging: against a plain sort of all records, with cells that fail or are late at any moment."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cmp_to_key
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kilonova.errors import Unreachable
from kilonova.listing.merge import DidNotRespond, Marker, Merge, Merged, Start, rank
from kilonova.testing.clock import VirtualClock

Record = tuple[Any, ...]


def compare(one: Record, other: Record, descending: Sequence[bool]) -> int:
    """The rule in its plainest form: the first key that differs decides."""
    for left, right, down in zip(one, other, descending, strict=True):
        if left != right:
            return (1 if left < right else -1) if down else (-1 if left < right else 1)
    return 0


def in_order(records: list[Record], descending: Sequence[bool]) -> list[Record]:
    def order(one: Record, other: Record) -> int:
        return compare(one, other, descending)

    return sorted(records, key=cmp_to_key(order))


class Broken(Exception):
    pass


@dataclass
class Cell:
    """``fails_at``: the number of the batch that fails; ``late`` is that it never comes instead."""

    name: str
    records: list[Record]
    descending: Sequence[bool]
    clock: VirtualClock
    fails_at: int | None = None
    late: bool = False
    asked: list[tuple[Start | None, int | None]] = field(default_factory=list)
    turns: int = 0  # of the loop since it did something

    async def batch(self, start: Start | None, size: int | None) -> list[Record]:
        self.asked.append((start, size))
        self.turns = 0
        if len(self.asked) - 1 == self.fails_at:
            if self.late:
                await self.clock.sleep(10**6)
            raise Broken(self.name)
        await asyncio.sleep(0)
        self.turns = 0
        found = in_order(self.records, self.descending)
        if start is not None:
            least = 0 if start.inclusive else 1
            found = [one for one in found if compare(one, start.values, self.descending) >= least]
        return found[:size]


async def merged(
    cells: Sequence[Cell], clock: VirtualClock, marker: Marker | None = None, **how: Any
) -> Merged[Record]:
    options: dict[str, Any] = {"limit": None, "batch": None, **how}
    merge: Merge[Record] = Merge(tuple, cells[0].descending, clock=clock, **options)
    running = asyncio.ensure_future(merge.run(cells, marker))
    while not running.done():
        await asyncio.sleep(0)
        for cell in cells:
            cell.turns += 1
        if all(cell.turns > 20 for cell in cells) and not running.done():  # all wait for time to pass
            assert clock.advance_to_next()
            for cell in cells:
                cell.turns = 0
    return running.result()


def cells_of(clock: VirtualClock, *records: list[int], down: bool = False) -> list[Cell]:
    return [
        Cell(name, [(value,) for value in values], (down,), clock)
        for name, values in zip("abc", records, strict=False)
    ]


keys = st.tuples(st.integers(-2, 2), st.sampled_from(["", "a", "b", "bb"]))
directions = st.tuples(st.booleans(), st.booleans(), st.booleans())


@st.composite
def scenes(draw: st.DrawFn) -> dict[str, Any]:
    clock = VirtualClock()
    descending = draw(directions)
    cells = []
    for number in range(draw(st.integers(1, 4))):
        found = draw(st.lists(keys, max_size=12))
        records = [(*key, f"{number}{at:02}") for at, key in enumerate(found)]
        cells.append(Cell(str(number), records, descending, clock))
    return {
        "clock": clock,
        "cells": cells,
        "descending": descending,
        "limit": draw(st.one_of(st.none(), st.integers(0, 30))),
        "batch": draw(st.one_of(st.none(), st.integers(1, 7))),
    }


@pytest.mark.capability("MC-1", "MC-2", "MC-6", "MC-7")
@given(scenes())
def test_it_is_a_plain_sort_of_everything(scene: dict[str, Any]) -> None:
    cells, limit = scene["cells"], scene["limit"]
    found = asyncio.run(merged(cells, scene["clock"], limit=limit, batch=scene["batch"]))
    everything = [record for cell in cells for record in cell.records]
    assert found.records == in_order(everything, scene["descending"])[: limit or None]
    assert found.failed == {}
    assert found.responded == tuple(cell.name for cell in cells)
    for cell in cells:
        _asked_in_steps(cell, scene["batch"], limit or None)


def _asked_in_steps(cell: Cell, batch: int | None, limit: int | None) -> None:
    """Each batch begins after the last record of the one before, and none is larger than is wanted."""
    mine = in_order(cell.records, cell.descending)
    at = 0
    for number, (start, size) in enumerate(cell.asked):
        assert start == (None if number == 0 else Start(mine[at - 1]))
        assert batch is None or (size is not None and size <= batch)
        assert limit is None or (size is not None and size <= limit - at)
        at += len(mine[at:]) if size is None else min(size, len(mine) - at)


@pytest.mark.capability("MC-8", "MC-9", "MC-10")
@given(scenes(), st.data())
def test_pages_leave_nothing_out_and_repeat_nothing(scene: dict[str, Any], data: st.DataObject) -> None:
    cells, clock, size = scene["cells"], scene["clock"], data.draw(st.integers(1, 5))
    seen: list[Record] = []
    marker = None
    while True:
        page = asyncio.run(merged(cells, clock, marker, limit=size, batch=scene["batch"]))
        seen += page.records
        if len(page.records) < size:
            break
        marker = Marker(page.records[-1], page.records[-1][-1][0])
    everything = [record for cell in cells for record in cell.records]
    assert seen == in_order(everything, scene["descending"])


@pytest.mark.capability("MC-4", "MC-5")
@given(scenes(), st.data())
def test_a_cell_that_fails_takes_nothing_from_the_others(scene: dict[str, Any], data: st.DataObject) -> None:
    cells, limit, batch = scene["cells"], scene["limit"] or None, scene["batch"]
    for cell in cells:
        cell.fails_at = data.draw(st.one_of(st.none(), st.integers(0, 3)))
        cell.late = data.draw(st.booleans())
    found = asyncio.run(merged(cells, scene["clock"], limit=limit, batch=batch))
    down = {cell.name for cell in cells if cell.fails_at is not None and len(cell.asked) > cell.fails_at}
    assert set(found.failed) == down
    assert set(found.timed_out) == {cell.name for cell in cells if cell.name in down and cell.late}
    assert found.responded == tuple(cell.name for cell in cells if cell.name not in down)
    for name, error in found.failed.items():
        assert isinstance(error, DidNotRespond if name in found.timed_out else Broken)
    given_by_failed = [record for record in found.records if record[-1][0] in down]
    healthy = [record for cell in cells if cell.name not in down for record in cell.records]
    assert found.records == in_order([*healthy, *given_by_failed], scene["descending"])[:limit]


@pytest.mark.capability("MC-1")
@given(st.lists(keys, min_size=2, max_size=2), directions)
def test_ranks_compare_as_the_rule_says(pair: list[Record], descending: tuple[bool, ...]) -> None:
    one, other = pair
    ranks = rank(one, descending[:2]), rank(other, descending[:2])
    order = compare(one, other, descending[:2])
    assert ((ranks[0] < ranks[1]), (ranks[0] == ranks[1])) == (order < 0, order == 0)


@pytest.mark.capability("MC-2")
async def test_a_batch_is_fetched_when_it_is_needed_and_not_before() -> None:
    clock = VirtualClock()
    cells = cells_of(clock, [1, 2, 3, 4, 5], [10, 20, 30])
    found = await merged(cells, clock, limit=4, batch=2)
    assert found.records == [(1,), (2,), (3,), (4,)]
    assert cells[0].asked == [(None, 2), (Start((2,)), 2)]
    assert cells[1].asked == [(None, 2)]


@pytest.mark.capability("MC-7")
async def test_an_empty_batch_ends_a_cell() -> None:
    clock = VirtualClock()
    cells = cells_of(clock, [1, 2, 3, 4], [])
    assert len((await merged(cells, clock, limit=9, batch=2)).records) == 4
    assert [size for _, size in cells[0].asked] == [2, 2, 2]  # the last one has nothing
    assert len(cells[1].asked) == 1


@pytest.mark.capability("MC-3")
async def test_a_broken_cell_is_noticed_before_the_limit_is_reached() -> None:
    clock = VirtualClock()
    cells = cells_of(clock, [1, 2, 3], [9])
    cells[1].fails_at = 0
    found = await merged(cells, clock, limit=1)
    assert found.records == [(1,)]
    assert list(found.failed) == ["b"]


@pytest.mark.capability("MC-4")
async def test_the_time_is_for_the_whole_of_a_cells_part() -> None:
    """Two batches that are each in time are too late together."""
    clock = VirtualClock()
    cells = cells_of(clock, [1, 2, 3, 4], [5])

    class Slow(Cell):
        async def batch(self, start: Start | None, size: int | None) -> list[Record]:
            await self.clock.sleep(40)
            return await super().batch(start, size)

    slow = Slow("slow", [(1,), (2,), (3,)], (False,), clock)
    begun = clock.now()
    found = await merged([*cells, slow], clock, batch=2, time_limit=60.0)
    assert found.timed_out == ("slow",)
    assert found.records == [(1,), (1,), (2,), (2,), (3,), (4,), (5,)]
    assert clock.now() - begun == 60_000_000
    assert str(found.failed["slow"]) == "The cell slow did not respond in time."


@pytest.mark.capability("MC-5")
@pytest.mark.parametrize("late", [True, False])
async def test_where_cells_may_not_be_skipped_the_list_fails_and_names_the_cell(late: bool) -> None:
    clock = VirtualClock()
    cells = cells_of(clock, [1, 2], [3, 4])
    cells[1].fails_at, cells[1].late = 0, late
    with pytest.raises(Unreachable, match="The cell b does not respond"):
        await merged(cells, clock, tolerant=False)


@pytest.mark.capability("MC-5")
async def test_a_cell_that_fails_later_fails_the_list_too_where_none_may() -> None:
    clock = VirtualClock()
    cells = cells_of(clock, [1, 2, 3], [4])
    cells[0].fails_at = 1
    with pytest.raises(Unreachable, match="The cell a does not respond"):
        await merged(cells, clock, batch=2, tolerant=False)


@pytest.mark.capability("MC-8", "MC-9")
async def test_another_cells_record_with_the_markers_values_comes_first() -> None:
    clock = VirtualClock()
    cells = [Cell(name, [(1, name), (5, name), (7, name)], (True, False), clock) for name in "ab"]
    merge: Merge[Record] = Merge(lambda record: record[:1], (True,), limit=None, batch=None, clock=clock)
    sources = [_Narrow(cell) for cell in cells]
    found = await merge.run(sources, Marker((5,), "a"))
    assert found.records == [(5, "b"), (1, "a"), (1, "b")]


@dataclass
class _Narrow:
    """A cell that is sorted by its first key alone."""

    cell: Cell

    @property
    def name(self) -> str:
        return self.cell.name

    async def batch(self, start: Start | None, size: int | None) -> list[Record]:
        found = in_order(self.cell.records, self.cell.descending)
        if start is not None:
            (value,) = start.values
            found = [one for one in found if one[0] < value or (start.inclusive and one[0] == value)]
        return found[:size]


@pytest.mark.capability("MC-10")
async def test_a_cell_whose_records_all_precede_the_marker_gives_nothing() -> None:
    clock = VirtualClock()
    cells = cells_of(clock, [1, 9], [2, 3])
    found = await merged(cells, clock, Marker((8,), "a"))
    assert found.records == [(9,)]
    assert found.responded == ("a", "b")


async def test_a_caller_that_goes_away_leaves_nothing_running() -> None:
    clock = VirtualClock()
    cells = cells_of(clock, [1], [2])
    cells[1].fails_at, cells[1].late = 0, True
    merge: Merge[Record] = Merge(tuple, (False,), limit=None, batch=None, clock=clock)
    running = asyncio.ensure_future(merge.run(cells))
    for _ in range(10):
        await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    for _ in range(10):
        await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.capability("MC-6")
@pytest.mark.parametrize("limit", [0, None])
async def test_no_limit(limit: int | None) -> None:
    clock = VirtualClock()
    assert len((await merged(cells_of(clock, [1, 2], [3]), clock, limit=limit, batch=1)).records) == 3
