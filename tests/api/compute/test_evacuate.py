"""``evacuate``: its body in all microversions, what it asks of the operation, and what is refused."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from kilonova.db import hosts, instances
from kilonova.model.instance import Instance
from kilonova.model.states import TASK_STATES, VM_STATES
from kilonova.operations.cloud import Cloud
from kilonova.operations.evacuate_steps import EvacuateParams
from tests.api.compute.asgi import Api, Reply
from tests.api.compute.conftest import PROJECT
from tests.api.compute.moving_servers import actions, params_of, put, recorded, report
from tests.api.compute.parts import HOST, server

OTHER = "host2"
HOUR = 3600 * 1_000_000


@pytest.fixture
async def down(cloud: Cloud) -> Instance:
    """A server of a host that is down; another host is up."""
    await report(cloud, OTHER)
    await seen(cloud, HOST, cloud.clock.now() - HOUR)
    return await server(cloud, PROJECT, vm_state="active", host=HOST, node=HOST)


async def seen(cloud: Cloud, name: str, moment: int) -> None:
    assert await cloud.db.write(lambda tx: hosts.heartbeat(tx, name, moment))


async def ask(api: Api, uuid: str, v: int = 96, who: str = "admin", **body: Any) -> Reply:
    return await api("POST", f"/servers/{uuid}/action", {"evacuate": body}, v=v, who=who)


async def asked(cloud: Cloud, uuid: str) -> EvacuateParams:
    """What the operation was told."""
    return await params_of(cloud, uuid, "evacuate", EvacuateParams)


@pytest.mark.capability("API-115", "API-44", "IA-4")
async def test_what_is_written_down(api: Api, cloud: Cloud, down: Instance) -> None:
    reply = await ask(api, down.uuid)
    assert (reply.status, reply.content) == (200, b"")
    now = await cloud.db.read(lambda tx: instances.show(tx, down.uuid))
    assert now is not None
    assert (now.vm_state, now.task_state, now.host) == ("active", "rebuilding", HOST)
    (migration,) = await recorded(cloud, down.uuid)
    assert (migration.migration_type, migration.status) == ("evacuation", "accepted")
    assert (migration.source_compute, migration.source_node, migration.dest_compute) == (HOST, HOST, None)
    assert migration.old_flavor_id == migration.new_flavor_id == down.flavor.id
    assert await actions(cloud, down.uuid) == ["evacuate"]
    assert (await asked(cloud, down.uuid)).migration == migration.uuid


@pytest.mark.capability("API-115")
@pytest.mark.parametrize(
    ("version", "body", "host", "forced", "said", "stop"),
    [
        (1, {"onSharedStorage": "False"}, None, False, False, False),
        (1, {"onSharedStorage": True, "host": OTHER}, OTHER, True, True, False),
        (13, {"onSharedStorage": "true", "host": OTHER}, OTHER, True, True, False),
        (14, {}, None, False, None, False),
        (14, {"host": OTHER}, OTHER, True, None, False),
        (28, {"host": OTHER, "adminPass": "x"}, OTHER, True, None, False),
        (29, {"host": OTHER}, OTHER, False, None, False),
        (29, {"host": OTHER, "force": True}, OTHER, True, None, False),
        (67, {"host": OTHER, "force": "False"}, OTHER, False, None, False),
        (68, {"host": OTHER}, OTHER, False, None, False),
        (94, {}, None, False, None, False),
        (95, {}, None, False, None, True),
        (96, {"host": OTHER, "adminPass": "x"}, OTHER, False, None, True),
    ],
)
async def test_what_each_microversion_asks_for(
    api: Api,
    cloud: Cloud,
    down: Instance,
    version: int,
    body: dict[str, Any],
    host: str | None,
    forced: bool,
    said: bool | None,
    stop: bool,
) -> None:
    reply = await ask(api, down.uuid, version, **body)
    assert reply.status == 200, reply.content
    told = await asked(cloud, down.uuid)
    assert (told.host, told.forced, told.on_shared_storage, told.stop) == (host, forced, said, stop)
    if version > 13:
        assert reply.content == b""


@pytest.mark.parametrize(
    ("version", "body"),
    [
        (1, {}),
        (13, {"host": OTHER}),
        (13, {"onSharedStorage": "perhaps"}),
        (14, {"onSharedStorage": True}),
        (28, {"host": OTHER, "force": True}),
        (29, {"force": True}),
        (68, {"host": OTHER, "force": True}),
        (96, {"host": ""}),
        (96, {"host": None}),
        (96, {"host": "h/../x y"}),
        (96, {"host": "h" * 256}),
        (96, {"adminPass": 5}),
        (96, {"else": 1}),
        (13, {"onSharedStorage": True, "adminPass": "secret"}),
        (96, {"host": HOST}),
    ],
)
async def test_bodies_that_are_refused(
    api: Api, cloud: Cloud, down: Instance, version: int, body: dict[str, Any]
) -> None:
    reply = await ask(api, down.uuid, version, **body)
    assert reply.status == 400, reply.content
    assert await recorded(cloud, down.uuid) == [] and await actions(cloud, down.uuid) == []


async def test_refusals_in_novas_words(api: Api, cloud: Cloud, down: Instance) -> None:
    async def fault(version: int, **body: Any) -> tuple[int, str]:
        reply = await ask(api, down.uuid, version, **body)
        return reply.status, reply.fault

    assert await fault(29, force=True) == (400, "Can't force to a non-provided destination")
    assert await fault(96, host=HOST) == (400, "The target host can't be the same one.")
    assert await fault(96, host="nobody") == (404, "Compute host nobody not found.")
    await report(cloud, "far", cell="ce110000-0000-4000-8000-000000000001")
    assert await fault(96, host="far") == (404, "Compute host far not found.")
    assert await fault(13, onSharedStorage=True, adminPass="x") == (
        400,
        "admin password can't be changed on existing disk",
    )
    await seen(cloud, HOST, cloud.clock.now())
    assert await fault(96) == (400, f"Compute service of {HOST} is still in use.")


async def test_the_password_of_old_microversions(api: Api, cloud: Cloud, down: Instance) -> None:
    given = await ask(api, down.uuid, 13, onSharedStorage=False, adminPass="mine")
    assert given.json == {"adminPass": "mine"}
    await put(cloud, down.uuid, task_state=None)
    await finish(cloud, down.uuid)
    made = await ask(api, down.uuid, 13, onSharedStorage=False)
    assert len(made.json["adminPass"]) == 12
    await finish(cloud, down.uuid)
    assert (await ask(api, down.uuid, 13, onSharedStorage=True)).json == {"adminPass": None}


async def finish(cloud: Cloud, uuid: str) -> None:
    """Nobody runs operations here: this one is over."""
    from sqlalchemy import update

    from kilonova.db.tables.journal import actions as table

    await cloud.db.write(
        lambda tx: tx.run(update(table).where(table.c.instance_uuid == uuid).values(open=False, state="done"))
    )


@pytest.mark.capability("API-44", "API-4")
async def test_in_which_states_it_is_taken(api: Api, cloud: Cloud, down: Instance) -> None:
    """In any task_state but those of a deletion; a lock does not hinder it."""
    await put(cloud, down.uuid, locked="owner")
    for vm, task in itertools.product(VM_STATES, (None, *TASK_STATES)):
        if vm == "deleted":
            continue
        await put(cloud, down.uuid, vm_state=vm, task_state=task)
        reply = await ask(api, down.uuid)
        if vm in ("active", "stopped", "error") and task not in ("deleting", "soft-deleting"):
            assert reply.status == 200, (vm, task, reply.content)
            await finish(cloud, down.uuid)
        else:
            where = f"task_state {task}" if vm in ("active", "stopped", "error") else f"vm_state {vm}"
            assert (reply.status, reply.fault) == (
                409,
                f"Cannot 'evacuate' instance {down.uuid} while it is in {where}",
            ), (vm, task)


async def test_who_may(api: Api, down: Instance) -> None:
    assert (await ask(api, down.uuid, who="member")).status == 403
    assert (await ask(api, "00000000-0000-4000-8000-000000000000")).status == 404


async def test_servers_on_no_host_and_those_that_never_ran(api: Api, cloud: Cloud, down: Instance) -> None:
    await put(cloud, down.uuid, launched_at=None)
    reply = await ask(api, down.uuid)
    assert (reply.status, reply.fault) == (
        409,
        f"Cannot 'evacuate' instance {down.uuid} while it is in launched_at None",
    )
    await put(cloud, down.uuid, host=None)
    reply = await ask(api, down.uuid)
    assert (reply.status, reply.fault) == (409, f"Instance {down.uuid} is not ready")
