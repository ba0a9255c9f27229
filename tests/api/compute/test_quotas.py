"""Quota sets and quota classes over HTTP: what is set, for whom it holds, and what may be set at all."""

from __future__ import annotations

from typing import Any

import pytest

from tests.api.compute.small_cloud import MEMBER, OTHER, READER, SmallCloud, bands, check_keys, cloud

__all__ = ["cloud"]  # a fixture

PATH = "/os-quota-sets"
CLASS = "/os-quota-class-sets"
DEFAULTS = {
    "instances": 10,
    "cores": 20,
    "ram": 51200,
    "metadata_items": 128,
    "key_pairs": 100,
    "server_groups": 10,
    "server_group_members": 10,
}
FILES = {"injected_files": 5, "injected_file_content_bytes": 10240, "injected_file_path_bytes": 255}
NETWORK = {"fixed_ips": -1, "floating_ips": -1, "security_groups": -1, "security_group_rules": -1}
BAD_LIMITS = (-2, 2**31, 10**30, 1.5, True, None, "", "x", "1.0", "\u0661", [], {})


async def put(cloud: SmallCloud, path: str, version: int = 57, **limits: Any) -> Any:
    """The quota set after a change."""
    reply = await cloud("PUT", f"{PATH}/{path}", {"quota_set": limits}, version=version)
    assert reply.status == 200, reply.raw
    return reply.json["quota_set"]


async def shown(cloud: SmallCloud, path: str, version: int = 57, **how: Any) -> Any:
    return (await cloud.get(f"{PATH}/{path}", version=version, **how))["quota_set"]


async def test_each_microversion_has_its_own_keys(cloud: SmallCloud) -> None:
    for version in bands("os-quota-sets.show", "os-quota-class-sets.show"):
        for path, route in (("", "show"), ("/detail", "detail"), ("/defaults", "defaults")):
            check_keys(
                f"os-quota-sets.{route}", version, await cloud.get(f"{PATH}/p1{path}", version=version)
            )
        changed = await cloud("PUT", f"{PATH}/p1", {"quota_set": {}}, version=version)
        check_keys("os-quota-sets.update", version, changed.json)
        check_keys("os-quota-class-sets.show", version, await cloud.get(f"{CLASS}/default", version=version))
        changed = await cloud("PUT", f"{CLASS}/default", {"quota_class_set": {}}, version=version)
        check_keys("os-quota-class-sets.update", version, changed.json)


async def test_without_changes_the_options_hold(cloud: SmallCloud) -> None:
    expected = {"id": "p1", **DEFAULTS, **FILES, **NETWORK}
    for path in ("p1", "p1/defaults", "p1?user_id=u-member"):
        assert await shown(cloud, path, 35) == expected
    assert await shown(cloud, "p1") == {"id": "p1", **DEFAULTS}
    cloud.option("injected_file_path_length", 99, "quota")
    assert (await shown(cloud, "p1", 56))["injected_file_path_bytes"] == 99
    assert (await shown(cloud, "p1/detail"))["cores"] == {"limit": 20, "in_use": 0, "reserved": 0}


async def test_what_is_set_holds_for_that_project(cloud: SmallCloud) -> None:
    changed = await put(cloud, "p1", instances=3, ram="1024", cores=-1)
    assert changed == {**DEFAULTS, "instances": 3, "ram": 1024, "cores": -1}
    assert await shown(cloud, "p1", token=READER) == {"id": "p1", **changed}
    assert await shown(cloud, "p1/defaults") == {"id": "p1", **DEFAULTS}
    assert await shown(cloud, "p2") == {"id": "p2", **DEFAULTS}
    reply = await cloud("DELETE", f"{PATH}/p1")
    assert (reply.status, reply.raw) == (202, b"")
    assert await shown(cloud, "p1") == {"id": "p1", **DEFAULTS}
    assert (await cloud("DELETE", f"{PATH}/p1")).status == 202


@pytest.mark.capability("UT-11")
async def test_what_is_set_holds_for_that_user(cloud: SmallCloud) -> None:
    await put(cloud, "p1", instances=5)
    changed = await put(cloud, "p1?user_id=u-member", instances=2, key_pairs=1)
    assert (changed["instances"], changed["key_pairs"]) == (2, 1)
    assert (await shown(cloud, "p1?user_id=u-member"))["instances"] == 2
    assert (await shown(cloud, "p1?user_id=u-reader"))["instances"] == 5
    assert (await shown(cloud, "p2?user_id=u-member"))["instances"] == 10
    assert (await shown(cloud, "p1"))["instances"] == 5
    assert (await cloud("DELETE", f"{PATH}/p1?user_id=u-member")).status == 202
    assert (await shown(cloud, "p1?user_id=u-member"))["instances"] == 5
    await put(cloud, "p1?user_id=u-member", instances=1)
    assert (await cloud("DELETE", f"{PATH}/p1")).status == 202  # its users' limits go with it
    assert (await shown(cloud, "p1?user_id=u-member"))["instances"] == 10


async def test_details_count_what_is_in_use(cloud: SmallCloud) -> None:
    first = await cloud.server()
    await cloud.server(user="u-reader")
    body = {"keypair": {"name": "k"}}
    assert (await cloud("POST", "/os-keypairs", body, token=MEMBER)).status == 200

    async def used(path: str) -> list[int]:
        found = await shown(cloud, path, token=MEMBER)
        assert found["metadata_items"]["in_use"] == 0
        return [found[name]["in_use"] for name in ("instances", "cores", "ram", "key_pairs")]

    assert await used("p1/detail") == [2, 4, 1024, 0]  # key pairs are their user's, not the project's
    assert await used("p1/detail?user_id=u-member") == [1, 2, 512, 1]
    await cloud.gone(first)
    assert await used("p1/detail?user_id=u-member") == [0, 0, 0, 1]
    assert await used("p1/detail") == [1, 2, 512, 0]


async def test_limits_are_not_set_below_what_is_in_use_unless_forced(cloud: SmallCloud) -> None:
    await cloud.server()
    await cloud.server(user="u-reader")
    for path, limits, status in (
        ("p1", {"instances": 1}, 400),
        ("p1", {"instances": 0, "force": False}, 400),
        ("p1", {"cores": 10, "ram": 1023}, 400),
        ("p1", {"instances": 2, "cores": 4, "ram": 1024}, 200),
        ("p1?user_id=u-member", {"instances": 0}, 400),
        ("p1?user_id=u-member", {"instances": 1}, 200),
        ("p1?user_id=u-member", {"instances": 3}, 400),  # more than its project
        ("p1?user_id=u-member", {"instances": -1}, 400),
        ("p1?user_id=u-member", {"instances": 3, "force": "yes"}, 200),
        ("p1", {"instances": 0, "force": True}, 200),
    ):
        reply = await cloud("PUT", f"{PATH}/{path}", {"quota_set": limits}, version=57)
        assert reply.status == status, (path, limits, reply.raw)
    refused = await cloud("PUT", f"{PATH}/p1", {"quota_set": {"cores": 3}}, version=57)
    assert refused.message == (
        "Quota limit 3 for cores must be greater than or equal to already used and reserved 4."
    )
    found = await shown(cloud, "p1")
    assert (found["instances"], found["cores"], found["ram"]) == (0, 4, 1024)


async def test_fields_are_refused_outside_of_their_microversions(cloud: SmallCloud) -> None:
    for name, last in (*((name, 56) for name in FILES), *((name, 35) for name in NETWORK)):
        body = {"quota_set": {name: 7}}
        reply = await cloud("PUT", f"{PATH}/p1", body, version=last)
        assert (reply.status, reply.json["quota_set"][name]) == (200, 7)
        assert (await cloud("PUT", f"{PATH}/p1", body, version=last + 1)).status == 400
    for name, last in (*((name, 56) for name in FILES), *((name, 49) for name in NETWORK)):
        body = {"quota_class_set": {name: 8}}
        reply = await cloud("PUT", f"{CLASS}/default", body, version=last)
        assert (reply.status, reply.json["quota_class_set"][name]) == (200, 8)
        assert (await cloud("PUT", f"{CLASS}/default", body, version=last + 1)).status == 400


async def test_bad_limits_are_refused(cloud: SmallCloud) -> None:
    for limit in BAD_LIMITS:
        for path, key in ((f"{PATH}/p1", "quota_set"), (f"{CLASS}/default", "quota_class_set")):
            reply = await cloud("PUT", path, {key: {"cores": limit}}, version=57)
            assert (reply.status, bool(reply.message)) == (400, True), (limit, reply.raw)
    assert "cores" in reply.message
    assert await shown(cloud, "p1") == {"id": "p1", **DEFAULTS}


async def test_bad_requests_are_refused(cloud: SmallCloud) -> None:
    for body in (
        {},
        {"quota_set": None},
        {"quota_set": []},
        {"quota_set": {"x": 1}},
        {"quota_set": {"force": "perhaps"}},
        {"quota_set": {"id": "p1"}},
        {"quota_set": {}, "x": 1},
    ):
        assert (await cloud("PUT", f"{PATH}/p1", body, version=57)).status == 400, body
        body = {"quota_class_set" if key == "quota_set" else key: value for key, value in body.items()}
        if body != {"quota_class_set": {}}:
            assert (await cloud("PUT", f"{CLASS}/default", body, version=57)).status == 400, body
    for method, path in (("GET", ""), ("GET", "/detail"), ("GET", "/defaults"), ("PUT", "")):
        unknown = await cloud(method, f"{PATH}/nobody{path}", {"quota_set": {}})
        assert (unknown.status, unknown.message) == (400, "Project ID nobody is not a valid project.")
    for path in ("p1", "p1/detail"):
        assert (await cloud("GET", f"{PATH}/{path}?x=1", version=74)).status == 200
        assert (await cloud("GET", f"{PATH}/{path}?x=1", version=75)).status == 400
    assert (await cloud("PUT", f"{PATH}/p1?x=1", {"quota_set": {}}, version=75)).status == 400
    assert (await cloud("DELETE", f"{PATH}/p1?x=1", version=75)).status == 400
    assert (await cloud("GET", f"{CLASS}/default?x=1", version=102)).status == 400
    assert (await cloud("GET", PATH)).status == 404
    assert (await cloud("DELETE", f"{CLASS}/default")).status == 404


async def test_who_may_look_and_who_may_set(cloud: SmallCloud) -> None:
    for token, project, status in ((MEMBER, "p1", 200), (READER, "p1", 200), (OTHER, "p1", 403)):
        for path in ("", "/detail"):
            assert (await cloud("GET", f"{PATH}/{project}{path}", token=token)).status == status
        assert (await cloud("GET", f"{PATH}/{project}/defaults", token=token)).status == 200
    body = {"quota_set": {"cores": 100}}
    assert (await cloud("PUT", f"{PATH}/p1", body, token=MEMBER)).status == 403
    assert (await cloud("DELETE", f"{PATH}/p1", token=MEMBER)).status == 403
    assert (await cloud("GET", f"{CLASS}/default", token=MEMBER)).status == 403
    assert (await cloud("PUT", f"{CLASS}/default", {"quota_class_set": {}}, token=MEMBER)).status == 403
    assert (await cloud("GET", f"{PATH}/p1", token="nobody")).status == 401
    assert (await shown(cloud, "p1"))["cores"] == 20


async def test_the_default_class_holds_for_whom_no_other_is_set(cloud: SmallCloud) -> None:
    assert (await cloud.get(f"{CLASS}/default", version=57))["quota_class_set"] == {
        "id": "default",
        **DEFAULTS,
    }
    body = {"quota_class_set": {"cores": "30", "instances": 7}}
    changed = await cloud("PUT", f"{CLASS}/default", body, version=57)
    assert changed.json == {"quota_class_set": {**DEFAULTS, "cores": 30, "instances": 7}}
    await put(cloud, "p1", instances=4)
    assert (await shown(cloud, "p1"))["instances"] == 4
    assert (await shown(cloud, "p1"))["cores"] == 30
    assert (await shown(cloud, "p1/defaults"))["instances"] == 7
    assert (await shown(cloud, "p2"))["instances"] == 7
    other = await cloud("PUT", f"{CLASS}/gold", {"quota_class_set": {"cores": 99}}, version=57)
    assert other.json["quota_class_set"]["cores"] == 99
    assert (await cloud.get(f"{CLASS}/gold"))["quota_class_set"]["cores"] == 99
    assert (await shown(cloud, "p2"))["cores"] == 30  # other classes are kept and mean nothing
    long = await cloud("PUT", f"{CLASS}/{'x' * 256}", {"quota_class_set": {}})
    assert long.status == 400
