"""Guests of other hosts, behind a port that carries tagged frames of all networks."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator

import pytest

from kilonova.l2agent import flows, namespace
from kilonova.model.port import Vif
from kilonova.model.wiring import DhcpHost
from tests.real.dhcp_client import ask_dhcp
from tests.real.frames import ALL_NODES, BROADCAST, udp_frame
from tests.real.guests import Guest, eventually
from tests.real.l2lab import BRIDGE, Lab, dump
from tests.real.memory_cloud import PING_IN, tcp_in

pytestmark = pytest.mark.real

OTHER = "br-far"  # the switch of another host, without an agent


def vsctl(*words: str) -> None:
    subprocess.run(["ovs-vsctl", "--timeout=60", *words], check=True)


class FarGuest(Guest):
    """A guest on the other host's switch, in a network's VLAN there."""

    def __init__(self, name: str, vlan: int, address: str) -> None:
        vif = Vif(
            port_id=name, mac=f"fa:16:3e:ff:00:{vlan:02x}", network_id="net", network_name="net", bridge=OTHER
        )
        super().__init__(vif, address, name)
        self._vlan = vlan

    async def open(self) -> None:
        device = f"far{self._vlan}"
        vsctl(
            "add-port", OTHER, device, f"tag={self._vlan}", "--", "set", "interface", device, "type=internal"
        )
        await namespace.create(self.namespace)
        await namespace.adopt_device(self.namespace, device)
        await self.ip(
            f"link set dev {device} name eth0 address {self.vif.mac} mtu 1442 up",
            f"addr add {self.address}/24 dev eth0",
        )


@pytest.fixture
async def far(lab: Lab) -> AsyncIterator[dict[int, FarGuest]]:
    """Guests in VLAN 10 and 11 behind a trunk that is, as tunnels are to be, protected."""
    vsctl("add-br", OTHER, "--", "set", "bridge", OTHER, "datapath_type=netdev")
    for bridge, port, peer in ((BRIDGE, "to-far", "from-far"), (OTHER, "from-far", "to-far")):
        vsctl(
            *("add-port", bridge, port, "--", "set", "interface", port, "type=patch", f"options:peer={peer}"),
            *("--", "set", "port", port, "protected=true"),
        )
    guests = {vlan: FarGuest(f"far{vlan}", vlan, f"10.0.0.{vlan + 40}") for vlan in (10, 11)}
    for guest in guests.values():
        await guest.open()
    yield guests
    for guest in guests.values():
        await guest.close()
    vsctl("del-port", BRIDGE, "to-far")
    vsctl("del-br", OTHER)


async def test_guests_of_other_hosts_are_reached_and_filtered_like_those_here(
    lab: Lab, far: dict[int, FarGuest]
) -> None:
    network, other = lab.cloud.network(vlan=10), lab.cloud.network(vlan=11)
    here = await lab.boot(network, "10.0.0.11", PING_IN, tcp_in(80, remote=("10.0.0.99/32",)))
    there = await lab.boot(other, "10.0.0.12")
    async with here.echo_server(80), far[10].echo_server(80):
        assert await far[10].pings("10.0.0.11")
        assert await here.pings("10.0.0.50")
        assert await here.connects("10.0.0.50", 80)
        assert not await far[10].connects("10.0.0.11", 80, 0.4)
    assert await far[11].pings("10.0.0.12")
    assert not await far[11].pings("10.0.0.11", 0.4)
    assert not await there.pings("10.0.0.50", 0.4)
    mac = far[10].vif.mac
    direct = {"src_mac": mac, "src": "10.0.0.50", "sport": 9, "dport": 9}
    async with here.tap_wire() as wire:
        await far[10].send(
            udp_frame(**direct, dst_mac=here.vif.mac, dst="10.0.0.11", data=b"unwanted"),
            udp_frame(**direct, dst_mac=ALL_NODES, dst="10.0.0.11", data=b"unwanted group"),
            udp_frame(**direct, dst_mac=BROADCAST, dst="10.0.0.255", data=b"to all"),
        )
        await eventually(lambda: wire.saw(b"to all"))
        assert not wire.saw(b"unwanted")


async def test_each_host_serves_its_own_guests(lab: Lab, far: dict[int, FarGuest]) -> None:
    """The DHCP servers of all hosts have one address: none may answer through a tunnel."""
    network = lab.cloud.network(vlan=10)
    guest = await lab.boot(network, "10.0.0.11")
    lease = DhcpHost(mac=far[10].vif.mac, address="10.0.0.50", hostname="far")
    lab.cloud.change_network(network, hosts=(*lab.cloud.networks[network].hosts, lease))
    assert await ask_dhcp(guest) is not None
    assert await ask_dhcp(far[10], 1.5) is None
    assert not await far[10].pings("10.0.0.2", 0.4)


async def test_a_trunk_that_goes_takes_its_flows_along(lab: Lab, far: dict[int, FarGuest]) -> None:
    network = lab.cloud.network(vlan=10)
    here = await lab.boot(network, "10.0.0.11")
    assert await far[10].pings("10.0.0.11")
    number = lab.switch.ports()["to-far"].ofport or 0
    assert dump(flows.trunk_cookie(number))
    vsctl("set", "interface", "to-far", "external_ids:iface-id=a-guest")  # it claims to be a guest
    await eventually(lambda: dump(flows.trunk_cookie(number)) == [])
    await eventually(lambda: lab.switch.ports()["to-far"].is_dead)
    vsctl("remove", "interface", "to-far", "external_ids", "iface-id")
    await eventually(lambda: dump(flows.trunk_cookie(number)) != [])
    assert await here.pings("10.0.0.50")
