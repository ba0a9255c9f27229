"""What hosts are told of the other hosts of a network, and when; and the MTU that tunnels leave."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from kilonova.db import hosts, instances
from kilonova.desk import Desks
from kilonova.model.host import HostReport
from kilonova.services.network.faults import InvalidInput
from kilonova.services.network.networks import update_network
from kilonova.services.network.ports import delete_port, update_port
from tests.unit.metadata.servers import server
from tests.unit.network.conftest import ADMIN, ALICE, Cloud, OneCell

IPS = {"one": "10.9.0.1", "two": "10.9.0.2", "three": "10.9.0.3", "plain": ""}


@pytest.fixture
async def here(cloud: Cloud) -> AsyncIterator[Cloud]:
    """Hosts with tunnels, and one without."""
    for host, address in IPS.items():
        report = HostReport(
            host=host,
            compute_id=str(uuid.uuid4()),
            hypervisor_hostname=host,
            hypervisor_type="QEMU",
            hypervisor_version=1,
            host_ip="10.8.0.1",
            inventories={},
            details={"tunneling_ip": address} if address else {},
        )
        await cloud.db.write(lambda tx, report=report: hosts.upsert(tx, report, 0))  # type: ignore[misc]
    yield cloud


async def peers(cloud: Cloud, network: str, host: str) -> tuple[str, ...] | None:
    found = await cloud.service.network(network, host)
    return None if found is None else found.peers


async def test_a_host_is_told_of_the_others_and_not_of_itself(here: Cloud) -> None:
    red, blue = await here.network(), await here.network()
    await here.boot("i1", red, host="one")
    assert await peers(here, red, "one") == ()
    await here.boot("i2", red, host="two")
    await here.boot("i3", red, host="two")
    await here.boot("i4", red, host="plain")
    await here.boot("i5", red, host="unknown")
    await here.boot("i6", blue, host="three")
    assert await peers(here, red, "one") == (IPS["two"],)
    assert await peers(here, red, "two") == (IPS["one"],)
    assert await peers(here, red, "plain") == (IPS["one"], IPS["two"])
    assert await peers(here, blue, "three") == ()
    assert await peers(here, red, "three") is None and await peers(here, blue, "one") is None


async def test_a_host_with_a_second_binding_is_one_of_them(here: Cloud) -> None:
    network = await here.network()
    await here.boot("i1", network, host="one")
    await here.service.add_bindings("i1", "two", {})
    assert await peers(here, network, "one") == (IPS["two"],)
    assert await peers(here, network, "two") == (IPS["one"],)
    await here.service.remove_bindings("i1", "two")
    assert await peers(here, network, "one") == () and await peers(here, network, "two") is None


@pytest.mark.parametrize("how", ["deallocate", "delete", "unbind", "release", "move", "binding"])
async def test_the_others_are_told_when_a_host_loses_its_last_port(here: Cloud, how: str) -> None:
    network = await here.network()
    await here.boot("i1", network, host="one")
    (last,) = await here.boot("i2", network, host="two")
    (first,) = await here.boot("i3", network, host="two")
    if how == "binding":
        await here.service.deallocate("i2")
        await here.service.add_bindings("i1", "two", {})
    heard: list[tuple[str, str]] = []
    here.service.subscribe(lambda kind, thing: heard.append((kind, thing)))
    await here.service.release("i3", first.port_id)
    await asyncio.sleep(0)
    assert ("network", network) not in heard, "the host has still got one"
    if how == "deallocate":
        await here.service.deallocate("i2")
    elif how == "release":
        await here.service.release("i2", last.port_id)
    elif how == "delete":
        await here.service.write(lambda work: delete_port(work, ALICE, last.port_id))
    elif how == "unbind":
        await here.service.write(lambda work: update_port(work, ADMIN, last.port_id, {"host": ""}))
    elif how == "move":
        await here.service.bind("i2", "three", {})
    else:
        await here.service.remove_bindings("i1", "two")
    await asyncio.sleep(0)
    assert ("network", network) in heard
    assert await peers(here, network, "one") == ((IPS["three"],) if how == "move" else ())


async def test_nobody_is_told_of_a_host_to_which_there_are_no_tunnels(here: Cloud) -> None:
    network = await here.network()
    await here.boot("i1", network, host="one")
    await here.boot("i2", network, host="plain")
    heard: list[tuple[str, str]] = []
    here.service.subscribe(lambda kind, thing: heard.append((kind, thing)))
    await here.service.deallocate("i2")
    await asyncio.sleep(0)
    assert ("network", network) not in heard


async def test_who_has_got_a_network_has_its_peers_told(here: Cloud) -> None:
    network = await here.network()
    await here.boot("i1", network, host="one")
    heard: list[tuple[str, str]] = []
    here.service.subscribe(lambda kind, thing: heard.append((kind, thing)))
    await here.service.tell_peers(network, "one")
    assert heard == [("network", network)]


async def test_the_metadata_of_a_guest_that_arrives_is_told_to_its_next_host_as_well(here: Cloud) -> None:
    network = await here.network()
    (vif,) = await here.boot("i1", network, host="one")
    row = server(id=0, uuid="i1", hostname="guest", project_id="alpha", vifs=(vif,), host="one")
    await here.db.write(lambda tx: instances.insert(tx, row))

    known: Any = OneCell(here.db)
    desks = Desks().serve(known, known, here.service)
    address = vif.fixed_ips[0].address
    assert await desks.desk("one").guest_at(network, address) is not None
    assert await desks.desk("two").guest_at(network, address) is None
    await here.service.add_bindings("i1", "two", {})
    found = await desks.desk("two").guest_at(network, address)
    assert found is not None and found.uuid == "i1"
    assert await desks.desk("three").guest_at(network, address) is None


async def test_tunnels_take_their_part_of_each_packet(here: Cloud) -> None:
    here.service.options = msgspec.structs.replace(here.service.options, mtu=9000)
    assert (await details(here, await here.network())) == 9000
    here.service.options = msgspec.structs.replace(here.service.options, tunnels=True)
    network = await here.network()
    assert (await details(here, network)) == 8950
    with pytest.raises(InvalidInput, match="8950"):
        await here.network(mtu=8951)
    with pytest.raises(InvalidInput, match="8950"):
        await here.service.write(lambda work: update_network(work, ALICE, network, {"mtu": 8951}))
    assert (await details(here, await here.network(mtu=1400))) == 1400


async def details(cloud: Cloud, network: str) -> int:
    found = await cloud.service.network(network)
    assert found is not None
    return found.mtu
