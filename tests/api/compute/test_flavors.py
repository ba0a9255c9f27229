"""Flavors over HTTP: each field in its microversions, bad input of every kind, other tenants."""

from __future__ import annotations

from typing import Any

import pytest

from tests.api.compute.small_cloud import (
    MEMBER,
    OTHER,
    READER,
    SmallCloud,
    bands,
    check_keys,
    cloud,
    db,
)

__all__ = ["cloud", "db"]  # fixtures

NEW: dict[str, Any] = {"name": "f", "id": "f", "ram": 512, "vcpus": 1, "disk": 1}
LIKE_DEVSTACK = [("1", 512), ("2", 2048), ("3", 4096), ("4", 8192)]


async def make(cloud: SmallCloud, version: int = 61, **more: Any) -> Any:
    reply = await cloud("POST", "/flavors", {"flavor": {**NEW, **more}}, version=version)
    assert reply.status == 200, reply.raw
    return reply.json["flavor"]


async def make_several(cloud: SmallCloud) -> None:
    for flavorid, ram in LIKE_DEVSTACK:
        await make(cloud, id=flavorid, name=f"m{flavorid}", ram=ram, disk=int(flavorid))


async def test_each_microversion_has_its_own_keys(cloud: SmallCloud) -> None:
    for version in bands("flavors.create", "flavors.detail", "flavors.list"):
        made = await cloud(
            "POST", "/flavors", {"flavor": {**NEW, "id": str(version), "name": str(version)}}, version=version
        )
        assert made.status == 200
        check_keys("flavors.create", version, made.json)
        check_keys("flavors.show", version, await cloud.get(f"/flavors/{version}", version=version))
        check_keys("flavors.detail", version, await cloud.get("/flavors/detail?limit=1", version=version))
        check_keys("flavors.list", version, await cloud.get("/flavors?limit=1", version=version))
        if version >= 55:
            body = {"flavor": {"description": "d"}}
            changed = await cloud("PUT", f"/flavors/{version}", body, version=version)
            assert changed.status == 200 and changed.json["flavor"]["description"] == "d"
            check_keys("flavors.update", version, changed.json)


async def test_a_flavor_is_shown_as_it_was_made(cloud: SmallCloud) -> None:
    given = {
        "ram": "2048",
        "vcpus": "2",
        "OS-FLV-EXT-DATA:ephemeral": 5,
        "swap": 256,
        "rxtx_factor": "1.5",
        "os-flavor-access:is_public": "False",
        "description": "two\nlines",
    }
    made = await make(cloud, **given)
    assert made == {
        "id": "f",
        "name": "f",
        "description": "two\nlines",
        "links": [
            {"rel": "self", "href": "http://cloud:8774/v2.1/flavors/f"},
            {"rel": "bookmark", "href": "http://cloud:8774/flavors/f"},
        ],
        "ram": 2048,
        "disk": 1,
        "swap": 256,
        "OS-FLV-EXT-DATA:ephemeral": 5,
        "OS-FLV-DISABLED:disabled": False,
        "vcpus": 2,
        "os-flavor-access:is_public": False,
        "rxtx_factor": 1.5,
        "extra_specs": {},
    }
    assert (await cloud.get("/flavors/f", version=61))["flavor"] == made
    await make(cloud, id="g", name="g")
    assert (await cloud.get("/flavors/g", version=74))["flavor"]["swap"] == ""
    assert (await cloud.get("/flavors/g", version=75))["flavor"]["swap"] == 0


@pytest.mark.capability("FL-4")
async def test_ids_are_text_and_made_when_none_is_given(cloud: SmallCloud) -> None:
    assert (await make(cloud, id=7, name="seven"))["id"] == "7"
    assert len((await make(cloud, id=None, name="none"))["id"]) == 36
    assert (await make(cloud, id="a b.c_d-e", name="odd"))["id"] == "a b.c_d-e"


@pytest.mark.capability("FL-1", "FL-2", "FL-3")
@pytest.mark.parametrize(
    "change",
    [
        {"name": ""},
        {"name": "x" * 256},
        {"name": " x"},
        {"name": "a\nb"},
        {"name": None},
        {"name": 5},
        {"name": "\ud800"},
        {"id": ""},
        {"id": " x"},
        {"id": "ä"},
        {"id": "a/b"},
        {"id": "x" * 256},
        {"id": True},
        {"id": []},
        {"ram": 0},
        {"ram": -1},
        {"ram": 1.5},
        {"ram": "x"},
        {"ram": ""},
        {"ram": True},
        {"ram": 2**31},
        {"ram": 10**30},
        {"vcpus": 0},
        {"vcpus": None},
        {"disk": -1},
        {"disk": 2**31},
        {"OS-FLV-EXT-DATA:ephemeral": -1},
        {"swap": "1.0"},
        {"rxtx_factor": 0},
        {"rxtx_factor": -1.0},
        {"rxtx_factor": 3.41e38},
        {"rxtx_factor": "inf"},
        {"rxtx_factor": 10**400},
        {"os-flavor-access:is_public": "maybe"},
        {"os-flavor-access:is_public": 7},
        {"description": 5},
        {"description": "x" * 65536},
        {"description": "bell\a"},
        {"unknown": 1},
    ],
    ids=str,
)
async def test_bad_flavors_are_refused(cloud: SmallCloud, change: dict[str, Any]) -> None:
    reply = await cloud("POST", "/flavors", {"flavor": {**NEW, **change}}, version=61)
    assert reply.status == 400, reply.raw
    assert reply.message
    assert (await cloud.get("/flavors?is_public=None"))["flavors"] == []


async def test_bad_bodies_are_refused(cloud: SmallCloud) -> None:
    for raw in (b"", b"[]", b"{", b'{"flavor": 1}', b'{"flavour": {}}', b'{"flavor": {}, "x": 1}'):
        assert (await cloud("POST", "/flavors", raw=raw, version=61)).status == 400
    missing = {"flavor": {"name": "x", "ram": 1, "vcpus": 1}}
    assert "disk" in (await cloud("POST", "/flavors", missing)).message


async def test_fields_are_refused_outside_of_their_microversions(cloud: SmallCloud) -> None:
    for version, change, status in (
        (54, {"description": "x"}, 400),
        (55, {"description": "x"}, 200),
        (101, {"rxtx_factor": 2.0, "name": "g", "id": "g"}, 200),
        (102, {"rxtx_factor": 2.0, "name": "h", "id": "h"}, 400),
    ):
        reply = await cloud("POST", "/flavors", {"flavor": {**NEW, **change}}, version=version)
        assert reply.status == status, (version, reply.raw)


@pytest.mark.capability("FL-5")
async def test_names_and_ids_that_are_taken_are_conflicts(cloud: SmallCloud) -> None:
    await make(cloud)
    reply = await cloud("POST", "/flavors", {"flavor": {**NEW, "id": "other"}})
    assert (reply.status, reply.message) == (409, "Flavor with name f already exists.")
    reply = await cloud("POST", "/flavors", {"flavor": {**NEW, "name": "other"}})
    assert (reply.status, reply.message) == (409, "Flavor with ID f already exists.")


async def test_lists_are_filtered_sorted_and_paged(cloud: SmallCloud) -> None:
    await make_several(cloud)
    await make(cloud, id="x", name="private", **{"os-flavor-access:is_public": False})

    async def ids(query: str, **how: Any) -> list[str]:
        return [one["id"] for one in (await cloud.get(f"/flavors?{query}", **how))["flavors"]]

    assert await ids("") == ["1", "2", "3", "4"]
    assert await ids("minRam=2049") == ["3", "4"]
    assert await ids("minDisk=4") == ["4"]
    assert await ids("minRam=" + "9" * 30) == []
    assert await ids("minRam=-5") == ["1", "2", "3", "4"]
    assert await ids("is_public=None") == ["1", "2", "3", "4", "x"]
    assert await ids("is_public=false") == ["x"]
    assert await ids("is_public=None", token=MEMBER) == ["1", "2", "3", "4"]
    assert await ids("sort_key=memory_mb&sort_dir=desc&limit=2") == ["4", "3"]
    assert await ids("name=m2", version=102) == ["2"]
    assert await ids("name=m2", version=101 - 27) == ["1", "2", "3", "4"]  # not yet a filter, nor strict
    first = await cloud.get("/flavors/detail?limit=3&minRam=1", version=75)
    assert [one["id"] for one in first["flavors"]] == ["1", "2", "3"]
    rest = await cloud.follow(first["flavors_links"], version=75)
    assert [one["id"] for one in rest["flavors"]] == ["4"]
    assert "flavors_links" not in rest


async def test_bad_filters_are_refused(cloud: SmallCloud) -> None:
    for query in (
        "minRam=x",
        "minDisk=",
        "is_public=maybe",
        "limit=-1",
        "limit=x",
        "marker=none",
        "sort_key=projects",
        "sort_dir=up",
    ):
        for path in ("/flavors", "/flavors/detail"):
            assert (await cloud("GET", f"{path}?{query}", version=75)).status == 400, query
    assert (await cloud("GET", "/flavors?x=1", version=74)).status == 200
    assert (await cloud("GET", "/flavors?x=1", version=75)).status == 400
    assert (await cloud("GET", "/flavors?name=x", version=101)).status == 400
    await make(cloud)
    assert (await cloud("GET", "/flavors/f?x=1", version=101)).status == 200
    assert (await cloud("GET", "/flavors/f?x=1", version=102)).status == 400


async def test_descriptions(cloud: SmallCloud) -> None:
    await make(cloud)
    assert (await cloud("PUT", "/flavors/f", {"flavor": {"description": "x"}}, version=54)).status == 404
    assert (await cloud("PUT", "/flavors/f", {"flavor": {"description": None}}, version=55)).status == 200
    for body in (
        {},
        {"flavor": {}},
        {"flavor": {"description": 1}},
        {"flavor": {"description": "x", "name": "n"}},
    ):
        assert (await cloud("PUT", "/flavors/f", body, version=55)).status == 400, body
    assert (await cloud("PUT", "/flavors/none", {"flavor": {"description": "x"}}, version=55)).status == 404


async def test_what_is_deleted_is_gone(cloud: SmallCloud) -> None:
    await make(cloud)
    reply = await cloud("DELETE", "/flavors/f")
    assert (reply.status, reply.raw) == (202, b"")
    assert (await cloud("DELETE", "/flavors/f")).message == "Flavor f could not be found."
    assert (await cloud("GET", "/flavors/f")).status == 404


async def test_only_administrators_write(cloud: SmallCloud) -> None:
    await make(cloud)
    specs = "/flavors/f/os-extra_specs"
    for method, path, body in (
        ("POST", "/flavors", {"flavor": {**NEW, "name": "g"}}),
        ("PUT", "/flavors/f", {"flavor": {"description": "x"}}),
        ("DELETE", "/flavors/f", None),
        ("POST", specs, {"extra_specs": {"a": "b"}}),
        ("PUT", f"{specs}/a", {"a": "b"}),
        ("DELETE", f"{specs}/a", None),
        ("GET", "/flavors/f/os-flavor-access", None),
        ("POST", "/flavors/f/action", {"addTenantAccess": {"tenant": "p1"}}),
        ("POST", "/flavors/f/action", {"removeTenantAccess": {"tenant": "p1"}}),
    ):
        assert (await cloud(method, path, body, version=61, token=MEMBER)).status == 403, path
    assert (await cloud("GET", "/flavors", token="nobody")).status == 401


async def test_private_flavors_exist_for_those_who_may_use_them(cloud: SmallCloud) -> None:
    await make(cloud, **{"os-flavor-access:is_public": False})
    for path in ("/flavors/f", "/flavors/f/os-extra_specs"):
        assert (await cloud("GET", path, token=MEMBER)).status == 404
    added = await cloud("POST", "/flavors/f/action", {"addTenantAccess": {"tenant": "p1"}})
    assert added.status == 200
    check_keys("flavors.action.addTenantAccess", 1, added.json)
    assert added.json == {"flavor_access": [{"flavor_id": "f", "tenant_id": "p1"}]}
    assert await cloud.get("/flavors/f/os-flavor-access") == added.json
    for token, status in ((MEMBER, 200), (READER, 200), (OTHER, 404)):
        assert (await cloud("GET", "/flavors/f", token=token)).status == status
    assert len((await cloud.get("/flavors", token=MEMBER))["flavors"]) == 1
    assert (await cloud.get("/flavors", token=OTHER))["flavors"] == []
    assert (await cloud("POST", "/flavors/f/action", {"addTenantAccess": {"tenant": "p1"}})).status == 409
    removed = await cloud("POST", "/flavors/f/action", {"removeTenantAccess": {"tenant": "p1"}})
    assert removed.json == {"flavor_access": []}
    assert (await cloud("POST", "/flavors/f/action", {"removeTenantAccess": {"tenant": "p1"}})).status == 404
    assert (await cloud("GET", "/flavors/f", token=MEMBER)).status == 404


async def test_access_that_makes_no_sense(cloud: SmallCloud) -> None:
    await make(cloud)
    assert (await cloud("GET", "/flavors/f/os-flavor-access")).status == 404
    add = {"addTenantAccess": {"tenant": "p1"}}
    assert (await cloud("POST", "/flavors/f/action", add, version=7)).status == 409
    assert (await cloud("POST", "/flavors/f/action", add, version=6)).status == 200
    assert (await cloud("POST", "/flavors/none/action", add, version=7)).status == 404
    unknown = await cloud("POST", "/flavors/f/action", {"addTenantAccess": {"tenant": "nobody"}})
    assert (unknown.status, unknown.message) == (400, "Project ID nobody is not a valid project.")
    for body in (
        {"addTenantAccess": {}},
        {"addTenantAccess": {"tenant": 5}},
        {"addTenantAccess": {"tenant": ""}},
        {"addTenantAccess": {"tenant": "p1", "x": 1}},
        {"addTenantAccess": None},
        {"somethingElse": {}},
        {},
    ):
        assert (await cloud("POST", "/flavors/f/action", body)).status == 400, body


async def test_extra_specs_come_and_go(cloud: SmallCloud) -> None:
    await make(cloud)
    path = "/flavors/f/os-extra_specs"
    made = await cloud("POST", path, {"extra_specs": {"a": "b", "n": 5}})
    assert (made.status, made.json) == (200, {"extra_specs": {"a": "b", "n": 5}})
    check_keys("flavors.os-extra_specs.create", 1, made.json)
    assert await cloud.get(path, token=MEMBER) == {"extra_specs": {"a": "b", "n": "5"}}
    assert await cloud.get(f"{path}/n") == {"n": "5"}
    changed = await cloud("PUT", f"{path}/a", {"a": "c"})
    assert (changed.status, changed.json) == (200, {"a": "c"})
    shown = (await cloud.get("/flavors/f", version=61))["flavor"]["extra_specs"]
    assert shown == {"a": "c", "n": "5"}
    assert (await cloud("DELETE", f"{path}/a")).status == 200
    for method in ("GET", "DELETE"):
        gone = await cloud(method, f"{path}/a")
        assert (gone.status, gone.message) == (404, "Flavor f has no extra specs with key a.")
    assert (await cloud("GET", "/flavors/none/os-extra_specs")).status == 404
    assert (await cloud("POST", "/flavors/none/os-extra_specs", {"extra_specs": {"a": "b"}})).status == 404


@pytest.mark.capability("FL-7")
async def test_bad_extra_specs_are_refused(cloud: SmallCloud) -> None:
    await make(cloud)
    path = "/flavors/f/os-extra_specs"
    for specs in (
        None,
        [],
        {"ä": "b"},
        {"": "b"},
        {"a/b": "c"},
        {"x" * 256: "b"},
        {"a": "x" * 256},
        {"a": None},
        {"a": True},
        {"a": {}},
        {"a": "\u0000"},
    ):
        reply = await cloud("POST", path, {"extra_specs": specs})
        assert reply.status == 400, specs
    assert (await cloud("POST", path, raw=b'{"extra_specs": {"a": 1e999}}')).status == 400
    assert (await cloud("POST", path, raw=b'{"extra_specs": {"a": NaN}}')).status == 400
    for body in ({}, {"a": "1", "b": "2"}, {"b": "1"}, {"a": None}):
        assert (await cloud("PUT", f"{path}/a", body)).status == 400, body
    assert await cloud.get(path) == {"extra_specs": {}}


async def test_known_namespaces_are_checked_from_2_86_on(cloud: SmallCloud) -> None:
    await make(cloud)
    path = "/flavors/f/os-extra_specs"
    for specs in ({"hw:cpu_policy": "sharrred"}, {"hw:nonsense": "1"}):
        (key,) = specs
        assert (await cloud("POST", path, {"extra_specs": specs}, version=85)).status == 200
        assert (await cloud("POST", path, {"extra_specs": specs}, version=86)).status == 400
        assert (await cloud("PUT", f"{path}/{key}", specs, version=86)).status == 400
    good = {"hw:cpu_policy": "dedicated", "hw:numa_mem.0": 512, "acme:anything": "goes", "plain": "too"}
    assert (await cloud("POST", path, {"extra_specs": good}, version=86)).status == 200
