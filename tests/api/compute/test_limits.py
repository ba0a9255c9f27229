"""Limits over HTTP: what a project may have and what it uses."""

from __future__ import annotations

from typing import Any

import pytest

from kilonova.db import quotas
from tests.api.compute.small_cloud import MEMBER, OTHER, READER, SmallCloud, bands, check_keys, cloud

__all__ = ["cloud"]  # a fixture


async def absolute(cloud: SmallCloud, query: str = "", **how: Any) -> dict[str, int]:
    return dict((await cloud.get(f"/limits{query}", **how))["limits"]["absolute"])


async def test_each_microversion_has_its_own_keys(cloud: SmallCloud) -> None:
    for version in bands("limits.list"):
        check_keys("limits.list", version, await cloud.get("/limits", version=version))


async def test_limits_are_the_options_and_what_was_set(cloud: SmallCloud) -> None:
    assert await absolute(cloud, token=MEMBER) == {
        "maxServerMeta": 128,
        "maxImageMeta": 128,
        "maxPersonality": 5,
        "maxPersonalitySize": 10240,
        "maxTotalInstances": 10,
        "maxTotalCores": 20,
        "maxTotalRAMSize": 51200,
        "maxTotalKeypairs": 100,
        "maxServerGroups": 10,
        "maxServerGroupMembers": 10,
        "maxTotalFloatingIps": -1,
        "maxSecurityGroups": -1,
        "maxSecurityGroupRules": -1,
        "totalInstancesUsed": 0,
        "totalCoresUsed": 0,
        "totalRAMUsed": 0,
        "totalFloatingIpsUsed": 0,
        "totalSecurityGroupsUsed": 0,
        "totalServerGroupsUsed": 0,
    }
    assert (await cloud.get("/limits"))["limits"]["rate"] == []
    cloud.option("cores", 21, "quota")
    await cloud.db.write(lambda tx: quotas.set_limits(tx, quotas.CLASS, quotas.DEFAULT, {"instances": 11}))
    await cloud.db.write(lambda tx: quotas.set_limits(tx, quotas.PROJECT, "p1", {"ram": -1}))
    own = quotas.user_scope("p1", "u-member")
    await cloud.db.write(lambda tx: quotas.set_limits(tx, quotas.USER, own, {"instances": 1}))
    found = await absolute(cloud, token=MEMBER)
    assert (found["maxTotalInstances"], found["maxTotalCores"], found["maxTotalRAMSize"]) == (11, 21, -1)
    assert (await absolute(cloud, token=OTHER))["maxTotalRAMSize"] == 51200


async def test_use_is_that_of_the_project(cloud: SmallCloud) -> None:
    first = await cloud.server()
    await cloud.server(user="u-reader")
    await cloud.server(project="p2")

    async def used(**how: Any) -> tuple[int, ...]:
        found = await absolute(cloud, **how)
        return found["totalInstancesUsed"], found["totalCoresUsed"], found["totalRAMUsed"]

    assert await used(token=MEMBER) == await used(token=READER) == (2, 4, 1024)
    await cloud.gone(first)
    assert await used(token=MEMBER) == (1, 2, 512)
    assert await used() == (0, 0, 0)
    assert await used(query="?tenant_id=p1") == (1, 2, 512)
    assert await used(query="?tenant_id=p1", token=MEMBER) == (1, 2, 512)
    assert await used(query="?reserved=True&tenant_id=") == (0, 0, 0)  # as the openstack command asks
    assert await used(query="?tenant_id=unknown") == (0, 0, 0)


@pytest.mark.parametrize("token", [MEMBER, READER])
async def test_other_projects_are_for_administrators(cloud: SmallCloud, token: str) -> None:
    refused = await cloud("GET", "/limits?tenant_id=p2", token=token)
    assert (refused.status, refused.message) == (
        403,
        "Policy doesn't allow os_compute_api:limits:other_project to be performed.",
    )
    assert (await cloud("GET", "/limits", token="nobody")).status == 401


async def test_bad_requests_are_refused(cloud: SmallCloud) -> None:
    assert (await cloud("GET", "/limits?x=1", version=74)).status == 200
    assert (await cloud("GET", "/limits?x=1", version=75)).status == 400
    assert (await cloud("GET", "/limits?tenant_id=p1", version=75)).status == 200
    assert (await cloud("GET", "/limits?tenant_id=%00")).status == 400
    assert (await cloud("GET", "/limits?tenant_id=%ff")).status == 400
    assert (await cloud("PUT", "/limits", {})).status == 404
