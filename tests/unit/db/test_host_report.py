"""What a host reports again: added, changed, gone, and gone while it is held."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from kilonova.db import host_report, host_resources
from kilonova.db.engine import Database
from kilonova.errors import Conflict
from kilonova.model.host import HostReport
from kilonova.model.host_resources import Claim, HostResources, Item
from kilonova.model.pci import PF
from kilonova.resources.shortfalls import shortfalls
from tests.unit.resources.numa import cell, host
from tests.unit.resources.test_claims import HOST, report
from tests.unit.resources.test_pci_fit import device


async def tell(db: Database, **more: Any) -> list[str]:
    told: HostReport = report(**more)
    return await db.write(lambda tx: host_report.take_over(tx, told))


async def known(db: Database) -> HostResources:
    return await db.read(lambda tx: host_resources.read(tx, HOST))


async def hold(db: Database, *, items: tuple[Item, ...] = ()) -> None:
    """A server has the first device."""
    claim = Claim(consumer="s", instance_uuid="s", compute_id=HOST, devices=(device(1),), items=items)

    def write(tx: Any) -> None:
        host_resources.lock(tx, HOST)
        host_resources.add(tx, claim)

    await db.write(write)


def addresses(found: HostResources) -> list[str]:
    return [each.device.address[5:7] for each in found.devices]


async def test_a_host_that_has_nothing_of_the_kind_leaves_no_row(db: Database) -> None:
    assert await tell(db, numa=None, pci_devices=()) == []
    assert await db.read(host_resources.generations) == {}
    assert await known(db) == HostResources(compute_id=HOST)


async def test_what_is_reported_is_known(db: Database) -> None:
    await tell(db)
    found = await known(db)
    assert (found.topology, addresses(found)) == (host(), ["01", "02"])
    assert all(each.reported and each.holder is None for each in found.devices)


async def test_reports_replace_one_another(db: Database) -> None:
    await tell(db)
    moved = device(2, numa_cell=0, tags={"physical_network": "a"})
    await tell(db, numa=host(cell(0)), pci_devices=(moved, device(3)))
    found = await known(db)
    assert found.topology == host(cell(0))
    assert [each.device for each in found.devices] == [moved, device(3)]
    await tell(db, numa=None, pci_devices=())
    assert await known(db) == replace(await known(db), topology=None, devices=())


@pytest.mark.capability("RT-24")
@pytest.mark.parametrize(
    "change",
    [
        {"numa": host(cell(0))},
        {"numa": None},
        {"pci_devices": (device(1, numa_cell=0),)},
        {"pci_devices": (device(1, numa_cell=1), device(2, numa_cell=1))},
        {"items": ()},
    ],
)
async def test_only_what_is_new_is_written(db: Database, change: dict[str, Any]) -> None:
    items = (Item(provider="p", resource_class="CUSTOM_PMEM", identifier="ns"),)
    await tell(db, items=items)
    before = await db.read(host_resources.generations)
    await tell(db, items=items)
    assert await db.read(host_resources.generations) == before
    await tell(db, **{"items": items, **change})
    assert await db.read(host_resources.generations) != before


@pytest.mark.capability("RT-20")
async def test_a_device_that_vanishes_under_a_server_stays_its_own(db: Database) -> None:
    await tell(db)
    await hold(db)
    await tell(db, pci_devices=(device(2),))
    found = await known(db)
    assert addresses(found) == ["01", "02"]
    assert (found.devices[0].holder, found.devices[0].reported) == ("s", False)
    assert shortfalls(found) == [
        "s holds the PCI device 0000:01:00.0, which the host does not report any more"
    ]
    await tell(db)  # it is back
    assert shortfalls(await known(db)) == []
    await tell(db, pci_devices=(device(2),))
    assert await db.write(lambda tx: host_resources.drop(tx, "s"))
    assert addresses(await known(db)) == ["02"]  # free at last, and gone


async def test_a_device_that_becomes_another_under_a_server_is_told(db: Database) -> None:
    await tell(db)
    await hold(db)
    warnings = await tell(db, pci_devices=(device(1, kind=PF), device(2)))
    assert len(warnings) == 1 and "0000:01:00.0 has become 8086:1234 (type-PF) while s holds" in warnings[0]
    assert (await known(db)).devices[0].device.kind != PF
    assert await tell(db, pci_devices=(device(1, numa_cell=1), device(2))) == []
    assert (await known(db)).devices[0].device.numa_cell == 1


async def test_a_device_that_somebody_holds_is_not_given_again(db: Database) -> None:
    await tell(db)
    await hold(db)
    claim = Claim(consumer="t", instance_uuid="t", compute_id=HOST, devices=(device(1),))
    with pytest.raises(Conflict, match="not free"):
        await db.write(lambda tx: host_resources.add(tx, claim))


ITEMS = tuple(Item(provider="p", resource_class="CUSTOM_PMEM", identifier=f"ns{n}") for n in range(2))


@pytest.mark.capability("RT-23", "RT-22")
async def test_a_listed_item_that_vanishes_under_a_server_is_refused(db: Database) -> None:
    await tell(db, items=ITEMS)
    await hold(db, items=ITEMS[:1])
    with pytest.raises(Conflict, match=r"CUSTOM_PMEM ns0 \(held by s\)"):
        await tell(db, items=ITEMS[1:], pci_devices=())
    assert addresses(await known(db)) == ["01", "02"]  # nothing of that report was taken over
    await tell(db, items=ITEMS[:1])
    await db.write(lambda tx: host_resources.drop(tx, "s"))
    await tell(db, items=())
    free = await db.read(lambda tx: host_resources.free_items(tx, HOST, "p", "CUSTOM_PMEM"))
    assert free == []


async def test_items_change_what_is_said_of_them(db: Database) -> None:
    await tell(db, items=ITEMS)
    larger = replace(ITEMS[0], metadata={"size": "2"})
    await tell(db, items=(larger, ITEMS[1]))
    free = await db.read(lambda tx: host_resources.free_items(tx, HOST, "p", "CUSTOM_PMEM"))
    assert free == [larger, ITEMS[1]]


@pytest.mark.capability("RT-31")
async def test_a_host_that_is_gone_leaves_nothing_but_claims(db: Database) -> None:
    await tell(db, items=ITEMS)
    await hold(db)
    await db.write(lambda tx: host_resources.forget(tx, HOST))
    assert await db.read(host_resources.generations) == {}
    assert (await known(db)).devices == ()
    assert await db.read(lambda tx: host_resources.claim_of(tx, "s")) is not None
