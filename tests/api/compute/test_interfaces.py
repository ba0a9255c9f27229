"""``/servers/{id}/os-interface``: attaching and detaching in all microversions and states, and what is
refused; and the old actions that give a port another address."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path
from typing import Any

import pytest

from kilonova.errors import HostFault
from kilonova.model.instance import Instance
from kilonova.model.states import TASK_STATES, VM_STATES
from kilonova.operations.cloud import Cloud
from tests.api.compute import facts
from tests.api.compute.asgi import Api, Reply
from tests.api.compute.conftest import PROJECT
from tests.api.compute.parts import PORT, server
from tests.api.compute.test_server_actions import get, put, recorded
from tests.api.compute.whole_cloud import NOBODYS, Whole, whole_cloud

LIVING = [state for state in VM_STATES if state != "deleted"]
TAKEN = {"active", "paused", "stopped"}
in_one_loop = pytest.mark.asyncio(loop_scope="module")


def wanted(**fields: Any) -> dict[str, Any]:
    return {"interfaceAttachment": fields}


async def attach(whole: Whole, uuid: str, how: dict[str, Any] | None = None, /, **fields: Any) -> Reply:
    return await whole.api("POST", f"/servers/{uuid}/os-interface", wanted(**fields), **(how or {}))


async def detach(whole: Whole, uuid: str, port: str, **how: Any) -> Reply:
    return await whole.api("DELETE", f"/servers/{uuid}/os-interface/{port}", **how)


def macs(whole: Whole, uuid: str) -> tuple[str, ...]:
    """The network cards of the guest."""
    return whole.driver.guest_file.macs(uuid)


async def agreed(whole: Whole, uuid: str) -> Instance:
    """The server in rest: row, network service and guest know the same ports in the same order."""
    found = await whole.settled(uuid)
    assert found.vifs == await whole.vifs(uuid)
    assert macs(whole, uuid) == tuple(vif.mac for vif in found.vifs)
    return found


# ---- which states, and who ----


@pytest.mark.capability("API-48", "API-49")
async def test_every_state(api: Api, cloud: Cloud) -> None:
    """One that is refused names what stands in its way and leaves no action behind."""
    uuid = (await server(cloud, PROJECT)).uuid
    path = f"/servers/{uuid}/os-interface"
    for vm, task in itertools.product(LIVING, [None, *TASK_STATES]):
        await put(cloud, uuid, vm_state=vm, task_state=task)
        before = len(await recorded(cloud, uuid))
        fine = vm in TAKEN and task is None
        where = f"vm_state {vm}" if vm not in TAKEN else f"task_state {task}"
        if not fine:  # that it is taken is seen where something then does it
            reply = await api("POST", path, wanted())
            assert reply.status == 409, (vm, task)
            assert reply.fault == f"Cannot 'attach_interface' instance {uuid} while it is in {where}"
        reply = await api("DELETE", f"{path}/{PORT}")
        now, log = await get(cloud, uuid), await recorded(cloud, uuid)
        assert (now.vm_state, now.task_state) == (vm, task), "neither changes"
        if fine:
            assert (reply.status, reply.content) == (202, b"")
            assert (len(log), log[0]) == (before + 1, "detach_interface")
        else:
            assert reply.fault == f"Cannot 'detach_interface' instance {uuid} while it is in {where}"
            assert len(log) == before


@pytest.mark.capability("API-4")
async def test_a_lock_keeps_all_but_administrators_off(api: Api, cloud: Cloud) -> None:
    uuid = (await server(cloud, PROJECT, locked="owner")).uuid
    path = f"/servers/{uuid}/os-interface"
    for method, where, body in (("POST", path, wanted()), ("DELETE", f"{path}/{PORT}", None)):
        reply = await api(method, where, body)
        assert (reply.status, reply.fault) == (409, f"Instance {uuid} is locked")
    assert (await api("DELETE", f"{path}/{PORT}", who="admin")).status == 202


@pytest.mark.parametrize(("who", "status"), [("reader", 403), ("nobody", 403), ("other", 404), ("", 401)])
async def test_who_may_not(api: Api, cloud: Cloud, who: str, status: int) -> None:
    uuid = (await server(cloud, PROJECT)).uuid
    path = f"/servers/{uuid}/os-interface"
    assert (await api("POST", path, wanted(), who=who)).status == status
    assert (await api("DELETE", f"{path}/{PORT}", who=who)).status == status
    assert await recorded(cloud, uuid) == []


async def test_what_is_not_there(api: Api, cloud: Cloud) -> None:
    for uuid in (NOBODYS, "x"):
        assert (await api("POST", f"/servers/{uuid}/os-interface", wanted())).status == 404
        assert (await api("DELETE", f"/servers/{uuid}/os-interface/{PORT}")).status == 404
    uuid = (await server(cloud, PROJECT)).uuid
    for port in (NOBODYS, "x"):
        reply = await api("DELETE", f"/servers/{uuid}/os-interface/{port}")
        assert (reply.status, port in reply.fault) == (404, True)
    assert await recorded(cloud, uuid) == []


@pytest.mark.parametrize(
    ("version", "fields"),
    [
        (1, {"net_id": "x"}),
        (1, {"net_id": None}),
        (1, {"port_id": 1}),
        (1, {"net_id": NOBODYS, "port_id": NOBODYS}),
        (1, {"fixed_ips": [{"ip_address": "10.0.0.9"}]}),
        (1, {"port_id": NOBODYS, "fixed_ips": [{"ip_address": "10.0.0.9"}]}),
        (1, {"net_id": NOBODYS, "fixed_ips": []}),
        (1, {"net_id": NOBODYS, "fixed_ips": [{"ip_address": "10.0.0.9"}] * 2}),
        (1, {"net_id": NOBODYS, "fixed_ips": [{"ip_address": "moon"}]}),
        (1, {"net_id": NOBODYS, "fixed_ips": [{"ip_address": "10.0.0.9", "subnet_id": NOBODYS}]}),
        (1, {"colour": "red"}),
        (48, {"tag": "nic"}),
        (49, {"tag": "a/b"}),
        (49, {"tag": "x" * 61}),
        (49, {"tag": None}),
    ],
)
async def test_bodies_that_are_refused(api: Api, cloud: Cloud, version: int, fields: dict[str, Any]) -> None:
    uuid = (await server(cloud, PROJECT)).uuid
    reply = await api("POST", f"/servers/{uuid}/os-interface", wanted(**fields), v=version)
    assert reply.status == 400, reply.content
    assert await recorded(cloud, uuid) == []


# ---- what really happens ----


@in_one_loop
@pytest.mark.capability("API-48", "API-49", "MG-DEV-7", "MG-DEV-8")
@pytest.mark.parametrize("version", [1, 48, 49, 69, 70, 104])
async def test_a_network_is_added_and_removed(whole: Whole, version: int) -> None:
    network = await whole.network_of("192.0.2.0/24", name="more")
    uuid = (await whole.made(networks=[{"uuid": await whole.private()}])).uuid
    more = {"tag": "second"} if version >= 49 else {}
    ip = [{"ip_address": "192.0.2.77"}]
    reply = await attach(whole, uuid, {"v": version}, net_id=network, fixed_ips=ip, **more)
    assert reply.status == 200, reply.content
    facts.check_answer("servers.os-interface.create", version, [reply.json])
    shown = reply.json["interfaceAttachment"]
    found = await agreed(whole, uuid)
    assert (found.vm_state, found.task_state, len(found.vifs)) == ("active", None, 2)
    vif = found.vifs[1]
    assert (shown["port_id"], shown["mac_addr"], shown["net_id"]) == (vif.port_id, vif.mac, network)
    assert [each["ip_address"] for each in shown["fixed_ips"]] == ["192.0.2.77"]
    assert vif.tag == more.get("tag") and (version < 70 or shown["tag"] == vif.tag)
    port = (await whole.network("GET", f"/ports/{vif.port_id}")).json["port"]
    assert (port["status"], port["device_id"], port["device_owner"]) == ("ACTIVE", uuid, "compute:nova")
    addresses = (await whole.shown(uuid))["addresses"]
    assert [each["addr"] for each in addresses["more"]] == ["192.0.2.77"]

    assert (await detach(whole, uuid, vif.port_id, v=version)).status == 202
    assert len((await agreed(whole, uuid)).vifs) == 1
    assert (await whole.network("GET", f"/ports/{vif.port_id}")).status == 404, "it was made for the server"
    assert (await detach(whole, uuid, vif.port_id, v=version)).status == 404
    reply = await whole.api("GET", f"/servers/{uuid}/os-instance-actions", v=version)
    log = [(each["action"], each["message"]) for each in reply.json["instanceActions"]]
    assert log == [("detach_interface", None), ("attach_interface", None), ("create", None)]
    await whole.gone(uuid)


@in_one_loop
@pytest.mark.capability("MG-DEV-7", "MG-DEV-8")
async def test_the_users_own_port_is_given_back(whole: Whole) -> None:
    network = await whole.network_of("198.51.100.0/24", name="own")
    mine = (await whole.new("port", network_id=network, name="mine"))["id"]
    uuid = (await whole.made()).uuid
    assert (await attach(whole, uuid, port_id=mine)).json["interfaceAttachment"]["port_id"] == mine
    await agreed(whole, uuid)
    other = (await whole.made()).uuid
    for each in (uuid, other):
        reply = await attach(whole, each, port_id=mine)
        assert (reply.status, reply.fault) == (409, f"Port {mine} is still in use.")
        await agreed(whole, each)
    await whole.act(uuid, "reboot", {"type": "HARD"})
    await agreed(whole, uuid)
    assert (await detach(whole, uuid, mine)).status == 202
    await agreed(whole, uuid)
    port = (await whole.network("GET", f"/ports/{mine}")).json["port"]
    assert (port["device_id"], port["device_owner"], port["status"], port["name"]) == ("", "", "DOWN", "mine")
    assert (await attach(whole, other, port_id=mine)).status == 200
    await whole.gone(uuid)
    await whole.gone(other)
    assert (await whole.network("GET", f"/ports/{mine}")).status == 200


@in_one_loop
async def test_a_server_that_is_off_gets_it_for_its_next_start(whole: Whole) -> None:
    private = await whole.private()
    uuid = (await whole.made()).uuid
    await whole.act(uuid, "os-stop")
    await whole.settled(uuid)
    for _ in range(2):
        assert (await attach(whole, uuid, net_id=private)).status == 200
    first, second = (await agreed(whole, uuid)).vifs
    assert (await detach(whole, uuid, first.port_id)).status == 202
    await agreed(whole, uuid)
    await whole.act(uuid, "os-start")
    assert (await agreed(whole, uuid)).vifs == (second,)
    await whole.gone(uuid)


async def test_no_network_is_named(tmp_path: Path) -> None:
    """An empty body, and one that wants nothing: the one network that the project can use."""
    async with whole_cloud(tmp_path) as whole:
        uuid = (await whole.made()).uuid
        path = f"/servers/{uuid}/os-interface"
        for body in ({}, wanted()):
            assert (await whole.api("POST", path, body)).status == 200
        assert {vif.network_id for vif in (await agreed(whole, uuid)).vifs} == {await whole.private()}
        await whole.network_of("192.0.2.0/24")
        reply = await whole.api("POST", path, {})
        assert (reply.status, "Multiple possible networks" in reply.fault) == (400, True)
        assert len((await agreed(whole, uuid)).vifs) == 2


@in_one_loop
@pytest.mark.capability("API-8", "MG-DEV-7")
async def test_what_the_network_service_refuses(whole: Whole) -> None:
    """With Nova's status; the action is there, as it is written down before the port is looked at."""
    net = await whole.network_of("203.0.113.0/29", name="small")
    bare = await whole.network_of(None, name="bare")
    theirs = await whole.network_of("192.0.2.0/24", who="admin", name="theirs")
    external = await whole.new("network", who="admin", **{"name": "ext", "router:external": True})
    await whole.new("subnet", who="admin", network_id=external["id"], cidr="192.0.2.0/24", ip_version=4)
    foreign = (await whole.new("port", who="admin", network_id=theirs))["id"]
    no_ip = (await whole.new("port", network_id=net, fixed_ips=[]))["id"]
    uuid = (await whole.made()).uuid
    taken_ip = (await whole.new("port", network_id=net))["fixed_ips"][0]["ip_address"]
    cases: list[tuple[str, int, dict[str, Any]]] = [
        ("member", 404, {"net_id": NOBODYS}),
        ("member", 404, {"port_id": NOBODYS}),
        ("member", 404, {"net_id": theirs}),
        ("member", 404, {"port_id": foreign}),
        ("admin", 400, {"port_id": foreign}),
        ("member", 403, {"net_id": external["id"]}),
        ("member", 400, {"net_id": bare}),
        ("member", 400, {"port_id": no_ip}),
        ("member", 400, {"net_id": net, "fixed_ips": [{"ip_address": "10.9.9.9"}]}),
        ("member", 409, {"net_id": net, "fixed_ips": [{"ip_address": taken_ip}]}),
    ]
    for number, (who, status, fields) in enumerate(cases, 1):
        reply = await attach(whole, uuid, {"who": who}, **fields)
        assert reply.status == status, (fields, reply.content)
        assert (await agreed(whole, uuid)).vifs == ()
        log = (await whole.api("GET", f"/servers/{uuid}/os-instance-actions")).json["instanceActions"]
        failed = [each for each in log if each["action"] == "attach_interface"]
        assert len(failed) == number and {each["message"] for each in failed} == {"Error"}
    while (reply := await attach(whole, uuid, net_id=net)).status == 200:
        pass
    assert (reply.status, "Zero fixed ips" in reply.fault) == (400, True), reply.content
    await agreed(whole, uuid)
    await whole.gone(uuid)


@in_one_loop
async def test_the_quota_of_ports(whole: Whole) -> None:
    private = await whole.private()
    uuid = (await whole.made()).uuid
    path = f"/quotas/{whole.project}"
    used = (await whole.network("GET", f"{path}/details.json", who="admin")).json["quota"]["port"]["used"]
    await whole.network("PUT", path, {"quota": {"port": used + 1}}, who="admin")
    try:
        assert (await attach(whole, uuid, net_id=private)).status == 200
        reply = await attach(whole, uuid, net_id=private)
        assert (reply.status, "Quota exceeded" in reply.fault) == (403, True)
        await agreed(whole, uuid)
    finally:
        await whole.network("DELETE", path, who="admin")
    await whole.gone(uuid)


@in_one_loop
@pytest.mark.capability("MG-DEV-7", "MG-DEV-8")
async def test_a_host_that_fails(whole: Whole) -> None:
    private = await whole.private()
    uuid = (await whole.made()).uuid
    whole.driver.faults.add("attach_interface", HostFault("there is no place on its bus"))
    reply = await attach(whole, uuid, net_id=private)
    assert reply.status == 500
    assert reply.fault == (f"Failed to attach network adapter device to {uuid}: there is no place on its bus")
    assert (await agreed(whole, uuid)).vifs == ()
    port = (await attach(whole, uuid, net_id=private)).json["interfaceAttachment"]["port_id"]
    whole.driver.keeps_devices.add(uuid)
    assert (await detach(whole, uuid, port)).status == 202
    found = await agreed(whole, uuid)
    assert len(found.vifs) == 1 and found.fault is not None and "let go" in found.fault.message
    whole.driver.keeps_devices.clear()
    await whole.gone(uuid)


@in_one_loop
async def test_a_host_that_takes_too_long(whole: Whole) -> None:
    """The answer comes in time; the attach goes on, and a deletion ends it."""
    uuid = (await whole.made()).uuid
    private = await whole.private()
    options = whole.cloud.cloud.settings.options["DEFAULT"]
    before, options["rpc_response_timeout"] = options["rpc_response_timeout"], 1
    try:
        with whole.held("attach_interface"):
            reply = await attach(whole, uuid, net_id=private)
            assert (reply.status, "after 1 seconds" in reply.fault) == (500, True)
        assert len((await agreed(whole, uuid)).vifs) == 1
        options["rpc_response_timeout"] = before
        with whole.held("attach_interface"):
            task = asyncio.create_task(attach(whole, uuid, net_id=private))
            while len(await whole.vifs(uuid)) < 2:
                await asyncio.sleep(0.005)
            assert (await whole.api("DELETE", f"/servers/{uuid}")).status == 204
            assert (await task).status == 409
        assert (await whole.settled(uuid)).vm_state == "deleted"
    finally:
        options["rpc_response_timeout"] = before


@in_one_loop
@pytest.mark.capability("API-52")
async def test_addresses_come_and_go(whole: Whole) -> None:
    network = await whole.network_of("10.77.0.0/24", name="ten")
    uuid = (await whole.made(networks=[{"uuid": network}])).uuid
    (before,) = (await whole.instance(uuid)).vifs
    assert (await whole.act(uuid, "addFixedIp", {"networkId": network}, v=43)).status == 202
    (after,) = (await agreed(whole, uuid)).vifs
    assert after.port_id == before.port_id and len(after.fixed_ips) == 2
    for ip in (before.fixed_ips[0].address, after.fixed_ips[1].address):
        assert (await whole.act(uuid, "removeFixedIp", {"address": ip}, v=43)).status == 202
    assert (await agreed(whole, uuid)).vifs[0].fixed_ips == ()
    log = (await whole.api("GET", f"/servers/{uuid}/os-instance-actions")).json["instanceActions"]
    assert [each["action"] for each in log] == ["create"], "none of them is an action"
    for action, argument in (
        ("removeFixedIp", {"address": "10.77.0.250"}),
        ("removeFixedIp", {"address": "moon"}),
        ("addFixedIp", {"networkId": NOBODYS}),
        ("addFixedIp", {"networkId": "x"}),
        ("addFixedIp", {}),
    ):
        assert (await whole.act(uuid, action, argument, v=43)).status == 400, (action, argument)
    for action, argument in (
        ("removeFixedIp", {"address": "10.77.0.3"}),
        ("addFixedIp", {"networkId": network}),
    ):
        assert (await whole.act(uuid, action, argument, v=44)).status == 404
        assert (await whole.act(uuid, action, argument, v=43, who="reader")).status == 403
    await whole.act(uuid, "lock")
    assert (await whole.act(uuid, "addFixedIp", {"networkId": network}, v=43)).status == 409
    await whole.gone(uuid)
