"""Version documents, the catalog, and what may be added to it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.api.identity.face import ROOT, Face, fresh, in_project, is_fault

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.mark.parametrize("prefix", ["", "/identity"])
async def test_version_documents_need_no_token(face: Face, prefix: str) -> None:
    reply = await face.call("GET", prefix + "/", None, "")
    (version,) = reply.expect(300).json["versions"]["values"]
    assert version["links"] == [{"rel": "self", "href": f"{ROOT}{prefix}/v3/"}]
    assert (version["id"], version["status"]) == ("v3.14", "stable")
    for path in ("/v3", "/v3/"):
        for method in ("GET", "HEAD"):
            reply = await face.call(method, prefix + path, None, "")
            assert reply.expect(200).headers["vary"] == "X-Auth-Token"
        assert reply.headers["x-openstack-request-id"].startswith("req-")
        assert (await face.call("GET", prefix + path, None, "")).json == {"version": version}


@pytest.mark.parametrize("prefix", ["", "/identity"])
async def test_the_catalog_of_a_token(face: Face, prefix: str) -> None:
    found = await face.get(prefix + "/v3/auth/catalog")
    assert found["links"] == {"self": f"{ROOT}{prefix}/v3/auth/catalog"}
    urls = {each["type"]: {one["url"] for one in each["endpoints"]} for each in found["catalog"]}
    assert urls["compute"] == {"http://cloud.example:8774/v2.1"}
    assert urls["network"] == {"http://cloud.example:9696"}
    user = await face.user()
    token = (await face.authenticate(user, in_project(user["project_id"]))).json["token"]
    assert token["catalog"] == found["catalog"]


async def test_what_there_is_to_read(face: Face) -> None:
    services = (await face.get("/v3/services"))["services"]
    endpoints = (await face.get("/v3/endpoints"))["endpoints"]
    assert [each["id"] for each in (await face.get("/v3/regions"))["regions"]] == ["RegionOne"]
    nova = next(each for each in services if each["type"] == "compute")
    assert (await face.get("/v3/services?type=compute"))["services"] == [nova]
    assert (await face.get("/v3/services?name=nova&type=image"))["services"] == []
    assert await face.get(f"/v3/services/{nova['id']}") == {"service": nova}
    found = (await face.get(f"/v3/endpoints?service_id={nova['id']}&interface=public"))["endpoints"]
    assert len(found) == 1 and found[0] in endpoints
    assert await face.get(f"/v3/endpoints/{found[0]['id']}") == {"endpoint": found[0]}
    assert (await face.get("/v3/endpoints?region_id=other"))["endpoints"] == []
    for kind in ("regions", "services", "endpoints"):
        is_fault(await face.call("GET", f"/v3/{kind}/no"), 404)


async def test_the_configuration_stays(face: Face) -> None:
    for kind in ("region", "service", "endpoint"):
        id = (await face.get(f"/v3/{kind}s"))[f"{kind}s"][0]["id"]
        is_fault(await face.call("PATCH", f"/v3/{kind}s/{id}", {kind: {}}), 403)
        is_fault(await face.call("DELETE", f"/v3/{kind}s/{id}"), 403)
    is_fault(await face.call("PUT", "/v3/regions/RegionOne", {"region": {}}), 409)


async def catalog(face: Face, token: str | None = None) -> dict[str, Any]:
    found = (await face.get("/v3/auth/catalog", token))["catalog"]
    return {each["name"]: each for each in found}


async def test_a_service_of_another_house_is_added_and_goes_again(face: Face) -> None:
    name = fresh("cinder")
    service = await face.make("service", type="volumev3", name=name, description="d")
    where = f"/v3/services/{service['id']}"
    assert (await face.get(where))["service"] == service
    assert (await catalog(face))[name]["endpoints"] == []
    url = "http://volumes:8776/v3/$(project_id)s"
    endpoint = await face.call(
        "POST",
        "/v3/endpoints",
        {
            "endpoint": {
                "service_id": service["id"],
                "interface": "public",
                "url": url,
                "region_id": "RegionOne",
            }
        },
    )
    made = endpoint.expect(201).json["endpoint"]
    assert (made["url"], made["region"], made["enabled"]) == (url, "RegionOne", True)
    user = await face.user()
    token = await face.login(user, in_project(user["project_id"]))
    assert (await catalog(face, token))[name]["endpoints"] == [
        {
            "id": made["id"],
            "interface": "public",
            "region": "RegionOne",
            "region_id": "RegionOne",
            "url": f"http://volumes:8776/v3/{user['project_id']}",
        }
    ]
    system = await face.authenticate(
        {"id": face.day.users["admin"], "password": "correct horse"}, {"system": {"all": True}}
    )
    shown = {each["name"]: each["endpoints"] for each in system.expect(201).json["token"]["catalog"]}
    assert shown[name] == [], "there is no project to fill in"
    path = f"/v3/endpoints/{made['id']}"
    changed = await face.call("PATCH", path, {"endpoint": {"url": "https://new/", "interface": "admin"}})
    assert changed.expect(200).json["endpoint"]["url"] == "https://new/"
    assert (await catalog(face))[name]["endpoints"][0]["interface"] == "admin"
    for kind, id in (("endpoint", made["id"]), ("service", service["id"])):
        (await face.call("PATCH", f"/v3/{kind}s/{id}", {kind: {"enabled": False}})).expect(200)
        shown_now = (await catalog(face)).get(name, {}).get("endpoints")
        assert shown_now == ([] if kind == "endpoint" else None)
    (await face.call("DELETE", where)).expect(204)
    is_fault(await face.call("GET", where), 404)
    is_fault(await face.call("GET", path), 404)


async def test_regions_and_endpoints_of_ours_in_others(face: Face) -> None:
    region = fresh("Region")
    (await face.call("POST", "/v3/regions", {"region": {"id": region, "description": "far"}})).expect(201)
    below = (await face.call("POST", "/v3/regions", {"region": {"parent_region_id": region}})).expect(201)
    id = below.json["region"]["id"]
    assert (await face.get(f"/v3/regions?parent_region_id={region}"))["regions"] == [below.json["region"]]
    nova = next(each for each in (await face.get("/v3/services"))["services"] if each["type"] == "compute")
    endpoint = {
        "service_id": nova["id"],
        "interface": "public",
        "url": "http://far/v2.1",
        "region_id": region,
    }
    made = (await face.call("POST", "/v3/endpoints", {"endpoint": endpoint})).expect(201).json["endpoint"]
    assert made in (await face.get(f"/v3/endpoints?region_id={region}"))["endpoints"]
    assert {each["region"] for each in (await catalog(face))["nova"]["endpoints"]} >= {"RegionOne", region}
    is_fault(await face.call("DELETE", f"/v3/regions/{region}"), 403)
    (await face.call("DELETE", f"/v3/endpoints/{made['id']}")).expect(204)
    is_fault(await face.call("DELETE", f"/v3/regions/{region}"), 403)
    is_fault(await face.call("PATCH", f"/v3/regions/{region}", {"region": {"parent_region_id": id}}), 400)
    (await face.call("PATCH", f"/v3/regions/{id}", {"region": {"parent_region_id": None}})).expect(200)
    (await face.call("DELETE", f"/v3/regions/{region}")).expect(204)
    put = await face.call("PUT", f"/v3/regions/{region}", {"region": {"description": "again"}})
    assert put.expect(201).json["region"]["id"] == region
    is_fault(await face.call("POST", "/v3/regions", {"region": {"id": region}}), 409)
    # the old way of naming a region makes it, as in Keystone
    old = {"service_id": nova["id"], "interface": "public", "url": "http://x", "region": fresh("Old")}
    made = (await face.call("POST", "/v3/endpoints", {"endpoint": old})).expect(201).json["endpoint"]
    assert (await face.get(f"/v3/regions/{made['region_id']}"))["region"]["parent_region_id"] is None
    (await face.call("DELETE", f"/v3/endpoints/{made['id']}")).expect(204)


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("service", {}),
        ("service", {"type": ""}),
        ("service", {"type": 5}),
        ("service", {"type": "x", "name": "x" * 256}),
        ("service", {"type": "x", "enabled": "yes"}),
        ("region", {"id": "x" * 256}),
        ("region", {"id": "a/b"}),
        ("region", {"id": 5}),
        ("region", {"description": 5}),
        ("endpoint", {}),
        ("endpoint", {"url": "http://x", "interface": "public"}),
        ("endpoint", {"service_id": "no", "url": "http://x", "interface": "public"}),
        ("endpoint", {"url": "x"}),
        ("endpoint", {"url": "http://x y"}),
        ("endpoint", {"url": "javascript:alert(1)"}),
        ("endpoint", {"url": "http://x/$(password)s"}),
        ("endpoint", {"url": "http://" + "x" * 4096}),
        ("endpoint", {"interface": "secret"}),
        ("endpoint", {"region_id": "nowhere"}),
        ("endpoint", {"region": ""}),
    ],
)
async def test_what_cannot_be_in_a_catalog(face: Face, kind: str, values: dict[str, Any]) -> None:
    if kind == "endpoint" and values and "service_id" not in values and len(values) == 1:
        nova = (await face.get("/v3/services"))["services"][0]["id"]
        values = {"service_id": nova, "url": "http://x", "interface": "public", **values}
    before = await face.get(f"/v3/{kind}s")
    is_fault(await face.call("POST", f"/v3/{kind}s", {kind: values}), 400)
    assert await face.get(f"/v3/{kind}s") == before
    is_fault(await face.call("POST", "/v3/regions", {"region": {"parent_region_id": "no"}}), 404)
