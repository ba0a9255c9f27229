"""A host loses its power at any step of any operation of its server: that can be evacuated or deleted all
the same, nothing waits for that host, and in the end nothing is left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from kilonova.journal import attention
from kilonova.journal.model import ActionRow
from kilonova.model.instance import Instance
from kilonova.model.states import Vm
from kilonova.operations import create, delete
from kilonova.operations.registry import OPERATIONS
from kilonova.operations.requests import CreateServer
from kilonova.testing.embedded import member, server, settled
from tests.crash.broken import Gate
from tests.operations.dead_hosts import Hosts, opened
from tests.operations.test_hosts import api_of
from tests.operations.with_volumes import attached

ACTIONS: dict[str, tuple[str, Any]] = {
    "stop": ("os-stop", None),
    "reboot": ("reboot", {"type": "HARD"}),
    "create_image": ("createImage", {"name": "i"}),
    "shelve": ("shelve", None),
    "resize": ("migrate", None),
    "live_migrate": ("os-migrateLive", {"host": None, "block_migration": "auto"}),
}
POINTS = [(name, step.name) for name in ACTIONS for step in OPERATIONS[name].steps]
UNTOLD = {("live_migrate", "wired"), ("live_migrate", "migrate")}
"""From where on only the source can tell on which side the guest is: it is waited for, whoever waits."""
SECONDS = 45.0  # in which all ends, on a busy machine; an operation that waits for a host takes minutes


@pytest.fixture
async def three(tmp_path: Path) -> AsyncIterator[Hosts]:
    async with opened(tmp_path / "state", DEFAULT={"shelved_offload_time": -1}) as made:
        yield made


async def dead_at(three: Hosts, name: str, step: str) -> str:
    """A server with a volume, whose host has lost its power when the operation was at the step."""
    uuid = await three.boot()
    await attached(three.cloud, uuid)
    gate = Gate(three.cloud, name, step)
    action, argument = ACTIONS[name]
    asked = await api_of(three.cloud)("POST", f"/servers/{uuid}/action", {action: argument}, v=90)
    assert asked.status in (200, 202), asked.content
    await gate.wait()
    await three.lose_power("h1")
    gate.open()
    return uuid


async def ended(three: Hosts, uuid: str, name: str, step: str) -> Instance:
    """The server, when all is done that is to be done while its host is away."""
    if (name, step) in UNTOLD:
        await three.come_back("h1")
    return await settled(three.cloud, uuid, SECONDS)


async def assert_nothing_left(three: Hosts) -> None:
    await three.come_back("h1")
    await three.cleared()
    await three.cloud.network.deliver_pending()  # what was broken off while it was said
    assert await three.complaints() == []


@pytest.mark.parametrize(("name", "step"), POINTS)
async def test_the_server_is_deleted(three: Hosts, name: str, step: str) -> None:
    uuid = await dead_at(three, name, step)
    await delete.submit(three.cloud.cloud, member(three.cloud), uuid)
    assert (await ended(three, uuid, name, step)).vm_state == Vm.DELETED
    await assert_nothing_left(three)


@pytest.mark.parametrize(("name", "step"), POINTS)
async def test_the_server_is_evacuated(three: Hosts, name: str, step: str) -> None:
    uuid = await dead_at(three, name, step)
    found = await server(three.cloud, uuid)
    if found.host != "h1" or found.vm_state not in (Vm.ACTIVE, Vm.STOPPED, Vm.ERROR):
        return  # it had left already, or ended meanwhile
    asked = await api_of(three.cloud)("POST", f"/servers/{uuid}/action", {"evacuate": {}}, v=90)
    if asked.status == 400:  # it has left just now
        assert (await server(three.cloud, uuid)).host != "h1"
        return
    assert asked.status in (200, 409), asked.content
    found = await ended(three, uuid, name, step)
    assert found.task_state is None
    if asked.status == 200 and (name, step) not in UNTOLD:
        assert found.host != "h1", found.fault
    if found.vm_state != Vm.RESIZED:  # which has something on both hosts
        await assert_nothing_left(three)


async def test_what_nobody_waits_for_waits_for_its_host(three: Hosts) -> None:
    """What was put aside there is taken back, which a clearing would not do."""
    uuid = await dead_at(three, "resize", "unplug")
    async with asyncio.timeout(SECONDS):
        while not any(action.state == "unwinding" for action in await opened_actions(three)):
            await asyncio.sleep(0.02)
    await asyncio.sleep(1)
    assert await three.owed("h1") == [] and await opened_actions(three)
    await three.come_back("h1")
    found = await settled(three.cloud, uuid, SECONDS)
    assert (found.task_state, found.host) == (None, "h1")
    await three.assert_only_on(uuid, "h1", found.power_state)
    await assert_nothing_left(three)


async def test_a_new_server_does_not_wait_for_wiring_by_a_host_that_is_down(three: Hosts) -> None:
    three.cloud.settings.options["DEFAULT"]["vif_plugging_timeout"] = 300
    await three.wires_nothing("h1")
    request = CreateServer(name="s", flavor_id="42", image_id=three.cloud.example_image)
    (made,) = await create.submit(three.cloud.cloud, member(three.cloud), request)
    async with asyncio.timeout(SECONDS):
        while [each.state for each in await opened_actions(three)] != ["waiting"]:
            await asyncio.sleep(0.02)
    await three.lose_power("h1")
    found = await settled(three.cloud, made.uuid, SECONDS)
    assert (found.vm_state, found.host, found.fault) == (Vm.ACTIVE, "h2", None)
    await assert_nothing_left(three)


async def opened_actions(three: Hosts) -> list[ActionRow]:
    return await three.cloud.db.read(attention.open_actions)
