"""Tunnels, as they are wanted and as the switch has them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kilonova.errors import Invalid, Unreachable
from kilonova.l2agent.options import L2Options
from kilonova.l2agent.switch import SwitchPort
from kilonova.l2agent.tunnels import KEY, Tunnels, tunnel_name

HERE, ONE, TWO = "10.0.0.1", "10.0.0.2", "10.0.0.3"


class Bridge:
    """A switch that has what it is told."""

    def __init__(self) -> None:
        self.rows: dict[str, SwitchPort] = {}
        self.calls: list[str] = []
        self.fails = False

    def ports(self) -> dict[str, SwitchPort]:
        return dict(self.rows)

    def add(self, name: str, kind: str, owner: str, vlans: set[int], options: dict[str, str]) -> None:
        self.rows[name] = SwitchPort(
            row=name,
            name=name,
            type=kind,
            ofport=1,
            iface_id=None,
            owner=owner,
            network_id=None,
            zone=None,
            tag=None,
            vlan_mode="trunk",
            trunks=tuple(sorted(vlans)),
            protected=True,
            options=options,
        )

    async def have_tunnel(
        self, name: str, *, options: dict[str, str], vlans: set[int], external_ids: dict[str, str]
    ) -> None:
        if self.fails:
            raise Unreachable("no database")
        assert vlans, "a port without VLANs carries all of them"
        self.calls.append(name)
        self.add(name, "vxlan", external_ids["kilonova-owner"], vlans, options)

    async def remove_port(self, name: str) -> None:
        self.calls.append(f"-{name}")
        del self.rows[name]

    async def applied(self) -> None:
        self.calls.append("applied")


def tunnels(bridge: Bridge, local_ip: str = HERE, owner: str = "me", port: int = 4789) -> Tunnels:
    options = L2Options(host="here", directory=Path("/none"), local_ip=local_ip, vxlan_port=port)
    return Tunnels(bridge, options, owner)  # type: ignore[arg-type]


def carried(bridge: Bridge) -> dict[str, tuple[int, ...]]:
    return {port.options["remote_ip"]: port.trunks for port in bridge.rows.values()}


async def test_each_peer_gets_the_networks_that_it_has_and_no_more_than_one_tunnel() -> None:
    bridge = Bridge()
    mine = tunnels(bridge)
    reach = [(1, (ONE, TWO)), (2, (ONE,)), (3, ()), (4, (HERE,))]
    await mine.converge(reach, complete=True)
    assert carried(bridge) == {ONE: (1, 2), TWO: (1,)} and mine.are_right() and mine.carried() == {1, 2}
    assert bridge.rows["vxlan-0a000002"].options == {
        "remote_ip": ONE,
        "local_ip": HERE,
        "key": KEY,
        "dst_port": "4789",
    }
    assert bridge.calls[-1] == "applied"
    bridge.calls.clear()
    await mine.converge(reach, complete=True)
    assert bridge.calls == []
    await mine.converge([(1, (TWO,))], complete=True)
    assert carried(bridge) == {TWO: (1,)} and bridge.calls == [f"-{tunnel_name(ONE)}"]


async def test_a_former_lifes_tunnels_are_kept_until_all_is_known() -> None:
    bridge = Bridge()
    await tunnels(bridge).converge([(1, (ONE,)), (2, (TWO,))], complete=True)
    bridge.calls.clear()
    again = tunnels(bridge)
    assert not again.are_right() and again.carried() == {1, 2}
    await again.converge([(3, (ONE,))], complete=False)
    assert carried(bridge) == {ONE: (1, 3), TWO: (2,)} and again.are_right()
    await again.converge([(3, (ONE,))], complete=True)
    assert carried(bridge) == {ONE: (3,)} and again.are_right()


async def test_what_others_do_to_a_tunnel_is_undone() -> None:
    bridge = Bridge()
    mine = tunnels(bridge)
    await mine.converge([(1, (ONE,))], complete=True)
    name = tunnel_name(ONE)
    right = dict(bridge.rows[name].options)
    for kind, vlans, options in (
        ("vxlan", {1, 2}, right),
        ("vxlan", set(), right),
        ("vxlan", {1}, {**right, "remote_ip": TWO}),
        ("vxlan", {1}, {**right, "key": "flow"}),
    ):
        bridge.add(name, kind, "me", vlans, options)
        assert not mine.are_right()
        await mine.converge([(1, (ONE,))], complete=True)
        assert mine.are_right() and bridge.rows[name].options == right and bridge.rows[name].trunks == (1,)
    del bridge.rows[name]
    assert not mine.are_right()
    bridge.add("vxlan-0a000063", "vxlan", "me", {1}, {**right, "remote_ip": "10.0.0.99"})
    await mine.converge([(1, (ONE,))], complete=True)
    assert carried(bridge) == {ONE: (1,)}


async def test_the_tunnels_of_others_are_theirs() -> None:
    bridge = Bridge()
    bridge.add("vx0", "vxlan", "somebody", {1}, {"remote_ip": TWO})
    bridge.add("patch0", "patch", "me", {1}, {})
    mine = tunnels(bridge)
    await mine.converge([], complete=True)
    assert set(bridge.rows) == {"vx0", "patch0"} and mine.are_right() and mine.carried() == set()


async def test_a_host_without_an_address_for_them_has_none_and_gives_up_those_it_had() -> None:
    bridge = Bridge()
    await tunnels(bridge).converge([(1, (ONE,))], complete=True)
    without = tunnels(bridge, local_ip="")
    assert not without.enabled
    await without.converge([(1, (ONE,))], complete=False)
    await without.converge([(1, (ONE,))], complete=True)
    assert bridge.rows == {} and without.are_right()


async def test_a_change_of_the_address_changes_all_tunnels() -> None:
    bridge = Bridge()
    await tunnels(bridge).converge([(1, (ONE,))], complete=True)
    await tunnels(bridge, local_ip="10.0.0.77", port=8472).converge([(1, (ONE,))], complete=True)
    options = bridge.rows[tunnel_name(ONE)].options
    assert (options["local_ip"], options["dst_port"]) == ("10.0.0.77", "8472")


async def test_a_peer_that_is_no_address_keeps_nobody_else_from_having_one() -> None:
    bridge = Bridge()
    await tunnels(bridge).converge([(1, ("nowhere", "fd00::1", ONE))], complete=True)
    assert carried(bridge) == {ONE: (1,)}


async def test_a_failure_is_told_and_the_next_try_does_it() -> None:
    bridge = Bridge()
    mine = tunnels(bridge)
    bridge.fails = True
    with pytest.raises(Unreachable):
        await mine.converge([(1, (ONE,))], complete=True)
    assert not mine.are_right()
    bridge.fails = False
    await mine.converge([(1, (ONE,))], complete=True)
    assert mine.are_right()


async def test_only_ports_that_are_or_were_tunnels_are_of_concern() -> None:
    bridge = Bridge()
    mine = tunnels(bridge)
    await mine.converge([(1, (ONE,))], complete=True)
    bridge.add("tap1", "", "me", {1}, {})
    bridge.add("vxlan-0a000063", "vxlan", "me", {1}, {})
    assert not mine.concerned({"tap1", "gone"})
    assert mine.concerned({"tap1", tunnel_name(ONE)}) and mine.concerned({"vxlan-0a000063"})
    del bridge.rows[tunnel_name(ONE)]
    assert mine.concerned({tunnel_name(ONE)})


@given(st.ip_addresses(v=4), st.ip_addresses(v=4))
def test_names_are_those_of_devices_and_no_two_peers_have_one(one: object, other: object) -> None:
    assert len(tunnel_name(str(one))) <= 15
    assert (tunnel_name(str(one)) == tunnel_name(str(other))) == (one == other)


@pytest.mark.parametrize("address", ["nowhere", "fd00::1", "10.0.0.1/24", "10.0.0"])
def test_what_is_no_address_is_refused_at_the_start(address: str) -> None:
    with pytest.raises(Invalid, match="local_ip"):
        tunnels(Bridge(), local_ip=address)
