"""Migrations of three real databases in one list."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from kilonova.clock import SystemClock
from kilonova.db import migrations
from kilonova.db.cells import Cell
from kilonova.errors import NotFound, Unreachable
from kilonova.listing.migrations import collapsed, list_migrations
from kilonova.listing.options import ListOptions
from kilonova.model.migration import Migration
from kilonova.testing.database import WatchedDatabase

CLOCK = SystemClock()


def move(uuid: str, **values: Any) -> Migration:
    defaults: dict[str, Any] = {
        "instance_uuid": "s1",
        "project_id": "p1",
        "user_id": "u1",
        "migration_type": "resize",
        "status": "finished",
        "created_at": 100,
    }
    return Migration(uuid=uuid, **{**defaults, **values})


async def put(cell: Cell, *some: Migration) -> None:
    def make(tx: Any) -> None:
        for each in some:
            migrations.insert(tx, each)

    await cell.db.write(make)


async def uuids(cells: list[Cell], options: ListOptions | None = None, **how: Any) -> list[str]:
    filters = how.pop("filters", {})
    found = await list_migrations(cells, filters, clock=CLOCK, options=options or ListOptions(), **how)
    return [each.uuid for each in found]


@pytest.fixture
async def filled(cells: list[Cell]) -> list[Cell]:
    await put(cells[0], move("d", created_at=101), move("b"), move("x", created_at=90))
    await put(cells[1], move("c"), move("a"))
    await put(cells[2], move("new", created_at=200))
    return cells


@pytest.mark.capability("ML-1", "ML-3", "API-132")
async def test_the_newest_comes_first_then_the_number_then_the_uuid(filled: list[Cell]) -> None:
    # numbers are each cell's own: b and a are the second of theirs
    assert await uuids(filled) == ["new", "d", "a", "b", "c", "x"]
    assert await uuids(filled, newest_first=False) == ["x", "c", "a", "b", "d", "new"]


@pytest.mark.capability("ML-1", "ML-2")
@pytest.mark.parametrize("size", [1, 2, 4])
async def test_pages_leave_nothing_out(filled: list[Cell], size: int) -> None:
    seen: list[str] = []
    while True:
        page = await uuids(filled, limit=size, marker=seen[-1] if seen else None)
        seen += page
        if len(page) < size:
            break
    assert seen == ["new", "d", "a", "b", "c", "x"]


@pytest.mark.capability("ML-2")
async def test_a_marker_that_no_cell_has(filled: list[Cell]) -> None:
    with pytest.raises(NotFound, match=r"marker \[zzz\] not found"):
        await uuids(filled, marker="zzz")


@pytest.mark.capability("ML-2")
async def test_the_marker_is_taken_of_the_first_cell_that_has_it(filled: list[Cell]) -> None:
    """Others may hang; that keeps nobody from the page, but for the part that is theirs."""

    class Hangs:
        name = "sqlite"

        async def read(self, fn: Any) -> Any:
            await asyncio.sleep(3600)

    some = [Cell("x", "hangs", Hangs()), *filled]  # type: ignore[arg-type]
    assert await uuids(some, ListOptions(time_limit=0.2), marker="d") == ["a", "b", "c", "x"]
    with pytest.raises(NotFound):
        await uuids(some, ListOptions(time_limit=0.2), marker="zzz")


@pytest.mark.capability("ML-3")
async def test_all_of_a_cell_is_read_at_once(filled: list[Cell]) -> None:
    await put(filled[0], *(move(f"m{number:03}", created_at=50) for number in range(300)))
    reads: list[str] = []

    class Counted:
        def __init__(self, cell: Cell) -> None:
            self.name = cell.db.name
            self._cell = cell

        async def read(self, fn: Any) -> Any:
            reads.append(self._cell.name)
            return await self._cell.db.read(fn)

    counted = [Cell(cell.uuid, cell.name, Counted(cell)) for cell in filled]  # type: ignore[arg-type]
    assert len(await uuids(counted)) == 306
    assert sorted(reads) == ["one", "one", "one", "three", "two"]  # two of the first: has anything moved?


@pytest.mark.capability("API-132")
def test_a_move_between_cells_is_one_with_what_was_written_last() -> None:
    old = move("m", status="old", updated_at=100, created_at=50)
    new = move("m", status="new", updated_at=101, created_at=50)
    never = move("m", status="never updated", created_at=102)
    others = [move("a"), move("b")]
    for pair, winner in (((old, new), new), ((new, old), new), ((new, never), never), ((never, new), never)):
        found = collapsed([others[0], pair[0], others[1], pair[1]])
        assert found == [others[0], winner, others[1]]


@pytest.mark.capability("MC-5")
async def test_a_cell_that_is_down_is_left_out_or_fails_the_list(filled: list[Cell]) -> None:
    gone = WatchedDatabase(filled[1].db)
    gone.gone = True
    some = [filled[0], Cell("cell-1", "two", gone), filled[2]]
    assert await uuids(some) == ["new", "d", "b", "x"]
    with pytest.raises(Unreachable, match="The cell two"):
        await uuids(some, ListOptions(skip_down_cells=False))


FILTERS: list[tuple[dict[str, Any], str]] = [
    ({"status": "running"}, "b"),
    ({"instance_uuid": "s2"}, "c"),
    ({"source_compute": "h1"}, "d"),
    ({"host": "h1"}, "de"),
    ({"migration_type": "evacuation"}, "e"),
    ({"hidden": True}, "f"),
    ({"hidden": False, "status": "finished"}, "acdeg"),
    ({"project_id": "p2"}, "a"),
    ({"user_id": "u2"}, "g"),
    ({"changes_since": 150}, "cg"),
    ({"changes_since": 150, "changes_before": 160}, "c"),
    ({"changes_before": 99}, "a"),
]


@pytest.mark.parametrize(("filters", "expected"), FILTERS)
async def test_filters(cells: list[Cell], filters: dict[str, Any], expected: str) -> None:
    await put(cells[0], move("a", project_id="p2", created_at=99), move("b", status="running"))
    await put(
        cells[1],
        move("c", instance_uuid="s2", updated_at=150),
        move("d", source_compute="h1"),
        move("e", dest_compute="h1", migration_type="evacuation"),
    )
    await put(cells[2], move("f", hidden=True), move("g", user_id="u2", created_at=170))
    assert sorted(await uuids(cells, filters=filters)) == list(expected)


async def test_a_migration_is_changed_only_from_where_it_is_expected(cells: list[Cell]) -> None:
    (cell, *_) = cells
    await put(cell, move("a", status="running"))
    change = migrations.update
    assert not await cell.db.write(lambda tx: change(tx, "a", expect=("queued",), status="failed"))
    assert await cell.db.write(
        lambda tx: change(tx, "a", expect=("queued", "running"), status="done", memory_total=5)
    )
    assert not await cell.db.write(lambda tx: change(tx, "nothing", status="done"))
    with pytest.raises(TypeError):
        await cell.db.write(lambda tx: change(tx, "a", colour="red"))
    found = await cell.db.read(lambda tx: migrations.show(tx, "a"))
    assert found is not None
    assert (found.status, found.memory_total, found.hidden) == ("done", 5, False)
    assert found.updated_at is not None
    assert found.id == 1


@pytest.mark.capability("API-133")
async def test_what_is_under_way_of_a_server(cells: list[Cell]) -> None:
    (cell, *_) = cells
    live = {"migration_type": "live-migration"}
    await put(
        cell,
        move("a", status="running", **live),
        move("b", status="post-migrating", **live),
        move("c", status="completed", **live),
        move("d", status="running"),
        move("e", status="running", instance_uuid="s2", **live),
    )
    found = await cell.db.read(lambda tx: migrations.live_of(tx, "s1"))
    assert [each.uuid for each in found] == ["a", "b"]
    assert all(each.in_progress for each in found)
    by_number = migrations.by_number
    assert await cell.db.read(lambda tx: by_number(tx, "s1", 5)) is None  # another server's
    one = await cell.db.read(lambda tx: by_number(tx, "s1", 3))
    assert one is not None
    assert (one.uuid, one.in_progress) == ("c", False)
