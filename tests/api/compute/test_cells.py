"""The Compute API before three cells, one of which may be down."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from kilonova.clock import iso_z
from kilonova.db import instance_mappings, instances, migrations, quotas, server_groups
from kilonova.db.cells import Cell
from kilonova.db.engine import Database, Tx
from kilonova.db.instance_mappings import MADE
from kilonova.db.tables.compute import hosts as hosts_table
from kilonova.db.tables.journal import signals
from kilonova.journal.journal import Journal
from kilonova.journal.runner import Runner
from kilonova.model.flavor import Flavor
from kilonova.model.host import Host
from kilonova.model.instance import ImageMeta, Instance
from kilonova.model.migration import Migration
from kilonova.operations.cells import Cells
from kilonova.operations.registry import OPERATIONS
from kilonova.testing.database import WatchedDatabase
from tests.api.compute.small_cloud import ADMIN, MEMBER, OTHER, SmallCloud
from tests.conftest import opened

FLAVOR = Flavor(
    id=1,
    flavorid="1",
    name="m1.tiny",
    vcpus=2,
    memory_mb=512,
    root_gb=1,
    extra_specs={"hw:cpu_policy": "shared"},
)
IMAGE = ImageMeta(id="70a599e0-31e7-49b7-b260-868f441e862b", name="cirros")


class Celled(SmallCloud):
    """Servers are put into cells by number; ``down`` takes a cell's database away."""

    def __init__(self, dbs: list[Database], tmp_path: Path) -> None:
        super().__init__(dbs[0], tmp_path)
        self.dbs = [WatchedDatabase(db) for db in dbs]
        self.cells = Cells(self.cloud)
        self.uuids = [""]
        for number, db in enumerate(self.dbs[1:], 1):
            uuid = f"ce110000-0000-4000-8000-00000000000{number}"
            runner = Runner(db, self.clock, "tests", OPERATIONS)
            cloud = replace(self.cloud, db=db, journal=Journal(self.clock, runner))
            runner.cloud = cloud
            self.cells.add(Cell(uuid, f"cell-{number}", db), cloud)
            self.uuids.append(uuid)

    async def put(self, number: int, **values: Any) -> Instance:
        """A server in a cell."""
        instance = Instance(
            uuid=self.new_uuid(),
            **{
                "project_id": "p1",
                "user_id": "u-member",
                "display_name": f"s{self.numbers}",
                "flavor": FLAVOR,
                "image": IMAGE,
                "vm_state": "active",
                "created_at": self.clock.now(),
                "launched_at": self.clock.now(),
                **values,
            },
        )
        self.clock.advance(1)
        await self.dbs[number].raw.write(lambda tx: instances.insert(tx, instance))
        if number:
            mapping = instance_mappings.of_instance(instance, self.uuids[number], MADE, None)
            await self.db.write(lambda tx: instance_mappings.insert(tx, mapping))
        return instance

    def down(self, number: int) -> None:
        self.dbs[number].gone = True

    async def ids(self, query: str = "", version: int = 69, token: str = MEMBER) -> list[str]:
        answer = await self.get(f"/servers?{query}", version=version, token=token)
        return [each["id"] for each in answer["servers"]]


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)])
async def cloud(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Celled]:
    from kilonova.testing.clock import VirtualClock

    async with contextlib.AsyncExitStack() as stack:
        dbs = []
        for name in ("one", "two", "three"):
            directory = tmp_path / name
            directory.mkdir()
            kind = opened(request, request.param, directory, VirtualClock(), f"cell_{name}")
            dbs.append(await stack.enter_async_context(kind))
        yield Celled(dbs, tmp_path)


@pytest.mark.capability("API-127", "IL-1")
async def test_lists_are_of_all_cells(cloud: Celled) -> None:
    made = [await cloud.put(number) for number in (1, 0, 2, 1, 0)]
    expected = [each.uuid for each in made[::-1]]
    assert await cloud.ids() == expected
    detail = await cloud.get("/servers/detail", version=80, token=MEMBER)
    assert [each["id"] for each in detail["servers"]] == expected
    assert {each["name"] for each in detail["servers"]} == {each.display_name for each in made}
    assert await cloud.ids("sort_key=uuid&sort_dir=asc") == sorted(expected)
    assert await cloud.ids(f"name={made[2].display_name}") == [made[2].uuid]


@pytest.mark.capability("IL-3", "API-127")
async def test_pages_over_cells(cloud: Celled) -> None:
    made = [await cloud.put(number % 3) for number in range(7)]
    seen: list[str] = []
    page = await cloud.get("/servers?limit=2", token=MEMBER)
    while True:
        seen += [each["id"] for each in page["servers"]]
        if "servers_links" not in page:
            break
        page = await cloud.follow(page["servers_links"], token=MEMBER)
    assert seen == [each.uuid for each in made[::-1]]
    reply = await cloud("GET", f"/servers?marker={cloud.new_uuid()}", token=MEMBER)
    assert reply.status == 400
    assert "marker" in reply.message


async def test_projects_see_their_own_in_every_cell(cloud: Celled) -> None:
    mine = [await cloud.put(number) for number in range(3)]
    others = [await cloud.put(number, project_id="p2") for number in range(3)]
    assert set(await cloud.ids()) == {each.uuid for each in mine}
    assert set(await cloud.ids(token=OTHER)) == {each.uuid for each in others}
    assert len(await cloud.ids("all_tenants=1", token=ADMIN)) == 6
    assert set(await cloud.ids("all_tenants=1&project_id=p2", token=ADMIN)) == {each.uuid for each in others}
    for server in others:
        assert (await cloud("GET", f"/servers/{server.uuid}", token=MEMBER)).status == 404


@pytest.mark.capability("API-125", "API-131")
async def test_one_server_is_found_in_its_cell(cloud: Celled) -> None:
    host = await cloud.host("h1")
    server = await cloud.put(2, host=host.host, node="n")
    shown = (await cloud.get(f"/servers/{server.uuid}", version=80))["server"]
    assert shown["name"] == server.display_name
    assert shown["host_status"] == "UP"
    (listed,) = (await cloud.get("/servers/detail?all_tenants=1", version=80))["servers"]
    assert listed["host_status"] == "UP"
    for unknown in (cloud.new_uuid(), "nothing"):
        assert (await cloud("GET", f"/servers/{unknown}")).status == 404


async def test_a_server_is_changed_in_its_cell(cloud: Celled) -> None:
    server = await cloud.put(1)
    path = f"/servers/{server.uuid}"
    changed = await cloud("PUT", path, {"server": {"name": "new"}}, token=MEMBER)
    assert changed.status == 200, changed.raw
    assert (await cloud("PUT", f"{path}/tags/blue", version=80, token=MEMBER)).status == 201
    body = {"metadata": {"a": "b"}}
    assert (await cloud("POST", f"{path}/metadata", body, token=MEMBER)).status == 200
    await cloud.db.write(lambda tx: quotas.set_limits(tx, quotas.PROJECT, "p1", {"metadata_items": 1}))
    assert (await cloud("POST", f"{path}/metadata", {"metadata": {"c": "d"}}, token=MEMBER)).status == 403
    assert (await cloud("POST", f"{path}/action", {"lock": None}, version=80, token=MEMBER)).status == 202
    stored = await cloud.dbs[1].read(lambda tx: instances.show(tx, server.uuid))
    assert stored is not None
    assert (stored.display_name, stored.tags, stored.metadata) == ("new", ("blue",), {"a": "b"})
    assert stored.locked == "owner"


async def test_what_is_asked_for_is_an_operation_in_the_servers_cell(cloud: Celled) -> None:
    server = await cloud.put(1, host="h1", node="n")
    path = f"/servers/{server.uuid}"
    reply = await cloud("POST", f"{path}/action", {"os-stop": None}, token=MEMBER)
    assert reply.status == 202, reply.raw
    (action,) = (await cloud.get(f"{path}/os-instance-actions", token=MEMBER))["instanceActions"]
    assert action["action"] == "stop"
    one = await cloud.get(f"{path}/os-instance-actions/{action['request_id']}", token=MEMBER)
    assert one["instanceAction"]["action"] == "stop"
    stored = await cloud.dbs[1].read(lambda tx: instances.show(tx, server.uuid))
    assert stored is not None
    assert stored.task_state == "powering-off"


async def test_events_find_their_servers(cloud: Celled) -> None:
    servers = [await cloud.put(number, host="h1") for number in range(3)]
    names = [each.uuid for each in servers]
    events = [
        {"name": "network-vif-plugged", "server_uuid": uuid, "tag": "x"}
        for uuid in (*names, cloud.new_uuid())
    ]
    for db in (1, 2):
        await _wait(cloud, db, names[db])
    cloud.cloud.journal = cloud.cells.cloud(cloud.uuids[1]).journal  # the first cell has none in this test
    reply = await cloud("POST", "/os-server-external-events", {"events": events})
    assert reply.status == 207
    assert [each["code"] for each in reply.json["events"]] == [200, 200, 200, 404]
    for db in (1, 2):
        assert await _signals(cloud, db) == [names[db]]


async def _wait(cloud: Celled, number: int, uuid: str) -> None:
    """An operation that may hear of events."""
    reply = await cloud("POST", f"/servers/{uuid}/action", {"os-stop": None}, token=MEMBER)
    assert reply.status == 202


async def _signals(cloud: Celled, number: int) -> list[str]:
    rows = await cloud.dbs[number].read(lambda tx: tx.all(select(signals.c.instance_uuid)))
    return [row[0] for row in rows]


# ---- a cell is down ----


@pytest.mark.capability("API-130", "MC-5")
async def test_from_2_69_on_lists_tell_what_is_known_of_lost_servers(cloud: Celled) -> None:
    server, lost = await cloud.put(0), await cloud.put(1)
    await cloud.put(1, project_id="p2")
    cloud.down(1)
    links = [
        {"rel": "self", "href": f"http://cloud:8774/v2.1/servers/{lost.uuid}"},
        {"rel": "bookmark", "href": f"http://cloud:8774/servers/{lost.uuid}"},
    ]
    brief, full = (await cloud.get("/servers", version=69, token=MEMBER))["servers"]
    assert brief == {"id": lost.uuid, "status": "UNKNOWN", "links": links}
    assert full["id"] == server.uuid
    partial, full = (await cloud.get("/servers/detail", version=69, token=MEMBER))["servers"]
    assert partial == {
        "id": lost.uuid,
        "status": "UNKNOWN",
        "tenant_id": "p1",
        "created": iso_z(lost.created_at),
        "links": links,
    }
    assert full["status"] == "ACTIVE"
    for version in (1, 68):
        assert await cloud.ids(version=version) == [server.uuid]


@pytest.mark.capability("API-130")
async def test_which_lists_have_lost_servers(cloud: Celled) -> None:
    server, lost = await cloud.put(0), await cloud.put(1)
    await cloud.put(2, project_id="p2")
    cloud.down(1)
    cloud.down(2)
    both = [lost.uuid, server.uuid]
    for query in ("", "deleted=False", "project_id=p1", "deleted=false&project_id=p1"):
        assert await cloud.ids(query) == both
    for query in (
        "limit=10",
        "sort_key=uuid",
        "sort_dir=asc",
        "status=ACTIVE",
        "name=s",
        "changes-since=2020-01-01",
        f"marker={(await cloud.put(0)).uuid}",
    ):
        assert lost.uuid not in await cloud.ids(query), query
    assert await cloud.ids("deleted=True&all_tenants=1", token=ADMIN) == []
    assert len(await cloud.ids("all_tenants=1", token=ADMIN)) == 4
    assert len(await cloud.ids("all_tenants=1&tenant_id=p2", token=ADMIN)) == 1
    assert await cloud.ids(token=ADMIN) == []


@pytest.mark.capability("API-130", "API-98")
async def test_there_are_no_more_lost_servers_than_there_is_room_and_none_that_are_deleted(
    cloud: Celled,
) -> None:
    await cloud.put(0)
    lost = [await cloud.put(1) for _ in range(4)]
    await cloud.db.write(lambda tx: instance_mappings.queue_for_delete(tx, lost[3].uuid, True))
    cloud.down(1)
    assert (await cloud.ids())[:3] == [each.uuid for each in lost[2::-1]]
    cloud.option("max_limit", 3, "api")
    found = await cloud.ids()
    assert len(found) == 3
    assert found[:2] == [lost[2].uuid, lost[1].uuid]
    cloud.option("max_limit", 1, "api")
    assert lost[2].uuid not in await cloud.ids()
    await cloud.db.write(lambda tx: instance_mappings.queue_for_delete(tx, lost[3].uuid, False))
    cloud.option("max_limit", 3, "api")
    assert (await cloud.ids())[0] == lost[3].uuid


@pytest.mark.capability("MC-5")
async def test_the_operator_may_have_lists_fail_instead(cloud: Celled) -> None:
    await cloud.put(0)
    await cloud.put(1)
    cloud.down(1)
    cloud.option("list_records_by_skipping_down_cells", False, "api")
    for path, version in (("/servers", 68), ("/servers?limit=5", 69), ("/servers/detail?name=s", 80)):
        reply = await cloud("GET", path, version=version, token=MEMBER)
        assert reply.status == 503
        assert "cell-1" in reply.message
    assert len(await cloud.ids()) == 2  # partial answers need no permission


async def test_a_marker_in_a_cell_that_is_down(cloud: Celled) -> None:
    lost = await cloud.put(1)
    cloud.down(1)
    reply = await cloud("GET", f"/servers?marker={lost.uuid}", version=69, token=MEMBER)
    assert reply.status == 503


@pytest.mark.capability("API-126")
async def test_one_lost_server(cloud: Celled) -> None:
    lost = await cloud.put(1, pinned_availability_zone="geneva")
    path = f"/servers/{lost.uuid}"
    cloud.down(1)
    shown = (await cloud.get(path, version=69, token=MEMBER))["server"]
    assert shown == {
        "id": lost.uuid,
        "status": "UNKNOWN",
        "tenant_id": "p1",
        "user_id": "u-member",
        "created": iso_z(lost.created_at),
        "links": shown["links"],
        "image": {
            "id": IMAGE.id,
            "links": [{"rel": "bookmark", "href": f"http://cloud:8774/images/{IMAGE.id}"}],
        },
        "flavor": {
            "vcpus": 2,
            "ram": 512,
            "disk": 1,
            "ephemeral": 0,
            "swap": 0,
            "original_name": "m1.tiny",
            "extra_specs": {"hw:cpu_policy": "shared"},
        },
        "OS-EXT-AZ:availability_zone": "geneva",
        "OS-EXT-STS:power_state": 0,
    }
    later = (await cloud.get(path, version=71, token=MEMBER))["server"]
    assert later == {**shown, "server_groups": []}
    body = {"server_group": {"name": "g", "policy": "anti-affinity"}}
    group = (await cloud("POST", "/os-server-groups", body, version=71, token=MEMBER)).json["server_group"]
    await cloud.db.write(lambda tx: server_groups.add_members(tx, group["id"], [lost.uuid], "u-member", 10))
    later = (await cloud.get(path, version=71, token=MEMBER))["server"]
    assert later["server_groups"] == [group["id"]]
    bare = await cloud.put(1, image=None)
    other = (await cloud.get(f"/servers/{bare.uuid}", version=69, token=MEMBER))["server"]
    assert (other["image"], other["OS-EXT-AZ:availability_zone"]) == ("", "UNKNOWN")


@pytest.mark.capability("API-126")
async def test_who_sees_no_lost_server(cloud: Celled) -> None:
    lost = await cloud.put(1)
    path = f"/servers/{lost.uuid}"
    cloud.down(1)
    assert (await cloud("GET", path, version=68, token=MEMBER)).status == 503
    assert (await cloud("GET", path, version=69, token=OTHER)).status == 404
    assert (await cloud("GET", path, version=68, token=OTHER)).status == 404
    assert (await cloud("GET", path, version=69, token=ADMIN)).status == 200
    assert (await cloud("GET", f"/servers/{cloud.new_uuid()}", version=69, token=MEMBER)).status == 404
    for method, where, body in (
        ("PUT", path, {"server": {"name": "x"}}),
        ("DELETE", path, None),
        ("POST", f"{path}/action", {"os-stop": None}),
        ("GET", f"{path}/os-instance-actions", None),
    ):
        assert (await cloud(method, where, body, version=69, token=MEMBER)).status == 503
    await cloud.db.write(lambda tx: instance_mappings.queue_for_delete(tx, lost.uuid, True))
    assert (await cloud("GET", path, version=69, token=MEMBER)).status == 404


async def test_migrations_of_all_cells(cloud: Celled) -> None:
    for number in range(3):
        server = await cloud.put(number)
        made = Migration(
            uuid=f"m{number}",
            instance_uuid=server.uuid,
            project_id="p1",
            user_id="u",
            migration_type="live-migration",
            status="running",
            created_at=number,
        )

        def write(tx: Tx, made: Migration = made) -> None:
            migrations.insert(tx, made)

        await cloud.dbs[number].write(write)
        (own,) = (await cloud.get(f"/servers/{server.uuid}/migrations", version=59))["migrations"]
        assert own["uuid"] == made.uuid
    answer = await cloud.get("/os-migrations?limit=2", version=59)
    assert [each["uuid"] for each in answer["migrations"]] == ["m2", "m1"]
    answer = await cloud.follow(answer["migrations_links"], version=59)
    assert [each["uuid"] for each in answer["migrations"]] == ["m0"]
    cloud.down(1)
    answer = await cloud.get("/os-migrations", version=58)
    assert len(answer["migrations"]) == 2
    assert (await cloud("GET", "/os-migrations?marker=m1", version=59)).status == 400
    cloud.option("list_records_by_skipping_down_cells", False, "api")
    assert (await cloud("GET", "/os-migrations", version=59)).status == 503


# ---- what is asked of hosts and projects ----


async def _far(cloud: Celled, name: str = "far") -> Host:
    """A host of the second cell."""
    made = await cloud.host(name)
    await cloud.db.write(lambda tx: tx.run(update(hosts_table).values(cell_uuid=cloud.uuids[1])))
    return made


async def test_hypervisors_count_the_servers_of_their_cells(cloud: Celled) -> None:
    far = await _far(cloud)
    near = await cloud.host("near")
    server = await cloud.put(1, host="far", node="n")
    await cloud.put(0, host="near", node="n")
    listed = (await cloud.get("/os-hypervisors/detail?with_servers=1", version=80))["hypervisors"]
    assert [each["id"] for each in listed] == [far.compute_id, near.compute_id]
    assert [one["uuid"] for one in listed[0]["servers"]] == [server.uuid]
    assert [each["running_vms"] for each in listed] == [1, 1]
    cloud.down(1)
    left = (await cloud.get("/os-hypervisors", version=80))["hypervisors"]
    assert [each["id"] for each in left] == [near.compute_id]


@pytest.mark.capability("API-135")
async def test_services_are_listed_whatever_their_cells_do(cloud: Celled) -> None:
    await _far(cloud)
    cloud.down(1)
    found = (await cloud.get("/os-services?binary=nova-compute", version=69))["services"]
    assert [(each["host"], each["state"]) for each in found] == [("far", "up")]


async def test_a_service_with_servers_in_its_cell_is_not_deleted(cloud: Celled) -> None:
    far = await _far(cloud)
    server = await cloud.put(1, host="far", node="n")
    path = f"/os-services/{far.service_uuid}"
    assert (await cloud("DELETE", path, version=80)).status == 409
    cloud.down(1)
    assert (await cloud("DELETE", path, version=80)).status == 503
    cloud.dbs[1].gone = False
    await cloud.dbs[1].write(lambda tx: instances.mark_deleted(tx, server.uuid, 5))
    assert (await cloud("DELETE", path, version=80)).status == 204


@pytest.mark.capability("API-140")
async def test_a_zone_is_not_changed_under_servers_of_any_cell(cloud: Celled) -> None:
    await _far(cloud)
    server = await cloud.put(1, host="far", node="n")
    body = {"aggregate": {"name": "a", "availability_zone": "geneva"}}
    number = (await cloud("POST", "/os-aggregates", body)).json["aggregate"]["id"]
    path = f"/os-aggregates/{number}"
    add, remove = {"add_host": {"host": "far"}}, {"remove_host": {"host": "far"}}
    assert (await cloud("POST", f"{path}/action", add)).status == 409
    await cloud.dbs[1].write(lambda tx: instances.mark_deleted(tx, server.uuid, 5))
    assert (await cloud("POST", f"{path}/action", add)).status == 200
    await cloud.put(1, host="far", node="n")
    assert (await cloud("POST", f"{path}/action", remove)).status == 409
    change = {"aggregate": {"availability_zone": "other"}}
    assert (await cloud("PUT", path, change)).status == 400
    metadata = {"set_metadata": {"metadata": {"availability_zone": "other"}}}
    assert (await cloud("POST", f"{path}/action", metadata)).status == 400
    assert (await cloud("PUT", path, {"aggregate": {"name": "b"}})).status == 200
    cloud.down(1)
    assert (await cloud("PUT", path, change)).status == 503


async def test_usage_is_of_all_cells(cloud: Celled) -> None:
    made = [await cloud.put(number) for number in (2, 1, 0)]
    cloud.clock.advance(3600)
    path = f"/os-simple-tenant-usage/p1?start=2020-01-01T00:00:00&end={iso_z(cloud.clock.now())[:-1]}"
    usage = (await cloud.get(path, version=39, token=MEMBER))["tenant_usage"]
    expected = sorted(each.uuid for each in made)
    assert sorted(each["instance_id"] for each in usage["server_usages"]) == expected
    seen: list[str] = []
    marker = ""
    for _ in range(3):
        page = await cloud.get(f"{path}&limit=1{marker}", version=40, token=MEMBER)
        (one,) = page["tenant_usage"]["server_usages"]
        seen.append(one["instance_id"])
        marker = f"&marker={seen[-1]}"
    assert seen == expected
    reply = await cloud("GET", f"{path}&marker=nothing", version=40, token=MEMBER)
    assert reply.status == 400
