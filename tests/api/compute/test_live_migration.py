"""``os-migrateLive``, aborting and forcing: bodies in all microversions, what is asked, what is refused."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path
from typing import Any

import pytest

from kilonova.db import hosts, instances, migrations
from kilonova.errors import HostFault
from kilonova.model.instance import Instance
from kilonova.model.migration import LIVE, Migration, Wish
from kilonova.model.states import TASK_STATES, VM_STATES
from kilonova.operations.cloud import Cloud
from kilonova.operations.live_params import LiveMigrateParams
from kilonova.testing.embedded import settled
from tests.api.compute.asgi import Api, Reply
from tests.api.compute.conftest import PROJECT
from tests.api.compute.moving_servers import actions, params_of, put, recorded, report
from tests.api.compute.parts import HOST, server
from tests.operations.live_hosts import SLOW, live
from tests.operations.test_hosts import api_of

OTHER = "host2"
LIVING = [state for state in VM_STATES if state != "deleted"]


@pytest.fixture
async def running(cloud: Cloud) -> Instance:
    """A server that runs; there is another host."""
    await report(cloud, OTHER)
    return await server(cloud, PROJECT)


async def ask(api: Api, uuid: str, v: int = 104, who: str = "admin", **body: Any) -> Reply:
    return await api("POST", f"/servers/{uuid}/action", {"os-migrateLive": body}, v=v, who=who)


async def asked(cloud: Cloud, uuid: str) -> LiveMigrateParams:
    """What the operation was told."""
    return await params_of(cloud, uuid, "live_migrate", LiveMigrateParams)


@pytest.mark.capability("API-41", "MG-LM-1", "IA-4")
async def test_what_is_written_down(api: Api, cloud: Cloud, running: Instance) -> None:
    reply = await ask(api, running.uuid, host=None, block_migration="auto")
    assert (reply.status, reply.content) == (202, b"")
    now = await cloud.db.read(lambda tx: instances.show(tx, running.uuid))
    assert now is not None
    assert (now.vm_state, now.task_state, now.host, now.progress) == ("active", "migrating", HOST, 0)
    (migration,) = await recorded(cloud, running.uuid)
    assert (migration.migration_type, migration.status) == (LIVE, "accepted")
    assert (migration.source_compute, migration.source_node, migration.dest_compute) == (HOST, HOST, None)
    assert migration.old_flavor_id == migration.new_flavor_id == running.flavor.id
    assert await actions(cloud, running.uuid) == ["live-migration"]
    assert (await asked(cloud, running.uuid)).migration == migration.uuid


@pytest.mark.capability("API-114")
@pytest.mark.parametrize(
    ("version", "body", "host", "forced", "block", "over"),
    [
        (34, {"host": None, "block_migration": "auto"}, None, False, None, False),
        (34, {"host": OTHER, "block_migration": True}, OTHER, False, True, False),
        (34, {"host": OTHER, "block_migration": "False", "force": "true"}, OTHER, True, False, False),
        (67, {"host": OTHER, "block_migration": "auto", "force": True}, OTHER, True, None, False),
        (67, {"host": OTHER, "block_migration": "auto", "force": False}, OTHER, False, None, False),
        (68, {"host": OTHER, "block_migration": "auto"}, OTHER, False, None, False),
        (104, {"host": None, "block_migration": "1"}, None, False, True, False),
    ],
)
async def test_what_is_asked(
    api: Api,
    cloud: Cloud,
    running: Instance,
    version: int,
    body: dict[str, Any],
    host: str | None,
    forced: bool,
    block: bool | None,
    over: bool,
) -> None:
    reply = await ask(api, running.uuid, v=version, **body)
    assert reply.status == 202, reply.content
    found = await asked(cloud, running.uuid)
    assert (found.host, found.forced, found.block, found.disk_over_commit) == (host, forced, block, over)


@pytest.mark.parametrize(
    ("first", "last", "body"),
    [
        (1, 104, {}),
        (1, 104, {"host": None}),
        (
            1,
            104,
            {"block_migration": True, "disk_over_commit": False},
        ),  # the host has to be named, if as null
        (1, 24, {"host": None, "block_migration": "auto", "disk_over_commit": False}),
        (1, 24, {"host": None, "block_migration": True}),
        (25, 104, {"host": None, "block_migration": True, "disk_over_commit": False}),
        (1, 104, {"host": None, "block_migration": None, "disk_over_commit": False}),
        (25, 104, {"host": None, "block_migration": "perhaps"}),
        (25, 29, {"host": OTHER, "block_migration": "auto", "force": True}),
        (68, 104, {"host": OTHER, "block_migration": "auto", "force": True}),
        (30, 67, {"host": None, "block_migration": "auto", "force": True}),
        (30, 67, {"host": OTHER, "block_migration": "auto", "force": "perhaps"}),
        (25, 104, {"host": "a b", "block_migration": "auto"}),
        (25, 104, {"host": "", "block_migration": "auto"}),
        (25, 104, {"host": 7, "block_migration": "auto"}),
        (25, 104, {"host": None, "block_migration": "auto", "more": 1}),
    ],
)
async def test_bodies_that_are_refused(
    api: Api, cloud: Cloud, running: Instance, first: int, last: int, body: dict[str, Any]
) -> None:
    for version in sorted({first, last, (first + last) // 2}):
        reply = await ask(api, running.uuid, v=version, **body)
        assert reply.status == 400, (version, reply.content)
    assert await recorded(cloud, running.uuid) == []


@pytest.mark.capability("API-114")
@pytest.mark.parametrize("version", [34, 67, 104])
async def test_hosts_that_are_refused(api: Api, cloud: Cloud, running: Instance, version: int) -> None:
    for host, said in (("h9", "Compute host h9 could not be found."), (HOST, "to current host (host1)")):
        reply = await ask(api, running.uuid, v=version, host=host, block_migration="auto")
        assert reply.status == 400 and said in reply.fault
    assert await recorded(cloud, running.uuid) == []
    assert await actions(cloud, running.uuid) == []


async def test_who_may(api: Api, cloud: Cloud, running: Instance) -> None:
    """Managers, of their own project's; to a host that is named administrators only."""
    body: dict[str, Any] = {"host": None, "block_migration": "auto"}
    assert (await ask(api, running.uuid, who="member", **body)).status == 403
    assert (await ask(api, running.uuid, who="other", **body)).status == 404
    assert (await ask(api, running.uuid, who="manager", **{**body, "host": OTHER})).status == 403
    assert (await ask(api, running.uuid, who="manager", **body)).status == 202


@pytest.mark.capability("API-41", "API-4")
async def test_every_state(api: Api, cloud: Cloud, running: Instance) -> None:
    uuid = running.uuid
    for vm, task in itertools.product(LIVING, [None, *TASK_STATES]):
        await put(cloud, uuid, vm_state=vm, task_state=task)
        before = len(await actions(cloud, uuid))
        reply = await ask(api, uuid, host=None, block_migration="auto")
        if vm in ("active", "paused") and task is None:
            assert reply.status == 202
            assert len(await actions(cloud, uuid)) == before + 1
            continue
        where = f"vm_state {vm}" if vm not in ("active", "paused") else f"task_state {task}"
        assert reply.status == 409
        assert reply.fault == f"Cannot 'live-migration' instance {uuid} while it is in {where}"
        assert len(await actions(cloud, uuid)) == before
    await put(cloud, uuid, vm_state="active", task_state=None, locked="owner")
    assert (await ask(api, uuid, who="manager", host=None, block_migration="auto")).status == 409
    assert (await ask(api, uuid, who="admin", host=None, block_migration="auto")).status == 202


# ---- what may be asked of one that is under way ----


async def moving(cloud: Cloud, running: Instance, status: str = "running", **more: Any) -> Migration:
    await put(cloud, running.uuid, task_state="migrating")
    migration = Migration(
        **{
            "uuid": cloud.new_uuid(),
            "instance_uuid": running.uuid,
            "project_id": running.project_id,
            "user_id": "u",
            "migration_type": LIVE,
            "status": status,
            "created_at": cloud.clock.now(),
            "source_compute": HOST,
            **more,
        }
    )
    await cloud.db.write(lambda tx: migrations.insert(tx, migration))
    return (await recorded(cloud, running.uuid))[0]


async def abort(api: Api, uuid: str, number: object, v: int = 104, who: str = "admin") -> Reply:
    return await api("DELETE", f"/servers/{uuid}/migrations/{number}", v=v, who=who)


async def force(
    api: Api, uuid: str, number: object, v: int = 104, who: str = "admin", value: Any = None
) -> Reply:
    path = f"/servers/{uuid}/migrations/{number}/action"
    return await api("POST", path, {"force_complete": value}, v=v, who=who)


@pytest.mark.capability("API-43", "MG-LM-23")
@pytest.mark.parametrize(
    "status", ["accepted", "queued", "preparing", "running", "running (post-copy)", "failed"]
)
async def test_abort(api: Api, cloud: Cloud, running: Instance, status: str) -> None:
    """2.24 on; from 2.65 on also before it runs."""
    migration = await moving(cloud, running, status)
    assert (await abort(api, running.uuid, migration.id, v=23)).status == 404
    for version in (24, 64, 65, 104):
        good = ("running",) if version < 65 else ("running", "queued", "preparing")
        reply = await abort(api, running.uuid, migration.id, v=version)
        if status in good:
            assert (reply.status, reply.content) == (202, b"")
            assert (await recorded(cloud, running.uuid))[0].wish == Wish.ABORT
            assert (await actions(cloud, running.uuid))[0] == "live_migration_cancel"
        else:
            assert reply.status == 400
            assert reply.fault.endswith("Cannot abort while the migration is in this state.")
    now = await cloud.db.read(lambda tx: instances.show(tx, running.uuid))
    assert now is not None and now.task_state == "migrating"


@pytest.mark.capability("API-42")
@pytest.mark.parametrize(
    "status", ["accepted", "queued", "preparing", "running", "running (post-copy)", "failed"]
)
async def test_force_complete(api: Api, cloud: Cloud, running: Instance, status: str) -> None:
    migration = await moving(cloud, running, status)
    assert (await force(api, running.uuid, migration.id, v=21)).status == 404
    for version in (22, 104):
        reply = await force(api, running.uuid, migration.id, v=version)
        if status == "running":
            assert (reply.status, reply.content) == (202, b"")
            assert (await recorded(cloud, running.uuid))[0].wish == Wish.FORCE_COMPLETE
            assert (await actions(cloud, running.uuid))[0] == "live_migration_force_complete"
        else:
            assert reply.status == 400
            assert reply.fault.endswith("Cannot force_complete while the migration is in this state.")
    assert (await force(api, running.uuid, migration.id, value={})).status == 400


async def test_what_is_not_there(api: Api, cloud: Cloud, running: Instance) -> None:
    migration = await moving(cloud, running)
    cold = await moving(cloud, running, migration_type="resize")
    for number in (migration.id + 99, cold.id, "nine", "0", "-1", 2**70, "%00"):
        assert (await abort(api, running.uuid, number)).status == 404
        assert (await force(api, running.uuid, number)).status == 400
    assert (await abort(api, "99999999-9999-4999-8999-999999999999", migration.id)).status == 404
    assert (await force(api, "99999999-9999-4999-8999-999999999999", migration.id)).status == 404
    for act in (abort, force):
        assert (await act(api, running.uuid, migration.id, who="member")).status == 403
        assert (await act(api, running.uuid, migration.id, who="other")).status == 404
        await put(cloud, running.uuid, locked="owner")
        assert (await act(api, running.uuid, migration.id, who="manager")).status == 409
        await put(cloud, running.uuid, locked=None)
        await put(cloud, running.uuid, task_state=None)
        reply = await act(api, running.uuid, migration.id)
        assert reply.status == 409 and "task_state None" in reply.fault
        await put(cloud, running.uuid, task_state="migrating")
    await put(cloud, running.uuid, vm_state="paused")
    assert (await force(api, running.uuid, migration.id)).status == 409
    assert (await abort(api, running.uuid, migration.id, who="manager")).status == 202


# ---- with hosts that do it ----


@pytest.mark.parametrize("version", [1, 24, 25, 29, 30, 33])
async def test_until_2_33_a_request_waits_for_the_checks(tmp_path: Path, version: int) -> None:
    more: dict[str, Any] = {"disk_over_commit": False} if version < 25 else {}
    async with live(tmp_path / "state", "h2") as two:
        uuid, api = await two.boot(), api_of(two.cloud)
        two.driver("h2").faults.add("check_arrival", HostFault("no room here"))
        reply = await ask(api, uuid, v=version, host=None, block_migration=True, **more)
        assert reply.status == 400 and "no room here" in reply.fault, reply.content
        await settled(two.cloud, uuid)
        await two.assert_as_before(uuid)
        two.driver("h2").faults.hold("check_arrival")
        asking = asyncio.create_task(ask(api, uuid, v=version, host=None, block_migration=True, **more))
        await asyncio.sleep(0.3)
        assert not asking.done()
        two.driver("h2").faults.release("check_arrival")
        assert (await asyncio.wait_for(asking, 10)).status == 202
        await settled(two.cloud, uuid)
        await two.assert_only_on(uuid, "h2")
        assert await two.nothing_left() == []


@pytest.mark.capability("API-114")
@pytest.mark.parametrize(
    ("version", "force", "status"), [(1, {}, 202), (29, {}, 202), (30, {}, 400), (30, {"force": True}, 202)]
)
async def test_until_2_29_a_host_that_is_named_is_forced(
    tmp_path: Path, version: int, force: dict[str, Any], status: int
) -> None:
    """One that takes no more servers: the scheduler would not let it pass."""
    more: dict[str, Any] = {"disk_over_commit": False} if version < 25 else {}
    async with live(tmp_path / "state", "h2") as two:
        uuid, now = await two.boot(), two.cloud.clock.now()
        await two.cloud.db.write(lambda tx: hosts.set_disabled(tx, "h2", True, "work", now))
        two.cloud.scheduler.forget()
        body = {"host": "h2", "block_migration": True, **force, **more}
        assert (await ask(api_of(two.cloud), uuid, v=version, **body)).status == status
        found = await settled(two.cloud, uuid)
        assert found.host == ("h2" if status == 202 else "h1")


@pytest.mark.parametrize("version", [34, 104])
async def test_from_2_34_on_failures_show_in_the_actions(tmp_path: Path, version: int) -> None:
    async with live(tmp_path / "state", "h2") as two:
        uuid, api = await two.boot(), api_of(two.cloud)
        two.driver("h2").faults.add("check_arrival", HostFault("no room here"))
        assert (await ask(api, uuid, v=version, host=None, block_migration="auto")).status == 202
        await settled(two.cloud, uuid)
        reply = await api("GET", f"/servers/{uuid}/os-instance-actions", v=version)
        newest = reply.json["instanceActions"][0]
        assert (newest["action"], newest["message"]) == ("live-migration", "Error")
        shown = await api("GET", f"/servers/{uuid}", v=version)
        assert shown.json["server"]["status"] == "ACTIVE"
        moves = await api("GET", f"/os-migrations?instance_uuid={uuid}", v=version)
        assert [each["status"] for each in moves.json["migrations"]] == ["error"]


async def test_one_that_is_under_way_is_shown_steered_and_ends(tmp_path: Path) -> None:
    async with live(tmp_path / "state", "h2") as two:
        uuid, api = await two.boot(), api_of(two.cloud)
        two.live("h1").rate = SLOW
        await ask(api, uuid, host="h2", block_migration="auto")
        (migration,) = await two.migrations(uuid)
        await two.at(migration.uuid, "running")
        async with asyncio.timeout(15):
            while (await two.migration(migration.uuid)).memory_total is None:
                await asyncio.sleep(0.01)
        (listed,) = (await api("GET", f"/servers/{uuid}/migrations", v=80)).json["migrations"]
        shown = (await api("GET", f"/servers/{uuid}/migrations/{migration.id}", v=80)).json["migration"]
        assert listed == shown
        assert (shown["status"], shown["source_compute"], shown["dest_compute"]) == ("running", "h1", "h2")
        assert shown["memory_total_bytes"] == (128 + 1024) << 20 and shown["memory_remaining_bytes"] > 0
        server_shown = (await api("GET", f"/servers/{uuid}", v=80)).json["server"]
        assert server_shown["status"] == "MIGRATING"
        assert (await force(api, uuid, migration.id)).status == 202
        await settled(two.cloud, uuid)
        await two.assert_moved(uuid, "h2")
        assert (await api("GET", f"/servers/{uuid}/migrations", v=80)).json["migrations"] == []
        assert (await api("GET", f"/servers/{uuid}/migrations/{migration.id}", v=80)).status == 404
        assert (await abort(api, uuid, migration.id)).status == 409
