"""Servers on a cloud of several hosts: which one they go to, and why to none."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from kilonova.clock import SystemClock
from kilonova.db import flavors, hosts, quotas
from kilonova.errors import HostFault
from kilonova.model.flavor import Flavor
from kilonova.testing.embedded import audits, holdings
from kilonova.testing.simulated_hosts import SimulatedHost, simulated_hosts
from tests.api.compute.conftest import Whole
from tests.api.compute.whole_cloud import whole_cloud

pytestmark = pytest.mark.asyncio(loop_scope="module")

NOW = SystemClock().now()
BIG, SMALL = "big", "small"  # their names say how much memory they have


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def several(
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[tuple[Whole, list[SimulatedHost]]]:
    """The host that every fake cloud has, with little memory, and two others."""
    little: dict[str, object] = {"memory_mb": 2000, "vcpus": 100, "disk_gb": 1000}
    async with (
        whole_cloud(tmp_path_factory.mktemp("several"), fake=little) as whole,
        simulated_hosts(whole.cloud, BIG, SMALL, memory_mb=5512) as others,
    ):
        limits = dict.fromkeys(("instances", "cores", "ram"), -1)
        for project in (whole.project, whole.tokens.projects["admin"]):
            await whole.cloud.db.write(
                lambda tx, project=project: quotas.set_limits(tx, quotas.PROJECT, project, limits)
            )
        yield whole, others
        await whole.clear()


async def flavor(whole: Whole, name: str, memory_mb: int) -> str:
    made = Flavor(id=0, flavorid=name, name=name, vcpus=1, memory_mb=memory_mb, root_gb=1)
    await whole.cloud.db.write(lambda tx: flavors.create(tx, made, NOW))
    return name


async def test_the_fault_names_the_reason_of_each_host(several: tuple[Whole, list[SimulatedHost]]) -> None:
    whole, _ = several
    name = await flavor(whole, "gross", 1_000_000)
    await whole.cloud.db.write(lambda tx: hosts.set_disabled(tx, SMALL, True, "new disks", NOW))
    whole.cloud.scheduler.forget()
    try:
        instance = await whole.made(flavorRef=name, networks="auto")
    finally:
        await whole.cloud.db.write(lambda tx: hosts.set_disabled(tx, SMALL, False, None, NOW))
        whole.cloud.scheduler.forget()
    assert (instance.vm_state, instance.host) == ("error", None)
    fault = (await whole.shown(instance.uuid))["fault"]
    reasons = dict(line.split(": ", 1) for line in fault["details"].splitlines()[1:4])
    assert reasons == {
        whole.host: "1000000 MiB of memory wanted, 1488 free",
        BIG: "1000000 MiB of memory wanted, 5512 free",
        SMALL: "disabled (new disks)",
    }
    assert fault["message"].startswith("No valid host was found. ")
    for host, reason in reasons.items():
        assert f"{host}: {reason}" in fault["message"]
    assert (await holdings(whole.cloud, instance.uuid)).nothing
    await whole.gone(instance.uuid)


async def test_more_hosts_than_a_message_holds(several: tuple[Whole, list[SimulatedHost]]) -> None:
    """The message is cut; the details, for administrators, have every host."""
    whole, _ = several
    name = await flavor(whole, "grosser", 2_000_000)
    names = [f"host-with-a-long-name-{n}" for n in range(10)]
    async with simulated_hosts(whole.cloud, *names):
        instance = await whole.made(flavorRef=name)
        fault = (await whole.shown(instance.uuid))["fault"]
        assert len(fault["message"]) == 255
        assert fault["message"].endswith("...")
        assert all(f"{each}: 2000000 MiB" in fault["details"] for each in (*names, BIG, SMALL, whole.host))
        await whole.gone(instance.uuid)
    for each in names:
        await whole.cloud.db.write(lambda tx, each=each: hosts.remove(tx, each))
    whole.cloud.scheduler.forget()


@pytest.mark.capability("API-61", "API-63")
async def test_the_host_that_is_asked_for(several: tuple[Whole, list[SimulatedHost]]) -> None:
    whole, _ = several
    for host in (BIG, SMALL, whole.host):
        for fields in (
            {"availability_zone": f"nova:{host}"},
            {"availability_zone": f"nova::{host}"},
            {"host": host},
            {"hypervisor_hostname": host},
            {"host": host, "hypervisor_hostname": host},
        ):
            instance = await whole.made(who="admin", **fields)
            assert (instance.vm_state, instance.host, instance.node) == ("active", host, host), fields
            await whole.gone(instance.uuid)
    instance = await whole.made(who="admin", host=BIG, hypervisor_hostname=SMALL)
    assert instance.vm_state == "error"
    message = (await whole.shown(instance.uuid))["fault"]["message"]
    assert f"{SMALL}: the host '{BIG}' was asked for" in message
    assert f"{BIG}: the node '{SMALL}' was asked for" in message
    await whole.gone(instance.uuid)


async def test_the_one_with_the_most_memory_and_the_next_when_it_fails(
    several: tuple[Whole, list[SimulatedHost]],
) -> None:
    whole, (big, small) = several
    instance = await whole.made(networks="auto")
    assert instance.host == BIG
    await whole.gone(instance.uuid)
    big.driver.faults.add("start", HostFault("its disk is full"))
    instance = await whole.made(networks="auto")
    assert (instance.vm_state, instance.host) == ("active", SMALL)
    assert big.empty
    assert (await whole.shown(instance.uuid)).get("fault") is None
    (action,) = (await whole.api("GET", f"/servers/{instance.uuid}/os-instance-actions")).json[
        "instanceActions"
    ]
    path = f"/servers/{instance.uuid}/os-instance-actions/{action['request_id']}"
    events = (await whole.api("GET", path, v=104, who="admin")).json["instanceAction"]["events"]
    failed = [each for each in events if each["result"] == "Error"]
    assert [(each["host"], each["details"]) for each in failed] == [(BIG, "its disk is full")]
    await whole.gone(instance.uuid)
    # each of the three that may be tried fails
    for driver in (big.driver, small.driver, whole.driver):
        driver.faults.add("prepare", HostFault(f"no space on {driver._host}"))
    instance = await whole.made(networks="auto")
    assert (instance.vm_state, instance.host) == ("error", None)
    assert (await holdings(whole.cloud, instance.uuid)).nothing
    await whole.gone(instance.uuid)
    # one that was forced is the only one
    big.driver.faults.add("start", HostFault("its disk is full"))
    instance = await whole.made(who="admin", availability_zone=f"nova:{BIG}")
    assert (instance.vm_state, instance.host) == ("error", None)
    assert "its disk is full" in (await whole.shown(instance.uuid))["fault"]["message"]
    await whole.gone(instance.uuid)
    assert await audits(whole.cloud) == []


async def test_a_zone_of_its_own(several: tuple[Whole, list[SimulatedHost]]) -> None:
    whole, _ = several
    aggregate = {"aggregate": {"name": "a", "availability_zone": "east"}}
    made = (await whole.api("POST", "/os-aggregates", aggregate, who="admin", v=104)).json["aggregate"]
    path = f"/os-aggregates/{made['id']}"
    body = {"add_host": {"host": SMALL}}
    assert (await whole.api("POST", f"{path}/action", body, who="admin", v=104)).status == 200
    whole.cloud.scheduler.forget()
    instance = await whole.made(availability_zone="east")
    shown = await whole.shown(instance.uuid)
    assert (shown["OS-EXT-AZ:availability_zone"], shown["OS-EXT-SRV-ATTR:host"]) == ("east", SMALL)
    assert shown["pinned_availability_zone"] == "east"
    listed = await whole.api("GET", "/servers?availability_zone=east", v=83)
    assert [each["id"] for each in listed.json["servers"]] == [instance.uuid]
    await whole.gone(instance.uuid)
    wide = await flavor(whole, "wide", 5000)
    instance = await whole.made(availability_zone="east", flavorRef=wide)
    message = (await whole.shown(instance.uuid))["fault"]["message"]
    assert f"{BIG}: in zone 'nova', not 'east'" in message
    await whole.gone(instance.uuid)
    body = {"remove_host": {"host": SMALL}}
    assert (await whole.api("POST", f"{path}/action", body, who="admin", v=104)).status == 200
    whole.cloud.scheduler.forget()
    assert "east" in await whole.refused(400, availability_zone="east")
