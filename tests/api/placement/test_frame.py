"""Microversions, who may, what is not there, and what nobody means well with."""

from __future__ import annotations

import json
import string
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kilonova.db import placement as bookings
from kilonova.services.placement import api
from kilonova.services.placement.call import MAX
from tests.api.placement.face import Face, is_fault, new

pytestmark = pytest.mark.asyncio(loop_scope="module")
fuzz = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=120)

ROUTES = sorted((method, path) for path, methods in api.ROUTES.items() for method in methods)
WHERE = {"{uuid}": new(), "{consumer}": new(), "{resource_class}": "VCPU", "{name}": "CUSTOM_X"}


def filled(path: str) -> str:
    for name, value in WHERE.items():
        path = path.replace(name, value)
    return path


# ---- microversions ----


async def test_the_version_document_needs_no_token(face: Face) -> None:
    for version, said in ((None, "1.0"), ("latest", f"1.{MAX}"), ("1.7", "1.7")):
        reply = (await face.call("GET", "/", v=version, who="")).expect(200)
        (found,) = reply.json["versions"]
        assert (found["min_version"], found["max_version"], found["status"]) == ("1.0", "1.39", "CURRENT")
        assert (found["id"], found["links"]) == ("v1.0", [{"rel": "self", "href": ""}])
        assert reply.headers["openstack-api-version"] == f"placement {said}"
        assert reply.headers["vary"] == "openstack-api-version"
    (await face.call("HEAD", "/", who="")).expect(200)
    is_fault(await face.call("POST", "/", {}, who=""), 405)


@pytest.mark.parametrize("version", ["0.5", "1.40", "2.0", "1.999", "99.1", "1.01"])
async def test_versions_that_are_not_here(face: Face, version: str) -> None:
    reply = await face.call("GET", "/resource_providers", v=version)
    assert version in is_fault(reply, 406)
    (error,) = reply.json["errors"]
    assert (error["min_version"], error["max_version"]) == ("1.0", "1.39")


@pytest.mark.parametrize(
    "version", ["pony.horse", "1.2.3", "1", "", "1.x", "1.\u0663", "-1.0", "1. 5", "9" * 9999]
)
async def test_versions_that_are_none(face: Face, version: str) -> None:
    reply = await face.call(
        "GET", "/", v=None, openstack_api_version=f"placement {version}".encode().decode("latin-1")
    )
    is_fault(reply, 400)


async def test_the_header_may_speak_of_other_services(face: Face) -> None:
    for header, version in (
        ("compute 2.1", "1.0"),
        ("compute 2.1, placement 1.5", "1.5"),
        ("placement 1.6,compute 2.1", "1.6"),
        ("PLACEMENT 1.7", "1.7"),
        ("nonsense", "1.0"),
    ):
        reply = await face.call("GET", "/resource_classes", v=None, openstack_api_version=header)
        assert reply.headers["openstack-api-version"] == f"placement {version}"
        assert reply.status == (404 if version == "1.0" else 200)


async def test_headers_for_caches_since_1_15(face: Face) -> None:
    id = await face.provider(VCPU=1)
    (await face.call("PUT", "/traits/CUSTOM_CACHED")).expect(201)
    root = f"/resource_providers/{id}"
    for path in (
        "/resource_providers",
        root,
        f"{root}/inventories",
        f"{root}/usages",
        f"{root}/traits",
        "/traits",
    ):
        for v in (14, 15):
            reply = await face.call("GET", path, v=v)
            assert (reply.expect(200).headers.get("cache-control") == "no-cache") is (v == 15)
            assert ("last-modified" in reply.headers) is (v == 15)
    for method, v in (("GET", 14), ("GET", 15), ("PUT", 14), ("PUT", 15)):
        reply = (await face.call(method, "/traits/CUSTOM_CACHED", v=v)).expect(204)
        assert ("last-modified" in reply.headers) is (v == 15)


async def test_codes_of_errors_since_1_23(face: Face) -> None:
    for v in (22, 23):
        reply = await face.call("GET", f"/resource_providers/{new()}", v=v)
        is_fault(reply, 404)
        assert ("code" in reply.json["errors"][0]) is (v == 23)


# ---- who may ----


async def test_nothing_without_a_token(face: Face) -> None:
    for method, path in ROUTES:
        for who in ("", "forged"):
            is_fault(await face.call(method, filled(path), {}, who=who), 401)


@pytest.mark.parametrize("who", ["manager", "member", "reader", "nobody"])
async def test_it_is_for_administrators_and_services(face: Face, who: str) -> None:
    for method, path in ROUTES:
        if path != "/usages":
            is_fault(await face.call(method, filled(path), {}, who=who), 403)
    is_fault(await face.call("GET", "/usages?project_id=other", who=who), 403)
    own = await face.call("GET", f"/usages?project_id=project-{who}", who=who)
    own.expect(403 if who == "nobody" else 200)


async def test_a_service_may_what_an_administrator_may(face: Face) -> None:
    id = (
        (await face.call("POST", "/resource_providers", {"name": "by nova"}, who="service"))
        .expect(200)
        .json["uuid"]
    )
    (await face.call("DELETE", f"/resource_providers/{id}", who="service")).expect(204)


# ---- what is not there ----


async def test_what_is_not_served_says_so(face: Face) -> None:
    for method, path in (
        ("GET", "/moo"),
        ("GET", "/resource_providers/x/y"),
        ("GET", "/resource_provider"),
        ("GET", "/traits/a/b"),
    ):
        assert "not be found" in is_fault(await face.call(method, path, {}), 404)
    for path in ("/%00", "/traits/%00", f"/resource_providers/{new()}%00"):
        is_fault(await face.call("GET", path), 404)
    for method, path in (("DELETE", "/resource_providers"), ("PATCH", "/traits"), ("PUT", "/usages")):
        reply = await face.call(method, path, {})
        is_fault(reply, 405)
        assert "GET" in reply.headers["allow"]


async def test_a_slash_at_the_end_is_nothing(face: Face) -> None:
    (await face.call("GET", "/resource_providers/")).expect(200)


async def test_bodies_must_say_that_they_are_json(face: Face) -> None:
    for kind in ("text/plain", "application/xml", "", "application/jsonx"):
        reply = await face.call("POST", "/resource_classes", b'{"name":"CUSTOM_Y"}', content_type=kind)
        is_fault(reply, 415)
        is_fault(await face.call("POST", "/resource_classes", b"{}", v=1, content_type=kind), 404)
    for kind in ("application/json; charset=utf-8", "Application/JSON"):
        reply = await face.call("POST", "/resource_classes", b'{"name":"x"}', content_type=kind)
        is_fault(reply, 400)
    for body in (
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"name":"x","name":"x"}',
        b'{"name":"\xff"}',
        b'{"name":"\\ud800"}',
    ):
        is_fault(await face.call("POST", "/resource_classes", body, content_type="application/json"), 400)
    large = b'{"name":"' + b"x" * 120_000 + b'"}'
    is_fault(await face.call("POST", "/resource_classes", large), 413)


_names = st.sampled_from(
    [
        *("name", "uuid", "parent_provider_uuid", "resource_provider_generation", "inventories", "traits"),
        *("aggregates", "resource_class", "total", "reserved", "allocation_ratio", "min_unit", "allocations"),
        *("project_id", "user_id", "consumer_generation", "consumer_type", "mappings", "resources"),
    ]
)
_known = st.sampled_from([*WHERE.values(), "MEMORY_MB", "DISK_GB", "INSTANCE", "p"])
_leaves = (
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8) | _known
)
_values = st.recursive(
    _leaves,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(_names | _known | st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=10,
)


@given(
    route=st.sampled_from([each for each in ROUTES if each[0] in ("PUT", "POST")]),
    body=st.dictionaries(_names | _known, _values, max_size=6) | _values,
    v=st.integers(0, MAX),
)
@fuzz
async def test_no_body_breaks_it(face: Face, route: tuple[str, str], body: Any, v: int) -> None:
    method, path = route
    there = {"uuid": WHERE["{uuid}"], "name": "there"}
    await face.call("POST", "/resource_providers", there)  # or it was there before
    reply = await face.call(method, filled(path), json.dumps(body).encode("utf-8", "surrogatepass"), v=v)
    assert reply.status < 500, (route, body, reply.content)
    assert await face.placement.db.read(bookings.audit) == []


@given(
    path=st.sampled_from(
        ["/resource_providers", "/traits", "/usages", "/resource_classes", *["/allocation_candidates"] * 3]
    ),
    query=st.lists(
        st.tuples(
            st.sampled_from(
                [
                    *("name", "uuid", "in_tree", "member_of", "resources", "required", "associated"),
                    *("project_id", "resources1", "required1", "resources_A", "member_of_A", "in_tree_A"),
                    *("limit", "group_policy", "same_subtree", "root_required", "required_A"),
                ]
            )
            | st.text(string.printable, max_size=5),
            st.text(max_size=8)
            | st.sampled_from(
                [
                    *("in:", "!in:", "!", "VCPU:1", "VCPU:9" + "9" * 30, "in:A,B", "%00", "startswith:"),
                    *("1", "_A", "1,_A", "none", "isolate", "HW_CPU_X86_AVX", "!HW_CPU_X86_AVX", new()),
                ]
            ),
        ),
        max_size=5,
    ),
    v=st.integers(0, MAX),
)
@fuzz
async def test_no_query_breaks_it(face: Face, path: str, query: list[tuple[str, str]], v: int) -> None:
    text = "&".join(f"{quote(name)}={quote(value, safe='%')}" for name, value in query)
    reply = await face.call("GET", f"{path}?{text}", v=v)
    assert reply.status in (200, 400, 404), (path, query, reply.content)


@given(
    path=st.text(string.printable + "\0\u0130", max_size=25),
    method=st.sampled_from(["GET", "PUT", "POST", "DELETE", "X"]),
)
@fuzz
async def test_no_path_breaks_it(face: Face, path: str, method: str) -> None:
    reply = await face.call(method, "/" + quote(path), {"x": {}})
    assert 200 <= reply.status < 500
