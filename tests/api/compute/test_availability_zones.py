"""Availability zones over HTTP: which there are, whether they can be used, and what is in them."""

from __future__ import annotations

from typing import Any

from sqlalchemy import update

from kilonova.clock import iso_micro
from kilonova.db import hosts
from kilonova.db.engine import Statement
from kilonova.db.tables.compute import hosts as table
from tests.api.compute.small_cloud import MEMBER, READER, SmallCloud, bands, check_keys, cloud

__all__ = ["cloud"]  # a fixture

PATH = "/os-availability-zone"


async def put_into(cloud: SmallCloud, host: str, zone: str) -> None:
    moved = Statement(update(table).where(table.c.host == host).values(availability_zone=zone))
    await cloud.db.write(lambda tx: tx.run(moved))


async def disable(cloud: SmallCloud, host: str) -> None:
    await cloud.db.write(lambda tx: hosts.set_disabled(tx, host, True, None, cloud.clock.now()))


async def zones(cloud: SmallCloud, path: str = PATH, **how: Any) -> dict[str, bool]:
    found = await cloud.get(path, **how)
    return {one["zoneName"]: one["zoneState"]["available"] for one in found["availabilityZoneInfo"]}


async def test_keys_are_the_same_in_all_microversions(cloud: SmallCloud) -> None:
    await cloud.host("h1")
    for version in bands("os-availability-zone.list", "os-availability-zone.detail"):
        check_keys("os-availability-zone.list", version, await cloud.get(PATH, version=version))
        check_keys("os-availability-zone.detail", version, await cloud.get(f"{PATH}/detail", version=version))


async def test_a_zone_is_available_while_one_of_its_hosts_is_enabled(cloud: SmallCloud) -> None:
    assert await zones(cloud) == {}
    for name, zone in (("h1", ""), ("h2", "east"), ("h3", "east")):
        await cloud.host(name)
        if zone:
            await put_into(cloud, name, zone)
    assert await zones(cloud, token=MEMBER) == {"east": True, "nova": True}
    await disable(cloud, "h1")
    await disable(cloud, "h2")
    assert await zones(cloud, token=READER) == {"east": True, "nova": False}
    cloud.clock.advance(3600)  # being down is no matter, as in Nova
    assert await zones(cloud) == {"east": True, "nova": False}
    assert (await cloud.get(PATH))["availabilityZoneInfo"][0]["hosts"] is None
    cloud.option("default_availability_zone", "west")
    assert await zones(cloud) == {"east": True, "west": False}


async def test_details_name_the_hosts(cloud: SmallCloud) -> None:
    heard = iso_micro(cloud.clock.now())
    for name in ("h1", "h2", "h3"):
        await cloud.host(name)
    await put_into(cloud, "h3", "east")
    await disable(cloud, "h2")
    await disable(cloud, "h3")
    cloud.clock.advance(61)
    found = (await cloud.get(f"{PATH}/detail"))["availabilityZoneInfo"]
    controller = {"available": True, "active": True, "updated_at": iso_micro(cloud.clock.now())}
    assert found == [
        {"zoneName": "east", "zoneState": {"available": False}, "hosts": None},
        {
            "zoneName": "internal",
            "zoneState": {"available": True},
            "hosts": {"controller": {"nova-conductor": controller, "nova-scheduler": controller}},
        },
        {
            "zoneName": "nova",
            "zoneState": {"available": True},
            "hosts": {"h1": {"nova-compute": {"available": False, "active": True, "updated_at": heard}}},
        },
    ]


async def test_details_are_for_administrators(cloud: SmallCloud) -> None:
    refused = await cloud("GET", f"{PATH}/detail", token=MEMBER)
    assert (refused.status, refused.message) == (
        403,
        "Policy doesn't allow os_compute_api:os-availability-zone:detail to be performed.",
    )
    assert (await cloud("GET", PATH, token="nobody")).status == 401


async def test_bad_requests_are_refused(cloud: SmallCloud) -> None:
    for path in (PATH, f"{PATH}/detail"):
        assert (await cloud("GET", f"{path}?x=1", version=101)).status == 200
        assert (await cloud("GET", f"{path}?x=1", version=102)).status == 400
    assert (await cloud("GET", f"{PATH}/nova")).status == 404
    assert (await cloud("POST", PATH, {})).status == 404
