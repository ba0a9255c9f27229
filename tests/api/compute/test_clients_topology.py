"""Pinned servers and their host by OpenStack's own clients, unmodified, of a cloud that is really served."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from msgspec.structs import replace
from openstack import exceptions

from kilonova.model.host import Inventory
from kilonova.testing.embedded import fake_driver
from tests.api.served import ADMIN, MEMBER, PATIENCE, Served
from tests.unit.resources.numa import host

pytestmark = [
    pytest.mark.filterwarnings(f"ignore::{kind}")
    for kind in ("DeprecationWarning", "PendingDeprecationWarning", "ResourceWarning")
]
SOON = {"interval": 0.1, "wait": PATIENCE}


@pytest.fixture
def cells(served: Served) -> Iterator[None]:
    """The cloud's host has two NUMA cells while the test runs."""
    driver = fake_driver(served.cloud)
    hardware, capacity = driver.hardware, driver.capacity

    async def report() -> None:
        await served.cloud.register(await driver.report())

    driver.hardware = replace(hardware, numa=host())
    driver.capacity = {**capacity, "PCPU": Inventory(total=16)}
    served.run(report())
    yield
    driver.hardware, driver.capacity = hardware, capacity
    served.run(report())


def test_a_pinned_server(served: Served, cells: None) -> None:
    # fetch_topology sends no microversion by itself
    version = {"compute_default_microversion": "2.90"}
    with served.sdk(ADMIN, **version) as admin, served.sdk(MEMBER, **version) as sdk:
        flavor = admin.compute.create_flavor(name="pinned", ram=64, vcpus=2, disk=1)
        admin.compute.create_flavor_extra_specs(flavor, {"hw:cpu_policy": "dedicated"})
        nova = next(iter(admin.compute.hypervisors(details=True)))
        before = _used(served, nova.id)
        server = sdk.compute.wait_for_server(
            sdk.create_server(
                "pinned", image="cirros-0.6.2-x86_64-disk", flavor="pinned", network="private", auto_ip=False
            ),
            **SOON,
        )
        assert _used(served, nova.id) == before + 2
        shown = sdk.compute.get_server(server.id).fetch_topology(sdk.compute)
        assert shown["nodes"] == [{"vcpu_set": [0, 1], "siblings": [[0, 1]], "memory_mb": 64}]
        whole = admin.compute.get_server(server.id).fetch_topology(admin.compute)
        (node,) = whole["nodes"]
        assert set(node["cpu_pinning"]) == {"0", "1"} and node["host_node"] in (0, 1)
        sdk.compute.delete_server(server)
        sdk.compute.wait_for_delete(server, **SOON)
        assert _used(served, nova.id) == before
        admin.compute.create_flavor_extra_specs(flavor, {"hw:numa_nodes": "3"})
        with pytest.raises(exceptions.BadRequestException, match="cannot be shared evenly"):
            sdk.create_server("odd", image="cirros-0.6.2-x86_64-disk", flavor="pinned", network="private")
        admin.compute.delete_flavor(flavor)


def _used(served: Served, hypervisor: str) -> int:
    """As ``openstack hypervisor show`` has it."""
    out: Any = served.openstack(
        "hypervisor", "show", hypervisor, "-f", "json", "--os-compute-api-version", "2.87", cloud=ADMIN
    )
    return int(out["vcpus_used"])
