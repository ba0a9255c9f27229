"""Migrations over HTTP: the list of all, and a server's own."""

from __future__ import annotations

from typing import Any

import pytest

from kilonova.clock import SECOND, iso_z
from kilonova.db import migrations
from kilonova.model.migration import Migration
from tests.api.compute.small_cloud import (
    ADMIN,
    MANAGER,
    MEMBER,
    OTHER,
    SmallCloud,
    bands,
    check_keys,
    cloud,
    db,
)

__all__ = ["cloud", "db"]

LIST, OF_SERVER, ONE = "os-migrations.list", "servers.migrations.list", "servers.migrations.show"
LIVE = {"migration_type": "live-migration", "status": "running"}
PLACES = {
    "source_compute": "h1",
    "source_node": "n1",
    "dest_compute": "h2",
    "dest_node": "n2",
    "dest_host": "192.0.2.9",
}


async def move(cloud: SmallCloud, name: str = "", **values: Any) -> Migration:
    """A migration in the database; its uuid ends with ``name``, if given."""
    uuid = cloud.new_uuid()
    defaults: dict[str, Any] = {
        "instance_uuid": "a",
        "project_id": "p1",
        "user_id": "u-member",
        "migration_type": "resize",
        "status": "finished",
        "created_at": cloud.clock.now(),
        "old_flavor_id": 1,
        "new_flavor_id": 2,
        **PLACES,
    }
    made = Migration(uuid=uuid, **{**defaults, **values})
    await cloud.db.write(lambda tx: migrations.insert(tx, made))
    return made


async def listed(cloud: SmallCloud, query: str = "", version: int = 80, token: str = ADMIN) -> list[str]:
    answer = await cloud.get(f"/os-migrations?{query}", version=version, token=token)
    return [each["uuid"] for each in answer["migrations"]]


@pytest.mark.parametrize("version", bands(LIST))
async def test_keys_of_each_microversion(cloud: SmallCloud, version: int) -> None:
    await move(cloud)
    await move(cloud, **LIVE)
    answer = await cloud.get("/os-migrations", version=version)
    check_keys(LIST, version, answer)
    if version >= 59:
        page = await cloud.get("/os-migrations?limit=1", version=version)
        check_keys(LIST, version, page)
        assert page["migrations_links"]


async def test_what_is_shown(cloud: SmallCloud) -> None:
    server = await cloud.server()
    made = await move(cloud, instance_uuid=server.uuid, **LIVE, updated_at=1_500_000_000_123_456)
    (shown,) = (await cloud.get("/os-migrations", version=80))["migrations"]
    created = shown.pop("created_at")
    assert created.startswith(iso_z(made.created_at)[:-1])
    path = f"servers/{server.uuid}/migrations/1"
    assert shown == {
        "id": 1,
        "uuid": made.uuid,
        "instance_uuid": server.uuid,
        **PLACES,
        "status": "running",
        "migration_type": "live-migration",
        "old_instance_type_id": 1,
        "new_instance_type_id": 2,
        "updated_at": "2017-07-14T02:40:00.123456",
        "user_id": "u-member",
        "project_id": "p1",
        "links": [
            {"rel": "self", "href": f"http://cloud:8774/v2.1/{path}"},
            {"rel": "bookmark", "href": f"http://cloud:8774/{path}"},
        ],
    }
    await move(cloud)
    newest, _ = (await cloud.get("/os-migrations", version=80))["migrations"]
    assert "links" not in newest
    assert newest["updated_at"] is None


@pytest.mark.capability("ML-1")
async def test_the_oldest_is_first_up_to_2_58_and_the_last_from_there(cloud: SmallCloud) -> None:
    await move(cloud, status="one")
    cloud.clock.advance(1)
    await move(cloud, status="two")
    for version, expected in ((1, ["one", "two"]), (58, ["one", "two"]), (59, ["two", "one"])):
        answer = await cloud.get("/os-migrations", version=version)
        assert [each["status"] for each in answer["migrations"]] == expected


@pytest.mark.capability("ML-2")
async def test_pages(cloud: SmallCloud) -> None:
    made = []
    for number in range(5):
        if number % 2:
            cloud.clock.advance(1)
        made.append((await move(cloud)).uuid)
    seen = []
    page = await cloud.get("/os-migrations?limit=2&status=finished", version=59)
    while True:
        seen += [each["uuid"] for each in page["migrations"]]
        if "migrations_links" not in page:
            break
        page = await cloud.follow(page["migrations_links"], version=59)
    assert seen == made[::-1]
    assert len(page["migrations"]) == 1  # and no link from a page that is not full
    assert "migrations_links" not in await cloud.get("/os-migrations?limit=6", version=59)
    assert await listed(cloud, "limit=0") == []
    cloud.option("max_limit", 3, "api")
    assert len(await listed(cloud, "limit=5")) == 3
    assert len((await cloud.get("/os-migrations", version=58))["migrations"]) == 5


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("status=running", "b"),
        ("instance_uuid=s2", "c"),
        ("source_compute=h9", "d"),
        ("host=h9", "cd"),
        ("migration_type=evacuation", "e"),
        ("hidden=1", "f"),
        ("hidden=false", "abcdeg"),
        ("user_id=u2", "g"),
        ("project_id=p2", "a"),
        ("status=running&host=h1", "b"),
        ("status=running&host=h9", ""),
        ("status=", ""),
    ],
)
async def test_filters(cloud: SmallCloud, query: str, expected: str) -> None:
    made = {
        "a": await move(cloud, project_id="p2"),
        "b": await move(cloud, status="running"),
        "c": await move(cloud, instance_uuid="s2", dest_compute="h9"),
        "d": await move(cloud, source_compute="h9"),
        "e": await move(cloud, migration_type="evacuation"),
        "f": await move(cloud, hidden=True),
        "g": await move(cloud, user_id="u2"),
    }
    names = {each.uuid: name for name, each in made.items()}
    assert "".join(sorted(names[uuid] for uuid in await listed(cloud, query))) == expected


async def test_changes(cloud: SmallCloud) -> None:
    start = cloud.clock.now() // SECOND * SECOND
    old = await move(cloud, created_at=start - 100 * SECOND)
    new = await move(cloud, created_at=start - 100 * SECOND, updated_at=start)
    then, now, later = (iso_z(start + shift * SECOND) for shift in (-50, 0, 9))
    assert await listed(cloud, f"changes-since={then}") == [new.uuid]
    assert await listed(cloud, f"changes-since={now}&changes-before={now}") == [new.uuid]
    assert await listed(cloud, f"changes-before={then}") == [old.uuid]
    assert await listed(cloud, f"changes-since={later}") == []
    reply = await cloud("GET", f"/os-migrations?changes-since={later}&changes-before={now}", version=66)
    assert reply.status == 400
    assert "changes-since must be less than" in reply.message


@pytest.mark.parametrize(
    ("query", "version"),
    [
        ("marker=nothing", 59),
        ("limit=-1", 59),
        ("limit=x", 59),
        ("changes-since=yesterday", 59),
        ("changes-before=2020-01-01", 65),
        ("colour=red", 59),
        ("user_id=u", 79),
        ("project_id=p", 79),
        ("hidden=perhaps", 1),
    ],
)
async def test_wrong_queries_are_refused(cloud: SmallCloud, query: str, version: int) -> None:
    reply = await cloud("GET", f"/os-migrations?{query}", version=version)
    assert reply.status == 400, reply.raw


async def test_what_is_not_known_yet_is_ignored_below_2_59(cloud: SmallCloud) -> None:
    await move(cloud)
    query = "limit=0&marker=x&changes-since=y&colour=red&user_id=nobody"
    assert len((await cloud.get(f"/os-migrations?{query}", version=58))["migrations"]) == 1


async def test_who_may_see_what(cloud: SmallCloud) -> None:
    mine = await move(cloud)
    await move(cloud, project_id="p2")
    for token in (MEMBER, OTHER):
        assert (await cloud("GET", "/os-migrations", version=80, token=token)).status == 403
    answer = await cloud.get("/os-migrations", version=80, token=MANAGER)
    (shown,) = answer["migrations"]
    assert shown["uuid"] == mine.uuid
    assert {shown[place] for place in PLACES} == {None}
    check_keys(LIST, 80, answer)
    assert await listed(cloud, "project_id=p1", token=MANAGER) == [mine.uuid]
    for query in ("project_id=p2", "host=h1", "source_compute=h1"):
        reply = await cloud("GET", f"/os-migrations?{query}", version=80, token=MANAGER)
        assert reply.status == 403


# ---- a server's own ----


@pytest.mark.parametrize("version", bands(OF_SERVER, ONE, first=23))
async def test_keys_of_a_servers_own(cloud: SmallCloud, version: int) -> None:
    server = await cloud.server()
    await move(cloud, instance_uuid=server.uuid, memory_total=10, **LIVE)
    check_keys(OF_SERVER, version, await cloud.get(f"/servers/{server.uuid}/migrations", version=version))
    check_keys(ONE, version, await cloud.get(f"/servers/{server.uuid}/migrations/1", version=version))


@pytest.mark.capability("API-133")
async def test_only_what_is_under_way_and_its_own(cloud: SmallCloud) -> None:
    server, other = await cloud.server(), await cloud.server()
    live = await move(cloud, instance_uuid=server.uuid, memory_total=7, disk_remaining=9, **LIVE)
    await move(cloud, instance_uuid=server.uuid, migration_type="live-migration", status="completed")
    await move(cloud, instance_uuid=server.uuid, status="running")
    await move(cloud, instance_uuid=other.uuid, **LIVE)
    path = f"/servers/{server.uuid}/migrations"
    (shown,) = (await cloud.get(path, version=80))["migrations"]
    assert shown["uuid"] == live.uuid
    assert shown["server_uuid"] == server.uuid
    assert shown["memory_total_bytes"] == 7
    assert shown["memory_processed_bytes"] is None
    assert shown["disk_remaining_bytes"] == 9
    assert shown["updated_at"] == shown["created_at"]
    assert (await cloud.get(f"{path}/1", version=80))["migration"] == shown
    for number, why in (
        ("2", "not in progress"),
        ("3", "is not live-migration"),
        ("4", "could not be found"),
        ("99", "could not be found"),
        ("0", "could not be found"),
        ("x", "could not be found"),
        ("99999999999999999999999", "could not be found"),
        ("9223372036854775808", "could not be found"),
    ):
        reply = await cloud("GET", f"{path}/{number}", version=80)
        assert reply.status == 404
        assert why in reply.message


async def test_who_may_see_a_servers_own(cloud: SmallCloud) -> None:
    server = await cloud.server()
    await move(cloud, instance_uuid=server.uuid, **LIVE)
    path = f"/servers/{server.uuid}/migrations"
    (shown,) = (await cloud.get(path, version=23, token=MANAGER))["migrations"]
    assert {shown[place] for place in PLACES} == {None}
    assert (await cloud("GET", f"{path}/1", version=23, token=MANAGER)).status == 403
    assert (await cloud("GET", path, version=23, token=MEMBER)).status == 403
    assert (await cloud("GET", path, version=23, token=OTHER)).status == 404
    assert (await cloud("GET", path, version=22)).status == 404
    assert (await cloud("GET", "/servers/nothing/migrations", version=23)).status == 404
