"""Allocation candidates: who serves what, in which shape, and what cannot be asked.

Whether the search finds all that the rules allow is proven in tests/unit/placement/candidates; here it is
what the parameters mean and what the answers look like.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from kilonova.services.placement.options import Options
from tests.api.placement.face import Face, is_fault, new
from tests.api.placement.park import MULTI, NUMA, SHARES, Park, built


@pytest.fixture
async def park(empty: Face) -> Park:
    return await built(empty)


# ---- what the parameters mean: one table, one park ----

SERVED: list[tuple[str, list[str]]] = [
    # the group without a suffix may be served by several of a tree and by those who share with it
    ("resources=VCPU:1", [".:cn2", ".:numa0", ".:numa1"]),
    ("resources=VCPU:3", [".:cn2", ".:numa1"]),
    ("resources=VCPU:5", [".:cn2"]),
    ("resources=VCPU:6", []),
    ("resources=MEMORY_MB:256", [".:numa1"]),
    ("resources=MEMORY_MB:1280", [".:cn2", ".:numa0"]),
    ("resources=DISK_GB:900", [".:cn2", ".:store"]),
    ("resources=DISK_GB:1901", []),
    ("resources=VCPU:1,FPGA:1", [
        f".:{fpga},{numa}" for fpga in ("fpga0", "fpga1a", "fpga1b") for numa in ("numa0", "numa1")
    ]),
    ("resources=VCPU:1,DISK_GB:10", [".:cn2", ".:cn2,far", ".:cn2,store", ".:numa0,store", ".:numa1,store"]),
    ("resources=VCPU:1,DISK_GB:10,CUSTOM_VF:8", [".:cn2,far,pf31", ".:cn2,pf31", ".:cn2,pf31,store"]),
    # its traits are those of all who serve it together, but none may have a forbidden one
    ("resources=VCPU:1,DISK_GB:10&required=CUSTOM_GOOD,STORAGE_DISK_SSD", [".:cn2,far"]),
    ("resources=VCPU:1&required=CUSTOM_GOOD", [".:cn2", ".:numa1"]),
    ("resources=VCPU:1&required=!CUSTOM_GOOD", [".:numa0"]),
    (f"resources=VCPU:1&required={NUMA},!CUSTOM_GOOD", [".:numa0"]),
    ("resources=VCPU:1,DISK_GB:10&required=!CUSTOM_GOOD", [".:numa0,store"]),
    (f"resources=VCPU:1,DISK_GB:10&required=!{SHARES}", [".:cn2"]),
    (f"resources=VCPU:1,DISK_GB:10&required=in:{NUMA},STORAGE_DISK_SSD", [
        ".:cn2,far", ".:numa0,store", ".:numa1,store",
    ]),
    (f"resources=VCPU:1&required=in:{NUMA},CUSTOM_NIC&required=in:CUSTOM_GOOD", [".:numa1"]),
    (f"resources=VCPU:1&required=CUSTOM_GOOD&required=!{NUMA}", [".:cn2"]),
    # an aggregate of a root spans its whole tree, but not for a group with a suffix
    ("resources=VCPU:1&member_of=@aggregate-a", [".:cn2", ".:numa0", ".:numa1"]),
    ("resources_X=VCPU:1&member_of_X=@aggregate-a", ["_X:cn2"]),
    ("resources=VCPU:1&member_of=@aggregate-b", [".:cn2", ".:numa1"]),
    ("resources_X=VCPU:1&member_of_X=@aggregate-b", ["_X:cn2", "_X:numa1"]),
    ("resources=VCPU:1&member_of=!@aggregate-b", [".:numa0"]),
    ("resources_X=VCPU:1&member_of_X=!@aggregate-a", ["_X:numa0", "_X:numa1"]),
    ("resources=VCPU:1&member_of=!in:@aggregate-b,@aggregate-c", [".:numa0"]),
    ("resources=VCPU:1&member_of=@aggregate-a&member_of=in:@aggregate-b,@aggregate-c", [".:cn2"]),
    ("resources=VCPU:1&member_of=@aggregate-a&member_of=!@aggregate-c", [".:numa0", ".:numa1"]),
    ("resources=VCPU:1,DISK_GB:10&member_of=@aggregate-c", [".:cn2", ".:cn2,far"]),
    ("resources=VCPU:1,DISK_GB:10&member_of=!@aggregate-c", [".:numa0,store", ".:numa1,store"]),
    # a tree, for each group
    ("resources=VCPU:1&in_tree=@cn1", [".:numa0", ".:numa1"]),
    ("resources=VCPU:1&in_tree=@fpga0", [".:numa0", ".:numa1"]),
    ("resources=VCPU:1&in_tree=@store", []),
    ("resources=VCPU:1,DISK_GB:10&in_tree=@cn1", []),
    ("resources=VCPU:1&in_tree=@cn1&resources1=DISK_GB:10", [".:numa0 1:store", ".:numa1 1:store"]),
    ("resources=VCPU:1&resources1=DISK_GB:10&in_tree1=@far", [".:cn2 1:far"]),
    (f"resources=VCPU:1&in_tree={new()}", []),
    # groups: the same provider for all of one, another for each if they are isolated
    ("resources1=VCPU:1,MEMORY_MB:1024", ["1:cn2", "1:numa0", "1:numa1"]),
    ("resources1=VCPU:1&required1=CUSTOM_GOOD&resources2=DISK_GB:10&group_policy=isolate", [
        "1:cn2 2:far", "1:cn2 2:store", "1:numa1 2:store",
    ]),
    ("resources1=VCPU:1&required1=CUSTOM_GOOD&resources2=DISK_GB:10&group_policy=none", [
        "1:cn2 2:cn2", "1:cn2 2:far", "1:cn2 2:store", "1:numa1 2:store",
    ]),
    ("resources=VCPU:1&resources_A=FPGA:1&resources_B=FPGA:1&in_tree_A=@cn1&group_policy=isolate", [
        f".:{numa} _A:{one} _B:{two}"
        for numa in ("numa0", "numa1")
        for one in ("fpga0", "fpga1a", "fpga1b")
        for two in ("fpga0", "fpga1a", "fpga1b")
        if one != two
    ]),
    ("resources_A=VGPU:4&resources_B=VGPU:4&group_policy=none", ["_A:gpu0 _B:gpu0"]),
    ("resources_A=VGPU:4&resources_B=VGPU:5&group_policy=none", []),
    ("resources_A=VGPU:4&resources_B=VGPU:4&group_policy=isolate", []),
    ("resources=VCPU:3&resources_A=VCPU:2&group_policy=none", [".:cn2 _A:cn2", ".:numa1 _A:numa0"]),
    ("resources=MEMORY_MB:1024&resources_A=MEMORY_MB:256&in_tree=@numa0", [".:numa0 _A:numa1"]),
    # the root's own traits, which say nothing of who shares
    (f"resources=VCPU:1&root_required={MULTI}", [".:numa0", ".:numa1"]),
    (f"resources=VCPU:1&root_required=!{MULTI}", [".:cn2"]),
    (f"resources=VCPU:1&root_required={NUMA}", []),
    ("resources=VCPU:1&required=CUSTOM_GOOD&root_required=CUSTOM_GOOD", [".:cn2"]),
    ("resources1=VCPU:1&required1=CUSTOM_GOOD&root_required=!CUSTOM_GOOD", ["1:numa1"]),
    (f"resources=VCPU:1,DISK_GB:10&root_required=!{SHARES},{MULTI}", [".:numa0,store", ".:numa1,store"]),
    ("resources=DISK_GB:600&root_required=CUSTOM_GOOD", [".:cn2", ".:store"]),
    # one is above the others, or the same
    ("resources_C=VCPU:1&resources_F=FPGA:1&group_policy=none&same_subtree=_C,_F", [
        "_C:numa0 _F:fpga0", "_C:numa1 _F:fpga1a", "_C:numa1 _F:fpga1b",
    ]),
    ("resources_C=VCPU:1&resources_M=MEMORY_MB:1024&group_policy=none&same_subtree=_C,_M", [
        "_C:cn2 _M:cn2", "_C:numa0 _M:numa0", "_C:numa1 _M:numa1",
    ]),
    ("resources_C=VCPU:1&resources_M=MEMORY_MB:1024&group_policy=isolate&same_subtree=_C,_M", []),
    ("resources_F=FPGA:1&required_N=HW_NUMA_ROOT&resources_G=FPGA:1&group_policy=isolate"
     "&same_subtree=_N,_F,_G", [
        "_F:fpga1a _G:fpga1b _N:numa1", "_F:fpga1b _G:fpga1a _N:numa1",
    ]),
    ("resources_F=FPGA:1&required_N=HW_NUMA_ROOT&resources_G=VGPU:1&group_policy=none"
     "&same_subtree=_N,_F,_G", [
        "_F:fpga0 _G:gpu0 _N:numa0",
    ]),
    ("resources=VCPU:1&required_N=CUSTOM_NIC&resources_1=CUSTOM_VF:4&required_1=CUSTOM_NET1"
     "&resources_2=CUSTOM_VF:4&required_2=CUSTOM_NET2&group_policy=none&same_subtree=_N,_1,_2", [
        ".:cn2 _1:pf11 _2:pf12 _N:nic1",
    ]),
    ("resources=VCPU:1&required_N=CUSTOM_NIC&resources_1=CUSTOM_VF:2&required_1=CUSTOM_NET1"
     "&resources_2=CUSTOM_VF:2&required_2=CUSTOM_NET2&group_policy=isolate&same_subtree=_N,_1,_2", [
        ".:cn2 _1:pf11 _2:pf12 _N:nic1",
        *(f".:cn2 _1:{one} _2:{two} _N:nic2" for one in ("pf21", "pf23") for two in ("pf22", "pf24")),
    ]),
    ("resources_1=CUSTOM_VF:8&required_2=CUSTOM_NET1&group_policy=none&same_subtree=_1,_2", [
        "_1:pf31 _2:pf31",
    ]),
    ("resources_1=CUSTOM_VF:8&member_of_2=@aggregate-c&group_policy=none&same_subtree=_2,_1", [
        "_1:pf31 _2:cn2",
    ]),
    # two chains below one another
    ("resources_C=VCPU:1&required_N=CUSTOM_NIC&resources_1=CUSTOM_VF:8&group_policy=none"
     "&same_subtree=_N,_C&same_subtree=_N,_1", ["_1:pf31 _C:cn2 _N:nic3"]),
]  # fmt: skip


async def test_who_serves_what(park: Park) -> None:
    wrong = {
        query: (found, sorted(expected))
        for query, expected in SERVED
        if (found := await park.served(query)) != sorted(expected)
    }
    assert wrong == {}


async def test_of_all_that_is_asked_the_sum_is_taken(park: Park) -> None:
    query = "resources=VCPU:1,DISK_GB:5&resources1=VCPU:2,DISK_GB:10&resources2=DISK_GB:20&group_policy=none"
    assert "cn2:DISK_GB=35,VCPU=3" in await park.taken(query)
    assert "cn2:DISK_GB=15,VCPU=3 far:DISK_GB=20" in await park.taken(query)
    query = (
        "resources=VCPU:1&required_N=CUSTOM_NIC&resources_V=CUSTOM_VF:8&group_policy=none&same_subtree=_N,_V"
    )
    assert await park.taken(query) == ["cn2:VCPU=1 pf31:CUSTOM_VF=8"], "who is only above gives nothing"


async def test_before_1_29_no_two_are_of_one_tree(park: Park) -> None:
    assert await park.taken("resources=CUSTOM_VF:4", v=28) == [
        "pf11:CUSTOM_VF=4",
        "pf12:CUSTOM_VF=4",
        "pf31:CUSTOM_VF=4",
    ]
    assert await park.taken("resources=VCPU:1,CUSTOM_VF:4", v=28) == []
    assert len(await park.taken("resources=VCPU:1,CUSTOM_VF:4", v=29)) == 3
    assert await park.taken("resources=DISK_GB:10,CUSTOM_VF:8", v=28) == [
        "far:DISK_GB=10 pf31:CUSTOM_VF=8",
        "pf31:CUSTOM_VF=8 store:DISK_GB=10",
    ]
    query = "resources1=FPGA:1&resources2=FPGA:1&group_policy=isolate"
    assert (await park.taken(query, v=28), len(await park.taken(query, v=29))) == ([], 3)


async def test_without_mappings_a_choice_is_told_once(park: Park) -> None:
    query = "resources1=FPGA:1&resources2=FPGA:1&group_policy=isolate"
    assert (len(await park.taken(query, v=33)), len(await park.taken(query, v=34))) == (3, 6)


# ---- shapes ----


async def test_the_shape_of_each_band(park: Park) -> None:
    """The same request at each version that changed the answer."""
    host, query = park.uuid("cn2"), "resources=VCPU:1,DISK_GB:10"
    resources = {"DISK_GB": 10, "VCPU": 1}
    vcpu, disk = {"VCPU": {"capacity": 8, "used": 3}}, {"DISK_GB": {"capacity": 1000, "used": 0}}
    memory = {"MEMORY_MB": {"capacity": 2048, "used": 0}}
    tree = ["cn2", "nic1", "nic2", "nic3", "pf11", "pf12", "pf21", "pf22", "pf23", "pf24", "pf31"]
    keyed = {host: {"resources": resources}}
    for v, allocations, summary, known in (
        (
            10,
            [{"resource_provider": {"uuid": host}, "resources": resources}],
            {"resources": vcpu | disk},
            None,
        ),
        (12, keyed, {"resources": vcpu | disk}, None),
        (16, keyed, {"resources": vcpu | disk}, None),
        (17, keyed, {"resources": vcpu | disk, "traits": ["CUSTOM_GOOD"]}, None),
        (26, keyed, {"resources": vcpu | disk, "traits": ["CUSTOM_GOOD"]}, None),
        (27, keyed, {"resources": vcpu | disk | memory, "traits": ["CUSTOM_GOOD"]}, None),
        (
            29,
            keyed,
            {
                "resources": vcpu | disk | memory,
                "traits": ["CUSTOM_GOOD"],
                "parent_provider_uuid": None,
                "root_provider_uuid": host,
            },
            tree,
        ),
    ):
        found = (await park.ask(query, v)).expect(200).json
        assert {"allocations": allocations} in found["allocation_requests"], v
        assert found["provider_summaries"][host] == summary, v
        told = sorted(map(park.name, found["provider_summaries"]))
        assert set(tree if known else ["cn2"]) <= set(told) and ("nic1" in told) is bool(known)
    found = (await park.ask(query, 34)).expect(200).json
    assert {"allocations": keyed, "mappings": {"": [host]}} in found["allocation_requests"]
    child = found["provider_summaries"][park.uuid("pf31")]
    assert child == {
        "resources": {"CUSTOM_VF": {"capacity": 8, "used": 0}},
        "traits": ["CUSTOM_NET1"],
        "parent_provider_uuid": park.uuid("nic3"),
        "root_provider_uuid": host,
    }


async def test_only_trees_that_are_in_it_are_told_of(park: Park) -> None:
    found = (await park.ask("resources=FPGA:1&limit=1")).expect(200).json
    assert len(found["allocation_requests"]) == 1
    told = set(map(park.name, found["provider_summaries"]))
    assert told == {"cn1", "numa0", "numa1", "fpga0", "fpga1a", "fpga1b", "gpu0"}
    found = (await park.ask("resources=FPGA:9")).expect(200).json
    assert found == {"allocation_requests": [], "provider_summaries": {}}


async def test_what_is_proposed_can_be_put(park: Park) -> None:
    """An allocation request is what PUT /allocations of the same version takes, with its owner beside it."""
    for v in (10, 11, 12, 27, 28, 33, 34, 37, 38, 39):
        await put_all(park, v)


async def put_all(park: Park, v: int) -> None:
    query = "resources=VCPU:1,DISK_GB:10" + ("" if v < 29 else "&resources1=CUSTOM_VF:2")
    requests = (await park.ask(query, v)).expect(200).json["allocation_requests"]
    more: dict[str, Any] = {"project_id": "p", "user_id": "u"}
    if v >= 28:
        more["consumer_generation"] = None
    if v >= 38:
        more["consumer_type"] = "INSTANCE"
    for request in requests:
        consumer = new()
        reply = await park.face.call("PUT", f"/allocations/{consumer}", {**request, **more}, v=v)
        reply.expect(204)
        held = (await park.face.get(f"/allocations/{consumer}", v=12))["allocations"]
        wanted = request["allocations"]
        if isinstance(wanted, list):
            wanted = {each["resource_provider"]["uuid"]: each for each in wanted}
        assert {of: each["resources"] for of, each in held.items()} == {
            of: each["resources"] for of, each in wanted.items()
        }
        (await park.face.call("DELETE", f"/allocations/{consumer}")).expect(204)


async def test_what_is_taken_is_not_proposed_any_more(park: Park) -> None:
    query = "resources=VGPU:8"
    (request,) = (await park.ask(query)).expect(200).json["allocation_requests"]
    body = {**request, "project_id": "p", "user_id": "u", "consumer_generation": None, "consumer_type": "X"}
    consumers = [new() for _ in range(8)]
    replies = await asyncio.gather(
        *(park.face.call("PUT", f"/allocations/{each}", body) for each in consumers)
    )
    assert sorted(each.status for each in replies) == [204] + [409] * 7
    assert await park.served(query) == []
    first = consumers[[each.status for each in replies].index(204)]
    (await park.face.call("DELETE", f"/allocations/{first}")).expect(204)
    assert await park.served(query) == [".:gpu0"]


async def test_limits(park: Park) -> None:
    query = "resources=VCPU:1,DISK_GB:10"
    assert len(await park.taken(query)) == 5
    for limit in (1, 3, 5, 9, 10**17):
        assert len(await park.taken(f"{query}&limit={limit}", v=16)) == min(limit, 5)
    assert await park.served(query) == await park.served(query), "the same each time"
    park.face.placement.options = Options(most=2)
    assert len(await park.taken(query)) == len(await park.taken(f"{query}&limit=3")) == 2
    park.face.placement.options = Options(most=-1)
    assert len(await park.taken(query)) == 5


async def test_of_several_policies_the_first_is_meant(park: Park) -> None:
    query = "resources_A=VGPU:4&resources_B=VGPU:4"
    assert await park.served(f"{query}&group_policy=isolate&group_policy=none") == []
    assert await park.served(f"{query}&group_policy=none&group_policy=isolate") == ["_A:gpu0 _B:gpu0"]


async def test_suffixes_that_stand_twice_in_a_subtree(park: Park) -> None:
    query = "resources_C=VCPU:1&resources_G=VGPU:1&group_policy=none&same_subtree=_C,_G"
    assert await park.served(query + ",_C,_G,_G") == await park.served(query) == ["_C:numa0 _G:gpu0"]


async def test_only_administrators_may_ask(park: Park) -> None:
    for who in ("member", "reader", "manager"):
        is_fault(await park.face.call("GET", "/allocation_candidates?resources=VCPU:1", who=who), 403)
    (await park.face.call("GET", "/allocation_candidates?resources=VCPU:1", who="service")).expect(200)
    for method in ("POST", "PUT", "DELETE"):
        is_fault(await park.face.call(method, "/allocation_candidates", {}), 405)
