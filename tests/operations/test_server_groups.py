"""Servers of a group: the hint, where they go, what is refused, and what a deletion leaves."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from kilonova.db import instances, server_groups
from kilonova.db.server_groups import ServerGroup
from kilonova.errors import HostFault, Invalid, OverQuota
from kilonova.model.instance import Instance
from kilonova.operations import create, delete
from kilonova.operations.requests import CreateServer
from kilonova.testing.embedded import member, settled
from tests.operations.conftest import Three

GROUP = "6a29ce00-0000-4000-8000-000000000001"


async def group(three: Three, policy: str, most: int | None = None, **more: Any) -> None:
    context = member(three.cloud)
    made = ServerGroup(
        **{
            "id": 0,
            "uuid": GROUP,
            "project_id": str(context.project_id),
            "user_id": context.user_id,
            "name": "g",
            "policy": policy,
            "rules": {} if most is None else {server_groups.MOST: most},
            "created_at": 1,
            **more,
        }
    )
    await three.cloud.db.write(lambda tx: server_groups.create(tx, made, limit=-1, user_limit=None))


async def boot(three: Three, number: int = 1, **hints: object) -> list[Instance]:
    """Servers of the group, when nothing is done to them any more."""
    request = CreateServer(
        name="s",
        flavor_id="42",
        image_id=three.cloud.example_image,
        min_count=number,
        max_count=number,
        hints={"group": GROUP, **hints},
    )
    made = await create.submit(three.cloud.cloud, member(three.cloud), request)
    await asyncio.gather(*(settled(three.cloud, each.uuid) for each in made))
    return [await shown(three, each.uuid) for each in made]


async def shown(three: Three, uuid: str) -> Instance:
    found = await three.cloud.db.read(lambda tx: instances.show(tx, uuid))
    assert found is not None
    return found


async def members(three: Three) -> set[str]:
    return set((await three.cloud.db.read(lambda tx: server_groups.show(tx, GROUP))).members)


def hosts_of(servers: list[Instance]) -> list[str]:
    return sorted(str(each.host) for each in servers)


@pytest.mark.capability("MG-BLD-7")
async def test_servers_that_are_kept_apart(three: Three) -> None:
    await group(three, "anti-affinity")
    servers = await boot(three, 4)  # at once, with three hosts
    failed = [each for each in servers if each.vm_state == "error"]
    assert hosts_of([each for each in servers if each.vm_state == "active"]) == ["h1", "h2", "h3"]
    (last,) = failed
    assert last.fault is not None and "of the servers of the group" in last.fault.message
    assert await members(three) == {each.uuid for each in servers}
    free = next(each for each in servers if each.host == "h2")
    await delete.submit(three.cloud.cloud, member(three.cloud), free.uuid)
    await settled(three.cloud, free.uuid)
    assert free.uuid not in await members(three)
    assert hosts_of(await boot(three)) == ["h2"]


async def test_so_many_on_one_host(three: Three) -> None:
    await group(three, "anti-affinity", most=2)
    assert hosts_of(await boot(three, 6)) == ["h1", "h1", "h2", "h2", "h3", "h3"]
    (last,) = await boot(three)
    assert last.vm_state == "error"


async def test_servers_that_are_kept_together(three: Three) -> None:
    await group(three, "affinity")
    (first,) = await boot(three, different_host=[])
    assert hosts_of(await boot(three, 5)) == [str(first.host)] * 5


async def test_servers_that_begin_together(three: Three) -> None:
    await group(three, "affinity")
    servers = await boot(three, 8)
    assert len(set(hosts_of(servers))) == 1 and {each.vm_state for each in servers} == {"active"}


async def test_when_the_host_fails_a_group_cannot_be_left(three: Three) -> None:
    await group(three, "affinity")
    (first,) = await boot(three)
    three.host(str(first.host)).driver.faults.add("start", HostFault("no luck"))
    (second,) = await boot(three)
    assert second.vm_state == "error" and second.fault is not None
    assert "the other servers of its group are not there" in second.fault.details


async def test_wishes_are_no_orders(three: Three) -> None:
    await group(three, "soft-anti-affinity")
    servers = await boot(three, 7)
    assert {each.vm_state for each in servers} == {"active"}


async def test_soft_affinity_goes_before_what_is_free(three: Three) -> None:
    await group(three, "soft-affinity")
    (first,) = await boot(three, query='["=", "$host", "h1"]')
    assert first.host == "h1"
    assert hosts_of(await boot(three)) == ["h1"]


@pytest.mark.capability("API-88")
async def test_a_group_that_is_not_there(three: Three) -> None:
    with pytest.raises(Invalid, match=f"Instance group {GROUP} could not be found"):
        await boot(three)
    await group(three, "affinity", project_id="another")
    with pytest.raises(Invalid, match="could not be found"):
        await boot(three)
    assert await members(three) == set()


@pytest.mark.capability("API-88")
async def test_too_many_members(three: Three) -> None:
    await group(three, "soft-affinity")
    three.cloud.settings.options["quota"]["server_group_members"] = 3
    await boot(three, 2)
    before = await members(three)
    with pytest.raises(OverQuota, match="too many servers in group"):
        await boot(three, 2)
    assert await members(three) == before
    usage = await three.cloud.db.read(lambda tx: len(instances.uuids_by_host(tx, "h1")))
    assert usage <= 2
    await boot(three, 1)


async def test_a_group_that_was_deleted_binds_nobody(three: Three) -> None:
    await group(three, "anti-affinity")
    await boot(three, 3)
    three.cloud.runner._stopping = True
    request = CreateServer(
        name="s", flavor_id="42", image_id=three.cloud.example_image, hints={"group": GROUP}
    )
    (late,) = await create.submit(three.cloud.cloud, member(three.cloud), request)
    await three.cloud.db.write(lambda tx: server_groups.remove(tx, GROUP))
    three.cloud.runner._stopping = False
    three.cloud.runner.wake()
    await settled(three.cloud, late.uuid)
    assert (await shown(three, late.uuid)).vm_state == "active"
