"""Attachments by Cinder's API: what compute does with them, and what users may not."""

from __future__ import annotations

import re
import uuid
from typing import Any

from tests.api.volume.conftest import Face

SERVER = str(uuid.uuid4())
MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}\Z")


def asked(volume_id: str, **more: Any) -> dict[str, Any]:
    return {"attachment": {"volume_uuid": volume_id, "instance_uuid": SERVER, **more}}


async def test_as_nova_does_it(face: Face) -> None:
    volume = await face.made()
    made = (await face("POST", "/v3/attachments", asked(volume["id"]), version=44)).expect(200).json
    attachment = made["attachment"]
    at = f"/v3/attachments/{attachment['id']}"
    assert attachment == {
        "id": attachment["id"],
        "status": "reserved",
        "instance": SERVER,
        "volume_id": volume["id"],
        "attached_at": "",
        "detached_at": "",
        "attach_mode": "rw",
        "connection_info": {},
    }
    assert (await face.shown(volume["id"]))["status"] == "reserved"
    body = {"attachment": {"connector": {"host": "compute1", "mountpoint": "/dev/vdc"}}}
    connected = (await face("PUT", at, body, version=44)).expect(200).json["attachment"]
    assert connected["status"] == "attaching"
    assert connected["connection_info"]["driver_volume_type"] == "file"
    assert connected["connection_info"]["device_path"].endswith(volume["id"])
    (await face("POST", at + "/action", {"os-complete": {}}, version=43)).expect(404)
    (await face("POST", at + "/action", {"os-complete": {}}, version=44)).expect(204)
    (await face("POST", at + "/action", {"os-other": {}}, version=44)).expect(400)
    shown = (await face("GET", at, version=27)).expect(200).json["attachment"]
    assert shown["status"] == "attached" and MOMENT.match(shown["attached_at"])
    found = await face.shown(volume["id"])
    assert found["status"] == "in-use"
    (there,) = found["attachments"]
    assert (there["server_id"], there["device"], there["attachment_id"]) == (
        SERVER,
        "/dev/vdc",
        attachment["id"],
    )
    assert there["id"] == there["volume_id"] == volume["id"]
    left = (await face("DELETE", at, who="nova", version=44)).expect(404)
    assert attachment["id"] in left.json["itemNotFound"]["message"], "nova asks for its user"
    left = (await face("DELETE", at, version=44, x_service_token="nova")).expect(200)
    assert left.json == {"attachments": []}
    assert (await face.shown(volume["id"]))["status"] == "available"


async def test_all_in_one_request(face: Face) -> None:
    volume = await face.made()
    body = asked(volume["id"], connector={"host": "h"}, mode="ro")
    made = (await face("POST", "/v3/attachments", body, version=54)).expect(200).json["attachment"]
    assert (made["status"], made["attach_mode"]) == ("attaching", "ro")
    assert made["connection_info"]["access_mode"] == "ro"


async def test_a_user_does_not_take_away_what_a_server_uses(face: Face) -> None:
    volume = await face.made()
    attachment_id = await face.attached(volume["id"])
    at = f"/v3/attachments/{attachment_id}"
    other_host = {"attachment": {"connector": {"host": "elsewhere"}}}
    for work in (
        face("DELETE", at, version=27),
        face("DELETE", at, version=27, x_service_token="alice"),
        face("DELETE", at, version=27, x_service_token="stranger"),
        face("PUT", at, other_host, version=27),
        face.act(volume["id"], "os-detach", {}),
        face.act(volume["id"], "os-detach", {"attachment_id": attachment_id}),
    ):
        refused = (await work).expect(409).json["conflictingRequest"]
        assert "using the Compute API" in refused["message"]
    assert (await face.shown(volume["id"]))["status"] == "in-use"
    (await face.act(volume["id"], "os-force_detach", {}, "admin")).expect(202)
    assert (await face.shown(volume["id"]))["status"] == "available"


async def test_a_reservation_may_be_given_back(face: Face) -> None:
    volume = await face.made()
    made = (await face("POST", "/v3/attachments", asked(volume["id"]), version=27)).expect(200).json
    (await face("DELETE", f"/v3/attachments/{made['attachment']['id']}", version=27)).expect(200)
    assert (await face.shown(volume["id"]))["status"] == "available"


async def test_another_projects_attachments_are_not_there(face: Face) -> None:
    volume = await face.made()
    attachment_id = await face.attached(volume["id"])
    at = f"/v3/attachments/{attachment_id}"
    for method, path, body in (
        ("GET", at, None),
        ("DELETE", at, None),
        ("PUT", at, {"attachment": {"connector": {"host": "h"}}}),
        ("POST", at + "/action", {"os-complete": {}}),
    ):
        (await face(method, path, body, "bob", 44)).expect(404)
    assert (await face("GET", "/v3/attachments", who="bob", version=27)).json == {"attachments": []}
    (await face("GET", at, who="admin", version=27)).expect(200)


async def test_lists(face: Face) -> None:
    volumes = [await face.made() for _ in range(2)]
    ids = [await face.attached(each["id"]) for each in volumes]
    (await face("GET", "/v3/attachments", version=26)).expect(404)

    async def found(query: str, who: str = "alice", path: str = "") -> list[str]:
        reply = await face("GET", f"/v3/attachments{path}?{query}", who=who, version=27)
        return [each["id"] for each in reply.expect(200).json["attachments"]]

    assert await found("") == ids
    assert await found("", path="/detail") == ids
    assert await found(f"volume_id={volumes[1]['id']}") == ids[1:]
    assert await found("status=attached&limit=1") == ids[:1]
    assert await found("offset=1") == ids[1:]
    assert await found("status=reserved") == []
    assert await found("", "admin") == []
    assert await found("all_tenants=1", "admin") == ids
    assert await found("all_tenants=1", "bob") == []


WRONG: list[Any] = [
    None,
    {},
    {"attachment": None},
    {"attachment": {}},
    {"attachment": {"volume_uuid": "x", "instance_uuid": SERVER}},
    {"attachment": {"volume_uuid": SERVER, "instance_uuid": 5}},
    {"attachment": {"volume_uuid": SERVER, "instance_uuid": SERVER, "more": 1}},
    {"attachment": {"volume_uuid": SERVER, "instance_uuid": SERVER, "mode": "wo"}},
    {"attachment": {"volume_uuid": SERVER, "instance_uuid": SERVER, "connector": [1]}},
    {"attachment": {"volume_uuid": SERVER, "instance_uuid": SERVER, "connector": {"host": ""}}},
    {"attachment": {"volume_uuid": SERVER, "instance_uuid": SERVER, "connector": {"host": ["h"]}}},
]


async def test_what_makes_no_sense_is_refused(face: Face) -> None:
    for body in WRONG:
        refused = (await face("POST", "/v3/attachments", body, version=54)).expect(400)
        assert refused.json["badRequest"]["code"] == 400, body


async def test_what_is_not_there(face: Face) -> None:
    (await face("POST", "/v3/attachments", asked(SERVER), version=27)).expect(404)
    for word in (SERVER, "x", "%00", "x" * 300):
        (await face("GET", f"/v3/attachments/{word}", version=27)).expect(404)
        (await face("DELETE", f"/v3/attachments/{word}", version=27)).expect(404)
    volume = await face.made()
    (await face.act(volume["id"], "os-detach", {"attachment_id": SERVER})).expect(404)
    await face.attached(volume["id"])
    (await face("POST", "/v3/attachments", asked(volume["id"]), version=27)).expect(400)


async def test_a_user_does_not_take_what_an_offloaded_server_has(face: Face) -> None:
    """It is attached to no host, and the server has it all the same."""
    volume = await face.made()
    made = (await face("POST", "/v3/attachments", asked(volume["id"]), version=44)).expect(200).json
    await face.service.complete(made["attachment"]["id"])
    (await face("DELETE", f"/v3/attachments/{made['attachment']['id']}", version=44)).expect(409)
