"""What of nova.conf the libvirt driver is told of cells, CPUs and devices."""

from __future__ import annotations

from pathlib import Path

import pytest

from kilonova.errors import Failed
from kilonova.model.numa import HostCell, HostTopology
from kilonova.services.placement.standard import TRAITS
from kilonova.settings import Settings, read_options
from kilonova.testing.clock import VirtualClock
from kilonova.virt.libvirt.driver import LibvirtDriver
from kilonova.virt.libvirt.host_topology import CpuSets, NetworkCells
from kilonova.virt.libvirt.options import LibvirtOptions, options_from
from kilonova.virt.libvirt.report import traits
from tests.unit.virt.machines import machine


def options(tmp_path: Path, text: str) -> LibvirtOptions:
    file = tmp_path / "nova.conf"
    file.write_text(text)
    return options_from(Settings(state_dir=tmp_path, options=read_options(file)))


def test_all_that_can_be_said_of_resources(tmp_path: Path) -> None:
    found = options(
        tmp_path,
        "[DEFAULT]\nreserved_huge_pages = node:0,size:2048,count:64\n"
        "reserved_huge_pages = node:1,size:1GB,count:1\n"
        "[compute]\ncpu_shared_set = 0-3,^2\ncpu_dedicated_set = 4,5\n"
        "[libvirt]\nrealtime_scheduler_priority = 7\n"
        "[neutron]\nphysnets = foo,bar\n[neutron_physnet_foo]\nnuma_nodes = 0,1\n"
        "[neutron_tunnel]\nnuma_nodes = 1\n"
        '[pci]\ndevice_spec = {"vendor_id": "8086"}\ndevice_spec = {"vendor_id": "10de"}\n'
        "report_in_placement = true\n",
    )
    assert found.cpus == CpuSets(shared=frozenset({0, 1, 3}), dedicated=frozenset({4, 5}))
    assert found.reserved_pages == {(0, 2048): 64, (1, 1 << 20): 1}
    assert found.realtime_priority == 7
    assert found.networks == NetworkCells(
        physical={"foo": frozenset({0, 1}), "bar": frozenset()}, tunnels=frozenset({1})
    )
    assert found.device_specs == ('{"vendor_id": "8086"}', '{"vendor_id": "10de"}')
    assert found.pci_in_placement
    old = options(tmp_path, '[pci]\npassthrough_whitelist = {"vendor_id": "8086"}\n')
    assert old.device_specs == ('{"vendor_id": "8086"}',)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("cpu_shared_set = 3-1", r"\[compute\]cpu_shared_set = 3-1: "),
        ("cpu_dedicated_set = x", r"\[compute\]cpu_dedicated_set = x: "),
        ("cpu_shared_set = 1,^1", r"\[compute\]cpu_shared_set = 1,\^1: no CPU is left"),
    ],
)
def test_sets_of_cpus_that_are_none(tmp_path: Path, line: str, words: str) -> None:
    with pytest.raises(Failed, match=words):
        options(tmp_path, f"[compute]\n{line}\n")


def test_devices_that_make_no_sense_are_refused_before_anything_is_opened(tmp_path: Path) -> None:
    def made(**more: object) -> LibvirtDriver:
        return LibvirtDriver(LibvirtOptions(**more), "h", "c", tmp_path, VirtualClock())  # type: ignore[arg-type]

    with pytest.raises(Failed, match="this is no JSON"):
        made(device_specs=("{",))
    by_name = ('{"devname": "eth0"}',)
    made(device_specs=by_name)
    with pytest.raises(Failed, match=r"by devname \(eth0\)"):
        made(device_specs=by_name, pci_in_placement=True)


def test_traits_of_cells() -> None:
    def found(*siblings: tuple[int, ...]) -> set[str]:
        cell = HostCell(id=0, shared=(0, 1), dedicated=(), memory_mib=1, siblings=siblings)
        return set(traits(machine(), frozenset(), HostTopology(cells=(cell,))))

    plain = set(traits(machine(), frozenset(), None))
    assert found() - plain == {"COMPUTE_SOCKET_PCI_NUMA_AFFINITY"}
    assert found((0, 1)) - plain == {"COMPUTE_SOCKET_PCI_NUMA_AFFINITY", "HW_CPU_HYPERTHREADING"}
    assert found((0, 1)) <= TRAITS


def test_devices_that_come_and_go(tmp_path: Path) -> None:
    found = options(tmp_path, "")
    assert (found.detach_attempts, found.detach_timeout, found.pcie_ports) == (8, 20.0, 0)
    text = "[libvirt]\ndevice_detach_attempts = 3\ndevice_detach_timeout = 7\nnum_pcie_ports = 28\n"
    found = options(tmp_path, text)
    assert (found.detach_attempts, found.detach_timeout, found.pcie_ports) == (3, 7.0, 28)
