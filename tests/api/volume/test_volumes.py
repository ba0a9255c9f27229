"""Volumes by Cinder's API: shapes, lists, actions, and who may what."""

from __future__ import annotations

import re
from itertools import product
from typing import Any

import pytest

from tests.api.volume.conftest import ROOT, Face

MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}\Z")


async def test_a_volume_in_the_shape_that_clients_know(face: Face) -> None:
    body = {"volume": {"size": "2", "name": "data", "description": "of mine", "metadata": {"a": "b"}}}
    reply = (await face("POST", "/v3/alpha/volumes", body)).expect(202)
    made = reply.json["volume"]
    assert (made["status"], made["size"]) == ("creating", 2)
    await face.service.idle()
    found = await face.shown(made["id"], version=0)
    at = f"/volumes/{made['id']}"
    assert MOMENT.match(found.pop("created_at")) and MOMENT.match(found.pop("updated_at"))
    assert found == {
        "id": made["id"],
        "name": "data",
        "description": "of mine",
        "status": "available",
        "size": 2,
        "availability_zone": "nova",
        "attachments": [],
        "volume_type": "__DEFAULT__",
        "snapshot_id": None,
        "source_volid": None,
        "metadata": {"a": "b"},
        "links": [
            {"rel": "self", "href": f"{ROOT}/v3/alpha{at}"},
            {"rel": "bookmark", "href": f"{ROOT}/alpha{at}"},
        ],
        "user_id": "alice",
        "bootable": "false",
        "encrypted": False,
        "replication_status": None,
        "consistencygroup_id": None,
        "multiattach": False,
        "os-vol-tenant-attr:tenant_id": "alpha",
    }


FIELDS = [
    ("group_id", 13, False),
    ("provider_id", 21, True),
    ("shared_targets", 48, False),
    ("service_uuid", 48, False),
    ("cluster_name", 61, True),
    ("volume_type_id", 63, False),
    ("consumes_quota", 65, False),
]


async def test_fields_come_with_their_microversions(face: Face) -> None:
    volume = await face.made()
    for (field, since, admin), who in product(FIELDS, ("alice", "admin")):
        shown = who == "admin" or not admin
        assert field not in await face.shown(volume["id"], who, since - 1)
        assert (field in await face.shown(volume["id"], who, since)) == shown


async def test_what_an_administrator_sees_more(face: Face) -> None:
    volume = await face.made()
    await face.attached(volume["id"])
    mine, all_of_it = await face.shown(volume["id"]), await face.shown(volume["id"], "admin")
    assert "os-vol-host-attr:host" in all_of_it and "os-vol-host-attr:host" not in mine
    assert [each["host_name"] for each in all_of_it["attachments"]] == ["compute1"]
    assert [each["host_name"] for each in mine["attachments"]] == [None]
    assert mine["attachments"][0]["device"] == "/dev/vdb"
    assert mine["status"] == "in-use"


async def test_other_projects_volumes_are_not_there(face: Face) -> None:
    volume = await face.made()
    at = f"/v3/volumes/{volume['id']}"
    for method, path, body in (
        ("GET", at, None),
        ("PUT", at, {"volume": {"name": "x"}}),
        ("DELETE", at, None),
        ("GET", at + "/metadata", None),
        ("POST", at + "/metadata", {"metadata": {"a": "b"}}),
        ("POST", at + "/action", {"os-extend": {"new_size": 3}}),
        ("POST", "/v3/volumes", {"volume": {"size": 1, "source_volid": volume["id"]}}),
    ):
        reply = (await face(method, path, body, "bob")).expect(404)
        assert volume["id"] in reply.json["itemNotFound"]["message"]
    assert (await face("GET", "/v3/volumes", who="bob")).json == {"volumes": []}
    asked = {"attachment": {"volume_uuid": volume["id"], "instance_uuid": volume["id"]}}
    (await face("POST", "/v3/attachments", asked, "bob", 27)).expect(404)
    assert (await face.shown(volume["id"]))["name"] is None


async def test_roles(face: Face) -> None:
    volume = await face.made()
    at = f"/v3/volumes/{volume['id']}"
    for who in ("alice", "reader", "admin"):
        (await face("GET", at, who=who)).expect(200)
    for who in ("reader", "nobody"):
        (await face("POST", "/v3/volumes", {"volume": {"size": 1}}, who)).expect(403)
        (await face("DELETE", at, who=who)).expect(403)
        (await face("PUT", at, {"volume": {"name": "x"}}, who)).expect(403)
    (await face("GET", at, who="nobody")).expect(403)
    (await face("GET", at, who="")).expect(401)
    (await face("GET", at, who="stranger")).expect(401)
    for action in ("os-force_delete", "os-reset_status", "os-force_detach"):
        reply = await face.act(volume["id"], action, {"status": "error"})
        assert "forbidden" in reply.expect(403).json
    (await face("DELETE", at + "?force=true", version=23)).expect(403)
    (await face("POST", "/v3/volumes", {"volume": {"size": 1}}, "unscoped")).expect(400)
    (await face("GET", "/v3/beta/volumes")).expect(400)


async def test_lists_are_filtered_sorted_and_paged(face: Face) -> None:
    for name, size in (("c", 1), ("a", 3), ("b", 2)):
        await face.made(name=name, size=size, metadata={"of": name})
    await face.made("bob", name="bobs")

    async def names(query: str, who: str = "alice", version: int = 70) -> list[str]:
        reply = await face("GET", f"/v3/volumes?{query}", who=who, version=version)
        return [each["name"] for each in reply.expect(200).json["volumes"]]

    assert await names("") == ["b", "a", "c"], "the newest first"
    assert await names("sort=name:asc") == ["a", "b", "c"]
    assert await names("sort=size") == ["a", "b", "c"]
    assert await names("sort_key=name&sort_dir=desc") == ["c", "b", "a"]
    assert await names("name=a") == ["a"]
    assert await names("metadata={'of': 'b'}") == ["b"]
    assert await names("name~=a") == ["a"]
    assert await names("status=available&bootable=false&multiattach=0") == ["b", "a", "c"]
    assert await names("status=error") == []
    assert await names("all_tenants=1") == ["b", "a", "c"], "which is for administrators"
    assert await names("", "admin") == []
    assert set(await names("all_tenants=1", "admin")) == {"a", "b", "c", "bobs"}
    assert await names("project_id=beta", "admin") == ["bobs"]
    assert await names("project_id=beta", version=0) == ["b", "a", "c"]
    assert await names("created_at=lt:2020-01-01T00:00:00") == []
    assert len(await names("created_at=gt:2020-01-01T00:00:00")) == 3
    assert await names("limit=0") == []
    seen, path = [], "/v3/volumes/detail?limit=2&sort=name:asc"
    while path:
        answer = (await face("GET", path)).expect(200).json
        seen += [each["name"] for each in answer["volumes"]]
        after = [each["href"] for each in answer.get("volumes_links", [])]
        path = after[0].removeprefix(ROOT) if after else ""
    assert seen == ["a", "b", "c"]
    counted = (await face("GET", "/v3/volumes?limit=1&with_count=true", version=45)).json
    assert counted["count"] == 3 and len(counted["volumes"]) == 1
    summed = (await face("GET", "/v3/volumes/summary", version=12)).json
    assert summed == {"volume-summary": {"total_count": 3, "total_size": 6}}


async def test_changes_and_metadata(face: Face) -> None:
    volume = await face.made(name="old", metadata={"a": "1"})
    at = f"/v3/volumes/{volume['id']}"
    changed = (await face("PUT", at, {"volume": {"name": "new", "description": "d"}})).expect(200).json
    assert (changed["volume"]["name"], changed["volume"]["description"]) == ("new", "d")
    added = (await face("POST", at + "/metadata", {"metadata": {"b": "2"}})).expect(200).json
    assert added == {"metadata": {"a": "1", "b": "2"}}
    assert (await face("GET", at + "/metadata/b")).json == {"meta": {"b": "2"}}
    (await face("PUT", at + "/metadata/b", {"meta": {"b": "3"}})).expect(200)
    (await face("PUT", at + "/metadata/b", {"meta": {"c": "3"}})).expect(400)
    (await face("DELETE", at + "/metadata/a")).expect(200)
    (await face("DELETE", at + "/metadata/a")).expect(404)
    assert (await face("GET", at + "/metadata")).json == {"metadata": {"b": "3"}}
    replaced = (await face("PUT", at + "/metadata", {"metadata": {"z": ""}})).expect(200).json
    assert replaced == {"metadata": {"z": ""}}


async def test_actions(face: Face) -> None:
    volume = await face.made()
    id = volume["id"]
    (await face.act(id, "os-set_bootable", {"bootable": True})).expect(200)
    assert (await face.shown(id))["bootable"] == "true"
    (await face.act(id, "os-extend", {"new_size": 2})).expect(202)
    await face.service.idle()
    assert (await face.shown(id))["size"] == 2
    (await face.act(id, "os-extend", {"new_size": 1})).expect(400)
    (await face.act(id, "os-reserve")).expect(202)
    assert (await face.shown(id))["status"] == "reserved"
    (await face.act(id, "os-reserve")).expect(400)
    (await face.act(id, "os-unreserve")).expect(202)
    (await face.act(id, "os-begin_detaching")).expect(400)
    await face.attached(id)
    (await face.act(id, "os-begin_detaching")).expect(202)
    assert (await face.shown(id))["status"] == "detaching"
    (await face.act(id, "os-roll_detaching")).expect(202)
    assert (await face.shown(id))["status"] == "in-use"
    (await face("DELETE", f"/v3/volumes/{id}")).expect(400)
    (await face.act(id, "os-force_delete", who="admin")).expect(400)
    (await face.act(id, "os-reset_status", {"status": "error"}, "admin")).expect(202)
    assert (await face.shown(id))["status"] == "error"
    (await face.act(id, "os-reset_status", {"status": "lost"}, "admin")).expect(400)
    (await face.act(id, "os-set_image_metadata", {"metadata": {"os": "x"}})).expect(200)
    assert (await face.shown(id))["volume_image_metadata"] == {"os": "x"}
    assert (await face.act(id, "os-show_image_metadata")).json == {"metadata": {"os": "x"}}
    (await face.act(id, "os-unset_image_metadata", {"key": "os"})).expect(200)
    (await face.act(id, "os-unset_image_metadata", {"key": "os"})).expect(404)
    for lacking in ("os-retype", "os-volume_upload_image", "revert"):
        assert "notImplemented" in (await face.act(id, lacking, {})).expect(501).json
    assert "badRequest" in (await face.act(id, "os-explode", {})).expect(400).json


async def test_deleting(face: Face) -> None:
    volume = await face.made()
    (await face("DELETE", f"/v3/volumes/{volume['id']}?cascade=true")).expect(202)
    await face.service.idle()
    (await face("GET", f"/v3/volumes/{volume['id']}")).expect(404)
    (await face("DELETE", f"/v3/volumes/{volume['id']}")).expect(404)


async def test_quotas_are_enforced_shown_and_set(face: Face) -> None:
    face.quotas["volumes"] = 2
    await face.made(size=5)
    (await face("PUT", "/v3/os-quota-sets/alpha", {"quota_set": {"gigabytes": 6}})).expect(403)
    set_to = await face("PUT", "/v3/os-quota-sets/alpha", {"quota_set": {"gigabytes": 6}}, "admin")
    assert set_to.expect(200).json["quota_set"]["gigabytes"] == 6
    refused = (await face("POST", "/v3/volumes", {"volume": {"size": 2}})).expect(413)
    assert refused.json["overLimit"]["code"] == 413 and "gigabytes" in refused.json["overLimit"]["message"]
    await face.made()
    (await face("POST", "/v3/volumes", {"volume": {"size": 1}})).expect(413)
    shown = (await face("GET", "/v3/os-quota-sets/alpha?usage=True")).expect(200).json["quota_set"]
    assert shown["id"] == "alpha"
    assert shown["volumes"] == {"limit": 2, "in_use": 2, "reserved": 0, "allocated": 0}
    assert (shown["gigabytes"]["limit"], shown["gigabytes"]["in_use"]) == (6, 6)
    absolute = (await face("GET", "/v3/limits")).expect(200).json["limits"]["absolute"]
    assert (absolute["totalGigabytesUsed"], absolute["maxTotalVolumeGigabytes"]) == (6, 6)
    (await face("GET", "/v3/os-quota-sets/alpha", who="bob")).expect(403)
    others = (await face("GET", "/v3/limits?project_id=alpha", who="admin", version=39)).json
    assert others["limits"]["absolute"]["totalVolumesUsed"] == 2
    (await face("DELETE", "/v3/os-quota-sets/alpha", who="admin")).expect(200)
    assert (await face("GET", "/v3/os-quota-sets/alpha")).json["quota_set"]["gigabytes"] == 1000
    defaults = (await face("GET", "/v3/os-quota-sets/alpha/defaults")).json["quota_set"]
    assert (defaults["volumes"], defaults["per_volume_gigabytes"]) == (2, -1)
    (await face("PUT", "/v3/os-quota-sets/alpha", {"quota_set": {"geese": 6}}, "admin")).expect(400)


async def test_types(face: Face) -> None:
    assert [each["name"] for each in (await face("GET", "/v3/types")).json["volume_types"]] == ["__DEFAULT__"]
    body: dict[str, Any] = {
        "volume_type": {"name": "many", "extra_specs": {"multiattach": "<is> True", "secret": "x"}}
    }
    (await face("POST", "/v3/types", body)).expect(403)
    made = (await face("POST", "/v3/types", body, "admin")).expect(200).json["volume_type"]
    (await face("POST", "/v3/types", body, "admin")).expect(409)
    mine = (await face("GET", f"/v3/types/{made['id']}")).json["volume_type"]
    assert mine["extra_specs"] == {"multiattach": "<is> True"}
    volume = await face.made(volume_type="many")
    assert (volume["volume_type"], volume["multiattach"]) == ("many", True)
    assert volume["volume_type_id"] == made["id"]
    (await face("DELETE", f"/v3/types/{made['id']}", who="admin")).expect(400)
    (await face("POST", "/v3/volumes", {"volume": {"size": 1, "volume_type": "none"}})).expect(404)
    specs = f"/v3/types/{made['id']}/extra_specs"
    (await face("POST", specs, {"extra_specs": {"k": "v"}}, "admin")).expect(200)
    assert (await face("GET", specs + "/k", who="admin")).json == {"k": "v"}
    (await face("DELETE", specs + "/k", who="admin")).expect(202)
    (await face("DELETE", specs + "/k", who="admin")).expect(404)
    hidden = {"volume_type": {"name": "hidden", "os-volume-type-access:is_public": False}}
    secret = (await face("POST", "/v3/types", hidden, "admin")).expect(200).json["volume_type"]
    (await face("GET", f"/v3/types/{secret['id']}")).expect(404)
    (await face("POST", "/v3/volumes", {"volume": {"size": 1, "volume_type": "hidden"}})).expect(404)
    (await face("PUT", f"/v3/types/{secret['id']}", {"volume_type": {"name": "many"}}, "admin")).expect(409)
    (await face("DELETE", f"/v3/types/{secret['id']}", who="admin")).expect(202)
    default = (await face("GET", "/v3/types/default")).expect(200).json["volume_type"]
    (await face("DELETE", f"/v3/types/{default['id']}", who="admin")).expect(400)


async def test_the_small_things(face: Face) -> None:
    zones = (await face("GET", "/v3/os-availability-zone")).expect(200).json
    assert zones == {"availabilityZoneInfo": [{"zoneName": "nova", "zoneState": {"available": True}}]}
    (await face("GET", "/v3/os-services")).expect(403)
    services = (await face("GET", "/v3/os-services", who="admin", version=70)).json["services"]
    assert [(each["binary"], each["state"]) for each in services] == [("cinder-volume", "up")]
    aliases = {each["alias"] for each in (await face("GET", "/v3/extensions")).json["extensions"]}
    assert "os-volume-actions" in aliases
    (await face("GET", "/v3/extensions/os-volume-actions")).expect(200)
    (await face("GET", "/v3/extensions/none")).expect(404)
    assert (await face("GET", "/v3/snapshots/detail")).json == {"snapshots": []}
    lacking = (await face("POST", "/v3/snapshots", {"snapshot": {"volume_id": "x"}})).expect(501)
    assert "no snapshots" in lacking.json["notImplemented"]["message"]
    (await face("GET", f"/v3/snapshots/{'1' * 8}")).expect(404)


async def test_versions(face: Face) -> None:
    for path, status in (("/", 300), ("/v3/", 200), ("/v3", 200)):
        (version,) = (await face("GET", path, who="")).expect(status).json["versions"]
        assert (version["id"], version["min_version"], version["version"]) == ("v3.0", "3.0", "3.70")
        assert version["links"] == [{"rel": "self", "href": f"{ROOT}/v3/"}]
    for asked, answered in ((None, "3.0"), (27, "3.27"), ("volume latest", "3.70"), ("compute 2.9", "3.0")):
        reply = (await face("GET", "/v3/volumes", version=asked)).expect(200)
        assert reply.headers["openstack-api-version"] == f"volume {answered}"
        assert reply.headers["vary"] == "OpenStack-API-Version"
        assert reply.headers["x-openstack-request-id"].startswith("req-")
    for wrong, status in (("volume 3.71", 406), ("volume 2.0", 406), ("volume 3", 400), ("volume x", 400)):
        (await face("GET", "/v3/volumes", version=wrong)).expect(status)
    for path, since in (("/v3/attachments", 27), ("/v3/messages", 3), ("/v3/volumes/summary", 12)):
        (await face("GET", path, version=since - 1)).expect(404)
        (await face("GET", path, version=since)).expect(200)


async def test_a_message_says_why_a_volume_is_in_error(face: Face, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("kilonova.services.volume.files.Draft.publish", full)
    volume = await face.made()
    assert volume["status"] == "error"
    (message,) = (await face("GET", "/v3/messages", version=3)).expect(200).json["messages"]
    assert (message["resource_uuid"], message["message_level"]) == (volume["id"], "ERROR")
    assert "not enough room" in message["user_message"]
    at = f"/v3/messages/{message['id']}"
    assert (await face("GET", at, version=3)).expect(200).json == {"message": message}
    (await face("GET", at, who="bob", version=3)).expect(404)
    assert (await face("GET", "/v3/messages", who="bob", version=3)).json == {"messages": []}
