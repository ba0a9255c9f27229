"""The view in memory is always what the database says, whatever has changed and through whom."""

from __future__ import annotations

import contextlib
import random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kilonova.clock import Clock
from kilonova.db import placement_allocations as allocations
from kilonova.db import placement_names as names
from kilonova.db import placement_providers as providers
from kilonova.db import placement_view
from kilonova.db.engine import Database, Tx
from kilonova.db.placement_allocations import Consumer, Put
from kilonova.db.placement_view import Summary
from kilonova.errors import KilonovaError
from kilonova.model.host import Inventory, ProviderReport
from kilonova.services.placement.builtin import BuiltinPlacement
from kilonova.services.placement.view import SHARES, View
from tests.unit.placement.test_claims import consumer as new


@pytest.fixture
async def placement(db: Database, clock: Clock) -> BuiltinPlacement:
    return BuiltinPlacement(db, clock)


def of_view(view: View) -> dict[str, Summary]:
    return {uuid: node.found for uuid, node in view.nodes.items()}


async def check(placement: BuiltinPlacement) -> View:
    """What was kept up to date is what is read at once, and what follows from it."""
    view = await placement.views.current()
    whole = {each.provider.uuid: each for each in await placement.db.read(placement_view.summaries)}
    assert of_view(view) == whole
    assert {node.uuid for node in view.sharing} == {
        uuid for uuid, each in whole.items() if SHARES in each.traits
    }
    roots: dict[str, set[str]] = {}
    for uuid, each in whole.items():
        roots.setdefault(each.provider.root, set()).add(uuid)
    assert {root: {node.uuid for node in tree.nodes} for root, tree in view.trees.items()} == roots
    assert list(view.trees) == sorted(roots)
    for tree in view.trees.values():
        assert tree.aggregates == frozenset().union(*(whole[node.uuid].aggregates for node in tree.nodes))
        for node in tree.nodes:
            above = whole[node.uuid].provider.parent
            line = {node.uuid} | (tree.lines[above] if above else set())
            assert tree.lines[node.uuid] == line
            assert all(node in tree.giving[name] for name in whole[node.uuid].stock)
    return view


async def test_nothing_is_read_again_when_nothing_has_changed(placement: BuiltinPlacement) -> None:
    one, two = new(), new()
    for uuid in (one, two):
        await placement.report(uuid, uuid, {"VCPU": Inventory(total=4)}, ("HW_CPU_X86_AVX",))
    first = await check(placement)
    assert await placement.views.current() is first
    await placement.claim(new(), {one: {"VCPU": 1}}, "p", "u")
    second = await check(placement)
    assert second is not first and second.nodes[two] is first.nodes[two]
    assert second.trees[two] is first.trees[two] and second.trees[one] is not first.trees[one]
    assert first.nodes[one].shares["VCPU"].free == 4, "an old view stays what it was"
    assert second.nodes[one].shares["VCPU"].free == 3
    assert not await placement.claim(new(), {one: {"VCPU": 9}}, "p", "u")
    assert await placement.views.current() is second, "a claim that does not fit changes nothing"


async def test_each_change_is_seen(placement: BuiltinPlacement) -> None:
    """Also those that do not count for the generation."""
    db, top, low, leaf, server = placement.db, new(), new(), new(), new()
    await placement.report_tree(
        [
            ProviderReport(uuid=top, name="top", inventories={"CUSTOM_OLD": Inventory(total=9)}),
            ProviderReport(uuid=low, name="low", parent=top, inventories={"VCPU": Inventory(total=9)}),
            ProviderReport(uuid=leaf, name="leaf", parent=low),
        ]
    )
    owner = Consumer(uuid=server, generation=0, project_id="p", user_id="u")

    def aggregate(tx: Tx) -> None:
        providers.aggregates_of.replace(tx, low, [new()])
        providers.touch(tx, low)

    changes: list[Any] = [
        lambda: db.write(lambda tx: providers.change(tx, low, "renamed", top, reparent=True)),
        lambda: db.write(lambda tx: providers.change(tx, low, "renamed", None, reparent=True)),
        lambda: db.write(lambda tx: providers.change(tx, top, "top", low, reparent=True)),
        lambda: db.write(aggregate),
        lambda: placement.set_aggregate(low, new(), True),
        lambda: placement.set_trait(low, SHARES, True),
        lambda: placement.claim(server, {low: {"VCPU": 1}}, "p", "u"),
        lambda: db.write(lambda tx: allocations.put(tx, [Put(owner, {low: {"VCPU": 3}})])),
        lambda: placement.move(server, server[::-1]),
        lambda: placement.release(server[::-1]),
        lambda: db.write(lambda tx: names.rename_class(tx, "CUSTOM_OLD", "CUSTOM_NEW")),
        lambda: placement.reshape({top: {}, low: {"VGPU": Inventory(total=1)}}, {}),
        lambda: placement.remove(top),
        lambda: placement.report(top, "again", {}, ()),
    ]
    view = await check(placement)
    for change in changes:
        await change()
        newer = await check(placement)
        assert newer is not view
        view = newer


async def test_a_provider_that_is_made_anew_is_not_taken_for_the_old_one(placement: BuiltinPlacement) -> None:
    uuid = new()
    for total in range(1, 20):
        await placement.report(uuid, "host", {"VCPU": Inventory(total=total)}, ())
        view = await check(placement)
        assert view.nodes[uuid].shares["VCPU"].capacity == total
        await placement.remove(uuid)


async def test_what_another_controller_changes_is_seen(
    placement: BuiltinPlacement, db: Database, clock: Clock
) -> None:
    other, uuid = BuiltinPlacement(db, clock), new()
    await placement.report(uuid, "host", {"VCPU": Inventory(total=4)}, ())
    assert len((await check(other)).nodes) == 1
    assert await other.claim(new(), {uuid: {"VCPU": 1}}, "p", "u")
    assert (await check(placement)).nodes[uuid].shares["VCPU"].used == 1


@pytest.mark.parametrize("number", [1, placement_view.CHUNK, placement_view.CHUNK + 1, 200, 600])
async def test_as_many_as_have_changed(placement: BuiltinPlacement, number: int) -> None:
    """One chunk and several, and so many that all are read."""
    uuids = [new() for _ in range(number)]

    def make(tx: Tx) -> None:
        for uuid in uuids:
            providers.create(tx, uuid, uuid)
            providers.set_stock(tx, uuid, {"VCPU": Inventory(total=4)})
            providers.traits_of.replace(tx, uuid, {"HW_CPU_X86_AVX"})
            providers.touch(tx, uuid)

    await placement.report(new(), "other", {}, ())
    await check(placement)
    await placement.db.write(make)
    assert len((await check(placement)).nodes) == number + 1
    await placement.db.write(lambda tx: [providers.remove(tx, uuid) for uuid in uuids[1:]])
    assert len((await check(placement)).nodes) == 2


# ---- any changes, in any order ----

KINDS = ("report", "tree", "claim", "release", "move", "remove", "parent", "trait", "aggregate")
actions = st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 2**32)), min_size=1, max_size=14)


@given(actions, st.integers(1, 3))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
async def test_any_changes(placement: BuiltinPlacement, steps: list[tuple[str, int]], often: int) -> None:
    uuids, servers = [new() for _ in range(4)], [new() for _ in range(3)]
    for at, (action, seed) in enumerate(steps):
        with contextlib.suppress(KilonovaError):  # refused: nothing has changed, which is looked at as well
            await act(placement, action, random.Random(seed), uuids, servers)
        if at % often == 0:
            await check(placement)
    await check(placement)


async def act(
    placement: BuiltinPlacement, action: str, dice: random.Random, uuids: list[str], servers: list[str]
) -> None:
    one, two = dice.sample(uuids, 2)
    first, second = dice.sample(servers, 2)
    yes = dice.random() < 0.5
    stock = {name: Inventory(total=dice.randint(1, 9)) for name in ("VCPU", "VGPU") if dice.random() < 0.8}
    tree = [
        ProviderReport(uuid=one, name=one, inventories=stock),
        ProviderReport(uuid=two, name=two, parent=one, inventories=stock),
    ]
    ways: dict[str, Any] = {
        "report": lambda: placement.report(one, one, stock, ("HW_CPU_X86_AVX",)),
        "tree": lambda: placement.report_tree(tree if yes else tree[:1]),
        "claim": lambda: placement.claim(first, {one: {"VCPU": dice.randint(1, 4)}}, "p", "u"),
        "release": lambda: placement.release(first),
        "move": lambda: placement.move(first, second),
        "remove": lambda: placement.remove(one),
        "parent": lambda: placement.db.write(lambda tx: providers.change(tx, one, one, two, reparent=True)),
        "trait": lambda: placement.set_trait(one, SHARES, yes),
        "aggregate": lambda: placement.set_aggregate(one, two, yes),
    }
    await ways[action]()
