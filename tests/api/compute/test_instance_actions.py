"""The log of what was asked of a server and what was done for it, in every microversion."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

import pytest

from kilonova.clock import SECOND, iso_z
from kilonova.errors import Failed, HostFault
from tests.api.compute.conftest import Whole
from tests.api.compute.whole_cloud import NOBODYS

pytestmark = pytest.mark.asyncio(loop_scope="module")

# operation -> the name of the event that Nova writes for it, which clients look for
NOVAS = {
    "create": "compute__do_build_and_run_instance",
    "stop": "compute_stop_instance",
    "start": "compute_start_instance",
    "reboot": "compute_reboot_instance",
    "delete": "compute_terminate_instance",
    "lock": "api_lock",
    "unlock": "api_unlock",
}


async def listed(whole: Whole, uuid: str, query: str = "", v: int = 104, who: str = "member") -> list[Any]:
    reply = await whole.api("GET", f"/servers/{uuid}/os-instance-actions{query}", v=v, who=who)
    assert reply.status == 200, reply.content
    found: list[Any] = reply.json["instanceActions"]
    return found


async def action(whole: Whole, uuid: str, request_id: str, v: int = 104, who: str = "admin") -> Any:
    reply = await whole.api("GET", f"/servers/{uuid}/os-instance-actions/{request_id}", v=v, who=who)
    assert reply.status == 200, reply.content
    return reply.json["instanceAction"]


async def busy_server(whole: Whole) -> tuple[str, dict[str, str]]:
    """A server to which much was done, and the request that did it, by name, in order."""
    reply = await whole.create(networks="auto")
    uuid = reply.json["server"]["id"]
    requests = {"create": reply.headers["x-compute-request-id"]}
    for name, act, argument in (
        ("stop", "os-stop", None),
        ("start", "os-start", None),
        ("reboot", "reboot", {"type": "HARD"}),
        ("lock", "lock", None),
        ("unlock", "unlock", None),
    ):
        await whole.settled(uuid)
        reply = await whole.act(uuid, act, argument)
        assert reply.status == 202
        requests[name] = reply.headers["x-openstack-request-id"]
    reply = await whole.act(uuid, "os-resetState", {"state": "active"}, who="admin")
    requests["resetState"] = reply.headers["x-openstack-request-id"]
    return uuid, requests


@pytest.mark.capability("API-139", "IA-9")
async def test_everything_is_written_down(whole: Whole) -> None:
    uuid, requests = await busy_server(whole)
    found = await listed(whole, uuid)
    assert [each["action"] for each in found] == list(requests)[::-1]
    assert [each["request_id"] for each in found] == list(requests.values())[::-1]
    starts = [each["start_time"] for each in found]
    assert starts == sorted(starts, reverse=True)
    users, projects = whole.tokens.users, whole.tokens.projects
    for each in found:
        who = "admin" if each["action"] == "resetState" else "member"
        assert (each["user_id"], each["project_id"]) == (users[who], projects[who])
        assert (each["instance_uuid"], each["message"]) == (uuid, None)
        assert each["updated_at"] >= each["start_time"]
        shown = await action(whole, uuid, each["request_id"])
        events = shown.pop("events")
        assert shown == each
        names = [event["event"] for event in events]
        if each["action"] in NOVAS:
            assert NOVAS[each["action"]] in names
        assert {event["result"] for event in events} <= {"Success"}
        assert all(event["start_time"] <= event["finish_time"] for event in events)
        assert all(event["traceback"] is None and event["details"] is None for event in events)
        on_host = [event for event in events if event["event"] == NOVAS.get(each["action"])]
        if each["action"] in ("stop", "start", "reboot"):
            assert [event["host"] for event in on_host] == [whole.host]
    await whole.gone(uuid)
    (deleted, *_) = await listed(whole, uuid, v=21)
    assert deleted["action"] == "delete"
    assert NOVAS["delete"] in [
        event["event"] for event in (await action(whole, uuid, deleted["request_id"]))["events"]
    ]


async def test_a_refused_request_is_not_written_down(whole: Whole) -> None:
    uuid = (await whole.made()).uuid
    refused = await whole.act(uuid, "os-start")
    assert refused.status == 409
    assert [each["action"] for each in await listed(whole, uuid)] == ["create"]
    path = f"/servers/{uuid}/os-instance-actions/{refused.headers['x-compute-request-id']}"
    reply = await whole.api("GET", path)
    assert (reply.status, "not found" in reply.fault) == (404, True)
    await whole.gone(uuid)


@pytest.mark.capability("IA-9")
async def test_who_is_told_what_of_a_failure(whole: Whole) -> None:
    whole.driver.faults.add("start", Failed("the machine type is unknown: " + "x" * 300))
    uuid = (await whole.made()).uuid
    (create,) = await listed(whole, uuid)
    assert create["message"] == "Error"
    name = NOVAS["create"]
    for version, who, keys in (
        (50, "member", None),
        (50, "admin", {"traceback"}),
        (51, "member", set()),
        (61, "admin", {"traceback"}),
        (62, "member", {"hostId"}),
        (62, "admin", {"traceback", "hostId", "host"}),
        (83, "admin", {"traceback", "hostId", "host"}),
        (84, "member", {"hostId"}),
        (84, "admin", {"traceback", "hostId", "host", "details"}),
    ):
        shown = await action(whole, uuid, create["request_id"], version, who)
        if keys is None:
            assert "events" not in shown
            continue
        (event,) = [each for each in shown["events"] if each["event"] == name]
        assert set(event) == keys | {"event", "start_time", "finish_time", "result"}, (version, who)
        assert event["result"] == "Error"
        if "traceback" in keys:
            assert "the machine type is unknown" in event["traceback"]
        if "details" in keys:
            assert event["details"].startswith("the machine type is unknown")
            assert len(event["details"]) == 255
        if "host" in keys:
            assert event["host"] == whole.host
        if "hostId" in keys:
            assert len(event["hostId"]) == 56
    undone = [each["event"] for each in (await action(whole, uuid, create["request_id"]))["events"]]
    assert f"{name}_undo" in undone
    await whole.gone(uuid)


async def test_the_host_id_of_an_event_is_the_servers(whole: Whole) -> None:
    uuid = (await whole.made()).uuid
    (create,) = await listed(whole, uuid)
    shown = await action(whole, uuid, create["request_id"], who="member")
    seen = {event["hostId"] for event in shown["events"]} - {""}
    assert seen == {(await whole.shown(uuid, who="member"))["hostId"]}
    await whole.gone(uuid)


async def test_what_is_under_way(whole: Whole) -> None:
    uuid = (await whole.made()).uuid
    with whole.held("power_off"):
        await whole.act(uuid, "os-stop")
        (stop, _) = await listed(whole, uuid)
        assert (stop["action"], stop["message"]) == ("stop", None)
        assert stop["updated_at"] == stop["start_time"]
        assert [each["action"] for each in await listed(whole, uuid, "?limit=1")] == ["stop"]
        since = iso_z((await whole.instance(uuid)).created_at)
        assert len(await listed(whole, uuid, f"?changes-since={since}")) == 2
    await whole.settled(uuid)
    (stop, _) = await listed(whole, uuid)
    assert stop["updated_at"] > stop["start_time"]
    await whole.gone(uuid)


@pytest.mark.capability("API-139")
async def test_pages(whole: Whole) -> None:
    uuid, requests = await busy_server(whole)
    whole_list = [each["request_id"] for each in await listed(whole, uuid)]
    for limit in (1, 3, 7):
        walked: list[str] = []
        address: str | None = f"/servers/{uuid}/os-instance-actions?limit={limit}"
        while address is not None:
            reply = await whole.api("GET", address, v=58)
            walked += [each["request_id"] for each in reply.json["instanceActions"]]
            links = reply.json.get("links")
            address = None
            if links is not None:
                (link,) = links
                assert link["rel"] == "next"
                parts = urlsplit(link["href"])
                address = f"{parts.path.removeprefix('/v2.1')}?{parts.query}"
        assert walked == whole_list
    assert await listed(whole, uuid, "?limit=0") == []
    after = await listed(whole, uuid, f"?marker={requests['start']}")
    assert [each["action"] for each in after] == ["stop", "create"]
    for query in (
        f"?marker=req-{NOBODYS}",
        "?limit=x",
        "?limit=-1",
        "?marker=",
        "?colour=red",
        "?changes-since=x",
    ):
        reply = await whole.api("GET", f"/servers/{uuid}/os-instance-actions{query}", v=104)
        assert (reply.status, bool(reply.fault)) == (400, True), query
    await whole.gone(uuid)


async def test_before_2_58_there_are_no_pages(whole: Whole) -> None:
    uuid, _ = await busy_server(whole)
    for version in (1, 57):
        found = await listed(whole, uuid, "?limit=1&marker=x&changes-since=x&colour=red", version)
        assert len(found) == 7
        assert "updated_at" not in found[0]
    await whole.gone(uuid)


@pytest.mark.capability("API-139")
async def test_changes_since_and_before(whole: Whole) -> None:
    uuid, _ = await busy_server(whole)
    instance = await whole.instance(uuid)
    before, after = iso_z(instance.created_at - 10 * SECOND), iso_z(whole.cloud.clock.now() + 10 * SECOND)
    for query, count in (
        (f"?changes-since={before}", 7),
        (f"?changes-since={after}", 0),
        (f"?changes-before={before}", 0),
        (f"?changes-before={after}", 7),
        (f"?changes-since={before}&changes-before={after}", 7),
    ):
        assert len(await listed(whole, uuid, query, 66)) == count, query
    path = f"/servers/{uuid}/os-instance-actions"
    reply = await whole.api("GET", f"{path}?changes-since={after}&changes-before={before}", v=66)
    assert (reply.status, "changes-since" in reply.fault) == (400, True)
    reply = await whole.api("GET", f"{path}?changes-before={before}", v=65)
    assert (reply.status, "changes-before" in reply.fault) == (400, True)
    await whole.gone(uuid)


@pytest.mark.capability("API-139")
async def test_actions_of_the_deleted_since_2_21(whole: Whole) -> None:
    uuid = (await whole.made()).uuid
    (create,) = await listed(whole, uuid)
    await whole.gone(uuid)
    for path in ("", f"/{create['request_id']}"):
        for version, status in ((1, 404), (20, 404), (21, 200), (104, 200)):
            reply = await whole.api("GET", f"/servers/{uuid}/os-instance-actions{path}", v=version)
            assert reply.status == status
        reply = await whole.api("GET", f"/servers/{uuid}/os-instance-actions{path}", v=104, who="other")
        assert reply.status == 404


async def test_an_action_belongs_to_its_server(whole: Whole) -> None:
    one, two = (await whole.made()).uuid, (await whole.made()).uuid
    (create,) = await listed(whole, one)
    reply = await whole.api("GET", f"/servers/{two}/os-instance-actions/{create['request_id']}")
    assert reply.status == 404
    reason = f"Action for request_id {create['request_id']} on instance {two} not found"
    assert reply.fault == reason
    for odd in ("x", "%00", "ü", "\0", "req-"):
        reply = await whole.api("GET", f"/servers/{one}/os-instance-actions/{odd}")
        assert reply.status == 404
    for uuid in (one, two):
        await whole.gone(uuid)


async def test_servers_of_one_request_have_one_request_id(whole: Whole) -> None:
    reply = await whole.create(min_count=2, return_reservation_id=True)
    found = await whole.api("GET", f"/servers?reservation_id={reply.json['reservation_id']}")
    uuids = [each["id"] for each in found.json["servers"]]
    for uuid in uuids:
        shown = await action(whole, uuid, reply.headers["x-compute-request-id"])
        assert (shown["instance_uuid"], shown["action"]) == (uuid, "create")


@pytest.mark.parametrize(("who", "status"), [("reader", 200), ("nobody", 403), ("other", 404)])
async def test_who_may_read_them(whole: Whole, who: str, status: int) -> None:
    uuid = (await whole.made()).uuid
    (create,) = await listed(whole, uuid)
    for path in ("", f"/{create['request_id']}"):
        reply = await whole.api("GET", f"/servers/{uuid}/os-instance-actions{path}", v=104, who=who)
        assert reply.status == status
    await whole.gone(uuid)


async def test_a_host_that_fails_and_is_tried_once_more(whole: Whole) -> None:
    """Two rounds of a boot are seen in its events."""
    whole.driver.faults.add("start", HostFault("no memory"))
    uuid = (await whole.made()).uuid
    (create,) = await listed(whole, uuid)
    events = (await action(whole, uuid, create["request_id"]))["events"]
    failed = [each for each in events if each["result"] == "Error"]
    assert [each["event"] for each in failed][:1] == [NOVAS["create"]]
    assert "no memory" in failed[0]["details"]
    await whole.gone(uuid)
