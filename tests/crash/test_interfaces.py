"""The four tests of every operation, for attaching and detaching a network interface: each step fails; each
step runs twice; each undo runs twice; the process dies before and after each commit.

In the end row, network service, switch and guest agree: the interface is in all of them or in none.  And what
comes in the middle: a delete, a stop, another attach, a look at what the network service has.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

import msgspec
import pytest

from kilonova.app import EmbeddedCloud
from kilonova.db import network_ports
from kilonova.errors import Conflict, Failed, HostFault, NotFound
from kilonova.journal.model import Operation
from kilonova.model.states import Power, Vm
from kilonova.operations import attach_interface, create, delete, detach_interface, external_event, stop
from kilonova.operations.attach_interface import ATTACH_INTERFACE, AttachParams
from kilonova.operations.detach_interface import DETACH_INTERFACE
from kilonova.operations.requests import CreateServer
from kilonova.services.network.ports import create_port, delete_port
from kilonova.testing.embedded import fake_driver, member, server, settled
from tests.crash import generated
from tests.crash.broken import Gate, failing
from tests.crash.conftest import Stage, crash_points
from tests.crash.generated import Case, Points
from tests.crash.world import World, assert_sound, but, log_of, world


class Scene(msgspec.Struct, frozen=True):
    """A server in rest with one port or more, and what an operation adds or takes."""

    uuid: str
    port: str = ""
    network: str = ""


async def active(cloud: EmbeddedCloud) -> str:
    request = CreateServer(name="s", flavor_id="42", image_id=cloud.example_image)
    uuid = (await create.submit(cloud.cloud, member(cloud), request))[0].uuid
    assert (await settled(cloud, uuid)).vm_state == Vm.ACTIVE
    return uuid


async def own_port(cloud: EmbeddedCloud, network: str) -> str:
    """A port that the user has made."""
    values = {
        "network_id": network,
        "name": "mine",
        "description": "",
        "admin_state_up": True,
        "mac_address": None,
        "fixed_ips": None,
        "security_groups": None,
        "device_id": "",
        "device_owner": "",
        "port_security_enabled": None,
        "allowed_pairs": (),
        "host": "",
        "profile": {},
        "vnic_type": "normal",
    }
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
    steps = [(step.name, "do", 1, "Success") for step in operation.steps]
    assert await log_of(cloud, scene.uuid, operation.name) == steps
    port = await cloud.db.read(lambda tx: network_ports.port(tx, scene.port))
    if operation is ATTACH_INTERFACE:
        assert found.vifs[-1].port_id == scene.port and found.vifs[-1].tag == "nic"
        assert port is not None and port.made_by_compute == bool(scene.network)
    elif name == "a made port":
        assert port is None
    else:
        assert port is not None and (port.device_id, port.host, port.nic_index) == ("", "", None)
    if not died:  # what the switch of records has does not outlive its process
        await assert_agreed(cloud, scene.uuid)
    await assert_sound(cloud)


async def assert_undone(
    cloud: EmbeddedCloud, scene: Scene, before: tuple[World, tuple[str, ...]], died: bool = False
) -> None:
    found = await settled(cloud, scene.uuid)
    assert found.fault is not None
    now, macs = await everything(cloud, scene.uuid)
    if died:
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
    "a network": case("a network", ATTACH_INTERFACE, with_a_network, attach, 2),
    "a port": case("a port", ATTACH_INTERFACE, with_a_port, attach, 2),
    "its port": case("its port", DETACH_INTERFACE, with_its_port, detach, 1),
    "a made port": case("a made port", DETACH_INTERFACE, with_a_made_port, detach, 0),
}
POINTS = Points(CASES)


@pytest.mark.capability("MG-DEV-7", "MG-DEV-8", "MG-GEN-1")
@pytest.mark.parametrize("after", [False, True], ids=["before it did anything", "when it had done all"])
@pytest.mark.parametrize(("name", "step_name"), POINTS.back)
async def test_a_step_that_fails_is_undone_with_all_before_it(
    cloud: EmbeddedCloud, name: str, step_name: str, after: bool
) -> None:
    await generated.fails(cloud, CASES[name], step_name, after=after)


@pytest.mark.parametrize(("name", "step_name"), POINTS.forward)
async def test_a_step_past_the_guest_is_repeated(cloud: EmbeddedCloud, name: str, step_name: str) -> None:
    await generated.is_repeated(cloud, CASES[name], step_name)


@pytest.mark.parametrize(("name", "step_name"), POINTS.all)
async def test_a_step_that_runs_twice_does_no_more_than_once(
    cloud: EmbeddedCloud, name: str, step_name: str
) -> None:
    await generated.runs_twice(cloud, CASES[name], step_name)


@pytest.mark.parametrize(("name", "step_name"), POINTS.undos)
async def test_an_undo_that_runs_twice_does_no_more_than_once(
    cloud: EmbeddedCloud, name: str, step_name: str
) -> None:
    await generated.undo_runs_twice(cloud, CASES[name], step_name, POINTS.last_back(name))


@pytest.mark.parametrize(("stage", "what"), crash_points("do", "done"), indirect=["stage"])
@pytest.mark.parametrize(("name", "step_name"), POINTS.all)
async def test_the_process_dies_before_or_after_a_commit(
    stage: Stage, name: str, step_name: str, what: str
) -> None:
    await generated.dies(stage, CASES[name], step_name, what)


@pytest.mark.parametrize(("stage", "what"), crash_points("failed", "undo", "undone"), indirect=["stage"])
@pytest.mark.parametrize(("name", "step_name"), POINTS.undos)
async def test_the_process_dies_while_unwinding(stage: Stage, name: str, step_name: str, what: str) -> None:
    await generated.dies_unwinding(stage, CASES[name], step_name, what, POINTS.last_back(name))


# ---- what comes in the middle ----


@pytest.mark.parametrize(("name", "step_name"), POINTS.all)
async def test_a_delete_in_the_middle(cloud: EmbeddedCloud, name: str, step_name: str) -> None:
    case = CASES[name]
    scene = await case.before(cloud)
    gate = Gate(cloud, case.operation.name, step_name, after=True)
    await case.begin(cloud, scene)
    await gate.wait()
    await delete.submit(cloud.cloud, member(cloud), scene.uuid)
    gate.open()
    found = await settled(cloud, scene.uuid)
    assert found.vm_state == Vm.DELETED
    now, macs = await everything(cloud, scene.uuid)
    assert (now.bindings, now.plugged, now.guest, macs) == ({}, frozenset(), None, ())
    port = await cloud.db.read(lambda tx: network_ports.port(tx, scene.port))
    assert (port is not None) == (name in ("a port", "its port")), "the user's own port is never deleted"
    await assert_sound(cloud)


async def test_what_is_asked_meanwhile_waits_for_its_turn(cloud: EmbeddedCloud) -> None:
    scene = await with_a_network(cloud)
    gate = Gate(cloud, "attach_interface", "attach")
    await attach(cloud, scene)
    await gate.wait()
    another = Scene(scene.uuid, cloud.cloud.new_uuid(), scene.network)
    await attach(cloud, another)
    await stop.submit(cloud.cloud, member(cloud), scene.uuid)
    with pytest.raises(Conflict, match="task_state powering-off"):
        await attach(cloud, Scene(scene.uuid, cloud.cloud.new_uuid(), scene.network))
    gate.open()
    found = await settled(cloud, scene.uuid)
    assert (found.vm_state, found.power_state) == (Vm.STOPPED, Power.SHUTDOWN)
    assert [vif.port_id for vif in found.vifs[1:]] == [scene.port, another.port]
    await assert_agreed(cloud, scene.uuid)


async def test_a_look_at_the_ports_meanwhile_changes_nothing(cloud: EmbeddedCloud) -> None:
    """The network service tells of a change of another port: the one that comes is not yet the server's."""
    scene = await with_a_network(cloud)
    before = await everything(cloud, scene.uuid)
    gate = Gate(cloud, "attach_interface", "plug", after=True)
    failing(cloud, "attach_interface", "note", Failed("ordered"))
    await attach(cloud, scene)
    await gate.wait()
    await external_event.deliver(cloud.cloud, scene.uuid, "network-changed", "")
    assert len((await server(cloud, scene.uuid)).vifs) == 1
    gate.open()
    await assert_undone(cloud, scene, before)


@pytest.mark.capability("MG-DEV-8")
async def test_a_guest_that_keeps_a_card_keeps_the_port(cloud: EmbeddedCloud) -> None:
    scene = await with_its_port(cloud)
    before = await everything(cloud, scene.uuid)
    fake_driver(cloud).keeps_devices.add(scene.uuid)
    await detach(cloud, scene)
    await assert_undone(cloud, scene, before)
    await assert_agreed(cloud, scene.uuid)
    fake_driver(cloud).keeps_devices.clear()
    await detach(cloud, scene)
    assert len((await settled(cloud, scene.uuid)).vifs) == 1
    await assert_agreed(cloud, scene.uuid)


@pytest.mark.capability("MG-DEV-7")
async def test_a_host_that_cannot_leaves_nothing(cloud: EmbeddedCloud) -> None:
    scene = await with_a_port(cloud)
    before = await everything(cloud, scene.uuid)
    fake_driver(cloud).faults.add("attach_interface", HostFault("no place on the bus"))
    await attach(cloud, scene)
    await assert_undone(cloud, scene, before)
    await attach(cloud, scene)
    assert len((await settled(cloud, scene.uuid)).vifs) == 2
    await assert_agreed(cloud, scene.uuid)


@pytest.mark.capability("MG-DEV-7")
async def test_a_port_that_the_server_has_is_refused_and_stays(cloud: EmbeddedCloud) -> None:
    scene = await with_its_port(cloud)
    before = await everything(cloud, scene.uuid)
    await attach(cloud, scene)
    await assert_undone(cloud, scene, before)
    await assert_agreed(cloud, scene.uuid)


async def test_a_port_that_it_does_not_have_is_not_detached(cloud: EmbeddedCloud) -> None:
    scene = await with_a_port(cloud)
    with pytest.raises(NotFound, match=scene.port):
        await detach(cloud, scene)


@pytest.mark.capability("MG-DEV-11")
async def test_a_port_that_is_deleted_leaves_its_guest(cloud: EmbeddedCloud) -> None:
    scene = await with_its_port(cloud)
    await cloud.network.write(lambda work: delete_port(work, member(cloud), scene.port))
    found = await settled(cloud, scene.uuid)
    assert len(found.vifs) == 1 and found.fault is None
    await assert_agreed(cloud, scene.uuid)
    assert await log_of(cloud, scene.uuid, "detach_interface") == [
        (step.name, "do", 1, "Success") for step in DETACH_INTERFACE.steps
    ]
