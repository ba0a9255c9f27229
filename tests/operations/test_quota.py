"""Quota while servers come and go: never more than may be, and given back exactly once."""

from __future__ import annotations

import asyncio

import pytest

from kilonova.app import EmbeddedCloud
from kilonova.db import quotas
from kilonova.errors import Failed, HostFault, OverQuota
from kilonova.model.states import Vm
from kilonova.operations import create, delete
from kilonova.operations.requests import CreateServer
from kilonova.testing.embedded import audits, fake_driver, member, settled
from tests.operations.conftest import Three


async def boot(cloud: EmbeddedCloud, count: int = 1, *, least: int | None = None) -> list[str]:
    """The ids of what is being made."""
    request = CreateServer(
        name="s",
        flavor_id="42",
        image_id=cloud.example_image,
        min_count=least or count,
        max_count=count,
    )
    return [made.uuid for made in await create.submit(cloud.cloud, member(cloud), request)]


async def limit(cloud: EmbeddedCloud, *, user: bool = False, **limits: int) -> None:
    context = member(cloud)
    assert context.project_id is not None
    scope, name = quotas.PROJECT, context.project_id
    if user:
        scope, name = quotas.USER, quotas.user_scope(context.project_id, context.user_id)
    await cloud.db.write(lambda tx: quotas.set_limits(tx, scope, name, limits))


async def used(cloud: EmbeddedCloud, *, user: bool = False) -> dict[str, int]:
    context = member(cloud)
    project, of = str(context.project_id), context.user_id if user else None
    return await cloud.db.read(lambda tx: quotas.usage(tx, project, of))


async def gone(cloud: EmbeddedCloud, uuid: str) -> None:
    await delete.submit(cloud.cloud, member(cloud), uuid)
    assert (await settled(cloud, uuid, 60)).vm_state == Vm.DELETED


async def test_what_is_taken_is_given_back_once(cloud: EmbeddedCloud) -> None:
    first, second = await boot(cloud, 2)
    assert await used(cloud) == await used(cloud, user=True) == {"instances": 2, "cores": 2, "ram": 256}
    for _ in range(2):  # a repeat is no second delete
        await delete.submit(cloud.cloud, member(cloud), first)
    await settled(cloud, first, 60)
    assert await used(cloud) == {"instances": 1, "cores": 1, "ram": 128}
    await gone(cloud, second)
    assert await used(cloud) == await used(cloud, user=True) == {"instances": 0, "cores": 0, "ram": 0}
    assert await audits(cloud) == []


async def test_a_server_in_error_counts_until_it_is_deleted(cloud: EmbeddedCloud) -> None:
    fake_driver(cloud).faults.add("start", Failed("no kernel"))
    (uuid,) = await boot(cloud)
    assert (await settled(cloud, uuid, 60)).vm_state == Vm.ERROR
    assert (await used(cloud))["instances"] == 1
    await gone(cloud, uuid)
    assert (await used(cloud))["instances"] == 0
    assert await audits(cloud) == []


async def test_another_host_is_not_another_server(three: Three) -> None:
    three.host("h1").driver.faults.add("start", HostFault("no luck"))
    (uuid,) = await boot(three.cloud)
    assert (await settled(three.cloud, uuid, 60)).host == "h2"
    assert await used(three.cloud) == {"instances": 1, "cores": 1, "ram": 128}
    assert await audits(three.cloud) == []


async def test_many_at_once_get_what_there_is_and_no_more(cloud: EmbeddedCloud) -> None:
    await limit(cloud, instances=5)
    results = await asyncio.gather(*(boot(cloud) for _ in range(20)), return_exceptions=True)
    made = [each[0] for each in results if isinstance(each, list)]
    refused = [each for each in results if isinstance(each, OverQuota)]
    assert (len(made), len(refused)) == (5, 15)
    assert str(refused[0]) == ("Quota exceeded for instances: Requested 1, but already used 5 of 5 instances")
    await asyncio.gather(*(gone(cloud, uuid) for uuid in made))
    assert (await used(cloud))["instances"] == 0
    assert len(await boot(cloud, 7, least=2)) == 5  # and as many as fit, of several
    assert await audits(cloud) == []


@pytest.mark.capability("UT-11")
async def test_a_users_own_limit_holds_beside_the_projects(cloud: EmbeddedCloud) -> None:
    await limit(cloud, user=True, cores=1)
    await boot(cloud)
    with pytest.raises(OverQuota, match="cores"):
        await boot(cloud)
    await limit(cloud, user=True, cores=-1)
    await limit(cloud, cores=2)
    await boot(cloud)
    with pytest.raises(OverQuota, match="cores"):
        await boot(cloud)
    assert await audits(cloud) == []
