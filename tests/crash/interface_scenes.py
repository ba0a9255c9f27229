"""Cases of attaching and detaching a network interface.

In the end row, network service, switch and guest agree: the interface is in all of them or in none.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

import msgspec

from kilonova.app import EmbeddedCloud
from kilonova.db import network_ports
from kilonova.journal.model import Operation
from kilonova.model.states import Vm
from kilonova.operations import attach_interface, detach_interface
from kilonova.operations.attach_interface import ATTACH_INTERFACE, AttachParams
from kilonova.operations.detach_interface import DETACH_INTERFACE
from kilonova.services.network.ports import create_port
from kilonova.testing.embedded import fake_driver, member, server, settled
from tests.crash.generated import Case, Failure, whole_log
from tests.crash.scenes import active
from tests.crash.world import World, assert_sound, but, log_of, world
from tests.unit.network.conftest import port_values


class Scene(msgspec.Struct, frozen=True):
    """A server in rest with one port or more, and what an operation adds or takes."""

    uuid: str
    port: str = ""
    network: str = ""


async def own_port(cloud: EmbeddedCloud, network: str) -> str:
    """A port that the user has made."""
    values = port_values(network)
    return (await cloud.network.write(lambda work: create_port(work, member(cloud), dict(values)))).id


async def with_a_network(cloud: EmbeddedCloud) -> Scene:
    uuid = await active(cloud)
    return Scene(uuid, cloud.cloud.new_uuid(), (await server(cloud, uuid)).vifs[0].network_id)


async def with_a_port(cloud: EmbeddedCloud) -> Scene:
    found = await with_a_network(cloud)
    return Scene(found.uuid, await own_port(cloud, found.network))


async def with_its_port(cloud: EmbeddedCloud) -> Scene:
    found = await with_a_port(cloud)
    await attach(cloud, found)
    assert len((await settled(cloud, found.uuid)).vifs) == 2
    return found


async def with_a_made_port(cloud: EmbeddedCloud) -> Scene:
    uuid = await active(cloud)
    return Scene(uuid, (await server(cloud, uuid)).vifs[0].port_id)


async def attach(cloud: EmbeddedCloud, scene: Scene) -> None:
    network = scene.network or None
    params = AttachParams(port_id=scene.port, taken=network is None, network_id=network, tag="nic")
    await attach_interface.submit(cloud.cloud, member(cloud), scene.uuid, params)


async def detach(cloud: EmbeddedCloud, scene: Scene) -> None:
    await detach_interface.submit(cloud.cloud, member(cloud), scene.uuid, scene.port)


async def everything(cloud: EmbeddedCloud, uuid: str) -> tuple[World, tuple[str, ...]]:
    return await world(cloud, uuid), fake_driver(cloud).guest_file.macs(uuid)


async def assert_agreed(cloud: EmbeddedCloud, uuid: str) -> None:
    """Row, network service, switch and guest know the same ports, the row and the guest in one order."""
    found = await server(cloud, uuid)
    now, macs = await everything(cloud, uuid)
    assert macs == tuple(vif.mac for vif in found.vifs)
    assert found.vifs == await cloud.network.vifs(uuid)
    assert now.vifs == frozenset(now.bindings) == now.plugged
    assert set(now.bindings.values()) <= {(found.host, "ACTIVE")}
    await assert_sound(cloud)


async def assert_success(name: str, ports: int, cloud: EmbeddedCloud, scene: Scene, died: bool) -> None:
    """``ports``: that the server has after it."""
    operation = CASES[name].operation
    found = await settled(cloud, scene.uuid)
    assert (found.vm_state, found.task_state, found.fault) == (Vm.ACTIVE, None, None)
    assert len(found.vifs) == ports
    assert await log_of(cloud, scene.uuid, operation.name) == whole_log(operation)
    port = await cloud.db.read(lambda tx: network_ports.port(tx, scene.port))
    if operation is ATTACH_INTERFACE:
        assert found.vifs[-1].port_id == scene.port and found.vifs[-1].tag == "nic"
        assert port is not None and port.made_by_compute == bool(scene.network)
    elif name == "detach a made port":
        assert port is None
    else:
        assert port is not None and (port.device_id, port.host, port.nic_index) == ("", "", None)
    if not died:  # what the switch of records has does not outlive its process
        await assert_agreed(cloud, scene.uuid)
    await assert_sound(cloud)


async def assert_undone(
    cloud: EmbeddedCloud, scene: Scene, before: tuple[World, tuple[str, ...]], failure: Failure | None = None
) -> None:
    found = await settled(cloud, scene.uuid)
    assert found.fault is not None
    now, macs = await everything(cloud, scene.uuid)
    if failure is not None and failure.died:
        now = but(now, plugged=before[0].plugged)
    assert (now, sorted(macs)) == (before[0], sorted(before[1]))
    assert found.vifs == await cloud.network.vifs(scene.uuid)
    await assert_sound(cloud)


async def look(cloud: EmbeddedCloud, scene: Scene) -> tuple[World, tuple[str, ...]]:
    return await everything(cloud, scene.uuid)


def case(
    name: str,
    operation: Operation,
    before: Callable[[EmbeddedCloud], Awaitable[Scene]],
    begin: Callable[[EmbeddedCloud, Scene], Awaitable[None]],
    ports: int,
) -> Case[Scene]:
    return Case(operation, before, begin, look, partial(assert_success, name, ports), assert_undone)


CASES = {
    "attach a network": case("attach a network", ATTACH_INTERFACE, with_a_network, attach, 2),
    "attach a port": case("attach a port", ATTACH_INTERFACE, with_a_port, attach, 2),
    "detach its port": case("detach its port", DETACH_INTERFACE, with_its_port, detach, 1),
    "detach a made port": case("detach a made port", DETACH_INTERFACE, with_a_made_port, detach, 0),
}
