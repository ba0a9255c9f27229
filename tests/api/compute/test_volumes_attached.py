"""Volumes that are really attached and detached by ``/servers/{id}/os-volume_attachments``, and what the
volume service and hosts refuse."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from kilonova.errors import HostFault, Unreachable
from kilonova.model.context import RequestContext
from kilonova.model.instance import Instance
from kilonova.services.volume.records import NewVolume
from kilonova.testing.embedded import member
from tests.api.compute import facts
from tests.api.compute.asgi import Reply
from tests.api.compute.test_volumes import PATH, wanted
from tests.api.compute.whole_cloud import Whole

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def new_volume(whole: Whole, who: str = "member") -> str:
    """An empty one of the member's project, or of another one."""
    context = member(whole.cloud)
    if who == "other":
        context = replace(context, project_id=whole.tokens.projects["other"])
    made = await whole.cloud.volume.create(context, NewVolume(size_gb=1))
    await whole.cloud.volume.idle()
    return made.id


async def dropped(whole: Whole, volume: str) -> None:
    await whole.cloud.volume.delete(volume)
    await whole.cloud.volume.idle()


async def status_of(whole: Whole, volume: str) -> str:
    context = RequestContext(request_id="req-x", user_id="u", roles=frozenset({"admin"}))
    return (await whole.cloud.volume.check(context, volume)).status


async def attach(whole: Whole, uuid: str, volume: str, how: dict[str, Any] | None = None, **f: Any) -> Reply:
    return await whole.api("POST", PATH.format(uuid), wanted(volume, **f), **(how or {}))


async def detach(whole: Whole, uuid: str, volume: str, **how: Any) -> Reply:
    return await whole.api("DELETE", f"{PATH.format(uuid)}/{volume}", **how)


async def agreed(whole: Whole, uuid: str) -> Instance:
    """The server in rest, whose guest has the same volumes as its row."""
    found = await whole.settled(uuid)
    assert whole.driver.guest_file.volumes(uuid) == found.volumes
    return found


@pytest.mark.capability("API-45", "API-46", "API-118", "MG-DEV-2", "MG-DEV-3")
@pytest.mark.parametrize(
    "version", facts.edges(facts.facts("response")["servers.os-volume_attachments.create"])
)
async def test_a_volume_is_added_and_removed(whole: Whole, version: int) -> None:
    volume, uuid = await new_volume(whole), (await whole.made()).uuid
    more: dict[str, Any] = {"tag": "data"} if version >= 49 else {}
    more |= {"delete_on_termination": False} if version >= 79 else {}
    reply = await attach(whole, uuid, volume, {"v": version}, device="/dev/vdd", **more)
    assert reply.status == (202 if version >= 101 else 200), reply.content
    if version >= 101:
        assert reply.content == b""
    else:
        facts.check_answer("servers.os-volume_attachments.create", version, [reply.json])
        assert reply.json["volumeAttachment"]["device"] == "/dev/vdd"
    (mine,) = (await agreed(whole, uuid)).volumes
    assert (mine.volume_id, mine.device, mine.tag) == (volume, "/dev/vdd", more.get("tag"))
    assert await status_of(whole, volume) == "in-use"
    assert (await attach(whole, uuid, volume, {"v": version})).status == 400

    assert (await detach(whole, uuid, volume, v=version)).status == 202
    assert (await agreed(whole, uuid)).volumes == ()
    assert await status_of(whole, volume) == "available"
    assert (await detach(whole, uuid, volume, v=version)).status == 404
    reply = await whole.api("GET", f"/servers/{uuid}/os-instance-actions", v=version)
    log = [(each["action"], each["message"]) for each in reply.json["instanceActions"]]
    assert log == [("detach_volume", None), ("attach_volume", None), ("create", None)]
    await whole.gone(uuid)
    await dropped(whole, volume)


@pytest.mark.capability("API-119", "API-120")
async def test_of_one_that_is_off_or_away(whole: Whole) -> None:
    """It has them when it runs again: those that it got meanwhile, and not those that were taken."""
    first, second, third = [await new_volume(whole) for _ in range(3)]
    uuid = (await whole.made()).uuid
    await whole.act(uuid, "os-stop")
    await whole.settled(uuid)
    assert (await attach(whole, uuid, first)).status == 200
    assert (await attach(whole, uuid, second)).status == 200
    assert [each.device for each in (await agreed(whole, uuid)).volumes] == ["/dev/vdb", "/dev/vdc"]
    await whole.act(uuid, "os-start")
    assert len((await agreed(whole, uuid)).volumes) == 2
    await whole.act(uuid, "shelve")
    assert (await whole.settled(uuid)).host is None
    assert (await attach(whole, uuid, third, {"v": 20})).status == 200
    assert (await detach(whole, uuid, first, v=20)).status == 202
    away = await whole.settled(uuid)
    assert [each.volume_id for each in away.volumes] == [second, third]
    assert [await status_of(whole, each) for each in (first, second, third)] == ["available", *["in-use"] * 2]
    for action, event in (("attach_volume", "api_attach_volume"), ("detach_volume", "api_detach_volume")):
        assert event in await events(whole, uuid, action)
    await whole.act(uuid, "unshelve")
    back = await agreed(whole, uuid)
    assert back.host is not None, back.fault
    assert [each.volume_id for each in back.volumes] == [second, third]
    assert len({each.device for each in back.volumes} | {"/dev/vda"}) == 3
    await whole.act(uuid, "reboot", {"type": "HARD"})
    assert (await agreed(whole, uuid)).volumes == back.volumes
    await whole.gone(uuid)
    for each in (first, second, third):
        await dropped(whole, each)


async def events(whole: Whole, uuid: str, action: str) -> list[str]:
    """Of the newest such action."""
    path = f"/servers/{uuid}/os-instance-actions"
    log = (await whole.api("GET", path)).json["instanceActions"]
    request = next(each["request_id"] for each in log if each["action"] == action)
    shown = (await whole.api("GET", f"{path}/{request}", who="admin")).json["instanceAction"]
    return [each["event"] for each in shown["events"]]


@pytest.mark.capability("MG-DEL-6")
async def test_what_ends_with_its_server(whole: Whole) -> None:
    kept, ended = await new_volume(whole), await new_volume(whole)
    uuid = (await whole.made()).uuid
    for volume, ends in ((kept, "no"), (ended, "yes")):
        reply = await attach(whole, uuid, volume, {"v": 79}, delete_on_termination=ends)
        assert reply.json["volumeAttachment"]["delete_on_termination"] == (ends == "yes")
    await agreed(whole, uuid)
    await whole.gone(uuid)
    await whole.cloud.volume.idle()
    assert await status_of(whole, kept) == "available"
    with pytest.raises(Exception, match="could not be found"):
        await status_of(whole, ended)
    await dropped(whole, kept)


@pytest.mark.parametrize("version", [100, 101])
async def test_what_the_volume_service_refuses(
    whole: Whole, monkeypatch: pytest.MonkeyPatch, version: int
) -> None:
    """Another project's volume is none; one that somebody else takes meanwhile is refused, and told so up to
    2.100, and in the server's action."""
    theirs, volume = await new_volume(whole, "other"), await new_volume(whole)
    uuid = (await whole.made()).uuid
    assert (await attach(whole, uuid, theirs, {"v": version})).status == 404
    other = (await whole.made()).uuid
    assert (await attach(whole, other, volume)).status == 200
    await agreed(whole, other)
    reply = await attach(whole, uuid, volume, {"v": version})
    assert (reply.status, other in reply.fault) == (400, True)
    check = whole.cloud.volume.check

    async def stale(context: RequestContext, volume_id: str) -> Any:
        return replace(await check(context, volume_id), status="available", servers=())

    monkeypatch.setattr(whole.cloud.volume, "check", stale)
    reply = await attach(whole, uuid, volume, {"v": version})
    assert reply.status == (202 if version >= 101 else 400), reply.content
    found = await agreed(whole, uuid)
    assert found.volumes == () and found.fault is not None and "Invalid volume" in found.fault.message
    if version == 100:
        assert reply.fault == found.fault.message
    monkeypatch.undo()
    assert [each.volume_id for each in (await agreed(whole, other)).volumes] == [volume]
    for each in (uuid, other):
        await whole.gone(each)
    for each in (theirs, volume):
        await dropped(whole, each)


@pytest.mark.capability("API-118", "MG-DEV-2")
async def test_what_a_host_cannot_do_is_told_by_the_server(whole: Whole) -> None:
    """Who asked has his answer by then, as in Nova."""
    volume, uuid = await new_volume(whole), (await whole.made()).uuid
    with whole.held("attach_volume"):
        whole.driver.faults.add("attach_volume", HostFault("there is no place on the bus"))
        assert (await attach(whole, uuid, volume)).status == 200
        assert (await detach(whole, uuid, volume)).status == 400, "it is not yet in use"
    found = await agreed(whole, uuid)
    assert found.volumes == () and found.fault is not None and "no place" in found.fault.message
    assert await status_of(whole, volume) == "available"
    await whole.gone(uuid)
    await dropped(whole, volume)


async def test_a_volume_that_is_no_more_can_be_taken(whole: Whole) -> None:
    """Its record was removed behind the server's back; the guest still has it."""
    volume, uuid = await new_volume(whole), (await whole.made()).uuid
    assert (await attach(whole, uuid, volume)).status == 200
    (mine,) = (await agreed(whole, uuid)).volumes
    await whole.cloud.volume.release(mine.attachment_id)
    await dropped(whole, volume)
    assert (await detach(whole, uuid, volume)).status == 202
    assert (await agreed(whole, uuid)).volumes == ()
    theirs = await new_volume(whole, "other")
    assert (await attach(whole, uuid, theirs, {"who": "admin"})).status == 200
    await agreed(whole, uuid)
    assert (await detach(whole, uuid, theirs)).status == 404, "it is there, and another project's"
    await whole.gone(uuid)
    await dropped(whole, theirs)


async def test_an_administrator_gives_a_server_its_projects_volume(whole: Whole) -> None:
    """As who is asked for: the volume service goes by their roles, also later, in the operation."""
    volume, uuid = await new_volume(whole), (await whole.made()).uuid
    assert (await attach(whole, uuid, volume, {"who": "admin"})).status == 200
    assert len((await agreed(whole, uuid)).volumes) == 1
    assert (await detach(whole, uuid, volume, who="admin")).status == 202
    assert (await agreed(whole, uuid)).volumes == ()
    await whole.gone(uuid)
    await dropped(whole, volume)


async def test_a_volume_service_that_is_late(whole: Whole, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks is not kept waiting for long; what was asked for goes on."""
    volume, uuid = await new_volume(whole), (await whole.made()).uuid
    reserve, works = whole.cloud.volume.reserve, False

    async def late(*arguments: Any) -> Any:
        if not works:
            raise Unreachable("the volume service does not answer")
        return await reserve(*arguments)

    monkeypatch.setattr(whole.cloud.volume, "reserve", late)
    monkeypatch.setitem(whole.cloud.settings.options["DEFAULT"], "rpc_response_timeout", 0)
    reply = await attach(whole, uuid, volume)
    assert (reply.status, reply.json["volumeAttachment"]["device"]) == (200, "/dev/vdb")
    works = True
    assert len((await agreed(whole, uuid)).volumes) == 1
    await whole.gone(uuid)
    await dropped(whole, volume)
