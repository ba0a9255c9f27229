"""Metadata and tags of servers."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from kilonova.db import instances, quotas
from kilonova.model.states import TASK_STATES, VM_STATES
from kilonova.operations.cloud import Cloud
from tests.api.compute.asgi import Api
from tests.api.compute.conftest import PROJECT
from tests.api.compute.parts import server

WRITABLE = {"active", "paused", "suspended", "stopped"}


async def kept(cloud: Cloud, uuid: str) -> dict[str, str]:
    found = await cloud.db.read(lambda tx: instances.show(tx, uuid))
    assert found is not None
    return found.metadata


@pytest.mark.capability("API-50", "API-51")
async def test_metadata_from_first_to_last(api: Api, cloud: Cloud) -> None:
    uuid = (await server(cloud, PROJECT)).uuid
    path = f"/servers/{uuid}/metadata"
    assert (await api("GET", path)).json == {"metadata": {}}
    assert (await api("POST", path, {"metadata": {"a": "1", "b": "2"}})).json == {
        "metadata": {"a": "1", "b": "2"}
    }
    merged = {"a": "1", "b": "3", "c": "ü ☃"}
    assert (await api("POST", path, {"metadata": {"b": "3", "c": "ü ☃"}})).json == {"metadata": merged}
    assert (await api("POST", path, {"metadata": {}})).json == {"metadata": merged}
    assert (await api("GET", f"{path}/c")).json == {"meta": {"c": "ü ☃"}}
    assert (await api("PUT", f"{path}/d", {"meta": {"d": ""}})).json == {"meta": {"d": ""}}
    assert await kept(cloud, uuid) == {**merged, "d": ""}
    reply = await api("DELETE", f"{path}/a")
    assert (reply.status, reply.content) == (204, b"")
    assert (await api("PUT", path, {"metadata": {"z": "0"}})).json == {"metadata": {"z": "0"}}
    assert (await api("GET", path)).json == {"metadata": {"z": "0"}}
    assert (await api("GET", f"/servers/{uuid}")).json["server"]["metadata"] == {"z": "0"}
    assert (await api("PUT", path, {"metadata": {}})).json == {"metadata": {}}
    for method in ("GET", "DELETE"):
        reply = await api(method, f"{path}/z")
        assert (reply.status, reply.fault) == (404, "Metadata item was not found")


CHANGES: list[tuple[str, str, Any]] = [
    ("POST", "", {"metadata": {"a": "b"}}),
    ("PUT", "", {"metadata": {"a": "b"}}),
    ("PUT", "/a", {"meta": {"a": "b"}}),
    ("DELETE", "/k", None),
]


@pytest.mark.capability("API-50", "API-51")
@pytest.mark.parametrize(("method", "path", "body"), CHANGES)
async def test_metadata_in_every_state(api: Api, cloud: Cloud, method: str, path: str, body: Any) -> None:
    """Four vm_states, any task_state, and it must have been running once."""
    uuid = (await server(cloud, PROJECT)).uuid
    word = "delete metadata" if method == "DELETE" else "update metadata"
    tasks = [None, "deleting", "migrating", *TASK_STATES[:2]]
    for vm, task, launched in itertools.product(VM_STATES, tasks, (1, None)):
        if vm == "deleted":
            continue
        values: dict[str, Any] = {"vm_state": vm, "task_state": task, "launched_at": launched}
        values["metadata"] = {"k": "v"}
        await cloud.db.write(
            lambda tx, values=values: instances.update(tx, uuid, expect_task=instances.ANY, **values)
        )
        reply = await api(method, f"/servers/{uuid}/metadata{path}", body)
        if vm in WRITABLE and launched:
            assert reply.status == (204 if method == "DELETE" else 200), (vm, task)
            continue
        where = f"vm_state {vm}" if vm not in WRITABLE else "launched_at None"
        assert reply.status == 409
        assert reply.fault == f"Cannot '{word}' instance {uuid} while it is in {where}"
        assert await kept(cloud, uuid) == {"k": "v"}


BAD = [
    {"": "x"},
    {"k" * 256: "x"},
    {"k": "v" * 256},
    {"k": 1},
    {"k": None},
    {"k": ["v"]},
    {"a/b": "x"},
    {"ü": "x"},
]


@pytest.mark.parametrize("metadata", [*BAD, None, [], "text"])
async def test_metadata_that_is_refused(api: Api, cloud: Cloud, metadata: Any) -> None:
    uuid = (await server(cloud, PROJECT, metadata={"k": "v"})).uuid
    for method in ("POST", "PUT"):
        reply = await api(method, f"/servers/{uuid}/metadata", {"metadata": metadata}, v=104)
        assert (reply.status, "metadata" in reply.fault) == (400, True)
    if isinstance(metadata, dict):
        (key,) = metadata
        reply = await api(
            "PUT", f"/servers/{uuid}/metadata/{'k' if '/' in key else key or 'k'}", {"meta": metadata}
        )
        assert reply.status == 400
    assert await kept(cloud, uuid) == {"k": "v"}


@pytest.mark.parametrize(
    "body",
    [
        {"meta": {"a": "b"}},
        {"meta": {}},
        {"meta": {"k": "b", "a": "b"}},
        {"meta": None},
        {"metadata": {"k": "b"}},
        {"meta": {"k": "b"}, "x": 1},
        {},
    ],
)
async def test_one_item_and_its_address(api: Api, cloud: Cloud, body: Any) -> None:
    uuid = (await server(cloud, PROJECT, metadata={"k": "v"})).uuid
    reply = await api("PUT", f"/servers/{uuid}/metadata/k", body)
    assert reply.status == 400
    assert await kept(cloud, uuid) == {"k": "v"}


async def test_metadata_has_a_quota(api: Api, cloud: Cloud) -> None:
    uuid = (await server(cloud, PROJECT, metadata={"a": "1", "b": "2"})).uuid
    limits = {"metadata_items": 3}
    await cloud.db.write(lambda tx: quotas.set_limits(tx, quotas.PROJECT, PROJECT, limits))
    path = f"/servers/{uuid}/metadata"
    for reply in (
        await api("POST", path, {"metadata": {"c": "3", "d": "4"}}),
        await api("PUT", path, {"metadata": {str(n): "x" for n in range(4)}}),
    ):
        assert (reply.status, reply.fault) == (403, "Maximum number of metadata items exceeds 3")
    assert (await api("PUT", f"{path}/c", {"meta": {"c": "3"}})).status == 200
    assert (await api("PUT", f"{path}/d", {"meta": {"d": "4"}})).status == 403
    assert (await api("PUT", f"{path}/a", {"meta": {"a": "other"}})).status == 200
    assert await kept(cloud, uuid) == {"a": "other", "b": "2", "c": "3"}


@pytest.mark.parametrize("who", ["reader", "nobody", "other"])
async def test_who_may_change_metadata_and_tags(api: Api, cloud: Cloud, who: str) -> None:
    uuid = (await server(cloud, PROJECT, metadata={"k": "v"}, tags=("t",))).uuid
    changes = [(method, f"/metadata{path}", body) for method, path, body in CHANGES]
    changes += [("PUT", "/tags", {"tags": []}), ("DELETE", "/tags", None)]
    changes += [("PUT", "/tags/x", None), ("DELETE", "/tags/t", None)]
    for method, path, body in changes:
        reply = await api(method, f"/servers/{uuid}{path}", body, v=104, who=who)
        assert reply.status == (404 if who == "other" else 403), (method, path)
    for path in ("/metadata", "/metadata/k", "/tags", "/tags/t"):
        reply = await api("GET", f"/servers/{uuid}{path}", v=104, who=who)
        assert reply.status in {"other": (404,), "nobody": (403,), "reader": (200, 204)}[who]
    found = await cloud.db.read(lambda tx: instances.show(tx, uuid))
    assert found is not None
    assert (found.metadata, found.tags) == ({"k": "v"}, ("t",))


# ---- tags ----


async def test_tags_from_first_to_last(api: Api, cloud: Cloud) -> None:
    uuid = (await server(cloud, PROJECT)).uuid
    path = f"/servers/{uuid}/tags"

    async def ask(method: str, below: str = "", body: Any = None) -> tuple[int, Any]:
        reply = await api(method, path + below, body, v=26)
        return reply.status, reply.json if reply.content else None

    assert await ask("GET") == (200, {"tags": []})
    reply = await api("PUT", f"{path}/blue ü", v=26)
    assert (reply.status, reply.content) == (201, b"")
    assert reply.headers["location"] == f"http://cloud.example:8774/v2.1{path}/blue%20%C3%BC"
    assert await ask("PUT", "/blue ü") == (204, None)
    assert await ask("PUT", "/red") == (201, None)
    assert await ask("GET", "/red") == (204, None)
    assert await ask("GET") == (200, {"tags": ["blue ü", "red"]})
    assert await ask("PUT", "", {"tags": ["a", "b", "a"]}) == (200, {"tags": ["a", "b"]})
    assert await ask("DELETE", "/a") == (204, None)
    assert (await ask("DELETE", "/a"))[0] == (await ask("GET", "/a"))[0] == 404
    assert await ask("GET") == (200, {"tags": ["b"]})
    assert await ask("DELETE") == (204, None)
    assert await ask("GET") == (200, {"tags": []})


async def test_tags_came_with_2_26(api: Api, cloud: Cloud) -> None:
    uuid = (await server(cloud, PROJECT, tags=("t",))).uuid
    for method, path, body in (
        ("GET", "", None),
        ("PUT", "", {"tags": []}),
        ("DELETE", "", None),
        ("GET", "/t", None),
        ("PUT", "/u", None),
        ("DELETE", "/t", None),
    ):
        reply = await api(method, f"/servers/{uuid}/tags{path}", body, v=25)
        assert (reply.status, reply.fault) == (404, "The resource could not be found.")
        assert (await api(method, f"/servers/{uuid}/tags{path}", body, v=26)).status < 300 or path == "/t"


async def test_tags_have_limits(api: Api, cloud: Cloud) -> None:
    fifty = [f"t{n}" for n in range(50)]
    uuid = (await server(cloud, PROJECT, tags=tuple(fifty[:49]))).uuid
    path = f"/servers/{uuid}/tags"
    assert (await api("PUT", f"{path}/t49", v=26)).status == 201
    assert (await api("PUT", f"{path}/t49", v=26)).status == 204
    reply = await api("PUT", f"{path}/t50", v=26)
    assert (reply.status, "50" in reply.fault) == (400, True)
    reply = await api("PUT", path, {"tags": [*fifty, "t50"]}, v=26)
    assert (reply.status, "tags" in reply.fault) == (400, True)
    assert (await api("PUT", path, {"tags": fifty[::-1]}, v=26)).json == {"tags": fifty[::-1]}
    assert (await api("PUT", f"{path}/{'x' * 60}", v=26)).status == 400  # the fifty-first


@pytest.mark.parametrize("tag", ["x" * 61, "a,b", "a\rb", "a\n", "\x00", "a\x7f"])
async def test_tags_that_are_none(api: Api, cloud: Cloud, tag: str) -> None:
    uuid = (await server(cloud, PROJECT, tags=("t",))).uuid
    in_path = await api("PUT", f"/servers/{uuid}/tags/{tag}", v=26)
    assert in_path.status == (404 if "\0" in tag else 400)  # no path has a NUL in it
    reply = await api("PUT", f"/servers/{uuid}/tags", {"tags": ["ok", tag]}, v=26)
    assert reply.status == 400
    assert (await api("GET", f"/servers/{uuid}/tags", v=26)).json == {"tags": ["t"]}


@pytest.mark.parametrize(
    "body", [{}, {"tags": None}, {"tags": "a"}, {"tags": [1]}, {"tags": [], "x": 1}, {"tags": [""]}]
)
async def test_bodies_of_tags(api: Api, cloud: Cloud, body: Any) -> None:
    uuid = (await server(cloud, PROJECT, tags=("t",))).uuid
    assert (await api("PUT", f"/servers/{uuid}/tags", body, v=26)).status == 400
    assert (await api("GET", f"/servers/{uuid}/tags", v=26)).json == {"tags": ["t"]}


async def test_tags_in_every_state(api: Api, cloud: Cloud) -> None:
    for vm in VM_STATES:
        if vm == "deleted":
            continue
        uuid = (await server(cloud, PROJECT, vm_state=vm, task_state="migrating", tags=("t",))).uuid
        path = f"/servers/{uuid}/tags"
        replies = [
            await api("PUT", f"{path}/u", v=26),
            await api("DELETE", f"{path}/u", v=26),
            await api("PUT", path, {"tags": ["w"]}, v=26),
            await api("DELETE", path, v=26),
        ]
        expected = [201, 204, 200, 204] if vm in WRITABLE else [409] * 4
        assert [reply.status for reply in replies] == expected, vm
        left = [] if vm in WRITABLE else ["t"]
        assert (await api("GET", path, v=26)).json == {"tags": left}
