"""Changing, showing and deleting servers."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from kilonova.errors import HostFault
from kilonova.testing.embedded import audits, holdings
from tests.api.compute.asgi import Reply
from tests.api.compute.conftest import Whole
from tests.api.compute.whole_cloud import NOBODYS

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def change(whole: Whole, uuid: str, v: int = 104, who: str = "member", **fields: Any) -> Reply:
    return await whole.api("PUT", f"/servers/{uuid}", {"server": fields}, v=v, who=who)


@pytest.mark.capability("API-59")
async def test_what_can_be_changed(whole: Whole) -> None:
    uuid = (await whole.made(description="first", accessIPv4="192.0.2.1")).uuid
    before = await whole.instance(uuid)
    for fields, seen in (
        ({"name": "ünï ☃"}, {"name": "ünï ☃"}),
        ({"description": "second"}, {"description": "second"}),
        ({"description": ""}, {"description": ""}),
        ({"description": None}, {"description": None}),
        ({"accessIPv4": "192.0.2.2"}, {"accessIPv4": "192.0.2.2"}),
        ({"accessIPv6": "2001:DB8::1"}, {"accessIPv6": "2001:db8::1"}),
        ({"hostname": "a.b.example"}, {"OS-EXT-SRV-ATTR:hostname": "a.b.example"}),
        ({"OS-DCF:diskConfig": "AUTO"}, {"OS-DCF:diskConfig": "AUTO"}),
        ({"OS-DCF:diskConfig": "MANUAL"}, {"OS-DCF:diskConfig": "MANUAL"}),
        ({"name": "n", "hostname": "h1"}, {"name": "n", "OS-EXT-SRV-ATTR:hostname": "h1"}),
        ({}, {"name": "n"}),
    ):
        reply = await change(whole, uuid, **fields)
        assert reply.status == 200, reply.content
        answered = reply.json["server"]
        shown = await whole.shown(uuid, who="member")
        assert answered == shown
        assert {key: shown[key] for key in seen} == seen
    after = await whole.instance(uuid)
    assert (after.vm_state, after.task_state, after.power_state) == ("active", None, 1)
    assert (after.display_name, after.access_ip_v4, before.version < after.version) == (
        "n",
        "192.0.2.2",
        True,
    )
    actions = await whole.api("GET", f"/servers/{uuid}/os-instance-actions")
    assert [each["action"] for each in actions.json["instanceActions"]] == ["create"]


@pytest.mark.capability("API-59")
async def test_a_server_can_be_renamed_in_any_state(whole: Whole) -> None:
    """Also while it is built, busy, or locked."""
    with whole.held("prepare"):
        uuid = (await whole.create()).json["server"]["id"]
        assert (await change(whole, uuid, name="early")).json["server"]["name"] == "early"
    await whole.settled(uuid)
    assert (await whole.shown(uuid))["name"] == "early"
    await whole.act(uuid, "lock")
    assert (await change(whole, uuid, name="locked")).status == 200
    await whole.act(uuid, "os-stop", who="admin")
    assert (await change(whole, uuid, name="busy")).status == 200
    assert (await whole.settled(uuid)).vm_state == "stopped"
    assert (await whole.shown(uuid))["name"] == "busy"


@pytest.mark.parametrize(
    ("version", "fields"),
    [
        (104, {"name": ""}),
        (104, {"name": None}),
        (104, {"name": "x" * 256}),
        (104, {"name": " x"}),
        (104, {"name": 5}),
        (104, {"accessIPv4": ""}),
        (104, {"accessIPv4": "::1"}),
        (104, {"accessIPv6": "1.2.3.4"}),
        (104, {"description": "x" * 256}),
        (104, {"description": 5}),
        (18, {"description": "x"}),
        (104, {"OS-DCF:diskConfig": "SOMETIMES"}),
        (89, {"hostname": "h1"}),
        (93, {"hostname": "a.b"}),
        (104, {"hostname": ""}),
        (104, {"hostname": None}),
        (103, {"pinned_availability_zone": None}),
        (104, {"pinned_availability_zone": 5}),
        (104, {"tags": []}),
        (104, {"status": "ERROR"}),
        (104, {"id": NOBODYS}),
    ],
)
async def test_changes_that_are_refused(whole: Whole, version: int, fields: dict[str, Any]) -> None:
    uuid = await _one(whole)
    before = await whole.instance(uuid)
    reply = await change(whole, uuid, version, **fields)
    assert reply.status == 400, reply.content
    assert next(iter(fields)) in reply.fault
    assert await whole.instance(uuid) == before


_kept: list[str] = []


async def _one(whole: Whole) -> str:
    """A server that tests which change nothing may share."""
    if not _kept:
        _kept.append((await whole.made(name="shared")).uuid)
    return _kept[0]


@pytest.mark.parametrize("body", [{}, {"server": None}, {"server": []}, {"servers": {"name": "x"}}])
async def test_bodies_that_are_refused(whole: Whole, body: Any) -> None:
    reply = await whole.api("PUT", f"/servers/{await _one(whole)}", body, v=104)
    assert reply.status == 400
    assert "server" in reply.fault


async def test_the_pin_to_a_zone(whole: Whole) -> None:
    pinned = (await whole.made(availability_zone="nova")).uuid
    field = "pinned_availability_zone"
    assert (await change(whole, pinned, **{field: "nova"})).json["server"][field] == "nova"
    reply = await change(whole, pinned, **{field: "east"})
    assert (reply.status, "unpin" in reply.fault) == (409, True)
    assert (await change(whole, pinned, **{field: None})).json["server"][field] is None
    reply = await change(whole, pinned, **{field: "east"})
    assert (reply.status, "is in zone nova" in reply.fault) == (409, True)
    assert (await whole.instance(pinned)).pinned_availability_zone is None
    assert (await change(whole, pinned, **{field: "nova"})).json["server"][field] == "nova"


@pytest.mark.parametrize("who", ["other", "reader", "nobody", "service"])
async def test_who_may_change_and_delete(whole: Whole, who: str) -> None:
    """Of another project: 404, as if it were not there; of the own, without the role: 403."""
    uuid = await _one(whole)
    expected = 404 if who in ("other", "service") else 403
    for reply in (
        await change(whole, uuid, who=who, name="stolen"),
        await whole.api("DELETE", f"/servers/{uuid}", who=who),
    ):
        assert reply.status == expected
        if expected == 404:
            assert reply.fault == f"Instance {uuid} could not be found."
    shown = await whole.api("GET", f"/servers/{uuid}", who=who)
    assert shown.status == {"other": 404, "reader": 200, "nobody": 403, "service": 404}[who]
    instance = await whole.instance(uuid)
    assert (instance.display_name, instance.task_state, instance.deleted_at) == ("shared", None, None)


BELOW = [
    ("GET", "", None),
    ("PUT", "", {"server": {"name": "x"}}),
    ("DELETE", "", None),
    ("GET", "/metadata", None),
    ("POST", "/metadata", {"metadata": {}}),
    ("PUT", "/metadata", {"metadata": {}}),
    ("GET", "/metadata/k", None),
    ("PUT", "/metadata/k", {"meta": {"k": "v"}}),
    ("DELETE", "/metadata/k", None),
    ("GET", "/tags", None),
    ("PUT", "/tags", {"tags": []}),
    ("DELETE", "/tags", None),
    ("GET", "/tags/t", None),
    ("PUT", "/tags/t", None),
    ("DELETE", "/tags/t", None),
    ("GET", "/ips", None),
    ("GET", "/ips/private", None),
    ("GET", "/os-interface", None),
    ("GET", f"/os-interface/{NOBODYS}", None),
    ("GET", "/os-volume_attachments", None),
    ("GET", f"/os-volume_attachments/{NOBODYS}", None),
    ("GET", "/diagnostics", None),
    ("GET", "/os-instance-actions", None),
    ("GET", f"/os-instance-actions/req-{NOBODYS}", None),
    ("POST", "/action", {"os-start": None}),
    ("POST", "/action", {"os-stop": None}),
    ("POST", "/action", {"reboot": {"type": "SOFT"}}),
    ("POST", "/action", {"forceDelete": None}),
    ("POST", "/action", {"lock": None}),
    ("POST", "/action", {"unlock": None}),
    ("POST", "/action", {"os-resetState": {"state": "error"}}),
    ("POST", "/action", {"os-getConsoleOutput": {}}),
]


@pytest.mark.capability("API-125")
@pytest.mark.parametrize(("method", "path", "body"), BELOW, ids=[f"{m} {p} {b}" for m, p, b in BELOW])
async def test_servers_that_are_not_there_or_not_ones_own(
    whole: Whole, method: str, path: str, body: Any
) -> None:
    """Whatever is asked: another tenant's server is not there, not forbidden."""
    mine = await _one(whole)
    before = await whole.instance(mine)
    for identity, who in (
        (mine, "other"),
        (NOBODYS, "admin"),
        (NOBODYS, "member"),
        ("not-a-uuid", "admin"),
        (mine.upper(), "admin"),
        ("%00", "admin"),
        ("\0", "admin"),
        ("ü", "admin"),
    ):
        reply = await whole.api(method, f"/servers/{identity}{path}", body, v=104, who=who)
        assert reply.status == 404, (identity, reply.content)
        assert reply.fault in (
            f"Instance {identity} could not be found.",
            "The resource could not be found.",  # of a path with a NUL in it
        )
        assert "\0" in identity or identity in reply.fault
    assert await whole.instance(mine) == before


# ---- deleting ----


@pytest.mark.capability("API-11", "API-96")
async def test_delete_takes_everything_away(whole: Whole) -> None:
    instance = await whole.made(networks="auto")
    uuid = instance.uuid
    assert len(await whole.vifs(uuid)) == 1
    replies = [await whole.api("DELETE", f"/servers/{uuid}") for _ in range(3)]
    assert [reply.status for reply in replies] == [204, 204, 204]
    assert all(reply.content == b"" and "content-type" not in reply.headers for reply in replies)
    gone = await whole.settled(uuid)
    assert (gone.vm_state, gone.task_state, gone.power_state, gone.progress) == ("deleted", None, 0, 0)
    assert gone.deleted_at == gone.terminated_at
    assert (await holdings(whole.cloud, uuid)).nothing
    assert await audits(whole.cloud) == []
    for path in ("", "/ips", "/metadata"):
        assert (await whole.api("GET", f"/servers/{uuid}{path}")).status == 404
    assert (await whole.api("DELETE", f"/servers/{uuid}")).status == 404
    actions = await whole.api("GET", f"/servers/{uuid}/os-instance-actions", v=21)
    assert [each["action"] for each in actions.json["instanceActions"]] == ["delete", "create"]


@pytest.mark.capability("API-92")
@pytest.mark.parametrize("verb", ["prepare", "start", "resume"])
async def test_delete_while_it_is_built(whole: Whole, verb: str) -> None:
    with whole.held(verb):
        uuid = (await whole.create(networks="auto")).json["server"]["id"]
        async with asyncio.timeout(30):
            while (await whole.instance(uuid)).task_state != "spawning":
                await asyncio.sleep(0.005)
        assert (await whole.api("DELETE", f"/servers/{uuid}")).status == 204
        shown = await whole.api("GET", f"/servers/{uuid}", v=104)
        assert shown.status == 404 or shown.json["server"]["OS-EXT-STS:task_state"] == "deleting"
        assert (await whole.settled(uuid)).vm_state == "deleted"  # it waits for nobody
    assert (await holdings(whole.cloud, uuid)).nothing
    assert await audits(whole.cloud) == []


@pytest.mark.capability("API-92")
async def test_delete_at_once(whole: Whole) -> None:
    for _ in range(10):
        uuid = (await whole.create(networks="auto")).json["server"]["id"]
        assert (await whole.api("DELETE", f"/servers/{uuid}")).status == 204
        assert (await whole.settled(uuid)).vm_state == "deleted"
        assert (await holdings(whole.cloud, uuid)).nothing
    assert await audits(whole.cloud) == []


async def test_many_deletes_at_a_time(whole: Whole) -> None:
    uuid = (await whole.made(networks="auto")).uuid
    replies = await asyncio.gather(*(whole.api("DELETE", f"/servers/{uuid}") for _ in range(10)))
    assert {reply.status for reply in replies} <= {204, 404}
    assert replies[0].status == 204
    await whole.settled(uuid)
    actions = await whole.api("GET", f"/servers/{uuid}/os-instance-actions", v=21)
    assert [each["action"] for each in actions.json["instanceActions"]] == ["delete", "create"]
    assert await audits(whole.cloud) == []


async def test_delete_of_one_that_was_never_placed(whole: Whole) -> None:
    uuid = (await whole.made(who="admin", availability_zone="nova:moon")).uuid
    await whole.gone(uuid)


@pytest.mark.capability("API-13")
async def test_force_delete(whole: Whole) -> None:
    uuid = (await whole.made(networks="auto")).uuid
    reply = await whole.act(uuid, "forceDelete")
    assert (reply.status, reply.content) == (202, b"")
    assert (await whole.settled(uuid)).vm_state == "deleted"
    assert (await holdings(whole.cloud, uuid)).nothing
    actions = await whole.api("GET", f"/servers/{uuid}/os-instance-actions", v=21)
    assert actions.json["instanceActions"][0]["action"] == "delete"


async def test_delete_when_the_host_stumbles(whole: Whole) -> None:
    """What fails is repeated until it is done; the server cannot stay half gone."""
    uuid = (await whole.made(networks="auto")).uuid
    whole.driver.faults.add("undefine", HostFault("busy"), times=2)
    await whole.gone(uuid, "member")


async def test_what_is_deleted_in_between(whole: Whole) -> None:
    """The server goes between the answer of a list and the next request about it."""
    uuid = (await whole.made()).uuid
    await whole.gone(uuid)
    for method, path, body in BELOW:
        if "os-instance-actions" in path:
            continue
        reply = await whole.api(method, f"/servers/{uuid}{path}", body, v=104)
        assert reply.status == 404, (method, path, reply.content)
