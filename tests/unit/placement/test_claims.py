"""Booking: all or nothing, never too much, back again, on both databases."""

from __future__ import annotations

import asyncio
import uuid

import pytest

from kilonova.clock import Clock
from kilonova.db import placement as bookings
from kilonova.db import placement_allocations as allocations
from kilonova.db.engine import Database, Tx
from kilonova.db.placement_allocations import Consumer
from kilonova.errors import Conflict, Invalid, NotFound
from kilonova.model.host import Inventory
from kilonova.services.placement.builtin import BuiltinPlacement

HOST = "11111111-1111-4111-8111-111111111111"
BOOT = {"VCPU": 2, "MEMORY_MB": 1024, "DISK_GB": 10}
STOCK = {
    "VCPU": Inventory(total=4, allocation_ratio=2.5),
    "MEMORY_MB": Inventory(total=4608, reserved=512, min_unit=256, max_unit=4096, step_size=256),
    "DISK_GB": Inventory(total=100),
}


@pytest.fixture
async def placement(db: Database, clock: Clock) -> BuiltinPlacement:
    built = BuiltinPlacement(db, clock)
    await built.report(HOST, "host-a", STOCK, ("HW_CPU_X86_AVX2",))
    return built


async def used(placement: BuiltinPlacement, uuid: str = HOST) -> dict[str, int]:
    assert await placement.db.read(bookings.audit) == []
    return next(each.used for each in await placement.providers() if each.uuid == uuid)


def consumer() -> str:
    return str(uuid.uuid4())


async def test_a_claim_is_held_until_it_is_released(placement: BuiltinPlacement) -> None:
    server = consumer()
    assert await placement.claim(server, {HOST: BOOT}, "p", "u")
    assert await placement.held(server) == {HOST: BOOT}
    assert await used(placement) == BOOT
    await placement.release(server)
    await placement.release(server)
    assert await placement.held(server) == {}
    assert await used(placement) == {"VCPU": 0, "MEMORY_MB": 0, "DISK_GB": 0}


async def test_the_same_claim_again_converges_and_another_is_refused(placement: BuiltinPlacement) -> None:
    server = consumer()
    assert await placement.claim(server, {HOST: BOOT}, "p", "u")
    generation = (await placement.providers())[0].generation
    assert await placement.claim(server, {HOST: {**BOOT, "VGPU": 0}}, "p", "u")
    assert (await placement.providers())[0].generation == generation
    with pytest.raises(Conflict, match="release them first"):
        await placement.claim(server, {HOST: {"VCPU": 1}}, "p", "u")
    assert await used(placement) == BOOT


@pytest.mark.parametrize(
    "resources",
    [
        {"VCPU": 11},
        {"VCPU": 1, "MEMORY_MB": 300},
        {"VCPU": 1, "MEMORY_MB": 128},
        {"VCPU": 1, "MEMORY_MB": 4352},
        {"DISK_GB": 10, "VCPU": 1, "VGPU": 1},
    ],
    ids=["capacity", "step", "least", "most", "no inventory"],
)
async def test_what_does_not_fit_leaves_nothing(
    placement: BuiltinPlacement, resources: dict[str, int]
) -> None:
    before = (await placement.providers())[0]
    server = consumer()
    assert not await placement.claim(server, {HOST: resources}, "p", "u")
    assert (await placement.providers())[0] == before
    assert await placement.held(server) == {}
    assert await used(placement) == {"VCPU": 0, "MEMORY_MB": 0, "DISK_GB": 0}
    assert await placement.claim(server, {HOST: BOOT}, "p", "u"), "the consumer may try again"


async def test_a_failed_claim_within_another_transaction_spares_the_rest(placement: BuiltinPlacement) -> None:
    first, second = consumer(), consumer()

    def both(tx: Tx) -> list[bool]:
        return [
            bookings.claim(tx, first, {HOST: {"DISK_GB": 60}}, "p", "u"),
            bookings.claim(tx, second, {HOST: {"VCPU": 1, "DISK_GB": 60}}, "p", "u"),
        ]

    assert await placement.db.write(both) == [True, False]
    assert await used(placement) == {"VCPU": 0, "MEMORY_MB": 0, "DISK_GB": 60}


async def test_a_claim_moves_the_generation(placement: BuiltinPlacement) -> None:
    before = (await placement.providers())[0].generation
    server = consumer()
    await placement.claim(server, {HOST: BOOT}, "p", "u")
    await placement.release(server)
    assert (await placement.providers())[0].generation == before + 2


async def test_bad_claims(placement: BuiltinPlacement) -> None:
    with pytest.raises(NotFound):
        await placement.claim(consumer(), {consumer(): BOOT}, "p", "u")
    with pytest.raises(Invalid):
        await placement.claim(consumer(), {HOST: {"VCPU": -1}}, "p", "u")
    server = consumer()
    assert await placement.claim(server, {HOST: {"VCPU": 0}}, "p", "u")
    assert await placement.held(server) == {}


async def test_racing_claims_never_book_too_much(placement: BuiltinPlacement) -> None:
    """Sixteen at a time, thrice as many as there is room for, while others release."""
    room = 4  # MEMORY_MB 4096 / 1024
    servers = [consumer() for _ in range(48)]
    booked: list[str] = []

    async def claimer(mine: list[str]) -> None:
        for server in mine:
            if await placement.claim(server, {HOST: BOOT}, "p", "u"):
                booked.append(server)
                held = (await placement.providers())[0].used
                assert held["MEMORY_MB"] <= room * 1024
                if len(booked) % 2:
                    booked.remove(server)
                    await placement.release(server)

    await asyncio.gather(*(claimer(servers[n::16]) for n in range(16)))
    assert len(booked) <= room
    assert await used(placement) == {name: amount * len(booked) for name, amount in BOOT.items()}


async def test_the_same_consumer_claimed_by_two_at_once_is_booked_once(placement: BuiltinPlacement) -> None:
    server = consumer()
    results = await asyncio.gather(*(placement.claim(server, {HOST: BOOT}, "p", "u") for _ in range(16)))
    assert all(results)
    assert await used(placement) == BOOT
    await asyncio.gather(*(placement.release(server) for _ in range(16)))
    assert await used(placement) == {"VCPU": 0, "MEMORY_MB": 0, "DISK_GB": 0}


async def test_consumers_of_two_hosts_do_not_lock_each_other_out(placement: BuiltinPlacement) -> None:
    other = consumer()
    stock = {"VCPU": Inventory(total=1000), "DISK_GB": Inventory(total=1000)}
    await placement.report(other, "host-b", stock, ())
    await placement.report(HOST, "host-a", stock, ())

    async def put(hosts: list[str], classes: list[str]) -> None:
        wanted = Consumer(uuid=consumer(), generation=0, project_id="p", user_id="u")
        resources = {host: dict.fromkeys(classes, 1) for host in hosts}
        await placement.db.write(lambda tx: allocations.put(tx, [allocations.Put(wanted, resources)]))

    ways = [([HOST, other], ["VCPU", "DISK_GB"]), ([other, HOST], ["DISK_GB", "VCPU"])] * 8
    await asyncio.gather(*(put(*way) for way in ways))
    assert await used(placement) == await used(placement, other) == {"VCPU": 16, "DISK_GB": 16}


async def test_a_report_changes_only_what_changed(placement: BuiltinPlacement) -> None:
    before = (await placement.providers())[0]
    await placement.report(HOST, "host-a", STOCK, ("HW_CPU_X86_AVX2",))
    assert (await placement.providers())[0] == before
    await placement.report(HOST, "host-b", {**STOCK, "CUSTOM_FPGA": Inventory(total=1)}, ("CUSTOM_FAST",))
    after = (await placement.providers())[0]
    assert (after.name, after.generation) == ("host-b", before.generation + 1)
    assert after.traits == {"CUSTOM_FAST"} and after.inventories["CUSTOM_FPGA"].total == 1


async def test_a_report_may_not_take_away_what_is_in_use(placement: BuiltinPlacement) -> None:
    await placement.claim(consumer(), {HOST: BOOT}, "p", "u")
    with pytest.raises(Conflict, match="DISK_GB"):
        await placement.report(HOST, "host-a", {"VCPU": STOCK["VCPU"], "MEMORY_MB": STOCK["MEMORY_MB"]}, ())
    with pytest.raises(Conflict, match="name"):
        await placement.report(consumer(), "host-a", STOCK, ())
    with pytest.raises(Invalid):
        await placement.report(HOST, "host-a", STOCK, ("no good",))
    assert await used(placement) == BOOT


async def test_sixteen_hosts_that_report_at_once(placement: BuiltinPlacement) -> None:
    uuids = [consumer() for _ in range(8)]
    await asyncio.gather(
        *(placement.report(each, each, {**STOCK, "CUSTOM_X": Inventory(total=1)}, ()) for each in uuids * 2)
    )
    assert {each.uuid for each in await placement.providers()} == {HOST, *uuids}


async def test_the_audit_tells_of_a_wrong_count(placement: BuiltinPlacement) -> None:
    from sqlalchemy import update

    from kilonova.db.tables.placement import inventories

    await placement.claim(consumer(), {HOST: BOOT}, "p", "u")
    await placement.db.write(
        lambda tx: tx.run(update(inventories).where(inventories.c.resource_class == "VCPU").values(used=7))
    )
    assert await placement.db.read(bookings.audit) == [bookings.Difference(HOST, "VCPU", 7, 2)]
