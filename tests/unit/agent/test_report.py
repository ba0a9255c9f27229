"""What an agent tells of its host, with the operator's say, and when it tells it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from kilonova.agent.inventory import StockOptions, as_given_out, stock_options
from kilonova.agent.monitors import Monitors
from kilonova.agent.report import HostReports, ReportOptions, changes, host_reports
from kilonova.errors import Conflict, Failed, HostFault
from kilonova.model.host import HostReport, Inventory, Metric, ProviderReport
from kilonova.model.numa import HostCell, HostTopology
from kilonova.model.pci import PciDevice
from kilonova.resources.provider_config import ProviderExtra
from kilonova.resources.provider_merge import ProviderExtras
from kilonova.resources.provider_tree import nested_uuid
from kilonova.settings import Settings, read_options
from kilonova.testing.clock import VirtualClock
from kilonova.virt.fake.driver import FakeDriver
from kilonova.virt.fake.hardware import FakeHardware, NestedProvider, hardware_from

CAPACITY = {
    "VCPU": Inventory(total=8),
    "MEMORY_MB": Inventory(total=8192),
    "DISK_GB": Inventory(total=100),
    "PCPU": Inventory(total=2),
}


class Host:
    """A fake host and what was told of it; the next telling fails with ``fault``."""

    def __init__(self, path: Path, *extras: ProviderExtra, **options: Any) -> None:
        self.clock = VirtualClock()
        self.driver = FakeDriver("h1", "node-1", path, self.clock, dict(CAPACITY))
        self.monitors = Some()
        self.reports = HostReports(
            self.driver,
            self.clock,
            ReportOptions(**options),
            ProviderExtras(extras),
            self.monitors,
        )
        self.told: list[HostReport] = []
        self.fault: Exception | None = None

    async def tell(self, report: HostReport) -> None:
        if self.fault is not None:
            raise self.fault
        self.told.append(report)

    async def news(self) -> bool:
        return await self.reports.tell_news(self.tell)


class Some(Monitors):
    def __init__(self) -> None:
        super().__init__()
        self.metrics: tuple[Metric, ...] = ()

    async def collect(self) -> tuple[Metric, ...]:
        return self.metrics


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def report(**more: Any) -> HostReport:
    fields: dict[str, Any] = {
        "host": "h1",
        "compute_id": "node-1",
        "hypervisor_hostname": "h1.example",
        "hypervisor_type": "fake",
        "hypervisor_version": 1,
        "host_ip": "10.0.0.1",
        "inventories": CAPACITY,
    }
    return HostReport(**{**fields, **more})


def settings(tmp_path: Path, text: str = "") -> Settings:
    file = tmp_path / "nova.conf"
    file.write_text(text)
    return Settings(state_dir=tmp_path, options=read_options(file))


# ---- the operator's reserves and ratios ----


@pytest.mark.capability("RT-15", "RT-29")
def test_defaults_are_novas(tmp_path: Path) -> None:
    found = as_given_out(report(), stock_options(settings(tmp_path)))
    assert {name: (i.reserved, i.allocation_ratio) for name, i in found.inventories.items()} == {
        "VCPU": (0, 4.0),
        "MEMORY_MB": (512, 1.0),
        "DISK_GB": (0, 1.0),
        "PCPU": (0, 1.0),  # never overbooked
    }
    assert found.initial_ratios == ("VCPU", "MEMORY_MB", "DISK_GB")


@pytest.mark.capability("RT-15", "RT-29")
def test_what_the_operator_says(tmp_path: Path) -> None:
    options = stock_options(
        settings(
            tmp_path,
            "[DEFAULT]\nreserved_host_cpus = 1\nreserved_host_memory_mb = 9999\n"
            "reserved_host_disk_mb = 1025\n"
            "cpu_allocation_ratio = 2.5\nram_allocation_ratio = 0.0\n"
            "initial_ram_allocation_ratio = 1.2\ninitial_cpu_allocation_ratio = 9\n",
        )
    )
    found = as_given_out(report(), options)
    assert {name: (i.reserved, i.allocation_ratio) for name, i in found.inventories.items()} == {
        "VCPU": (1, 2.5),
        "MEMORY_MB": (8192, 1.2),  # not more than there is; a ratio of 0 is none
        "DISK_GB": (2, 1.0),
        "PCPU": (0, 1.0),
    }
    assert found.initial_ratios == ("MEMORY_MB", "DISK_GB")
    assert found.inventories["VCPU"].total == 8


def test_what_the_driver_keeps_back_stays_kept() -> None:
    kept = {**CAPACITY, "VCPU": Inventory(total=8, reserved=3, allocation_ratio=7.0)}
    found = as_given_out(report(inventories=kept), StockOptions(reserved={"VCPU": 1}))
    assert found.inventories["VCPU"] == Inventory(total=8, reserved=3, allocation_ratio=7.0)


@pytest.mark.capability("RT-13")
@pytest.mark.parametrize(
    ("gone", "words"),
    [
        (("VCPU", "PCPU"), "how much it has of VCPU or PCPU:"),
        (("MEMORY_MB",), "how much it has of MEMORY_MB:"),
        (("DISK_GB", "MEMORY_MB"), "how much it has of MEMORY_MB, DISK_GB:"),
    ],
)
def test_a_view_in_which_something_is_missing(gone: tuple[str, ...], words: str) -> None:
    left = {name: each for name, each in CAPACITY.items() if name not in gone}
    with pytest.raises(Failed, match=words):
        as_given_out(report(inventories=left), StockOptions())


@pytest.mark.capability("RT-13")
@pytest.mark.parametrize("gone", ["VCPU", "PCPU"])
def test_processors_of_one_kind_will_do(gone: str) -> None:
    left = {name: each for name, each in CAPACITY.items() if name != gone}
    assert gone not in as_given_out(report(inventories=left), StockOptions()).inventories
    assert report().cpu_info == {}  # a driver that knows nothing of its processor


# ---- what is told ----


async def test_the_first_report_says_that_it_is(host: Host) -> None:
    host.reports.details = {"datapath_type": "netdev"}
    first = await host.reports.first()
    assert first.starting and first.details["datapath_type"] == "netdev"
    assert host.reports.latest == msgspec.structs.replace(first, starting=False)


@pytest.mark.capability("RT-26", "RT-30")
async def test_the_operators_additions_are_in_the_report(tmp_path: Path) -> None:
    extras = [
        ProviderExtra(uuid="$COMPUTE_NODE", inventories={"CUSTOM_X": {"total": 4}}, traits=("CUSTOM_T",)),
        ProviderExtra(name="h1_gpu", traits=("CUSTOM_G",)),
    ]
    host = Host(tmp_path, *extras)
    gpu = NestedProvider(
        name="h1_gpu", inventories={"VGPU": Inventory(total=2)}, traits=("HW_GPU_API_VULKAN",)
    )
    host.driver.hardware = FakeHardware(providers=(gpu, NestedProvider(name="below", parent="h1_gpu")))
    first = await host.reports.first()
    assert first.inventories == {**CAPACITY, "CUSTOM_X": Inventory(total=4)}
    assert first.traits == ("COMPUTE_NET_ATTACH_INTERFACE", "COMPUTE_NODE", "CUSTOM_T")
    above = nested_uuid("node-1", "h1_gpu")
    assert first.providers == (
        ProviderReport(
            uuid=above,
            name="h1_gpu",
            parent="node-1",
            inventories={"VGPU": Inventory(total=2)},
            traits=("CUSTOM_G", "HW_GPU_API_VULKAN"),
        ),
        ProviderReport(uuid=nested_uuid("node-1", "below"), name="below", parent=above),
    )
    assert first.tree[0].uuid == "node-1"


async def test_additions_that_the_driver_has_stop_the_start(tmp_path: Path) -> None:
    extra = ProviderExtra(uuid="$COMPUTE_NODE", inventories={"VCPU": {"total": 4}}, source="f.yaml")
    with pytest.raises(Failed, match=r"f\.yaml adds VCPU"):
        await Host(tmp_path, extra).reports.first()


# ---- when it is told ----


async def test_nothing_new_is_not_told(host: Host) -> None:
    await host.reports.first()
    host.clock.advance(10_000)
    assert not await host.news() and host.told == []


def more_cpus(driver: FakeDriver) -> None:
    driver.capacity = {**CAPACITY, "VCPU": Inventory(total=9)}


def cells(driver: FakeDriver) -> None:
    cell = HostCell(id=0, shared=(0,), dedicated=(), memory_mib=1)
    driver.hardware = FakeHardware(numa=HostTopology(cells=(cell,)))


def device(driver: FakeDriver) -> None:
    found = PciDevice(address="0000:01:00.0", vendor_id="10de", product_id="1db4")
    driver.hardware = FakeHardware(pci_devices=(found,), pci_in_placement=True)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (more_cpus, ["h1"]),
        (cells, ["numa"]),
        (device, ["pci_devices", "h1_0000:01:00.0"]),
    ],
)
async def test_changes_are_told_once(host: Host, change: Any, what: list[str]) -> None:
    first = await host.reports.first()
    change(host.driver)
    assert await host.news() and not await host.news()
    (told,) = host.told
    assert not told.starting and told == host.reports.latest
    assert changes(first, told) == what
    assert changes(told, first) == what
    assert changes(None, told) == ["everything"]


async def test_what_could_not_be_told_is_told_the_next_time(host: Host) -> None:
    await host.reports.first()
    more_cpus(host.driver)
    host.fault = Conflict("no")
    with pytest.raises(Conflict):
        await host.news()
    host.fault = None
    assert await host.news() and len(host.told) == 1
    assert not await host.news()


async def test_a_driver_that_fails_leaves_what_was_seen(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    first = await host.reports.first()

    async def broken() -> HostReport:
        raise HostFault("no")

    monkeypatch.setattr(host.driver, "report", broken)
    with pytest.raises(HostFault):
        await host.news()
    assert host.reports.latest.inventories == first.inventories


@pytest.mark.capability("RT-21")
async def test_metrics_are_always_new(host: Host) -> None:
    host.monitors.metrics = (Metric(name="x", value=1.0, timestamp=1, source="s"),)
    assert (await host.reports.first()).metrics == host.monitors.metrics
    assert await host.news() and await host.news()
    assert [each.metrics for each in host.told] == [host.monitors.metrics] * 2
    host.monitors.metrics = ()
    assert not await host.news()


async def test_all_is_told_again_from_time_to_time(tmp_path: Path) -> None:
    host = Host(tmp_path, refresh=300)
    await host.reports.first()
    for seconds, expected in ((299, False), (1, True), (299, False), (2, True)):
        host.clock.advance(seconds)
        assert await host.news() is expected


# ---- from the settings ----


async def test_reports_by_the_settings(tmp_path: Path) -> None:
    files = tmp_path / "providers"
    files.mkdir()
    (files / "a.yaml").write_text(
        "meta: {schema_version: '1.0'}\nproviders:\n"
        " - identification: {uuid: $COMPUTE_NODE}\n   traits: {additional: [CUSTOM_T]}\n"
    )
    chosen = settings(
        tmp_path,
        f"[DEFAULT]\ncompute_monitors = cpu.virt_driver\ncpu_allocation_ratio = 3\n"
        f"[compute]\nprovider_config_location = {files}\nresource_provider_association_refresh = 100\n",
    )
    clock = VirtualClock()
    driver = FakeDriver("h1", "node-1", tmp_path, clock, dict(CAPACITY))
    reports = host_reports(driver, clock, chosen)
    first = await reports.first()
    assert "CUSTOM_T" in first.traits and len(first.metrics) == 10
    assert first.inventories["VCPU"].allocation_ratio == 3.0
    driver.cpu_times = {}  # the monitor fails
    told: list[HostReport] = []

    async def tell(report: HostReport) -> None:
        told.append(report)

    assert not await reports.tell_news(tell)
    clock.advance(100)
    assert await reports.tell_news(tell) and told[0].metrics == ()


@pytest.mark.capability("PC-12")
def test_a_provider_configuration_that_is_wrong_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("meta: {}")
    chosen = settings(tmp_path, f"[compute]\nprovider_config_location = {tmp_path}\n")
    driver = FakeDriver("h1", "node-1", tmp_path, VirtualClock(), dict(CAPACITY))
    with pytest.raises(Failed, match=r"a\.yaml:1:7: 'schema_version' is missing"):
        host_reports(driver, VirtualClock(), chosen)


# ---- fake hardware ----


def test_fake_hardware_by_the_settings(tmp_path: Path) -> None:
    chosen = settings(
        tmp_path,
        '[fake]\nnuma_cells = [{"id": 0, "shared": [0, 1], "dedicated": [2], "memory_mib": 4096},'
        ' {"id": 1, "shared": [3], "dedicated": [], "memory_mib": 1024}]\n'
        'pci_devices = [{"address": "0000:01:00.0", "vendor_id": "10de", "product_id": "1db4"},'
        ' {"address": "0000:02:00.0", "vendor_id": "8086", "product_id": "1db4"}]\n'
        'providers = [{"name": "n", "inventories": {"CUSTOM_X": {"total": 3}}}]\n'
        'inventories = {"CUSTOM_Y": {"total": 7}, "MEMORY_MB": {"total": 6000}}\n'
        'items = [{"provider": "", "resource_class": "CUSTOM_Y", "identifier": "1"},'
        ' {"provider": "n", "resource_class": "CUSTOM_X", "identifier": "2"}]\n'
        '[pci]\ndevice_spec = {"vendor_id": "10de", "resource_class": "gpu"}\nreport_in_placement = true\n',
    )
    found = hardware_from(chosen)
    assert found.capacity(CAPACITY) == {
        "VCPU": Inventory(total=3, max_unit=3),
        "PCPU": Inventory(total=1, max_unit=1),
        "MEMORY_MB": Inventory(total=6000),
        "DISK_GB": Inventory(total=100),
        "CUSTOM_Y": Inventory(total=7),
    }
    assert [each.provider for each in found.listed("node-1")] == ["node-1", nested_uuid("node-1", "n")]
    without = msgspec.structs.replace(found, inventories={}).capacity(CAPACITY)
    assert without["MEMORY_MB"] == Inventory(total=5120, max_unit=5120)
    assert [(each.name, sorted(each.inventories)) for each in found.tree("node-1", "h1")] == [
        ("n", ["CUSTOM_X"]),
        ("h1_0000:01:00.0", ["CUSTOM_GPU"]),
    ]
    plain = hardware_from(settings(tmp_path))
    assert plain == FakeHardware() and plain.capacity(CAPACITY) == CAPACITY and plain.tree("a", "b") == ()


@pytest.mark.parametrize(
    "line",
    [
        "inventories = []",
        "items = [1]",
        "numa_cells = [{}]",
        "pci_devices = {",
        'providers = [{"name": "n", "trait": 1}]',
    ],
)
def test_fake_hardware_that_is_none(tmp_path: Path, line: str) -> None:
    with pytest.raises(Failed, match=rf"\[fake\]{line.split()[0]} = "):
        hardware_from(settings(tmp_path, f"[fake]\n{line}\n"))
