"""Server groups over HTTP: their forms in each microversion, quotas, projects, and bad requests."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from kilonova.db import server_groups
from tests.api.compute.small_cloud import ADMIN, MEMBER, SmallCloud, bands, check_keys, cloud, db

__all__ = ["cloud", "db"]  # fixtures

PATH = "/os-server-groups"


def body(version: int, policy: str = "affinity", **more: Any) -> dict[str, Any]:
    policies: dict[str, Any] = {"policy": policy} if version >= 64 else {"policies": [policy]}
    return {"server_group": {"name": "g", **policies, **more}}


async def make(
    cloud: SmallCloud, version: int = 64, policy: str = "affinity", token: str = MEMBER, **more: Any
) -> Any:
    reply = await cloud("POST", PATH, body(version, policy, **more), version=version, token=token)
    assert reply.status == 200, reply.raw
    return reply.json["server_group"]


async def refused(cloud: SmallCloud, status: int, asked: Any, version: int = 64) -> str:
    reply = await cloud("POST", PATH, asked, version=version, token=MEMBER)
    assert reply.status == status, reply.raw
    assert (await cloud.get(PATH, version=64, token=MEMBER))["server_groups"] == []
    return str(reply.message)


async def members(
    cloud: SmallCloud, group: str, *servers: str, user: str = "u-member", most: int = -1
) -> None:
    await cloud.db.write(lambda tx: server_groups.add_members(tx, group, servers, user, most))


async def test_each_microversion_has_its_own_keys(cloud: SmallCloud) -> None:
    for version in bands("os-server-groups.list", "os-server-groups.create"):
        made = await cloud("POST", PATH, body(version), version=version, token=MEMBER)
        assert made.status == 200
        check_keys("os-server-groups.create", version, made.json)
        path = f"{PATH}/{made.json['server_group']['id']}"
        check_keys("os-server-groups.show", version, await cloud.get(path, version=version, token=MEMBER))
        check_keys("os-server-groups.list", version, await cloud.get(PATH, version=version, token=MEMBER))
        gone = await cloud("DELETE", path, version=version, token=MEMBER)
        assert (gone.status, gone.raw) == (204, b"")


async def test_a_group_is_shown_as_it_was_made(cloud: SmallCloud) -> None:
    made = await make(cloud, policy="anti-affinity", rules={"max_server_per_host": "3"})
    mine = {"project_id": made["project_id"], "user_id": made["user_id"]}
    assert mine == {"project_id": "p1", "user_id": "u-member"}
    assert made == {
        "id": made["id"],
        "name": "g",
        "policy": "anti-affinity",
        "rules": {"max_server_per_host": 3},
        "members": [],
        **mine,
    }
    await members(cloud, made["id"], "s2", "s1")
    shown = (await cloud.get(f"{PATH}/{made['id']}", version=64, token=MEMBER))["server_group"]
    assert shown == {**made, "members": ["s1", "s2"]}
    old = (await cloud.get(f"{PATH}/{made['id']}", token=MEMBER))["server_group"]
    assert old == {
        "id": made["id"],
        "name": "g",
        "policies": ["anti-affinity"],
        "metadata": {},
        "members": ["s1", "s2"],
    }
    await cloud.db.write(lambda tx: server_groups.forget_member(tx, "s1"))
    (listed,) = (await cloud.get(PATH, version=64, token=MEMBER))["server_groups"]
    assert listed == {**made, "members": ["s2"]}


async def test_policies_of_each_microversion(cloud: SmallCloud) -> None:
    for version, policy, status in (
        (1, "anti-affinity", 200),
        (14, "soft-affinity", 400),
        (15, "soft-affinity", 200),
        (63, "soft-anti-affinity", 200),
        (64, "soft-anti-affinity", 200),
        (64, "legacy", 400),
        (1, "legacy", 400),
    ):
        reply = await cloud("POST", PATH, body(version, policy), version=version, token=MEMBER)
        assert reply.status == status, (version, policy, reply.raw)


@pytest.mark.parametrize(
    ("version", "asked"),
    [
        (1, {}),
        (1, {"server_group": {}}),
        (1, {"server_group": None}),
        (1, {"server_group": {"name": "g"}}),
        (1, {"server_group": {"policies": ["affinity"]}}),
        (1, {"server_group": {"name": "g", "policies": []}}),
        (1, {"server_group": {"name": "g", "policies": "affinity"}}),
        (1, {"server_group": {"name": "g", "policies": ["affinity", "anti-affinity"]}}),
        (1, {"server_group": {"name": "g", "policies": ["affinity", "affinity"]}}),
        (63, body(64)),
        (63, body(63, rules={"max_server_per_host": 1})),
        (64, body(63)),
        (64, body(64, name="")),
        (64, body(64, name="x" * 256)),
        (64, body(64, name=7)),
        (64, body(64, name="a\x00b")),
        (64, body(64, other=1)),
        (64, body(64, "anti-affinity", rules={"max_server_per_host": 0})),
        (64, body(64, "anti-affinity", rules={"max_server_per_host": "many"})),
        (64, body(64, "anti-affinity", rules={"max_server_per_host": 2**70})),
        (64, body(64, "anti-affinity", rules={"max_server_per_host": None})),
        (64, body(64, "anti-affinity", rules={"max_server_per_rack": 1})),
        (64, body(64, "anti-affinity", rules=[])),
        (64, body(64, "anti-affinity", rules=None)),
    ],
)
async def test_bad_requests(cloud: SmallCloud, version: int, asked: Any) -> None:
    assert await refused(cloud, 400, asked, version)


async def test_only_anti_affinity_has_rules(cloud: SmallCloud) -> None:
    for policy in ("affinity", "soft-affinity", "soft-anti-affinity"):
        for rules in ({"max_server_per_host": 2}, {}):
            told = await refused(cloud, 400, body(64, policy, rules=rules))
            assert told == "Only anti-affinity policy supports rules."
    assert (await make(cloud, policy="anti-affinity", rules={}))["rules"] == {}


async def test_groups_of_other_projects(cloud: SmallCloud) -> None:
    mine, others = await make(cloud), await make(cloud, token=ADMIN)
    path = f"{PATH}/{others['id']}"
    assert (await cloud("GET", path, token=MEMBER)).status == 403
    assert (await cloud("DELETE", path, token=MEMBER)).status == 403

    async def listed(query: str, token: str) -> list[str]:
        found = await cloud.get(PATH + query, version=64, token=token)
        return [each["id"] for each in found["server_groups"]]

    assert await listed("", MEMBER) == [mine["id"]]
    assert await listed("?all_projects=1", MEMBER) == [mine["id"]]
    assert await listed("", ADMIN) == [others["id"]]
    assert await listed("?all_projects", ADMIN) == [mine["id"], others["id"]]
    assert await listed("?all_projects&limit=1", ADMIN) == [mine["id"]]
    assert await listed("?all_projects&limit=5&offset=1", ADMIN) == [others["id"]]
    assert await listed("?all_projects&limit=0", ADMIN) == []
    assert await listed("?all_projects&offset=99999999999999999999999", ADMIN) == []
    assert (await cloud("DELETE", f"{PATH}/{mine['id']}", token=ADMIN)).status == 204


async def test_many_groups_in_one_list(cloud: SmallCloud) -> None:
    cloud.option("server_groups", -1, "quota")
    made = [(await make(cloud))["id"] for _ in range(70)]
    for number in (0, 63, 64, 69):
        await members(cloud, made[number], f"s{number}", f"t{number}")
    found = (await cloud.get(PATH, version=64, token=MEMBER))["server_groups"]
    assert [each["id"] for each in found] == made
    with_members = {at: each["members"] for at, each in enumerate(found) if each["members"]}
    assert with_members == {at: [f"s{at}", f"t{at}"] for at in (0, 63, 64, 69)}


async def test_what_is_not_there(cloud: SmallCloud) -> None:
    for name in ("0" * 36, "x", "%00", "a" * 300):
        for method in ("GET", "DELETE"):
            assert (await cloud(method, f"{PATH}/{name}", token=MEMBER)).status == 404
    made = await make(cloud)
    assert (await cloud("DELETE", f"{PATH}/{made['id']}", token=MEMBER)).status == 204
    assert (await cloud("DELETE", f"{PATH}/{made['id']}", token=MEMBER)).status == 404


async def test_bad_queries(cloud: SmallCloud) -> None:
    for query in ("limit=x", "limit=-1", "offset=-1", "offset=x"):
        assert (await cloud("GET", f"{PATH}?{query}", version=64, token=MEMBER)).status == 400, query
    assert (await cloud("GET", f"{PATH}?colour=red", version=74, token=MEMBER)).status == 200
    assert (await cloud("GET", f"{PATH}?colour=red", version=75, token=MEMBER)).status == 400
    made = await make(cloud)
    assert (await cloud("GET", f"{PATH}/{made['id']}?a=b", version=101, token=MEMBER)).status == 200
    assert (await cloud("GET", f"{PATH}/{made['id']}?a=b", version=102, token=MEMBER)).status == 400


async def test_groups_are_counted(cloud: SmallCloud) -> None:
    cloud.option("server_groups", 2, "quota")
    await make(cloud)
    await make(cloud)
    reply = await cloud("POST", PATH, body(64), version=64, token=MEMBER)
    assert (reply.status, reply.message) == (403, "Quota exceeded, too many server groups.")
    await make(cloud, token=ADMIN)  # in another project
    shown = (await cloud.get("/os-quota-sets/p1/detail", version=57))["quota_set"]["server_groups"]
    assert shown == {"in_use": 2, "limit": 2, "reserved": 0}
    limits = (await cloud.get("/limits", version=57, token=MEMBER))["limits"]["absolute"]
    assert (limits["totalServerGroupsUsed"], limits["maxServerGroups"]) == (2, 2)
    (first, _) = (await cloud.get(PATH, token=MEMBER))["server_groups"]
    assert (await cloud("DELETE", f"{PATH}/{first['id']}", token=MEMBER)).status == 204
    await make(cloud)


async def test_a_user_may_have_a_limit_of_his_own(cloud: SmallCloud) -> None:
    path = "/os-quota-sets/p1?user_id=u-member"
    assert (await cloud("PUT", path, {"quota_set": {"server_groups": 1}}, version=57)).status == 200
    await make(cloud)
    reply = await cloud("POST", PATH, body(64), version=64, token=MEMBER)
    assert (reply.status, reply.message) == (403, "Quota exceeded, too many server groups.")
    shown = (await cloud.get(path.replace("?", "/detail?"), version=57))["quota_set"]["server_groups"]
    assert shown == {"in_use": 1, "limit": 1, "reserved": 0}


async def test_many_at_once_do_not_overrun_the_quota(cloud: SmallCloud) -> None:
    cloud.option("server_groups", 3, "quota")
    posts = (cloud("POST", PATH, body(64), version=64, token=MEMBER) for _ in range(8))
    assert sorted(each.status for each in await asyncio.gather(*posts)) == [200] * 3 + [403] * 5
