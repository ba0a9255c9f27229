"""Attached interfaces of servers that move, and hosts that die while one is attached or detached."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kilonova.db import network_ports
from kilonova.errors import HostFault
from kilonova.model.instance import Instance
from kilonova.model.states import Vm
from kilonova.operations import attach_interface, delete, detach_interface, resize
from kilonova.operations.attach_interface import ATTACH_INTERFACE, AttachParams
from kilonova.operations.detach_interface import DETACH_INTERFACE
from kilonova.rpc import versions
from kilonova.testing.embedded import member, server, settled
from tests.crash.broken import Gate
from tests.operations.dead_hosts import Hosts, opened
from tests.operations.live_hosts import Live, live
from tests.operations.resized import confirmed, migrated

POINTS = [("attach_interface", step.name) for step in ATTACH_INTERFACE.steps]
POINTS += [("detach_interface", step.name) for step in DETACH_INTERFACE.steps]
SECONDS = 45.0


@pytest.fixture
async def three(tmp_path: Path) -> AsyncIterator[Hosts]:
    async with opened(tmp_path / "state") as made:
        yield made


@pytest.fixture
async def moving(tmp_path: Path) -> AsyncIterator[Live]:
    async with live(tmp_path / "state", "h2") as made:
        yield made


async def attach(three: Hosts, uuid: str) -> str:
    """Ask for another port on the network that the server is on; its id."""
    network = (await server(three.cloud, uuid)).vifs[0].network_id
    params = AttachParams(port_id=three.cloud.cloud.new_uuid(), network_id=network)
    await attach_interface.submit(three.cloud.cloud, member(three.cloud), uuid, params)
    return params.port_id


async def begin(three: Hosts, name: str, uuid: str) -> str:
    if name == "attach_interface":
        return await attach(three, uuid)
    port = (await server(three.cloud, uuid)).vifs[0].port_id
    await detach_interface.submit(three.cloud.cloud, member(three.cloud), uuid, port)
    return port


async def agreed(three: Hosts, uuid: str, ports: int) -> Instance:
    """The server in rest, whose host alone has so many ports of it, and a guest with these cards."""
    found = await settled(three.cloud, uuid, SECONDS)
    assert found.vifs == await three.cloud.network.vifs(uuid)
    assert len(found.vifs) == ports, found.fault
    for name, host in three.hosts.items():
        plugged = {port for port, whose in host.plugger.plugged().items() if whose == uuid}
        if name == found.host:
            assert plugged == {vif.port_id for vif in found.vifs}
            assert host.driver.guest_file.macs(uuid) == tuple(vif.mac for vif in found.vifs)
        else:
            assert plugged == set()
    return found


@pytest.mark.capability("MG-DEV-7")
async def test_an_attached_interface_moves_along(moving: Live) -> None:
    """Live there and back, and cold: the cards stay in their order, and can be detached where they are."""
    uuid = await moving.boot()
    ports = [await attach(moving, uuid) for _ in range(2)]
    before = await agreed(moving, uuid, 3)
    for target in ("h2", "h1"):
        found, migration = await moving.move(uuid)
        assert (migration.status, found.host) == ("completed", target)
        assert [vif.mac for vif in (await agreed(moving, uuid, 3)).vifs] == [vif.mac for vif in before.vifs]
    await migrated(moving, uuid)
    await confirmed(moving, uuid)
    found = await agreed(moving, uuid, 3)
    assert found.host == "h2" and [vif.port_id for vif in found.vifs[1:]] == ports
    await detach_interface.submit(moving.cloud.cloud, member(moving.cloud), uuid, ports[0])
    await agreed(moving, uuid, 2)
    assert await moving.nothing_left() == []


@pytest.mark.parametrize("name", ["attach_interface", "detach_interface"])
@pytest.mark.parametrize("kind", ["live", "cold"])
async def test_a_move_that_waits_for_it_takes_the_ports_that_there_are_then(
    moving: Live, name: str, kind: str
) -> None:
    uuid = await moving.boot()
    gate = Gate(moving.cloud, name, "attach" if name == "attach_interface" else "unplug")
    await begin(moving, name, uuid)
    await gate.wait()
    if kind == "live":
        await moving.begin(uuid)
    else:
        await resize.migrate(moving.cloud.cloud, moving.admin(), await server(moving.cloud, uuid))
    gate.open()
    found = await settled(moving.cloud, uuid, SECONDS)
    assert found.host == "h2", found.fault
    if kind == "cold":
        assert found.vm_state == Vm.RESIZED
        await confirmed(moving, uuid)
    await agreed(moving, uuid, 2 if name == "attach_interface" else 0)
    assert await moving.nothing_left() == []


async def dead_at(three: Hosts, name: str, step: str) -> tuple[str, str]:
    """A server whose host has lost its power when the operation was at the step, and the port."""
    uuid = await three.boot()
    gate = Gate(three.cloud, name, step)
    port = await begin(three, name, uuid)
    await gate.wait()
    await three.lose_power("h1")
    gate.open()
    return uuid, port


async def assert_nothing_left(three: Hosts) -> None:
    await three.come_back("h1")
    await three.cleared()
    await three.cloud.network.deliver_pending()
    assert await three.complaints() == []
    assert three.hosts["h1"].plugger.plugged() == {}


@pytest.mark.parametrize(("name", "step"), POINTS)
async def test_a_server_is_deleted_whose_host_dies(three: Hosts, name: str, step: str) -> None:
    uuid, _ = await dead_at(three, name, step)
    await delete.submit(three.cloud.cloud, member(three.cloud), uuid)
    assert (await settled(three.cloud, uuid, SECONDS)).vm_state == Vm.DELETED
    await assert_nothing_left(three)


@pytest.mark.parametrize(("name", "step"), POINTS)
async def test_a_server_is_evacuated_whose_host_dies(three: Hosts, name: str, step: str) -> None:
    uuid, port = await dead_at(three, name, step)
    found = await three.evacuate(uuid)
    assert (found.vm_state, found.host, found.fault) == (Vm.ACTIVE, "h2", None)
    there = await three.cloud.db.read(lambda tx: network_ports.port(tx, port))
    has_it = port in {vif.port_id for vif in found.vifs}
    assert has_it == (there is not None and there.host == "h2")
    await assert_nothing_left(three)
    await agreed(three, uuid, len(found.vifs))


async def test_a_delete_at_another_controller_is_heard(three: Hosts, monkeypatch: pytest.MonkeyPatch) -> None:
    """Past the point of no return only the database tells that somebody waits for the end."""
    monkeypatch.setattr(three.cloud.runner, "interrupt", lambda action_ids: three.cloud.runner.wake())
    uuid, _ = await dead_at(three, "detach_interface", "unplug")
    await delete.submit(three.cloud.cloud, member(three.cloud), uuid)
    assert (await settled(three.cloud, uuid, SECONDS)).vm_state == Vm.DELETED
    await assert_nothing_left(three)


async def test_a_host_that_comes_back_goes_on(three: Hosts) -> None:
    """Nobody waits for its end, so the host is waited for."""
    uuid = await three.boot()
    gate = Gate(three.cloud, "attach_interface", "attach")
    await attach(three, uuid)
    await gate.wait()
    three.silence("h1")
    gate.open()
    await three.come_back("h1")
    await agreed(three, uuid, 2)


@pytest.mark.capability("MG-DEV-8")
async def test_one_that_was_detached_meanwhile_does_not_come_back(three: Hosts) -> None:
    """It was asked for twice, and the guest would not let go the second time, of what it has no more."""
    uuid = await three.boot()
    gate = Gate(three.cloud, "detach_interface", "unplug")
    port = await begin(three, "detach_interface", uuid)
    await gate.wait()
    await begin(three, "detach_interface", uuid)
    three.hosts["h1"].driver.faults.add("detach_interface", HostFault("ordered"))
    gate.open()
    found = await agreed(three, uuid, 0)
    assert found.fault is not None and port in found.fault.message


def test_an_agent_that_knows_no_hot_plug_is_not_asked_for_it() -> None:
    for verb in ("attach_interface", "detach_interface", "attach_volume", "detach_volume"):
        with pytest.raises(HostFault, match=rf"'{verb}' needs 1\.2: upgrade"):
            versions.require("h1", "1.1", verb)
