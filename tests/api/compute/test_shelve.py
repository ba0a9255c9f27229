"""``shelve``, ``shelveOffload`` and ``unshelve``: states, policies, bodies in all microversions, and what is
shown of a server on its way."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from kilonova.db import hosts, instances
from kilonova.model.states import TASK_STATES, VM_STATES
from kilonova.operations.cloud import Cloud
from kilonova.operations.unshelve import UnshelveParams
from tests.api.compute.asgi import Api, Reply
from tests.api.compute.conftest import PROJECT
from tests.api.compute.parts import HOST, server
from tests.api.compute.test_server_actions import act, get, put, recorded
from tests.api.compute.whole_cloud import Whole, whole_cloud

LIVING = [state for state in VM_STATES if state != "deleted"]

# action -> who may, vm_states in which Nova takes it, the task_state that it sets
RULES: dict[str, tuple[str, set[str], str]] = {
    "shelve": ("member", {"active", "stopped", "paused", "suspended"}, "shelving"),
    "shelveOffload": ("admin", {"shelved"}, "shelving_offloading"),
    "unshelve": ("member", {"shelved", "shelved_offloaded"}, "unshelving"),
}


@pytest.mark.capability("API-1", "API-8", "API-29", "API-30", "API-31")
@pytest.mark.parametrize("action", RULES)
async def test_every_action_in_every_state(api: Api, cloud: Cloud, action: str) -> None:
    who, vms, sets = RULES[action]
    uuid = (await server(cloud, PROJECT)).uuid
    for vm, task in itertools.product(LIVING, [None, *TASK_STATES]):
        await put(cloud, uuid, vm_state=vm, task_state=task)
        before = len(await recorded(cloud, uuid))
        reply = await act(api, uuid, action, who=who)
        now, log = await get(cloud, uuid), await recorded(cloud, uuid)
        if vm in vms and task is None:
            assert (reply.status, reply.content) == (202, b""), (vm, reply.content)
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
    _, vms, sets = RULES[action]
    uuid = (await server(cloud, PROJECT, vm_state=min(vms), locked="owner")).uuid
    if action != "shelveOffload":
        reply = await act(api, uuid, action)
        assert (reply.status, reply.fault) == (409, f"Instance {uuid} is locked")
    assert (await act(api, uuid, action, who="admin")).status == 202
    assert (await get(cloud, uuid)).task_state == sets


@pytest.mark.parametrize("action", RULES)
@pytest.mark.parametrize("who", ["reader", "nobody", "other", "member"])
async def test_who_may(api: Api, cloud: Cloud, action: str, who: str) -> None:
    uuid = (await server(cloud, PROJECT, vm_state=min(RULES[action][1]))).uuid
    reply = await act(api, uuid, action, who=who)
    allowed = who == RULES[action][0]
    assert reply.status == (202 if allowed else 404 if who == "other" else 403)
    assert await recorded(cloud, uuid) == ([action] if allowed else [])


@pytest.mark.parametrize("action", RULES)
async def test_no_such_server(api: Api, action: str) -> None:
    for uuid in ("11111111-1111-4111-8111-111111111111", "no"):
        reply = await act(api, uuid, action, who="admin")
        assert (reply.status, reply.fault) == (404, f"Instance {uuid} could not be found.")


ANYTHING = [None, {}, {"a": 1}, "x", 7, []]


@pytest.mark.parametrize("argument", ANYTHING)
@pytest.mark.parametrize("version", [1, 76, 77, 91, 104])
@pytest.mark.parametrize("action", ["shelve", "shelveOffload"])
async def test_what_is_said_with_a_shelve_does_not_matter(
    api: Api, cloud: Cloud, action: str, version: int, argument: Any
) -> None:
    uuid = (await server(cloud, PROJECT, vm_state=min(RULES[action][1]))).uuid
    assert (await act(api, uuid, action, argument, who="admin", v=version)).status == 202


async def offloaded(cloud: Cloud) -> str:
    made = await server(cloud, PROJECT, vm_state="shelved_offloaded", host=None, node=None)
    return made.uuid


async def asked(api: Api, cloud: Cloud, argument: Any, version: int, who: str = "admin") -> Reply:
    return await act(api, await offloaded(cloud), "unshelve", argument, who=who, v=version)


@pytest.mark.capability("API-110")
@pytest.mark.parametrize(
    ("version", "argument", "status"),
    [
        (1, None, 202),
        (1, {}, 202),
        (1, {"anything": 1}, 202),
        (1, "x", 400),
        (76, {"availability_zone": "north"}, 202),  # which nobody reads yet
        (77, None, 202),
        (77, {"availability_zone": "nova"}, 202),
        (77, {}, 400),
        (77, {"availability_zone": None}, 400),
        (77, {"availability_zone": ""}, 400),
        (77, {"availability_zone": "x" * 256}, 400),
        (77, {"availability_zone": 1}, 400),
        (77, {"availability_zone": "nova", "host": HOST}, 400),
        (77, {"host": HOST}, 400),
        (77, "x", 400),
        (90, {"availability_zone": None}, 400),
        (90, {}, 400),
        (91, None, 202),
        (91, {}, 202),
        (91, {"availability_zone": None}, 202),
        (91, {"availability_zone": "nova"}, 202),
        (91, {"host": HOST}, 202),
        (91, {"host": HOST, "availability_zone": None}, 202),
        (91, {"host": HOST, "availability_zone": "nova"}, 202),
        (91, {"host": None}, 400),
        (91, {"host": ""}, 400),
        (91, {"host": "a b"}, 400),
        (91, {"hosts": "x"}, 400),
        (104, {"host": HOST}, 202),
        (104, {"availability_zone": "north"}, 400),
        (104, {"host": "h9"}, 400),
        (104, {"host": HOST, "availability_zone": "west"}, 400),
    ],
)
async def test_bodies_of_unshelve(api: Api, cloud: Cloud, version: int, argument: Any, status: int) -> None:
    reply = await asked(api, cloud, argument, version)
    assert reply.status == status, reply.content


@pytest.mark.capability("API-110")
async def test_what_is_kept_of_a_zone(api: Api, cloud: Cloud) -> None:
    for version, argument, pinned in (
        (76, {"availability_zone": "north"}, "old"),
        (90, None, "old"),
        (90, {"availability_zone": "nova"}, "nova"),
        (91, {}, "old"),
        (91, {"availability_zone": "nova"}, "nova"),
        (91, {"availability_zone": None}, None),
        (91, {"availability_zone": None, "host": HOST}, None),
    ):
        uuid = await offloaded(cloud)
        await put(cloud, uuid, pinned_availability_zone="old")
        assert (await act(api, uuid, "unshelve", argument, who="admin", v=version)).status == 202
        assert (await get(cloud, uuid)).pinned_availability_zone == pinned, (version, argument)


async def test_a_host_must_be_in_the_zone(api: Api, cloud: Cloud) -> None:
    uuid = await offloaded(cloud)
    await put(cloud, uuid, pinned_availability_zone="west")
    reply = await act(api, uuid, "unshelve", {"host": HOST}, who="admin", v=91)
    assert (reply.status, reply.fault) == (409, f'Host "{HOST}" is not in the availability zone "west".')
    both = {"host": HOST, "availability_zone": None}
    assert (await act(api, uuid, "unshelve", both, who="admin", v=91)).status == 202


@pytest.mark.parametrize(
    "argument", [{"availability_zone": "nova"}, {"availability_zone": None}, {"host": HOST}]
)
async def test_one_that_is_on_its_host_is_sent_nowhere(api: Api, cloud: Cloud, argument: Any) -> None:
    uuid = (await server(cloud, PROJECT, vm_state="shelved")).uuid
    reply = await act(api, uuid, "unshelve", argument, who="admin", v=91)
    assert (reply.status, "SHELVED_OFFLOADED" in reply.fault) == (409, True)
    assert (await get(cloud, uuid)).task_state is None


async def test_a_host_is_named_by_administrators_only(api: Api, cloud: Cloud) -> None:
    for who, status in (("member", 403), ("manager", 403), ("admin", 202)):
        reply = await asked(api, cloud, {"host": HOST}, 91, who)
        assert reply.status == status, who
        if status == 403:
            assert "os_compute_api:os-shelve:unshelve_to_host" in reply.fault
    assert (await asked(api, cloud, {"availability_zone": "nova"}, 91, "member")).status == 202


async def test_what_the_operation_is_told(api: Api, cloud: Cloud) -> None:
    from sqlalchemy import select

    from kilonova.db.tables.journal import actions

    uuid = await offloaded(cloud)
    await put(cloud, uuid, system_metadata={"shelved_image_id": "i1"})
    assert (await act(api, uuid, "unshelve", {"host": HOST}, who="admin", v=91)).status == 202
    query = select(actions.c.operation, actions.c.params).where(actions.c.instance_uuid == uuid)
    ((operation, params),) = await cloud.db.read(lambda tx: tx.all(query))
    assert operation == "unshelve_offloaded"
    assert msgspec.json.decode(params, type=UnshelveParams) == UnshelveParams(image_id="i1", host=HOST)
    where = await cloud.db.read(lambda tx: hosts.show(tx, HOST))
    assert where is not None and where.availability_zone is None
    assert await cloud.db.read(lambda tx: instances.shelved(tx)) == []


# ---- before a cloud that does it ----


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def whole(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Whole]:
    async with whole_cloud(Path(tmp_path_factory.mktemp("whole"))) as made:
        yield made


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.capability("MG-SHV-2")
async def test_what_is_shown_of_a_shelved_server(whole: Whole) -> None:
    made = await whole.made(networks="auto", v=104)
    with whole.held("snapshot_data"):
        assert (await whole.act(made.uuid, "shelve")).status == 202
        shown = await whole.shown(made.uuid)
        assert shown["status"] == "ACTIVE"
        assert shown["OS-EXT-STS:task_state"].startswith("shelving")
    await whole.settled(made.uuid)
    shown = await whole.shown(made.uuid)
    assert (shown["status"], shown["OS-EXT-STS:vm_state"]) == ("SHELVED_OFFLOADED", "shelved_offloaded")
    assert (shown["OS-EXT-STS:task_state"], shown["OS-EXT-STS:power_state"]) == (None, 0)
    assert (shown["OS-EXT-SRV-ATTR:host"], shown["OS-EXT-SRV-ATTR:hypervisor_hostname"]) == (None, None)
    assert (shown["OS-EXT-AZ:availability_zone"], shown["hostId"]) == ("", "")
    assert made.image is not None
    assert shown["image"]["id"] == made.image.id
    assert len(shown["addresses"]) == 1
    listed = await whole.api("GET", "/servers?status=shelved_offloaded", v=104)
    assert [each["id"] for each in listed.json["servers"]] == [made.uuid]
    found = await whole.images("GET", "/images?image_type=snapshot")
    (image,) = found.json["images"]
    assert (image["name"], image["status"], image["instance_uuid"]) == ("s-shelved", "active", made.uuid)
    assert (await whole.act(made.uuid, "os-start")).status == 409
    log = await whole.api("GET", f"/servers/{made.uuid}/os-instance-actions", v=104)
    assert [each["action"] for each in log.json["instanceActions"]] == ["shelve", "create"]

    assert (await whole.act(made.uuid, "unshelve", v=104)).status == 202
    await whole.settled(made.uuid)
    shown = await whole.shown(made.uuid)
    assert (shown["status"], shown["OS-EXT-SRV-ATTR:host"]) == ("ACTIVE", whole.host)
    assert made.image is not None
    assert shown["image"]["id"] == made.image.id
    assert (await whole.images("GET", "/images?image_type=snapshot")).json["images"] == []
    log = await whole.api("GET", f"/servers/{made.uuid}/os-instance-actions", v=104)
    assert [each["action"] for each in log.json["instanceActions"]] == ["unshelve", "shelve", "create"]
