"""Live migrations of servers that have CPUs, cells or devices of their own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kilonova.db import flavors, host_resources
from kilonova.errors import HostFault
from kilonova.model.flavor import Flavor
from kilonova.model.migration import Status
from kilonova.model.states import Vm
from kilonova.operations import create
from kilonova.operations.requests import CreateServer
from kilonova.rpc.messages import GuestSpec
from kilonova.testing.embedded import member, server, settled
from tests.operations.live_hosts import Live, live
from tests.operations.test_claims import ALIAS, CELLS, DEVICES

PINNED = {"hw:cpu_policy": "dedicated", "hw:mem_page_size": "large"}


@pytest.fixture(name="two")
async def _two(tmp_path: Path) -> AsyncIterator[Live]:
    options: dict[str, dict[str, object]] = {
        "fake": {
            "numa_cells": msgspec.json.encode(CELLS).decode(),
            "pci_devices": msgspec.json.encode(DEVICES).decode(),
        },
        "pci": {"alias": [ALIAS]},
        "quota": {"cores": 100},
    }
    async with live(tmp_path / "state", "h2", **options) as made:
        hardware = made.driver("h1").hardware
        made.driver("h2").hardware = hardware
        made.driver("h2").capacity = hardware.capacity(made.driver("h2").capacity)
        await made.cloud.register(await made.driver("h2").report())
        yield made


two = _two


async def boot(two: Live, specs: dict[str, str]) -> str:
    flavor = Flavor(id=0, flavorid="f", name="f", vcpus=2, memory_mb=512, root_gb=1, extra_specs=specs)
    await two.cloud.db.write(lambda tx: flavors.create(tx, flavor, 1))
    request = CreateServer(name="s", flavor_id="f", image_id=two.cloud.example_image, networks=(), host="h1")
    (made,) = await create.submit(two.cloud.cloud, member(two.cloud), request)
    found = await settled(two.cloud, made.uuid, 15)
    assert found.vm_state == Vm.ACTIVE, found.fault
    return made.uuid


@pytest.mark.capability("RT-4", "CL-11")
async def test_a_pinned_server_has_cpus_at_its_new_host_and_none_at_the_old(
    two: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, GuestSpec]] = []
    for name, verb in (("h2", "receive_live"), ("h1", "send_live")):
        own = getattr(two.driver(name), verb)

        async def heard(guest: GuestSpec, *more: Any, own: Any = own, verb: str = verb) -> Any:
            told.append((verb, guest))
            return await own(guest, *more)

        monkeypatch.setattr(two.driver(name), verb, heard)
    uuid = await boot(two, PINNED)
    cloud = two.cloud.cloud
    before = await cloud.claims.of(await server(two.cloud, uuid))
    found, migration = await two.move(uuid)
    assert (migration.status, found.host) == (Status.COMPLETED, "h2"), found.fault
    after = await cloud.claims.of(found)
    assert before is not None and after is not None and after.numa is not None
    assert before.compute_id != after.compute_id == two.hosts["h2"].compute_id
    assert after.numa.cells[0].page_size_kib == before.numa.cells[0].page_size_kib  # type: ignore[union-attr]
    specs = dict(told)
    assert specs["receive_live"].numa == after.numa and specs["send_live"].numa == before.numa
    assert await cloud.placement.held(migration.uuid) == {}
    assert await two.cloud.db.read(lambda tx: host_resources.claim_of(tx, migration.uuid)) is None


@pytest.mark.capability("MG-LM-4", "CL-10")
async def test_a_server_with_a_device_of_its_flavor_stays(two: Live) -> None:
    uuid = await boot(two, {"pci_passthrough:alias": "gpu:1"})
    before = await two.cloud.cloud.claims.of(await server(two.cloud, uuid))
    found, migration = await two.move(uuid)
    assert (found.vm_state, found.host, migration.status) == (Vm.ACTIVE, "h1", Status.ERROR)
    assert found.fault is not None
    assert found.fault.message.startswith("Migration pre-check error: A server with PCI devices")
    assert await two.cloud.cloud.claims.of(found) == before


async def test_a_failed_move_of_a_pinned_server_gives_its_new_cpus_back(two: Live) -> None:
    uuid = await boot(two, PINNED)
    before = await two.cloud.cloud.claims.of(await server(two.cloud, uuid))
    two.driver("h2").faults.add("receive_live", HostFault("no"))
    found, migration = await two.move(uuid, host="h2")
    assert (found.host, migration.status) == ("h1", Status.ERROR)
    assert await two.cloud.cloud.claims.of(found) == before
    assert list(await two.cloud.placement.held(uuid)) == [two.hosts["h1"].compute_id]
    assert await two.nothing_left() == []
