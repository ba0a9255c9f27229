"""Cells and devices in decisions: who is refused and why, and what is read again."""

from __future__ import annotations

from typing import Any

import pytest

from kilonova.db import host_report, host_resources, hosts
from kilonova.db.engine import Database, Tx
from kilonova.errors import NoValidHost
from kilonova.model.host import Inventory
from kilonova.model.host_resources import HostResources, Limits, Wanted
from kilonova.model.numa import HostTopology
from kilonova.model.pci import HeldDevice
from kilonova.resources.claims import Claims
from kilonova.scheduler.filters import registry
from kilonova.scheduler.holdings import Holdings
from kilonova.scheduler.options import default_options
from kilonova.scheduler.request import Candidate, Selection
from kilonova.testing.clock import VirtualClock
from tests.unit.resources.numa import cell, flavor_with, host
from tests.unit.resources.test_claims import ALIASES, SPECIAL, report
from tests.unit.resources.test_pci_fit import device
from tests.unit.scheduler.states import request
from tests.unit.scheduler.town import Town, node

STOCK = {
    "VCPU": Inventory(total=16, allocation_ratio=2.0),
    "PCPU": Inventory(total=16),
    "MEMORY_MB": Inventory(total=16384, allocation_ratio=1.5),
}


class Cells(Town):
    """A town whose hosts have cells and devices, and whose claims are real ones."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.limits: list[Limits] = []  # of claims

    async def put(self, name: str, topology: HostTopology | None, *, devices: int = 1) -> None:
        found = tuple(device(number + 1, numa_cell=0) for number in range(devices))
        told = report(node(name), numa=topology, pci_devices=found)

        def write(tx: Tx) -> None:
            hosts.upsert(tx, told, self.clock.now())
            host_report.take_over(tx, told)

        await self.db.write(write)
        await self.placement.report(node(name), name, STOCK, ())

    async def take(self, uuid: str, specs: dict[str, str], *, vcpus: int = 2, **more: Any) -> Selection:
        claims = Claims(self.db, self.placement, aliases=ALIASES)
        special = claims.wanted(flavor_with(specs, vcpus), {})
        pinned = "hw:cpu_policy" in specs

        async def claim(candidate: Candidate) -> str | None:
            self.claims.append(candidate.host)
            self.limits.append(candidate.special.limits)
            made = await claims.claim(
                uuid, candidate.compute_id, candidate.special, candidate.allocations, "p", "u"
            )
            return made if isinstance(made, str) else None

        resources = {"PCPU" if pinned else "VCPU": vcpus, "MEMORY_MB": 1024}
        return await self.scheduler.select(
            request(uuid=uuid, resources=resources, special=special, **more), claim
        )

    async def refused(self, uuid: str, specs: dict[str, str], **more: Any) -> NoValidHost:
        with pytest.raises(NoValidHost) as caught:
            await self.take(uuid, specs, **more)
        return caught.value


@pytest.fixture
def cells(db: Database, clock: VirtualClock) -> Cells:
    return Cells(db, clock)


async def test_only_hosts_with_room_for_the_cells_are_tried(cells: Cells) -> None:
    await cells.put("a-narrow", host(*(cell(number, cpus=4) for number in range(4))))
    await cells.put("b-wide", host(cell(0), cell(1)))
    chosen = await cells.take("u1", {"hw:cpu_policy": "dedicated"}, vcpus=6)
    assert chosen.host == "node-b-wide" and cells.claims == ["node-b-wide"]
    assert chosen.removed == {"NUMATopologyFilter": 1}
    assert "6 dedicated CPUs wanted, free: 0-3" in chosen.reasons["node-a-narrow"]


async def test_who_is_refused_hears_of_devices_and_of_cells(cells: Cells) -> None:
    await cells.put("none", host(), devices=0)
    await cells.put("plain", None, devices=1)
    error = await cells.refused("u1", SPECIAL)
    assert error.removed == {"PciPassthroughFilter": 1, "NUMATopologyFilter": 1}
    assert "claim of PCI devices failed" in error.reasons["node-none"]
    assert "reports no NUMA topology" in error.reasons["node-plain"]
    assert cells.claims == []


async def test_a_forced_host_is_asked_too(cells: Cells) -> None:
    await cells.put("h", None, devices=0)
    error = await cells.refused("u1", SPECIAL, forced_host="node-h")
    assert "claim of PCI devices failed" in error.reasons["node-h"] and cells.claims == []


async def test_what_was_just_taken_is_known(cells: Cells) -> None:
    """Within the second in which nobody looks at the hosts again."""
    for name in ("a", "b"):
        await cells.put(name, host(cell(0), cell(1)))
    found = [await cells.take(f"u{number}", SPECIAL) for number in range(2)]
    assert sorted(each.host for each in found) == ["node-a", "node-b"]  # each has one device
    assert len(cells.claims) == 2  # no claim was lost
    error = await cells.refused("u3", SPECIAL)
    assert set(error.removed) == {"PciPassthroughFilter"}
    assert len(cells.claims) == 2


@pytest.mark.capability("CL-7")
async def test_cells_are_over_committed_as_their_host_is(cells: Cells) -> None:
    shared = tuple(cell(number, shared=tuple(range(4)), dedicated=(), gib=64) for number in range(1))
    await cells.put("h", host(*shared))
    specs = {"hw:numa_nodes": "1"}
    for number in range(2):
        await cells.take(f"u{number}", specs, vcpus=4)
    error = await cells.refused("u2", specs, vcpus=4)
    assert "8 of 4 x 2.0 in use" in error.reasons["node-h"]
    assert cells.limits == [Limits(cpu_ratio=2.0, ram_ratio=1.5)] * 2


async def test_only_what_has_changed_is_read_again(cells: Cells, clock: VirtualClock) -> None:
    for name in ("a", "b"):
        await cells.put(name, host(cell(0), cell(1)))
    holdings, columns = Holdings(cells.db, clock), await cells.scheduler.view.current()
    await holdings.look(columns)
    first = dict(holdings.hosts)
    assert holdings.free_devices == {"node-a": 1, "node-b": 1}
    await cells.take("u1", SPECIAL, requested_host="node-a")
    await holdings.look(columns)
    assert holdings.hosts == first  # it is not a second old
    await holdings.look(columns, anew=True)
    assert holdings.hosts["node-b"] is first["node-b"]
    assert len(holdings.hosts["node-a"].guests) == 1
    assert holdings.free_devices == {"node-a": 0, "node-b": 1}
    assert [int(columns.pci_free[columns.row_of_provider[name]]) for name in ("node-a", "node-b")] == [0, 1]
    await cells.db.write(lambda tx: host_resources.forget(tx, "node-b"))
    clock.advance(2)
    await holdings.look(columns)
    assert set(holdings.hosts) == {"node-a"}


async def test_hosts_with_devices_are_left_to_who_wants_some(cells: Cells) -> None:
    await cells.put("a-devices", host(), devices=2)
    await cells.put("b-plain", host(), devices=0)
    cells.options = default_options(multipliers={"pci_weight_multiplier": 1.0})
    cells.scheduler = cells.another()
    assert (await cells.take("u1", {}, vcpus=1)).host == "node-b-plain"
    assert (await cells.take("u2", SPECIAL)).host == "node-a-devices"


def test_answers_are_kept_until_something_changes(clock: VirtualClock) -> None:
    nothing: Any = None
    holdings = Holdings(nothing, clock)
    wanted = Wanted(pci=Claims(nothing, nothing, aliases=ALIASES).wanted(flavor_with(SPECIAL), {}).pci)
    assert holdings.answers(wanted).reason("c", None, None) is not None
    there = HostResources(
        compute_id="c", generation=1, devices=tuple(HeldDevice(device=device(1)) for _ in "x")
    )
    holdings.hosts = {"c": there}
    assert holdings.answers(wanted).reason("c", None, None) is None
    holdings.hosts = {"c": HostResources(compute_id="c", generation=1)}
    assert holdings.answers(wanted).reason("c", None, None) is None  # of the same generation: kept
    holdings.hosts = {"c": HostResources(compute_id="c", generation=2)}
    assert holdings.answers(wanted).reason("c", None, None) is not None


def test_the_names_may_stand_among_the_enabled_filters() -> None:
    names = ("ComputeFilter", "NUMATopologyFilter", "PciPassthroughFilter")
    asked = registry.filters_of(default_options(enabled_filters=names))
    assert [each.name for each in asked].count("NUMATopologyFilter") == 1
