"""What becomes of hosts: services that are deleted, agents that live on, and zones for servers."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from kilonova.api.app import app
from kilonova.app import EmbeddedCloud
from kilonova.db import hosts
from kilonova.errors import Invalid
from kilonova.model.host import Host
from kilonova.model.states import Vm
from kilonova.operations import create
from kilonova.operations.requests import CreateServer
from kilonova.testing.embedded import embedded, member, settled
from tests.api.compute.asgi import Api, Tokens
from tests.operations.conftest import Three


def api_of(cloud: EmbeddedCloud) -> Api:
    from kilonova.api.policy import Policy

    assert cloud.accounts is not None
    projects, users = cloud.accounts.projects, cloud.accounts.users
    tokens = Tokens(projects["demo"], projects["admin"], users["demo"], users["admin"])
    return Api(app(cloud.cloud, tokens, Policy()), who="admin")


async def known(cloud: EmbeddedCloud, name: str) -> Host | None:
    return await cloud.db.read(lambda tx: hosts.show(tx, name))


async def boot(cloud: EmbeddedCloud, **more: object) -> tuple[str, str | None]:
    """vm_state and host."""
    request = CreateServer(name="s", flavor_id="42", image_id=cloud.example_image, **more)  # type: ignore[arg-type]
    (made,) = await create.submit(cloud.cloud, member(cloud), request)
    server = await settled(cloud, made.uuid, 60)
    return server.vm_state, server.host


async def test_a_living_agent_whose_service_was_deleted_registers_anew(tmp_path: Path) -> None:
    options: dict[str, object] = {"host": "h1", "report_interval": 1}
    async with embedded(tmp_path / "state", DEFAULT=options) as cloud:
        before = await known(cloud, "h1")
        assert before is not None
        deleted = await api_of(cloud)("DELETE", f"/os-services/{before.service_uuid}", v=53)
        assert deleted.status == 204
        async with asyncio.timeout(60):
            while (after := await known(cloud, "h1")) is None:
                await asyncio.sleep(0.01)
        assert after.service_uuid != before.service_uuid
        assert after.compute_id == before.compute_id
        async with asyncio.timeout(60):
            while not await cloud.placement.providers():
                await asyncio.sleep(0.01)
        assert await boot(cloud) == (Vm.ACTIVE, "h1")


@pytest.mark.capability("API-137")
async def test_placement_knows_who_is_disabled_after_restarts_too(tmp_path: Path) -> None:
    for status, found in (("disabled", True), ("disabled", True), ("enabled", False)):
        async with embedded(tmp_path / "state", DEFAULT={"host": "h1"}) as cloud:
            host = await known(cloud, "h1")
            assert host is not None
            path = f"/os-services/{host.service_uuid}"
            assert (await api_of(cloud)("PUT", path, {"status": status}, v=53)).status == 200
            (provider,) = await cloud.placement.providers()
            assert ("COMPUTE_STATUS_DISABLED" in provider.traits) == found
        async with embedded(tmp_path / "state", DEFAULT={"host": "h1"}) as cloud:
            (provider,) = await cloud.placement.providers()
            assert ("COMPUTE_STATUS_DISABLED" in provider.traits) == found


async def test_a_disabled_service_takes_no_server_from_that_moment_on(three: Three) -> None:
    api = api_of(three.cloud)
    assert await boot(three.cloud) == (Vm.ACTIVE, "h1")
    first = await known(three.cloud, "h1")
    assert first is not None
    path = f"/os-services/{first.service_uuid}"
    assert (await api("PUT", path, {"status": "disabled"}, v=53)).status == 200
    assert await boot(three.cloud) == (Vm.ACTIVE, "h2")
    assert (await api("PUT", path, {"status": "enabled"}, v=53)).status == 200
    assert await boot(three.cloud) == (Vm.ACTIVE, "h1")


@pytest.mark.capability("API-62", "API-140")
async def test_servers_go_where_their_zone_is(three: Three) -> None:
    api = api_of(three.cloud)
    body = {"aggregate": {"name": "east", "availability_zone": "east"}}
    made = (await api("POST", "/os-aggregates", body, v=41)).json["aggregate"]
    path = f"/os-aggregates/{made['id']}/action"
    with pytest.raises(Invalid, match="not available"):
        await boot(three.cloud, availability_zone="east")
    assert (await api("POST", path, {"add_host": {"host": "h3"}})).status == 200
    assert await boot(three.cloud, availability_zone="east") == (Vm.ACTIVE, "h3")
    assert await boot(three.cloud, availability_zone="nova") == (Vm.ACTIVE, "h1")
    refused = await api("POST", path, {"remove_host": {"host": "h3"}})
    assert refused.status == 409
    summary = {one.name: one for one in await three.cloud.placement.providers()}
    assert summary["h3"].aggregates == frozenset({made["uuid"]})
