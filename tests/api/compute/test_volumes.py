"""``/servers/{id}/os-volume_attachments``: in all microversions and states, and what is refused."""

from __future__ import annotations

import itertools
from typing import Any, cast

import pytest
from msgspec.structs import replace

from kilonova.db import hosts
from kilonova.model.states import TASK_STATES, VM_STATES
from kilonova.model.volume import Attachment
from kilonova.operations.cloud import Cloud
from tests.api.compute import facts
from tests.api.compute.asgi import Api
from tests.api.compute.conftest import PROJECT
from tests.api.compute.parts import HOST, Volumes, server
from tests.api.compute.test_server_actions import get, put, recorded
from tests.api.compute.whole_cloud import NOBODYS

LIVING = [state for state in VM_STATES if state != "deleted"]
TAKEN = {"active", "paused", "stopped", "resized", "soft-delete", "shelved", "shelved_offloaded"}
FREE = "aaaaaaaa-aaaa-4aaa-8aaa-aaaaaaaaaaaa"
HAD = "bbbbbbbb-bbbb-4bbb-8bbb-bbbbbbbbbbbb"
MINE = Attachment(
    id="cccccccc-cccc-4ccc-8ccc-cccccccccccc",
    volume_id=HAD,
    attachment_id="dddddddd-dddd-4ddd-8ddd-dddddddddddd",
    device="/dev/vdb",
    tag="data",
)
PATH = "/servers/{}/os-volume_attachments"


def wanted(volume: str = FREE, **fields: Any) -> dict[str, Any]:
    return {"volumeAttachment": {"volumeId": volume, **fields}}


def volumes(cloud: Cloud) -> Volumes:
    return cast(Volumes, cloud.volume)


@pytest.fixture
async def uuid(cloud: Cloud) -> str:
    """A server that runs and has a volume, and there is another one; nobody waits for the volume service."""
    cloud.settings.options["DEFAULT"]["rpc_response_timeout"] = 0
    made = await server(cloud, PROJECT, volumes=(MINE,))
    volumes(cloud).put(FREE)
    volumes(cloud).put(HAD, "in-use", servers=(made.uuid,))
    return made.uuid


# ---- which states, and who ----


@pytest.mark.capability("API-45", "API-46")
async def test_every_state(api: Api, cloud: Cloud, uuid: str) -> None:
    """One that is refused names what stands in its way, and leaves no action and no volume behind."""
    path = PATH.format(uuid)
    for vm, task in itertools.product(LIVING, [None, *TASK_STATES]):
        fine = vm in TAKEN and task is None
        where = f"vm_state {vm}" if vm not in TAKEN else f"task_state {task}"
        for verb, method, at, body in (
            ("attach_volume", "POST", path, wanted()),
            ("detach_volume", "DELETE", f"{path}/{HAD}", None),
        ):
            await put(cloud, uuid, vm_state=vm, task_state=task, volumes=(MINE,))
            before = len(await recorded(cloud, uuid))
            reply = await api(method, at, body, v=104)
            now, log = await get(cloud, uuid), await recorded(cloud, uuid)
            assert (now.vm_state, now.task_state) == (vm, task), "neither changes"
            if fine:
                assert (reply.status, reply.content) == (202, b"")
                assert (len(log), log[0]) == (before + 1, verb)
            else:
                assert reply.status == 409
                assert reply.fault == f"Cannot '{verb}' instance {uuid} while it is in {where}"
                assert (len(log), now.volumes) == (before, (MINE,))


@pytest.mark.parametrize("vm", ["shelved", "shelved_offloaded"])
async def test_shelved_ones_from_2_20_on(api: Api, cloud: Cloud, uuid: str, vm: str) -> None:
    await put(cloud, uuid, vm_state=vm)
    path = PATH.format(uuid)
    for method, at, body in (("POST", path, wanted()), ("DELETE", f"{path}/{HAD}", None)):
        reply = await api(method, at, body, v=19)
        assert (reply.status, "2.20" in reply.fault) == (409, True)
        assert (await api(method, at, body, v=20)).status in (200, 202)


@pytest.mark.capability("API-4")
async def test_a_lock_keeps_all_but_administrators_off(api: Api, cloud: Cloud, uuid: str) -> None:
    await put(cloud, uuid, locked="owner")
    path = PATH.format(uuid)
    for method, at, body in (("POST", path, wanted()), ("DELETE", f"{path}/{HAD}", None)):
        reply = await api(method, at, body)
        assert (reply.status, reply.fault) == (409, f"Instance {uuid} is locked")
        assert (await api(method, at, body, who="admin")).status in (200, 202)


@pytest.mark.parametrize(("who", "status"), [("reader", 403), ("nobody", 403), ("other", 404), ("", 401)])
async def test_who_may_not(api: Api, cloud: Cloud, uuid: str, who: str, status: int) -> None:
    path = PATH.format(uuid)
    assert (await api("POST", path, wanted(), who=who)).status == status
    assert (await api("DELETE", f"{path}/{HAD}", who=who)).status == status
    body = wanted(HAD, delete_on_termination=True)
    assert (await api("PUT", f"{path}/{HAD}", body, v=85, who=who)).status == status
    for at in (path, f"{path}/{HAD}"):
        seen = {"reader": 200}.get(who, status)
        assert (await api("GET", at, who=who)).status == seen
    assert await recorded(cloud, uuid) == []
    assert (await get(cloud, uuid)).volumes == (MINE,)


async def test_what_is_not_there(api: Api, cloud: Cloud, uuid: str) -> None:
    for nobody in (NOBODYS, "x"):
        path = PATH.format(nobody)
        assert (await api("GET", path)).status == 404
        assert (await api("POST", path, wanted())).status == 404
        for method, body in (("GET", None), ("PUT", wanted(HAD)), ("DELETE", None)):
            reply = await api(method, f"{path}/{HAD}", body, v=85)
            assert (reply.status, reply.fault) == (404, f"Instance {nobody} could not be found.")
    path = PATH.format(uuid)
    for volume in (NOBODYS, FREE, "x", "/", "%00"):
        for method in ("GET", "DELETE"):
            assert (await api(method, f"{path}/{volume}")).status == 404
    reply = await api("POST", path, wanted(NOBODYS))
    assert (reply.status, reply.fault) == (404, f"Volume {NOBODYS} could not be found.")
    assert await recorded(cloud, uuid) == []


BAD: list[tuple[int, Any]] = [
    (1, {}),
    (1, {"volumeAttachment": None}),
    (1, {"volumeAttachment": {}}),
    (1, {"volumeAttachment": []}),
    (1, {**wanted(), "colour": "red"}),
    (1, wanted(colour="red")),
    (1, wanted("x")),
    (1, wanted("")),
    (1, {"volumeAttachment": {"volumeId": 1}}),
    (1, {"volumeAttachment": {"volumeId": None}}),
    (1, wanted(device=1)),
    (1, wanted(device="")),
    (1, wanted(device="vdb")),
    (1, wanted(device="/dev/")),
    (1, wanted(device="/dev/../etc")),
    (1, wanted(device="/dev/vdb\n")),
    (1, wanted(device="/dev/vdaa")),
    (1, wanted(device="/dev/vdB")),
    (1, wanted(device="/dev/v" + "d" * 300)),
    (48, wanted(tag="data")),
    (49, wanted(tag="a/b")),
    (49, wanted(tag="x" * 61)),
    (49, wanted(tag=None)),
    (78, wanted(delete_on_termination=True)),
    (79, wanted(delete_on_termination="perhaps")),
    (79, wanted(delete_on_termination=None)),
]


@pytest.mark.capability("API-117")
@pytest.mark.parametrize(("version", "body"), BAD)
async def test_bodies_that_are_refused(api: Api, cloud: Cloud, uuid: str, version: int, body: Any) -> None:
    reply = await api("POST", PATH.format(uuid), body, v=version)
    assert reply.status == 400, reply.content
    assert (await get(cloud, uuid)).volumes == (MINE,) and await recorded(cloud, uuid) == []


# ---- which volume, and its name ----


@pytest.mark.capability("API-117")
@pytest.mark.parametrize("status", ["creating", "reserved", "attaching", "in-use", "detaching", "error"])
async def test_a_volume_that_is_not_to_be_had(api: Api, cloud: Cloud, uuid: str, status: str) -> None:
    others = (NOBODYS,) if status == "in-use" else ()
    volumes(cloud).put(FREE, status, servers=others)
    reply = await api("POST", PATH.format(uuid), wanted(), v=104)
    assert reply.status == 400 and status in reply.fault
    assert all(each in reply.fault for each in others), "it says which servers have it"
    reply = await api("POST", PATH.format(uuid), wanted(HAD), v=104)
    assert (reply.status, f"already attached to instance {uuid}" in reply.fault) == (400, True)
    assert (await get(cloud, uuid)).volumes == (MINE,)


@pytest.mark.capability("API-117")
async def test_one_volume_for_several_servers(api: Api, cloud: Cloud, uuid: str) -> None:
    volumes(cloud).put(FREE, "in-use", servers=(NOBODYS,), multiattach=True)
    reply = await api("POST", PATH.format(uuid), wanted(), v=59)
    assert (reply.status, "2.60" in reply.fault) == (400, True)
    assert (await api("POST", PATH.format(uuid), wanted(), v=60)).status == 200
    assert (await get(cloud, uuid)).volumes[1].multiattach
    volumes(cloud).put(FREE, "in-use", servers=(NOBODYS, uuid), multiattach=True)
    for _ in range(2):  # as the service knows it, and as only the row does
        assert (await api("POST", PATH.format(uuid), wanted(), v=60)).status == 400
        volumes(cloud).put(FREE, "in-use", servers=(NOBODYS,), multiattach=True)


@pytest.mark.capability("API-119")
async def test_what_one_that_is_shelved_away_cannot_have(api: Api, cloud: Cloud, uuid: str) -> None:
    await put(cloud, uuid, vm_state="shelved_offloaded", host=None, node=None)
    path = PATH.format(uuid)
    assert (await api("POST", path, wanted(tag="data"), v=49)).status == 400
    volumes(cloud).put(FREE, multiattach=True)
    assert (await api("POST", path, wanted(), v=60)).status == 400
    volumes(cloud).put(FREE)
    reply = await api("POST", path, wanted(device="/dev/vdc"), v=60)
    assert (reply.status, reply.json["volumeAttachment"]["device"]) == (200, None)
    assert (await get(cloud, uuid)).volumes[1].device is None
    assert "device" not in (await api("GET", f"{path}/{FREE}")).json["volumeAttachment"]


@pytest.mark.capability("MG-DEV-1")
@pytest.mark.parametrize(
    ("wish", "status", "device"),
    [
        (None, 200, "/dev/vdc"),
        ("/dev/vdc", 200, "/dev/vdc"),
        ("/dev/vdz", 200, "/dev/vdz"),
        ("/dev/sdd", 200, "/dev/vdd"),  # on the bus that its disks are on
        ("/dev/xvde1", 200, "/dev/vde"),
        ("/dev/vda", 409, None),
        ("/dev/vdb", 409, None),
        ("/dev/sdb", 409, None),
    ],
)
async def test_names_of_disks(
    api: Api, cloud: Cloud, uuid: str, wish: str | None, status: int, device: str | None
) -> None:
    reply = await api("POST", PATH.format(uuid), wanted(device=wish))
    assert reply.status == status, reply.content
    if status == 200:
        assert reply.json["volumeAttachment"]["device"] == device
    else:
        assert wish is not None and wish in reply.fault
        assert (await get(cloud, uuid)).volumes == (MINE,)


@pytest.mark.capability("MG-DEV-1")
async def test_no_more_disks_than_the_operator_allows(api: Api, cloud: Cloud, uuid: str) -> None:
    for most, status in ((2, 403), (0, 403), (3, 200)):
        cloud.settings.options["compute"]["max_disk_devices_to_attach"] = most
        reply = await api("POST", PATH.format(uuid), wanted())
        assert reply.status == status, most
    names = [f"/dev/vd{letter}" for letter in "bcdefghijklmnopqrstuvwxyz"]
    full = tuple(replace(MINE, id=name, volume_id=name, device=name) for name in names)
    cloud.settings.options["compute"]["max_disk_devices_to_attach"] = -1
    await put(cloud, uuid, volumes=full)
    reply = await api("POST", PATH.format(uuid), wanted())
    assert (reply.status, "no name left" in reply.fault) == (403, True)


# ---- what is shown ----


@pytest.mark.parametrize(
    "version", facts.edges(facts.facts("response")["servers.os-volume_attachments.list"])
)
async def test_what_is_shown(api: Api, cloud: Cloud, uuid: str, version: int) -> None:
    path = PATH.format(uuid)
    listed = (await api("GET", path, v=version, who="reader")).json
    facts.check_answer("servers.os-volume_attachments.list", version, [listed])
    one = (await api("GET", f"{path}/{HAD}", v=version, who="reader")).json
    facts.check_answer("servers.os-volume_attachments.show", version, [one])
    assert listed["volumeAttachments"] == [one["volumeAttachment"]]
    shown = one["volumeAttachment"]
    assert (shown["volumeId"], shown["serverId"], shown["device"]) == (HAD, uuid, "/dev/vdb")
    if version >= 89:
        assert (shown["attachment_id"], shown["bdm_uuid"]) == (MINE.attachment_id, MINE.id)
    seen = (await api("GET", f"/servers/{uuid}", v=version)).json["server"]
    attached = {"id": HAD} | ({"delete_on_termination": False} if version >= 3 else {})
    assert seen["os-extended-volumes:volumes_attached"] == [attached]


async def test_pages(api: Api, cloud: Cloud, uuid: str) -> None:
    names = [str(number) for number in range(5)]
    await put(cloud, uuid, volumes=tuple(replace(MINE, volume_id=name) for name in names))
    path = PATH.format(uuid)
    for query, seen in {
        "": names,
        "?limit=2": names[:2],
        "?limit=2&offset=3": names[3:],
        "?offset=9": [],
        "?limit=0": names,
        "?limit=99999999999999999999999": names,
        "?limit=1&limit=3": names[:3],
    }.items():
        listed = (await api("GET", path + query)).json["volumeAttachments"]
        assert [each["id"] for each in listed] == seen, query
    cloud.settings.options["api"]["max_limit"] = 3
    assert len((await api("GET", f"{path}?limit=4")).json["volumeAttachments"]) == 3
    for query in ("limit=-1", "limit=x", "offset=-1", "offset=", "limit=1.5"):
        expected = 200 if query == "offset=" else 400
        assert (await api("GET", f"{path}?{query}")).status == expected, query
    for version, status in ((74, 200), (75, 400)):
        assert (await api("GET", f"{path}?colour=red", v=version)).status == status


# ---- what becomes of it ----


async def test_whether_it_ends_with_its_server(api: Api, cloud: Cloud, uuid: str) -> None:
    path = f"{PATH.format(uuid)}/{HAD}"
    same = {"id": HAD, "serverId": uuid, "device": "/dev/vdb", "tag": "data"}
    for value, more in ((True, {}), ("false", same), ("1", {"device": None})):
        reply = await api("PUT", path, wanted(HAD, delete_on_termination=value, **more), v=85)
        assert (reply.status, reply.content) == (202, b"")
        shown = (await api("GET", path, v=79)).json["volumeAttachment"]
        assert shown["delete_on_termination"] == (value != "false")
    assert (await api("PUT", path, wanted(HAD), v=85)).status == 202, "nothing is to change"
    for field, other in {"id": FREE, "serverId": FREE, "device": "/dev/vdc", "tag": "other"}.items():
        reply = await api("PUT", path, wanted(HAD, delete_on_termination=False, **{field: other}), v=85)
        assert (reply.status, field in reply.fault) == (400, True)
    for bad in (
        wanted(HAD, delete_on_termination="perhaps"),
        wanted(HAD, colour="red"),
        wanted(HAD, delete_on_termination=None),
        {"volumeAttachment": {}},
        {},
    ):
        assert (await api("PUT", path, bad, v=85)).status == 400
    assert (await get(cloud, uuid)).volumes == (replace(MINE, delete_on_termination=True),)
    assert (await api("PUT", f"{PATH.format(uuid)}/{FREE}", wanted(FREE), v=85)).status == 404
    await put(cloud, uuid, task_state="migrating")
    reply = await api("PUT", path, wanted(HAD, delete_on_termination=False), v=85)
    assert (reply.status, "migrating" in reply.fault) == (409, True)


async def test_one_volume_is_not_exchanged_for_another(api: Api, cloud: Cloud, uuid: str) -> None:
    """Which only services may ask for; they are told that it is not done here."""
    path = f"{PATH.format(uuid)}/{HAD}"
    for version, new in ((1, FREE), (84, HAD), (85, FREE)):
        assert (await api("PUT", path, wanted(new), v=version)).status == 403
        reply = await api("PUT", path, wanted(new), v=version, who="admin")
        assert (reply.status, "cannot be swapped" in reply.fault) == (400, True)
    assert (await api("PUT", path, wanted(HAD, delete_on_termination=True), v=84)).status == 400
    reply = await api("PUT", f"{PATH.format(uuid)}/{FREE}", wanted(HAD), v=1, who="admin")
    assert reply.status == 404
    assert (await get(cloud, uuid)).volumes == (MINE,)


@pytest.mark.capability("API-120")
async def test_what_cannot_be_detached(api: Api, cloud: Cloud, uuid: str) -> None:
    path = f"{PATH.format(uuid)}/{HAD}"
    for status in ("detaching", "attaching", "reserved", "error"):
        volumes(cloud).put(HAD, status)
        reply = await api("DELETE", path)
        assert (reply.status, status in reply.fault) == (400, True)
    volumes(cloud).put(HAD, "in-use")
    await cloud.db.write(lambda tx: hosts.set_forced_down(tx, HOST, True, cloud.clock.now()))
    reply = await api("DELETE", path)
    assert (reply.status, "is down" in reply.fault) == (409, True)
    assert await recorded(cloud, uuid) == []
    await put(cloud, uuid, vm_state="shelved_offloaded", host=None)
    assert (await api("DELETE", path, v=20)).status == 202, "it is on no host"
