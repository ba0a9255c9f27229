"""From what a host's agent tells to what placement knows: ratios, traits, nested providers."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kilonova.app import EmbeddedCloud
from kilonova.db import flavors, hosts, placement_providers
from kilonova.db.engine import Tx
from kilonova.errors import Conflict, Failed
from kilonova.model.flavor import Flavor
from kilonova.model.host import Inventory
from kilonova.model.instance import Instance
from kilonova.model.states import Vm
from kilonova.operations import create, delete
from kilonova.operations.requests import CreateServer
from kilonova.services.placement.port import ProviderSummary
from kilonova.testing.embedded import embedded, fake_driver, leaks, member, settled
from kilonova.virt.fake.hardware import NestedProvider


def started(path: Path, groups: dict[str, dict[str, object]] | None = None, **options: object) -> Any:
    return embedded(path / "state", **{"DEFAULT": {"host": "h1", **options}, **(groups or {})})


async def known(cloud: EmbeddedCloud, name: str = "h1") -> ProviderSummary:
    (found,) = [each for each in await cloud.placement.providers() if each.name == name]
    return found


async def ratio_by_the_api(cloud: EmbeddedCloud, ratio: float) -> None:
    """As PUT /resource_providers/UUID/inventories/VCPU does."""
    found = await known(cloud)
    new = {**found.inventories}
    new["VCPU"] = msgspec.structs.replace(new["VCPU"], allocation_ratio=ratio)

    def write(tx: Tx) -> None:
        provider = placement_providers.lock(tx, found.uuid)
        placement_providers.set_stock(tx, found.uuid, new)
        placement_providers.bump(tx, provider)

    await cloud.db.write(write)


async def ratio(cloud: EmbeddedCloud) -> float:
    return (await known(cloud)).inventories["VCPU"].allocation_ratio


@pytest.mark.capability("RT-29")
async def test_initial_ratios_are_for_new_hosts_and_set_ones_go_before_all(tmp_path: Path) -> None:
    async with started(tmp_path, initial_cpu_allocation_ratio=7.0) as cloud:
        assert await ratio(cloud) == 7.0
        await ratio_by_the_api(cloud, 3.0)
        await cloud.register(cloud.host.reports.latest)
        assert await ratio(cloud) == 3.0
    async with started(tmp_path, initial_cpu_allocation_ratio=9.0) as cloud:
        assert await ratio(cloud) == 3.0  # a restart does not overwrite it
    async with started(tmp_path, cpu_allocation_ratio=2.0) as cloud:
        assert await ratio(cloud) == 2.0
        await ratio_by_the_api(cloud, 5.0)
        await cloud.register(cloud.host.reports.latest)
        assert await ratio(cloud) == 2.0
    async with started(tmp_path, cpu_allocation_ratio=0.0) as cloud:
        assert await ratio(cloud) == 2.0  # 0 is not set


@pytest.mark.capability("RT-15")
async def test_reserves_reach_placement_and_change_with_their_options(tmp_path: Path) -> None:
    for cpus, memory, disk in ((2, 1000, 2048), (0, 0, 0)):
        options = {
            "reserved_host_cpus": cpus,
            "reserved_host_memory_mb": memory,
            "reserved_host_disk_mb": disk,
        }
        async with started(tmp_path, **options) as cloud:
            found = (await known(cloud)).inventories
            assert [found[name].reserved for name in ("VCPU", "MEMORY_MB", "DISK_GB")] == [
                cpus,
                memory,
                disk // 1024,
            ]


@pytest.mark.capability("RT-26", "RT-28")
async def test_traits_and_providers_follow_the_driver_and_the_operators_stay(tmp_path: Path) -> None:
    async with started(tmp_path) as cloud:
        driver, reports = fake_driver(cloud), cloud.host.reports
        node = await known(cloud)
        assert {"COMPUTE_NODE", "COMPUTE_NET_ATTACH_INTERFACE"} <= node.traits
        await cloud.placement.set_trait(node.uuid, "CUSTOM_OPERATORS", True)
        gpu = NestedProvider(name="gpu", inventories={"VGPU": Inventory(total=2)}, traits=("CUSTOM_GPU",))
        below = NestedProvider(name="below", parent="gpu")
        driver.hardware = msgspec.structs.replace(driver.hardware, providers=(gpu, below))
        assert await reports.tell_news(cloud.register)
        found = await known(cloud, "gpu")
        assert (found.parent, found.inventories) == (node.uuid, {"VGPU": Inventory(total=2)})
        assert found.traits == {"CUSTOM_GPU"}
        assert (await known(cloud, "below")).parent == found.uuid
        gpu = msgspec.structs.replace(gpu, inventories={"VGPU": Inventory(total=1)}, traits=("CUSTOM_OTHER",))
        driver.hardware = msgspec.structs.replace(driver.hardware, providers=(gpu,))
        assert await reports.tell_news(cloud.register)
        assert [each.name for each in await cloud.placement.providers()] == ["gpu", "h1"]
        assert (await known(cloud, "gpu")).inventories["VGPU"].total == 1
        assert "CUSTOM_OPERATORS" in (await known(cloud)).traits
        assert "COMPUTE_STATUS_DISABLED" not in (await known(cloud)).traits
        await cloud.db.write(lambda tx: hosts.set_disabled(tx, "h1", True, "why", 1))
        await cloud.register(reports.latest)
        assert {"COMPUTE_STATUS_DISABLED", "CUSTOM_OPERATORS", "COMPUTE_NODE"} <= (await known(cloud)).traits


@pytest.mark.capability("RT-30", "PC-12")
async def test_provider_files_reach_placement_or_stop_the_start(tmp_path: Path) -> None:
    files = tmp_path / "files"
    files.mkdir()
    text = (
        "meta: {schema_version: '1.0'}\nproviders:\n"
        " - identification: {uuid: $COMPUTE_NODE}\n"
        "   inventories: {additional: [{CUSTOM_LICENSE: {total: 5, allocation_ratio: 2.0}}]}\n"
        "   traits: {additional: [CUSTOM_LICENSED]}\n"
    )
    (files / "a.yaml").write_text(text)
    groups = {"compute": {"provider_config_location": str(files)}}
    async with started(tmp_path, groups) as cloud:
        found = await known(cloud)
        assert found.inventories["CUSTOM_LICENSE"] == Inventory(total=5, allocation_ratio=2.0)
        assert "CUSTOM_LICENSED" in found.traits and "VCPU" in found.inventories
    (files / "a.yaml").write_text(text.replace("total: 5", "total: 6"))
    (files / "b.yaml").write_text("meta: {schema_version: '2.0'}\n")
    cloud = await EmbeddedCloud.assemble(cloud.settings)
    try:
        with pytest.raises(Failed, match=r"b\.yaml:1:24: schema_version is '2\.0'"):
            await cloud.start()
        assert (await known(cloud)).inventories["CUSTOM_LICENSE"].total == 5
    finally:
        await cloud.stop()


# ---- inventories that move ----

GPU = "CUSTOM_PCI_10DE_1EB8"
DEVICES = '[{"address": "0000:01:00.0", "vendor_id": "10de", "product_id": "1eb8"}]'
ALIAS = '{"name": "gpu", "vendor_id": "10de", "product_id": "1eb8"}'


def with_devices(path: Path, in_placement: bool) -> Any:
    groups: dict[str, dict[str, object]] = {
        "fake": {"pci_devices": DEVICES},
        "pci": {"alias": [ALIAS], "report_in_placement": in_placement},
    }
    return started(path, groups)


async def gpu_server(cloud: EmbeddedCloud) -> Instance:
    made = Flavor(
        id=0,
        flavorid="gpu",
        name="gpu",
        vcpus=1,
        memory_mb=64,
        root_gb=1,
        extra_specs={"pci_passthrough:alias": "gpu:1"},
    )
    await cloud.db.write(lambda tx: flavors.create(tx, made, 1))
    request = CreateServer(name="s", flavor_id="gpu", image_id=cloud.example_image, networks=())
    (server,) = await create.submit(cloud.cloud, member(cloud), request)
    return await settled(cloud, server.uuid, 60)


@pytest.mark.capability("RT-27")
async def test_devices_become_providers_and_cease_to_be_under_servers_that_have_them(tmp_path: Path) -> None:
    async with with_devices(tmp_path, False) as cloud:
        server = await gpu_server(cloud)
        assert server.vm_state == Vm.ACTIVE
        plain = await cloud.placement.held(server.uuid)
        assert len(plain) == 1
    for in_placement in (True, True, False, True):
        async with with_devices(tmp_path, in_placement) as cloud:
            held = await cloud.placement.held(server.uuid)
            below = [each for each in await cloud.placement.providers() if each.parent]
            if not in_placement:
                assert held == plain and below == []
                continue
            (provider,) = below
            assert provider.name == "h1_0000:01:00.0"
            assert held == {**plain, provider.uuid: {GPU: 1}}
            assert provider.used == {GPU: 1}
            claim = await cloud.cloud.claims.of(server)
            assert claim is not None and [each.address for each in claim.devices] == ["0000:01:00.0"]
    async with with_devices(tmp_path, True) as cloud:
        await delete.submit(cloud.cloud, member(cloud), server.uuid)
        await settled(cloud, server.uuid)
        assert [each.used for each in await cloud.placement.providers() if each.parent] == [{GPU: 0}]
        assert await leaks(cloud) == []


@pytest.mark.capability("RT-27")
async def test_a_class_moves_at_the_start_and_at_no_other_time(tmp_path: Path) -> None:
    shares = {"CUSTOM_SHARE": Inventory(total=4)}
    child = NestedProvider(name="below", inventories=shares)
    async with started(tmp_path) as cloud:
        driver, reports = fake_driver(cloud), cloud.host.reports
        driver.capacity = {**driver.capacity, **shares}
        assert await reports.tell_news(cloud.register)
        node = await known(cloud)
        assert await cloud.placement.claim("c" * 32, {node.uuid: {"CUSTOM_SHARE": 3}}, "p", "u")
        driver.capacity = {name: each for name, each in driver.capacity.items() if name not in shares}
        driver.hardware = msgspec.structs.replace(driver.hardware, providers=(child,))
        with pytest.raises(Conflict, match="CUSTOM_SHARE"):
            await reports.tell_news(cloud.register)
        assert await cloud.placement.held("c" * 32) == {node.uuid: {"CUSTOM_SHARE": 3}}
        await cloud.register(await reports.first())
        below = await known(cloud, "below")
        assert await cloud.placement.held("c" * 32) == {below.uuid: {"CUSTOM_SHARE": 3}}
        assert "CUSTOM_SHARE" not in (await known(cloud)).inventories
        small = msgspec.structs.replace(child, name="small", inventories={"CUSTOM_SHARE": Inventory(total=2)})
        driver.hardware = msgspec.structs.replace(driver.hardware, providers=(small,))
        with pytest.raises(Conflict, match="no room for 1"):  # the start is refused
            await cloud.register(await reports.first())
        assert await cloud.placement.held("c" * 32) == {below.uuid: {"CUSTOM_SHARE": 3}}
        await cloud.placement.release("c" * 32)


@pytest.mark.capability("RT-21")
async def test_metrics_are_stored_with_the_node(tmp_path: Path) -> None:
    async with started(tmp_path, compute_monitors=["cpu.virt_driver"]) as cloud:
        reports = cloud.host.reports
        first = await cloud.db.read(lambda tx: hosts.show(tx, "h1"))
        assert first is not None and len(first.metrics) == 10 and first.metrics == reports.latest.metrics
        fake_driver(cloud).cpu_times = {"user": 9, "kernel": 0, "idle": 9, "iowait": 0, "frequency": 5}
        assert await reports.tell_news(cloud.register)
        second = await cloud.db.read(lambda tx: hosts.show(tx, "h1"))
        assert second is not None and second.metrics == reports.latest.metrics != first.metrics
        assert {each.name: each.value for each in second.metrics}["cpu.percent"] == 50


async def test_what_changes_is_told_by_itself(tmp_path: Path) -> None:
    async with started(tmp_path, update_resources_interval=1) as cloud:
        driver = fake_driver(cloud)
        driver.capacity = {**driver.capacity, "CUSTOM_NEW": Inventory(total=3)}
        async with asyncio.timeout(60):
            while "CUSTOM_NEW" not in (await known(cloud)).inventories:
                await asyncio.sleep(0.01)
