"""Requests that need several providers: devices below a host, shared disks, groups that are apart."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from kilonova.db import placement_report
from kilonova.errors import NoValidHost
from kilonova.model.host import Inventory, ProviderReport
from kilonova.scheduler.request import Selection
from kilonova.scheduler.wanted import Group, Wanted
from tests.unit.scheduler.states import request
from tests.unit.scheduler.town import Town, node


async def devices(town: Town, host: str, *traits: tuple[str, ...], each: int = 1) -> None:
    """Providers with a device below a host."""
    for number, some in enumerate(traits):
        child = ProviderReport(
            uuid=f"{host}-gpu{number}",
            name=f"{host}-gpu{number}",
            parent=node(host),
            inventories={"VGPU": Inventory(total=each)},
            traits=some,
        )
        await town.db.write(lambda tx, child=child: placement_report.report(tx, child))


async def boot(town: Town, uuid: str, *groups: Group, isolate: bool = False, **more: Any) -> Selection:
    wanted = Wanted(
        root=Group({"VCPU": 1, "MEMORY_MB": 1}),
        groups={str(number): group for number, group in enumerate(groups, 1)},
        isolate=isolate,
    )
    return await town.select(request(uuid=uuid, wanted=wanted, **more))


async def test_devices_below_a_host(town: Town) -> None:
    await town.add("h1", memory=9000)
    await town.add("h2")
    await devices(town, "h2", ("CUSTOM_FAST",), ())
    fast = Group({"VGPU": 1}, frozenset({"CUSTOM_FAST"}))
    found = await boot(town, "u1", fast)
    assert found.host == "h2"
    assert await town.placement.held("u1") == {
        node("h2"): {"VCPU": 1, "MEMORY_MB": 1},
        "h2-gpu0": {"VGPU": 1},
    }
    with pytest.raises(NoValidHost) as caught:
        await boot(town, "u2", fast)
    why = "placement has nothing there (with what is below and beside it) that fits"
    assert caught.value.reasons == {"h1": why, "h2": why}
    assert (await boot(town, "u3", Group({"VGPU": 1}))).allocations["h2-gpu1"] == {"VGPU": 1}


async def test_the_nameless_group_is_spread_over_the_tree(town: Town) -> None:
    await town.add("h1", "h2")
    await devices(town, "h1", ())
    found = await town.select(request(resources={"VCPU": 1, "VGPU": 1}))
    assert found.allocations == {node("h1"): {"VCPU": 1}, "h1-gpu0": {"VGPU": 1}}


async def test_groups_that_must_be_apart(town: Town) -> None:
    await town.add("h1", memory=9000)
    await town.add("h2")
    await devices(town, "h1", (), each=8)
    await devices(town, "h2", (), (), each=8)
    two = (Group({"VGPU": 1}), Group({"VGPU": 1}))
    assert (await boot(town, "u1", *two)).host == "h1"
    found = await boot(town, "u2", *two, isolate=True)
    assert found.host == "h2"
    assert found.allocations == {
        node("h2"): {"VCPU": 1, "MEMORY_MB": 1},
        "h2-gpu0": {"VGPU": 1},
        "h2-gpu1": {"VGPU": 1},
    }


async def test_a_device_that_comes_later(town: Town) -> None:
    """What was refused for want of a trait of the host is asked of the whole tree then."""
    await town.add("h1")
    wanted = request(resources={"VCPU": 1, "VGPU": 1}, required=["CUSTOM_FAST"])
    with pytest.raises(NoValidHost) as caught:
        await town.select(wanted)
    assert caught.value.reasons == {"h1": "it lacks the trait CUSTOM_FAST"}
    await devices(town, "h1", ("CUSTOM_FAST",))
    town.scheduler.forget()
    assert (await town.select(wanted)).allocations["h1-gpu0"] == {"VGPU": 1}


async def test_disks_that_are_shared(town: Town) -> None:
    await town.add("h1", "h2")
    pool = ProviderReport(
        uuid="pool",
        name="pool",
        inventories={"DISK_GB": Inventory(total=100)},
        traits=("MISC_SHARES_VIA_AGGREGATE",),
        aggregates=("agg",),
    )
    await town.db.write(lambda tx: placement_report.report(tx, pool))
    await town.placement.set_aggregate("pool", "agg", True)
    await town.placement.set_aggregate(node("h2"), "agg", True)
    found = await town.select(request(uuid="u1", resources={"VCPU": 1, "DISK_GB": 60}))
    assert found.host == "h2"
    assert found.allocations == {node("h2"): {"VCPU": 1}, "pool": {"DISK_GB": 60}}
    with pytest.raises(NoValidHost):
        await town.select(request(uuid="u2", resources={"VCPU": 1, "DISK_GB": 60}))


async def test_the_other_filters_are_asked_as_well(town: Town) -> None:
    await town.add("h1", "h2")
    await devices(town, "h1", ())
    await devices(town, "h2", ())
    found = await boot(town, "u1", Group({"VGPU": 1}), tried={"h1": "smoke"})
    assert (found.host, found.reasons) == ("h2", {"h1": "it failed there: smoke"})


async def test_many_at_once_take_every_device_once(town: Town) -> None:
    await town.add("h1", "h2")
    for host in ("h1", "h2"):
        await devices(town, host, (), (), ())

    async def one(number: int) -> str | None:
        try:
            return (await boot(town, f"u{number}", Group({"VGPU": 1}))).host
        except NoValidHost:
            return None

    found = await asyncio.gather(*(one(number) for number in range(12)))
    assert sorted(each for each in found if each) == ["h1"] * 3 + ["h2"] * 3
