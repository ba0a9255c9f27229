"""What other services tell compute of servers, and what comes of it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from kilonova.testing.embedded import holdings
from tests.api.compute.asgi import Reply
from tests.api.compute.conftest import Whole
from tests.api.compute.whole_cloud import NOBODYS

pytestmark = pytest.mark.asyncio(loop_scope="module")

SINCE = {
    "network-changed": 1,
    "network-vif-plugged": 1,
    "network-vif-unplugged": 1,
    "network-vif-deleted": 1,
    "volume-extended": 51,
    "power-update": 76,
    "accelerator-request-bound": 82,
    "volume-reimaged": 93,
}
TAGGED = {"volume-extended", "power-update", "accelerator-request-bound", "volume-reimaged"}


async def tell(whole: Whole, *events: dict[str, Any], v: int = 104, who: str = "service") -> Reply:
    return await whole.api("POST", "/os-server-external-events", {"events": list(events)}, v=v, who=who)


@contextmanager
def silent_network(whole: Whole) -> Iterator[None]:
    """The network service wires ports, and tells nobody."""
    hears = whole.cloud.network.on_event

    async def nothing(*words: str) -> None:
        pass

    whole.cloud.network.on_event = nothing
    try:
        yield
    finally:
        whole.cloud.network.on_event = hears


async def waiting(whole: Whole) -> tuple[str, str]:
    """A server that waits for its port to be wired, and the port."""
    uuid = (await whole.create(networks="auto")).json["server"]["id"]
    async with asyncio.timeout(30):
        while True:
            opened = await whole.cloud.db.read(_states)
            if opened.get(uuid) == "waiting":
                break
            await asyncio.sleep(0.005)
    (vif,) = await whole.vifs(uuid)
    return uuid, vif.port_id


def _states(tx: Any) -> dict[str, str]:
    from kilonova.journal import attention

    return {action.instance_uuid: action.state for action in attention.open_actions(tx)}


async def test_a_boot_waits_for_its_port_and_goes_on(whole: Whole) -> None:
    with silent_network(whole):
        uuid, port = await waiting(whole)
        assert (await whole.instance(uuid)).vm_state == "building"
        # of another port, or another kind: it goes on waiting
        other = {"name": "network-vif-plugged", "server_uuid": uuid, "tag": NOBODYS}
        unplugged = {"name": "network-vif-unplugged", "server_uuid": uuid, "tag": port}
        reply = await tell(whole, other, unplugged)
        assert (reply.status, [each["code"] for each in reply.json["events"]]) == (200, [200, 200])
        assert (await whole.instance(uuid)).vm_state == "building"
        event = {"name": "network-vif-plugged", "server_uuid": uuid, "tag": port, "status": "completed"}
        reply = await tell(whole, event)
        assert (reply.status, reply.json) == (200, {"events": [{**event, "code": 200}]})
        assert (await whole.settled(uuid)).vm_state == "active"
    await whole.gone(uuid)


async def test_a_port_that_could_not_be_wired(whole: Whole) -> None:
    """The event is taken (completed); what it says, that wiring failed, ends the boot."""
    with silent_network(whole):
        uuid, port = await waiting(whole)
        event = {"name": "network-vif-plugged", "server_uuid": uuid, "tag": port, "status": "failed"}
        reply = await tell(whole, event)
        assert reply.json == {"events": [{**event, "status": "completed", "code": 200}]}
        assert (await whole.settled(uuid)).vm_state == "error"
    assert port in (await whole.shown(uuid))["fault"]["message"]
    assert (await holdings(whole.cloud, uuid)).nothing
    await whole.gone(uuid)


async def test_a_changed_port_is_looked_at_again(whole: Whole) -> None:
    uuid = (await whole.made(networks="auto")).uuid
    (vif,) = await whole.vifs(uuid)
    (ip,) = vif.fixed_ips
    with silent_network(whole):
        body = {"port": {"fixed_ips": [{"subnet_id": ip.subnet_id, "ip_address": "10.11.77.77"}]}}
        reply = await whole.network("PUT", f"/ports/{vif.port_id}", body, who="admin")
        assert reply.status == 200, reply.content
        assert (await whole.shown(uuid))["addresses"]["private"][0]["addr"] == ip.address
        await tell(whole, {"name": "network-changed", "server_uuid": uuid, "tag": vif.port_id})
        assert (await whole.shown(uuid))["addresses"]["private"][0]["addr"] == "10.11.77.77"
        assert (await whole.network("DELETE", f"/ports/{vif.port_id}", who="admin")).status == 204
        await tell(whole, {"name": "network-vif-deleted", "server_uuid": uuid, "tag": vif.port_id})
        assert (await whole.shown(uuid))["addresses"] == {}
    await whole.gone(uuid)


async def test_the_power_that_somebody_saw_change(whole: Whole) -> None:
    """The host is asked: its word counts, not the event's."""
    uuid = (await whole.made()).uuid
    event = {"name": "power-update", "server_uuid": uuid, "tag": "POWER_OFF"}
    assert (await tell(whole, event)).status == 200
    await whole.quiet()
    assert (await whole.instance(uuid)).vm_state == "active"  # it runs
    whole.driver.guest_file.put(uuid, 4)  # off, and the hypervisor did not say so
    assert (await tell(whole, event)).status == 200
    now = await whole.settled(uuid)
    assert (now.vm_state, now.power_state) == ("stopped", 4)
    actions = await whole.api("GET", f"/servers/{uuid}/os-instance-actions")
    assert [each["action"] for each in actions.json["instanceActions"]] == ["stop", "create"]
    await whole.gone(uuid)


@pytest.mark.capability("API-124")
async def test_each_event_has_its_own_code(whole: Whole) -> None:
    placed = (await whole.made()).uuid
    nowhere = (await whole.made(who="admin", availability_zone="nova:moon")).uuid
    gone = (await whole.made()).uuid
    await whole.gone(gone)
    changed = {"name": "network-changed"}
    events = [
        {**changed, "server_uuid": placed},
        {**changed, "server_uuid": NOBODYS, "tag": "t", "status": "completed"},
        {**changed, "server_uuid": gone},
        {**changed, "server_uuid": nowhere, "status": "in-progress"},
        {"name": "volume-extended", "server_uuid": placed},
        {"name": "volume-extended", "server_uuid": nowhere},
        {"name": "volume-extended", "server_uuid": nowhere, "tag": NOBODYS},
        {"name": "volume-extended", "server_uuid": placed, "tag": NOBODYS},
    ]
    reply = await tell(whole, *events)
    assert reply.status == 207
    answered = reply.json["events"]
    assert [each["code"] for each in answered] == [200, 404, 404, 422, 400, 400, 422, 200]
    assert [each["status"] for each in answered] == ["completed", *["failed"] * 6, "completed"]
    assert [each.get("tag") for each in answered] == [event.get("tag") for event in events]
    assert [each["server_uuid"] for each in answered] == [event["server_uuid"] for event in events]
    for name in ("x-compute-request-id", "x-openstack-request-id"):
        assert reply.headers[name].startswith("req-")


@pytest.mark.capability("API-124")
@pytest.mark.parametrize("name", SINCE)
async def test_names_and_since_when(whole: Whole, name: str) -> None:
    first = SINCE[name]
    uuid = await _one(whole)
    event = {"name": name, "server_uuid": uuid, "tag": "x"}
    assert (await tell(whole, event, v=first)).status == 200
    if first > 1:
        reply = await tell(whole, event, v=first - 1)
        assert (reply.status, name in reply.fault) == (400, True)
    del event["tag"]
    reply = await tell(whole, event)
    code = 400 if name in TAGGED else 200
    assert (reply.status, reply.json["events"][0]["code"]) == (200 if code == 200 else 207, code)


_kept: list[str] = []


async def _one(whole: Whole) -> str:
    if not _kept:
        _kept.append((await whole.made()).uuid)
    return _kept[0]


async def test_many_at_a_time(whole: Whole) -> None:
    uuid = await _one(whole)
    events = [{"name": "network-vif-plugged", "server_uuid": uuid, "tag": str(n)} for n in range(300)]
    reply = await tell(whole, *events)
    assert (reply.status, len(reply.json["events"])) == (200, 300)


@pytest.mark.parametrize(
    "event",
    [
        {"name": "fly", "server_uuid": NOBODYS},
        {"name": "", "server_uuid": NOBODYS},
        {"name": None, "server_uuid": NOBODYS},
        {"name": "network-changed"},
        {"server_uuid": NOBODYS},
        {"name": "network-changed", "server_uuid": "x"},
        {"name": "network-changed", "server_uuid": None},
        {"name": "network-changed", "server_uuid": NOBODYS, "status": "done"},
        {"name": "network-changed", "server_uuid": NOBODYS, "status": None},
        {"name": "network-changed", "server_uuid": NOBODYS, "tag": 1},
        {"name": "network-changed", "server_uuid": NOBODYS, "tag": "x" * 256},
        {"name": "network-changed", "server_uuid": NOBODYS, "colour": "red"},
        "network-changed",
        None,
    ],
)
async def test_events_that_are_wrong(whole: Whole, event: Any) -> None:
    """One wrong one, and none is taken."""
    good = {"name": "network-changed", "server_uuid": await _one(whole)}
    reply = await tell(whole, good, event)
    assert (reply.status, "events" in reply.fault) == (400, True)


@pytest.mark.parametrize("body", [{}, {"events": []}, {"events": None}, {"events": {}}, {"event": []}])
async def test_bodies_that_are_wrong(whole: Whole, body: Any) -> None:
    reply = await whole.api("POST", "/os-server-external-events", body, v=104, who="service")
    assert (reply.status, "event" in reply.fault) == (400, True)


@pytest.mark.parametrize("who", ["member", "manager", "reader", "nobody", "other"])
async def test_users_tell_nothing(whole: Whole, who: str) -> None:
    reply = await tell(whole, {"name": "network-changed", "server_uuid": await _one(whole)}, who=who)
    assert (reply.status, "os-server-external-events" in reply.fault) == (403, True)


async def test_administrators_may(whole: Whole) -> None:
    event = {"name": "network-changed", "server_uuid": await _one(whole)}
    assert (await tell(whole, event, who="admin")).status == 200
