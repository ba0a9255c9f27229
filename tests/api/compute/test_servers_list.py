"""Lists of servers: filters, who may use them, and what is shown."""

from __future__ import annotations

from typing import Any

import pytest

from kilonova.clock import SECOND
from kilonova.db import hosts
from kilonova.model.states import STATUS
from tests.api.compute.asgi import Api, Reply
from tests.api.compute.conftest import PROJECT
from tests.api.compute.parts import HOST, NETWORK
from tests.api.compute.shelf import GONE, IMAGE2, NAMES, OTHER, THEIRS, at, refused, shelf

__all__ = ["shelf"]  # the fixture

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def names(shelf: Api, query: str, v: int = 104, who: str = "admin") -> list[str]:
    """The names in a list by name; an administrator sees those of PROJECT only."""
    if (
        who == "admin"
        and "all_tenants" not in query
        and "project_id" not in query
        and "tenant_id" not in query
    ):
        query += f"&all_tenants=1&project_id={PROJECT}"
    found = {}
    for path in ("/servers", "/servers/detail"):
        reply = await shelf("GET", f"{path}?{query}", v=v, who=who)
        assert reply.status == 200, reply.content
        found[path] = [each["name"] for each in reply.json["servers"]]
    assert found["/servers"] == found["/servers/detail"]
    return sorted(found["/servers"])


FILTERS: list[tuple[str, list[str]]] = [
    ("", NAMES),
    ("name=web", ["web-1", "web-2"]),
    ("name=%5Eweb-1%24", ["web-1"]),
    ("name=1%24", ["db-1", "web-1"]),
    ("name=web-1", ["web-1"]),
    ("name=Mixed%20Case", ["Mixed Case"]),
    ("name=(web%7Cdb)-2", ["db-2", "web-2"]),
    ("name=nothing", []),
    ("name=web&name=db-1", ["db-1"]),  # of a key that is repeated the last value counts
    ("display_name=web", ["web-1", "web-2"]),
    ("status=ACTIVE", ["broken", "moving", "web-1", "web-2"]),  # as in Nova, also those that do something
    ("status=active", ["broken", "moving", "web-1", "web-2"]),
    ("status=SHUTOFF", ["db-1"]),
    ("status=ERROR", ["db-2"]),
    ("status=REBOOT", ["broken"]),
    ("status=RESIZE", ["moving"]),
    ("status=PAUSED&status=BUILD", ["Mixed Case", "new"]),
    ("status=DELETED", [GONE]),
    ("status=VERIFY_RESIZE", []),
    ("vm_state=active", ["broken", "moving", "web-1", "web-2"]),
    ("vm_state=deleted", [GONE]),
    ("task_state=spawning", ["new"]),
    ("power_state=4", ["db-1"]),
    ("power_state=3", ["Mixed Case"]),
    ("power_state=x", []),
    ("power_state=99999999999999999999", []),
    ("flavor=c1", ["web-1"]),
    ("flavor=nowhere", []),
    (f"image={IMAGE2}", ["web-2"]),
    (f"image_ref={IMAGE2}", ["web-2"]),
    ("image=nowhere", []),
    ("ip=10.0.0.6", ["web-2"]),
    ("ip=%5E10%5C.0%5C.0%5C.6%24", ["web-2"]),
    ("ip=10.0.0", ["Mixed Case", "broken", "db-2", "moving", "web-1", "web-2"]),
    ("ip6=fd00::77", ["db-1"]),
    ("ip=fd00", []),
    (f"host={HOST}", [name for name in NAMES if name != "db-2"]),
    ("host=moon", []),
    (f"node={HOST}&name=web", ["web-1", "web-2"]),
    ("reservation_id=r-abcdefgh", ["broken"]),
    ("availability_zone=east", ["moving"]),
    ("hostname=mover", ["moving"]),
    ("key_name=k1", ["web-1"]),
    ("config_drive=true", ["web-1"]),
    ("config_drive=0&name=web", ["web-2"]),
    ("user_id=somebody", ["new"]),
    ("description=(rare)", ["Mixed Case"]),
    ("description=rare", ["Mixed Case"]),
    ("description=%5C(rare%5C)", ["Mixed Case"]),
    ("progress=40", ["Mixed Case"]),
    ("launch_index=0&name=db", ["db-1", "db-2"]),
    ("locked=true", ["web-2"]),
    ("locked=false&name=web", ["web-1"]),
    ("locked_by=owner", ["web-2"]),
    ("tags=blue", ["web-1", "web-2"]),
    ("tags=blue,prod", ["web-1"]),
    ("tags-any=blue,prod", ["db-1", "web-1", "web-2"]),
    ("not-tags=blue&name=-", ["db-1", "db-2"]),
    ("not-tags=blue,prod&name=-", ["db-1", "db-2", "web-2"]),
    ("not-tags-any=blue,prod&name=-", ["db-2"]),
    ("tags=blue&not-tags=prod", ["web-2"]),
    (f"created_at={at(2)}", ["db-1"]),
    (f"launched_at={at(0)}", ["web-1"]),
    (f"changes-since={at(6)}", ["Mixed Case", GONE, "new"]),
    (f"changes-before={at(1)}", ["web-1", "web-2"]),
    (f"changes-since={at(1)}&changes-before={at(2)}", ["db-1", "web-2"]),
    (f"changes-since={at(2)}&changes-before={at(2)}", ["db-1"]),
    (f"changes-since={at(6)}&deleted=false", ["Mixed Case", "new"]),
    ("deleted=true", [GONE]),
    ("deleted=1", [GONE]),
    ("deleted=False", NAMES),
    ("deleted=whatever", NAMES),
    (f"terminated_at={at(21)}&deleted=true", [GONE]),
    ("kernel_id=x", []),
    ("kernel_id=", NAMES),
    ("access_ip_v4=1.2.3.4", []),
    ("auto_disk_config=false&name=web", []),
    ("soft_deleted=1&name=web", ["web-1", "web-2"]),
    ("uuid=x", []),
]


@pytest.mark.capability("API-128", "API-129")
@pytest.mark.parametrize(("query", "expected"), FILTERS, ids=[query for query, _ in FILTERS])
async def test_filters(shelf: Api, query: str, expected: list[str]) -> None:
    assert await names(shelf, query) == sorted(expected)


async def test_by_id(shelf: Api) -> None:
    reply = await shelf("GET", "/servers?name=web-1")
    uuid = reply.json["servers"][0]["id"]
    assert await names(shelf, f"uuid={uuid}") == ["web-1"]


# filter -> since which microversion everybody may use it (None: administrators only)
PUBLIC = {
    "name=web-1": 1,
    "status=SHUTOFF": 1,
    "flavor=c1": 1,
    f"image={IMAGE2}": 1,
    "ip=10.0.0.6": 1,
    "reservation_id=r-abcdefgh": 1,
    f"changes-since={at(6)}": 1,
    "ip6=fd00::77": 5,
    "tags=blue": 26,
    "tags-any=blue": 26,
    "not-tags=blue": 26,
    "not-tags-any=blue": 26,
    f"changes-before={at(1)}": 66,
    "locked=true": 73,
    "availability_zone=east": 83,
    "config_drive=true": 83,
    "key_name=k1": 83,
    f"created_at={at(2)}": 83,
    f"launched_at={at(0)}": 83,
    "power_state=4": 83,
    "task_state=spawning": 83,
    "vm_state=paused": 83,
    "progress=40": 83,
    "user_id=somebody": 83,
    f"host={HOST}": None,
    f"node={HOST}": None,
    "hostname=mover": None,
    "deleted=true": None,
    "description=rare": None,
    "uuid=x": None,
    "display_name=web": None,
    f"project_id={OTHER}": None,
    f"tenant_id={OTHER}": None,
}


@pytest.mark.parametrize(("query", "first"), PUBLIC.items(), ids=list(PUBLIC))
async def test_who_may_use_a_filter(shelf: Api, query: str, first: int | None) -> None:
    """What one may not filter by is ignored, as in Nova, so that all of one's own servers are listed."""
    everybody = sorted(NAMES)
    if first is None:
        assert await names(shelf, query, who="member") == everybody
        return
    assert await names(shelf, query, first, who="member") != everybody
    assert await names(shelf, query, first, who="member") == await names(shelf, query, first)
    if first > 1:
        version = first - 1 if first not in (26, 66, 73) or first <= 74 else first
        assert await names(shelf, query, min(version, 74), who="member") == everybody


async def test_nobody_sees_what_is_not_his(shelf: Api) -> None:
    assert await names(shelf, "", who="other") == [THEIRS]
    assert await names(shelf, "", who="reader") == sorted(NAMES)
    assert await names(shelf, f"changes-since={at(0)}", who="other") == [THEIRS]
    for query in (f"tenant_id={PROJECT}", f"project_id={PROJECT}", "name=web", "deleted=1"):
        assert not set(await names(shelf, query, who="other")) & set(NAMES)
    assert "get_all_tenants" in await refused(shelf, "all_tenants=1", who="member", status=403)
    assert await names(shelf, "all_tenants=0", who="member") == sorted(NAMES)
    assert (await shelf("GET", "/servers", who="nobody")).status == 403


async def test_administrators_see_all_tenants_when_they_ask(shelf: Api) -> None:
    own = "the administrators'"
    assert (await shelf("GET", "/servers", who="admin")).json["servers"][0]["name"] == own
    everything = sorted([*NAMES, THEIRS, own])
    for word in ("1", "true", ""):
        assert await names(shelf, f"all_tenants={word}") == everything
    assert await names(shelf, "all_tenants=0") == [own]
    assert await names(shelf, f"tenant_id={OTHER}") == [THEIRS]
    assert await names(shelf, f"all_tenants=1&project_id={OTHER}") == [THEIRS]
    assert "all_tenants" in await refused(shelf, "all_tenants=maybe")


@pytest.mark.parametrize("word", ["DELETED", "deleted", "Deleted"])
async def test_only_administrators_list_the_deleted(shelf: Api, word: str) -> None:
    reason = await refused(shelf, f"status={word}", who="member", status=403)
    assert reason == "Only administrators may list deleted instances"


@pytest.mark.parametrize("word", ["", "nonsense", "1", "ACTIVE,ERROR"])
async def test_a_status_that_is_none(shelf: Api, word: str) -> None:
    assert await names(shelf, f"status={word}", 37, who="member") == []
    assert await refused(shelf, f"status={word}", 38, who="member") == "Invalid status value"


@pytest.mark.capability("API-128")
async def test_every_status_finds_the_servers_that_show_it(shelf: Api) -> None:
    """And the usual one of a vm_state finds also those that are busy (Nova's rule)."""
    reply = await shelf("GET", "/servers/detail", v=104)
    shown = {each["name"]: each["status"] for each in reply.json["servers"]}
    state = {each["name"]: each["OS-EXT-STS:vm_state"] for each in reply.json["servers"]}
    usual = {default: vm_state for vm_state, (default, _) in STATUS.items()}
    words = {*usual, *(word for _, by_task in STATUS.values() for word in by_task.values())}
    assert len(words) == 19
    for word in words - {"DELETED"}:
        expected = [name for name in NAMES if shown[name] == word or state[name] == usual.get(word)]
        assert await names(shelf, f"status={word}", who="member") == sorted(expected), word


BAD_QUERIES = [
    "limit=-1",
    "limit=x",
    "limit=",
    "limit=1.5",
    "limit=%2B1",
    "limit=1_0",
    "limit=%D9%A1",
    "marker=x",
    "marker=" + NETWORK,
    "sort_key=nothing",
    "sort_key=",
    "sort_dir=up",
    "sort_dir=asc&sort_dir=desc",
    "changes-since=yesterday",
    "changes-since=",
    "changes-since=2026-13-01T00:00:00Z",
    "changes-before=0",
    f"changes-since={at(2)}&changes-before={at(1)}",
    "launched_at=1",
    "created_at=x",
    "locked=perhaps",
    "config_drive=perhaps",
    "metadata=x",
    "system_metadata=x",
    "_secret=1",
    "colour=red",
    "name=%00",
    "name=%FF",
    "name=a%2B%2B",
    "name=(a%2B)%2B",
    "name=(",
    "name=%5Ba",
    "name=" + "a" * 256,
    "ip=(",
    "ip6=%2A",
    "%00=1",
]


@pytest.mark.parametrize("query", BAD_QUERIES)
async def test_queries_that_are_wrong(shelf: Api, query: str) -> None:
    await refused(shelf, query)


async def test_too_many_keys(shelf: Api) -> None:
    assert "1000" in await refused(shelf, "&".join(f"k{n}=1" for n in range(1001)), 1)


async def test_joined_tables_are_ignored_for_others(shelf: Api) -> None:
    for key in ("metadata", "system_metadata", "info_cache", "security_groups", "_x"):
        assert await names(shelf, f"{key}=x", 74, who="member") == sorted(NAMES)


@pytest.mark.parametrize("version", [1, 68, 69, 104])
async def test_the_short_form(shelf: Api, version: int) -> None:
    """Servers of cells that do not answer would have more from 2.69 on; there are no such cells."""
    reply = await shelf("GET", "/servers?name=web-1", v=version)
    (found,) = reply.json["servers"]
    assert set(found) == {"id", "name", "links"}
    assert [link["rel"] for link in found["links"]] == ["self", "bookmark"]


async def test_what_a_server_without_image_or_host_looks_like(shelf: Api) -> None:
    reply = await shelf("GET", "/servers/detail?name=db-2", v=104)
    (found,) = reply.json["servers"]
    assert (found["image"], found["hostId"], found["status"]) == ("", "", "ERROR")
    assert found["OS-SRV-USG:launched_at"] is None
    assert "progress" not in found


async def test_faults_are_shown_with_what_failed(shelf: Api) -> None:
    """A running server may have one of something that failed on the way; it is not shown."""
    for who in ("member", "admin"):
        listed = await shelf("GET", f"/servers/detail?tenant_id={PROJECT}", v=104, who=who)
        faults = {each["name"]: each["fault"] for each in listed.json["servers"] if "fault" in each}
        details = {"details": "how it broke"} if who == "admin" else {}
        assert faults == {"db-2": {"code": 500, "message": "it broke", "created": at(0), **details}}


async def test_a_deleted_server(shelf: Api) -> None:
    reply = await shelf("GET", "/servers/detail?deleted=1&all_tenants=1", v=104, who="admin")
    (found,) = reply.json["servers"]
    assert (found["name"], found["status"], found["OS-EXT-STS:vm_state"]) == (GONE, "DELETED", "deleted")
    assert found["OS-SRV-USG:terminated_at"] == at(21)[:-1] + ".000000"
    for who in ("member", "admin"):
        assert (await shelf("GET", f"/servers/{found['id']}", who=who)).status == 404


@pytest.mark.capability("API-131")
async def test_the_state_of_hosts(shelf: Api) -> None:
    """forced_down: DOWN; disabled: MAINTENANCE; silent: UNKNOWN; else UP; no host: empty."""
    cloud = shelf.app.cloud  # type: ignore[attr-defined]

    async def seen(v: int = 16, who: str = "admin") -> set[Any]:
        query = f"/servers/detail?all_tenants=1&project_id={PROJECT}" if who == "admin" else "/servers/detail"
        reply: Reply = await shelf("GET", query, v=v, who=who)
        return {each.get("host_status") for each in reply.json["servers"]}

    now = cloud.clock.now()
    await cloud.db.write(lambda tx: hosts.heartbeat(tx, HOST, now))
    assert await seen() == {"UP", ""}
    assert await seen(15) == {None}
    assert await seen(16, "member") == {None}
    await cloud.db.write(lambda tx: hosts.heartbeat(tx, HOST, now - 61 * SECOND))
    assert await seen() == {"UNKNOWN", ""}
    await cloud.db.write(lambda tx: hosts.set_disabled(tx, HOST, True, "work", now))
    assert await seen() == {"MAINTENANCE", ""}
    await cloud.db.write(lambda tx: hosts.set_forced_down(tx, HOST, True, now))
    assert await seen() == {"DOWN", ""}
    await cloud.db.write(lambda tx: hosts.set_forced_down(tx, HOST, False, now))
    await cloud.db.write(lambda tx: hosts.set_disabled(tx, HOST, False, None, now))
