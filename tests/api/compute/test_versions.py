"""How clients find out what is served, and how requests say which microversion they are for."""

from __future__ import annotations

from typing import Any

import pytest

from kilonova.api import microversion
from kilonova.api.app import app
from kilonova.api.policy import Policy
from kilonova.api.resources import all_routes
from kilonova.operations.cloud import Cloud
from tests.api.compute.asgi import Api, Reply, Tokens
from tests.api.compute.conftest import PROJECT

MODERN, LEGACY = "openstack-api-version", "x-openstack-nova-api-version"
ROOT = "http://cloud.example:8774"
V20 = {
    "id": "v2.0",
    "status": "SUPPORTED",
    "version": "",
    "min_version": "",
    "updated": "2011-01-21T11:33:21Z",
}
V21 = {
    "id": "v2.1",
    "status": "CURRENT",
    "version": "2.104",
    "min_version": "2.1",
    "updated": "2013-07-23T11:33:21Z",
}


def media_type(number: str) -> dict[str, str]:
    return {"base": "application/json", "type": f"application/vnd.openstack.compute+json;version={number}"}


async def get(api: Api, path: str, **how: Any) -> Reply:
    return await api("GET", path, root=True, who="", **how)


async def test_the_root_lists_versions_to_anybody(api: Api) -> None:
    reply = await get(api, "/")
    assert reply.status == 200
    assert MODERN not in reply.headers and LEGACY not in reply.headers
    assert reply.json == {
        "versions": [
            {**V20, "links": [{"rel": "self", "href": f"{ROOT}/v2/"}]},
            {**V21, "links": [{"rel": "self", "href": f"{ROOT}/v2.1/"}]},
        ]
    }
    assert (await api("HEAD", "/", root=True, who="")).status == 200
    assert (await api("POST", "/", root=True, who="")).status == 404


async def test_each_version_describes_itself(api: Api) -> None:
    for version, paths, number in ((V20, ("/v2", "/v2/"), "2"), (V21, ("/v2.1", "/v2.1/"), "2.1")):
        for path in paths:
            reply = await get(api, path)
            assert reply.status == 200
            described = {"rel": "describedby", "type": "text/html", "href": "http://docs.openstack.org/"}
            assert reply.json == {
                "version": {
                    **version,
                    "links": [{"rel": "self", "href": f"{ROOT}{paths[1]}"}, described],
                    "media-types": [media_type(number)],
                }
            }
        below = await api("GET", f"/versions/{version['id']}")
        assert (below.status, below.json) == (200, reply.json)
    assert (await api("GET", "/versions/v3.0")).status == 404
    assert (await api("GET", "/versions/v2.1", who="")).status == 401


async def test_any_other_path_is_offered_below_each_version(api: Api) -> None:
    reply = await get(api, "/v3/servers")
    assert reply.status == 300
    assert reply.json == {
        "choices": [
            {
                "id": version["id"],
                "status": version["status"],
                "links": [{"rel": "self", "href": f"{ROOT}/{base}/v3/servers"}],
                "media-types": [media_type(number)],
            }
            for version, base, number in ((V20, "v2", "2"), (V21, "v2.1", "2.1"))
        ]
    }
    assert (await get(api, "/ü")).status == 300
    assert (await api("DELETE", "/v3/servers", root=True, who="")).status == 404


async def test_links_begin_with_the_operators_prefix(cloud: Cloud, tokens: Tokens) -> None:
    cloud.settings.options["api"]["compute_link_prefix"] = "https://api.example/compute/"
    prefixed = Api(app(cloud, tokens, Policy()))
    (_, current) = (await get(prefixed, "/")).json["versions"]
    assert current["links"][0]["href"] == "https://api.example/compute/v2.1/"
    (shown, bookmark) = (await prefixed("GET", "/flavors/1")).json["flavor"]["links"]
    assert shown["href"] == "https://api.example/compute/v2.1/flavors/1"
    assert bookmark["href"] == "https://api.example/compute/flavors/1"


async def test_every_advertised_version_is_taken_and_no_other(api: Api) -> None:
    """The range that is advertised is the one of the routes and of the negotiation."""
    lowest, highest = (int(V21[name].partition(".")[2]) for name in ("min_version", "version"))
    assert (lowest, highest) == (microversion.MIN, microversion.MAX)
    assert all(lowest <= route.since <= route.until <= highest for route in all_routes())
    for minor in range(lowest, highest + 1):
        reply = await api("GET", "/flavors/1", v=minor)
        assert (reply.status, reply.headers[MODERN]) == (200, f"compute 2.{minor}")
        assert reply.headers[LEGACY] == f"2.{minor}"
    for minor in (lowest - 1, highest + 1):
        refused = await api("GET", "/flavors/1", v=minor)
        assert (refused.status, refused.fault) == (
            406,
            f"Version 2.{minor} is not supported by the API. Minimum is 2.1 and maximum is 2.104.",
        )
        assert list(refused.json) == ["computeFault"]
        assert MODERN not in refused.headers and LEGACY not in refused.headers


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, "2.1"),
        ({MODERN: "compute 2.53"}, "2.53"),
        ({MODERN: "Compute 2.53"}, "2.53"),
        ({MODERN: "  compute   2.53 "}, "2.53"),
        ({MODERN: "nova 2.53"}, "2.53"),
        ({MODERN: "identity 3.1, compute 2.53,volume 3.9"}, "2.53"),
        ({MODERN: "volume 3.9"}, "2.1"),
        ({MODERN: "2.53"}, "2.1"),  # of no service
        ({MODERN: "compute latest"}, "2.104"),
        ({LEGACY: "2.53"}, "2.53"),
        ({LEGACY: "latest"}, "2.104"),
        ({LEGACY: "2.30", MODERN: "compute 2.53"}, "2.53"),
        ({LEGACY: "nonsense", MODERN: "compute 2.53"}, "2.53"),
        ({LEGACY: "2.30", MODERN: "volume 3.9"}, "2.30"),
    ],
    ids=str,
)
async def test_headers_say_the_version(api: Api, headers: dict[str, str], expected: str) -> None:
    reply = await api("GET", "/flavors/1", headers=headers)
    assert reply.status == 200
    assert (reply.headers[MODERN], reply.headers[LEGACY]) == (f"compute {expected}", expected)
    assert reply.headers["vary"] == "OpenStack-API-Version, X-OpenStack-Nova-API-Version"
    assert reply.headers["x-openstack-request-id"] == reply.headers["x-compute-request-id"]


@pytest.mark.parametrize(
    ("wanted", "status"),
    [
        ("2.0", 406),
        ("2.105", 406),
        ("3.1", 406),
        ("1.1", 406),
        ("2.99999999999999999999", 406),
        ("99999999999999999999.1", 406),
        ("", 400),
        ("2", 400),
        ("2.", 400),
        (".1", 400),
        ("2.01", 400),
        ("02.1", 400),
        ("2.-1", 400),
        ("2.1.1", 400),
        ("v2.1", 400),
        ("2.1\u00b2", 400),
        ("two", 400),
        ("2.latest", 400),
        ("LATEST", 400),
    ],
)
async def test_bad_versions_are_refused(api: Api, wanted: str, status: int) -> None:
    for headers in ({MODERN: f"compute {wanted}"}, {LEGACY: wanted}):
        reply = await api("GET", "/flavors/1", headers=headers)
        assert (reply.status, bool(reply.fault)) == (status, True)
        assert MODERN not in reply.headers


async def test_who_asks_is_looked_at_first(api: Api) -> None:
    reply = await api("GET", "/flavors/1", v="nonsense", who="")
    assert reply.status == 401
    assert reply.headers["www-authenticate"] == 'Keystone uri="http://127.0.0.1:5000"'


async def test_faults_say_the_version_too(api: Api) -> None:
    for method, path, body, status in (
        ("GET", "/flavors/none", None, 404),
        ("GET", "/nothing/at/all", None, 404),
        ("GET", "/flavors?x=1", None, 400),
        ("POST", "/flavors", {}, 400),
    ):
        reply = await api(method, path, body, v=90)
        assert (reply.status, bool(reply.fault)) == (status, True)
        if path != "/nothing/at/all":
            assert reply.headers[MODERN] == "compute 2.90"


async def test_the_old_endpoint_knows_no_microversions(api: Api) -> None:
    old = Api(api.app, base="/v2", who="admin")
    reply = await old("GET", "/flavors/1", v=90)
    assert reply.status == 200
    assert MODERN not in reply.headers and LEGACY not in reply.headers
    assert set(reply.json["flavor"]) == set((await api("GET", "/flavors/1", v=1)).json["flavor"])
    (link, _) = reply.json["flavor"]["links"]
    assert link["href"] == f"{ROOT}/v2/flavors/1"
    body = {"flavor": {"name": "n", "id": "n", "ram": 1, "vcpus": 1, "disk": 0, "unknown": 1}, "more": 2}
    assert (await old("POST", "/flavors", body)).status == 200  # unknown fields were let pass then
    assert (await api("POST", "/flavors", body, who="admin")).status == 400
    wrong = {"flavor": {"name": "m", "ram": "many", "vcpus": 1, "disk": 0}}
    assert (await old("POST", "/flavors", wrong)).status == 400
    assert (await old("GET", "/flavors/1", v="nonsense")).status == 200


async def test_the_project_may_stand_in_the_address(api: Api) -> None:
    for version in (1, 17, 18, 104):
        reply = await api("GET", f"/{PROJECT}/flavors/1", v=version)
        assert reply.status == 200
        (link, bookmark) = reply.json["flavor"]["links"]
        assert link["href"] == f"{ROOT}/v2.1/{PROJECT}/flavors/1"
        assert bookmark["href"] == f"{ROOT}/{PROJECT}/flavors/1"
    wrong = await api("GET", "/another/flavors/1")
    assert (wrong.status, "doesn't match" in wrong.fault) == (400, True)
    for path in (f"/{PROJECT}", f"/{PROJECT}/", f"/{PROJECT}/nothing", "/another", "/another/nothing"):
        assert (await api("GET", path)).status == 404, path
