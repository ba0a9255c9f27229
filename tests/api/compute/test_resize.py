"""``resize``, ``migrate``, ``confirmResize`` and ``revertResize``: states, policies, bodies in all
microversions, what is refused and in which words, and what is shown of a server on its way."""

from __future__ import annotations

import itertools
from typing import Any

import msgspec
import pytest
from sqlalchemy import select

from kilonova.db import flavors, hosts, instances, migrations, quotas
from kilonova.db.tables.compute import hosts as hosts_table
from kilonova.db.tables.journal import actions
from kilonova.model.flavor import Flavor
from kilonova.model.instance import ImageMeta
from kilonova.model.migration import Migration, Status
from kilonova.model.states import TASK_STATES, VM_STATES
from kilonova.operations.cloud import Cloud
from kilonova.operations.moving import MoveParams
from tests.api.compute.asgi import Api
from tests.api.compute.conftest import PROJECT
from tests.api.compute.moving_servers import recorded as recorded_moves
from tests.api.compute.moving_servers import report
from tests.api.compute.parts import HOST, IMAGE, server
from tests.api.compute.test_server_actions import act, get, put, recorded

LIVING = [state for state in VM_STATES if state != "deleted"]
SAME = "Cannot migrate to the host where the server exists."
NO_DOWN = "Server disk was unable to be resized because: Unable to resize disk down."

# action -> who may, vm_states in which Nova takes it, the task_state that it sets, what is said, the status
RULES: dict[str, tuple[str, set[str], str | None, Any, int]] = {
    "resize": ("member", {"active", "stopped"}, "resize_prep", {"flavorRef": "2"}, 202),
    "migrate": ("manager", {"active", "stopped"}, "resize_prep", None, 202),
    "confirmResize": ("member", {"resized"}, None, None, 204),
    "revertResize": ("member", {"resized"}, "resize_reverting", None, 202),
}
ENDING = {"confirmResize": Status.CONFIRMING, "revertResize": Status.REVERTING}


async def moved(cloud: Cloud, uuid: str, status: str = Status.FINISHED) -> str:
    """A migration of the server."""
    made = Migration(
        uuid=cloud.new_uuid(),
        instance_uuid=uuid,
        project_id=PROJECT,
        user_id="u",
        migration_type="resize",
        status=status,
        created_at=cloud.clock.now(),
        source_compute="host0",
        dest_compute=HOST,
    )
    await cloud.db.write(lambda tx: migrations.insert(tx, made))
    return made.uuid


async def in_state(cloud: Cloud, action: str, **values: Any) -> str:
    """A server with which the action may begin."""
    uuid = (await server(cloud, PROJECT, vm_state=min(RULES[action][1]), **values)).uuid
    if action in ENDING:
        await moved(cloud, uuid)
    return uuid


async def made_flavor(cloud: Cloud, name: str, **values: Any) -> str:
    sizes = {"vcpus": 1, "memory_mb": 512, "root_gb": 1, **values}
    made = Flavor(id=0, flavorid=name, name=name, **sizes)
    await cloud.db.write(lambda tx: flavors.create(tx, made, 1))
    return name


@pytest.mark.capability("API-8", "API-25", "API-26", "API-28")
@pytest.mark.parametrize("action", RULES)
async def test_every_action_in_every_state(api: Api, cloud: Cloud, action: str) -> None:
    who, vms, sets, said, status = RULES[action]
    uuid = (await server(cloud, PROJECT)).uuid
    for vm, task in itertools.product(LIVING, [None, *TASK_STATES]):
        await put(cloud, uuid, vm_state=vm, task_state=task)
        if action in ENDING:
            await moved(cloud, uuid)
        before = len(await recorded(cloud, uuid))
        reply = await act(api, uuid, action, said, who=who)
        now, log = await get(cloud, uuid), await recorded(cloud, uuid)
        if vm in vms and task is None:
            assert (reply.status, reply.content) == (status, b""), (vm, reply.content)
            assert (now.vm_state, now.task_state, now.progress) == (vm, sets, 0)
            assert (len(log), log[0]) == (before + 1, action)
            continue
        where = f"vm_state {vm}" if vm not in vms else f"task_state {task}"
        assert reply.status == 409, (vm, task)
        assert reply.fault == f"Cannot '{action}' instance {uuid} while it is in {where}"
        assert (now.vm_state, now.task_state, len(log)) == (vm, task, before)


@pytest.mark.capability("API-4")
@pytest.mark.parametrize("action", RULES)
async def test_a_lock_keeps_all_but_administrators_off(api: Api, cloud: Cloud, action: str) -> None:
    who, _, sets, said, status = RULES[action]
    uuid = await in_state(cloud, action, locked="owner")
    reply = await act(api, uuid, action, said, who=who)
    assert (reply.status, reply.fault) == (409, f"Instance {uuid} is locked")
    assert (await act(api, uuid, action, said, who="admin")).status == status
    assert (await get(cloud, uuid)).task_state == sets


@pytest.mark.parametrize("action", RULES)
@pytest.mark.parametrize("who", ["reader", "nobody", "other", "member", "manager", "admin"])
async def test_who_may(api: Api, cloud: Cloud, action: str, who: str) -> None:
    least, _, _, said, status = RULES[action]
    uuid = await in_state(cloud, action)
    reply = await act(api, uuid, action, said, who=who)
    allowed = who in ("manager", "admin") or who == least
    assert reply.status == (status if allowed else 404 if who == "other" else 403)
    assert await recorded(cloud, uuid) == ([action] if allowed else [])


@pytest.mark.parametrize("action", RULES)
async def test_no_such_server(api: Api, action: str) -> None:
    for uuid in ("11111111-1111-4111-8111-111111111111", "no"):
        reply = await act(api, uuid, action, RULES[action][3], who="admin")
        assert (reply.status, reply.fault) == (404, f"Instance {uuid} could not be found.")


# ---- bodies ----


@pytest.mark.parametrize("version", [1, 55, 56, 104])
@pytest.mark.parametrize(
    ("said", "status"),
    [
        ({"flavorRef": "2"}, 202),
        ({"flavorRef": 2}, 202),
        ({"flavorRef": "2", "OS-DCF:diskConfig": "AUTO"}, 202),
        ({"flavorRef": "2", "OS-DCF:diskConfig": "MANUAL"}, 202),
        ({"flavorRef": "2", "OS-DCF:diskConfig": "auto"}, 400),
        ({"flavorRef": "2", "OS-DCF:diskConfig": None}, 400),
        ({"flavorRef": "2", "more": 1}, 400),
        ({"flavorRef": ""}, 400),
        ({"flavorRef": None}, 400),
        ({"flavorRef": ["2"]}, 400),
        ({}, 400),
        (None, 400),
        ("2", 400),
    ],
)
async def test_bodies_of_a_resize(api: Api, cloud: Cloud, version: int, said: Any, status: int) -> None:
    uuid = await in_state(cloud, "resize")
    assert (await act(api, uuid, "resize", said, v=version)).status == status


async def test_the_disk_config_that_is_asked_for_is_kept(api: Api, cloud: Cloud) -> None:
    uuid = await in_state(cloud, "resize", system_metadata={"a": "b"})
    said = {"flavorRef": "2", "OS-DCF:diskConfig": "AUTO"}
    assert (await act(api, uuid, "resize", said)).status == 202
    assert (await get(cloud, uuid)).system_metadata == {"a": "b", "disk_config": "AUTO"}


@pytest.mark.parametrize(
    ("version", "said", "status", "host"),
    [
        (1, None, 202, None),
        (1, {}, 202, None),
        (1, "x", 202, None),
        (55, {"host": "elsewhere"}, 202, None),  # which nobody reads yet
        (56, None, 202, None),
        (56, {"host": "elsewhere"}, 202, "elsewhere"),
        (104, {"host": "elsewhere"}, 202, "elsewhere"),
        (56, {}, 400, None),
        (56, {"host": None}, 400, None),
        (56, {"host": ""}, 400, None),
        (56, {"host": "x" * 256}, 400, None),
        (56, {"host": "a b"}, 400, None),
        (56, {"host": "elsewhere", "force": True}, 400, None),
        (56, "elsewhere", 400, None),
    ],
)
async def test_bodies_of_a_migration(
    api: Api, cloud: Cloud, version: int, said: Any, status: int, host: str | None
) -> None:
    await report(cloud, "elsewhere")
    uuid = await in_state(cloud, "migrate")
    assert (await act(api, uuid, "migrate", said, who="admin", v=version)).status == status
    if status == 202:
        query = select(actions.c.operation, actions.c.params).where(actions.c.instance_uuid == uuid)
        ((operation, params),) = await cloud.db.read(lambda tx: tx.all(query))
        assert operation == "resize"
        (migration,) = await recorded_moves(cloud, uuid)
        assert msgspec.json.decode(params, type=MoveParams) == MoveParams(migration=migration.uuid, host=host)
        assert (migration.migration_type, migration.status) == ("migration", Status.PRE_MIGRATING)
        assert migration.old_flavor_id == migration.new_flavor_id


async def test_a_host_is_named_by_administrators_only(api: Api, cloud: Cloud) -> None:
    await report(cloud, "elsewhere")
    for who, status in (("manager", 403), ("admin", 202)):
        uuid = await in_state(cloud, "migrate")
        reply = await act(api, uuid, "migrate", {"host": "elsewhere"}, who=who, v=56)
        assert reply.status == status
        if status == 403:
            assert "os_compute_api:os-migrate-server:migrate:host" in reply.fault


@pytest.mark.capability("API-104")
@pytest.mark.parametrize(
    ("host", "fault"), [(HOST, SAME), ("nowhere", "Compute host nowhere could not be found.")]
)
async def test_hosts_that_will_not_do(api: Api, cloud: Cloud, host: str, fault: str) -> None:
    uuid = await in_state(cloud, "migrate")
    reply = await act(api, uuid, "migrate", {"host": host}, who="admin", v=56)
    assert (reply.status, reply.fault) == (400, fault)
    assert (await get(cloud, uuid)).task_state is None
    assert await recorded_moves(cloud, uuid) == []


@pytest.mark.parametrize("action", ["confirmResize", "revertResize"])
@pytest.mark.parametrize("said", [None, {}, {"a": 1}, "x", 7])
async def test_what_is_said_with_a_decision_does_not_matter(
    api: Api, cloud: Cloud, action: str, said: Any
) -> None:
    uuid = await in_state(cloud, action)
    assert (await act(api, uuid, action, said)).status == RULES[action][4]


# ---- what is refused ----


@pytest.mark.capability("API-103")
async def test_flavors_that_will_not_do(api: Api, cloud: Cloud) -> None:
    await made_flavor(cloud, "private", is_public=False)
    await made_flavor(cloud, "off", disabled=True, root_gb=2)
    await made_flavor(cloud, "zero", root_gb=0)
    await made_flavor(cloud, "wrong", extra_specs={"hw:cpu_policy": "some"})
    here = await made_flavor(cloud, "here", root_gb=2, ephemeral_gb=2)
    less = await made_flavor(cloud, "less", root_gb=2, ephemeral_gb=1)
    small = await made_flavor(cloud, "small", root_gb=2, ephemeral_gb=2, memory_mb=100)
    flavor = await cloud.db.read(lambda tx: flavors.show(tx, here))
    image = ImageMeta(id=IMAGE, min_ram=200, min_disk=2)
    uuid = (await server(cloud, PROJECT, flavor=flavor, image=image)).uuid
    zero = "Server disk was unable to be resized because: Resize to zero disk flavor is not allowed."
    for name, fault in (
        ("none", "Flavor none could not be found."),
        ("private", "Flavor private could not be found."),
        ("off", "Flavor off could not be found."),
        (here, "When resizing, instances must change flavor!"),
        ("zero", zero),
        ("1", NO_DOWN),
        (less, NO_DOWN),
        (small, "Flavor's memory is too small for requested image: 100 MiB, 200 needed."),
    ):
        reply = await act(api, uuid, "resize", {"flavorRef": name})
        assert (reply.status, reply.fault) == (400, fault), name
    await made_flavor(cloud, "fine but wrong", root_gb=2, ephemeral_gb=2, extra_specs={"hw:cpu_policy": "x"})
    assert (await act(api, uuid, "resize", {"flavorRef": "fine but wrong"})).status == 400
    assert (await get(cloud, uuid)).task_state is None
    assert await recorded(cloud, uuid) == [] and await recorded_moves(cloud, uuid) == []


async def test_a_flavor_of_the_project_will_do(api: Api, cloud: Cloud) -> None:
    name = await made_flavor(cloud, "private", is_public=False, projects=(PROJECT,))
    uuid = await in_state(cloud, "resize")
    assert (await act(api, uuid, "resize", {"flavorRef": name})).status == 202


async def test_an_image_that_forbids_automatic_disk_config(api: Api, cloud: Cloud) -> None:
    image = ImageMeta(id=IMAGE, properties={"auto_disk_config": "Disabled"})
    uuid = await in_state(cloud, "resize", image=image)
    reply = await act(api, uuid, "resize", {"flavorRef": "2", "OS-DCF:diskConfig": "AUTO"})
    assert reply.status == 400 and "automatic disk resize disabled" in reply.fault
    assert (await act(api, uuid, "resize", {"flavorRef": "2", "OS-DCF:diskConfig": "MANUAL"})).status == 202


@pytest.mark.capability("API-103")
async def test_what_a_server_grows_by_is_booked_for_its_owner_or_refused(api: Api, cloud: Cloud) -> None:
    cloud.settings.options["quota"].update(cores=2, ram=4000)
    made = await server(cloud, PROJECT)

    def held() -> Any:
        return cloud.db.read(lambda tx: (quotas.usage(tx, PROJECT), quotas.usage(tx, PROJECT, made.user_id)))

    reply = await act(api, made.uuid, "resize", {"flavorRef": "4"}, who="admin")
    assert reply.status == 403
    assert (
        reply.fault
        == "Quota exceeded for cores, ram: Requested 3, 7680, but already used 0, 0 of 2, 4000 cores, ram"
    )
    assert (await get(cloud, made.uuid)).task_state is None and await recorded_moves(cloud, made.uuid) == []
    reply = await act(api, made.uuid, "resize", {"flavorRef": "2"}, who="admin")
    assert reply.status == 202
    grown = {"instances": 0, "cores": 0, "ram": 2048 - 512}
    assert await held() == (grown, grown)


@pytest.mark.parametrize("action", ["resize", "migrate"])
async def test_a_server_whose_host_is_down_or_that_is_on_none(api: Api, cloud: Cloud, action: str) -> None:
    said = RULES[action][3]
    uuid = await in_state(cloud, action)
    await cloud.db.write(lambda tx: hosts.set_forced_down(tx, HOST, True, cloud.clock.now()))
    reply = await act(api, uuid, action, said, who="admin")
    assert reply.status == 409 and reply.fault.startswith("Service is unavailable at this time")
    await cloud.db.write(lambda tx: hosts.set_forced_down(tx, HOST, False, cloud.clock.now()))
    await cloud.db.write(lambda tx: tx.run(hosts_table.update().values(last_seen_at=cloud.clock.now())))
    await put(cloud, uuid, host=None)
    reply = await act(api, uuid, action, said, who="admin")
    assert (reply.status, reply.fault) == (409, f"Instance {uuid} is not ready")
    await put(cloud, uuid, host=HOST)
    assert (await act(api, uuid, action, said, who="admin")).status == 202


@pytest.mark.parametrize("action", ["confirmResize", "revertResize"])
@pytest.mark.parametrize(
    "status", [None, "migrating", "confirming", "confirmed", "reverting", "reverted", "error"]
)
async def test_without_a_migration_that_waits_there_is_nothing_to_decide(
    api: Api, cloud: Cloud, action: str, status: str | None
) -> None:
    uuid = (await server(cloud, PROJECT, vm_state="resized")).uuid
    if status is not None:
        await moved(cloud, uuid, status)
    reply = await act(api, uuid, action)
    assert (reply.status, reply.fault) == (400, "Instance has not been resized.")
    assert await recorded(cloud, uuid) == []
    assert (await get(cloud, uuid)).task_state is None


@pytest.mark.capability("MG-RSZ-9")
@pytest.mark.parametrize("action", ["confirmResize", "revertResize"])
async def test_of_two_decisions_one_is_taken(api: Api, cloud: Cloud, action: str) -> None:
    uuid = await in_state(cloud, action)
    assert (await act(api, uuid, action)).status == RULES[action][4]
    (migration,) = await recorded_moves(cloud, uuid)
    assert migration.status == ENDING[action]
    for second in ENDING:
        reply = await act(api, uuid, second)
        assert reply.status in (400, 409)
    assert await recorded(cloud, uuid) == [action]


# ---- what is shown ----


@pytest.mark.parametrize(
    ("vm", "task", "shown"),
    [
        ("active", "resize_prep", "RESIZE"),
        ("active", "resize_migrating", "RESIZE"),
        ("stopped", "resize_migrated", "RESIZE"),
        ("stopped", "resize_finish", "RESIZE"),
        ("resized", None, "VERIFY_RESIZE"),
        ("resized", "resize_reverting", "REVERT_RESIZE"),
    ],
)
async def test_what_is_shown_meanwhile(api: Api, cloud: Cloud, vm: str, task: str | None, shown: str) -> None:
    uuid = (await server(cloud, PROJECT, vm_state=vm, task_state=task)).uuid
    reply = await api("GET", f"/servers/{uuid}")
    assert reply.json["server"]["status"] == shown
    assert await cloud.db.read(lambda tx: instances.show(tx, uuid)) is not None
