"""What comes while a network interface is attached or detached: a delete, a stop, another attach, a look at
what the network service has.
"""

from __future__ import annotations

import pytest

from kilonova.app import EmbeddedCloud
from kilonova.db import network_ports
from kilonova.errors import Conflict, Failed, HostFault, NotFound
from kilonova.model.states import Power, Vm
from kilonova.operations import delete, external_event, stop
from kilonova.operations.detach_interface import DETACH_INTERFACE
from kilonova.services.network.ports import delete_port
from kilonova.testing.embedded import fake_driver, member, server, settled
from tests.crash.broken import Gate, failing
from tests.crash.generated import Points, whole_log
from tests.crash.interface_scenes import (
    CASES,
    Scene,
    assert_agreed,
    assert_undone,
    attach,
    detach,
    everything,
    with_a_network,
    with_a_port,
    with_its_port,
)
from tests.crash.world import assert_sound, log_of


@pytest.mark.parametrize(("name", "step_name"), Points(CASES).all)
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
    assert (port is not None) == (name in ("attach a port", "detach its port")), (
        "the user's own port is never deleted"
    )
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
    assert await log_of(cloud, scene.uuid, "detach_interface") == whole_log(DETACH_INTERFACE)
