"""Hypervisors over HTTP: their fields by microversion, counters, pages, patterns, and the servers on them."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from kilonova.db import hosts
from kilonova.model.host import Inventory
from tests.api.compute.small_cloud import MEMBER, SmallCloud, bands, check_keys, cloud

__all__ = ["cloud"]  # a fixture

PATH = "/os-hypervisors"
LISTS = ("os-hypervisors.list", "os-hypervisors.detail", "os-hypervisors.show")
NOBODY = "99999999-0000-4000-8000-000000000000"


async def names(cloud: SmallCloud, path: str, version: int = 53) -> list[str]:
    found = await cloud.get(path, version=version)
    return [one["hypervisor_hostname"].removesuffix(".example") for one in found["hypervisors"]]


async def test_each_microversion_has_its_own_keys(cloud: SmallCloud) -> None:
    host = await cloud.host("h1")
    await cloud.server(host="h1", task_state="rebooting")
    for version in bands(*LISTS, "os-hypervisors.uptime", "os-hypervisors.search"):
        one = f"{PATH}/{host.compute_id if version >= 53 else host.id}"
        asked = "?with_servers=True" if version >= 53 else ""
        listed = await cloud.get(PATH + asked, version=version)
        check_keys("os-hypervisors.list", version, listed)
        detailed = await cloud.get(f"{PATH}/detail{asked}", version=version)
        check_keys("os-hypervisors.detail", version, detailed)
        shown = await cloud.get(one + asked, version=version)
        check_keys("os-hypervisors.show", version, shown)
        assert shown["hypervisor"] == detailed["hypervisors"][0]
        assert ("servers" in shown["hypervisor"]) == (version >= 53)
        for path, route, last in (
            ("/statistics", "os-hypervisors.statistics", 87),
            (f"/{one.rpartition('/')[2]}/uptime", "os-hypervisors.uptime", 87),
            ("/h1/search", "os-hypervisors.search", 52),
            ("/h1/servers", "os-hypervisors.servers", 52),
        ):
            reply = await cloud("GET", PATH + path, version=version)
            if version <= last:
                assert reply.status == 200, reply.raw
                check_keys(route, version, reply.json)
            else:
                assert reply.status == 404, (path, version, reply.raw)


async def test_a_hypervisor_is_shown_with_what_is_booked(cloud: SmallCloud) -> None:
    host = await cloud.host("h1", used=3)
    await cloud.server(host="h1", task_state="rebooting")
    await cloud.server(host="h1")
    await cloud.server(host=None)
    shown = (await cloud.get(f"{PATH}/{host.compute_id}", version=87))["hypervisor"]
    assert shown == {
        "id": host.compute_id,
        "hypervisor_hostname": "h1.example",
        "state": "up",
        "status": "enabled",
        "vcpus": 8,
        "memory_mb": 16384,
        "local_gb": 100,
        "vcpus_used": 3,
        "memory_mb_used": 515,  # what the host keeps for itself counts as used
        "local_gb_used": 3,
        "free_ram_mb": 15869,
        "free_disk_gb": 97,
        "disk_available_least": 97,
        "current_workload": 1,
        "running_vms": 2,
        "cpu_info": {"arch": "x86_64"},
        "hypervisor_type": "QEMU",
        "hypervisor_version": 7002009,
        "host_ip": "192.0.2.1",
        "service": {"id": host.service_uuid, "host": "h1", "disabled_reason": None},
    }
    old = (await cloud.get(f"{PATH}/{host.id}", version=27))["hypervisor"]
    assert old["id"] == host.id and old["service"]["id"] == host.id
    assert json.loads(old["cpu_info"]) == {"arch": "x86_64"}


async def test_cpus_for_pinning_are_cpus(cloud: SmallCloud) -> None:
    host = await cloud.host("h1", used=3)
    (provider,) = cloud.placement.found
    more = {**provider.inventories, "PCPU": Inventory(total=4)}
    used = {**provider.used, "PCPU": 2}
    cloud.placement.found[0] = msgspec.structs.replace(provider, inventories=more, used=used)
    shown = (await cloud.get(f"{PATH}/{host.compute_id}", version=87))["hypervisor"]
    assert (shown["vcpus"], shown["vcpus_used"]) == (12, 5)


async def test_uptime_is_that_of_a_living_host(cloud: SmallCloud) -> None:
    host = await cloud.host("h1")  # started a day, two hours and some minutes ago
    path = f"{PATH}/{host.compute_id}"
    shown = (await cloud.get(f"{path}/uptime", version=87))["hypervisor"]
    assert shown["uptime"].endswith(" up 1 day, 2:03")
    assert (await cloud.get(path, version=88))["hypervisor"]["uptime"].endswith(" up 1 day, 2:03")
    cloud.clock.advance(61)
    down = await cloud("GET", f"{path}/uptime", version=87)
    assert (down.status, down.message) == (400, "Compute service of h1 is unavailable at this time.")
    assert (await cloud.get(path, version=88))["hypervisor"]["uptime"] is None
    assert (await cloud.get(path, version=88))["hypervisor"]["state"] == "down"
    silent = await cloud.host("h2", started_at=0)
    assert (await cloud("GET", f"{PATH}/{silent.compute_id}/uptime", version=87)).status == 501


@pytest.mark.capability("API-138")
async def test_statistics_are_sums_over_what_is_enabled(cloud: SmallCloud) -> None:
    assert (await cloud.get(f"{PATH}/statistics"))["hypervisor_statistics"]["count"] == 0
    for name, used in (("h1", 1), ("h2", 2), ("h3", 4)):
        await cloud.host(name, used=used)
    await cloud.db.write(lambda tx: hosts.set_disabled(tx, "h3", True, "broken", cloud.clock.now()))
    await cloud.server(host="h2", task_state="rebooting")
    assert (await cloud.get(f"{PATH}/statistics"))["hypervisor_statistics"] == {
        "count": 2,
        "vcpus": 16,
        "memory_mb": 32768,
        "local_gb": 200,
        "vcpus_used": 3,
        "memory_mb_used": 1027,
        "local_gb_used": 3,
        "free_ram_mb": 31741,
        "free_disk_gb": 197,
        "current_workload": 1,
        "running_vms": 1,
        "disk_available_least": 197,
    }


async def test_what_administrators_said_of_a_host_shows(cloud: SmallCloud) -> None:
    host = await cloud.host("h1")
    await cloud.db.write(lambda tx: hosts.set_disabled(tx, "h1", True, "a fan", cloud.clock.now()))
    shown = (await cloud.get(f"{PATH}/detail", version=88))["hypervisors"][0]
    assert (shown["status"], shown["state"]) == ("disabled", "up")
    assert shown["service"] == {"id": host.service_uuid, "host": "h1", "disabled_reason": "a fan"}
    await cloud.db.write(lambda tx: hosts.set_forced_down(tx, "h1", True, cloud.clock.now()))
    assert (await cloud.get(PATH, version=88))["hypervisors"][0]["state"] == "down"


@pytest.mark.capability("API-138")
async def test_lists_are_in_order_and_paged(cloud: SmallCloud) -> None:
    ids = [(await cloud.host(f"h{number}")).compute_id for number in range(1, 6)]
    first = await cloud.get(f"{PATH}/detail?limit=2&with_servers=1", version=88)
    assert [one["id"] for one in first["hypervisors"]] == ids[:2]
    second = await cloud.follow(first["hypervisors_links"], version=88)
    assert [one["id"] for one in second["hypervisors"]] == ids[2:4]
    assert [one["servers"] for one in second["hypervisors"]] == [[], []]
    third = await cloud.follow(second["hypervisors_links"], version=88)
    assert [one["id"] for one in third["hypervisors"]] == ids[4:]
    assert "hypervisors_links" not in third
    assert await names(cloud, f"{PATH}?limit=1&marker=2", 52) == ["h3"]  # ids were numbers then
    assert await names(cloud, f"{PATH}?marker={ids[3].upper()}") == ["h5"]
    assert await names(cloud, f"{PATH}?limit=0") == []
    assert len(await names(cloud, f"{PATH}?limit=1", 32)) == 5  # not yet looked at
    cloud.option("max_limit", 2, "api")
    assert await names(cloud, f"{PATH}?limit=4") == ["h1", "h2"]


@pytest.mark.capability("API-138")
async def test_patterns_are_parts_of_names(cloud: SmallCloud) -> None:
    for name in ("alpha1", "alpha2", "beta1"):
        await cloud.host(name)
    await cloud.server(host="alpha2")
    assert await names(cloud, f"{PATH}?hypervisor_hostname_pattern=alpha") == ["alpha1", "alpha2"]
    assert await names(cloud, f"{PATH}/alpha/search", 52) == ["alpha1", "alpha2"]
    assert await names(cloud, f"{PATH}/1.example/search", 1) == ["alpha1", "beta1"]
    for path, version in (
        (f"{PATH}?hypervisor_hostname_pattern=a%25a", 53),
        (f"{PATH}/detail?hypervisor_hostname_pattern=gamma", 53),
        (f"{PATH}/gamma/search", 52),
        (f"{PATH}/gamma/servers", 52),
    ):
        assert (await cloud("GET", path, version=version)).status == 404, path
    for more in ("limit=1", "marker=x"):
        both = await cloud("GET", f"{PATH}?hypervisor_hostname_pattern=alpha&{more}", version=53)
        assert both.status == 400
    found = (await cloud.get(f"{PATH}/alpha/servers", version=52))["hypervisors"]
    assert ["servers" in one for one in found] == [False, True]


async def test_servers_are_shown_to_those_who_ask(cloud: SmallCloud) -> None:
    await cloud.host("h1")
    host = await cloud.host("h2")
    server = await cloud.server(host="h2")
    gone = await cloud.server(host="h2", deleted_at=cloud.clock.now())
    assert gone.uuid != server.uuid
    expected = [{"name": server.uuid, "uuid": server.uuid}]

    async def servers(query: str, version: int) -> list[Any]:
        found = await cloud.get(f"{PATH}{query}", version=version)
        return [one.get("servers") for one in found["hypervisors"]]

    assert await servers("?with_servers=true", 74) == [None, expected]
    assert await servers("?with_servers=true", 75) == [[], expected]
    assert await servers("?with_servers=0", 75) == [None, None]
    assert await servers("?with_servers=true", 52) == [None, None]
    assert await servers("/h/servers", 52) == [None, expected]
    shown = await cloud.get(f"{PATH}/{host.compute_id}/uptime?with_servers=1", version=87)
    assert shown["hypervisor"]["servers"] == expected


async def test_bad_requests_are_refused(cloud: SmallCloud) -> None:
    host = await cloud.host("h1")
    for path, version, status in (
        (f"{PATH}?limit=x", 33, 400),
        (f"{PATH}?limit=-1", 33, 400),
        (f"{PATH}?limit=", 33, 400),
        (f"{PATH}?limit=x", 32, 200),
        (f"{PATH}?marker=7", 33, 400),
        (f"{PATH}?marker={NOBODY}", 53, 400),
        (f"{PATH}?marker={host.id}", 53, 400),
        (f"{PATH}?with_servers=perhaps", 53, 400),
        (f"{PATH}?with_servers=", 53, 400),
        (f"{PATH}?with_servers=perhaps", 52, 200),
        (f"{PATH}?x=1", 52, 200),
        (f"{PATH}?x=1", 53, 400),
        (f"{PATH}/{host.compute_id}?limit=1", 53, 400),
        (f"{PATH}/{NOBODY}", 53, 404),
        (f"{PATH}/{host.id}", 53, 400),
        (f"{PATH}/{host.compute_id}", 52, 404),
        (f"{PATH}/0", 52, 404),
        (f"{PATH}/-1", 52, 404),
        (f"{PATH}/{'9' * 40}", 52, 404),
        (f"{PATH}/%C3%BC", 52, 404),
        (f"{PATH}/%C3%BC", 53, 400),
        (f"{PATH}/{NOBODY}/uptime", 53, 404),
        (f"{PATH}/x/uptime", 53, 400),
        (f"{PATH}/x/nothing", 53, 404),
    ):
        reply = await cloud("GET", path, version=version)
        assert reply.status == status, (path, version, reply.raw)
        assert status == 200 or reply.message
    assert (await cloud("POST", PATH, {}, version=53)).status == 404


@pytest.mark.parametrize("path", ["", "/detail", "/statistics", "/1", "/1/uptime", "/h/search", "/h/servers"])
async def test_only_administrators_look(cloud: SmallCloud, path: str) -> None:
    await cloud.host("h1")
    refused = await cloud("GET", PATH + path, token=MEMBER)
    assert refused.status == 403 and "os_compute_api:os-hypervisors:" in refused.message
    assert (await cloud("GET", PATH + path)).status == 200
    assert (await cloud("GET", PATH + path, token="nobody")).status == 401
