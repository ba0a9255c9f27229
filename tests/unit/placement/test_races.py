"""Racing claims, releases and changes: never too much, all or nothing, and nobody waits for ever."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kilonova.clock import Clock
from kilonova.db import placement as bookings
from kilonova.db import placement_allocations as allocations
from kilonova.db import placement_names as names
from kilonova.db import placement_providers as providers
from kilonova.db.engine import Database, Tx
from kilonova.db.placement_allocations import Consumer, Put
from kilonova.db.placement_exchange import DoesNotFit
from kilonova.errors import Conflict, Invalid, NotFound
from kilonova.model.host import Inventory
from kilonova.services.placement import known
from kilonova.services.placement.builtin import BuiltinPlacement

few = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)


def new() -> str:
    return str(uuid.uuid4())


@pytest.fixture
async def placement(db: Database, clock: Clock) -> BuiltinPlacement:
    return BuiltinPlacement(db, clock)


async def host(placement: BuiltinPlacement, **stock: Inventory) -> str:
    made = new()
    await placement.report(made, made, stock, ())
    return made


async def used(placement: BuiltinPlacement, provider: str) -> dict[str, int]:
    assert await placement.db.read(bookings.audit) == []
    return next(each.used for each in await placement.providers() if each.uuid == provider)


_inventories = st.builds(
    Inventory,
    total=st.integers(1, 40),
    reserved=st.integers(0, 10),
    min_unit=st.integers(1, 3),
    max_unit=st.integers(1, 20),
    step_size=st.integers(1, 3),
    allocation_ratio=st.sampled_from([0.0, 0.5, 1.0, 1.1, 1.5, 16.0]),
)


@given(
    stock=st.dictionaries(st.sampled_from(["VCPU", "MEMORY_MB", "CUSTOM_X"]), _inventories, min_size=1),
    wanted=st.lists(
        st.dictionaries(st.sampled_from(["VCPU", "MEMORY_MB", "CUSTOM_X"]), st.integers(0, 12), min_size=1),
        min_size=1,
        max_size=24,
    ),
)
@few
async def test_any_racing_claims_never_over_commit(
    placement: BuiltinPlacement, stock: dict[str, Inventory], wanted: list[dict[str, int]]
) -> None:
    """Each is whole or not at all; those that were refused would not fit when it is over either."""
    stock = {name: each for name, each in stock.items() if each.reserved <= each.total}
    place = await host(placement, **stock)
    consumers = [new() for _ in wanted]
    fitted = await asyncio.gather(
        *(
            placement.claim(each, {place: amounts}, "p", "u")
            for each, amounts in zip(consumers, wanted, strict=True)
        )
    )
    taken = await used(placement, place)
    for name, inventory in stock.items():
        assert taken[name] == sum(
            amounts.get(name, 0) for amounts, fits in zip(wanted, fitted, strict=True) if fits
        )
        assert taken[name] <= (inventory.total - inventory.reserved) * inventory.allocation_ratio
    for consumer, amounts, fits in zip(consumers, wanted, fitted, strict=True):
        kept = {name: amount for name, amount in amounts.items() if amount}
        assert await placement.held(consumer) == ({place: kept} if fits and kept else {})
        if not fits:
            assert not await placement.claim(new(), {place: amounts}, "p", "u")
    await asyncio.gather(*(placement.release(each) for each in consumers))
    assert set((await used(placement, place)).values()) <= {0}


@pytest.mark.parametrize("room", [1, 5])
async def test_one_room_and_many_who_want_it(placement: BuiltinPlacement, room: int) -> None:
    for _ in range(3):
        place = await host(placement, VCPU=Inventory(total=room * 2))
        fitted = await asyncio.gather(
            *(placement.claim(new(), {place: {"VCPU": 2}}, "p", "u") for _ in range(32))
        )
        assert sum(fitted) == room
        assert await used(placement, place) == {"VCPU": room * 2}


async def test_claims_through_two_controllers(
    placement: BuiltinPlacement, db: Database, clock: Clock
) -> None:
    """Two services on one database, as two controllers are."""
    place = await host(placement, VCPU=Inventory(total=7))
    other = BuiltinPlacement(db, clock)
    claims = [each.claim(new(), {place: {"VCPU": 1}}, "p", "u") for each in (placement, other) * 12]
    assert sum(await asyncio.gather(*claims)) == 7


async def test_an_inventory_that_shrinks_while_it_is_claimed(placement: BuiltinPlacement) -> None:
    """What was claimed before may be too much afterwards, as in Placement; nothing more is booked then."""
    for _ in range(6):
        place = await host(placement, VCPU=Inventory(total=20))
        claims = [placement.claim(new(), {place: {"VCPU": 1}}, "p", "u") for _ in range(20)]
        shrink = placement.report(place, place, {"VCPU": Inventory(total=4)}, ())
        *first, _ = await asyncio.gather(*claims[:10], shrink)
        taken = sum(first)
        later = await asyncio.gather(*claims[10:])
        assert sum(later) == max(0, 4 - taken)
        assert await used(placement, place) == {"VCPU": taken + sum(later)}


async def test_a_provider_that_is_removed_while_it_is_claimed(placement: BuiltinPlacement) -> None:
    for _ in range(6):
        place = await host(placement, VCPU=Inventory(total=100))

        async def claim(place: str = place) -> bool | None:
            try:
                return await placement.claim(new(), {place: {"VCPU": 1}}, "p", "u")
            except NotFound:
                return None

        async def remove(place: str = place) -> bool:
            try:
                await placement.remove(place)
            except Conflict:
                return False
            return True

        first, removed, *others = await asyncio.gather(claim(), remove(), *(claim() for _ in range(6)))
        there = any(each.uuid == place for each in await placement.providers())
        assert there is not removed
        assert [first, *others].count(True) == (0 if removed else 7)
        assert await placement.db.read(bookings.audit) == []


def put(consumer: str, *pairs: tuple[str, dict[str, int]], generation: Any = allocations.ANY) -> Put:
    owner = Consumer(uuid=consumer, generation=0, project_id="p", user_id="u")
    return Put(owner, dict(pairs), generation)


async def test_many_consumers_at_once_in_every_order(placement: BuiltinPlacement) -> None:
    """Two hosts for two consumers in one request, the other way round in the next: nobody waits for ever."""
    one, two = [await host(placement, VCPU=Inventory(total=1000)) for _ in range(2)]
    tries: list[int] = []

    def write(number: int) -> Any:
        places = (one, two) if number % 2 else (two, one)
        wanted = [put(new(), (place, {"VCPU": 1})) for place in places for _ in range(3)]

        def transaction(tx: Tx) -> None:
            tries.append(number)
            allocations.put(tx, wanted)

        return placement.db.write(transaction)

    async with asyncio.timeout(60):
        await asyncio.gather(*(write(number) for number in range(40)))
    assert len(tries) == 40, "no transaction was a deadlock's victim"
    assert await used(placement, one) == await used(placement, two) == {"VCPU": 120}


async def test_what_one_gives_back_another_gets(placement: BuiltinPlacement) -> None:
    """A server moves from its migration's consumer to its own on a full host, in one request."""
    place = await host(placement, VCPU=Inventory(total=4))
    migration, server = new(), new()
    assert await placement.claim(migration, {place: {"VCPU": 4}}, "p", "u")
    wanted = [put(server, (place, {"VCPU": 4})), put(migration)]
    for _ in range(2):
        await placement.db.write(lambda tx: allocations.put(tx, wanted))
        assert (await placement.held(server), await placement.held(migration)) == ({place: {"VCPU": 4}}, {})
    assert await used(placement, place) == {"VCPU": 4}


async def test_all_or_nothing_of_several_consumers(placement: BuiltinPlacement) -> None:
    place = await host(placement, VCPU=Inventory(total=4))
    one, two = new(), new()
    assert await placement.claim(one, {place: {"VCPU": 3}}, "p", "u")
    before = await placement.providers()
    for wanted, error in (
        ([put(one, (place, {"VCPU": 1})), put(two, (place, {"VCPU": 4}))], DoesNotFit),
        ([put(one), put(two, (new(), {"VCPU": 1}))], NotFound),
        ([put(one), put(two, (place, {"VCPU": 1}), generation=7)], providers.ConcurrentUpdate),
        ([put(one, generation=None), put(two, (place, {"VCPU": 1}))], providers.ConcurrentUpdate),
    ):
        with pytest.raises(error):
            await placement.db.write(lambda tx, wanted=wanted: allocations.put(tx, wanted))
        assert await placement.providers() == before
        assert await placement.held(one) == {place: {"VCPU": 3}} and await placement.held(two) == {}


async def test_writers_who_know_the_generation_do_not_overwrite_each_other(
    placement: BuiltinPlacement,
) -> None:
    """Each reads and adds one, and repeats when it was not the first: nothing is lost."""
    place = await host(placement, VCPU=Inventory(total=1000))
    consumer = new()

    async def add_one() -> None:
        while True:

            def look(tx: Tx) -> tuple[int | None, int]:
                found = allocations.consumer(tx, consumer)
                held = bookings.held(tx, consumer)
                return (found.generation if found else None), held.get(place, {}).get("VCPU", 0)

            generation, amount = await placement.db.read(look)
            wanted = [put(consumer, (place, {"VCPU": amount + 1}), generation=generation)]
            try:
                await placement.db.write(lambda tx, wanted=wanted: allocations.put(tx, wanted))
            except providers.ConcurrentUpdate:
                continue
            return

    await asyncio.gather(*(add_one() for _ in range(12)))
    assert await placement.held(consumer) == {place: {"VCPU": 12}}


async def test_a_report_of_what_another_has_just_made(
    placement: BuiltinPlacement, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was not there when it was looked for, and is when it is to be made."""
    place, lock = await host(placement, VCPU=Inventory(total=1)), providers.lock
    looks: list[str] = []

    def late(tx: Tx, uuid: str, generation: int | None = None) -> providers.Provider:
        looks.append(uuid)
        if len(looks) == 1:
            raise NotFound("not yet")
        return lock(tx, uuid, generation)

    monkeypatch.setattr(providers, "lock", late)
    await placement.report(place, place, {"VCPU": Inventory(total=7)}, ())
    (found,) = await placement.providers()
    assert found.inventories == {"VCPU": Inventory(total=7)}
    with pytest.raises(Conflict, match="name"):
        await placement.report(new(), place, {}, ())


async def test_providers_changed_by_generation(placement: BuiltinPlacement) -> None:
    """Of sixteen who change what they have read of a provider, one is first and the others hear of it."""
    place = await host(placement, VCPU=Inventory(total=1))
    generation = (await placement.providers())[0].generation

    async def change(total: int) -> bool:
        wanted = {"VCPU": Inventory(total=total)}
        try:
            await placement.db.write(
                providers.changed(place, generation, lambda tx: providers.set_stock(tx, place, wanted))
            )
        except providers.ConcurrentUpdate:
            return False
        return True

    done = await asyncio.gather(*(change(total) for total in range(10, 26)))
    assert done.count(True) == 1
    (found,) = await placement.providers()
    assert (found.inventories["VCPU"].total, found.generation) == (10 + done.index(True), generation + 1)


def moving(placement: BuiltinPlacement, mover: str, parent: str) -> Any:
    """Whether one could be put under the other."""

    async def move() -> bool:
        try:
            await placement.db.write(lambda tx: providers.change(tx, mover, mover, parent, reparent=True))
        except Invalid:
            return False
        return True

    return move()


async def check_trees(placement: BuiltinPlacement, uuids: list[str]) -> None:
    found = {each.uuid: each for each in await placement.db.read(providers.list_all)}
    for each in uuids:
        seen, above = set(), found[each]
        while above.parent is not None:
            assert above.uuid not in seen, "a circle"
            seen.add(above.uuid)
            above = found[above.parent]
        assert found[each].root == above.uuid


@pytest.mark.parametrize("mover", [0, 1], ids=["roots", "inner"])
async def test_trees_do_not_become_circles(placement: BuiltinPlacement, mover: int) -> None:
    """Each of three trees moves below a leaf of the next, all at once: one of them is refused."""
    for _ in range(6):
        trees = [[await host(placement) for _ in range(3)] for _ in range(3)]
        for above, inner, leaf in trees:
            assert await moving(placement, inner, above) and await moving(placement, leaf, inner)
        moves = [moving(placement, trees[n][mover], trees[(n + 1) % 3][2]) for n in range(3)]
        async with asyncio.timeout(60):
            done = await asyncio.gather(*moves)
        assert done.count(True) == 2
        await check_trees(placement, [one for tree in trees for one in tree])


async def test_a_child_of_a_tree_that_moves(placement: BuiltinPlacement) -> None:
    """It knows the root that its tree has in the end."""
    for _ in range(8):
        top, leaf, other = [await host(placement) for _ in range(3)]
        assert await moving(placement, leaf, top)
        children = [new() for _ in range(4)]

        def born(child: str, leaf: str = leaf) -> Any:
            return placement.db.write(lambda tx: providers.create(tx, child, child, leaf))

        first, *rest = (born(child) for child in children)
        await asyncio.gather(first, moving(placement, top, other), *rest)
        await check_trees(placement, [top, leaf, other, *children])


async def test_a_name_that_goes_while_it_is_put_to_use(placement: BuiltinPlacement) -> None:
    """A trait or a class is either gone and unknown, or in use and stays."""
    for _ in range(8):
        place, trait = await host(placement), f"CUSTOM_{uuid.uuid4().hex.upper()}"
        await placement.db.write(lambda tx, trait=trait: names.traits.add(tx, trait))

        def use(tx: Tx, place: str = place, trait: str = trait) -> bool:
            if not known.hold_trait(tx, trait):
                return False
            providers.lock(tx, place)
            return providers.traits_of.replace(tx, place, {trait})

        def drop(tx: Tx, trait: str = trait) -> bool:
            names.traits.drop(tx, trait)
            if names.traits.in_use(tx, trait):
                raise Conflict("in use")
            return True

        async def try_to_drop(drop: Any = drop) -> bool:
            try:
                return bool(await placement.db.write(drop))
            except Conflict:
                return False

        in_use, gone = await asyncio.gather(placement.db.write(use), try_to_drop())
        assert in_use is not gone
        assert await placement.db.read(lambda tx, trait=trait: names.traits.known(tx, trait)) is in_use
