"""The openstack command and openstacksdk, unmodified, with the volumes of a whole cloud."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from kilonova.app import EXAMPLE_IMAGE
from tests.api.served import ADMIN, MEMBER, Served

JSON = ("-f", "json")


def idle(served: Served) -> None:
    served.run(served.cloud.volume.idle())


@pytest.mark.slow
def test_command_line(served: Served) -> None:
    def mine(*words: str, **more: Any) -> Any:
        return served.openstack("volume", *words, cloud=MEMBER, **more)

    made = mine("create", "--size", "1", "--description", "first", "--property", "a=b", "data", *JSON)
    assert (made["name"], made["size"], made["type"]) == ("data", 1, "__DEFAULT__")
    idle(served)
    shown = mine("show", "data", *JSON)
    assert (shown["id"], shown["status"], shown["properties"]) == (made["id"], "available", {"a": "b"})
    (listed,) = mine("list", "--name", "data", "--long", *JSON)
    assert (listed["ID"], listed["Size"], listed["Bootable"]) == (made["id"], 1, False)

    mine("set", "--name", "renamed", "--size", "2", "--property", "c=d", "--bootable", "data")
    idle(served)
    shown = mine("show", "renamed", *JSON)
    assert (shown["size"], str(shown["bootable"]).lower()) == (2, "true")
    assert shown["properties"] == {"a": "b", "c": "d"}
    mine("unset", "--property", "a", "renamed")
    assert mine("show", "renamed", *JSON)["properties"] == {"c": "d"}

    booted = mine("create", "--image", EXAMPLE_IMAGE, "--size", "1", "root", *JSON)
    idle(served)
    shown = mine("show", booted["id"], *JSON)
    assert (shown["status"], shown["bootable"]) == ("available", True)
    assert shown["volume_image_metadata"]["image_name"] == EXAMPLE_IMAGE
    copy = mine("create", "--source", "renamed", "copy", *JSON)
    idle(served)
    assert mine("show", copy["id"], *JSON)["size"] == 2

    assert served.openstack("volume", "show", made["id"], *JSON)["id"] == made["id"], "to an administrator"
    for name in ("renamed", "root", "copy"):
        mine("delete", name)
    idle(served)
    for name in ("renamed", "root", "copy"):
        assert "No Volume found" in mine("show", name, fails=True)


@pytest.mark.slow
def test_command_line_of_types_quotas_and_services(served: Served) -> None:
    def admin(*words: str, **more: Any) -> Any:
        return served.openstack(*words, cloud=ADMIN, **more)

    name = f"many-{uuid.uuid4().hex[:8]}"
    made = admin("volume", "type", "create", "--property", "multiattach=<is> True", name, *JSON)
    names = [each["Name"] for each in served.openstack("volume", "type", "list", *JSON, cloud=MEMBER)]
    assert {"__DEFAULT__", name} <= set(names)
    assert admin("volume", "type", "show", name, *JSON)["properties"] == {"multiattach": "<is> True"}
    admin("volume", "type", "unset", "--property", "multiattach", name)
    admin("volume", "type", "delete", made["id"])

    (service,) = admin("volume", "service", "list", *JSON)
    assert (service["Binary"], service["State"]) == ("cinder-volume", "up")
    assert {each["Zone Name"] for each in admin("availability", "zone", "list", "--volume", *JSON)} == {
        "nova"
    }
    admin("quota", "set", "--volumes", "7", "--gigabytes", "70", "demo")
    shown = {each["Resource"]: each["Limit"] for each in admin("quota", "show", "demo", *JSON)}
    assert (shown["volumes"], shown["gigabytes"]) == (7, 70)
    admin("quota", "delete", "--volume", "demo")
    limits = served.openstack("limits", "show", "--absolute", *JSON, cloud=MEMBER)
    assert {each["Name"]: each["Value"] for each in limits}["max_total_volumes"] == 10
    listed = served.openstack("catalog", "list", *JSON)
    assert {"cinder", "cinderv3"} <= {each["Name"] for each in listed}


@pytest.mark.slow
def test_attachments(served: Served) -> None:
    server = str(uuid.uuid4())
    with served.sdk(MEMBER) as member, served.sdk(ADMIN) as admin:
        volume = member.block_storage.create_volume(name="kept", size=1)
        idle(served)
        storage = admin.block_storage
        body = {"attachment": {"volume_uuid": volume.id, "instance_uuid": server, "connector": {"host": "h"}}}
        made = storage.post("/attachments", json=body, microversion="3.44").json()["attachment"]
        storage.post(f"/attachments/{made['id']}/action", json={"os-complete": {}}, microversion="3.44")
        version = ("--os-volume-api-version", "3.44")
        words = ("volume", "attachment")
        (listed,) = served.openstack(*words, "list", *version, *JSON, cloud=MEMBER)
        assert (listed["ID"], listed["Status"], listed["Server ID"]) == (made["id"], "attached", server)
        shown = served.openstack(*words, "show", made["id"], *version, *JSON, cloud=MEMBER)
        assert shown["Volume ID"] == volume.id
        refused = served.openstack(*words, "delete", made["id"], *version, cloud=MEMBER, fails=True)
        assert "Compute API" in refused
        assert member.block_storage.get_volume(volume.id).attachments[0]["server_id"] == server
        served.openstack(*words, "delete", made["id"], *version, cloud=ADMIN)
        assert member.block_storage.get_volume(volume.id).status == "available"
        member.block_storage.delete_volume(volume.id)
        idle(served)


@pytest.mark.slow
def test_the_sdk(served: Served) -> None:
    with served.sdk(MEMBER) as sdk:
        made = sdk.create_volume(size=1, name="sdk", wait=True, metadata={"of": "sdk"})
        assert (made.status, made.is_bootable, made.metadata) == ("available", False, {"of": "sdk"})
        storage = sdk.block_storage
        found = storage.find_volume("sdk")
        assert (found.id, found.size, found.project_id) == (made.id, 1, sdk.current_project_id)
        storage.extend_volume(found, 3)
        idle(served)
        assert storage.get_volume(found).size == 3
        storage.set_volume_bootable_status(found, True)
        assert storage.get_volume(found).is_bootable
        storage.update_volume(found, name="changed")
        more = [storage.create_volume(size=1, name=f"page-{number}") for number in range(3)]
        idle(served)
        assert {each.name for each in storage.volumes(limit=2)} >= {"changed", "page-0", "page-1", "page-2"}
        assert [each.id for each in storage.volumes(name="page-1")] == [more[1].id]
        assert storage.get_limits().absolute.total_volumes_used >= 4
        assert [each.name for each in storage.types()] and list(storage.extensions())
        assert list(storage.snapshots()) == []
        for each in (found, *more):
            storage.delete_volume(each)
        idle(served)
        assert sdk.get_volume("changed") is None
