"""Services over HTTP: their fields by microversion; enabling, disabling, forcing down and deleting them."""

from __future__ import annotations

from typing import Any

import pytest

from kilonova.clock import iso_micro
from kilonova.db import hosts
from tests.api.compute.small_cloud import MEMBER, SmallCloud, bands, check_keys, cloud

__all__ = ["cloud"]  # a fixture

PATH = "/os-services"
NOBODY = "99999999-0000-4000-8000-000000000000"


async def listed(cloud: SmallCloud, query: str = "", version: int = 69) -> list[Any]:
    return list((await cloud.get(f"{PATH}{query}", version=version))["services"])


async def only(cloud: SmallCloud, version: int = 69) -> Any:
    (service,) = await listed(cloud, "?binary=nova-compute", version)
    return service


async def test_each_microversion_has_its_own_keys(cloud: SmallCloud) -> None:
    host = await cloud.host("h1")
    for version in bands("os-services.list", "os-services.update"):
        check_keys("os-services.list", version, await cloud.get(PATH, version=version))
        if version < 53:
            path, body = "/disable-log-reason", {"host": "h1", "binary": "nova-compute"}
            body["disabled_reason"] = "why"
        else:
            path, body = f"/{host.service_uuid}", {"status": "disabled", "disabled_reason": "why"}
        changed = await cloud("PUT", PATH + path, body, version=version)
        assert changed.status == 200
        if version >= 53:
            check_keys("os-services.update", version, changed.json)
        else:
            assert changed.json == {"service": {**body, "status": "disabled"}}


async def test_a_service_is_shown_as_it_is(cloud: SmallCloud) -> None:
    host = await cloud.host("h1")
    assert await only(cloud) == {
        "id": host.service_uuid,
        "binary": "nova-compute",
        "host": "h1",
        "zone": "nova",
        "status": "enabled",
        "state": "up",
        "updated_at": iso_micro(cloud.clock.now()),
        "disabled_reason": None,
        "forced_down": False,
    }
    assert (await only(cloud, 52))["id"] == host.id
    controllers = [one for one in await listed(cloud) if one["binary"] != "nova-compute"]
    assert [(one["binary"], one["host"], one["zone"], one["state"]) for one in controllers] == [
        ("nova-conductor", "controller", "internal", "up"),
        ("nova-scheduler", "controller", "internal", "up"),
    ]
    assert len({one["id"] for one in await listed(cloud, version=1)}) == 3


@pytest.mark.capability("API-135")
async def test_lists_are_filtered(cloud: SmallCloud) -> None:
    for name in ("h1", "h2"):
        await cloud.host(name)

    async def found(query: str) -> list[tuple[str, str]]:
        return [(one["host"], one["binary"]) for one in await listed(cloud, query)]

    assert await found("?host=h2") == [("h2", "nova-compute")]
    assert await found("?binary=nova-compute") == [("h1", "nova-compute"), ("h2", "nova-compute")]
    assert await found("?host=controller&binary=nova-scheduler") == [("controller", "nova-scheduler")]
    assert await found("?host=h1&binary=nova-scheduler") == []
    assert await found("?host=h") == []
    assert len(await found("?host=&binary=")) == 4


async def test_a_host_that_is_silent_is_down(cloud: SmallCloud) -> None:
    await cloud.host("h1")
    cloud.clock.advance(60)
    assert (await only(cloud))["state"] == "up"
    cloud.clock.advance(0.001)
    assert (await only(cloud))["state"] == "down"
    await cloud.db.write(lambda tx: hosts.heartbeat(tx, "h1", cloud.clock.now()))
    assert (await only(cloud))["state"] == "up"
    cloud.option("service_down_time", 5)
    cloud.clock.advance(6)
    assert (await only(cloud))["state"] == "down"


async def test_a_service_is_disabled_and_enabled(cloud: SmallCloud) -> None:
    path = f"{PATH}/{(await cloud.host('h1')).service_uuid}"
    body = {"status": "disabled", "disabled_reason": "two fans"}
    changed = (await cloud("PUT", path, body, version=53)).json["service"]
    assert (changed["status"], changed["disabled_reason"], changed["state"]) == ("disabled", "two fans", "up")
    assert changed == await only(cloud)
    assert cloud.scheduler.forgotten == 1
    # Without a reason the old one is not kept.
    changed = (await cloud("PUT", path, {"status": "disabled"}, version=53)).json["service"]
    assert changed["disabled_reason"] is None
    changed = (
        await cloud("PUT", path.upper().replace("/OS-SERVICES", PATH), {"status": "enabled"}, version=53)
    ).json["service"]
    assert (changed["status"], changed["disabled_reason"]) == ("enabled", None)
    assert cloud.scheduler.forgotten == 3


@pytest.mark.capability("API-137")
async def test_placement_is_told_who_is_disabled(cloud: SmallCloud) -> None:
    host = await cloud.host("h1")
    told = {(host.compute_id, "COMPUTE_STATUS_DISABLED")}
    path = f"{PATH}/{host.service_uuid}"
    named = {"host": "h1", "binary": "nova-compute"}
    assert (await cloud("PUT", path, {"status": "disabled"}, version=53)).status == 200
    assert cloud.placement.traits == told
    assert (await cloud("PUT", f"{PATH}/enable", named, version=52)).status == 200
    assert cloud.placement.traits == set()
    assert (await cloud("PUT", f"{PATH}/disable", named, version=52)).status == 200
    assert (await cloud("PUT", path, {"forced_down": True}, version=53)).status == 200
    assert cloud.placement.traits == told
    cloud.placement.broken = True  # it hears of it when the host reports
    assert (await cloud("PUT", path, {"status": "enabled"}, version=53)).status == 200
    assert (await only(cloud))["status"] == "enabled"


async def test_a_service_is_forced_down(cloud: SmallCloud) -> None:
    path = f"{PATH}/{(await cloud.host('h1')).service_uuid}"
    changed = (await cloud("PUT", path, {"forced_down": "true"}, version=53)).json["service"]
    assert (changed["forced_down"], changed["state"], changed["status"]) == (True, "down", "enabled")
    await cloud.db.write(lambda tx: hosts.heartbeat(tx, "h1", cloud.clock.now()))
    assert (await only(cloud))["state"] == "down"  # whatever its agent says
    both = {"forced_down": False, "status": "disabled"}
    changed = (await cloud("PUT", path, both, version=53)).json["service"]
    assert (changed["forced_down"], changed["state"], changed["status"]) == (False, "up", "disabled")


async def test_verbs_of_old_microversions(cloud: SmallCloud) -> None:
    await cloud.host("h1")
    named = {"host": "h1", "binary": "nova-compute"}
    for verb, more, shown in (
        ("disable", {}, {"status": "disabled"}),
        ("enable", {}, {"status": "enabled"}),
        ("disable-log-reason", {"disabled_reason": "why"}, {"status": "disabled", "disabled_reason": "why"}),
        ("force-down", {"forced_down": True}, {"forced_down": True}),
    ):
        reply = await cloud("PUT", f"{PATH}/{verb}", {**named, **more}, version=52)
        assert (reply.status, reply.json) == (200, {"service": {**named, **shown}})
        service = await only(cloud)
        assert {key: service[key] for key in shown} == shown
    for verb, more, version, status in (
        ("force-down", {"forced_down": True}, 10, 400),
        ("force-down", {}, 10, 404),
        ("force-down", {}, 11, 400),
        ("force-down", {"forced_down": "perhaps"}, 11, 400),
        ("disable-log-reason", {}, 52, 400),
        ("disable-log-reason", {"disabled_reason": ""}, 52, 400),
        ("disable-log-reason", {"disabled_reason": "x" * 256}, 52, 400),
        ("explode", {}, 52, 404),
        ("enable", {"host": "nobody"}, 52, 404),
        ("enable", {"binary": "nova-scheduler"}, 52, 404),
        ("enable", {"host": "controller", "binary": "nova-scheduler"}, 52, 404),
        ("enable", {"host": ""}, 52, 400),
        ("enable", {"host": "a b"}, 52, 400),
        ("enable", {"host": None}, 52, 400),
        ("enable", {"binary": 5}, 52, 400),
        ("enable", {"x": 1}, 52, 400),
    ):
        reply = await cloud("PUT", f"{PATH}/{verb}", {**named, **more}, version=version)
        assert (reply.status, bool(reply.message)) == (status, True), (verb, more, version, reply.raw)
    assert (await cloud("PUT", f"{PATH}/enable", {"host": "h1"}, version=52)).status == 400
    assert (await only(cloud))["status"] == "disabled"  # nothing of that had an effect


async def test_bad_updates_are_refused(cloud: SmallCloud) -> None:
    host = await cloud.host("h1")
    controller = next(one for one in await listed(cloud) if one["binary"] == "nova-conductor")
    for identity, body, status in (
        (host.service_uuid, {}, 400),
        (host.service_uuid, {"status": "broken"}, 400),
        (host.service_uuid, {"status": None}, 400),
        (host.service_uuid, {"status": "enabled", "disabled_reason": "why"}, 400),
        (host.service_uuid, {"disabled_reason": "why"}, 400),
        (host.service_uuid, {"status": "disabled", "disabled_reason": ""}, 400),
        (host.service_uuid, {"status": "disabled", "disabled_reason": 7}, 400),
        (host.service_uuid, {"status": "disabled", "disabled_reason": "x" * 256}, 400),
        (host.service_uuid, {"status": "disabled", "disabled_reason": "\u0000"}, 400),
        (host.service_uuid, {"forced_down": "perhaps"}, 400),
        (host.service_uuid, {"forced_down": None}, 400),
        (host.service_uuid, {"status": "enabled", "host": "h1"}, 400),
        (controller["id"], {"status": "disabled"}, 400),
        (NOBODY, {"status": "disabled"}, 404),
        ("disable", {"host": "h1", "binary": "nova-compute"}, 400),
        ("disable", {"status": "disabled"}, 400),
        (str(host.id), {"status": "disabled"}, 400),
    ):
        reply = await cloud("PUT", f"{PATH}/{identity}", body, version=53)
        assert (reply.status, bool(reply.message)) == (status, True), (identity, body, reply.raw)
    for raw in (b"", b"[]", b"{", b"null", b'{"status": "enabled", "status": "disabled"}'):
        assert (await cloud("PUT", f"{PATH}/{host.service_uuid}", raw=raw, version=53)).status == 400
    assert (await only(cloud))["status"] == "enabled"
    assert (await cloud("GET", f"{PATH}?x=1", version=74)).status == 200
    assert (await cloud("GET", f"{PATH}?x=1", version=75)).status == 400
    assert (await cloud("GET", f"{PATH}/{host.service_uuid}", version=75)).status == 404


async def test_a_service_is_deleted_with_its_node_and_provider(cloud: SmallCloud) -> None:
    first, second = await cloud.host("h1"), await cloud.host("h2")
    reply = await cloud("DELETE", f"{PATH}/{first.service_uuid}", version=53)
    assert (reply.status, reply.raw) == (204, b"")
    assert (await cloud("DELETE", f"{PATH}/{first.service_uuid}", version=53)).status == 404
    assert [one.uuid for one in cloud.placement.found] == [second.compute_id]
    assert [one["host"] for one in await listed(cloud, "?binary=nova-compute")] == ["h2"]
    assert len((await cloud.get("/os-hypervisors"))["hypervisors"]) == 1
    assert (await cloud("DELETE", f"{PATH}/{second.id}", version=52)).status == 204
    assert await listed(cloud, "?binary=nova-compute") == []
    assert cloud.scheduler.forgotten == 2


async def test_a_service_with_servers_stays(cloud: SmallCloud) -> None:
    path = f"{PATH}/{(await cloud.host('h1')).service_uuid}"
    server = await cloud.server(host="h1")
    refused = await cloud("DELETE", path, version=53)
    assert refused.status == 409 and "hosting instances" in refused.message
    assert len(cloud.placement.found) == 1
    await cloud.gone(server)
    assert (await cloud("DELETE", path, version=53)).status == 204
    on_its_way = await cloud.host("h2", used=1)  # booked, and no server says yet that it is there
    refused = await cloud("DELETE", f"{PATH}/{on_its_way.service_uuid}", version=53)
    assert refused.status == 409 and "allocations" in refused.message
    assert (await only(cloud))["host"] == "h2"


async def test_bad_deletions_are_refused(cloud: SmallCloud) -> None:
    host = await cloud.host("h1")
    controller = (await listed(cloud))[0]
    for identity, version, status in (
        (NOBODY, 53, 404),
        ("x", 53, 400),
        (str(host.id), 53, 400),
        (host.service_uuid, 52, 400),
        ("٣", 52, 400),
        ("-1", 52, 400),
        ("9" * 40, 52, 404),
        (controller["id"], 53, 409),
    ):
        reply = await cloud("DELETE", f"{PATH}/{identity}", version=version)
        assert (reply.status, bool(reply.message)) == (status, True), (identity, reply.raw)
    assert len(await listed(cloud)) == 3


async def test_only_administrators_come_near(cloud: SmallCloud) -> None:
    uuid = (await cloud.host("h1")).service_uuid
    for method, path, body in (
        ("GET", PATH, None),
        ("PUT", f"{PATH}/{uuid}", {"status": "disabled"}),
        ("DELETE", f"{PATH}/{uuid}", None),
    ):
        assert (await cloud(method, path, body, version=69, token=MEMBER)).status == 403
        assert (await cloud(method, path, body, version=69, token="nobody")).status == 401
    assert (await only(cloud))["status"] == "enabled"
