"""What a build leaves behind on its host's record: builds that failed in a row."""

from __future__ import annotations

import asyncio

import pytest

from kilonova.db import hosts
from kilonova.errors import Failed, HostFault
from kilonova.model.instance import Instance
from kilonova.model.states import Vm
from kilonova.operations import create, delete
from kilonova.operations.requests import CreateServer
from kilonova.testing.embedded import member, settled
from tests.operations.conftest import Three


async def boot(three: Three, **more: str) -> Instance:
    cloud = three.cloud
    request = CreateServer(name="s", flavor_id="42", image_id=cloud.example_image, **more)  # type: ignore[arg-type]
    (made,) = await create.submit(cloud.cloud, member(cloud), request)
    return await settled(cloud, made.uuid, 60)


async def failed_builds(three: Three) -> dict[str, int]:
    found = await three.cloud.db.read(hosts.list_all)
    return {host.host: host.failed_builds for host in found}


@pytest.mark.capability("BR-3", "ST-6")
async def test_a_build_that_goes_elsewhere_counts_against_the_first_host(three: Three) -> None:
    for host in three.hosts[:2]:
        host.driver.faults.add("prepare", HostFault("ordered"))
    assert (await boot(three)).host == "h3"
    assert await failed_builds(three) == {"h1": 1, "h2": 1, "h3": 0}


@pytest.mark.capability("BR-2", "ST-6")
async def test_a_build_that_ends_there_counts(three: Three) -> None:
    three.hosts[0].driver.faults.add("start", Failed("no host can do it"))
    server = await boot(three)
    assert server.vm_state == Vm.ERROR
    assert await three.cloud.placement.held(server.uuid) == {}
    assert await failed_builds(three) == {"h1": 1, "h2": 0, "h3": 0}


@pytest.mark.capability("BR-2")
async def test_a_server_that_is_deleted_while_it_is_built_counts_as_in_nova(three: Three) -> None:
    cloud, driver = three.cloud, three.hosts[0].driver
    driver.faults.hold("prepare")
    request = CreateServer(name="s", flavor_id="42", image_id=cloud.example_image)
    (made,) = await create.submit(cloud.cloud, member(cloud), request)
    async with asyncio.timeout(20):
        while await cloud.placement.held(made.uuid) == {}:
            await asyncio.sleep(0)
    await delete.submit(cloud.cloud, member(cloud), made.uuid)
    driver.faults.release("prepare")
    assert (await settled(cloud, made.uuid, 60)).deleted_at is not None
    assert await failed_builds(three) == {"h1": 1, "h2": 0, "h3": 0}


@pytest.mark.capability("BR-1", "ST-6")
async def test_a_build_that_succeeds_ends_the_count(three: Three) -> None:
    three.hosts[0].driver.faults.add("prepare", HostFault("ordered"))
    await boot(three)
    assert (await failed_builds(three))["h1"] == 1
    three.cloud.scheduler.forget()
    assert (await boot(three, availability_zone="nova:h1")).host == "h1"
    assert await failed_builds(three) == {"h1": 0, "h2": 0, "h3": 0}


async def test_a_host_without_failures_is_not_written_to(three: Three) -> None:
    await boot(three)
    before = await three.cloud.db.read(lambda tx: hosts.show(tx, "h1"))
    await boot(three)
    after = await three.cloud.db.read(lambda tx: hosts.show(tx, "h1"))
    assert before is not None and after is not None and before.updated_at == after.updated_at
