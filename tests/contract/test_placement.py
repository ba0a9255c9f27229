"""What every placement service behind the Protocol does."""

from __future__ import annotations

import asyncio

import pytest

from kilonova.db import placement as bookings
from kilonova.db.engine import Tx
from kilonova.errors import Conflict, NotFound
from kilonova.model.host import Inventory, ProviderReport
from kilonova.services.placement.port import Also, Placement, ProviderSummary
from tests.contract.rigs import Rig, new

STOCK = {
    "VCPU": Inventory(total=4, allocation_ratio=2.0),
    "MEMORY_MB": Inventory(total=4096, reserved=512, step_size=256, min_unit=256, max_unit=2048),
    "CUSTOM_FPGA": Inventory(total=1),
}
BOOT = {"VCPU": 2, "MEMORY_MB": 1024}


@pytest.fixture
def placement(rig: Rig) -> Placement:
    assert rig.placement is not None
    return rig.placement


@pytest.fixture
async def host(placement: Placement) -> str:
    made = new()
    await placement.report(made, f"host-{made}", STOCK, ("HW_CPU_X86_AVX", "CUSTOM_FAST"))
    return made


async def summary(placement: Placement, provider: str) -> ProviderSummary:
    (found,) = [each for each in await placement.providers() if each.uuid == provider]
    return found


async def test_a_provider_is_as_it_was_reported(placement: Placement, host: str) -> None:
    found = await summary(placement, host)
    assert (found.name, found.inventories, found.parent) == (f"host-{host}", STOCK, None)
    assert found.used == {"VCPU": 0, "MEMORY_MB": 0, "CUSTOM_FPGA": 0}
    assert found.traits == {"HW_CPU_X86_AVX", "CUSTOM_FAST"} and found.aggregates == frozenset()


async def test_a_report_again_changes_nothing_and_another_replaces_it(
    placement: Placement, host: str
) -> None:
    before = await summary(placement, host)
    await placement.report(host, before.name, STOCK, ("HW_CPU_X86_AVX", "CUSTOM_FAST"))
    assert await summary(placement, host) == before
    await placement.report(host, "renamed", {"VCPU": Inventory(total=1)}, ("COMPUTE_NODE",))
    found = await summary(placement, host)
    assert (found.name, found.inventories) == ("renamed", {"VCPU": Inventory(total=1)})
    assert "COMPUTE_NODE" in found.traits and "HW_CPU_X86_AVX" not in found.traits
    assert found.generation != before.generation


async def test_reports_at_once_make_one_provider(placement: Placement) -> None:
    one = new()
    await asyncio.gather(*(placement.report(one, "one", STOCK, ()) for _ in range(8)))
    assert (await summary(placement, one)).inventories == STOCK


async def test_a_report_may_not_take_away_what_is_in_use(placement: Placement, host: str) -> None:
    assert await placement.claim(new(), {host: BOOT}, "p", "u")
    before = await summary(placement, host)
    for less in ({"MEMORY_MB": STOCK["MEMORY_MB"]}, {}):
        with pytest.raises(Conflict):
            await placement.report(host, before.name, less, ())
    assert await summary(placement, host) == before


async def test_a_host_that_has_less_than_is_in_use_says_so(placement: Placement, host: str) -> None:
    """As in Placement: what is booked stays, and nothing fits until there is room again."""
    servers = [new() for _ in range(3)]
    for server in servers:
        assert await placement.claim(server, {host: BOOT}, "p", "u")
    less = {**STOCK, "MEMORY_MB": Inventory(total=2048)}
    await placement.report(host, f"host-{host}", less, ())
    found = await summary(placement, host)
    assert (found.inventories, found.used["MEMORY_MB"]) == (less, 3072)
    assert not await placement.claim(new(), {host: BOOT}, "p", "u")
    await placement.release(servers[0])
    assert not await placement.claim(new(), {host: BOOT}, "p", "u")
    await placement.release(servers[1])
    assert await placement.claim(new(), {host: BOOT}, "p", "u")


async def test_a_claim_is_held_until_its_release(placement: Placement, host: str) -> None:
    server = new()
    assert await placement.held(server) == {}
    assert await placement.claim(server, {host: BOOT}, "p", "u")
    assert await placement.held(server) == {host: BOOT}
    assert (await summary(placement, host)).used == {"VCPU": 2, "MEMORY_MB": 1024, "CUSTOM_FPGA": 0}
    await placement.release(server)
    assert await placement.held(server) == {}
    assert set((await summary(placement, host)).used.values()) == {0}
    await placement.release(server)
    await placement.release(new())


async def test_a_claim_again_converges(placement: Placement, host: str) -> None:
    server = new()
    for _ in range(3):
        assert await placement.claim(server, {host: BOOT}, "p", "u")
    assert all(await asyncio.gather(*(placement.claim(server, {host: BOOT}, "p", "u") for _ in range(8))))
    assert (await summary(placement, host)).used["VCPU"] == 2


@pytest.mark.parametrize(
    "resources",
    [
        {"VCPU": 9},
        {"VCPU": 1, "MEMORY_MB": 100},
        {"VCPU": 1, "MEMORY_MB": 300},
        {"VCPU": 1, "MEMORY_MB": 2304},
        {"VCPU": 1, "VGPU": 1},
        {"CUSTOM_FPGA": 2, "VCPU": 1},
    ],
)
async def test_what_does_not_fit_leaves_nothing(
    placement: Placement, host: str, resources: dict[str, int]
) -> None:
    server = new()
    assert not await placement.claim(server, {host: resources}, "p", "u")
    assert await placement.held(server) == {}
    assert set((await summary(placement, host)).used.values()) == {0}
    assert await placement.claim(server, {host: BOOT}, "p", "u"), "the same server may try what fits"


async def test_a_claim_on_an_unknown_provider(placement: Placement) -> None:
    server = new()
    with pytest.raises(NotFound):
        await placement.claim(server, {new(): BOOT}, "p", "u")
    assert await placement.held(server) == {}


async def test_racing_claims_take_what_there_is_and_no_more(placement: Placement, host: str) -> None:
    servers = [new() for _ in range(24)]
    fitted = await asyncio.gather(*(placement.claim(each, {host: BOOT}, "p", "u") for each in servers))
    assert sum(fitted) == 3  # of memory 3584 / 1024
    assert (await summary(placement, host)).used == {"VCPU": 6, "MEMORY_MB": 3072, "CUSTOM_FPGA": 0}
    held = [bool(await placement.held(each)) for each in servers]
    assert held == list(fitted)
    await asyncio.gather(*(placement.release(each) for each in servers))
    assert set((await summary(placement, host)).used.values()) == {0}


async def test_a_claim_on_several_providers_is_whole_or_not_at_all(placement: Placement, host: str) -> None:
    other = new()
    await placement.report(other, f"host-{other}", {"VGPU": Inventory(total=2)}, ())
    first, second, third = new(), new(), new()
    wanted = {host: BOOT, other: {"VGPU": 1}}
    for _ in range(2):
        assert await placement.claim(first, wanted, "p", "u")
    assert await placement.held(first) == wanted
    before = await placement.providers()
    for too_much in ({host: BOOT, other: {"VGPU": 2}}, {other: {"VGPU": 1}, host: {"VCPU": 7}}):
        assert not await placement.claim(second, too_much, "p", "u")
        assert await placement.held(second) == {} and await placement.providers() == before
    with pytest.raises(NotFound):
        await placement.claim(second, {host: BOOT, new(): {"VGPU": 1}}, "p", "u")
    assert await placement.providers() == before
    assert sum(await asyncio.gather(*(placement.claim(each, wanted, "p", "u") for each in (second, third))))
    assert (await summary(placement, other)).used == {"VGPU": 2}
    assert (await summary(placement, host)).used["VCPU"] == 4


async def test_what_is_done_with_a_booking_is_done_or_undone_with_it(placement: Placement, host: str) -> None:
    one, two, before = new(), new(), await placement.providers()
    calls: list[bool | None] = []

    def says(answer: bool | None) -> Also:
        def also(tx: Tx) -> bool | None:
            calls.append(answer)
            bookings.claim(tx, two, {host: {"VCPU": 1}}, "p", "u")
            return answer

        return also

    def breaks(tx: Tx) -> bool:
        bookings.claim(tx, two, {host: {"VCPU": 1}}, "p", "u")
        raise Conflict("not now")

    assert not await placement.claim(one, {host: BOOT}, "p", "u", also=says(False))
    with pytest.raises(Conflict, match="not now"):
        await placement.claim(one, {host: BOOT}, "p", "u", also=breaks)
    assert not await placement.claim(one, {host: {"VCPU": 9}}, "p", "u", also=says(True))
    assert calls == [False], "what does not fit needs no more"
    assert await placement.providers() == before
    assert await placement.held(one) == await placement.held(two) == {}
    for answer in (None, True):  # a repeat repeats it as well
        assert await placement.claim(one, {host: BOOT}, "p", "u", also=says(answer))
        assert (await placement.held(one), await placement.held(two)) == ({host: BOOT}, {host: {"VCPU": 1}})
    assert calls == [False, None, True]


async def test_a_host_reports_its_whole_tree(placement: Placement, host: str) -> None:
    child, server = new(), new()
    top = ProviderReport(uuid=host, name=f"host-{host}", inventories=STOCK)
    below = ProviderReport(
        uuid=child, name=f"gpu-{child}", parent=host, inventories={"VGPU": Inventory(total=2)}
    )
    for _ in range(2):
        assert await placement.report_tree([top, below]) == []
    found = await summary(placement, child)
    assert (found.parent, found.inventories) == (host, {"VGPU": Inventory(total=2)})
    assert await placement.claim(server, {host: BOOT, child: {"VGPU": 2}}, "p", "u")
    assert await placement.report_tree([top]) == [child]
    await placement.release(server)
    assert await placement.report_tree([top]) == []
    assert child not in {each.uuid for each in await placement.providers()}


async def test_allocations_are_handed_over(placement: Placement, host: str) -> None:
    server, migration = new(), new()
    assert await placement.claim(server, {host: {"CUSTOM_FPGA": 1}}, "p", "u")
    assert await placement.move(server, migration, consumer_type="MIGRATION")
    assert not await placement.move(server, migration)
    assert (await placement.held(server), await placement.held(migration)) == ({}, {host: {"CUSTOM_FPGA": 1}})
    assert await placement.claim(server, {host: BOOT}, "p", "u")
    with pytest.raises(Conflict):
        await placement.move(migration, server)
    assert not await placement.move(server, new(), also=lambda tx: False)
    assert await placement.held(server) == {host: BOOT}


async def test_inventories_move_with_what_is_held_of_them(placement: Placement, host: str) -> None:
    child, server = new(), new()
    assert await placement.claim(server, {host: {"VCPU": 1, "CUSTOM_FPGA": 1}}, "p", "u")
    await placement.report_tree(
        [
            ProviderReport(uuid=host, name=f"host-{host}", inventories=STOCK),
            ProviderReport(uuid=child, name=f"fpga-{child}", parent=host),
        ]
    )
    rest = {name: each for name, each in STOCK.items() if name != "CUSTOM_FPGA"}
    inventories = {host: rest, child: {"CUSTOM_FPGA": STOCK["CUSTOM_FPGA"]}}
    with pytest.raises(Conflict):
        await placement.reshape(inventories, {})
    moved = {host: {"VCPU": 1}, child: {"CUSTOM_FPGA": 1}}
    await placement.reshape(inventories, {server: moved})
    assert await placement.held(server) == moved
    assert (await summary(placement, child)).used == {"CUSTOM_FPGA": 1}
    assert (await summary(placement, host)).inventories == rest


async def test_aggregates(placement: Placement, host: str) -> None:
    one, two = new(), new()
    for aggregate in (one, two, one):
        await placement.set_aggregate(host, aggregate, True)
    assert (await summary(placement, host)).aggregates == {one, two}
    for aggregate in (one, one, new()):
        await placement.set_aggregate(host, aggregate, False)
    assert (await summary(placement, host)).aggregates == {two}
    assert (await summary(placement, host)).traits == {"HW_CPU_X86_AVX", "CUSTOM_FAST"}
    with pytest.raises(NotFound):
        await placement.set_aggregate(new(), one, True)


async def test_one_trait_comes_and_goes(placement: Placement, host: str) -> None:
    before = (await summary(placement, host)).traits
    for _ in range(2):
        await placement.set_trait(host, "COMPUTE_STATUS_DISABLED", True)
    assert (await summary(placement, host)).traits == {*before, "COMPUTE_STATUS_DISABLED"}
    for _ in range(2):
        await placement.set_trait(host, "COMPUTE_STATUS_DISABLED", False)
    assert (await summary(placement, host)).traits == before
    with pytest.raises(NotFound):
        await placement.set_trait(new(), "COMPUTE_STATUS_DISABLED", True)


async def test_a_provider_is_removed_when_nothing_is_booked_on_it(placement: Placement, host: str) -> None:
    server = new()
    assert await placement.claim(server, {host: BOOT}, "p", "u")
    with pytest.raises(Conflict):
        await placement.remove(host)
    assert await placement.held(server) == {host: BOOT}
    await placement.release(server)
    await placement.remove(host)
    assert host not in {each.uuid for each in await placement.providers()}
    await placement.remove(host)
    await placement.report(host, "again", STOCK, ())
    assert set((await summary(placement, host)).used.values()) == {0}


async def test_a_host_speaks_of_no_other_hosts_providers(placement: Placement) -> None:
    """An agent that was taken over could otherwise have the whole cloud's capacity for itself."""
    ours, theirs, child = new(), new(), new()

    def top(uuid: str) -> ProviderReport:
        return ProviderReport(uuid=uuid, name=f"host-{uuid}", inventories=STOCK)

    their_child = ProviderReport(
        uuid=child, name=f"child-{child}", parent=theirs, inventories={"VGPU": STOCK["VCPU"]}
    )
    await placement.report_tree([top(theirs), their_child])
    before = [await summary(placement, each) for each in (theirs, child)]
    for known in (False, True):
        for stolen in (
            [top(ours), ProviderReport(uuid=theirs, name="mine", parent=ours)],
            [top(ours), ProviderReport(uuid=child, name="mine", parent=ours)],
            [ProviderReport(uuid=child, name="mine", inventories={})],
            [top(ours), ProviderReport(uuid=theirs, name=f"host-{theirs}")],
            [top(ours), ProviderReport(uuid=new(), name="mine", parent=theirs)],
        ):
            with pytest.raises(Conflict, match="in the tree of another host"):
                await placement.report_tree(stolen)
        assert [await summary(placement, each) for each in (theirs, child)] == before
        if not known:
            await placement.report_tree([top(ours)])
    await placement.report_tree([top(theirs), their_child])
