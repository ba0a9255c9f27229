"""Flavors: one of a name and of an id, lists that page, extra specs and access that do not lose writes."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from kilonova.db import flavors
from kilonova.db.engine import Database, Tx
from kilonova.db.flavors import FlavorFilter
from kilonova.errors import Conflict, Invalid, NotFound
from kilonova.model.flavor import Flavor

PUBLIC = FlavorFilter()


def flavor(flavorid: str, name: str = "", **more: Any) -> Flavor:
    values: dict[str, Any] = {"vcpus": 1, "memory_mb": 512, "root_gb": 1, **more}
    return Flavor(id=0, flavorid=flavorid, name=name or f"name-{flavorid}", **values)


async def make(db: Database, *several: Flavor) -> None:
    await db.write(lambda tx: [flavors.create(tx, one, 1_000_000) for one in several])


async def listed(db: Database, wanted: FlavorFilter = PUBLIC, **how: Any) -> list[str]:
    found = await db.read(lambda tx: flavors.list_page(tx, wanted, **how))
    return [one.flavorid for one in found]


@pytest.mark.capability("FL-5")
async def test_a_flavor_comes_back_as_it_was_made(db: Database) -> None:
    given = flavor(
        "x",
        ephemeral_gb=3,
        swap_mb=512,
        rxtx_factor=1.5,
        is_public=False,
        description="für alle",
        extra_specs={"hw:cpu_policy": "dedicated"},
        projects=("p1",),
    )
    made = await db.write(lambda tx: flavors.create(tx, given, 1_000_000))
    assert made.id > 0
    found = await db.read(lambda tx: flavors.show(tx, "x"))
    assert found == made
    assert found is not None and found.is_public is False and found.disabled is False
    assert await db.read(lambda tx: flavors.show(tx, "y")) is None


@pytest.mark.capability("FL-5")
async def test_names_and_ids_are_taken_once(db: Database) -> None:
    await make(db, flavor("1", "one"))
    with pytest.raises(Conflict, match="Flavor with ID 1 already exists"):
        await make(db, flavor("1", "two"))
    with pytest.raises(Conflict, match="Flavor with name one already exists"):
        await make(db, flavor("2", "one"))
    assert await listed(db) == ["1"]


async def test_lists_filter(db: Database) -> None:
    await make(
        db,
        flavor("a", memory_mb=512, root_gb=1),
        flavor("b", memory_mb=1024, root_gb=20),
        flavor("c", is_public=False, projects=("p1", "p2")),
        flavor("d", disabled=True),
        flavor("e", is_public=False, projects=("p11", 'p"1')),
    )
    assert await listed(db) == ["a", "b", "d"]
    assert await listed(db, FlavorFilter(hide_disabled=True)) == ["a", "b"]
    assert await listed(db, FlavorFilter(project="p1")) == ["a", "b", "c", "d"]
    assert await listed(db, FlavorFilter(project="P1")) == ["a", "b", "d"]
    assert await listed(db, FlavorFilter(project='p"1')) == ["a", "b", "d", "e"]
    assert await listed(db, FlavorFilter(is_public=False)) == ["c", "e"]
    assert await listed(db, FlavorFilter(is_public=None)) == ["a", "b", "c", "d", "e"]
    assert await listed(db, FlavorFilter(min_ram=513)) == ["b"]
    assert await listed(db, FlavorFilter(min_disk=20)) == ["b"]
    assert await listed(db, FlavorFilter(name="name-b")) == ["b"]


async def test_pages_in_either_direction_have_every_flavor_once(db: Database) -> None:
    await make(db, *(flavor(str(number), memory_mb=512 * (1 + number % 3)) for number in range(8)))
    for key in flavors.SORT_KEYS:
        for descending in (False, True):
            seen: list[str] = []
            marker = None
            for _ in range(10):
                page = await listed(db, sort_key=key, descending=descending, marker=marker, limit=3)
                if not page:
                    break
                seen += page
                marker = page[-1]
            assert sorted(seen) == [str(number) for number in range(8)], (key, descending)
    by_ram = await db.read(
        lambda tx: flavors.list_page(tx, FlavorFilter(), sort_key="memory_mb", descending=True)
    )
    assert [one.memory_mb for one in by_ram] == sorted((one.memory_mb for one in by_ram), reverse=True)


async def test_bad_markers_and_sort_keys_are_refused(db: Database) -> None:
    with pytest.raises(Invalid, match=r"marker \[none\] not found"):
        await listed(db, marker="none")
    for key in ("projects", "extra_specs", "1; DROP TABLE flavors", ""):
        with pytest.raises(Invalid, match="cannot be sorted"):
            await listed(db, sort_key=key)


async def test_descriptions_change_and_flavors_go(db: Database) -> None:
    await make(db, flavor("1"))
    changed = await db.write(lambda tx: flavors.describe(tx, "1", "words", 2))
    assert changed.description == "words"
    assert (await db.write(lambda tx: flavors.describe(tx, "1", None, 3))).description is None
    await db.write(lambda tx: flavors.remove(tx, "1"))
    for change in (
        lambda tx: flavors.remove(tx, "1"),
        lambda tx: flavors.describe(tx, "1", "x", 4),
        lambda tx: flavors.set_extra_specs(tx, "1", {"a": "b"}, 4),
        lambda tx: flavors.delete_extra_spec(tx, "1", "a", 4),
        lambda tx: flavors.add_access(tx, "1", "p", 4),
        lambda tx: flavors.remove_access(tx, "1", "p", 4),
    ):
        with pytest.raises(NotFound, match="Flavor 1 could not be found"):
            await db.write(change)


async def test_extra_specs_of_many_writers_are_all_kept(db: Database) -> None:
    await make(db, flavor("1"))

    def adding(number: int) -> Any:
        def write(tx: Tx) -> dict[str, str]:
            return flavors.set_extra_specs(tx, "1", {f"k{number}": str(number)}, 5)

        return write

    await asyncio.gather(*(db.write(adding(number)) for number in range(12)))
    found = await db.read(lambda tx: flavors.show(tx, "1"))
    assert found is not None
    assert found.extra_specs == {f"k{number}": str(number) for number in range(12)}
    await db.write(lambda tx: flavors.delete_extra_spec(tx, "1", "k0", 6))
    with pytest.raises(NotFound, match="no extra specs with key k0"):
        await db.write(lambda tx: flavors.delete_extra_spec(tx, "1", "k0", 6))


async def test_access_is_given_and_taken_once(db: Database) -> None:
    await make(db, flavor("1", is_public=False))
    assert (await db.write(lambda tx: flavors.add_access(tx, "1", "p", 5))).projects == ("p",)
    with pytest.raises(Conflict, match="access already exists"):
        await db.write(lambda tx: flavors.add_access(tx, "1", "p", 5))
    assert (await db.write(lambda tx: flavors.remove_access(tx, "1", "p", 5))).projects == ()
    with pytest.raises(NotFound, match="access not found"):
        await db.write(lambda tx: flavors.remove_access(tx, "1", "p", 5))


async def test_an_empty_database_gets_devstacks_flavors_once(db: Database) -> None:
    assert await db.write(lambda tx: flavors.seed(tx, 7)) == 8
    assert await db.write(lambda tx: flavors.seed(tx, 7)) == 0
    found = {one.name: one for one in await db.read(flavors.list_all)}
    sizes = {name: (one.flavorid, one.memory_mb, one.root_gb, one.vcpus) for name, one in found.items()}
    assert sizes["m1.tiny"] == ("1", 512, 1, 1)
    assert sizes["m1.xlarge"] == ("5", 16384, 160, 8)
    assert sizes["m1.nano"] == ("42", 128, 1, 1)
