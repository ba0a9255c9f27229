"""``createImage``: where the id of the image is, what a body may have, who may, and in which states."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from kilonova.model.states import TASK_STATES, VM_STATES
from kilonova.operations import create_image
from kilonova.operations.cloud import Cloud
from tests.api.compute.asgi import Api
from tests.api.compute.conftest import PROJECT
from tests.api.compute.parts import server
from tests.api.compute.test_server_actions import act, get, put, recorded
from tests.api.compute.whole_cloud import Whole, whole_cloud

BODY = {"name": "snap"}
LIVING = [state for state in VM_STATES if state != "deleted"]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody makes the image in a cloud without a runner."""
    monkeypatch.setattr(create_image, "PATIENCE", 0.0)


@pytest.mark.capability("API-1", "API-4", "API-8", "API-21")
async def test_in_every_state_also_of_a_server_that_is_locked(api: Api, cloud: Cloud) -> None:
    uuid = (await server(cloud, PROJECT, locked="owner")).uuid
    for vm, task in itertools.product(LIVING, [None, *TASK_STATES]):
        await put(cloud, uuid, vm_state=vm, task_state=task)
        before = len(await recorded(cloud, uuid))
        reply = await act(api, uuid, "createImage", BODY)
        now, log = await get(cloud, uuid), await recorded(cloud, uuid)
        if vm in ("active", "stopped", "paused", "suspended") and task is None:
            assert (reply.status, reply.content) == (202, b""), (vm, reply.content)
            assert (now.vm_state, now.task_state) == (vm, "image_snapshot_pending")
            assert (len(log), log[0]) == (before + 1, "createImage")
            continue
        where = (
            f"vm_state {vm}"
            if task is None or vm not in ("active", "stopped", "paused", "suspended")
            else f"task_state {task}"
        )
        assert (reply.status, reply.fault) == (
            409,
            f"Cannot 'createImage' instance {uuid} while it is in {where}",
        )
        assert (now.vm_state, now.task_state, len(log)) == (vm, task, before)


@pytest.mark.parametrize(
    ("who", "status"), [("reader", 403), ("nobody", 403), ("other", 404), ("member", 202)]
)
async def test_who_may(api: Api, cloud: Cloud, who: str, status: int) -> None:
    uuid = (await server(cloud, PROJECT)).uuid
    assert (await act(api, uuid, "createImage", BODY, who=who)).status == status


@pytest.mark.parametrize(
    ("argument", "status"),
    [
        (None, 400),
        ({}, 400),
        ("snap", 400),
        ({"name": None}, 400),
        ({"name": ""}, 400),
        ({"name": " x"}, 400),
        ({"name": "x" * 255}, 202),
        ({"name": "x" * 256}, 400),
        ({"name": "x", "metadata": {}}, 202),
        ({"name": "x", "metadata": {"a": "b"}}, 202),
        ({"name": "x", "metadata": {"a": 1}}, 400),
        ({"name": "x", "metadata": {"": "b"}}, 400),
        ({"name": "x", "metadata": {"a": "b" * 256}}, 400),
        ({"name": "x", "metadata": None}, 400),
        ({"name": "x", "metadata": []}, 400),
        ({"name": "x", "rotation": 1}, 400),
    ],
)
async def test_bodies(api: Api, cloud: Cloud, argument: Any, status: int) -> None:
    uuid = (await server(cloud, PROJECT)).uuid
    reply = await act(api, uuid, "createImage", argument, v=104)
    assert reply.status == status, reply.content


@pytest.mark.parametrize(("version", "status"), [(1, 403), (38, 403), (39, 202), (104, 202)])
async def test_properties_are_counted_until_2_38(api: Api, cloud: Cloud, version: int, status: int) -> None:
    uuid = (await server(cloud, PROJECT)).uuid
    many = {f"k{number}": "v" for number in range(129)}
    reply = await act(api, uuid, "createImage", {"name": "x", "metadata": many}, v=version)
    assert reply.status == status
    if status == 403:
        assert await recorded(cloud, uuid) == []


@pytest.mark.parametrize("version", [1, 44, 45, 104])
async def test_where_the_id_is(api: Api, cloud: Cloud, version: int) -> None:
    uuid = (await server(cloud, PROJECT)).uuid
    reply = await act(api, uuid, "createImage", BODY, v=version)
    assert reply.status == 202
    if version < 45:
        assert reply.content == b""
        head, _, image_id = reply.headers["location"].rpartition("/")
        assert head == cloud.settings.url("image") + "/images"
    else:
        assert "location" not in reply.headers
        assert list(reply.json) == ["image_id"]
        image_id = reply.json["image_id"]
    assert len(image_id) == 36


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def whole(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Whole]:
    async with whole_cloud(Path(tmp_path_factory.mktemp("whole"))) as made:
        yield made


@pytest.mark.asyncio(loop_scope="module")
async def test_the_image_is_there_and_comes_to_be_active(
    whole: Whole, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(create_image, "PATIENCE", 20.0)
    made = await whole.made()
    with whole.held("snapshot"):
        reply = await whole.act(made.uuid, "createImage", {"name": "snap", "metadata": {"a": "b"}}, v=45)
        image_id = reply.json["image_id"]
        found = (await whole.images("GET", f"/images/{image_id}")).json
        assert (found["name"], found["status"], found["a"], found["owner"]) == (
            "snap",
            "queued",
            "b",
            whole.project,
        )
    await whole.settled(made.uuid)
    found = (await whole.images("GET", f"/images/{image_id}")).json
    assert (found["status"], found["instance_uuid"]) == ("active", made.uuid)
    assert (await whole.shown(made.uuid))["status"] == "ACTIVE"
    log = await whole.api("GET", f"/servers/{made.uuid}/os-instance-actions", v=104)
    assert [each["action"] for each in log.json["instanceActions"]] == ["createImage", "create"]
