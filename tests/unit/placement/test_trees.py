"""Whole trees that hosts report, consumers that hand over what they hold, inventories that move."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from kilonova.clock import Clock
from kilonova.db import placement as bookings
from kilonova.db import placement_allocations as allocations
from kilonova.db import placement_providers as providers
from kilonova.db.engine import Database, Tx
from kilonova.db.placement_exchange import DoesNotFit
from kilonova.errors import Conflict, Invalid, NotFound
from kilonova.model.host import Inventory, ProviderReport
from kilonova.services.placement.builtin import BuiltinPlacement
from kilonova.services.placement.port import ProviderSummary
from tests.unit.placement.test_claims import consumer as new


@pytest.fixture
async def placement(db: Database, clock: Clock) -> BuiltinPlacement:
    return BuiltinPlacement(db, clock)


async def all_of(placement: BuiltinPlacement) -> dict[str, ProviderSummary]:
    assert await placement.db.read(bookings.audit) == []
    return {each.uuid: each for each in await placement.providers()}


def told(uuid: str, parent: str | None = None, name: str = "", **more: Any) -> ProviderReport:
    fields = {each: more.pop(each) for each in ("traits", "aggregates", "initial_ratios") if each in more}
    stock = {
        each: found if isinstance(found, Inventory) else Inventory(total=found)
        for each, found in more.items()
    }
    return ProviderReport(uuid=uuid, name=name or f"n-{uuid}", parent=parent, inventories=stock, **fields)


# ---- trees ----


async def test_a_tree_is_as_it_is_reported(placement: BuiltinPlacement) -> None:
    top, numa, gpu, aggregate = new(), new(), new(), new()
    tree = [
        told(top, VCPU=8, traits=("COMPUTE_NODE",)),
        told(numa, top, MEMORY_MB=100, traits=("HW_NUMA_ROOT", "CUSTOM_CELL"), aggregates=(aggregate,)),
        told(gpu, numa, CUSTOM_GPU=1),
    ]
    assert await placement.report_tree(tree) == []
    first = await all_of(placement)
    assert {uuid: each.parent for uuid, each in first.items()} == {top: None, numa: top, gpu: numa}
    assert first[numa].traits == {"HW_NUMA_ROOT", "CUSTOM_CELL"} and first[numa].aggregates == {aggregate}
    assert first[gpu].inventories == {"CUSTOM_GPU": Inventory(total=1)}
    assert (await placement.db.read(lambda tx: providers.show(tx, gpu))).root == top
    assert await placement.report_tree(tree) == []
    assert await all_of(placement) == first, "the same again changes nothing"
    moved = [told(top, VCPU=9, traits=("COMPUTE_NODE",)), told(gpu, top, name="other", CUSTOM_GPU=2)]
    assert await placement.report_tree(moved) == []
    found = await all_of(placement)
    assert set(found) == {top, gpu} and (found[gpu].parent, found[gpu].name) == (top, "other")
    assert found[gpu].inventories["CUSTOM_GPU"].total == 2 and found[top].inventories["VCPU"].total == 9


async def test_what_others_made_of_a_tree_stays(placement: BuiltinPlacement) -> None:
    rack, top, numa, agent, port, aggregate = (new() for _ in range(6))

    def by_the_api(tx: Tx) -> None:
        providers.create(tx, rack, "rack")
        providers.create(tx, top, "n", rack)
        providers.create(tx, agent, "agent", top)

    await placement.db.write(by_the_api)
    await placement.report_tree([told(top, VCPU=8), told(numa, top, VGPU=1)])
    await placement.db.write(lambda tx: providers.create(tx, port, "port", numa))
    await placement.set_aggregate(top, aggregate, True)
    await placement.set_trait(top, "CUSTOM_MINE", True)
    assert await placement.report_tree([told(top, VCPU=8)]) == [numa], "somebody's port hangs on it"
    found = await all_of(placement)
    assert {uuid: each.parent for uuid, each in found.items()} == {
        rack: None,
        top: rack,
        agent: top,
        numa: top,
        port: numa,
    }
    assert found[top].aggregates == {aggregate} and found[top].traits == {"CUSTOM_MINE"}
    await placement.remove(port)
    assert await placement.report_tree([told(top, VCPU=8)]) == []
    assert set(await all_of(placement)) == {rack, top, agent}


async def test_trees_of_other_hosts_stay(placement: BuiltinPlacement) -> None:
    one, two, rack = new(), new(), new()
    await placement.db.write(lambda tx: providers.create(tx, rack, "rack"))
    for top in (one, two):
        await placement.report_tree([told(top, VCPU=1), told(new(), top, VGPU=1)])
        await placement.db.write(
            lambda tx, top=top: providers.change(tx, top, f"n-{top}", rack, reparent=True)
        )
    assert await placement.report_tree([told(one, VCPU=1)]) == []
    assert len(await all_of(placement)) == 4, "the other host's device is there"


async def test_a_child_that_vanished_stays_while_somebody_holds_it(placement: BuiltinPlacement) -> None:
    top, numa, gpu, other, server = (new() for _ in range(5))
    tree = [told(top, VCPU=8), told(numa, top), told(gpu, numa, VGPU=1), told(other, numa, VGPU=1)]
    await placement.report_tree(tree)
    assert await placement.claim(server, {top: {"VCPU": 1}, gpu: {"VGPU": 1}}, "p", "u")
    assert await placement.report_tree(tree[:1]) == [gpu, numa], "and what is above it, the leaf first"
    assert set(await all_of(placement)) == {top, numa, gpu}
    assert await placement.held(server) == {top: {"VCPU": 1}, gpu: {"VGPU": 1}}
    await placement.release(server)
    assert await placement.report_tree(tree[:1]) == []
    assert set(await all_of(placement)) == {top}


async def test_a_ratio_for_new_records_only(placement: BuiltinPlacement) -> None:
    top = new()
    ratio = {
        "VCPU": Inventory(total=4, allocation_ratio=4.0),
        "MEMORY_MB": Inventory(total=9, allocation_ratio=2.0),
    }
    report = told(top, initial_ratios=("VCPU",), **ratio)
    await placement.report_tree([report])
    assert (await all_of(placement))[top].inventories == ratio
    by_operator = {name: Inventory(total=4, allocation_ratio=16.0) for name in ratio}
    await placement.db.write(lambda tx: providers.set_stock(tx, top, by_operator))
    await placement.report_tree([report])
    await placement.report(top, report.name, report.inventories, (), ("VCPU",))
    found = await placement.db.read(lambda tx: providers.stock(tx, top))
    assert found["VCPU"].inventory == Inventory(total=4, allocation_ratio=16.0), "the operator's stays"
    assert found["MEMORY_MB"].inventory == ratio["MEMORY_MB"]
    await placement.report(top, report.name, ratio, ())
    found = await placement.db.read(lambda tx: providers.stock(tx, top))
    assert found["VCPU"].inventory == ratio["VCPU"]


async def test_a_tree_is_taken_over_whole_or_not_at_all(placement: BuiltinPlacement) -> None:
    top, gpu, server = new(), new(), new()
    await placement.report_tree([told(top, VCPU=8), told(gpu, top, VGPU=1)])
    assert await placement.claim(server, {gpu: {"VGPU": 1}}, "p", "u")
    before = await all_of(placement)
    for tree, error in (
        ([told(top, VCPU=9), told(gpu, top)], providers.InventoryInUse),
        ([told(top, VCPU=9), told(gpu, new())], Invalid),
        ([told(top, VCPU=9), told(new(), top, name=f"n-{gpu}")], providers.DuplicateName),
        ([told(top, gpu, VCPU=9), told(gpu, top)], Invalid),
        ([told(top, VCPU=9, traits=("no trait",))], Invalid),
        ([told(top, **{"no class": 1})], Invalid),
    ):
        with pytest.raises(error):
            await placement.report_tree(tree)
        assert await all_of(placement) == before


async def test_trees_that_are_reported_by_many_at_once(placement: BuiltinPlacement) -> None:
    tops = [new() for _ in range(4)]
    trees = [[told(top, VCPU=8), *(told(new(), top, VGPU=1) for _ in range(3))] for top in tops]
    async with asyncio.timeout(60):
        left = await asyncio.gather(*(placement.report_tree(tree) for tree in trees * 4))
    assert left == [[]] * 16 and len(await all_of(placement)) == 16


# ---- moving ----


@pytest.fixture
async def host(placement: BuiltinPlacement) -> str:
    uuid = new()
    await placement.report(uuid, "host", {"VCPU": Inventory(total=4)}, ())
    return uuid


async def test_what_one_holds_is_handed_over(placement: BuiltinPlacement, host: str) -> None:
    server, migration = new(), new()
    assert await placement.claim(server, {host: {"VCPU": 4}}, "p", "u")
    generation = (await all_of(placement))[host].generation
    assert await placement.move(server, migration, consumer_type="MIGRATION")
    assert (await placement.held(server), await placement.held(migration)) == ({}, {host: {"VCPU": 4}})
    found = await all_of(placement)
    assert found[host].used == {"VCPU": 4} and found[host].generation == generation + 1
    kept = await placement.db.read(lambda tx: allocations.consumer(tx, migration))
    assert kept is not None
    assert (kept.project_id, kept.user_id, kept.consumer_type, kept.generation) == ("p", "u", "MIGRATION", 1)
    assert not await placement.move(server, migration), "a repeat finds nothing, and changes nothing"
    assert await placement.held(migration) == {host: {"VCPU": 4}}
    assert await placement.move(migration, server)
    kept = await placement.db.read(lambda tx: allocations.consumer(tx, server))
    assert kept is not None and kept.consumer_type == "MIGRATION", "the same unless another is given"


async def test_what_is_not_handed_over(placement: BuiltinPlacement, host: str) -> None:
    server, other = new(), new()
    assert await placement.claim(server, {host: {"VCPU": 1}}, "p", "u")
    assert await placement.claim(other, {host: {"VCPU": 1}}, "p", "u")
    before = await all_of(placement)
    with pytest.raises(Conflict, match="of its own"):
        await placement.move(server, other)
    with pytest.raises(providers.ConcurrentUpdate):
        await placement.move(server, new(), generation=7)
    assert not await placement.move(new(), new())
    assert await all_of(placement) == before
    assert await placement.move(server, new(), generation=1)


async def test_a_move_and_what_is_done_with_it(placement: BuiltinPlacement, host: str) -> None:
    """A server's old place goes to its migration and the new one is booked for it, or neither."""
    server, migration, target = new(), new(), new()
    await placement.report(target, "target", {"VCPU": Inventory(total=4)}, ())
    assert await placement.claim(server, {host: {"VCPU": 4}}, "p", "u")

    def booking(amount: int) -> Any:
        return lambda tx: bookings.claim(tx, server, {target: {"VCPU": amount}}, "p", "u")

    before = await all_of(placement)
    assert not await placement.move(server, migration, also=booking(5))
    assert await all_of(placement) == before and await placement.held(server) == {host: {"VCPU": 4}}
    assert await placement.move(server, migration, also=booking(3))
    assert await placement.held(server) == {target: {"VCPU": 3}}
    assert await placement.held(migration) == {host: {"VCPU": 4}}
    assert (await all_of(placement))[target].used == {"VCPU": 3}


async def test_only_one_of_many_gets_it(placement: BuiltinPlacement, host: str) -> None:
    server, heirs = new(), [new() for _ in range(16)]
    assert await placement.claim(server, {host: {"VCPU": 4}}, "p", "u")
    moved = await asyncio.gather(*(placement.move(server, each) for each in heirs))
    assert sum(moved) == 1
    held = [await placement.held(each) for each in heirs]
    assert held[moved.index(True)] == {host: {"VCPU": 4}} and sum(map(bool, held)) == 1
    assert (await all_of(placement))[host].used == {"VCPU": 4}


# ---- reshaping ----


async def test_inventory_moves_to_a_child_with_what_is_held_of_it(placement: BuiltinPlacement) -> None:
    top, gpu, one, two = new(), new(), new(), new()
    stock = {"VCPU": Inventory(total=4), "VGPU": Inventory(total=2)}
    await placement.report(top, "top", stock, ())
    for each in (one, two):
        assert await placement.claim(each, {top: {"VCPU": 2, "VGPU": 1}}, "p", "u")
    await placement.db.write(lambda tx: providers.create(tx, gpu, "gpu", top))
    with pytest.raises(Conflict):
        await placement.report_tree([told(top, VCPU=4), told(gpu, top, VGPU=2)])
    inventories = {top: {"VCPU": Inventory(total=4)}, gpu: {"VGPU": Inventory(total=2)}}
    moved = {top: {"VCPU": 2}, gpu: {"VGPU": 1}}
    before = await all_of(placement)
    for wrong, held, error in (
        (inventories, {one: moved}, providers.InventoryInUse),
        (inventories, {one: moved, two: {top: {"VCPU": 2}, gpu: {"VGPU": 2}}}, DoesNotFit),
        ({**inventories, gpu: {"VGPU": Inventory(total=1)}}, {one: moved, two: moved}, DoesNotFit),
        (inventories, {one: moved, new(): moved}, NotFound),
        ({**inventories, new(): {}}, {one: moved, two: moved}, NotFound),
        (inventories, {one: moved, two: {new(): {"VGPU": 1}}}, NotFound),
    ):
        with pytest.raises(error):
            await placement.reshape(wrong, held)
        assert await all_of(placement) == before
        assert await placement.held(one) == {top: {"VCPU": 2, "VGPU": 1}}
    await placement.reshape(inventories, {one: moved, two: moved})
    found = await all_of(placement)
    assert (found[top].inventories, found[top].used) == (inventories[top], {"VCPU": 4})
    assert (found[gpu].inventories, found[gpu].used) == (inventories[gpu], {"VGPU": 2})
    assert await placement.held(one) == await placement.held(two) == moved
    kept = await placement.db.read(lambda tx: allocations.consumer(tx, one))
    assert kept is not None and (kept.project_id, kept.consumer_type) == ("p", "INSTANCE")
    assert (
        await placement.report_tree([told(top, VCPU=4, name="top"), told(gpu, top, VGPU=2, name="gpu")]) == []
    )


async def test_a_reshape_while_others_book(placement: BuiltinPlacement) -> None:
    """Nothing is lost and nothing is booked twice, whoever is first."""
    top, gpu = new(), new()
    await placement.report(top, "top", {"VCPU": Inventory(total=64), "VGPU": Inventory(total=64)}, ())
    await placement.db.write(lambda tx: providers.create(tx, gpu, "gpu", top))
    server, others = new(), [new() for _ in range(12)]
    assert await placement.claim(server, {top: {"VCPU": 1, "VGPU": 1}}, "p", "u")
    inventories = {top: {"VCPU": Inventory(total=64)}, gpu: {"VGPU": Inventory(total=64)}}

    async def reshape() -> bool:
        try:
            await placement.reshape(inventories, {server: {top: {"VCPU": 1}, gpu: {"VGPU": 1}}})
        except providers.InventoryInUse:
            return False
        return True

    reshaped, *booked = await asyncio.gather(
        reshape(), *(placement.claim(each, {top: {"VGPU": 1}}, "p", "u") for each in others)
    )
    found = await all_of(placement)
    assert any(booked) is not reshaped
    assert found[gpu if reshaped else top].used["VGPU"] == 1 + sum(booked)
