"""What every network service behind the Protocol does for compute."""

from __future__ import annotations

import asyncio
import ipaddress
from typing import Any

import pytest

from kilonova.errors import Conflict, Failed, Forbidden, Invalid, NotFound, OverQuota, Refused
from kilonova.model.context import RequestContext
from kilonova.model.port import RequestedNetwork, Vif
from kilonova.services.network.port import NetworkService, OnePort, PortRequest
from tests.contract.rigs import CALLERS, Rig, caller, new

ALICE = caller("alice")


@pytest.fixture
def network(rig: Rig) -> NetworkService:
    assert rig.network is not None
    return rig.network


class Cloud:
    """Networks, ports and groups made by the API, and requests for the ports of servers."""

    def __init__(self, rig: Rig) -> None:
        assert rig.network is not None
        self.rest = rig.rest
        self.service = rig.network

    async def made(self, kind: str, who: str = "alice", **values: Any) -> str:
        path = f"/v2.0/{kind.replace('_', '-')}s"
        return str((await self.rest("POST", path, {kind: values}, who)).expect(201).json[kind]["id"])

    async def network(self, cidr: str | None = "10.1.0.0/24", who: str = "alice", **values: Any) -> str:
        id = await self.made("network", who, name="net", **values)
        if cidr is not None:
            await self.made("subnet", who, network_id=id, cidr=cidr, ip_version=4)
        return id

    async def port(self, id: str) -> dict[str, Any] | None:
        reply = await self.rest("GET", f"/v2.0/ports/{id}")
        return reply.json["port"] if reply.status == 200 else None

    async def ports(self, instance: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = (await self.rest("GET", f"/v2.0/ports?device_id={instance}")).json[
            "ports"
        ]
        return found

    async def check(
        self, *wanted: RequestedNetwork, none: bool = False, who: RequestContext = ALICE, **more: Any
    ) -> int:
        networks = wanted if wanted or none else None
        groups, count = more.get("groups", ("default",)), more.get("count", 1)
        return await self.service.check(who, networks, groups, count, more.get("auto", False))

    async def boot(
        self, instance: str, *wanted: RequestedNetwork, none: bool = False, host: str = "one", **more: Any
    ) -> tuple[Vif, ...]:
        request = PortRequest(
            instance_uuid=instance,
            project_id=more.pop("project", CALLERS["alice"][0]),
            hostname="web-1",
            networks=wanted if wanted or none else None,
            **more,
        )
        return await self.service.allocate(request, host, {"datapath_type": "netdev"})


@pytest.fixture
def cloud(rig: Rig) -> Cloud:
    return Cloud(rig)


def on(network_id: str, fixed_ip: str | None = None, tag: str | None = None) -> RequestedNetwork:
    return RequestedNetwork(network_id=network_id, fixed_ip=fixed_ip, tag=tag)


def with_port(port_id: str) -> RequestedNetwork:
    return RequestedNetwork(port_id=port_id)


# ---- ports from the first to the last ----


async def test_a_port_is_made_bound_and_described(cloud: Cloud) -> None:
    net, server = await cloud.network(), new()
    (vif,) = await cloud.boot(server, on(net, tag="nic0"), security_groups=("default",))
    assert (vif.network_id, vif.network_name, vif.vnic_type, vif.tag) == (net, "net", "normal", "nic0")
    (address,) = vif.fixed_ips
    (subnet,) = vif.subnets
    assert ipaddress.ip_address(address.address) in ipaddress.ip_network("10.1.0.0/24")
    assert (subnet.id, subnet.cidr, subnet.gateway) == (address.subnet_id, "10.1.0.0/24", "10.1.0.1")
    assert address.address != "10.1.0.1"
    assert (vif.vif_type, vif.preserve_on_delete, vif.security_groups) == ("ovs", False, ("default",))
    assert vif.mtu >= 1280 and len(vif.mac.split(":")) == 6 and vif.devname == "tap" + vif.port_id[:11]
    assert await cloud.service.vifs(server) == (vif,)
    assert await cloud.service.security_groups(server) == ("default",)
    port = await cloud.port(vif.port_id)
    assert port is not None
    assert (port["device_id"], port["project_id"], port["binding:host_id"]) == (server, "alpha", "one")
    assert (port["device_owner"], port["mac_address"]) == ("compute:nova", vif.mac)
    await cloud.service.deallocate(server)
    assert await cloud.port(vif.port_id) is None
    assert await cloud.service.vifs(server) == () and await cloud.service.security_groups(server) == ()


async def test_all_of_it_may_be_done_again(cloud: Cloud) -> None:
    one, two, server = await cloud.network(), await cloud.network("10.2.0.0/24"), new()
    mine = await cloud.made("port", network_id=one)
    wanted = (on(one), with_port(mine), on(two, "10.2.0.77"), on(one))
    first = await cloud.boot(server, *wanted)
    assert [vif.network_id for vif in first] == [one, one, two, one], "in the order of the request"
    assert first[1].port_id == mine and first[2].fixed_ips[0].address == "10.2.0.77"
    for _ in range(2):
        assert await cloud.boot(server, *wanted) == first
    assert len(await cloud.ports(server)) == 4
    for _ in range(2):
        await cloud.service.deallocate(server)
    assert await cloud.ports(server) == []
    await cloud.service.deallocate(new())


async def test_a_try_on_another_host_takes_the_ports_along(cloud: Cloud) -> None:
    net, server = await cloud.network(), new()
    (before,) = await cloud.boot(server, on(net), host="one")
    (after,) = await cloud.boot(server, on(net), host="two")
    assert (after.port_id, after.mac, after.fixed_ips) == (before.port_id, before.mac, before.fixed_ips)
    port = await cloud.port(after.port_id)
    assert port is not None and port["binding:host_id"] == "two"


async def test_the_users_own_port_is_given_back(cloud: Cloud) -> None:
    net, server = await cloud.network(), new()
    mine = await cloud.made("port", network_id=net, name="mine")
    before = await cloud.port(mine)
    (vif,) = await cloud.boot(server, with_port(mine))
    assert (vif.port_id, vif.preserve_on_delete) == (mine, True)
    assert before is not None and vif.mac == before["mac_address"]
    await cloud.service.deallocate(server)
    after = await cloud.port(mine)
    assert after is not None and (after["device_id"], after["binding:host_id"], after["name"]) == (
        "",
        "",
        "mine",
    )
    assert after["fixed_ips"] == before["fixed_ips"]
    (again,) = await cloud.boot(new(), with_port(mine))
    assert again.port_id == mine


async def test_no_ports_at_all(cloud: Cloud) -> None:
    await cloud.network()
    assert await cloud.check(none=True) == 1
    assert await cloud.boot(new(), none=True) == ()


# ---- a user who names no network ----


async def test_the_one_network_that_there_is(cloud: Cloud) -> None:
    assert await cloud.check() == 1 and await cloud.boot(new()) == ()
    await cloud.network(who="bob")
    assert await cloud.boot(new()) == (), "another's is none of ours"
    net = await cloud.network()
    server = new()
    assert [vif.network_id for vif in await cloud.boot(server)] == [net]
    assert len(await cloud.boot(server)) == 1
    await cloud.network("10.9.0.0/24")
    with pytest.raises(Conflict):
        await cloud.check()
    assert len(await cloud.boot(server)) == 1, "what has its ports keeps them"


async def test_a_shared_network_is_everybodys(cloud: Cloud) -> None:
    net = await cloud.network(who="admin", shared=True)
    for who in ("alice", "bob"):
        assert await cloud.check(on(net), who=caller(who)) == 1
        (vif,) = await cloud.boot(new(), project=CALLERS[who][0])
        assert vif.network_id == net


async def test_a_network_is_made_for_who_has_none(cloud: Cloud) -> None:
    assert await cloud.check(auto=True) == 1
    servers = [new() for _ in range(4)]
    found = await asyncio.gather(*(cloud.boot(each, auto=True) for each in servers))
    assert len({vifs[0].network_id for vifs in found}) == 1, "one, however many ask at once"
    assert len({vifs[0].fixed_ips[0].address for vifs in found}) == 4


# ---- what is checked before anything is made ----


async def test_checks_make_nothing(cloud: Cloud) -> None:
    net = await cloud.network()
    before = (await cloud.rest("GET", "/v2.0/ports")).json
    assert await cloud.check(on(net), on(net, "10.1.0.9"), count=1) == 1
    assert await cloud.check(on(net), count=5) == 5
    assert (await cloud.rest("GET", "/v2.0/ports")).json == before


async def test_what_a_check_refuses(cloud: Cloud) -> None:
    net, foreign, bare = await cloud.network(), await cloud.network(who="bob"), await cloud.network(None)
    mine, theirs = (
        await cloud.made("port", network_id=net),
        await cloud.made("port", "bob", network_id=foreign),
    )
    taken = await cloud.made("port", network_id=net, fixed_ips=[{"ip_address": "10.1.0.50"}])
    await cloud.boot(new(), with_port(mine))
    cases: list[tuple[tuple[RequestedNetwork, ...], dict[str, Any], type[Refused]]] = [
        ((on(new()),), {}, Invalid),
        ((on("no uuid"),), {}, Invalid),
        ((on(foreign),), {}, Invalid),
        ((on(bare),), {}, Invalid),
        ((on(net, "10.2.0.1"),), {}, Invalid),
        ((on(net, "nonsense"),), {}, Invalid),
        ((on(net, "10.1.0.50"),), {}, Conflict),
        ((on(net, "10.1.0.9"),), {"count": 2}, Invalid),
        ((with_port(new()),), {}, Invalid),
        ((with_port(theirs),), {}, Invalid),
        ((with_port(mine),), {}, Conflict),
        ((with_port(taken), with_port(taken)), {}, Invalid),
        ((with_port(taken),), {"count": 2}, Invalid),
        ((on(net),), {"groups": ("no such group",)}, Invalid),
        ((RequestedNetwork(),), {}, Invalid),
    ]
    for wanted, more, kind in cases:
        with pytest.raises(kind) as refused:
            await cloud.check(*wanted, **more)
        assert str(refused.value), (wanted, more)
    assert await cloud.check(with_port(taken)) == 1


async def test_the_quota_of_ports(cloud: Cloud) -> None:
    net = await cloud.network()
    usage = (await cloud.rest("GET", "/v2.0/quotas/alpha/details")).expect(200).json["quota"]["port"]
    body = {"quota": {"port": usage["used"] + 3}}
    (await cloud.rest("PUT", "/v2.0/quotas/alpha", body)).expect(200)
    assert await cloud.check(on(net), count=10) == 3
    assert await cloud.check(on(net), on(net), count=10) == 1
    with pytest.raises(OverQuota):
        await cloud.check(*[on(net)] * 4)
    servers = [new() for _ in range(6)]
    results = await asyncio.gather(*(cloud.boot(each, on(net)) for each in servers), return_exceptions=True)
    failed = [each for each in results if isinstance(each, BaseException)]
    assert len(failed) == 3 and all(isinstance(each, Failed) for each in failed), "also in a race"
    await asyncio.gather(*(cloud.service.deallocate(each) for each in servers))
    assert await cloud.check(on(net), count=10) == 3, "all are given back"


# ---- what fails while it is made ----


async def test_what_cannot_be_allocated_leaves_nothing(cloud: Cloud) -> None:
    net, small = await cloud.network(), await cloud.network("10.3.0.0/30")
    mine = await cloud.made("port", network_id=net)
    await cloud.boot(new(), with_port(mine))
    await cloud.boot(new(), on(net, "10.1.0.40"))
    while True:  # a net of four addresses is soon full
        try:
            await cloud.boot(new(), on(small))
        except Failed:
            break
    for bad in (on(new()), with_port(new()), with_port(mine), on(net, "10.1.0.40"), on(small)):
        server = new()
        with pytest.raises(Failed) as told:
            await cloud.boot(server, on(net), bad)
        assert str(told.value)
        assert await cloud.ports(server) == [] and await cloud.service.vifs(server) == ()


async def test_racing_servers_get_addresses_of_their_own(cloud: Cloud) -> None:
    net = await cloud.network("10.4.0.0/27")
    servers = [new() for _ in range(20)]
    found = await asyncio.gather(*(cloud.boot(each, on(net)) for each in servers))
    assert len({vifs[0].fixed_ips[0].address for vifs in found}) == 20
    assert len({vifs[0].mac for vifs in found}) == 20
    for server, vifs in zip(servers, found, strict=True):
        assert await cloud.service.vifs(server) == vifs


async def test_one_port_for_two_servers_at_once(cloud: Cloud) -> None:
    net = await cloud.network()
    mine = await cloud.made("port", network_id=net)
    results = await asyncio.gather(
        *(cloud.boot(new(), with_port(mine)) for _ in range(6)), return_exceptions=True
    )
    assert sum(isinstance(each, tuple) for each in results) == 1
    assert all(isinstance(each, (tuple, Failed)) for each in results)


async def test_a_port_that_goes_under_a_server(cloud: Cloud) -> None:
    net, server = await cloud.network(), new()
    (vif, other) = await cloud.boot(server, on(net), on(net))
    (await cloud.rest("DELETE", f"/v2.0/ports/{vif.port_id}")).expect(204)
    assert await cloud.service.vifs(server) == (other,)
    await cloud.service.deallocate(server)
    assert await cloud.ports(server) == []


# ---- security groups ----


async def test_groups_by_name_and_by_id(cloud: Cloud) -> None:
    net, server = await cloud.network(), new()
    web = await cloud.made("security_group", name="web")
    ssh = await cloud.made("security_group", name="ssh")
    await cloud.made("security_group", "bob", name="theirs")
    assert await cloud.check(on(net), groups=("web", ssh)) == 1
    (vif,) = await cloud.boot(server, on(net), security_groups=("web", ssh, web))
    assert sorted(vif.security_groups) == ["ssh", "web"]
    assert sorted(await cloud.service.security_groups(server)) == ["ssh", "web"]
    for name in ("theirs", new()):
        with pytest.raises(Invalid):
            await cloud.check(on(net), groups=(name,))
        with pytest.raises(Failed):
            await cloud.boot(new(), on(net), security_groups=(name,))
    await cloud.made("security_group", name="web")
    with pytest.raises(Conflict):
        await cloud.check(on(net), groups=("web",))
    assert await cloud.check(on(net), groups=(web,)) == 1


# ---- one port more, or one address ----


def one(instance: str, network: str | None = None, port: str | None = None, **more: Any) -> OnePort:
    return OnePort(
        instance_uuid=instance,
        project_id=CALLERS["alice"][0],
        hostname="web-1",
        port_id=port or new(),
        taken=port is not None,
        network_id=network,
        **more,
    )


HOST = ("one", {"datapath_type": "netdev"})


async def test_a_port_is_attached_once_and_as_the_last(cloud: Cloud) -> None:
    net, server = await cloud.network(), new()
    before = await cloud.boot(server, on(net), on(net))
    mine = await cloud.made("port", network_id=net)
    for request in (one(server, net, fixed_ip="10.1.0.77", tag="nic"), one(server, port=mine), one(server)):
        for _ in range(2):
            vif = await cloud.service.attach(request, *HOST)
            assert (vif.port_id, vif.network_id, vif.vif_type) == (request.port_id, net, "ovs")
            assert (vif.tag, vif.preserve_on_delete) == (request.tag, request.taken)
        before = (*before, vif)
        assert await cloud.service.vifs(server) == before
    assert before[2].fixed_ips[0].address == "10.1.0.77"
    # One in the middle goes, for good or back to its user; the next one is the last again.
    for gone in (before[1], before[3]):
        for _ in range(2):
            await cloud.service.release(server, gone.port_id)
    assert await cloud.port(before[1].port_id) is None
    port = await cloud.port(mine)
    assert port is not None and (port["device_id"], port["binding:host_id"]) == ("", "")
    last = await cloud.service.attach(one(server, net), *HOST)
    assert await cloud.service.vifs(server) == (before[0], before[2], before[4], last)
    await cloud.service.release(new(), last.port_id)  # of another server: it is not its port
    await cloud.service.release(server, new())
    assert len(await cloud.service.vifs(server)) == 4


async def test_what_cannot_be_attached_says_why_and_leaves_nothing(cloud: Cloud) -> None:
    net, server = await cloud.network(), new()
    bare, theirs = await cloud.network(None), await cloud.network("10.2.0.0/24", "bob")
    mine, busy = await cloud.made("port", network_id=net), await cloud.made("port", network_id=net)
    foreign = await cloud.made("port", "bob", network_id=theirs)
    no_ip = await cloud.made("port", network_id=net, fixed_ips=[])
    await cloud.service.attach(one(new(), port=busy), *HOST)
    used = (await cloud.port(mine) or {})["fixed_ips"][0]["ip_address"]
    cases: list[tuple[type[Exception], OnePort]] = [
        (NotFound, one(server, new())),
        (NotFound, one(server, theirs)),
        (NotFound, one(server, port=new())),
        (NotFound, one(server, port=foreign)),
        (Invalid, one(server, port=foreign, privileged=True)),
        (Invalid, one(server, port=no_ip)),
        (Invalid, one(server, bare)),
        (Invalid, one(server, net, fixed_ip="10.9.0.1")),
        (Conflict, one(server, net, fixed_ip=used)),
        (Conflict, one(server, port=busy)),
    ]
    for error, request in cases:
        with pytest.raises(error):
            await cloud.service.attach(request, *HOST)
    assert await cloud.service.vifs(server) == ()
    vif = await cloud.service.attach(one(server, theirs, privileged=True), *HOST)
    assert vif.network_id == theirs


async def test_an_external_network_is_for_who_may_use_it(cloud: Cloud) -> None:
    made = {"router:external": True, "name": "ext"}
    net = await cloud.made("network", "admin", **made)
    await cloud.made("subnet", "admin", network_id=net, cidr="10.8.0.0/24", ip_version=4)
    with pytest.raises(Forbidden, match="external network"):
        await cloud.service.attach(one(new(), net), *HOST)
    assert (await cloud.service.attach(one(new(), net, external=True), *HOST)).network_id == net


async def test_no_network_to_choose_and_several(cloud: Cloud) -> None:
    with pytest.raises(Invalid, match="none are available"):
        await cloud.service.attach(one(new()), *HOST)
    for cidr in ("10.1.0.0/24", "10.2.0.0/24"):
        await cloud.network(cidr)
    with pytest.raises(Invalid, match="Multiple possible networks"):
        await cloud.service.attach(one(new()), *HOST)


async def test_the_last_address_is_given_away_once(cloud: Cloud) -> None:
    net, server = await cloud.network("10.1.0.0/29"), new()
    found = await asyncio.gather(
        *(cloud.service.attach(one(server, net), *HOST) for _ in range(8)), return_exceptions=True
    )
    refused = [each for each in found if isinstance(each, BaseException)]
    assert refused and all(isinstance(each, Invalid) for each in refused), refused
    got = [each.fixed_ips[0].address for each in found if isinstance(each, Vif)]
    assert len(set(got)) == len(got) == len(await cloud.service.vifs(server)) == 8 - len(refused)


async def test_addresses_are_added_and_removed(cloud: Cloud) -> None:
    net, server = await cloud.network("10.1.0.0/29"), new()
    (before,) = await cloud.boot(server, on(net))
    await cloud.service.add_fixed_ip(server, net)
    (vif,) = await cloud.service.vifs(server)
    assert vif.fixed_ips[0] == before.fixed_ips[0] and len(vif.fixed_ips) == 2
    await cloud.service.remove_fixed_ip(server, before.fixed_ips[0].address)
    (vif,) = await cloud.service.vifs(server)
    assert before.fixed_ips[0].address not in {ip.address for ip in vif.fixed_ips} and len(vif.fixed_ips) == 1
    with pytest.raises(NotFound):
        await cloud.service.remove_fixed_ip(server, before.fixed_ips[0].address)
    for nothing in (await cloud.network("10.2.0.0/24"), new()):
        with pytest.raises(NotFound):
            await cloud.service.add_fixed_ip(server, nothing)
    with pytest.raises(Invalid, match="Zero fixed ips"):
        for _ in range(8):
            await cloud.service.add_fixed_ip(server, net)
