"""A server's NUMA cells over HTTP: to its owner, to administrators, and to nobody before 2.78."""

from __future__ import annotations

from typing import Any

import pytest

from kilonova.db import host_report, host_resources
from kilonova.db.engine import Tx
from kilonova.model.flavor import Flavor
from kilonova.model.host_resources import Claim, Wanted
from kilonova.model.instance import Instance
from kilonova.resources.host_fit import fit_host
from kilonova.resources.numa_request import wanted_topology
from tests.api.compute.small_cloud import MEMBER, OTHER, READER, SmallCloud, check_keys, cloud
from tests.unit.resources.numa import flavor_with
from tests.unit.resources.test_claims import HOST, report

__all__ = ["cloud"]  # a fixture

PINNED = {"hw:cpu_policy": "dedicated", "hw:numa_nodes": "2", "hw:mem_page_size": "large"}


async def placed(cloud: SmallCloud, specs: dict[str, str], **more: Any) -> Instance:
    """A server that has claimed its cells."""
    flavor: Flavor = flavor_with(specs)
    instance = await cloud.server(flavor=flavor, host=HOST, **more)

    def write(tx: Tx) -> None:
        host_report.take_over(tx, report())
        wanted = Wanted(numa=wanted_topology(flavor, {}))
        fitted = fit_host(host_resources.read(tx, HOST), wanted)
        claim = Claim(consumer=instance.uuid, instance_uuid=instance.uuid, compute_id=HOST, numa=fitted.numa)
        if not claim.nothing:
            host_resources.add(tx, claim)

    await cloud.db.write(write)
    return instance


def path(instance: Instance) -> str:
    return f"/servers/{instance.uuid}/topology"


async def test_an_administrator_sees_where_the_cells_are(cloud: SmallCloud) -> None:
    instance = await placed(cloud, PINNED)
    shown = await cloud.get(path(instance), version=78)
    check_keys("servers.topology.show", 78, shown)
    assert shown == {
        "nodes": [
            {
                "vcpu_set": [0, 1],
                "siblings": [[0, 1]],
                "memory_mb": 512,
                "host_node": 0,
                "cpu_pinning": {"0": 0, "1": 1},
            },
            {
                "vcpu_set": [2, 3],
                "siblings": [[2, 3]],
                "memory_mb": 512,
                "host_node": 1,
                "cpu_pinning": {"2": 8, "3": 9},
            },
        ],
        "pagesize_kb": 2048,
    }


@pytest.mark.parametrize("token", [MEMBER, READER])
async def test_the_owner_sees_the_guests_side(cloud: SmallCloud, token: str) -> None:
    instance = await placed(cloud, PINNED)
    shown = await cloud.get(path(instance), version=104, token=token)
    assert [set(node) for node in shown["nodes"]] == [{"vcpu_set", "siblings", "memory_mb"}] * 2
    assert shown["pagesize_kb"] == 2048


@pytest.mark.parametrize("specs", [{}, {"hw:cpu_policy": "shared"}, {"pci_passthrough:alias": "a:1"}])
async def test_most_servers_have_no_cells(cloud: SmallCloud, specs: dict[str, str]) -> None:
    instance = await placed(cloud, specs)
    assert await cloud.get(path(instance), version=78) == {"nodes": [], "pagesize_kb": None}


async def test_a_server_that_is_nowhere_yet_has_no_cells(cloud: SmallCloud) -> None:
    instance = await cloud.server(flavor=flavor_with(PINNED), host=None)
    assert await cloud.get(path(instance), version=78) == {"nodes": [], "pagesize_kb": None}


async def test_cpus_that_idle_beside_a_pinned_one_are_no_siblings(cloud: SmallCloud) -> None:
    instance = await placed(cloud, {"hw:cpu_policy": "dedicated", "hw:cpu_thread_policy": "isolate"})
    (node,) = (await cloud.get(path(instance), version=78))["nodes"]
    assert node["siblings"] == [] and node["cpu_pinning"] == {"0": 0, "1": 2, "2": 4, "3": 6}


async def test_who_may_not_know(cloud: SmallCloud) -> None:
    instance = await placed(cloud, PINNED)
    assert (await cloud("GET", path(instance), version=77)).status == 404
    assert (await cloud("GET", path(instance), version=78, token=OTHER)).status == 404
    assert (await cloud("GET", "/servers/nothing/topology", version=78)).status == 404
    assert (await cloud("GET", path(instance) + "?x=1", version=102)).status == 400
    assert (await cloud("GET", path(instance) + "?x=1", version=101)).status == 200
