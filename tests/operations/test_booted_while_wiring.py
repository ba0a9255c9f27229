"""A host is booted while somebody waits for wiring there, before it could be found to be down.

What was plugged and started there is gone, and nobody waits for it any longer.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kilonova.journal import attention
from kilonova.model.states import Power, Vm
from kilonova.operations import create, evacuate, revert_resize
from kilonova.operations.requests import CreateServer
from kilonova.testing.embedded import member, server, settled
from tests.operations.booted import booted
from tests.operations.dead_hosts import Hosts, opened
from tests.operations.resized import ask_resize, assert_both_sides, assert_waits, parked, resized
from tests.operations.test_interfaces import agreed, attach

LONG = 300  # seconds, which no test takes


@pytest.fixture
async def three(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Hosts]:
    monkeypatch.setattr("kilonova.operations.steps.LOOK", 0.1)
    async with opened(tmp_path / "state", DEFAULT={"vif_plugging_timeout": LONG}) as made:
        yield made


async def waits(three: Hosts) -> None:
    async with asyncio.timeout(30):
        while [each.state for each in await three.cloud.db.read(attention.open_actions)] != ["waiting"]:
            await asyncio.sleep(0.02)


async def test_a_new_server_goes_to_another(three: Hosts) -> None:
    await booted(three, "h1")  # which is known now
    await three.wires_nothing("h1")
    request = CreateServer(name="s", flavor_id="42", image_id=three.cloud.example_image)
    (made,) = await create.submit(three.cloud.cloud, member(three.cloud), request)
    await waits(three)
    await booted(three, "h1")
    found = await settled(three.cloud, made.uuid, 30)
    assert (found.vm_state, found.host, found.fault) == (Vm.ACTIVE, "h2", None)
    await three.assert_only_on(made.uuid, "h2")
    assert await three.complaints() == []


async def test_a_resize_goes_to_another(three: Hosts) -> None:
    uuid = await three.boot()
    await three.wires_nothing("h2")
    await ask_resize(three, uuid)
    await waits(three)
    await booted(three, "h2")
    assert_waits(await settled(three.cloud, uuid, 30), "h3")
    await assert_both_sides(three, uuid, "h1", "h3")
    assert three.hosts["h2"].empty


async def test_a_host_that_was_booted_before_is_waited_for(three: Hosts) -> None:
    """As is one whose agent alone has started again."""
    uuid = await three.boot()
    await booted(three, "h2")
    await three.wires_nothing("h2")
    await ask_resize(three, uuid)
    await waits(three)
    await booted(three, "h2", power_cut=False)
    await asyncio.sleep(1)
    await waits(three)
    cloud, (vif,) = three.cloud.cloud, (await server(three.cloud, uuid)).vifs
    await cloud.db.write(lambda tx: cloud.journal.signal(tx, uuid, "network-vif-plugged", vif.port_id))
    three.cloud.runner.wake()
    assert_waits(await settled(three.cloud, uuid, 30), "h2")


async def test_an_evacuation_to_it_says_so(three: Hosts) -> None:
    uuid = await three.boot()
    await three.lose_power("h1")
    await three.wires_nothing("h2")
    await evacuate.submit(three.cloud.cloud, three.admin(), await server(three.cloud, uuid), host="h2")
    await waits(three)
    await booted(three, "h2")
    found = await settled(three.cloud, uuid, 30)
    assert found.fault is not None
    assert found.fault.message == "The host h2 was booted while its ports were to be wired."
    assert three.hosts["h2"].empty


async def test_an_interface_is_not_attached(three: Hosts) -> None:
    """The guest, which is off, has what it had, and runs again with it."""
    uuid = await three.boot()
    await booted(three, "h1", power_cut=False)
    await three.wires_nothing("h1")
    await attach(three, uuid)
    await waits(three)
    await booted(three, "h1")
    found = await agreed(three, uuid, 1)
    assert found.fault is not None and "was booted" in found.fault.message
    async with asyncio.timeout(30):
        while (found := await server(three.cloud, uuid)).power_state != Power.RUNNING:
            await asyncio.sleep(0.05)
    assert found.vm_state == Vm.ACTIVE
    assert await three.complaints() == []


async def test_a_resize_that_is_reverted_to_it_ends_there_and_says_so(three: Hosts) -> None:
    uuid = await three.boot()
    assert_waits(await resized(three, uuid), "h2")
    await booted(three, "h1", power_cut=False)
    await three.wires_nothing("h1")
    await revert_resize.submit(three.cloud.cloud, member(three.cloud), uuid)
    await waits(three)
    await booted(three, "h1")
    found = await settled(three.cloud, uuid, 30)
    assert (found.vm_state, found.host) == (Vm.ERROR, "h1")
    assert found.fault is not None and "was booted" in found.fault.message
    await three.assert_only_on(uuid, "h1", Power.SHUTDOWN)
    assert parked(three, uuid) == set()
