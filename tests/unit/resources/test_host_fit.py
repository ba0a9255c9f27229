"""Cells and devices of a server together, on a whole host."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from kilonova.model.host_resources import HostResources, Wanted
from kilonova.model.numa import GuestTopology
from kilonova.model.pci import HeldDevice
from kilonova.resources.host_fit import NOTHING, Fitted, fit_host
from kilonova.resources.numa_fit import DoesNotFit
from kilonova.resources.shortfalls import shortfalls
from tests.unit.resources.numa import cell, guest, host
from tests.unit.resources.test_pci_fit import device, request

PINNED = {"hw__cpu_policy": "dedicated"}


def resources(*places: int | None, guests: tuple[GuestTopology, ...] = (), **more: Any) -> HostResources:
    """A host of two cells with a device at each of the places."""
    devices = tuple(
        HeldDevice(device=device(number + 1, numa_cell=place)) for number, place in enumerate(places)
    )
    values = {"compute_id": "c", "topology": host(), "guests": guests, "devices": devices}
    return HostResources(**{**values, **more})


def cells_of(found: Fitted) -> list[int | None]:
    assert found.numa is not None
    return [each.host_cell for each in found.numa.cells]


@pytest.mark.capability("CL-5")
def test_no_requests_pass_whatever_the_host_has() -> None:
    assert fit_host(HostResources(compute_id="c"), Wanted()) == NOTHING


@pytest.mark.capability("CL-5")
def test_devices_without_cells() -> None:
    found = fit_host(resources(0, 1, topology=None), Wanted(pci=(request(2),)))
    assert [each.address for each in found.devices] == ["0000:01:00.0", "0000:02:00.0"]
    assert found.numa is None and found.holdings[0].request_id == "r"
    with pytest.raises(DoesNotFit, match="claim of PCI devices failed: 3 of a wanted"):
        fit_host(resources(0, 1), Wanted(pci=(request(3),)))


@pytest.mark.capability("CL-6")
def test_the_guest_goes_to_the_cell_of_its_device() -> None:
    found = fit_host(resources(1), Wanted(numa=guest(2, **PINNED), pci=(request(),)))
    assert cells_of(found) == [1]
    found = fit_host(resources(1), Wanted(numa=guest(2, **PINNED), pci=(request(policy="preferred"),)))
    assert cells_of(found) == [1]


def test_a_guest_that_wants_no_device_leaves_their_cell_alone() -> None:
    assert cells_of(fit_host(resources(0), Wanted(numa=guest(2, **PINNED)))) == [1]


@pytest.mark.capability("CL-6")
def test_the_reason_tells_whether_devices_were_in_the_way() -> None:
    full = fit_host(resources(1), Wanted(numa=guest(8, **PINNED), pci=(request(),))).numa
    assert full is not None
    host_now = resources(1, guests=(full,))
    with pytest.raises(DoesNotFit, match="topology together with the requested PCI devices does not fit"):
        fit_host(host_now, Wanted(numa=guest(2, **PINNED), pci=(request(policy="required"),)))
    with pytest.raises(DoesNotFit, match="requested NUMA topology does not fit the host's: no room"):
        fit_host(replace(host_now, topology=host(cell(1))), Wanted(numa=guest(2, **PINNED)))
    assert cells_of(
        fit_host(host_now, Wanted(numa=guest(2, **PINNED), pci=(request(policy="preferred"),)))
    ) == [0]


@pytest.mark.capability("CL-4")
def test_all_reasons_are_told_at_once() -> None:
    with pytest.raises(DoesNotFit, match=r"^claim of PCI devices failed.*; the requested NUMA topology"):
        fit_host(resources(), Wanted(numa=guest(20, **PINNED), pci=(request(),)))


def test_a_host_without_cells_cannot_pin() -> None:
    with pytest.raises(DoesNotFit, match="reports no NUMA topology"):
        fit_host(resources(topology=None), Wanted(numa=guest(2, **PINNED)))


def test_networks_are_near() -> None:
    topology = host(cell(0), cell(1, physical_networks=("fast",), tunnels=True))
    there = resources(topology=topology)
    wanted = Wanted(numa=guest(2, **PINNED), physical_networks=("fast",))
    assert cells_of(fit_host(there, wanted)) == [1]
    assert cells_of(fit_host(there, replace(wanted, physical_networks=("other",)))) == [0]
    assert cells_of(fit_host(there, replace(wanted, physical_networks=(), tunneled=True))) == [1]
    full = fit_host(there, Wanted(numa=guest(8, **PINNED), tunneled=True)).numa
    assert full is not None
    with pytest.raises(DoesNotFit):
        fit_host(resources(topology=topology, guests=(full,)), wanted)


def test_what_is_held_and_not_there() -> None:
    taken = fit_host(resources(), Wanted(numa=guest(4, hw__mem_page_size="large", **PINNED))).numa
    assert taken is not None and shortfalls(resources(0, guests=(taken,))) == []
    small = host(cell(0, cpus=2, large=1), cell(1))
    told = shortfalls(resources(topology=small, guests=(taken,)))
    assert told == [
        "servers are pinned to the CPUs 2-3, which cell 0 has not for pinning",
        "servers hold 512 pages of 2048 KiB in cell 0, which has 1",
    ]
    assert "pinned by several" in shortfalls(resources(guests=(taken, taken)))[0]
    assert "does not report" in shortfalls(resources(topology=None, guests=(taken,)))[0]
    floating = fit_host(
        resources(topology=host(cell(0, shared=(0, 1)))), Wanted(numa=guest(2, hw__numa_nodes="1"))
    ).numa
    assert floating is not None
    assert "share CPUs of cell 0" in shortfalls(resources(guests=(floating,)))[0]
    gone = (HeldDevice(device=device(9), holder="x", reported=False),)
    assert shortfalls(resources(devices=gone)) == [
        "x holds the PCI device 0000:09:00.0, which the host does not report any more"
    ]
