"""What the layer-2 agents are told, and what they tell."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from kilonova.db import network_ledger as ledger
from kilonova.services.network import builtin
from kilonova.services.network.groups import create_group, create_rules, delete_rule
from kilonova.services.network.networks import update_network
from kilonova.services.network.ports import update_port
from kilonova.services.network.subnets import update_subnet
from tests.unit.network.conftest import ALICE, Cloud


def rule(group: str, **more: Any) -> dict[str, Any]:
    return {
        "security_group_id": group,
        "direction": "ingress",
        "ethertype": "IPv4",
        "protocol": None,
        "port_range_min": None,
        "port_range_max": None,
        "remote_ip_prefix": None,
        "remote_group_id": None,
        "description": "",
        **more,
    }


async def group(cloud: Cloud, name: str, *rules: dict[str, Any]) -> str:
    values = {"name": name, "description": "", "stateful": True}
    made = await cloud.service.write(lambda work: create_group(work, ALICE, dict(values)))
    await add(cloud, *({**each, "security_group_id": made.id} for each in rules))
    return made.id


async def add(cloud: Cloud, *rules: dict[str, Any]) -> list[str]:
    made = await cloud.service.write(lambda work: create_rules(work, ALICE, list(rules)))
    return [each.id for each in made]


async def test_plugging_is_told_once_until_the_port_goes_down_or_moves(cloud: Cloud) -> None:
    network = await cloud.network()
    (vif,) = await cloud.boot("i1", network)
    await cloud.service.port_up(vif.port_id, "elsewhere")
    assert cloud.events == []
    for _ in range(2):
        await cloud.service.port_up(vif.port_id, "one")
    plugged = ("i1", "network-vif-plugged", vif.port_id, "completed")
    assert cloud.events == [plugged]
    for _ in range(2):
        await cloud.service.port_down(vif.port_id, "one")
    assert cloud.events[1:] == [("i1", "network-vif-unplugged", vif.port_id, "completed")]
    await cloud.service.port_up(vif.port_id, "one")
    await cloud.boot("i1", network, host="two")
    await cloud.service.port_down(vif.port_id, "one")
    await cloud.service.port_up(vif.port_id, "two")
    assert cloud.events[2:] == [plugged, plugged]


async def test_what_compute_did_not_hear_is_said_again(cloud: Cloud) -> None:
    network = await cloud.network()
    (vif,) = await cloud.boot("i1", network)
    heard = cloud.service.on_event

    async def deaf(*event: str) -> None:
        raise ConnectionError("the process is dying")

    cloud.service.on_event = deaf
    with pytest.raises(ConnectionError):
        await cloud.service.port_up(vif.port_id, "one")
    cloud.service.on_event = heard
    await cloud.service.port_up(vif.port_id, "one")
    assert [event[1] for event in cloud.events] == ["network-vif-plugged"]
    assert await cloud.service.deliver_pending() == 0
    cloud.service.on_event = deaf
    with pytest.raises(ConnectionError):
        await cloud.service.port_down(vif.port_id, "one")
    cloud.service.on_event = heard
    assert await cloud.service.deliver_pending() == 1
    assert [event[1] for event in cloud.events] == ["network-vif-plugged", "network-vif-unplugged"]
    assert await cloud.db.read(ledger.pending) == []


async def test_a_deleted_servers_events_are_forgotten(cloud: Cloud) -> None:
    network = await cloud.network()
    (vif,) = await cloud.boot("i1", network)

    async def deaf(*event: str) -> None:
        raise ConnectionError

    cloud.service.on_event = deaf
    with pytest.raises(ConnectionError):
        await cloud.service.port_up(vif.port_id, "one")
    await cloud.service.deallocate("i1")
    assert await cloud.db.read(ledger.pending) == []


async def test_a_port_is_told_to_its_host_with_its_rules_resolved(cloud: Cloud) -> None:
    network = await cloud.network()
    web = await group(
        cloud,
        "web",
        rule("", protocol="tcp", port_range_min=80, port_range_max=81, remote_ip_prefix="192.0.2.0/24"),
        rule("", protocol="icmp", port_range_min=8),
    )
    (vif,) = await cloud.boot("i1", network, security_groups=("default", "web"))
    (other,) = await cloud.boot("i2", network)
    assert await cloud.service.port(vif.port_id, "two") is None
    assert await cloud.service.port("no-such-port", "one") is None
    details = await cloud.service.port(vif.port_id, "one")
    assert details is not None
    assert (details.mac, details.addresses) == (vif.mac, (vif.fixed_ips[0].address,))
    assert 1 <= details.vlan <= 4000
    found = {(r.direction, r.ethertype, r.protocol, r.port_min, r.port_max, r.remote) for r in details.rules}
    members = (vif.fixed_ips[0].address + "/32", other.fixed_ips[0].address + "/32")
    assert found == {
        ("egress", "IPv4", None, None, None, None),
        ("egress", "IPv6", None, None, None, None),
        ("ingress", "IPv4", None, None, None, members),
        ("ingress", "IPv6", None, None, None, ()),
        ("ingress", "IPv4", "tcp", 80, 81, ("192.0.2.0/24",)),
        ("ingress", "IPv4", "icmp", 8, None, None),
    }
    assert web


async def test_a_port_without_port_security_has_no_rules(cloud: Cloud) -> None:
    network = await cloud.network(port_security_enabled=False)
    (vif,) = await cloud.boot("i1", network)
    details = await cloud.service.port(vif.port_id, "one")
    assert details is not None and not details.port_security and details.rules == ()


async def test_allowed_pairs_reach_the_switch_and_the_remote_groups(cloud: Cloud) -> None:
    network = await cloud.network()
    (vif,) = await cloud.boot("i1", network)
    (other,) = await cloud.boot("i2", network)
    pairs = {"allowed_pairs": ((None, "10.0.0.200"), ("fa:16:3e:00:00:01", "10.7.0.0/16"))}
    await cloud.service.write(lambda work: update_port(work, ALICE, vif.port_id, dict(pairs)))
    details = await cloud.service.port(vif.port_id, "one")
    assert details is not None
    assert details.allowed_pairs == ((vif.mac, "10.0.0.200"), ("fa:16:3e:00:00:01", "10.7.0.0/16"))
    theirs = await cloud.service.port(other.port_id, "one")
    assert theirs is not None
    remotes = {cidr for each in theirs.rules for cidr in each.remote or ()}
    assert {"10.0.0.200/32", "10.7.0.0/16"} <= remotes


async def test_a_network_is_told_with_its_dhcp_server_and_hosts(cloud: Cloud) -> None:
    network = await cloud.network(
        subnet={"dns_nameservers": ("9.9.9.9",), "host_routes": (("192.0.2.0/24", "10.0.0.9"),)}
    )
    dark = await cloud.subnet(network, "10.1.0.0/24", enable_dhcp=False, gateway_ip=None)
    (vif,) = await cloud.boot("i1", network)
    details = await cloud.service.network(network)
    assert details is not None and details.mtu == 1500
    served, silent = details.subnets
    assert (served.cidr, served.server, served.gateway, served.dhcp) == (
        "10.0.0.0/24",
        "10.0.0.2",
        "10.0.0.1",
        True,
    )
    assert (served.dns, served.routes) == (("9.9.9.9",), (("192.0.2.0/24", "10.0.0.9"),))
    assert (silent.server, silent.gateway, silent.dhcp) == ("", None, False)
    assert [(h.mac, h.address, h.hostname) for h in details.hosts] == [(vif.mac, "10.0.0.3", "host-i1")]
    await cloud.service.write(lambda work: update_subnet(work, ALICE, dark, {"enable_dhcp": True}))
    details = await cloud.service.network(network)
    assert details is not None and details.subnets[1].server == "10.1.0.1"
    await cloud.service.write(lambda work: update_subnet(work, ALICE, dark, {"enable_dhcp": False}))
    details = await cloud.service.network(network)
    assert details is not None and details.subnets[1].server == ""
    assert await cloud.service.network("no-such-network") is None


async def test_vlans_are_unique_and_free_again(cloud: Cloud) -> None:
    from kilonova.services.network.networks import delete_network

    made = await asyncio.gather(*(cloud.network(cidr=None) for _ in range(8)))
    details = [await cloud.service.network(each) for each in made]
    assert sorted(each.vlan for each in details if each) == list(range(1, 9))
    gone = next(each for each in details if each and each.vlan == 3)
    await cloud.service.write(lambda work: delete_network(work, ALICE, gone.network_id))
    again = await cloud.service.network(await cloud.network(cidr=None))
    assert again is not None and again.vlan == 3


async def test_subscribers_hear_of_the_ports_and_networks_that_change(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builtin, "COALESCE", 0.0)
    network = await cloud.network()
    web = await group(cloud, "web")
    db = await group(cloud, "db", rule("", remote_group_id=web))
    (client,) = await cloud.boot("i1", network, security_groups=("web",))
    (server,) = await cloud.boot("i2", network, security_groups=("db",))
    heard: list[tuple[str, str]] = []
    end = cloud.service.subscribe(lambda kind, changed: heard.append((kind, changed)))

    async def hear() -> set[tuple[str, str]]:
        if cloud.service._teller is not None:
            await cloud.service._teller
        found = set(heard)
        heard.clear()
        return found

    (made,) = await add(cloud, rule(web, protocol="tcp"))
    assert await hear() == {("port", client.port_id)}
    await cloud.service.write(lambda work: delete_rule(work, ALICE, made))
    assert await hear() == {("port", client.port_id)}
    (third,) = await cloud.boot("i3", network, security_groups=("web",))
    assert await hear() == {("port", third.port_id), ("port", server.port_id)}
    await cloud.service.deallocate("i3")
    assert await hear() == {("port", third.port_id), ("port", server.port_id)}
    await cloud.service.write(lambda work: update_network(work, ALICE, network, {"admin_state_up": False}))
    assert await hear() == {("port", client.port_id), ("port", server.port_id), ("network", network)}
    end()
    await add(cloud, rule(db, protocol="udp"))
    assert await hear() == set()
