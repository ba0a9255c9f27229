"""Servers of three real databases in one list."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest

from kilonova.clock import SystemClock
from kilonova.db import instances
from kilonova.db.cells import Cell
from kilonova.db.engine import DatabaseUnavailable
from kilonova.db.instance_list import SUMMARY, ServerList
from kilonova.errors import NotFound, Unreachable
from kilonova.listing.instances import ServersFound, list_servers
from kilonova.listing.options import ListOptions
from kilonova.model.instance import Fault, Instance
from kilonova.testing.database import WatchedDatabase
from tests.unit.listing.cells import put, server

CLOCK = SystemClock()


async def found(
    cells: list[Cell], options: ListOptions | None = None, columns: tuple[str, ...] = SUMMARY, **wanted: Any
) -> ServersFound:
    page = ServerList()
    for name, value in wanted.items():
        setattr(page, name, value)
    return await list_servers(cells, page, columns, clock=CLOCK, options=options or ListOptions())


async def uuids(cells: list[Cell], **wanted: Any) -> list[str]:
    return [row[0] for row in (await found(cells, **wanted)).rows]


NAMES = ["", "A", "a", "B", "b", "Ä", "ä", "z", "Z", "_", "-", "10", "9", "🙂", "ﬁ"]


def _many(number: int) -> list[Instance]:
    chance = random.Random(number)
    return [
        server(
            f"s{number}-{at:02}",
            display_name=chance.choice(NAMES),
            created_at=100 + chance.randrange(4),
            updated_at=chance.choice([None, 110, 120]),
            host=chance.choice([None, "h1", "h2"]),
            power_state=chance.choice([0, 1, 4]),
            config_drive=chance.choice([False, True]),
        )
        for at in range(chance.randrange(5, 9))
    ]


def _value(instance: Instance, key: str, number: int) -> Any:
    if key == "id":
        return number
    found = getattr(instance, key)
    return (0 if key == "updated_at" else "") if found is None else found


SORTS: list[tuple[tuple[str, bool], ...]] = [
    (("created_at", True), ("id", True)),
    (("created_at", False), ("id", True)),
    (("display_name", False), ("id", False)),
    (("display_name", True), ("created_at", False), ("id", False)),
    (("updated_at", True), ("id", True)),
    (("host", False), ("display_name", True), ("id", True)),
    (("config_drive", True), ("power_state", False), ("id", False)),
    (("uuid", True),),
]


@pytest.mark.capability("IL-1", "IL-2", "API-127")
@pytest.mark.parametrize("sort", SORTS)
async def test_pages_in_any_order_are_as_a_plain_sort_of_all(
    cells: list[Cell], sort: tuple[tuple[str, bool], ...]
) -> None:
    all_of = [_many(number) for number in range(3)]
    for number, servers in enumerate(all_of):
        await put(cells, number, *servers)
    expected = [(each, at + 1) for servers in all_of for at, each in enumerate(servers)]
    expected.sort(key=lambda pair: pair[0].uuid)
    for key, descending in reversed(sort):
        expected.sort(key=lambda pair: _value(pair[0], key, pair[1]), reverse=descending)
    names = [each.uuid for each, _ in expected]
    if sort[0][1] and len(sort) > 1 and sort[0][0] == "display_name":
        assert {each.display_name for each, _ in expected} & {"ä", "Z"}  # locales would mix them up
    assert await uuids(cells, sort=sort) == names
    for size in (1, 4):
        seen: list[str] = []
        while True:
            page = await uuids(cells, sort=sort, limit=size, marker=seen[-1] if seen else None)
            seen += page
            if len(page) < size:
                break
        assert seen == names


@pytest.mark.capability("IL-1")
async def test_by_default_the_newest_comes_first_and_the_uuid_decides_at_last(cells: list[Cell]) -> None:
    await put(cells, 0, server("d"), server("b"))
    await put(cells, 1, server("c"), server("a"))
    await put(cells, 2, server("new", created_at=200), server("old", created_at=5))
    assert await uuids(cells) == ["new", "a", "b", "c", "d", "old"]


@pytest.mark.capability("IL-2")
async def test_the_callers_order_is_left_as_it_was(cells: list[Cell]) -> None:
    wanted = ServerList()
    wanted.sort = (("display_name", False),)
    await list_servers(cells, wanted, SUMMARY, clock=CLOCK, options=ListOptions())
    assert wanted.sort == (("display_name", False),)


@pytest.mark.capability("IL-3")
async def test_the_marker_is_found_by_its_mapping_also_when_it_is_deleted(cells: list[Cell]) -> None:
    await put(cells, 0, server("e", created_at=105), server("a", created_at=101))
    await put(cells, 1, server("gone", created_at=103), server("b", created_at=102))
    await cells[1].db.write(lambda tx: instances.mark_deleted(tx, "gone", 200))
    assert await uuids(cells, marker="gone") == ["b", "a"]
    # a server of a cell that nobody has mapped is not looked for there
    await cells[2].db.write(lambda tx: instances.insert(tx, server("stray")))
    for unknown in ("stray", "nothing"):
        with pytest.raises(NotFound, match=rf"marker \[{unknown}\] not found"):
            await uuids(cells, marker=unknown)


@pytest.mark.capability("IL-3")
async def test_a_marker_that_is_mapped_but_not_in_its_cell_is_not_there(cells: list[Cell]) -> None:
    await put(cells, 1, server("a"))
    await put(cells, 2, server("b"))
    swapped = [cells[0], Cell("cell-2", "two", cells[1].db), Cell("cell-1", "three", cells[2].db)]
    with pytest.raises(NotFound, match="marker"):
        await uuids(swapped, marker="a")
    with pytest.raises(NotFound, match="marker"):
        await uuids(cells[:1], marker="a")  # its cell is unknown


@pytest.mark.capability("MC-10", "MC-11")
async def test_a_page_among_chosen_servers_begins_with_a_chosen_one(cells: list[Cell]) -> None:
    """Also in cells that do not have the marker, though another server is nearer to it there."""
    await put(cells, 0, server("m", created_at=105), server("a", created_at=101))
    await put(cells, 1, server("near", created_at=104), server("b", created_at=102))
    await put(cells, 2, server("early", created_at=109))
    wanted = ServerList()
    wanted.one_of("uuid", ["m", "a", "b", "early"])
    wanted.marker = "m"
    page = await list_servers(cells, wanted, SUMMARY, clock=CLOCK, options=ListOptions())
    assert [row[0] for row in page.rows] == ["b", "a"]
    assert page.down == ()


async def test_a_marker_of_another_project_is_none(cells: list[Cell]) -> None:
    await put(cells, 1, server("a", project_id="p2"), server("b"))
    wanted = ServerList()
    wanted.of_project("p1")
    wanted.marker = "a"
    with pytest.raises(NotFound, match="marker"):
        await list_servers(cells, wanted, SUMMARY, clock=CLOCK, options=ListOptions())


@pytest.mark.capability("IL-4", "IL-5")
def test_sizes_of_batches() -> None:
    options = ListOptions()
    assert options.batch_size(1000, 1) == 1000
    assert options.batch_size(7, 0) == options.batch_size(7, 1) == 7
    assert options.batch_size(1000, 4) == 275
    assert options.batch_size(1000, 3) == 366
    assert options.batch_size(500, 10) == 100  # not below
    assert options.batch_size(20, 2) == 100
    assert options.batch_size(None, 2) == 550
    assert ListOptions(max_limit=4000).batch_size(None, 2) == 2200
    assert ListOptions(max_limit=4000).batch_size(None, 1) == 4000
    fixed = ListOptions(strategy="fixed", fixed_size=250)
    assert fixed.batch_size(1000, 4) == 250
    assert fixed.batch_size(200, 4) == 200  # not above what is wanted
    assert fixed.batch_size(200, 1) == 200


class _Counted:
    """A database that counts who reads."""

    def __init__(self, cell: Cell) -> None:
        self.db = WatchedDatabase(cell.db)
        self.cell = Cell(cell.uuid, cell.name, self)  # type: ignore[arg-type]
        self.name = cell.db.name
        self.reads = 0

    async def read(self, fn: Any) -> Any:
        self.reads += 1
        return await self.db.read(fn)


@pytest.mark.capability("IL-4", "IL-8")
async def test_a_page_costs_each_cell_one_query_with_all_that_is_shown(cells: list[Cell]) -> None:
    fault = Fault(code=500, message="broken", created=1)
    for number in range(3):
        servers = [server(f"{number}{at}", created_at=at, fault=fault) for at in range(10)]
        await put(cells, number, *servers)
    counted = [_Counted(cell) for cell in cells]
    rows = (await found([each.cell for each in counted], columns=("uuid", "fault"), limit=30)).rows
    assert len(rows) == 30
    assert all("broken" in row[1] for row in rows)
    assert [each.reads for each in counted] == [3, 1, 1]  # two: whether servers change their cells meanwhile


@pytest.mark.capability("IL-6")
async def test_only_the_cells_of_the_project_are_asked_where_that_is_wanted(cells: list[Cell]) -> None:
    await put(cells, 1, server("a", project_id="p1"))
    await put(cells, 2, server("b", project_id="p2"))
    await put(cells, 0, server("first", project_id="p1"))
    for narrow, project in itertools.product((True, False), ("p1", None)):
        counted = [_Counted(cell) for cell in cells]
        wanted = ServerList()
        if project:
            wanted.of_project(project)
        asked, options = [each.cell for each in counted], ListOptions(per_project_cells=narrow)
        page: ServersFound = await list_servers(asked, wanted, SUMMARY, clock=CLOCK, options=options)
        assert {row[0] for row in page.rows} == ({"a", "first"} if project else {"a", "b", "first"})
        assert bool(counted[2].reads) == (not narrow or project is None)
        assert counted[0].reads
        assert counted[1].reads


@pytest.mark.capability("IL-7", "MC-5")
async def test_cells_that_fail_are_told(cells: list[Cell]) -> None:
    for number in range(3):
        await put(cells, number, server(f"s{number}", created_at=number))
    gone = WatchedDatabase(cells[1].db)
    gone.gone = True
    some = [cells[0], Cell("cell-1", "two", gone), cells[2]]
    page = await found(some)
    assert [row[0] for row in page.rows] == ["s2", "s0"]
    assert page.down == (some[1],)
    with pytest.raises(Unreachable, match="The cell two does not respond"):
        await found(some, ListOptions(skip_down_cells=False))
    with pytest.raises(DatabaseUnavailable):
        await uuids(some, marker="s1")
    assert (await found(cells)).down == ()


async def test_no_entries_are_what_one_gets_who_asks_for_none(cells: list[Cell]) -> None:
    await put(cells, 1, server("a"))
    assert await uuids(cells, limit=0) == []
    with pytest.raises(NotFound):
        await uuids(cells, limit=0, marker="x")
