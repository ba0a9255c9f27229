"""What hosts are told, and tell, of ports that are bound to two of them."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import func, select

from kilonova.db import network_bindings as bindings
from kilonova.db import network_ports as ports
from kilonova.db.tables import network as t
from kilonova.services.network.ports import update_port
from tests.unit.network.conftest import ADMIN, Cloud

DETAILS = {"datapath_type": "netdev"}


def event(name: str, port_id: str) -> tuple[str, str, str, str]:
    return ("i1", f"network-{name}", port_id, "completed")


async def status(cloud: Cloud, port_id: str) -> str:
    port = await cloud.db.read(lambda tx: ports.port(tx, port_id))
    assert port is not None
    return port.status


async def test_both_hosts_are_told_how_to_wire_it_and_which_of_them_has_it(cloud: Cloud) -> None:
    network = await cloud.network()
    (vif,) = await cloud.boot("i1", network)
    await cloud.service.add_bindings("i1", "two", DETAILS)
    here = await cloud.service.port(vif.port_id, "one")
    there = await cloud.service.port(vif.port_id, "two")
    assert here is not None and there is not None
    assert (here.active, there.active) == (True, False) and here.moving and there.moving
    assert (here.vlan, here.mac, here.addresses, here.rules) == (
        there.vlan,
        there.mac,
        there.addresses,
        there.rules,
    )
    await cloud.service.activate_bindings("i1", "two")
    here = await cloud.service.port(vif.port_id, "one")
    there = await cloud.service.port(vif.port_id, "two")
    assert here is not None and there is not None
    assert (here.active, there.active) == (False, True)
    await cloud.service.remove_bindings("i1", "one")
    there = await cloud.service.port(vif.port_id, "two")
    assert there is not None and there.active and not there.moving
    assert await cloud.service.port(vif.port_id, "one") is None
    assert await cloud.service.port(vif.port_id, "three") is None


@pytest.mark.capability("MG-LM-5")
async def test_the_destination_says_that_it_is_wired_and_the_source_stays_as_it_is(cloud: Cloud) -> None:
    network = await cloud.network()
    (vif,) = await cloud.boot("i1", network)
    await cloud.service.port_up(vif.port_id, "one")
    cloud.events.clear()
    await cloud.service.add_bindings("i1", "two", DETAILS)
    for _ in range(2):
        await cloud.service.port_up(vif.port_id, "one")  # an agent that starts anew says it again
    assert cloud.events == []
    for _ in range(2):
        await cloud.service.port_up(vif.port_id, "two")
    assert cloud.events == [event("vif-plugged", vif.port_id)]
    await cloud.service.port_down(vif.port_id, "two")
    assert cloud.events == [event("vif-plugged", vif.port_id)], "the guest has not lost its port"
    assert await status(cloud, vif.port_id) == "ACTIVE"
    await cloud.service.port_up(vif.port_id, "two")
    assert cloud.events == 2 * [event("vif-plugged", vif.port_id)]


async def test_the_status_goes_along_with_the_binding(cloud: Cloud) -> None:
    network = await cloud.network()
    (vif,) = await cloud.boot("i1", network)
    await cloud.service.port_up(vif.port_id, "one")
    await cloud.service.add_bindings("i1", "two", DETAILS)
    await cloud.service.activate_bindings("i1", "two")
    assert await status(cloud, vif.port_id) == "DOWN"
    there = await cloud.service.port(vif.port_id, "two")
    assert there is not None and not there.up, "so that its agent says it again"
    await cloud.service.port_up(vif.port_id, "two")
    assert await status(cloud, vif.port_id) == "ACTIVE"
    await cloud.service.port_down(vif.port_id, "one")  # the source lets go
    assert await status(cloud, vif.port_id) == "ACTIVE"
    await cloud.service.activate_bindings("i1", "one")
    assert await status(cloud, vif.port_id) == "DOWN"


async def test_a_revert_finds_the_port_as_it_was(cloud: Cloud) -> None:
    network = await cloud.network()
    (vif,) = await cloud.boot("i1", network)
    await cloud.service.port_up(vif.port_id, "one")
    await cloud.service.add_bindings("i1", "two", DETAILS)
    await cloud.service.activate_bindings("i1", "two")
    await cloud.service.activate_bindings("i1", "one")
    assert await status(cloud, vif.port_id) == "ACTIVE"


async def test_what_the_destination_said_before_counts_when_it_has_the_port(cloud: Cloud) -> None:
    network = await cloud.network()
    (vif,) = await cloud.boot("i1", network)
    await cloud.service.add_bindings("i1", "two", DETAILS)
    await cloud.service.port_up(vif.port_id, "two")
    assert await status(cloud, vif.port_id) == "DOWN"
    await cloud.service.add_bindings("i1", "two", {"datapath_type": "system"})
    await cloud.service.activate_bindings("i1", "two")
    assert await status(cloud, vif.port_id) == "ACTIVE"
    there = await cloud.service.port(vif.port_id, "two")
    assert there is not None and there.up


async def test_news_of_a_port_concern_all_hosts_that_it_is_bound_to(cloud: Cloud) -> None:
    network = await cloud.network()
    (vif,) = await cloud.boot("i1", network)
    heard: list[tuple[str, str]] = []
    cloud.service.subscribe(lambda kind, thing: heard.append((kind, thing)))

    async def told() -> list[tuple[str, str]]:
        await asyncio.sleep(0)
        news, heard[:] = list(heard), []
        return news

    await cloud.service.add_bindings("i1", "two", DETAILS)
    assert ("port", vif.port_id) in await told()
    await cloud.service.add_bindings("i1", "two", DETAILS)
    assert await told() == [], "nothing has changed"
    assert await cloud.db.read(lambda tx: ports.hosts_of_ports(tx, [vif.port_id])) == {
        vif.port_id: {"one", "two"}
    }
    assert await cloud.db.read(lambda tx: ports.hosts_of_network(tx, network)) == {"one", "two"}
    await cloud.service.activate_bindings("i1", "two")
    assert ("port", vif.port_id) in await told()
    await cloud.service.remove_bindings("i1", "one")
    assert await cloud.db.read(lambda tx: ports.hosts_of_network(tx, network)) == {"two"}
    assert ("port", vif.port_id) in await told()


async def test_a_host_has_a_port_of_a_server_that_comes_or_goes(cloud: Cloud) -> None:
    network = await cloud.network()
    await cloud.boot("i1", network)

    async def having() -> list[str]:
        hosts = ("one", "two", "three")
        return [
            host
            for host in hosts
            if await cloud.db.read(lambda tx, host=host: bindings.has_port_of(tx, "i1", host))  # type: ignore[misc]
        ]

    assert await having() == ["one"]
    await cloud.service.add_bindings("i1", "two", DETAILS)
    assert await having() == ["one", "two"]
    await cloud.service.activate_bindings("i1", "two")
    await cloud.service.remove_bindings("i1", "one")
    assert await having() == ["two"]


@pytest.mark.parametrize("how", ["deallocate", "release", "unbind", "bind"])
async def test_no_binding_outlives_that_of_the_port(cloud: Cloud, how: str) -> None:
    network = await cloud.network()
    (vif,) = await cloud.boot("i1", network)
    await cloud.service.add_bindings("i1", "two", DETAILS)
    if how == "deallocate":
        await cloud.service.deallocate("i1")
    elif how == "release":
        await cloud.service.release("i1", vif.port_id)
    elif how == "unbind":
        await cloud.service.write(lambda work: update_port(work, ADMIN, vif.port_id, {"host": ""}))
    else:
        await cloud.service.bind("i1", "two", DETAILS)
    left = await cloud.db.read(lambda tx: tx.scalar(select(func.count()).select_from(t.port_bindings)))
    assert left == 0
