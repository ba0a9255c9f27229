"""The ports of servers: made, found again, moved, given back; and who gets which address."""

from __future__ import annotations

import asyncio
import ipaddress
import uuid
from typing import Any

import pytest
from sqlalchemy import func, select

from kilonova.db import network_ledger as ledger
from kilonova.db import network_ports as ports
from kilonova.db.tables import network as t
from kilonova.errors import Conflict, Failed, Forbidden, Invalid, OverQuota
from kilonova.model.port import RequestedNetwork
from kilonova.services.network.faults import NetworkInUse
from kilonova.services.network.first_start import first_start
from kilonova.services.network.groups import create_group
from kilonova.services.network.networks import delete_network
from kilonova.services.network.ports import create_port, delete_port, update_port
from tests.unit.network.conftest import ADMIN, ALICE, BOB, Cloud, port_values


async def count(cloud: Cloud, table: Any) -> int:
    return int(await cloud.db.read(lambda tx: tx.scalar(select(func.count()).select_from(table))))


async def used(cloud: Cloud, project: str = "alpha") -> int:
    return (await cloud.db.read(lambda tx: ledger.usages(tx, project))).get("port", 0)


async def test_a_server_gets_a_bound_port_on_the_only_network(cloud: Cloud) -> None:
    network = await cloud.network(name="blue", subnet={"dns_nameservers": ("9.9.9.9",)})
    (vif,) = await cloud.boot("i1")
    assert (vif.network_id, vif.network_name, vif.vif_type) == (network, "blue", "ovs")
    assert vif.mac.startswith("fa:16:3e:")
    assert [each.address for each in vif.fixed_ips] == ["10.0.0.3"]  # .1 is the gateway, .2 the DHCP server
    assert (vif.subnets[0].gateway, vif.subnets[0].dns) == ("10.0.0.1", ("9.9.9.9",))
    assert vif.details["datapath_type"] == "netdev" and vif.details["ovs_hybrid_plug"] is False
    assert vif.security_groups == ("default",)
    assert not vif.preserve_on_delete
    port = await cloud.db.read(lambda tx: ports.port(tx, vif.port_id))
    assert port is not None
    assert (port.device_id, port.device_owner, port.host, port.status) == (
        "i1",
        "compute:nova",
        "one",
        "DOWN",
    )
    assert await cloud.service.find_instance(network, "10.0.0.3") == "i1"
    assert await cloud.service.find_instance(network, "10.0.0.2") is None
    assert await cloud.service.security_groups("i1") == ("default",)


async def test_a_repeat_finds_the_same_ports_also_for_another_host(cloud: Cloud) -> None:
    one = await cloud.network(name="a")
    two = await cloud.network(name="b", cidr="10.1.0.0/24")
    first = await cloud.boot("i1", two, one, two)
    assert [vif.network_id for vif in first] == [two, one, two]
    assert await cloud.boot("i1", two, one, two) == first
    await cloud.service.port_up(first[0].port_id, "one")
    moved = await cloud.boot("i1", two, one, two, host="two")
    assert [vif.port_id for vif in moved] == [vif.port_id for vif in first]
    assert [vif.mac for vif in moved] == [vif.mac for vif in first]
    port = await cloud.db.read(lambda tx: ports.port(tx, first[0].port_id))
    assert port is not None and (port.host, port.status) == ("two", "DOWN")
    assert await used(cloud) == 3
    back = await cloud.service.bind("i1", "three", {})
    assert [vif.port_id for vif in back] == [vif.port_id for vif in first]


async def test_a_repeat_makes_only_what_is_missing(cloud: Cloud) -> None:
    network = await cloud.network()
    first = await cloud.boot("i1", network)
    both = await cloud.boot("i1", network, network)
    assert both[0] == first[0] and len(both) == 2
    await cloud.service.release("i1", both[1].port_id)
    await cloud.service.release("i1", both[1].port_id)
    assert await cloud.service.vifs("i1") == first


async def _request(network: str) -> Any:
    from kilonova.services.network.port import PortRequest

    return PortRequest(
        instance_uuid="i1",
        project_id="alpha",
        hostname="h",
        networks=(RequestedNetwork(network_id=network),),
    )


async def test_giving_back_frees_everything_and_keeps_the_users_port(cloud: Cloud) -> None:
    network = await cloud.network()
    mine = await cloud.service.write(lambda work: create_port(work, ALICE, port_values(network)))
    vifs = await cloud.boot("i1", RequestedNetwork(port_id=mine.id), network)
    assert [vif.preserve_on_delete for vif in vifs] == [True, False]
    assert vifs[0].port_id == mine.id
    with pytest.raises(Failed, match="still in use"):
        await cloud.boot("i2", RequestedNetwork(port_id=mine.id))
    for _ in range(2):
        await cloud.service.deallocate("i1")
    assert await cloud.service.vifs("i1") == ()
    port = await cloud.db.read(lambda tx: ports.port(tx, mine.id))
    assert port is not None
    assert (port.device_id, port.device_owner, port.host, port.vif_type, port.status) == (
        "",
        "",
        "",
        "unbound",
        "DOWN",
    )
    assert await count(cloud, t.port_addresses) == 2  # the user's port and the DHCP server
    assert await used(cloud) == 1


async def test_fifty_boots_at_once_get_distinct_addresses_and_one_too_many_leaves_nothing(
    cloud: Cloud,
) -> None:
    network = await cloud.network(cidr="10.0.0.0/26")  # 62 hosts, a gateway and a DHCP server
    booted = await asyncio.gather(*(cloud.boot(f"i{n}", network) for n in range(50)))
    addresses = {vif.fixed_ips[0].address for (vif,) in booted}
    assert len(addresses) == 50 and not addresses & {"10.0.0.0", "10.0.0.1", "10.0.0.2", "10.0.0.63"}
    results = await asyncio.gather(*(cloud.boot(f"j{n}", network) for n in range(12)), return_exceptions=True)
    failed = [each for each in results if isinstance(each, BaseException)]
    assert len(failed) == 2
    assert all(isinstance(each, Failed) and "No more IP addresses" in str(each) for each in failed)
    assert await count(cloud, t.ports) == 61
    assert await count(cloud, t.port_addresses) == 61
    assert await used(cloud) == 60
    await cloud.service.deallocate("i7")
    (vif,) = await cloud.boot("late", network)
    assert vif.fixed_ips[0].address == booted[7][0].fixed_ips[0].address


async def test_a_freed_address_is_not_given_again_at_once(cloud: Cloud) -> None:
    network = await cloud.network()
    (first,) = await cloud.boot("i1", network)
    await cloud.service.deallocate("i1")
    (second,) = await cloud.boot("i2", network)
    assert first.fixed_ips[0].address != second.fixed_ips[0].address


async def test_taken_addresses_are_stepped_over_window_by_window(cloud: Cloud) -> None:
    network = await cloud.network(cidr="10.0.0.0/22")
    wanted = [f"10.0.0.{n}" for n in range(3, 253)]

    def take(work: Any) -> None:
        from kilonova.services.network.addressing import Wanted

        for address in wanted:
            create_port(work, ADMIN, port_values(network, fixed_ips=(Wanted(address=address),)))

    await cloud.service.write(take)
    (vif,) = await cloud.boot("i1", network)
    assert vif.fixed_ips[0].address == "10.0.0.253"


async def test_both_ip_versions_are_given_and_slaac_addresses_follow_the_mac(cloud: Cloud) -> None:
    network = await cloud.network()
    await cloud.subnet(network, "fd00:1::/64", ip_version=6)
    (vif,) = await cloud.boot("i1", network)
    assert [(each.version, each.address) for each in vif.fixed_ips] == [(4, "10.0.0.3"), (6, "fd00:1::3")]
    other = await cloud.network(cidr=None)
    await cloud.subnet(other, "fd00:2::/64", ip_version=6, ipv6_address_mode="slaac", enable_dhcp=False)
    (vif,) = await cloud.boot("i2", other)
    octets = vif.mac.split(":")
    octets[0] = f"{int(octets[0], 16) ^ 2:02x}"  # the second lowest bit is turned (RFC 4291, appendix A)
    identifier = "".join([*octets[:3], "ff", "fe", *octets[3:]])
    address = ipaddress.IPv6Address(vif.fixed_ips[0].address)
    assert address == ipaddress.IPv6Address(int(ipaddress.IPv6Address("fd00:2::")) + int(identifier, 16))


async def test_no_network_several_networks_and_auto(cloud: Cloud) -> None:
    assert await cloud.boot("i1") == ()
    assert await cloud.service.check(ALICE, None, ("default",), 3, False) == 3
    (auto,) = await cloud.boot("i2", auto=True)
    assert auto.network_name == "auto_allocated_network"
    (again,) = await cloud.boot("i3", auto=True)
    assert again.network_id == auto.network_id
    await cloud.network(ADMIN, cidr="10.5.0.0/24", shared=True, name="common")
    with pytest.raises(Conflict, match="Multiple possible networks"):
        await cloud.service.check(ALICE, None, (), 1, False)
    with pytest.raises(Failed, match="Multiple possible networks"):
        await cloud.boot("i4")
    (vif,) = await cloud.boot("i5", project="beta")
    assert vif.network_name == "common"


async def test_an_external_or_foreign_network_is_not_taken_by_itself(cloud: Cloud) -> None:
    outside = await cloud.network(ADMIN, name="public", external=True)
    foreign = await cloud.network(BOB, name="bobs", cidr="10.9.0.0/24")
    assert await cloud.boot("i1") == ()
    with pytest.raises(Forbidden, match="external network"):
        await cloud.service.check(ALICE, (RequestedNetwork(network_id=outside),), (), 1, False)
    with pytest.raises(Invalid, match="could not be found"):
        await cloud.service.check(ALICE, (RequestedNetwork(network_id=foreign),), (), 1, False)
    assert await cloud.service.check(ADMIN, (RequestedNetwork(network_id=foreign),), (), 1, False) == 1


async def test_checks_of_addresses_and_ports_say_what_nova_says(cloud: Cloud) -> None:
    network = await cloud.network()
    bare = await cloud.network(name="bare", cidr=None)
    (vif,) = await cloud.boot("i1", network)
    mine = await cloud.service.write(lambda work: create_port(work, ALICE, port_values(network)))
    bobs = await cloud.network(BOB, cidr="10.8.0.0/24")
    theirs = await cloud.service.write(lambda work: create_port(work, BOB, port_values(bobs)))
    empty = await cloud.service.write(lambda work: create_port(work, ALICE, port_values(bare)))

    async def check(count: int = 1, **wanted: Any) -> int:
        return await cloud.service.check(ALICE, (RequestedNetwork(**wanted),), ("default",), count, False)

    assert await check(network_id=network, fixed_ip="10.0.0.77") == 1
    assert await check(port_id=mine.id) == 1
    cases: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (Conflict, "already in use", {"network_id": network, "fixed_ip": vif.fixed_ips[0].address}),
        (Invalid, "not a valid ip address", {"network_id": network, "fixed_ip": "192.0.2.1"}),
        (Invalid, "not a valid ip address", {"network_id": network, "fixed_ip": "10.0.0.255"}),
        (Invalid, "not a valid ip address", {"network_id": network, "fixed_ip": "nonsense"}),
        (Invalid, "requires a subnet", {"network_id": bare}),
        (Invalid, "could not be found", {"network_id": str(uuid.uuid4())}),
        (Invalid, "could not be found", {"port_id": str(uuid.uuid4())}),
        (Invalid, "could not be found", {"port_id": theirs.id}),
        (Invalid, "requires a FixedIP", {"port_id": empty.id}),
        (Conflict, f"Port {vif.port_id} is still in use.", {"port_id": vif.port_id}),
        (Invalid, "multiple instances", {"port_id": mine.id, "count": 2}),
        (Invalid, "max count", {"network_id": network, "fixed_ip": "10.0.0.78", "count": 2}),
    ]
    for kind, text, wanted in cases:
        with pytest.raises(kind, match=text):
            await check(**wanted)
    with pytest.raises(Invalid, match="twice"):
        await cloud.service.check(
            ALICE, (RequestedNetwork(port_id=mine.id), RequestedNetwork(port_id=mine.id)), (), 1, False
        )


async def test_a_wanted_address_is_given_or_the_boot_fails_cleanly(cloud: Cloud) -> None:
    network = await cloud.network()
    wanted = RequestedNetwork(network_id=network, fixed_ip="10.0.0.77", tag="nic1")
    results = await asyncio.gather(*(cloud.boot(f"i{n}", wanted) for n in range(5)), return_exceptions=True)
    won = [each for each in results if not isinstance(each, BaseException)]
    assert len(won) == 1
    assert (won[0][0].fixed_ips[0].address, won[0][0].tag) == ("10.0.0.77", "nic1")
    assert all("already in use" in str(each) for each in results if isinstance(each, Failed))
    assert await used(cloud) == 1


async def test_security_groups_by_name_and_id(cloud: Cloud) -> None:
    network = await cloud.network()

    async def make(name: str, context: Any = ALICE) -> str:
        values = {"name": name, "description": "", "stateful": True}
        return (await cloud.service.write(lambda work: create_group(work, context, dict(values)))).id

    web = await make("web")
    twin = await make("twin")
    await make("twin")
    theirs = await make("theirs", BOB)
    (vif,) = await cloud.boot("i1", network, security_groups=("web", web, "default"))
    assert vif.security_groups == ("default", "web")
    assert await cloud.service.security_groups("i1") == ("default", "web")

    async def check(*names: str) -> int:
        return await cloud.service.check(ALICE, None, names, 1, False)

    assert await check("default", "web", twin) == 1
    with pytest.raises(Invalid, match="Security group nope not found"):
        await check("nope")
    with pytest.raises(Invalid, match="not found"):
        await check(theirs)
    with pytest.raises(Conflict, match="twin"):
        await check("twin")


async def test_the_port_quota_holds_also_in_a_race(cloud: Cloud) -> None:
    network = await cloud.network()
    await cloud.db.write(lambda tx: ledger.set_limit(tx, "alpha", "port", 7))
    assert await cloud.service.check(ALICE, (RequestedNetwork(network_id=network),) * 2, (), 9, False) == 3
    results = await asyncio.gather(*(cloud.boot(f"i{n}", network) for n in range(12)), return_exceptions=True)
    assert sum(isinstance(each, Failed) for each in results) == 5
    assert await used(cloud) == 7
    with pytest.raises(OverQuota, match="ports"):
        await cloud.service.check(ALICE, None, (), 1, False)
    await cloud.db.write(lambda tx: ledger.set_limit(tx, "alpha", "port", -1))
    await cloud.boot("more", network)


async def test_a_network_goes_only_when_its_ports_are_gone(cloud: Cloud) -> None:
    network = await cloud.network()
    await cloud.boot("i1", network)
    with pytest.raises(NetworkInUse):
        await cloud.service.write(lambda work: delete_network(work, ALICE, network))
    await cloud.service.deallocate("i1")
    await cloud.service.write(lambda work: delete_network(work, ALICE, network))
    for table in (t.networks, t.subnets, t.ports, t.port_addresses, t.subnet_cursors):
        assert await count(cloud, table) == 0
    with pytest.raises(Failed, match="could not be found"):
        await cloud.boot("i2", network)


async def test_deleting_a_network_and_booting_on_it_do_not_cross(cloud: Cloud) -> None:
    for n in range(5):
        network = await cloud.network(cidr="10.0.0.0/28")
        boot, delete = await asyncio.gather(
            cloud.boot(f"i{n}", network),
            cloud.service.write(lambda work, network=network: delete_network(work, ALICE, network)),
            return_exceptions=True,
        )
        assert isinstance(boot, Failed) != isinstance(delete, NetworkInUse)
        await cloud.service.deallocate(f"i{n}")


async def test_a_users_delete_or_change_of_a_servers_port_is_told(cloud: Cloud) -> None:
    from kilonova.services.network.addressing import Wanted

    network = await cloud.network()
    (vif,) = await cloud.boot("i1", network)
    await cloud.service.write(lambda work: update_port(work, ALICE, vif.port_id, {"name": "other"}))
    assert cloud.events == []
    wanted = {"fixed_ips": (Wanted(address="10.0.0.99"),)}
    await cloud.service.write(lambda work: update_port(work, ALICE, vif.port_id, dict(wanted)))
    await cloud.service.write(lambda work: update_port(work, ALICE, vif.port_id, {"security_groups": ()}))
    await cloud.service.write(lambda work: delete_port(work, ALICE, vif.port_id))
    assert [event[:3] for event in cloud.events] == [
        ("i1", "network-changed", vif.port_id),
        ("i1", "network-changed", vif.port_id),
        ("i1", "network-vif-deleted", vif.port_id),
    ]
    assert await cloud.service.vifs("i1") == ()


async def test_writing_a_servers_id_into_a_port_makes_it_no_card_of_that_server(cloud: Cloud) -> None:
    """Else one could ask the metadata service as somebody else's server, or put a card into it."""
    await cloud.network()
    await cloud.boot("victim")
    bobs = await cloud.network(BOB, cidr="10.8.0.0/24")
    values = port_values(bobs, device_id="victim", device_owner="compute:nova")
    port = await cloud.service.write(lambda work: create_port(work, BOB, dict(values)))
    assert await cloud.service.find_instance(bobs, "10.8.0.3") is None
    assert [vif.port_id for vif in await cloud.service.vifs("victim")] != []
    assert port.id not in {vif.port_id for vif in await cloud.service.vifs("victim")}
    await cloud.service.write(lambda work: delete_port(work, BOB, port.id))
    assert cloud.events == []


async def test_boots_at_once_share_the_network_that_is_made_by_itself(cloud: Cloud) -> None:
    booted = await asyncio.gather(*(cloud.boot(f"i{n}", auto=True) for n in range(8)))
    assert len({vif.network_id for (vif,) in booted}) == 1
    assert await count(cloud, t.networks) == 1


async def test_the_same_boot_twice_at_once_makes_one_set_of_ports(cloud: Cloud) -> None:
    network = await cloud.network()
    one, other = await asyncio.gather(cloud.boot("i1", network, network), cloud.boot("i1", network, network))
    assert one == other and len(one) == 2
    assert await used(cloud) == 2


async def test_the_first_start_makes_one_network_once(cloud: Cloud) -> None:
    made = await first_start(cloud.service, "admins")
    assert made is not None and await first_start(cloud.service, "admins") is None
    (vif,) = await cloud.boot("i1", project="anyone")
    assert (vif.network_id, vif.network_name, vif.subnets[0].cidr) == (made, "private", "10.11.0.0/16")
