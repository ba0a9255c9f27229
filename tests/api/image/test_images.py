"""The image API by plain HTTP: every route, its status, and bad input of every kind."""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from typing import Any

import pytest

from tests.api.image.cloud import Cloud
from tests.api.image.conftest import Answer, Http

V2_0 = "application/openstack-images-v2.0-json-patch"


def refused(answer: Answer, status: int, text: str = "") -> None:
    """It is an error of this service's form."""
    assert answer.status == status, answer.body
    assert set(answer.json) == {"message", "code", "title"}
    assert answer.json["code"] == status
    assert re.search(text, answer.json["message"]), answer.json["message"]


def test_versions_need_no_token(cloud: Cloud) -> None:
    nobody = Http(cloud, None)
    for path, status in (("/", 300), ("/versions", 200), ("/v2/", 200)):
        answer = nobody("GET", path)
        assert answer.status == status
        newest = answer.json["versions"][0]
        assert (newest["id"], newest["status"]) == ("v2.17", "CURRENT")
        assert newest["links"] == [{"rel": "self", "href": f"{cloud.url}/v2/"}]


def test_everything_else_needs_a_valid_token(cloud: Cloud) -> None:
    one = f"/v2/images/{uuid.uuid4()}"
    for method, path in (
        ("GET", "/v2/images"),
        ("GET", one),
        ("PUT", one + "/file"),
        ("GET", "/v2/schemas/image"),
    ):
        for token in (None, "stranger"):
            answer = Http(cloud, token)(method, path)
            refused(answer, 401)
            assert answer.headers["www-authenticate"]


def test_unknown_paths_and_methods(alice: Http) -> None:
    refused(alice("GET", "/v3"), 404)
    refused(alice("GET", "/v2/images/x/y"), 404)
    refused(alice("DELETE", "/v2/images"), 405)
    refused(alice("GET", "/v2/schemas/flavor"), 404)


def test_an_image_has_all_of_its_fields(alice: Http) -> None:
    answer = alice(
        "POST",
        "/v2/images",
        {
            "name": "été",
            "disk_format": "raw",
            "container_format": "bare",
            "min_disk": 1,
            "min_ram": 64,
            "tags": ["b", "a", "b"],
            "hw_disk_bus": "virtio",
            "owner_specified.openstack.md5": "",
            "kernel_id": None,
        },
    )
    assert answer.status == 201
    image = answer.json
    at = f"/v2/images/{image['id']}"
    assert answer.headers["location"].endswith(at)
    assert re.fullmatch(r"req-[0-9a-f-]{36}", answer.headers["x-openstack-request-id"])
    times = image.pop("created_at"), image.pop("updated_at")
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", each) for each in times)
    assert image == {
        "id": image["id"],
        "name": "été",
        "status": "queued",
        "visibility": "shared",
        "owner": "alice",
        "disk_format": "raw",
        "container_format": "bare",
        "size": None,
        "virtual_size": None,
        "checksum": None,
        "os_hash_algo": None,
        "os_hash_value": None,
        "min_disk": 1,
        "min_ram": 64,
        "protected": False,
        "os_hidden": False,
        "tags": ["b", "a"],
        "self": at,
        "file": at + "/file",
        "schema": "/v2/schemas/image",
        "hw_disk_bus": "virtio",
        "owner_specified.openstack.md5": "",
    }
    shown = alice("GET", at)
    assert shown.status == 200
    assert {**image, "created_at": times[0], "updated_at": times[1]} == shown.json


def test_upload_and_download(alice: Http, admin: Http, bob: Http) -> None:
    data = bytes(range(256)) * 20_000
    image_id = alice.create()
    at = f"/v2/images/{image_id}"
    assert (alice("GET", at + "/file").status, alice("GET", at + "/file").body) == (204, b"")
    refused(bob.put(image_id, data), 404)
    refused(admin("PUT", at + "/file", data, {"Content-Type": "text/plain"}), 415)
    assert alice.put(image_id, data, X_OpenStack_Image_Size=str(len(data))).status == 204
    image = alice("GET", at).json
    assert (image["status"], image["size"], image["virtual_size"]) == ("active", len(data), len(data))
    assert image["checksum"] == hashlib.md5(data).hexdigest()
    assert image["os_hash_value"] == hashlib.sha512(data).hexdigest()
    got = alice("GET", at + "/file")
    assert (got.status, got.body == data) == (200, True)
    assert got.headers["content-length"] == str(len(data))
    assert got.headers["content-md5"] == image["checksum"]
    assert got.headers["content-type"] == "application/octet-stream"
    assert alice("HEAD", at + "/file").headers["content-length"] == str(len(data))
    assert alice("GET", at + "/tasks").json == {"tasks": []}
    refused(alice.put(image_id, b"again"), 409, "not allowed")
    refused(bob("GET", at + "/file"), 404)

    assert alice("POST", at + "/actions/deactivate").status == 204
    refused(alice("GET", at + "/file"), 403, "deactivated")
    assert admin("GET", at + "/file").body == data
    assert alice("POST", at + "/actions/reactivate").status == 204
    assert alice("GET", at + "/file").status == 200

    assert alice("DELETE", at).status == 204
    refused(alice("GET", at), 404)
    refused(alice("GET", at + "/file"), 404)
    refused(alice("DELETE", at), 404)


def test_an_empty_image_is_active_and_has_nothing_to_download(alice: Http) -> None:
    image_id = alice.create(disk_format="qcow2")
    assert alice.put(image_id, b"").status == 204
    assert alice("GET", f"/v2/images/{image_id}").json["status"] == "active"
    assert alice("GET", f"/v2/images/{image_id}/file").status == 204


def test_uploads_that_are_refused_leave_the_image_queued(alice: Http, cloud: Cloud) -> None:
    image_id = alice.create()
    before = cloud.files()
    refused(alice.put(image_id, b"QFI\xfb" + bytes(1000)), 400, "content is qcow2")
    refused(alice.put(image_id, b"abc", X_OpenStack_Image_Size="4"), 400, "Image-Size")
    refused(alice.put(image_id, b"abc", X_OpenStack_Image_Size="x"), 400)
    refused(alice.put(image_id, b"abc", X_OpenStack_Image_Size="9" * 40), 413)
    refused(alice.put(image_id, b"abc", X_Image_Meta_Store="ceph"), 400, "no image store")
    assert alice("GET", f"/v2/images/{image_id}").json["status"] == "queued"
    assert cloud.files() == before
    assert alice.put(image_id, b"abc", X_Image_Meta_Store="local").status == 204


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"name": 5}, 400),
        ({"name": "x" * 256}, 400),
        ({"name": "a\0b"}, 400),
        ({"name": "\ud800"}, 400),
        ({"name": ["x"]}, 400),
        ({"disk_format": "vmdk"}, 400),
        ({"disk_format": "ami"}, 400),
        ({"disk_format": ["raw"]}, 400),
        ({"container_format": "ova"}, 400),
        ({"visibility": "public"}, 403),
        ({"visibility": "secret"}, 400),
        ({"visibility": None}, 400),
        ({"min_disk": -1}, 400),
        ({"min_disk": 1 << 31}, 400),
        ({"min_ram": "64"}, 400),
        ({"min_ram": True}, 400),
        ({"min_ram": 1.5}, 400),
        ({"protected": "yes"}, 400),
        ({"os_hidden": 1}, 400),
        ({"tags": "red"}, 400),
        ({"tags": [""]}, 400),
        ({"tags": [5]}, 400),
        ({"tags": ["x" * 256]}, 400),
        ({"tags": [str(n) for n in range(129)]}, 413),
        ({"owner": "bob"}, 403),
        ({"id": "not a uuid"}, 400),
        ({"id": None}, 400),
        ({"id": "../../../etc/passwd"}, 400),
        ({"status": "active"}, 403),
        ({"size": 5}, 403),
        ({"checksum": "x"}, 403),
        ({"os_hash_value": "x"}, 403),
        ({"created_at": "x"}, 403),
        ({"self": "x"}, 403),
        ({"schema": "x"}, 403),
        ({"deleted": "x"}, 403),
        ({"locations": []}, 403),
        ({"os_glance_importing": "x"}, 403),
        ({"kernel_id": "vmlinuz"}, 400),
        ({"own": 5}, 400),
        ({"own": None}, 400),
        ({"own": {"a": "b"}}, 400),
        ({"own": "x" * 65536}, 400),
        ({"k" * 256: "v"}, 400),
        ({"": "v"}, 400),
        ({"a\0": "v"}, 400),
        ({f"p{n}": "v" for n in range(129)}, 413),
    ],
)
def test_bad_fields_are_refused(alice: Http, fields: dict[str, Any], status: int) -> None:
    refused(alice("POST", "/v2/images", fields), status)


def test_fields_at_their_limits_are_taken(alice: Http) -> None:
    fields: dict[str, Any] = {f"p{n}": "v" * 65535 for n in range(127)} | {"n" * 255: ""}
    image_id = alice.create(
        name="x" * 255, tags=[f"{n:0255}" for n in range(128)], min_ram=2**31 - 1, **fields
    )
    image = alice("GET", f"/v2/images/{image_id}").json
    assert all(image[name] == value for name, value in fields.items())
    assert alice("DELETE", f"/v2/images/{image_id}").status == 204


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"5", b"\xff", b'{"a":NaN}', b"[" * 100_000, b'{"name":"a","name":"b"}']
)
def test_bodies_that_are_no_json_object_are_refused(alice: Http, body: bytes) -> None:
    refused(alice("POST", "/v2/images", body, {"Content-Type": "application/json"}), 400)


def test_a_body_that_is_too_large_is_refused(alice: Http) -> None:
    refused(alice("POST", "/v2/images", b"{" + b" " * (17 << 20)), 413)


def test_an_id_is_used_once(alice: Http, bob: Http) -> None:
    image_id = str(uuid.uuid4())
    assert alice.create(id=image_id) == image_id
    for who in (alice, bob):
        refused(who("POST", "/v2/images", {"id": image_id}), 409)


def test_administrators_make_public_images_and_images_for_others(admin: Http, bob: Http) -> None:
    public = admin.create(visibility="public")
    assert bob("GET", f"/v2/images/{public}").status == 200
    refused(bob.patch(public, {"op": "replace", "path": "/name", "value": "mine"}), 403)
    refused(bob("DELETE", f"/v2/images/{public}"), 403)
    refused(bob.put(public, b"x"), 403)
    bobs = admin.create(owner="bob", visibility="private")
    assert bob("DELETE", f"/v2/images/{bobs}").status == 204


def test_readers_only_read(cloud: Cloud, alice: Http) -> None:
    reader = Http(cloud, "reader")
    image_id = alice.create()
    assert reader("GET", f"/v2/images/{image_id}").status == 200
    refused(reader("POST", "/v2/images", {"name": "x"}), 403)
    refused(reader("DELETE", f"/v2/images/{image_id}"), 403)
    refused(reader.put(image_id, b"x"), 403)
    refused(reader("PUT", f"/v2/images/{image_id}/tags/x"), 403)


def test_patches_of_both_kinds(alice: Http) -> None:
    image_id = alice.create(old="1", name="before")
    answer = alice.patch(
        image_id,
        {"op": "replace", "path": "/name", "value": "after"},
        {"op": "add", "path": "/a~1b~0c", "value": "slash"},
        {"op": "replace", "path": "/old", "value": "2"},
        {"op": "add", "path": "/os_hidden", "value": True},
        {"op": "replace", "path": "/tags", "value": ["x", "y"]},
        {"op": "replace", "path": "/disk_format", "value": "iso"},
    )
    assert answer.status == 200
    image = answer.json
    assert (image["name"], image["a/b~c"], image["old"]) == ("after", "slash", "2")
    assert (image["os_hidden"], image["tags"], image["disk_format"]) == (True, ["x", "y"], "iso")
    answer = alice.patch(
        image_id,
        {"remove": "/old"},
        {"replace": "/min_ram", "value": 5},
        {"add": "/new", "value": ""},
        media_type=V2_0,
    )
    assert answer.status == 200
    assert "old" not in answer.json
    assert (answer.json["min_ram"], answer.json["new"]) == (5, "")
    assert alice("GET", f"/v2/images/{image_id}").json == answer.json
    assert alice.patch(image_id).json == answer.json


@pytest.mark.parametrize(
    ("operation", "status"),
    [
        ({"op": "replace", "path": "/none", "value": "x"}, 409),
        ({"op": "remove", "path": "/none"}, 409),
        ({"op": "remove", "path": "/name"}, 403),
        ({"op": "replace", "path": "/id", "value": str(uuid.uuid4())}, 403),
        ({"op": "replace", "path": "/status", "value": "active"}, 403),
        ({"op": "add", "path": "/checksum", "value": "x"}, 403),
        ({"op": "remove", "path": "/size"}, 403),
        ({"op": "add", "path": "/locations/-", "value": {"url": "file:///etc/passwd"}}, 400),
        ({"op": "replace", "path": "/locations", "value": []}, 403),
        ({"op": "add", "path": "/os_glance_x", "value": "x"}, 403),
        ({"op": "replace", "path": "/owner", "value": "bob"}, 403),
        ({"op": "replace", "path": "/owner", "value": None}, 403),
        ({"op": "replace", "path": "/visibility", "value": "public"}, 403),
        ({"op": "replace", "path": "/visibility", "value": "all"}, 400),
        ({"op": "replace", "path": "/min_disk", "value": "1"}, 400),
        ({"op": "add", "path": "/own", "value": 5}, 400),
        ({"op": "add", "path": "/own"}, 400),
        ({"op": "add", "path": "own", "value": "x"}, 400),
        ({"op": "add", "path": "/", "value": "x"}, 400),
        ({"op": "add", "path": "", "value": "x"}, 400),
        ({"op": "add", "path": "/a/b", "value": "x"}, 400),
        ({"op": "add", "path": "/tags/0", "value": "x"}, 400),
        ({"op": "add", "path": "/a~2", "value": "x"}, 400),
        ({"op": "add", "path": "/a~", "value": "x"}, 400),
        ({"op": "add", "path": 5, "value": "x"}, 400),
        ({"op": "test", "path": "/name", "value": "x"}, 400),
        ({"op": ["add"], "path": "/name", "value": "x"}, 400),
        ({"path": "/name", "value": "x"}, 400),
        ({"op": "add", "value": "x"}, 400),
        ("add", 400),
        (None, 400),
    ],
)
def test_bad_operations_change_nothing(alice: Http, operation: Any, status: int) -> None:
    image_id = alice.create(name="same")
    before = alice("GET", f"/v2/images/{image_id}").json
    first = {"op": "replace", "path": "/name", "value": "changed"}
    refused(alice.patch(image_id, first, operation), status)
    assert alice("GET", f"/v2/images/{image_id}").json == before


@pytest.mark.parametrize(
    "operation", [{"add": "/a", "remove": "/b", "value": "x"}, {"add": 5, "value": "x"}, {"add": "/a"}, {}, 5]
)
def test_bad_operations_of_the_old_kind(alice: Http, operation: Any) -> None:
    refused(alice.patch(alice.create(), operation, media_type=V2_0), 400)


def test_patches_of_a_wrong_type_or_form(alice: Http) -> None:
    image_id = alice.create()
    answer = alice.patch(image_id, media_type="application/json")
    refused(answer, 415)
    media_type = {"Content-Type": "application/openstack-images-v2.1-json-patch"}
    for body in (b"{}", b"", b"[", b"\xff", b"[" * 100_000, json.dumps([{}] * 600).encode()):
        refused(alice("PATCH", f"/v2/images/{image_id}", body, media_type), 400)


def test_formats_are_fixed_once_there_are_data(alice: Http) -> None:
    image_id = alice.create()
    alice.put(image_id, b"x")
    refused(alice.patch(image_id, {"op": "replace", "path": "/disk_format", "value": "qcow2"}), 403, "queued")
    same = {"op": "replace", "path": "/disk_format", "value": "raw"}
    assert alice.patch(image_id, same).status == 200


def test_tags_one_by_one(alice: Http, bob: Http) -> None:
    image_id = alice.create()
    at = f"/v2/images/{image_id}/tags/"
    for _ in range(2):
        assert alice("PUT", at + "red%20hot").status == 204
    assert alice("PUT", at + "a/b").status == 204
    assert alice("GET", f"/v2/images/{image_id}").json["tags"] == ["red hot", "a/b"]
    assert alice("DELETE", at + "red%20hot").status == 204
    refused(alice("DELETE", at + "red%20hot"), 404)
    refused(alice("PUT", at + "%00"), 400)
    refused(alice("PUT", at + "x" * 256), 400)
    refused(bob("PUT", at + "x"), 404)


def test_sharing(alice: Http, bob: Http, admin: Http) -> None:
    image_id = alice.create(name="shared")
    at = f"/v2/images/{image_id}/members"
    refused(bob("GET", at), 404)
    answer = alice("POST", at, {"member": "bob"})
    assert answer.status == 200
    assert {name: answer.json[name] for name in ("image_id", "member_id", "status", "schema")} == {
        "image_id": image_id,
        "member_id": "bob",
        "status": "pending",
        "schema": "/v2/schemas/member",
    }
    refused(alice("POST", at, {"member": "bob"}), 409)
    assert bob("GET", f"/v2/images/{image_id}").status == 200
    assert image_id not in [each["id"] for each in bob("GET", "/v2/images").json["images"]]
    refused(alice("PUT", at + "/bob", {"status": "accepted"}), 403)
    assert bob("PUT", at + "/bob", {"status": "accepted"}).json["status"] == "accepted"
    assert image_id in [each["id"] for each in bob("GET", "/v2/images").json["images"]]
    refused(bob.patch(image_id, {"op": "replace", "path": "/name", "value": "x"}), 403)
    refused(bob("DELETE", f"/v2/images/{image_id}"), 403)
    assert bob("GET", at + "/bob").json["member_id"] == "bob"
    assert [each["member_id"] for each in admin("GET", at).json["members"]] == ["bob"]
    for body in ({}, {"member": ""}, {"member": 5}, {"member": "a\0"}):
        refused(alice("POST", at, body), 400)
    for body in ({}, {"status": "maybe"}, {"status": 5}):
        refused(bob("PUT", at + "/bob", body), 400)
    refused(alice("GET", at + "/nobody"), 404)
    refused(alice("DELETE", at + "/%00"), 400)
    assert alice("DELETE", at + "/bob").status == 204
    refused(bob("GET", f"/v2/images/{image_id}"), 404)


def test_lists_have_pages_with_links(alice: Http) -> None:
    ids = [alice.create(name="paged", number=str(n % 2)) for n in range(5)]
    path, seen = "/v2/images?name=paged&limit=2&sort=created_at:asc,id:asc", []
    while path:
        page = alice("GET", path).json
        assert page["schema"] == "/v2/schemas/images"
        assert page["first"] == "/v2/images?name=paged&limit=2&sort=created_at%3Aasc%2Cid%3Aasc"
        seen.append([each["id"] for each in page["images"]])
        path = page.get("next")
    assert [len(each) for each in seen] == [2, 2, 1]
    assert sorted(each for page in seen for each in page) == sorted(ids)
    assert len(alice("GET", "/v2/images?name=paged&number=1").json["images"]) == 2
    assert "next" not in alice("GET", "/v2/images?name=paged&limit=5").json
    for query in ("marker=none", f"marker={uuid.uuid4()}", "limit=-1", "sort=x", "name=%00", "visibility=x"):
        refused(alice("GET", "/v2/images?" + query), 400)


def test_a_marker_of_another_project_says_nothing(alice: Http, bob: Http) -> None:
    refused(bob("GET", f"/v2/images?marker={alice.create(visibility='private')}"), 400)


def test_schemas_and_information(alice: Http) -> None:
    for name in ("image", "images", "member", "members"):
        answer = alice("GET", f"/v2/schemas/{name}")
        assert (answer.status, answer.json["name"]) == (200, name)
    schema = alice("GET", "/v2/schemas/image").json
    image = alice("GET", f"/v2/images/{alice.create()}").json
    assert set(image) <= set(schema["properties"])
    assert schema["properties"]["disk_format"]["enum"] == [None, "raw", "qcow2", "iso"]
    assert alice("GET", "/v2/info/import").json["import-methods"]["value"] == []
    assert alice("GET", "/v2/info/stores").json == {"stores": [{"id": "local", "default": "true"}]}
