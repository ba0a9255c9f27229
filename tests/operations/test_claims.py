"""Servers with cells and devices of their own, from the request to the hypervisor and back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kilonova.api.app import app
from kilonova.api.policy import Policy
from kilonova.app import EmbeddedCloud
from kilonova.cli.doctor import examine
from kilonova.db import flavors, host_resources
from kilonova.db.engine import Tx
from kilonova.errors import HostFault
from kilonova.model.flavor import Flavor
from kilonova.model.host_resources import HostResources
from kilonova.model.instance import Instance
from kilonova.model.numa import HostTopology
from kilonova.model.pci import PciDevice
from kilonova.model.states import Vm
from kilonova.operations import create, delete, reboot, start, stop
from kilonova.operations.requests import CreateServer
from kilonova.rpc.messages import GuestSpec
from kilonova.testing.embedded import embedded, fake_driver, leaks, member, settled
from tests.api.compute.asgi import Api, Tokens
from tests.unit.resources.numa import cell

CELLS = tuple(cell(number, shared=tuple(range(number * 8 + 4, number * 8 + 8))) for number in range(2))
CELLS = tuple(msgspec.structs.replace(each, dedicated=each.dedicated[:4]) for each in CELLS)
DEVICES = tuple(
    PciDevice(address=f"0000:0{number}:00.0", vendor_id="10de", product_id="1eb8", numa_cell=number)
    for number in range(2)
)
ALIAS = '{"name": "gpu", "vendor_id": "10de", "product_id": "1eb8", "numa_policy": "required"}'
PINNED = {"hw:cpu_policy": "dedicated", "hw:mem_page_size": "large", "pci_passthrough:alias": "gpu:1"}


@dataclass
class Pinning:
    """A cloud of one host with two cells: four CPUs for pinning, four shared, and a device in each."""

    cloud: EmbeddedCloud
    told: list[GuestSpec] = field(default_factory=list)  # what the host was told to start

    async def flavor(self, name: str, specs: dict[str, str], *, vcpus: int = 2) -> None:
        made = Flavor(
            id=0, flavorid=name, name=name, vcpus=vcpus, memory_mb=512, root_gb=1, extra_specs=specs
        )
        await self.cloud.db.write(lambda tx: flavors.create(tx, made, 1))

    async def boot(self, flavor: str, **more: Any) -> Instance:
        request = CreateServer(
            name="s", flavor_id=flavor, image_id=self.cloud.example_image, networks=(), **more
        )
        (made,) = await create.submit(self.cloud.cloud, member(self.cloud), request)
        return await settled(self.cloud, made.uuid, 60)

    async def delete(self, server: Instance) -> None:
        await delete.submit(self.cloud.cloud, member(self.cloud), server.uuid)
        await settled(self.cloud, server.uuid)

    async def resources(self) -> HostResources:
        (found,) = (await self.cloud.db.read(host_resources.read_many)).values()
        return found

    async def free(self) -> bool:
        now = await self.resources()
        return not now.guests and not any(each.holder for each in now.devices)


@pytest.fixture
async def pinning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Pinning]:
    options: dict[str, dict[str, object]] = {
        "DEFAULT": {"host": "h1"},
        "fake": {
            "numa_cells": msgspec.json.encode(CELLS).decode(),
            "pci_devices": msgspec.json.encode(DEVICES).decode(),
        },
        "pci": {"alias": [ALIAS]},
        "quota": {"cores": 100},
    }
    async with embedded(tmp_path / "state", **options) as cloud:
        made = Pinning(cloud)
        driver = fake_driver(cloud)
        define = driver.start

        async def start(guest: GuestSpec, *args: Any, **more: Any) -> Any:
            made.told.append(guest)
            return await define(guest, *args, **more)

        monkeypatch.setattr(driver, "start", start)
        await made.flavor("pinned", PINNED)
        await made.flavor("wide", {"hw:cpu_policy": "dedicated", "hw:numa_nodes": "2"}, vcpus=6)
        yield made
        assert await leaks(cloud) == []


async def test_a_pinned_server_has_what_it_claimed_for_as_long_as_it_lives(pinning: Pinning) -> None:
    server = await pinning.boot("pinned")
    assert (server.vm_state, server.fault) == (Vm.ACTIVE, None)
    claim = await pinning.cloud.cloud.claims.of(server)
    assert claim is not None and claim.numa is not None
    (only,) = claim.numa.cells
    assert claim.devices[0].numa_cell == only.host_cell and only.page_size_kib == 2048
    assert set((await pinning.cloud.placement.held(server.uuid)).popitem()[1]) == {
        "PCPU",
        "MEMORY_MB",
        "DISK_GB",
    }
    cloud, who = pinning.cloud.cloud, member(pinning.cloud)
    await stop.submit(cloud, who, server.uuid)
    await settled(pinning.cloud, server.uuid)
    await start.submit(cloud, who, server.uuid)
    await settled(pinning.cloud, server.uuid)
    assert [(told.numa, told.pci) for told in pinning.told] == [(claim.numa, claim.devices)] * 2
    await reboot.submit(cloud, who, server.uuid, hard=True)
    await settled(pinning.cloud, server.uuid)
    assert await cloud.claims.of(server) == claim
    await pinning.delete(server)
    assert await pinning.free()


async def test_a_full_host_says_what_is_missing(pinning: Pinning) -> None:
    servers = [await pinning.boot("pinned") for _ in range(3)]
    assert [each.vm_state for each in servers] == [Vm.ACTIVE, Vm.ACTIVE, Vm.ERROR]
    fault = servers[2].fault
    assert fault is not None and "No valid host" in fault.message
    assert "PCI" in fault.message + fault.details
    used = [each.numa.cells[0].host_cell for each in pinning.told if each.numa is not None]
    assert sorted(str(each) for each in used) == ["0", "1"]
    for each in servers:
        await pinning.delete(each)
    assert await pinning.free()


async def test_cells_that_do_not_fit_though_the_amounts_do(pinning: Pinning) -> None:
    """Four CPUs of the eight that are free are in each cell; one cell of five fits nowhere."""
    await pinning.flavor("five", {"hw:cpu_policy": "dedicated"}, vcpus=5)
    server = await pinning.boot("five")
    assert server.vm_state == Vm.ERROR and server.fault is not None
    assert "5 dedicated CPUs wanted" in server.fault.message + server.fault.details
    assert (await pinning.boot("wide")).vm_state == Vm.ACTIVE


@pytest.mark.capability("CL-2", "CL-8", "RT-7")
async def test_a_build_that_fails_gives_everything_back(pinning: Pinning) -> None:
    fake_driver(pinning.cloud).faults.add("start", HostFault("ordered"))
    server = await pinning.boot("pinned")
    assert (server.vm_state, server.host, server.node) == (Vm.ERROR, None, None)
    assert await pinning.free()


async def test_ordinary_servers_are_beside_them(pinning: Pinning) -> None:
    server = await pinning.boot("42")
    assert server.vm_state == Vm.ACTIVE and pinning.told[-1].numa is None
    assert await pinning.free()


async def test_cells_are_near_the_network(pinning: Pinning) -> None:
    driver = fake_driver(pinning.cloud)
    away, near = CELLS
    near = msgspec.structs.replace(near, physical_networks=("physnet1",))
    driver.hardware = msgspec.structs.replace(driver.hardware, numa=HostTopology(cells=(away, near)))
    await pinning.cloud.register(await driver.report())
    await pinning.flavor("near", {"hw:cpu_policy": "dedicated"})
    cells: list[int | None] = []
    for networks in (None, ()):  # one with a network, one without
        request = CreateServer(
            name="s", flavor_id="near", image_id=pinning.cloud.example_image, networks=networks
        )
        (made,) = await create.submit(pinning.cloud.cloud, member(pinning.cloud), request)
        assert (await settled(pinning.cloud, made.uuid, 60)).vm_state == Vm.ACTIVE
        told = pinning.told[-1].numa
        assert told is not None
        cells.append(told.cells[0].host_cell)
    assert cells == [1, 0]


BAD = {
    "numa_nodes": {"hw:numa_nodes": "3"},
    "policy": {"hw:cpu_policy": "mixed"},
    "threads": {"hw:cpu_thread_policy": "require"},
    "realtime": {"hw:cpu_realtime": "yes"},
    "pages": {"hw:mem_page_size": "huge"},
    "alias": {"pci_passthrough:alias": "tpu:1"},
    "locked": {"hw:locked_memory": "true"},
}


def api_of(pinning: Pinning, who: str) -> Api:
    assert pinning.cloud.accounts is not None
    projects, users = pinning.cloud.accounts.projects, pinning.cloud.accounts.users
    tokens = Tokens(projects["demo"], projects["admin"], users["demo"], users["admin"])
    return Api(app(pinning.cloud.cloud, tokens, Policy()), who=who)


@pytest.mark.capability("RT-19")
async def test_an_agent_that_starts_takes_from_the_deleted_what_they_still_hold(pinning: Pinning) -> None:
    server, other = await pinning.boot("pinned"), await pinning.boot("42")
    claim = await pinning.cloud.cloud.claims.of(server)
    held = await pinning.cloud.placement.held(server.uuid)
    await pinning.delete(server)
    assert claim is not None

    def plant(tx: Tx) -> None:
        host_resources.lock(tx, claim.compute_id)
        host_resources.add(tx, claim)

    await pinning.cloud.placement.claim(server.uuid, held, "p", "u", also=plant)
    await pinning.cloud.placement.claim("nobody", {claim.compute_id: {"VCPU": 1}}, "p", "u")
    report = await fake_driver(pinning.cloud).report()
    await pinning.cloud.register(report)
    assert await pinning.cloud.placement.held(server.uuid) == held  # only a start looks
    await pinning.cloud.register(msgspec.structs.replace(report, starting=True))
    assert await pinning.cloud.placement.held(server.uuid) == {} and await pinning.free()
    assert await pinning.cloud.placement.held(other.uuid) != {}
    assert await pinning.cloud.placement.held("nobody") != {}  # whose that is nobody knows
    await pinning.cloud.placement.release("nobody")


@pytest.mark.capability("RT-31")
async def test_a_service_that_is_deleted_takes_cells_and_devices_along(pinning: Pinning) -> None:
    api = api_of(pinning, "admin")
    services = (await api("GET", "/os-services?binary=nova-compute", v=90)).json["services"]
    reply = await api("DELETE", f"/os-services/{services[0]['id']}", v=90)
    assert reply.status == 204, reply.content
    assert await pinning.cloud.db.read(host_resources.read_many) == {}
    await pinning.cloud.register(await fake_driver(pinning.cloud).report())
    assert len((await pinning.resources()).devices) == 2


@pytest.mark.parametrize("name", list(BAD))
async def test_what_no_host_could_give_is_a_bad_request(pinning: Pinning, name: str) -> None:
    await pinning.flavor(name, BAD[name])
    api = api_of(pinning, "member")
    body = {
        "server": {
            "name": "s",
            "flavorRef": name,
            "imageRef": pinning.cloud.example_image,
            "networks": "none",
        }
    }
    reply = await api("POST", "/servers", body, v=90)
    assert reply.status == 400, reply.content
    assert reply.json["badRequest"]["message"]
    assert (await pinning.cloud.db.read(examine)).servers == 0


async def test_a_restart_finds_what_is_held(pinning: Pinning) -> None:
    server = await pinning.boot("pinned")
    before = await pinning.resources()
    driver = fake_driver(pinning.cloud)
    await pinning.cloud.register(await driver.report())
    after = await pinning.resources()
    assert msgspec.structs.replace(after, generation=0) == msgspec.structs.replace(before, generation=0)
    without = msgspec.structs.replace(driver.hardware, pci_devices=())
    driver.hardware = without
    await pinning.cloud.register(await driver.report())
    held = [each for each in (await pinning.resources()).devices if each.holder == server.uuid]
    assert len(held) == 1 and not held[0].reported
    await pinning.delete(server)
    assert (await pinning.resources()).devices == ()
