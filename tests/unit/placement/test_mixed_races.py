"""Everybody at once: claims on trees, several consumers replaced, handed over, reshaped, released.

Never more than there is, all or nothing, and what is counted is what is held.
"""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kilonova.clock import Clock
from kilonova.db import placement as bookings
from kilonova.db import placement_allocations as allocations
from kilonova.db import placement_providers as providers
from kilonova.db.engine import Database, Tx
from kilonova.db.placement_allocations import Consumer, Put
from kilonova.errors import Conflict, KilonovaError, NotFound
from kilonova.model.host import Inventory, ProviderReport
from kilonova.services.placement.builtin import BuiltinPlacement
from tests.unit.placement.test_claims import consumer as new

ROOM = {"VCPU": 6, "VGPU": 2}
KINDS = ("claim", "claim", "claim", "put", "post", "swap", "move", "release", "reshape", "report")


@pytest.fixture
async def placement(db: Database, clock: Clock) -> BuiltinPlacement:
    return BuiltinPlacement(db, clock)


class World:
    """Two hosts with a device each, and consumers that everybody meddles with."""

    def __init__(self, placement: BuiltinPlacement) -> None:
        self.placement = placement
        self.tops, self.devices = [new() for _ in range(2)], [new() for _ in range(2)]
        self.consumers = [new() for _ in range(5)]
        self.refused: list[str] = []

    def tree(self, at: int) -> list[ProviderReport]:
        top, device = self.tops[at], self.devices[at]
        return [
            ProviderReport(uuid=top, name=top, inventories={"VCPU": Inventory(total=ROOM["VCPU"])}),
            ProviderReport(
                uuid=device, name=device, parent=top, inventories={"VGPU": Inventory(total=ROOM["VGPU"])}
            ),
        ]

    async def begin(self) -> None:
        for at in range(2):
            await self.placement.report_tree(self.tree(at))

    def some(self, dice: random.Random) -> bookings.Held:
        at = dice.randrange(2)
        found = {self.tops[at]: {"VCPU": dice.randint(1, 4)}}
        if dice.random() < 0.5:
            found[self.devices[at]] = {"VGPU": dice.randint(1, 2)}
        return found

    def put(self, consumer: str, held: bookings.Held) -> Put:
        return Put(Consumer(uuid=consumer, generation=0, project_id="p", user_id="u"), held)

    async def act(self, kind: str, seed: int) -> None:
        dice = random.Random(seed)
        one, two = dice.sample(self.consumers, 2)
        write = self.placement.db.write
        ways: dict[str, Any] = {
            "claim": lambda: self.placement.claim(one, self.some(dice), "p", "u"),
            "put": lambda: self._write([self.put(one, self.some(dice))]),
            "post": lambda: self._write([self.put(one, self.some(dice)), self.put(two, self.some(dice))]),
            "swap": lambda: write(lambda tx: self._swap(tx, one, two)),
            "move": lambda: self.placement.move(one, two),
            "release": lambda: self.placement.release(one),
            "reshape": lambda: self._reshape(one, dice),
            "report": lambda: self.placement.report_tree(self.tree(dice.randrange(2))),
        }
        try:
            await ways[kind]()
        except (Conflict, NotFound) as error:
            self.refused.append(f"{kind}: {error}")

    async def _write(self, wanted: list[Put]) -> None:
        await self.placement.db.write(lambda tx: allocations.put(tx, wanted))

    def _swap(self, tx: Tx, one: str, two: str) -> None:
        """Each gets what the other has: always fits, also where all is full."""
        locked = allocations.lock(tx, [self.put(one, {}), self.put(two, {})])
        wanted = [self.put(one, locked.held[two]), self.put(two, locked.held[one])]
        try:
            allocations.put(tx, wanted, locked)
        except Conflict as error:
            raise AssertionError("what was held by two is held by two") from error

    async def _reshape(self, one: str, dice: random.Random) -> None:
        stock = {name: {"VCPU": Inventory(total=ROOM["VCPU"])} for name in self.tops}
        await self.placement.reshape(stock, {one: self.some(dice)})

    async def check(self) -> None:
        def look(tx: Tx) -> tuple[Any, Any, dict[str, Any]]:
            stock = {uuid: providers.stock(tx, uuid) for uuid in (*self.tops, *self.devices)}
            return bookings.audit(tx), stock, {each: bookings.held(tx, each) for each in self.consumers}

        differences, stock, held = await self.placement.db.read(look)
        assert differences == []
        for uuid, several in stock.items():
            for name, found in several.items():
                assert found.used <= ROOM[name], "over-committed"
                assert found.used == sum(each.get(uuid, {}).get(name, 0) for each in held.values())
        known = await self.placement.db.read(
            lambda tx: {each for each in self.consumers if allocations.consumer(tx, each)}
        )
        assert known == {each for each, found in held.items() if found}, (
            "consumers are those who hold something"
        )


@given(st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 2**32)), min_size=4, max_size=24))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
async def test_everybody_at_once(placement: BuiltinPlacement, actions: list[tuple[str, int]]) -> None:
    world = World(placement)
    await world.begin()
    async with asyncio.timeout(120):
        await asyncio.gather(*(world.act(kind, seed) for kind, seed in actions))
    await world.check()


async def test_nobody_waits_for_ever(placement: BuiltinPlacement) -> None:
    """Many more, in every order of locks."""
    world, dice = World(placement), random.Random(7)
    await world.begin()
    async with asyncio.timeout(120):
        for _ in range(4):
            kinds = [dice.choice(KINDS) for _ in range(60)]
            await asyncio.gather(*(world.act(kind, dice.getrandbits(32)) for kind in kinds))
            await world.check()


async def test_a_swap_of_what_fills_a_host(placement: BuiltinPlacement) -> None:
    world = World(placement)
    await world.begin()
    one, two = world.consumers[:2]
    full = {world.tops[0]: {"VCPU": 4}}, {world.tops[0]: {"VCPU": 2}, world.tops[1]: {"VCPU": 6}}
    await world._write([world.put(one, full[0]), world.put(two, full[1])])
    await placement.db.write(lambda tx: world._swap(tx, one, two))
    assert (await placement.held(one), await placement.held(two)) == (full[1], full[0])
    await world.check()
    with pytest.raises(KilonovaError):
        await world._write([world.put(one, {world.tops[0]: {"VCPU": 5}}), world.put(two, full[1])])
    assert (await placement.held(one), await placement.held(two)) == (full[1], full[0])
