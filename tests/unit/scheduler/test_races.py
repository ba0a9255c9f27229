"""Sixteen schedulers with views of their own, one database: nothing is ever booked twice, and what a server
group promises holds, whatever comes first.

Hypothesis chooses flavors, hosts and what happens to them; which claim wins is the database's to say.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from kilonova.db import hosts, server_groups
from kilonova.db import placement as bookings
from kilonova.db.engine import Database, Tx
from kilonova.db.server_groups import MOST, ServerGroup
from kilonova.errors import Conflict, NotFound, NoValidHost
from kilonova.model.host import Inventory
from kilonova.scheduler.options import default_options
from kilonova.scheduler.request import Candidate, ServerRequest
from kilonova.scheduler.select import Scheduler
from kilonova.testing.clock import VirtualClock
from tests.unit.scheduler.states import request
from tests.unit.scheduler.town import FULL, Town, node

SCHEDULERS = 16
# A race is not the same when it is run again: an example that failed cannot be made smaller.
PHASES = (Phase.explicit, Phase.generate)
numbers = iter(range(10**9))
Size = tuple[int, int, int]  # CPUs, memory, gold

flavors = st.fixed_dictionaries(
    {"VCPU": st.integers(1, 5), "MEMORY_MB": st.integers(1, 1500)},
    optional={"CUSTOM_GOLD": st.integers(1, 2)},
)
EVENTS = ["appears", "vanishes", "shrinks", "deleted", "deleted"]
host_sizes = st.tuples(st.integers(1, 12), st.integers(100, 4096), st.integers(0, 3))


def names(count: int) -> list[str]:
    """Of hosts that no other example has."""
    return [f"h{next(numbers)}" for _ in range(count)]


async def add(town: Town, name: str, size: Size) -> None:
    cpus, memory, gold = size
    await town.add(name, cpus=cpus, memory=memory)
    if gold:
        stock = {"VCPU": Inventory(total=cpus), "MEMORY_MB": Inventory(total=memory)}
        await town.placement.report(
            node(name), f"{name}.example", {**stock, "CUSTOM_GOLD": Inventory(total=gold)}, ()
        )


class Race:
    """Servers that are placed, and taken away, by many at once."""

    def __init__(self, town: Town, chance: random.Random) -> None:
        self.town = town
        self.chance = chance
        self.schedulers = [town.another(seed) for seed in range(SCHEDULERS)]
        self.placed: dict[str, dict[str, Any]] = {}  # server -> what it holds
        self.successes = 0

    async def place(self, scheduler: Scheduler, resources: dict[str, int], **more: Any) -> str | None:
        """The host, if one took it."""
        wanted = request(uuid=f"server-{next(numbers)}", resources=resources, **more)

        async def claim(candidate: Candidate) -> str | None:
            return await self.claim(wanted, candidate)

        try:
            found = await scheduler.select(wanted, claim)
        except NoValidHost as error:
            assert error.reasons or not (await self.town.another().view.current()).row_of
            return None
        self.placed[wanted.uuid] = found.allocations
        self.successes += 1
        return found.host

    async def claim(self, wanted: ServerRequest, candidate: Candidate) -> str | None:
        if self.chance.random() < 0.3:
            await asyncio.sleep(0)
        also = None
        if "group" in wanted.hints:
            group = str(wanted.hints["group"])

            def also(tx: Tx) -> bool:
                return server_groups.violation(tx, group, wanted.uuid, candidate.compute_id) is None

        fitted = await self.town.placement.claim(wanted.uuid, candidate.allocations, "p1", "u1", also=also)
        return None if fitted else FULL

    async def take_away(self) -> None:
        if self.placed:
            uuid = self.chance.choice(sorted(self.placed))
            if self.placed.pop(uuid, None) is not None:
                await self.town.placement.release(uuid)


async def clear(town: Town, race: Race) -> None:
    """Nothing is left for the next example."""
    for uuid in race.placed:
        await town.placement.release(uuid)
    for host in await town.db.read(hosts.list_all):
        await town.db.write(lambda tx, host=host: hosts.remove(tx, host.host))
    for each in await town.placement.providers():
        await town.placement.remove(each.uuid)


class Events:
    """What happens to hosts while servers are placed."""

    def __init__(self, race: Race, sizes: list[Size], here: list[str]) -> None:
        self.race, self.sizes, self.here = race, sizes, here

    async def happen(self, event: str) -> None:
        town, chance = self.race.town, self.race.chance
        if event == "appears":
            (name,) = names(1)
            await add(town, name, chance.choice(self.sizes))
            self.here.append(name)
        elif event == "deleted":
            await self.race.take_away()
        else:
            with contextlib.suppress(Conflict, NotFound):  # it has servers, or has gone already
                await (self._vanish if event == "vanishes" else self._shrink)(chance.choice(self.here))

    async def _vanish(self, name: str) -> None:
        await self.race.town.placement.remove(node(name))
        await self.race.town.db.write(lambda tx: hosts.remove(tx, name))

    async def _shrink(self, name: str) -> None:
        await self.race.town.placement.report(
            node(name), f"{name}.example", {"VCPU": Inventory(total=1), "MEMORY_MB": Inventory(total=1)}, ()
        )


async def the_race(
    town: Town, sizes: list[Size], wishes: list[dict[str, int]], events: list[str], chance: random.Random
) -> None:
    here = names(len(sizes))
    for name, size in zip(here, sizes, strict=True):
        await add(town, name, size)
    race = Race(town, chance)
    happening = Events(race, sizes, here)
    work: list[Any] = [race.place(chance.choice(race.schedulers), wish) for wish in wishes]
    work += [happening.happen(event) for event in events]
    chance.shuffle(work)
    await asyncio.gather(*work)
    await check_books(town, race, may_shrink="shrinks" in events)
    await check_nobody_is_refused_wrongly(town, race)
    await clear(town, race)


async def check_books(town: Town, race: Race, *, may_shrink: bool) -> None:
    """Every server holds what it was told, all of it is counted, and nowhere is more than there is."""
    assert await town.db.read(bookings.audit) == []
    held = {uuid: await town.placement.held(uuid) for uuid in race.placed}
    assert held == race.placed
    used: Counter[tuple[str, str]] = Counter()
    for allocations in held.values():
        for provider, resources in allocations.items():
            for name, amount in resources.items():
                used[provider, name] += amount
    for each in await town.placement.providers():
        for name, amount in each.used.items():
            assert amount == used[each.uuid, name]
            assert may_shrink or amount <= each.inventories[name].capacity


async def check_nobody_is_refused_wrongly(town: Town, race: Race) -> None:
    """When all is quiet, each scheduler sees what is free, and finds it."""
    for scheduler in race.schedulers[:3]:
        told = await scheduler.explain(request(resources={"VCPU": 1}))
        free = {
            each.name.removesuffix(".example")
            for each in await town.placement.providers()
            if each.inventories["VCPU"].capacity > each.used["VCPU"]
            and each.uuid in {host.compute_id for host in await town.db.read(hosts.list_all)}
        }
        assert {each.host for each in told.ranked} == free


async def test_sixteen_schedulers_never_over_commit(db: Database, clock: VirtualClock) -> None:
    """A Hypothesis test on a loop of ours: each example is a race of its own on the same database."""
    town = Town(db, clock)
    loop = asyncio.get_running_loop()

    @settings(max_examples=25, suppress_health_check=list(HealthCheck), deadline=None, phases=PHASES)
    @given(
        sizes=st.lists(host_sizes, min_size=1, max_size=6),
        wishes=st.lists(flavors, min_size=16, max_size=40),
        events=st.lists(st.sampled_from(EVENTS), max_size=12),
        seed=st.integers(0, 2**32),
    )
    def example(**drawn: Any) -> None:
        seed = drawn.pop("seed")
        work = the_race(town, chance=random.Random(seed), **drawn)
        asyncio.run_coroutine_threadsafe(work, loop).result()

    await asyncio.to_thread(example)


async def the_group_race(
    town: Town, policy: str, most: int, hosts: int, servers: int, chance: random.Random
) -> None:
    for name in names(hosts):
        await town.add(name, cpus=chance.randint(2, 8))
    uuid = f"group-{next(numbers)}"
    made = ServerGroup(
        id=0,
        uuid=uuid,
        project_id="p1",
        user_id="u1",
        name="g",
        policy=policy,
        rules={MOST: most} if policy == "anti-affinity" else {},
        created_at=1,
    )
    made = await town.db.write(lambda tx: server_groups.create(tx, made, limit=-1, user_limit=None))
    race = Race(town, chance)
    first = next(numbers) + 1
    uuids = [f"server-{number}" for number in range(first, first + servers + 200)]
    await town.db.write(lambda tx: server_groups.add_members(tx, uuid, uuids, "u1", -1))

    async def some(scheduler: Scheduler) -> None:
        for _ in range(max(1, servers // SCHEDULERS)):
            await race.place(scheduler, {"VCPU": 1, "MEMORY_MB": 1}, hints={"group": uuid})
            if chance.random() < 0.2:
                await race.take_away()

    await asyncio.gather(*(some(scheduler) for scheduler in race.schedulers))
    where = Counter(provider for held in race.placed.values() for provider in held)
    if policy == "anti-affinity":
        assert all(count <= most for count in where.values())
    else:
        assert len(where) <= 1
    assert race.successes
    await town.db.write(lambda tx: server_groups.remove(tx, uuid))
    await clear(town, race)


@pytest.mark.capability("MG-BLD-7")
async def test_sixteen_schedulers_keep_the_policy_of_a_group(db: Database, clock: VirtualClock) -> None:
    # Each takes one of all hosts by chance: where all agreed on the best one, nobody would break anything.
    town = Town(db, clock, default_options(host_subset_size=6))
    loop = asyncio.get_running_loop()

    @settings(max_examples=15, suppress_health_check=list(HealthCheck), deadline=None, phases=PHASES)
    @given(
        policy=st.sampled_from(["affinity", "anti-affinity"]),
        most=st.integers(1, 3),
        hosts=st.integers(2, 6),
        servers=st.integers(16, 40),
        seed=st.integers(0, 2**32),
    )
    def example(**drawn: Any) -> None:
        seed = drawn.pop("seed")
        work = the_group_race(town, chance=random.Random(seed), **drawn)
        asyncio.run_coroutine_threadsafe(work, loop).result()

    await asyncio.to_thread(example)
