"""What can be read of a server besides itself: addresses, ports, counters, the console."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from kilonova.errors import Unreachable
from kilonova.model.states import POWER_NAMES
from tests.api.compute.conftest import Whole
from tests.api.compute.whole_cloud import NOBODYS

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_addresses_by_network(whole: Whole) -> None:
    six = await whole.network_of("2001:db8:7::/64", name="net/six ü")
    four = await whole.network_of("192.0.2.0/24", name="four")
    uuid = (await whole.made(networks=[{"uuid": six}, {"uuid": four}, {"uuid": four}])).uuid
    vifs = await whole.vifs(uuid)
    expected: dict[str, list[Any]] = {}
    for vif in vifs:
        entries = [{"addr": ip.address, "version": ip.version} for ip in vif.fixed_ips]
        expected.setdefault(vif.network_name, []).extend(entries)
    assert {name: len(entries) for name, entries in expected.items()} == {"net/six ü": 1, "four": 2}
    assert (await whole.api("GET", f"/servers/{uuid}/ips")).json == {"addresses": expected}
    assert (await whole.api("GET", f"/servers/{uuid}/ips/four")).json == {"four": expected["four"]}
    for label in ("five", "fou", "", "%00"):
        reply = await whole.api("GET", f"/servers/{uuid}/ips/{label}")
        assert reply.status == 404
    await whole.gone(uuid)


async def test_ports(whole: Whole) -> None:
    four = await whole.network_of("192.0.2.0/24", name="ports")
    uuid = (await whole.made(networks=[{"uuid": four, "tag": "front"}])).uuid
    (vif,) = await whole.vifs(uuid)
    (ip,) = vif.fixed_ips
    expected = {
        "net_id": four,
        "port_id": vif.port_id,
        "mac_addr": vif.mac,
        "port_state": "ACTIVE",
        "fixed_ips": [{"subnet_id": ip.subnet_id, "ip_address": ip.address}],
    }
    path = f"/servers/{uuid}/os-interface"
    assert (await whole.api("GET", path, v=69)).json == {"interfaceAttachments": [expected]}
    expected["tag"] = "front"
    assert (await whole.api("GET", path, v=70)).json == {"interfaceAttachments": [expected]}
    reply = await whole.api("GET", f"{path}/{vif.port_id}", v=70)
    assert reply.json == {"interfaceAttachment": expected}
    mine = await whole.new("port", network_id=four)
    for port in (mine["id"], NOBODYS, "x"):
        reply = await whole.api("GET", f"{path}/{port}", v=70)
        assert (reply.status, port in reply.fault) == (404, True)
    await whole.gone(uuid)


@pytest.mark.capability("API-56")
async def test_counters_of_a_guest(whole: Whole) -> None:
    instance = await whole.made(networks=[{"uuid": await whole.private()}], config_drive=True)
    uuid = instance.uuid
    path = f"/servers/{uuid}/diagnostics"
    (vif,) = await whole.vifs(uuid)
    found = (await whole.api("GET", path, v=48, who="admin")).json
    assert (found["state"], found["driver"], found["config_drive"]) == ("running", "fake", True)
    assert POWER_NAMES[instance.power_state] == found["state"]
    assert (found["num_cpus"], found["num_nics"], found["num_disks"]) == (1, 1, 1)
    assert found["memory_details"] == {"maximum": 128, "used": None}
    assert found["cpu_details"] == [{"id": 0, "time": None, "utilisation": None}]
    assert found["nic_details"][0]["mac_address"] == vif.mac
    assert found["nic_details"][0]["rx_rate"] is None
    assert isinstance(found["uptime"], int)
    older = (await whole.api("GET", path, v=47, who="admin")).json
    assert older == {"memory": 128 * 1024}
    for who in ("member", "manager", "reader"):
        reply = await whole.api("GET", path, v=48, who=who)
        assert (reply.status, "os-server-diagnostics" in reply.fault) == (403, True)
    await whole.act(uuid, "os-stop")
    assert (await whole.settled(uuid)).vm_state == "stopped"
    reply = await whole.api("GET", path, v=48, who="admin")
    assert (reply.status, uuid in reply.fault) == (409, True)
    await whole.gone(uuid)


@pytest.mark.capability("API-55", "API-56")
async def test_before_it_runs(whole: Whole) -> None:
    """Not ready while it has no host; nothing to be seen while its guest is not there."""
    with whole.held("prepare"):
        uuid = (await whole.create()).json["server"]["id"]
        async with asyncio.timeout(30):
            while (await whole.instance(uuid)).task_state != "spawning":
                await asyncio.sleep(0.005)
        reply = await whole.act(uuid, "os-getConsoleOutput", {})
        assert (reply.status, uuid in reply.fault) == (404, True)
        reply = await whole.api("GET", f"/servers/{uuid}/diagnostics", v=48, who="admin")
        assert (reply.status, uuid in reply.fault) == (409, True)
        assert (await whole.api("GET", f"/servers/{uuid}/ips")).json == {"addresses": {}}
        shown = await whole.shown(uuid, who="member")
        assert (shown["status"], shown["OS-EXT-STS:power_state"], shown["progress"]) == ("BUILD", 0, 0)
    await whole.settled(uuid)
    nowhere = (await whole.made(who="admin", availability_zone="nova:moon")).uuid
    for reply in (
        await whole.act(nowhere, "os-getConsoleOutput", {}, who="admin"),
        await whole.api("GET", f"/servers/{nowhere}/diagnostics", v=48, who="admin"),
    ):
        assert (reply.status, reply.fault) == (409, f"Instance {nowhere} is not ready")


@pytest.mark.capability("API-55")
async def test_the_console_of_a_guest(whole: Whole) -> None:
    uuid = (await whole.made()).uuid
    output = (await whole.act(uuid, "os-getConsoleOutput", {"length": 50})).json["output"]
    lines = output.split("\n")
    assert lines[0] == f"fake guest {uuid}"
    assert lines[1].startswith("started 1 times")
    assert (await whole.act(uuid, "os-getConsoleOutput", {"length": 1})).json == {"output": "login: "}
    await whole.act(uuid, "reboot", {"type": "HARD"})
    await whole.settled(uuid)
    output = (await whole.act(uuid, "os-getConsoleOutput", {})).json["output"]
    assert "started 2 times" in output
    for who, status in (("reader", 403), ("other", 404)):
        assert (await whole.act(uuid, "os-getConsoleOutput", {}, who=who)).status == status
    await whole.gone(uuid)


async def test_a_host_that_does_not_answer(whole: Whole) -> None:
    """503: the same request may succeed later; lists and the server itself need no host."""
    uuid = (await whole.made()).uuid
    agents = whole.cloud.hosts._hands
    agent = agents.pop(whole.host)
    try:
        for reply in (
            await whole.act(uuid, "os-getConsoleOutput", {}),
            await whole.api("GET", f"/servers/{uuid}/diagnostics", v=48, who="admin"),
        ):
            assert (reply.status, list(reply.json)) == (503, ["serviceUnavailable"])
            assert whole.host in reply.fault
        assert (await whole.shown(uuid))["status"] == "ACTIVE"
        assert (await whole.api("GET", "/servers/detail", v=104)).status == 200
    finally:
        agents[whole.host] = agent
    whole.driver.faults.add("console_output", Unreachable("asleep"))
    assert (await whole.act(uuid, "os-getConsoleOutput", {})).status == 503
    assert (await whole.act(uuid, "os-getConsoleOutput", {})).status == 200
    await whole.gone(uuid)


@pytest.mark.capability("API-7", "API-15", "API-17", "API-19", "API-20")
async def test_of_two_requests_at_a_time_one_wins(whole: Whole) -> None:
    uuid = (await whole.made()).uuid
    for action, argument, vm in (
        ("os-stop", None, "stopped"),
        ("os-start", None, "active"),
        ("reboot", {"type": "SOFT"}, "active"),
        ("os-stop", None, "stopped"),
        ("reboot", {"type": "HARD"}, "active"),
    ):
        verb = {"os-stop": "request_shutdown", "os-start": "start"}.get(action, "start")
        if argument == {"type": "SOFT"}:
            verb = "request_reboot"
        with whole.held(verb):
            replies = await asyncio.gather(*(whole.act(uuid, action, argument) for _ in range(5)))
        statuses = sorted(reply.status for reply in replies)
        if argument == {"type": "HARD"}:  # a second hard reboot is taken while one is under way
            assert statuses[0] == 202 and set(statuses) <= {202, 409}
        else:
            assert statuses == [202, 409, 409, 409, 409]
        now = await whole.settled(uuid)
        assert (now.vm_state, now.task_state, now.power_state) == (vm, None, 4 if vm == "stopped" else 1)
    await whole.gone(uuid)


@pytest.mark.capability("API-7")
async def test_a_delete_wins_over_running_work(whole: Whole) -> None:
    uuid = (await whole.made()).uuid
    with whole.held("request_shutdown"):
        assert (await whole.act(uuid, "os-stop")).status == 202
        assert (await whole.api("DELETE", f"/servers/{uuid}")).status == 204
        reply = await whole.act(uuid, "os-start")
        assert reply.status in (404, 409)
    assert (await whole.settled(uuid)).vm_state == "deleted"
