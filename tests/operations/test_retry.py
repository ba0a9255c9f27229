"""A build that fails on one host is tried on the next, and nothing of it stays behind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from kilonova.errors import Failed, HostFault
from kilonova.journal import actions
from kilonova.model.instance import Instance
from kilonova.model.port import Vif
from kilonova.model.states import Power, Vm
from kilonova.operations import create
from kilonova.operations.requests import CreateServer
from kilonova.testing.embedded import audits, member, settled
from kilonova.testing.simulated_hosts import SimulatedHost
from tests.operations.conftest import Three


async def boot(three: Three, **more: Any) -> Instance:
    """The server once its creation has ended."""
    cloud = three.cloud
    request = CreateServer(name="s", flavor_id="42", image_id=cloud.example_image, **more)
    (made,) = await create.submit(cloud.cloud, member(cloud), request)
    return await settled(cloud, made.uuid, 60)


def break_driver(verb: str) -> Callable[[SimulatedHost, Exception], None]:
    return lambda host, error: host.driver.faults.add(verb, error)


def break_plug(host: SimulatedHost, error: Exception) -> None:
    async def fail(vif: Vif, instance_uuid: str, instance_name: str) -> None:
        host.plugger._plugged[vif.port_id] = vif  # halfway
        raise error

    host.plugger.plug = fail  # type: ignore[method-assign]


def break_wiring(host: SimulatedHost, error: Exception) -> None:
    async def unheard(vif: Vif) -> None:
        pass

    host.plugger._on_plugged = unheard


BROKEN = {
    "prepare": break_driver("prepare"),
    "plug": break_plug,
    "start": break_driver("start"),
    "wired": break_wiring,
    "resume": break_driver("resume"),
}


async def bound_to(three: Three, uuid: str) -> set[str]:
    """The hosts that the network service has its ports on."""
    found = await three.cloud.network.vifs(uuid)
    assert len(found) == 1
    from sqlalchemy import select

    from kilonova.db.tables.network import ports

    query = select(ports.c.host).where(ports.c.device_id == uuid)
    return {row[0] for row in await three.cloud.db.read(lambda tx: tx.all(query))}


async def assert_nothing_left(three: Three, uuid: str) -> None:
    cloud = three.cloud
    assert await cloud.placement.held(uuid) == {}
    assert await cloud.network.vifs(uuid) == ()
    assert all(host.empty for host in three.hosts)
    assert await audits(cloud) == []


@pytest.mark.capability("MG-BLD-15")
@pytest.mark.parametrize("step", list(BROKEN))
async def test_the_next_host_takes_it_and_the_first_is_left_clean(three: Three, step: str) -> None:
    first, second, third = three.hosts
    BROKEN[step](first, HostFault("ordered"))
    server = await boot(three)
    assert (server.vm_state, server.task_state, server.fault) == (Vm.ACTIVE, None, None)
    assert (server.host, server.node) == ("h2", "h2")
    assert first.empty and third.empty
    assert second.driver.guest_file.everything() == {server.uuid: Power.RUNNING}
    assert list(await three.cloud.placement.held(server.uuid)) == [second.compute_id]
    assert await bound_to(three, server.uuid) == {"h2"}
    assert await audits(three.cloud) == []
    (action,) = await three.cloud.db.read(lambda tx: actions.list_actions(tx, server.uuid))
    assert action.message is None
    events = await three.cloud.db.read(lambda tx: actions.events(tx, action.id))
    failed = [each for each in events if each.result == "Error"]
    assert [each.host for each in failed] == ["h1"]
    assert [each.event for each in events].count("conductor_schedule_and_build_instances") == 2
    assert "conductor_schedule_and_build_instances_undo" in {each.event for each in events}


async def test_when_all_have_failed_each_says_why(three: Three) -> None:
    for host in three.hosts:
        host.driver.faults.add("start", HostFault(f"no luck with {host.name}"))
    server = await boot(three)
    assert (server.vm_state, server.task_state, server.host) == (Vm.ERROR, None, None)
    assert (server.node, server.availability_zone) == (None, None)
    assert server.fault is not None
    for name in ("h1", "h2", "h3"):
        assert f"no luck with {name}" in server.fault.message
        assert f"{name}: " in server.fault.details
    await assert_nothing_left(three, server.uuid)


async def test_so_many_hosts_are_tried_and_no_more(three: Three) -> None:
    three.cloud.settings.options["scheduler"]["max_attempts"] = 2
    for host in three.hosts:
        host.driver.faults.add("start", HostFault(f"no luck with {host.name}"))
    server = await boot(three)
    assert server.vm_state == Vm.ERROR and server.fault is not None
    assert server.fault.message == (
        "Exceeded maximum number of retries: 2 hosts were tried. h1: no luck with h1; h2: no luck with h2"
    )
    assert three.host("h3").driver.faults.left("start") == 1  # nobody came
    await assert_nothing_left(three, server.uuid)


async def test_when_the_others_are_full_the_reasons_say_so(three: Three) -> None:
    three.host("h1").driver.faults.add("start", HostFault("no luck"))
    server = await boot(three, host="h1")  # the one that the user named
    assert server.fault is not None
    assert server.fault.message.startswith(
        "No valid host was found. h1: it failed there: no luck; h2: the host"
    )
    await assert_nothing_left(three, server.uuid)


@pytest.mark.capability("MG-BLD-16")
async def test_a_forced_host_is_the_only_one(three: Three) -> None:
    three.host("h2").driver.faults.add("start", HostFault("no luck"))
    server = await boot(three, availability_zone="nova:h2")
    assert server.vm_state == Vm.ERROR and server.fault is not None
    assert server.fault.message == "no luck"
    assert (server.task_state, server.host, server.node) == (None, None, None)
    await assert_nothing_left(three, server.uuid)
    server = await boot(three, availability_zone="nova:h3")
    assert (server.vm_state, server.host) == (Vm.ACTIVE, "h3")


async def test_what_no_host_could_do_is_not_tried_on_another(three: Three) -> None:
    three.host("h1").driver.faults.add("start", Failed("the image is broken"))
    server = await boot(three)
    assert server.vm_state == Vm.ERROR and server.fault is not None
    assert server.fault.message == "the image is broken"
    assert [host.driver.guest_file.everything() for host in three.hosts] == [{}, {}, {}]
    await assert_nothing_left(three, server.uuid)


async def test_a_fault_that_nobody_foresaw_is_one_of_its_host(three: Three) -> None:
    three.host("h1").driver.faults.add("start", KeyError("of the driver"))
    server = await boot(three)
    assert (server.vm_state, server.host) == (Vm.ACTIVE, "h2")
    assert three.host("h1").empty


async def test_hosts_out_of_service_are_passed_over(three: Three) -> None:
    from kilonova.db import hosts

    now = three.cloud.clock.now()
    await three.cloud.db.write(lambda tx: hosts.set_disabled(tx, "h1", True, "fans", now))
    await three.cloud.db.write(lambda tx: hosts.set_forced_down(tx, "h2", True, now))
    three.cloud.scheduler.forget()
    server = await boot(three)
    assert (server.vm_state, server.host) == (Vm.ACTIVE, "h3")
