"""Where a guest runs on its host, and how libvirt is told."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Any

import pytest

from kilonova.errors import HostFault
from kilonova.model.numa import GuestCell, GuestTopology, HostCell, HostTopology, Pages
from kilonova.model.pci import PciDevice
from kilonova.rpc.messages import GuestSpec
from kilonova.virt.libvirt.host_topology import CpuSets
from kilonova.virt.libvirt.options import LibvirtOptions
from kilonova.virt.libvirt.placement import PlacedCell, Placement, check_devices, placement
from kilonova.virt.libvirt.xml.domain import Cpu
from tests.unit.virt.sources import Images, guest
from tests.unit.virt.test_domain_xml import attributes, built

PAGES = (Pages(size_kib=4, total=1000), Pages(size_kib=2048, total=64), Pages(size_kib=1048576, total=2))
HOST = HostTopology(
    cells=(
        HostCell(id=0, shared=(0, 1), dedicated=(2, 3, 4), memory_mib=4096, pages=PAGES),
        HostCell(id=1, shared=(), dedicated=(6, 7), memory_mib=4096, pages=PAGES),
    )
)
SETS = CpuSets(shared=frozenset({0, 1}), dedicated=frozenset({2, 3, 4, 6, 7}))
PINNED = GuestCell(
    id=0, dedicated=(0, 1), memory_mib=64, host_cell=1, pinning={0: 7, 1: 6}, page_size_kib=2048
)
MIXED = GuestCell(id=1, shared=(3,), dedicated=(2,), memory_mib=32, host_cell=0, pinning={2: 4})


def spec(*cells: GuestCell, specs: dict[str, str] | None = None, **more: Any) -> GuestSpec:
    numa = GuestTopology(cells=cells, **more) if cells else None
    return guest(
        Images().add(b"x"), flavor={"vcpus": 4, "memory_mb": 96, "extra_specs": specs or {}}, numa=numa
    )


def placed(*cells: GuestCell, specs: dict[str, str] | None = None, **more: Any) -> Placement:
    return placement(spec(*cells, specs=specs, **more), HOST, SETS)


def test_pinned_and_floating_cpus_of_cells() -> None:
    assert placed(PINNED, MIXED) == Placement(
        cells=(
            PlacedCell(id=0, host_cell=1, memory_mib=64, pins={0: (7,), 1: (6,)}, large_page_kib=2048),
            PlacedCell(id=1, host_cell=0, memory_mib=32, pins={2: (4,), 3: (0, 1)}),
        ),
        emulator=frozenset({7, 6, 4, 0, 1}),  # with the guest's CPUs
    )


@pytest.mark.parametrize(
    ("policy", "emulator", "expected"),
    [
        (None, (), {6, 7}),
        ("isolate", (2,), {2}),
        ("share", (), {0, 1}),
    ],
)
def test_where_the_emulator_runs(policy: str | None, emulator: tuple[int, ...], expected: set[int]) -> None:
    cell = GuestCell(
        id=0, dedicated=(0, 1), memory_mib=64, host_cell=1, pinning={0: 7, 1: 6}, emulator=emulator
    )
    assert placed(cell, emulator_threads=policy).emulator == expected
    if policy == "share":  # no CPUs are set aside for floating ones
        assert placement(spec(cell, emulator_threads=policy), HOST, CpuSets()).emulator == {6, 7}


@pytest.mark.parametrize(("size", "large"), [(None, None), (4, None), (2048, 2048), (1048576, 1048576)])
def test_ordinary_pages_need_no_word(size: int | None, large: int | None) -> None:
    cell = GuestCell(id=0, shared=(0,), memory_mib=64, host_cell=0, page_size_kib=size)
    assert placed(cell).cells[0].large_page_kib == large


def test_locked_and_real_time() -> None:
    assert not placed(PINNED).locked
    assert placed(PINNED, specs={"hw:locked_memory": "true", "hw:mem_page_size": "large"}).locked
    realtime = placed(PINNED, realtime_mask="1")
    assert (realtime.realtime, realtime.locked) == ({1}, True)


@pytest.mark.parametrize(
    ("sets", "floating"),
    [
        (CpuSets(), None),
        (SETS, {0, 1}),
        (CpuSets(shared=frozenset({3})), {3}),
        (CpuSets(dedicated=frozenset({3})), set()),
    ],
)
def test_guests_without_cells_float_on_the_shared_cpus(sets: CpuSets, floating: set[int] | None) -> None:
    assert placement(spec(), HOST, sets) == Placement(
        floating=None if floating is None else frozenset(floating)
    )


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        (
            GuestCell(id=0, shared=(0,), memory_mib=64, host_cell=5),
            "NUMA cell 5, which this host does not have",
        ),
        (GuestCell(id=0, shared=(0,), memory_mib=64), "NUMA cell None"),
        (
            GuestCell(id=0, shared=(0, 1), memory_mib=64, host_cell=1),
            "for its CPUs 0, 1: the NUMA cell 1 has none",
        ),
        (GuestCell(id=0, dedicated=(0, 2), memory_mib=64, host_cell=1, pinning={0: 6}), "for its CPUs 2"),
    ],
)
def test_what_was_claimed_elsewhere_is_refused(cell: GuestCell, words: str) -> None:
    with pytest.raises(HostFault, match=words):
        placed(cell)
    with pytest.raises(HostFault, match="libvirt knows of none on this host"):
        placement(spec(cell), None, SETS)


@pytest.mark.parametrize(
    "specs",
    [
        {"hw:cpu_policy": "dedicated"},
        {"hw:numa_nodes": "1"},
        {"hw:mem_page_size": "large"},
        {"resources:PCPU": "4"},
    ],
)
def test_a_guest_without_what_its_flavor_promises_is_not_started(specs: dict[str, str]) -> None:
    with pytest.raises(HostFault, match="wants NUMA cells of its own, and none were claimed"):
        placed(specs=specs)


def test_a_guest_without_its_devices_is_not_started() -> None:
    wanting = spec(specs={"pci_passthrough:alias": "gpu:1"})
    with pytest.raises(HostFault, match="wants PCI devices, and none were claimed"):
        check_devices(wanting)
    check_devices(spec())


# ---- libvirt's words ----


def shown(plan: Placement, specs: GuestSpec | None = None, **options: Any) -> ET.Element:
    return built(specs or spec(), placement=plan, options=LibvirtOptions(**options))


def test_nothing_is_said_of_a_guest_that_wants_nothing() -> None:
    root = shown(Placement())
    for tag in ("cputune", "numatune", "memoryBacking", "cpu/numa", "devices/hostdev"):
        assert root.find(tag) is None
    assert attributes(root, "vcpu") == [{}]


def test_floating_cpus() -> None:
    root = shown(Placement(floating=frozenset({0, 1, 2, 5})))
    assert attributes(root, "vcpu") == [{"placement": "static", "cpuset": "0-2,5"}]
    assert root.find("cputune") is None
    assert attributes(shown(Placement(floating=frozenset())), "vcpu") == [{}]  # libvirt takes no empty set


def test_pins_and_cells() -> None:
    root = shown(placed(PINNED, MIXED))
    assert attributes(root, "cputune/vcpupin") == [
        {"vcpu": "0", "cpuset": "7"},
        {"vcpu": "1", "cpuset": "6"},
        {"vcpu": "2", "cpuset": "4"},
        {"vcpu": "3", "cpuset": "0-1"},
    ]
    assert attributes(root, "cputune/emulatorpin") == [{"cpuset": "0-1,4,6-7"}]
    assert root.find("cputune/vcpusched") is None
    assert attributes(root, "numatune/memory") == [{"mode": "strict", "nodeset": "0-1"}]
    assert attributes(root, "numatune/memnode") == [
        {"cellid": "0", "mode": "strict", "nodeset": "1"},
        {"cellid": "1", "mode": "strict", "nodeset": "0"},
    ]
    assert attributes(root, "cpu/numa/cell") == [
        {"id": "0", "cpus": "0-1", "memory": "64", "unit": "MiB"},
        {"id": "1", "cpus": "2-3", "memory": "32", "unit": "MiB"},
    ]
    assert attributes(root, "vcpu") == [{}]


def test_shares_and_limits_of_the_flavor() -> None:
    specs = {"quota:cpu_shares": "2048", "quota:cpu_period": "20000", "quota:cpu_quota": "-1"}
    for plan, pins in ((Placement(), []), (placed(MIXED), ["vcpupin", "vcpupin", "emulatorpin"])):
        tune = shown(plan, spec(specs=specs)).find("cputune")
        assert tune is not None
        assert [each.tag for each in tune] == ["shares", "period", "quota", *pins]
        assert [each.text for each in tune][:3] == ["2048", "20000", "-1"]
    assert shown(Placement(), spec(specs={"quota:cpu_shares": "many"})).find("cputune") is None


@pytest.mark.parametrize("cpu", [Cpu(), Cpu(mode="custom", model="Nehalem"), Cpu(mode="maximum")])
def test_cells_are_seen_whatever_the_processor(cpu: Cpu) -> None:
    root = built(spec(), placement=placed(MIXED), cpu=cpu)
    assert len(root.findall("cpu/numa/cell")) == 1


def test_pages_by_size() -> None:
    cells = [
        PlacedCell(id=number, host_cell=0, memory_mib=1, pins={number: (0,)}, large_page_kib=size)
        for number, size in enumerate((2048, 1048576, None, 2048))
    ]
    root = shown(Placement(cells=tuple(cells)))
    assert attributes(root, "memoryBacking/hugepages/page") == [
        {"size": "2048", "unit": "KiB", "nodeset": "0,3"},
        {"size": "1048576", "unit": "KiB", "nodeset": "1"},
    ]
    assert [each.tag for each in root.find("memoryBacking") or ()] == ["hugepages"]


def test_real_time_in_libvirts_words() -> None:
    root = shown(placed(PINNED, realtime_mask="0-1"), realtime_priority=5)
    assert attributes(root, "cputune/vcpusched") == [{"vcpus": "0-1", "scheduler": "fifo", "priority": "5"}]
    assert [each.tag for each in root.find("memoryBacking") or ()] == ["hugepages", "nosharepages", "locked"]
    locked = placed(MIXED, specs={"hw:locked_memory": "1", "hw:mem_page_size": "small"})
    assert [each.tag for each in shown(locked).find("memoryBacking") or ()] == ["locked"]


def test_devices_of_the_host() -> None:
    given = (
        PciDevice(address="0000:81:10.1", vendor_id="8086", product_id="1515"),
        PciDevice(address="10000:0a:1f.7", vendor_id="10de", product_id="1db4", tags={"managed": "no"}),
    )
    root = built(guest(None, pci=given))
    assert attributes(root, "devices/hostdev") == [
        {"mode": "subsystem", "type": "pci", "managed": "yes"},
        {"mode": "subsystem", "type": "pci", "managed": "no"},
    ]
    assert attributes(root, "devices/hostdev/source/address") == [
        {"domain": "0x0000", "bus": "0x81", "slot": "0x10", "function": "0x1"},
        {"domain": "0x10000", "bus": "0x0a", "slot": "0x1f", "function": "0x7"},
    ]
    assert attributes(root, "devices/hostdev/driver") == [{"name": "vfio"}] * 2
