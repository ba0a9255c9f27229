"""The layer-2 agent with the built-in network service and the real metadata service on one host."""

from __future__ import annotations

import json
import socket
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kilonova.clock import SystemClock
from kilonova.db import instances
from kilonova.db import network_groups as groups
from kilonova.db import network_ports as ports
from kilonova.db.schema import bring_up
from kilonova.db.sqlite import SqliteDatabase
from kilonova.desk import Desks
from kilonova.guest_metadata import GuestMetadata
from kilonova.l2agent.namespace import device_name
from kilonova.l2agent.reach import open_connection_in
from kilonova.model.port import Vif
from kilonova.programs import run
from kilonova.services.network.groups import delete_rule
from kilonova.services.network.ports import delete_port, update_port
from kilonova.settings import Settings
from tests.real.dhcp_client import ask_dhcp
from tests.real.frames import tcp_frame
from tests.real.guests import Guest, eventually, tap_wire
from tests.real.l2lab import BRIDGE, PREFIX, Lab
from tests.unit.metadata.servers import server
from tests.unit.network.conftest import ALICE, BOB, Cloud, OneCell
from tests.unit.network.test_wiring import add, group, rule

pytestmark = pytest.mark.real

METADATA = "169.254.169.254"


class Host:
    """One host of a cloud: ``boot`` gives a server with one port, its guest and its row."""

    def __init__(self, directory: Path, database: SqliteDatabase) -> None:
        self.database = database
        self.cloud = Cloud(database)
        self.cloud.service.options = msgspec.structs.replace(self.cloud.service.options, bridge=BRIDGE)
        self.lab = Lab(directory)
        options: dict[str, dict[str, object]] = {
            "DEFAULT": {"dhcp_domain": "novalocal", "default_availability_zone": "nova"}
        }
        known: Any = OneCell(database)
        desks = Desks().serve(known, known, self.cloud.service)
        metadata = GuestMetadata(desks.desk("here"), Settings(state_dir=directory, options=options))
        self.lab.agent = self.lab.new_agent(self.cloud.service, serve=metadata.serve)

    async def boot(self, network: str, name: str = "", project: str = "alpha", **more: Any) -> Guest:
        """When it returns, compute has heard that the port is plugged."""
        instance = str(uuid.uuid4())
        (vif,) = await self.cloud.boot(instance, network, host="here", project=project, **more)
        row = server(
            id=0, uuid=instance, hostname=name or "guest", project_id=project, vifs=(vif,), host="here"
        )
        await self.database.write(lambda tx: instances.insert(tx, row))
        guest = await self.lab.plug(vif, vif.fixed_ips[0].address)
        await eventually(lambda: self.heard("network-vif-plugged", vif))
        await guest.ip(f"route add {METADATA}/32 via 10.0.0.2")
        return guest

    def heard(self, name: str, vif: Vif) -> bool:
        return (name, vif.port_id) in [(event[1], event[2]) for event in self.cloud.events]

    async def status(self, guest: Guest) -> str:
        port = await self.database.read(lambda tx: ports.port(tx, guest.vif.port_id))
        return port.status if port else "gone"

    async def remove(self, guest: Guest) -> None:
        """As the deletion of a server does it."""
        instance = next(event[0] for event in self.cloud.events if event[2] == guest.vif.port_id)
        await self.lab.unplug(guest)
        await self.cloud.service.deallocate(instance)


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    database = SqliteDatabase(tmp_path / "kilonova.db", SystemClock())
    await bring_up(database)
    host = Host(tmp_path / "l2", database)
    await host.lab.open()
    yield host
    await host.lab.close()
    await host.cloud.service.close()
    await database.close()


async def get(guest: Guest, path: str, *headers: str) -> tuple[int, str]:
    """The answer of the metadata service: status and body."""
    reader, writer = await open_connection_in(guest.namespace, METADATA, 80, timeout=30)
    lines = [f"GET {path} HTTP/1.0", "Host: metadata", *headers, "", ""]
    writer.write("\r\n".join(lines).encode())
    head, _, body = (await reader.read()).decode().partition("\r\n\r\n")
    writer.close()
    return int(head.split()[1]), body


@pytest.mark.capability("OVS-7")
async def test_a_servers_port_from_its_allocation_to_its_end(host: Host) -> None:
    network = await host.cloud.network()
    one, two = await host.boot(network, "one"), await host.boot(network, "two")
    assert await host.status(one) == "ACTIVE"
    lease = await ask_dhcp(one)
    assert lease is not None and lease.address == one.address
    assert lease.options[12].startswith(b"host-")
    assert await one.pings(two.address or "")  # both are in the default group, which lets its members in
    other = await host.cloud.network(context=BOB)
    stranger = await host.boot(other, "stranger", project="beta")
    assert (stranger.address, stranger.vif.network_id) == (one.address, other)
    assert not await stranger.pings(two.address or "", 0.4)

    await host.cloud.service.write(
        lambda w: update_port(w, ALICE, two.vif.port_id, {"admin_state_up": False})
    )
    await eventually(lambda: host.heard("network-vif-unplugged", two.vif))
    assert await host.status(two) == "DOWN"
    assert host.lab.port(two).is_dead
    await host.remove(two)
    await host.cloud.service.write(lambda w: delete_port(w, ALICE, one.vif.port_id))
    await eventually(lambda: host.lab.port(one).is_dead)


async def test_security_groups_take_effect_while_guests_talk(host: Host) -> None:
    network = await host.cloud.network()
    db_group = await group(host.cloud, "db")
    web_group = await group(host.cloud, "web")
    db = await host.boot(network, security_groups=("db",))
    web = await host.boot(network, security_groups=("web",))
    async with db.echo_server(5432, 22):
        assert not await web.connects(db.address or "", 5432, 0.4)
        tcp = rule(db_group, protocol="tcp", port_range_min=5432, port_range_max=5432)
        (by_group,) = await add(host.cloud, {**tcp, "remote_group_id": web_group})
        assert await web.connects(db.address or "", 5432)
        assert not await web.connects(db.address or "", 22, 0.4)
        late = await host.boot(network, security_groups=("web",))  # a new member of the remote group
        assert await late.connects(db.address or "", 5432)
        reader, writer = await open_connection_in(web.namespace, db.address or "", 5432, timeout=30)
        writer.write(b"1")
        assert await reader.readexactly(1) == b"1"
        await host.cloud.service.write(lambda work: delete_rule(work, ALICE, by_group))

        async def refused() -> bool:
            return not await late.connects(db.address or "", 5432, 0.4)

        await eventually(refused)
        writer.write(b"2")
        assert not await late.connects(db.address or "", 5432, 0.4)
        assert reader._buffer == b""  # type: ignore[attr-defined]  # the open connection stands still
        writer.transport.abort()


async def test_each_guest_is_told_its_own_metadata(host: Host) -> None:
    network, other = await host.cloud.network(), await host.cloud.network(name="other")
    one, two = await host.boot(network, "one"), await host.boot(network, "two")
    same_address = await host.boot(other, "three")
    assert same_address.address == one.address
    for guest, name in ((one, "one"), (two, "two"), (same_address, "three")):
        status, body = await get(guest, "/openstack/latest/meta_data.json")
        assert status == 200
        assert json.loads(body)["hostname"] == f"{name}.novalocal"
        assert (await get(guest, "/latest/meta-data/local-ipv4")) == (200, guest.address)
    status, _ = await get(two, "/latest/meta-data/hostname", f"X-Forwarded-For: {one.address}")
    assert status == 403
    await two.ip(f"addr add {one.address}/24 dev eth0")  # and whoever says to be another is not heard
    asks = {"dst_mac": await mac_of(two, "10.0.0.2"), "dst": METADATA, "sport": 4444, "dport": 80}
    space = host.lab.agent.namespace(network) or ""
    async with tap_wire(space, device_name(network, PREFIX)) as at_server:
        await two.send(
            *(tcp_frame(**asks, src=one.address or "", src_mac=each.vif.mac) for each in (one, two)),
            tcp_frame(**asks, src=two.address or "", src_mac=two.vif.mac),
        )
        await eventually(lambda: at_server.saw(between(two)))
        assert not at_server.saw(between(one))
    assert (await get(two, "/latest/meta-data/hostname"))[1] == "two.novalocal"


def between(guest: Guest) -> bytes:
    """How the head of a packet from a guest to the metadata service ends."""
    return socket.inet_aton(guest.address or "") + socket.inet_aton(METADATA)


async def mac_of(guest: Guest, address: str) -> str:
    """Where the guest's kernel has found an address."""
    assert await guest.pings(address)
    shown = await run("ip", "-n", guest.namespace, "neigh", "show", address)
    return shown.split("lladdr ")[1].split()[0]


async def test_metadata_needs_no_rule_and_a_stranger_gets_none(host: Host) -> None:
    network = await host.cloud.network()
    closed = await group(host.cloud, "closed")
    for each in await host.cloud.db.read(lambda tx: groups.rules(tx, closed)):
        await host.cloud.service.write(lambda work, each=each: delete_rule(work, ALICE, each.id))  # type: ignore[misc]
    guest = await host.boot(network, "closed", security_groups=("closed",))
    assert (await get(guest, "/latest/meta-data/hostname")) == (200, "closed.novalocal")
    assert not await guest.connects("10.0.0.2", 80, 0.4)
    assert not await guest.pings("10.0.0.2", 0.4)
    # an address that is nobody's on this network
    await host.cloud.service.write(
        lambda work: update_port(work, ALICE, guest.vif.port_id, {"allowed_pairs": ((None, "10.0.0.99"),)})
    )
    await eventually(lambda: any("10.0.0.99" in line for line in host.lab.flows_of(guest)))
    await guest.ip(
        "addr flush dev eth0", "addr add 10.0.0.99/24 dev eth0", f"route replace {METADATA}/32 via 10.0.0.2"
    )
    assert (await get(guest, "/latest/meta-data/hostname"))[0] == 404
