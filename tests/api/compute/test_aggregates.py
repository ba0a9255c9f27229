"""Host aggregates over HTTP, and the availability zones that they make."""

from __future__ import annotations

from typing import Any

import pytest

from kilonova.clock import iso_micro
from tests.api.compute.small_cloud import MEMBER, SmallCloud, bands, check_keys, cloud, db

__all__ = ["cloud", "db"]  # fixtures

PATH = "/os-aggregates"


async def make(cloud: SmallCloud, name: str = "a", version: int = 41, **more: Any) -> Any:
    reply = await cloud("POST", PATH, {"aggregate": {"name": name, **more}}, version=version)
    assert reply.status == 200, reply.raw
    return reply.json["aggregate"]


async def act(cloud: SmallCloud, number: int, action: str, **argument: Any) -> Any:
    return await cloud("POST", f"{PATH}/{number}/action", {action: argument}, version=41)


async def add(cloud: SmallCloud, number: int, *hosts: str) -> Any:
    for host in hosts:
        reply = await act(cloud, number, "add_host", host=host)
        assert reply.status == 200, reply.raw
    return reply.json["aggregate"]


async def zones(cloud: SmallCloud) -> dict[str, str]:
    """Host -> zone, as services show it."""
    found = await cloud.get("/os-services?binary=nova-compute")
    return {one["host"]: one["zone"] for one in found["services"]}


async def test_each_microversion_has_its_own_keys(cloud: SmallCloud) -> None:
    await cloud.host("h1")
    for version in bands("os-aggregates.list", "os-aggregates.create"):
        body = {"aggregate": {"name": f"a{version}"}}
        made = await cloud("POST", PATH, body, version=version)
        check_keys("os-aggregates.create", version, made.json)
        path = f"{PATH}/{made.json['aggregate']['id']}"
        for action, argument in (
            ("add_host", {"host": "h1"}),
            ("set_metadata", {"metadata": {"ssd": "yes"}}),
            ("remove_host", {"host": "h1"}),
        ):
            done = await cloud("POST", f"{path}/action", {action: argument}, version=version)
            check_keys(f"os-aggregates.action.{action}", version, done.json)
        changed = await cloud("PUT", path, {"aggregate": {"availability_zone": "east"}}, version=version)
        check_keys("os-aggregates.update", version, changed.json)
        check_keys("os-aggregates.show", version, await cloud.get(path, version=version))
        check_keys("os-aggregates.list", version, await cloud.get(PATH, version=version))
        gone = await cloud("DELETE", path, version=version)
        assert (gone.status, gone.raw) == (200, b"")


async def test_an_aggregate_is_shown_as_it_was_made(cloud: SmallCloud) -> None:
    now = iso_micro(cloud.clock.now())
    made = await make(cloud, "rack one", availability_zone="east")
    assert made == {
        "id": 1,
        "uuid": made["uuid"],
        "name": "rack one",
        "availability_zone": "east",
        "created_at": now,
        "updated_at": None,
        "deleted": False,
        "deleted_at": None,
    }
    shown = (await cloud.get(f"{PATH}/1", version=41))["aggregate"]
    assert shown == {**made, "hosts": [], "metadata": {"availability_zone": "east"}}
    await make(cloud, "second")
    listed = (await cloud.get(PATH, version=41))["aggregates"]
    assert [one["name"] for one in listed] == ["rack one", "second"] and listed[0] == shown
    cloud.clock.advance(5)
    changed = await cloud("PUT", f"{PATH}/1", {"aggregate": {"name": "rack 1"}}, version=41)
    later = iso_micro(cloud.clock.now())
    assert changed.json["aggregate"] == {**shown, "name": "rack 1", "updated_at": later}
    assert (await cloud("PUT", f"{PATH}/1", {"aggregate": {"name": "rack 1"}})).status == 200


@pytest.mark.capability("API-140")
async def test_hosts_are_in_the_zone_of_their_aggregate(cloud: SmallCloud) -> None:
    for name in ("h1", "h2"):
        await cloud.host(name)
    await make(cloud, "east", availability_zone="east")
    await make(cloud, "plain")
    shown = await add(cloud, 1, "h1")
    assert shown["hosts"] == ["h1"]
    await add(cloud, 2, "h1", "h2")
    assert await zones(cloud) == {"h1": "east", "h2": "nova"}
    found = (await cloud.get("/os-availability-zone"))["availabilityZoneInfo"]
    assert [one["zoneName"] for one in found] == ["east", "nova"]
    assert cloud.scheduler.forgotten == 3
    changed = await cloud("PUT", f"{PATH}/1", {"aggregate": {"availability_zone": "west"}})
    assert changed.json["aggregate"]["metadata"] == {"availability_zone": "west"}
    assert await zones(cloud) == {"h1": "west", "h2": "nova"}
    await act(cloud, 1, "set_metadata", metadata={"availability_zone": None})
    assert await zones(cloud) == {"h1": "nova", "h2": "nova"}
    await act(cloud, 1, "set_metadata", metadata={"availability_zone": "north"})
    removed = await act(cloud, 1, "remove_host", host="h1")
    assert removed.json["aggregate"]["hosts"] == []
    assert await zones(cloud) == {"h1": "nova", "h2": "nova"}
    assert (await cloud.get(f"{PATH}/2"))["aggregate"]["hosts"] == ["h1", "h2"]


@pytest.mark.capability("API-140")
async def test_a_host_is_in_one_zone_only(cloud: SmallCloud) -> None:
    for name in ("h1", "h2"):
        await cloud.host(name)
    for name, zone in (("east", "east"), ("west", "west"), ("also east", "east"), ("plain", None)):
        await make(cloud, name, availability_zone=zone)
    await add(cloud, 1, "h1")
    await add(cloud, 3, "h1")  # the same zone twice is one
    refused = await act(cloud, 2, "add_host", host="h1")
    assert refused.status == 409 and "already" in refused.message
    await add(cloud, 4, "h1", "h2")
    for reply in (
        await cloud("PUT", f"{PATH}/4", {"aggregate": {"availability_zone": "west"}}),
        await act(cloud, 4, "set_metadata", metadata={"availability_zone": "west"}),
        await cloud("PUT", f"{PATH}/1", {"aggregate": {"availability_zone": "west"}}),
    ):
        assert reply.status == 400, reply.raw
    assert await zones(cloud) == {"h1": "east", "h2": "nova"}  # also not half of it
    await act(cloud, 1, "remove_host", host="h1")
    assert await zones(cloud) == {"h1": "east", "h2": "nova"}  # by the other one
    await act(cloud, 3, "remove_host", host="h1")
    assert await zones(cloud) == {"h1": "nova", "h2": "nova"}


@pytest.mark.capability("API-140")
async def test_servers_do_not_find_themselves_in_another_zone(cloud: SmallCloud) -> None:
    await cloud.host("h1")
    server = await cloud.server(host="h1")
    await make(cloud, "east", availability_zone="east")
    await make(cloud, "default", availability_zone="nova")
    await make(cloud, "plain")
    assert (await act(cloud, 1, "add_host", host="h1")).status == 409
    await add(cloud, 3, "h1")
    assert (await cloud("PUT", f"{PATH}/3", {"aggregate": {"availability_zone": "east"}})).status == 400
    assert (await act(cloud, 3, "set_metadata", metadata={"availability_zone": "east"})).status == 400
    assert (await act(cloud, 3, "remove_host", host="h1")).status == 200
    await cloud.gone(server)
    await add(cloud, 1, "h1")
    await cloud.server(host="h1")
    assert (await cloud("PUT", f"{PATH}/1", {"aggregate": {"availability_zone": "west"}})).status == 400
    refused = await act(cloud, 1, "remove_host", host="h1")
    assert refused.status == 409 and "servers" in refused.message
    assert await zones(cloud) == {"h1": "east"}
    assert len(cloud.placement.aggregates) == 1  # placement was told first, and told again


async def test_metadata_comes_and_goes(cloud: SmallCloud) -> None:
    await make(cloud)
    done = await act(cloud, 1, "set_metadata", metadata={"ssd": "yes", "gpu": "no"})
    assert done.json["aggregate"]["metadata"] == {"ssd": "yes", "gpu": "no"}
    done = await act(cloud, 1, "set_metadata", metadata={"ssd": None, "gpu": "two", "none": None})
    assert done.json["aggregate"]["metadata"] == {"gpu": "two"}
    done = await act(cloud, 1, "set_metadata", metadata={"availability_zone": "east"})
    assert done.json["aggregate"]["availability_zone"] == "east"
    assert done.json["aggregate"]["metadata"] == {"gpu": "two", "availability_zone": "east"}
    assert (await act(cloud, 1, "set_metadata", metadata={})).status == 200


@pytest.mark.capability("API-141")
async def test_an_aggregate_with_hosts_is_not_deleted(cloud: SmallCloud) -> None:
    await cloud.host("h1")
    await make(cloud)
    await add(cloud, 1, "h1")
    refused = await cloud("DELETE", f"{PATH}/1")
    assert refused.status == 400 and "h1" in refused.message
    await act(cloud, 1, "remove_host", host="h1")
    assert (await cloud("DELETE", f"{PATH}/1")).status == 200
    assert (await cloud("DELETE", f"{PATH}/1")).status == 404
    assert (await cloud.get(PATH))["aggregates"] == []


async def test_a_host_that_is_deleted_leaves_its_aggregates(cloud: SmallCloud) -> None:
    host = await cloud.host("h1")
    await make(cloud, availability_zone="east")
    await add(cloud, 1, "h1")
    assert (await cloud("DELETE", f"/os-services/{host.service_uuid}", version=53)).status == 204
    assert (await cloud.get(f"{PATH}/1"))["aggregate"]["hosts"] == []
    await cloud.host("h1", node=host.compute_id)  # it comes back
    assert await zones(cloud) == {"h1": "nova"}


@pytest.mark.capability("API-142")
async def test_placement_is_told(cloud: SmallCloud) -> None:
    first, second = await cloud.host("h1"), await cloud.host("h2")
    uuid = (await make(cloud))["uuid"]
    await add(cloud, 1, "h1")
    assert cloud.placement.aggregates == {(first.compute_id, uuid)}
    cloud.placement.broken = True
    await add(cloud, 1, "h2")  # told or not
    assert (await cloud.get(f"{PATH}/1"))["aggregate"]["hosts"] == ["h1", "h2"]
    assert (await act(cloud, 1, "remove_host", host="h1")).status == 503  # it must be, here
    assert (await cloud.get(f"{PATH}/1"))["aggregate"]["hosts"] == ["h1", "h2"]
    cloud.placement.broken = False
    for name in ("h1", "h2"):
        assert (await act(cloud, 1, "remove_host", host=name)).status == 200
    assert cloud.placement.aggregates == set()
    assert second.compute_id != first.compute_id


async def test_bad_requests_are_refused(cloud: SmallCloud) -> None:
    await cloud.host("h1")
    await make(cloud, "a")
    await make(cloud, "b")
    for method, path, body, status in (
        ("POST", PATH, {}, 400),
        ("POST", PATH, {"aggregate": {}}, 400),
        ("POST", PATH, {"aggregate": {"name": ""}}, 400),
        ("POST", PATH, {"aggregate": {"name": " a"}}, 400),
        ("POST", PATH, {"aggregate": {"name": "x" * 256}}, 400),
        ("POST", PATH, {"aggregate": {"name": 5}}, 400),
        ("POST", PATH, {"aggregate": {"name": "a"}}, 409),
        ("POST", PATH, {"aggregate": {"name": "c", "availability_zone": ""}}, 400),
        ("POST", PATH, {"aggregate": {"name": "c", "availability_zone": "x:y"}}, 400),
        ("POST", PATH, {"aggregate": {"name": "c", "availability_zone": 1}}, 400),
        ("POST", PATH, {"aggregate": {"name": "c", "x": 1}}, 400),
        ("PUT", f"{PATH}/1", {"aggregate": {}}, 400),
        ("PUT", f"{PATH}/1", {"aggregate": {"name": None}}, 400),
        ("PUT", f"{PATH}/1", {"aggregate": {"name": "b"}}, 409),
        ("PUT", f"{PATH}/9", {"aggregate": {"name": "c"}}, 404),
        ("GET", f"{PATH}/9", None, 404),
        ("GET", f"{PATH}/x", None, 400),
        ("GET", f"{PATH}/-1", None, 400),
        ("GET", f"{PATH}/{'9' * 19}", None, 404),
        ("GET", f"{PATH}/{'9' * 40}", None, 400),
        ("DELETE", f"{PATH}/x", None, 400),
        ("POST", f"{PATH}/1/action", {"add_host": {"host": "nobody"}}, 404),
        ("POST", f"{PATH}/1/action", {"add_host": {"host": "a b"}}, 400),
        ("POST", f"{PATH}/1/action", {"add_host": {}}, 400),
        ("POST", f"{PATH}/9/action", {"add_host": {"host": "h1"}}, 404),
        ("POST", f"{PATH}/1/action", {"remove_host": {"host": "h1"}}, 404),
        ("POST", f"{PATH}/9/action", {"remove_host": {"host": "h1"}}, 404),
        ("POST", f"{PATH}/1/action", {"set_metadata": {}}, 400),
        ("POST", f"{PATH}/1/action", {"set_metadata": {"metadata": {"": "x"}}}, 400),
        ("POST", f"{PATH}/1/action", {"set_metadata": {"metadata": {"a": 1}}}, 400),
        ("POST", f"{PATH}/1/action", {"set_metadata": {"metadata": {"a": "x" * 256}}}, 400),
        ("POST", f"{PATH}/1/action", {"set_metadata": {"metadata": {"availability_zone": ""}}}, 400),
        ("POST", f"{PATH}/1/action", {"set_metadata": {"metadata": {"availability_zone": "a:b"}}}, 400),
        ("POST", f"{PATH}/1/action", {"explode": {}}, 400),
    ):
        reply = await cloud(method, path, body, version=41)
        assert (reply.status, bool(reply.message)) == (status, True), (path, body, reply.raw)
    await add(cloud, 1, "h1")
    again = await act(cloud, 1, "add_host", host="h1")
    assert (again.status, again.message) == (409, "Aggregate 1 already has host h1.")
    assert (await cloud("GET", f"{PATH}?x=1", version=101)).status == 200
    assert (await cloud("GET", f"{PATH}?x=1", version=102)).status == 400


async def test_only_administrators_come_near(cloud: SmallCloud) -> None:
    await make(cloud)
    for method, path, body in (
        ("GET", PATH, None),
        ("POST", PATH, {"aggregate": {"name": "b"}}),
        ("GET", f"{PATH}/1", None),
        ("PUT", f"{PATH}/1", {"aggregate": {"name": "b"}}),
        ("DELETE", f"{PATH}/1", None),
        ("POST", f"{PATH}/1/action", {"add_host": {"host": "h"}}),
        ("POST", f"{PATH}/1/action", {"remove_host": {"host": "h"}}),
        ("POST", f"{PATH}/1/action", {"set_metadata": {"metadata": {}}}),
    ):
        assert (await cloud(method, path, body, token=MEMBER)).status == 403, (method, path)
