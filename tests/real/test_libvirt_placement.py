"""NUMA cells, pins, large pages and devices with a real libvirt: what it tells, and what it makes of ours."""

from __future__ import annotations

import contextlib
import os
import xml.etree.ElementTree as ET
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from kilonova.agent.monitors.contract import CPU_METRICS, MonitoredHost
from kilonova.agent.monitors.virt_driver import Monitor
from kilonova.clock import SystemClock
from kilonova.errors import Failed, HostFault
from kilonova.model.host import Metric
from kilonova.model.numa import GuestCell, GuestTopology, HostCell, Pages
from kilonova.model.pci import PF, PciDevice
from kilonova.virt.libvirt.connection import Connection
from kilonova.virt.libvirt.disks import DiskFile
from kilonova.virt.libvirt.host_topology import CpuSets, NetworkCells, host_topology
from kilonova.virt.libvirt.pci import pci_devices
from kilonova.virt.libvirt.placement import PlacedCell, Placement
from kilonova.virt.libvirt.report import read_cpu_stats, read_facts
from kilonova.virt.libvirt.topology import Topology
from kilonova.virt.libvirt.xml.domain import Blueprint, Cpu, domain_xml
from tests.real.libvirt_host import Host, large_pages, opened, qemu_pid, threads
from tests.unit.virt.machines import hardware
from tests.unit.virt.sources import guest

pytestmark = pytest.mark.real

QUOTA = {"quota:cpu_shares": "2048", "quota:cpu_period": "20000", "quota:cpu_quota": "10000"}
TWO = {"vcpus": 2, "memory_mb": 64}


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    if (os.cpu_count() or 1) < 2:
        pytest.skip("pins cannot be told apart on one CPU")
    async with opened(tmp_path / "instances") as made:
        yield made


def numa(*cells: GuestCell, **more: Any) -> GuestTopology:
    return GuestTopology(cells=cells, **more)


# ---- guests ----


@pytest.mark.parametrize(("first", "second"), [(1, 0), (0, 1)])
async def test_pinned_cpus_run_where_they_were_claimed(host: Host, first: int, second: int) -> None:
    cell = GuestCell(id=0, dedicated=(0, 1), memory_mib=64, host_cell=0, pinning={0: first, 1: second})
    spec = await host.running(flavor=TWO, numa=numa(cell))
    found = threads(spec.uuid)
    assert (found["CPU 0/TCG"], found["CPU 1/TCG"]) == ({first}, {second})


async def test_the_emulator_has_a_cpu_of_its_own(host: Host) -> None:
    cell = GuestCell(id=0, dedicated=(0,), memory_mib=64, host_cell=0, pinning={0: 1}, emulator=(0,))
    spec = await host.running(
        flavor={"vcpus": 1, "memory_mb": 64}, numa=numa(cell, emulator_threads="isolate")
    )
    found = threads(spec.uuid)
    assert found["CPU 0/TCG"] == {1}
    assert found["IO mon_iothread"] <= {0, 1}
    tune = ET.fromstring(await host.domain_xml(spec)).find("cputune/emulatorpin")
    assert tune is not None and tune.get("cpuset") == "0"


async def test_guests_without_cells_float_on_the_shared_cpus(tmp_path: Path) -> None:
    sets = CpuSets(shared=frozenset({1}), dedicated=frozenset({0}))
    async with opened(tmp_path / "instances", cpus=sets) as host:
        report = await host.driver.report()
        assert (report.inventories["VCPU"].total, report.inventories["PCPU"].total) == (1, 1)
        floating = await host.running(flavor=TWO)
        assert threads(floating.uuid)["CPU 0/TCG"] == threads(floating.uuid)["CPU 1/TCG"] == {1}
        cell = GuestCell(id=0, shared=(0,), dedicated=(1,), memory_mib=64, host_cell=0, pinning={1: 0})
        mixed = await host.running(flavor=TWO, numa=numa(cell))
        assert (threads(mixed.uuid)["CPU 0/TCG"], threads(mixed.uuid)["CPU 1/TCG"]) == ({1}, {0})


async def test_a_guest_has_the_cells_that_it_was_promised(host: Host) -> None:
    cells = (
        GuestCell(id=0, dedicated=(0,), memory_mib=24, host_cell=0, pinning={0: 1}),
        GuestCell(id=1, shared=(1,), memory_mib=40, host_cell=0),
    )
    spec = await host.running(flavor=TWO, numa=numa(*cells))
    root = ET.fromstring(await host.domain_xml(spec))
    assert [(each.get("cpus"), each.get("memory")) for each in root.iterfind("cpu/numa/cell")] == [
        ("0", str(24 * 1024)),
        ("1", str(40 * 1024)),
    ]
    command = Path(f"/proc/{qemu_pid(spec)}/cmdline").read_text().split("\0")
    assert sum('"host-nodes":[0]' in word and '"policy":"bind"' in word for word in command) == 2


async def test_large_pages_are_used(tmp_path: Path) -> None:
    with large_pages(40):
        async with opened(tmp_path / "instances", reserved_pages={(0, 2048): 3}) as host:
            report = await host.driver.report()
            assert report.numa is not None
            pages = {page.size_kib: page for page in report.numa.cells[0].pages}
            assert (pages[2048].total >= 40, pages[2048].reserved) == (True, 3)
            cell = GuestCell(id=0, shared=(0, 1), memory_mib=64, host_cell=0, page_size_kib=2048)
            spec = await host.running(flavor=TWO, numa=numa(cell))
            status = Path(f"/proc/{qemu_pid(spec)}/status").read_text()
            assert f"HugetlbPages:\t{64 * 1024:8d} kB" in status
            await host.driver.power_off(spec.uuid)


async def test_what_the_host_does_not_have_is_refused(host: Host) -> None:
    cell = GuestCell(id=0, shared=(0, 1), memory_mib=64, host_cell=7)
    spec = await host.prepared(flavor=TWO, numa=numa(cell))
    with pytest.raises(HostFault, match="NUMA cell 7, which this host does not have"):
        await host.driver.start(spec, paused=False)
    gone = PciDevice(address="0000:7f:1f.7", vendor_id="10de", product_id="1db4")
    spec = await host.prepared(pci=(gone,))
    with pytest.raises(HostFault, match=r"does not start: .*(VFIO|7f:1f\.7)"):
        await host.driver.start(spec, paused=False)


# ---- what cannot be started here is at least right ----


@pytest.mark.parametrize(
    "placed",
    [
        Placement(floating=frozenset({0, 1})),
        Placement(
            cells=(
                PlacedCell(id=0, host_cell=0, memory_mib=64, pins={0: (0,)}, large_page_kib=2048),
                PlacedCell(
                    id=1, host_cell=1, memory_mib=64, pins={1: (5,), 2: (6, 7)}, large_page_kib=1048576
                ),
            ),
            emulator=frozenset({2}),
            realtime=frozenset({1}),
            locked=True,
        ),
        Placement(
            cells=(PlacedCell(id=0, host_cell=0, memory_mib=128, pins={0: (0,), 1: (1,), 2: (2,)}),),
            emulator=frozenset({0, 1, 2}),
            locked=True,
        ),
    ],
)
@pytest.mark.parametrize("cpu", [Cpu(), Cpu(mode="host-model"), Cpu(mode="custom", model="Nehalem")])
async def test_libvirts_schema_allows_it(host: Host, placed: Placement, cpu: Cpu) -> None:
    devices = tuple(
        PciDevice(address=address, vendor_id="10de", product_id="1db4", tags=tags)
        for address, tags in (("0000:81:10.1", {}), ("10000:0a:1f.7", {"managed": "no"}))
    )
    plan = Blueprint(
        guest=guest(None, flavor={"vcpus": 3, "memory_mb": 128, "extra_specs": QUOTA}, pci=devices),
        hardware=hardware(topology=Topology(sockets=3)),
        files=[DiskFile(path=Path("/i/disk"), format="qcow2", boot=True)],
        console=Path("/i/console.log"),
        virt_type="qemu",
        cpu=cpu,
        cache="none",
        compute_id="c",
        started_at=1,
        placement=placed,
    )
    libvirt = host.driver._connection.libvirt
    text = domain_xml(plan, host.options)

    def define(link: Any) -> str:
        domain = link.defineXMLFlags(text, libvirt.VIR_DOMAIN_DEFINE_VALIDATE)
        try:
            kept: str = domain.XMLDesc(0)
            return kept
        finally:
            domain.undefine()

    root = ET.fromstring(await host.driver._connection.call(define))
    assert [each.get("managed") for each in root.iterfind("devices/hostdev")] == ["yes", "no"]
    assert len(root.findall("cpu/numa/cell")) == len(placed.cells)
    assert [root.findtext(f"cputune/{name}") for name in ("shares", "period", "quota")] == list(
        QUOTA.values()
    )
    assert (root.find("memoryBacking/locked") is not None) == placed.locked


# ---- what libvirt tells ----


@pytest.mark.capability("RT-13")
async def test_the_report_has_the_machines_cells(host: Host) -> None:
    report = await host.driver.report()
    assert report.numa is not None
    cpus = {cpu for cell in report.numa.cells for cpu in cell.shared}
    assert cpus == os.sched_getaffinity(0) or len(cpus) == os.cpu_count()
    assert report.inventories["VCPU"].total == len(cpus)
    assert (
        abs(sum(cell.memory_mib for cell in report.numa.cells) - report.inventories["MEMORY_MB"].total) <= 64
    )
    assert all(cell.pages for cell in report.numa.cells)
    assert {"VCPU", "MEMORY_MB", "DISK_GB"} <= set(report.inventories) and report.cpu_info["model"]


async def test_cpus_that_are_not_there_stop_the_start(tmp_path: Path) -> None:
    async with opened(tmp_path / "instances", cpus=CpuSets(shared=frozenset({5000}))) as host:
        with pytest.raises(Failed, match="cpu_shared_set names CPUs that are not online on this host: 5000"):
            await host.driver.report()


async def test_devices_of_this_machine(tmp_path: Path) -> None:
    """Whatever it has; the sandbox sees the machine's PCI bus."""
    there = {each.name for each in Path("/sys/bus/pci/devices").iterdir()}
    async with opened(
        tmp_path / "instances", device_specs=('{"address": "*:*:*.*"}',), pci_in_placement=True
    ) as host:
        try:
            report = await host.driver.report()
        except HostFault as error:
            pytest.skip(f"this libvirt has no node devices: {error}")
        assert {each.address for each in report.pci_devices} == there
        ids = {each.address: f"0x{each.vendor_id}" for each in report.pci_devices}
        for address, vendor in ids.items():
            assert Path(f"/sys/bus/pci/devices/{address}/vendor").read_text().strip() == vendor
        assert {each.name for each in report.providers} == {
            f"{report.hypervisor_hostname}_{one}" for one in there
        }
        assert {each.parent for each in report.providers} <= {host.compute_id}


@pytest.mark.capability("MB-1", "MV-1")
async def test_the_cpu_monitor_on_real_counters(host: Host) -> None:
    monitor = Monitor(MonitoredHost(host.driver, SystemClock()))
    found: list[Metric] = []
    for _ in range(2):
        await monitor.add_metrics(found)
    values = {each.name: each.value for each in found[-10:]}
    assert set(values) == set(CPU_METRICS)
    assert values["cpu.frequency"] > 0
    assert all(0 <= value <= 100 for name, value in values.items() if "percent" in name)
    assert values["cpu.idle.time"] >= found[3].value > 0


# ---- libvirt's own test driver: machines that we do not have ----

MACHINE = """
<node>
 <cpu><mhz>2000</mhz><model>x86_64</model><active>8</active><nodes>1</nodes><sockets>1</sockets><cores>8</cores>
  <threads>1</threads></cpu>
 <memory>8192000</memory>
 <device><name>computer</name><capability type='system'><product>p</product>
  <hardware><vendor>v</vendor><uuid>11111111-2222-4333-8444-555555555555</uuid></hardware>
  <firmware><vendor>v</vendor></firmware></capability></device>
 <device><name>pci_0000_81_00_0</name><parent>computer</parent><capability type='pci'>
  <domain>0</domain><bus>129</bus><slot>0</slot><function>0</function>
  <product id='0x1528'>X540</product><vendor id='0x8086'>Intel</vendor>
  <capability type='virt_functions' maxCount='63'>
   <address domain='0x0000' bus='0x81' slot='0x10' function='0x0'/></capability><numa node='1'/></capability>
 </device>
 <device><name>pci_0000_81_10_0</name><parent>computer</parent><capability type='pci'>
  <domain>0</domain><bus>129</bus><slot>16</slot><function>0</function>
  <product id='0x1515'>VF</product><vendor id='0x8086'>Intel</vendor>
  <capability type='phys_function'>
   <address domain='0x0000' bus='0x81' slot='0x00' function='0x0'/></capability></capability></device>
 <device><name>net_ens1</name><parent>pci_0000_81_00_0</parent><capability type='net'>
  <interface>ens1</interface><address>a0:36:9f:00:00:01</address></capability></device>
</node>
"""


class Deaf:
    """Nobody listens to the guests of these machines."""

    def lifecycle(self, uuid: str, event: int, detail: int) -> None: ...

    def rebooted(self, uuid: str) -> None: ...

    def lost(self) -> None: ...

    async def back(self) -> None: ...


@contextlib.asynccontextmanager
async def connected(uri: str) -> AsyncIterator[Connection]:
    connection = Connection(uri, Deaf(), SystemClock())
    await connection.open()
    try:
        yield connection
    finally:
        await connection.close()


async def test_a_machine_with_two_cells() -> None:
    async with connected("test:///default") as connection:
        facts = await read_facts(connection)
        assert facts.online == {0, 2, 4}
        assert (await read_cpu_stats(connection)).keys() >= {"user", "kernel", "idle", "iowait", "frequency"}
    found = host_topology(
        facts.cells, facts.online, CpuSets(dedicated=frozenset({4})), {(1, 8): 5}, NetworkCells()
    )
    assert found is not None
    first, second = found.cells
    none = (Pages(size_kib=2048, total=0), Pages(size_kib=1048576, total=0))
    assert first == HostCell(
        id=0,
        shared=(),
        dedicated=(4,),
        memory_mib=2048,
        pages=(Pages(size_kib=4, total=524288), *none),
        socket=0,
    )
    assert (second.memory_mib, second.socket, second.pages[0]) == (
        4096,
        1,
        Pages(size_kib=8, total=524288, reserved=5),
    )


async def test_node_devices_of_a_machine(tmp_path: Path) -> None:
    (tmp_path / "node.xml").write_text(MACHINE)
    async with connected(f"test://{tmp_path}/node.xml") as connection:
        virtual, physical = sorted(await pci_devices(connection), key=lambda each: each.device.kind)[::-1]
    assert physical.device == PciDevice(
        address="0000:81:00.0",
        vendor_id="8086",
        product_id="1528",
        kind=PF,
        numa_cell=1,
        mac="a0:36:9f:00:00:01",
    )
    assert (virtual.device.parent, virtual.parent_interfaces) == ("0000:81:00.0", ("ens1",))
