"""Bodies and queries that nobody thought of: never a fault of ours, and the counters stay right.

Every answer is one that the API may give, in its form; what is accepted comes to an end.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import hypothesis
import pytest
import pytest_asyncio
from hypothesis import strategies as st

from kilonova.db import quotas
from kilonova.services.volume.records import NewVolume
from kilonova.testing.embedded import audits, member
from tests.api.compute.asgi import Reply, exchange
from tests.api.compute.conftest import Whole
from tests.api.compute.odd_requests import (
    ACTION,
    JSON,
    ODD_ACTION,
    PAIRS,
    PATH_TEXT,
    TEXT,
    VERSIONS,
    creates,
    events,
    updates,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

MOST = 12  # servers of a project
ALLOWED = {200, 201, 202, 204, 400, 403, 404, 409}
FAULTS = {"badRequest", "forbidden", "itemNotFound", "conflictingRequest"}

# Always the same examples: what is found is found again.  EXAMPLES=3000 takes more, and others each time.
settings = hypothesis.settings(
    max_examples=int(os.environ.get("EXAMPLES", "100")),
    derandomize="EXAMPLES" not in os.environ,
    database=None,
    deadline=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)


@dataclass(repr=False)
class Stage:
    """The cloud, and a server on it that is there for all examples."""

    whole: Whole
    uuid: str
    network: str

    async def ask(self, method: str, path: str, body: Any = None, **how: Any) -> Reply:
        """With real ids where the path or the body says IMAGE, HOST, NETWORK or SERVER."""
        text = "" if body is None else json.dumps(body)
        names = {
            "IMAGE": self.whole.image,
            "HOST": self.whole.host,
            "NETWORK": self.network,
            "SERVER": self.uuid,
        }
        for name, value in names.items():
            text = text.replace(f'"{name}"', f'"{value}"')
        return await self.whole.api(method, path.replace("SERVER", self.uuid), raw=text.encode(), **how)

    async def settled(self) -> None:
        """Nothing is going on, and the counters are right."""
        await self.whole.quiet()
        assert await audits(self.whole.cloud) == []


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(whole: Whole) -> Stage:
    network = await whole.private()
    for project in (whole.project, whole.tokens.projects["admin"]):
        limits = {"instances": MOST}
        await whole.cloud.db.write(
            lambda tx, project=project, limits=limits: quotas.set_limits(tx, quotas.PROJECT, project, limits)
        )
    return Stage(whole, (await whole.made(networks="auto")).uuid, network)


def check(reply: Reply) -> None:
    """One of the answers that may be, in its form."""
    assert reply.status in ALLOWED, reply.content
    if reply.status >= 400:
        ((name, fault),) = reply.json.items()
        assert name in FAULTS
        assert fault["code"] == reply.status
        assert fault["message"]


@settings
@hypothesis.given(asked=creates(), who=st.sampled_from(["member", "member", "admin", "reader"]))
async def test_creates(stage: Stage, asked: tuple[int, Any], who: str) -> None:
    version, body = asked
    before = await stage.whole.everything()
    reply = await stage.ask("POST", "/servers", body, v=version, who=who)
    check(reply)
    if reply.status >= 400:
        assert await stage.whole.everything() == before
        return
    assert reply.status == 202
    await stage.settled()
    listed = await stage.whole.api("GET", "/servers/detail?all_tenants=1", v=104, who="admin")
    new = [each for each in listed.json["servers"] if each["id"] != stage.uuid]
    assert 1 <= len(new) <= MOST
    for each in new:
        assert each["status"] in ("ACTIVE", "ERROR")
        await stage.whole.gone(each["id"])
    await stage.settled()


@settings
@hypothesis.given(body=JSON, version=VERSIONS)
async def test_bodies_of_any_kind(stage: Stage, body: Any, version: int) -> None:
    for method, path, who in (
        ("POST", "/servers", "member"),
        ("PUT", "/servers/SERVER", "member"),
        ("POST", "/servers/SERVER/action", "admin"),
        ("POST", "/servers/SERVER/metadata", "member"),
        ("PUT", "/servers/SERVER/tags", "member"),
        ("POST", "/os-server-external-events", "service"),
    ):
        for wrapped in (body, {"server": body}, {"metadata": body}, {"tags": body}, {"events": body}):
            check(await stage.ask(method, path, wrapped, v=version, who=who))
    await stage.settled()


@settings
@hypothesis.given(body=updates(), version=VERSIONS)
async def test_updates(stage: Stage, body: Any, version: int) -> None:
    reply = await stage.ask("PUT", "/servers/SERVER", body, v=version)
    check(reply)
    shown = await stage.whole.shown(stage.uuid)
    if reply.status == 200 and "name" in body["server"]:
        assert shown["name"] == body["server"]["name"]


@settings
@hypothesis.given(body=events(), version=VERSIONS)
async def test_events(stage: Stage, body: Any, version: int) -> None:
    reply = await stage.ask("POST", "/os-server-external-events", {"events": body}, v=version, who="service")
    if reply.status in (200, 207):
        codes = {each["code"] for each in reply.json["events"]}
        assert codes <= {200, 400, 404}
        assert (codes == {200}) == (reply.status == 200)
    else:
        check(reply)
    await stage.settled()


@settings
@hypothesis.given(key=PATH_TEXT, value=TEXT, version=VERSIONS)
async def test_metadata_and_tags_by_address(stage: Stage, key: str, value: str, version: int) -> None:
    for method, path, body in (
        ("PUT", f"/metadata/{key}", {"meta": {key: value}}),
        ("GET", f"/metadata/{key}", None),
        ("DELETE", f"/metadata/{key}", None),
        ("PUT", f"/tags/{key}", None),
        ("GET", f"/tags/{key}", None),
        ("GET", "/tags", None),
        ("DELETE", f"/tags/{key}", None),
        ("GET", f"/ips/{key}", None),
        ("GET", f"/os-interface/{key}", None),
        ("GET", f"/os-volume_attachments/{key}", None),
        ("PUT", f"/os-volume_attachments/{key}", {"volumeAttachment": {"volumeId": value}}),
        ("DELETE", f"/os-volume_attachments/{key}", None),
        ("GET", f"/os-instance-actions/{key}", None),
    ):
        reply = await stage.ask(method, f"/servers/SERVER{path}", body, v=version, who="admin")
        check(reply)
        assert not [value for value in reply.headers.values() if "\r" in value or "\n" in value]


ATTACHMENTS = st.fixed_dictionaries(
    {"volumeId": st.sampled_from(["VOLUME", "VOLUME", "VOLUME", "IMAGE"]) | JSON},
    optional={
        "device": st.sampled_from(["/dev/vdb", "/dev/vdb1", "/dev/sdz", "/dev/vda", None]) | TEXT,
        "tag": st.just("data") | TEXT,
        "delete_on_termination": st.sampled_from([True, "no", "1"]) | JSON,
        "serverId": st.just("SERVER") | TEXT,
    },
)


@settings
@hypothesis.given(wanted=ATTACHMENTS | JSON, version=VERSIONS)
async def test_volumes(stage: Stage, volume: str, wanted: Any, version: int) -> None:
    """What is attached can be detached, and nothing else is kept for the server."""
    body = json.loads(json.dumps({"volumeAttachment": wanted}).replace('"VOLUME"', f'"{volume}"'))
    path = "/servers/SERVER/os-volume_attachments"
    check(await stage.ask("PUT", f"{path}/{volume}", body, v=version, who="admin"))
    reply = await stage.ask("POST", path, body, v=version)
    check(reply)
    await stage.settled()
    has = (await stage.whole.instance(stage.uuid)).volumes
    assert [each.volume_id for each in has] == ([volume] if reply.status in (200, 202) else [])
    check(await stage.ask("PUT", f"{path}/{volume}", body, v=version))
    gone = await stage.ask("DELETE", f"{path}/{volume}", v=version)
    assert gone.status == (202 if has else 404)
    await stage.settled()
    assert (await stage.whole.instance(stage.uuid)).volumes == ()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def volume(stage: Stage) -> str:
    made = await stage.whole.cloud.volume.create(member(stage.whole.cloud), NewVolume(size_gb=1))
    await stage.whole.cloud.volume.idle()
    return made.id


@settings
@hypothesis.given(pairs=PAIRS, version=VERSIONS, who=st.sampled_from(["member", "admin", "reader", "other"]))
async def test_queries_of_lists(stage: Stage, pairs: list[tuple[str, str]], version: int, who: str) -> None:
    query = "&".join(f"{quote(key)}={quote(value)}" for key, value in pairs)
    for path in (
        "/servers",
        "/servers/detail",
        "/servers/SERVER/os-instance-actions",
        "/servers/SERVER/os-volume_attachments",
    ):
        reply = await stage.ask("GET", f"{path}?{query}", v=version, who=who)
        check(reply)
        if reply.status == 200 and who == "other":
            assert reply.json == {"servers": []}


@settings
@hypothesis.given(raw=st.binary(max_size=200))
async def test_queries_of_any_bytes(stage: Stage, raw: bytes) -> None:
    scope = {
        "type": "http",
        "method": "GET",
        "scheme": "http",
        "path": "/v2.1/servers/detail",
        "query_string": raw,
        "headers": [(b"x-auth-token", b"member"), (b"host", b"x")],
        "server": ("127.0.0.1", 8774),
    }
    check(await exchange(stage.whole.api.app, scope, b""))


@settings
@hypothesis.given(body=ACTION | ODD_ACTION, version=VERSIONS)
async def test_actions(stage: Stage, body: Any, version: int) -> None:
    check(await stage.ask("POST", "/servers/SERVER/action", body, v=version, who="admin"))
    await stage.settled()
    shown = await stage.whole.shown(stage.uuid)
    assert shown["status"] in ("ACTIVE", "SHUTOFF", "ERROR")
    assert shown["OS-EXT-STS:task_state"] is None
