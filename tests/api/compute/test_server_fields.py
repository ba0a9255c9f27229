"""Every answer about servers has, in every microversion, exactly the keys that Nova's has; every body and
query takes exactly the fields that Nova's does.
"""

from __future__ import annotations

from typing import Any

import pytest

from kilonova.clock import SECOND
from kilonova.db import flavors
from kilonova.model.instance import Fault, Instance
from kilonova.model.volume import Attachment
from kilonova.operations.cloud import Cloud
from tests.api.compute import facts
from tests.api.compute.asgi import Api
from tests.api.compute.conftest import PROJECT
from tests.api.compute.parts import IMAGE, NETWORK, PORT, VIF, server


async def populated(cloud: Cloud) -> tuple[Instance, Instance]:
    """A running server with something in every field, and one that failed."""
    await cloud.db.write(lambda tx: flavors.set_extra_specs(tx, "1", {"hw:cpu_policy": "shared"}, 1))
    running = await server(
        cloud,
        PROJECT,
        metadata={"a": "b"},
        tags=("t",),
        key_name="key",
        user_data="dXNlcg==",
        locked="owner",
        locked_reason="because",
        config_drive=True,
        display_description="text",
        image={"id": IMAGE, "properties": {"hw_disk_bus": "virtio"}},
        hints={"group": "x"},
        access_ip_v4="10.1.1.1",
        volumes=(Attachment(id=PORT, volume_id=IMAGE, attachment_id=NETWORK, device="/dev/vdb", tag="data"),),
    )
    fault = Fault(code=500, message="it broke", created=5 * SECOND, details="a long story")
    failed = await server(cloud, PROJECT, vm_state="error", fault=fault)
    return running, failed


SHOW_EDGES = facts.edges(facts.facts("response")["servers.show"])


@pytest.mark.parametrize("version", SHOW_EDGES)
async def test_show(api: Api, cloud: Cloud, version: int) -> None:
    answers = []
    for each in await populated(cloud):
        reply = await api("GET", f"/servers/{each.uuid}", v=version, who="admin")
        assert reply.status == 200
        answers.append(reply.json)
    facts.check_answer("servers.show", version, answers, _hints(version, "server"))


def _hints(version: int, prefix: str) -> frozenset[str]:
    """Of the words that hints may have, these servers have only ``group``."""
    others = [
        "different_host",
        "same_host",
        "query",
        "target_cell",
        "different_cell",
        "build_near_host_ip",
        "cidr",
    ]
    gone = {f"{prefix}.scheduler_hints.{word}" for word in others}
    return frozenset(gone)


DETAIL_EDGES = facts.edges(facts.facts("response")["servers.detail"])


@pytest.mark.parametrize("version", DETAIL_EDGES)
async def test_detail(api: Api, cloud: Cloud, version: int) -> None:
    await populated(cloud)
    reply = await api("GET", "/servers/detail?all_tenants=1&limit=2", v=version, who="admin")
    assert reply.status == 200
    answer = reply.json
    absent = _hints(version, "servers[]")
    if version >= 69:
        for each in answer["servers"]:
            del each["image"]["links"]  # shown as before; Nova's schema of lists says it only below 2.69
        absent |= {"servers[].image.links"}
    facts.check_answer("servers.detail", version, [answer], absent)


@pytest.mark.parametrize("version", [1, 68, 69, 104])
async def test_index(api: Api, cloud: Cloud, version: int) -> None:
    await populated(cloud)
    reply = await api("GET", "/servers?limit=2", v=version)
    # status is of servers in cells that do not answer, and here is no such cell
    facts.check_answer("servers.list", version, [reply.json], frozenset({"servers[].status"}))


@pytest.mark.parametrize("version", facts.edges(facts.facts("response")["servers.update"]))
async def test_update(api: Api, cloud: Cloud, version: int) -> None:
    answers = []
    for each in await populated(cloud):
        reply = await api("PUT", f"/servers/{each.uuid}", {"server": {"name": "new"}}, v=version, who="admin")
        assert reply.status == 200
        assert reply.json["server"]["name"] == "new"
        answers.append(reply.json)
    facts.check_answer("servers.update", version, answers, _hints(version, "server"))


ADMIN_ONLY = {
    "OS-EXT-SRV-ATTR:host": (1, 104),
    "OS-EXT-SRV-ATTR:instance_name": (1, 104),
    "OS-EXT-SRV-ATTR:hypervisor_hostname": (1, 104),
    "OS-EXT-SRV-ATTR:reservation_id": (3, 104),
    "OS-EXT-SRV-ATTR:launch_index": (3, 104),
    "OS-EXT-SRV-ATTR:hostname": (3, 89),
    "OS-EXT-SRV-ATTR:kernel_id": (3, 104),
    "OS-EXT-SRV-ATTR:ramdisk_id": (3, 104),
    "OS-EXT-SRV-ATTR:root_device_name": (3, 104),
    "OS-EXT-SRV-ATTR:user_data": (3, 104),
    "host_status": (16, 104),
}


@pytest.mark.parametrize("version", [1, 3, 16, 89, 90, 104])
async def test_what_only_administrators_are_shown(api: Api, cloud: Cloud, version: int) -> None:
    running, failed = await populated(cloud)
    hidden = {key for key, (first, last) in ADMIN_ONLY.items() if first <= version <= last}
    for path, key in ((f"/servers/{running.uuid}", "server"), ("/servers/detail", "servers")):
        seen = {}
        for who in ("member", "admin"):
            query = (
                "" if key == "server" else f"?all_tenants={int(who == 'admin')}&name={running.display_name}"
            )
            found = (await api("GET", path + query, v=version, who=who)).json[key]
            seen[who] = set(found if key == "server" else found[0])
        assert seen["admin"] - seen["member"] == hidden
        assert seen["member"] <= seen["admin"]
    faults = [
        (await api("GET", f"/servers/{failed.uuid}", v=version, who=who)).json["server"]["fault"]
        for who in ("member", "admin")
    ]
    assert "details" not in faults[0]
    assert faults[1]["details"] == "a long story"


@pytest.mark.parametrize("version", [1, 69, 70, 104])
async def test_interfaces_and_addresses(api: Api, cloud: Cloud, version: int) -> None:
    uuid = (await server(cloud, PROJECT)).uuid
    reply = await api("GET", f"/servers/{uuid}/os-interface", v=version)
    facts.check_answer("servers.os-interface.list", version, [reply.json])
    reply = await api("GET", f"/servers/{uuid}/os-interface/{PORT}", v=version)
    facts.check_answer("servers.os-interface.show", version, [reply.json])
    reply = await api("GET", f"/servers/{uuid}/ips", v=version)
    facts.check_answer("servers.ips.list", version, [reply.json])
    assert [entry["addr"] for entry in reply.json["addresses"]["private"]] == ["10.0.0.5", "fd00::5"]
    reply = await api("GET", f"/servers/{uuid}/ips/private", v=version)
    facts.check_answer("servers.ips.show", version, [reply.json])
    assert (await api("GET", f"/servers/{uuid}/ips/public", v=version)).status == 404
    assert (await api("GET", f"/servers/{uuid}/os-interface/{NETWORK}", v=version)).status == 404


async def test_diagnostics_in_both_forms(api: Api, cloud: Cloud) -> None:
    uuid = (await server(cloud, PROJECT)).uuid
    reply = await api("GET", f"/servers/{uuid}/diagnostics", v=48, who="admin")
    facts.check_answer("servers.diagnostics.show", 48, [reply.json])
    assert reply.json["num_cpus"] == reply.json["num_disks"] == reply.json["num_nics"] == 1
    reply = await api("GET", f"/servers/{uuid}/diagnostics", v=47, who="admin")
    assert reply.json == {
        "cpu0_time": 17,
        "memory": 65536,
        "vda_read": 1,
        "vda_read_req": 2,
        f"{VIF.devname}_rx": 5,
    }
    assert (await api("GET", f"/servers/{uuid}/diagnostics", v=48)).status == 403
    nowhere = await server(cloud, PROJECT, host=None)
    assert (await api("GET", f"/servers/{nowhere.uuid}/diagnostics", v=48, who="admin")).status == 409


@pytest.mark.capability("API-139")
@pytest.mark.parametrize("version", [1, 20, 21, 50, 51, 57, 58, 61, 62, 83, 84, 104])
async def test_instance_actions(api: Api, cloud: Cloud, version: int) -> None:
    uuid = (await server(cloud, PROJECT)).uuid
    request_id = (await api("POST", f"/servers/{uuid}/action", {"lock": None}, v=72)).headers[
        "x-compute-request-id"
    ]
    reply = await api(
        "GET", f"/servers/{uuid}/os-instance-actions" + ("?limit=1" if version >= 58 else ""), v=version
    )
    facts.check_answer("servers.os-instance-actions.list", version, [reply.json])
    path = f"/servers/{uuid}/os-instance-actions/{request_id}"
    reply = await api("GET", path, v=version, who="admin")
    facts.check_answer("servers.os-instance-actions.show", version, [reply.json])
    (event,) = reply.json["instanceAction"]["events"]
    assert (event["event"], event["result"]) == ("api_lock", "Success")
    mine = (await api("GET", path, v=version)).json["instanceAction"]
    assert ("events" in mine) is (version >= 51)
    for hidden in ("traceback", "host", "details"):
        assert not any(hidden in each for each in mine.get("events", []))
    assert (await api("GET", path, v=version, who="other")).status == 404
    assert (await api("GET", path[:-1] + "x", v=version)).status == 404


async def test_other_answers(api: Api, cloud: Cloud) -> None:
    uuid = (await server(cloud, PROJECT, metadata={"a": "b"}, tags=("t",))).uuid
    version = 104
    reply = await api("GET", f"/servers/{uuid}/metadata", v=version)
    facts.check_answer("servers.metadata.list", version, [reply.json])
    reply = await api("POST", f"/servers/{uuid}/metadata", {"metadata": {"c": "d"}}, v=version)
    facts.check_answer("servers.metadata.create", version, [reply.json])
    reply = await api("PUT", f"/servers/{uuid}/metadata/c", {"meta": {"c": "e"}}, v=version)
    facts.check_answer("servers.metadata.update", version, [reply.json])
    reply = await api("GET", f"/servers/{uuid}/metadata/c", v=version)
    facts.check_answer("servers.metadata.show", version, [reply.json])
    reply = await api("PUT", f"/servers/{uuid}/metadata", {"metadata": {"z": "y"}}, v=version)
    facts.check_answer("servers.metadata.replace", version, [reply.json])
    reply = await api("GET", f"/servers/{uuid}/tags", v=version)
    facts.check_answer("servers.tags.list", version, [reply.json])
    reply = await api("POST", f"/servers/{uuid}/action", {"os-getConsoleOutput": {}}, v=version)
    facts.check_answer("servers.action.os-getConsoleOutput", version, [reply.json])
    reply = await api("GET", f"/servers/{uuid}/os-volume_attachments", v=version)
    assert reply.json == {"volumeAttachments": []}
    events = {"events": [{"name": "network-changed", "server_uuid": uuid, "tag": "x"}]}
    reply = await api("POST", "/os-server-external-events", events, v=version, who="service")
    facts.check_answer("os-server-external-events.create", version, [reply.json])
    reply = await api("GET", "/versions/v2.1", v=version)
    facts.check_answer("versions.show", version, [reply.json])


CREATE: dict[str, Any] = {"name": "n", "imageRef": IMAGE, "flavorRef": "1"}
DEVICE = {"source_type": "image", "destination_type": "local", "uuid": IMAGE, "boot_index": 0}
# A good value for each field of a body, by its dotted path.
GOOD: dict[str, Any] = {
    "server.adminPass": "secret",
    "server.metadata": {"a": "b"},
    "server.networks": [],
    "server.networks[].fixed_ip": {"uuid": NETWORK, "fixed_ip": "10.0.0.9"},
    "server.networks[].port": {"port": PORT},
    "server.networks[].uuid": {"uuid": NETWORK},
    "server.networks[].tag": {"uuid": NETWORK, "tag": "nic"},
    "server.OS-DCF:diskConfig": "AUTO",
    "server.accessIPv4": "10.0.0.1",
    "server.accessIPv6": "fd00::1",
    "server.personality": [{"path": "/a", "contents": "aGk="}],
    "server.availability_zone": "nova",
    "server.block_device_mapping_v2": [DEVICE],
    "server.block_device_mapping_v2[].delete_on_termination": {**DEVICE, "delete_on_termination": "true"},
    "server.block_device_mapping_v2[].boot_index": {**DEVICE, "boot_index": "0"},
    "server.block_device_mapping_v2[].device_name": {**DEVICE, "device_name": "/dev/vda"},
    "server.block_device_mapping_v2[].disk_bus": {**DEVICE, "disk_bus": "virtio"},
    "server.block_device_mapping_v2[].device_type": {**DEVICE, "device_type": "disk"},
    "server.block_device_mapping_v2[].guest_format": {**DEVICE, "guest_format": "ext4"},
    "server.block_device_mapping_v2[].tag": {**DEVICE, "tag": "root"},
    "server.block_device_mapping_v2[].volume_type": {**DEVICE, "volume_type": None},
    "server.config_drive": True,
    "server.min_count": "1",
    "server.max_count": 2,
    "server.return_reservation_id": "False",
    "server.security_groups": [{"name": "default"}],
    "server.user_data": "aGk=",
    "server.description": "text",
    "server.tags": ["a", "b"],
    "server.trusted_image_certificates": None,
    "server.host": "host1",
    "server.hypervisor_hostname": "host1",
    "server.hostname": "web",
    "os:scheduler_hints": {"same_host": NETWORK},
    "OS-SCH-HNT:scheduler_hints": {"different_host": [NETWORK]},
}
CREATE_FIELDS = facts.facts("body")["servers.create"]


def _body(path: str, version: int) -> dict[str, Any]:
    server_body = dict(CREATE)
    if version >= 37:
        server_body["networks"] = "none"
    if not path.startswith("server."):
        return {"server": server_body, path: GOOD[path]}
    name = path.removeprefix("server.")
    if "[]." in name:
        server_body[name.partition("[]")[0]] = [GOOD[path]]
    else:
        server_body[name] = GOOD[path]
    return {"server": server_body}


@pytest.mark.parametrize("path", GOOD)
async def test_create_takes_a_field_only_where_it_exists(api: Api, path: str) -> None:
    field = CREATE_FIELDS[path]
    for version in facts.edges({path: field}):
        reply = await api("POST", "/servers", _body(path, version), v=version, who="admin")
        expected = 202 if field.exists(version) else 400
        assert reply.status == expected, (version, reply.content)
        if expected == 400:
            assert "unknown field" in reply.fault
            assert path.rpartition(".")[2].partition("[]")[0] in reply.fault


@pytest.mark.parametrize("version", facts.edges(CREATE_FIELDS))
async def test_create_answers(api: Api, version: int) -> None:
    body = _body("server.metadata", version)
    reply = await api("POST", "/servers", body, v=version)
    assert reply.status == 202
    facts.check_answer("servers.create", version, [reply.json], frozenset({"reservation_id"}))
    body["server"]["return_reservation_id"] = True
    reply = await api("POST", "/servers", body, v=version)
    assert list(reply.json) == ["reservation_id"]
    assert reply.json["reservation_id"].startswith("r-")


UPDATES = {
    "server.name": "n",
    "server.OS-DCF:diskConfig": "MANUAL",
    "server.accessIPv4": "10.0.0.1",
    "server.accessIPv6": "fd00::1",
    "server.description": None,
    "server.hostname": "web",
    "server.pinned_availability_zone": None,
}


@pytest.mark.parametrize("path", UPDATES)
async def test_update_takes_a_field_only_where_it_exists(api: Api, cloud: Cloud, path: str) -> None:
    assert set(facts.facts("body")["servers.update"]) == {"server", *UPDATES}
    uuid = (await server(cloud, PROJECT)).uuid
    field = facts.facts("body")["servers.update"][path]
    for version in facts.edges({path: field}):
        body = {"server": {path.removeprefix("server."): UPDATES[path]}}
        reply = await api("PUT", f"/servers/{uuid}", body, v=version)
        assert reply.status == (200 if field.exists(version) else 400), reply.content


QUERIES = ["servers.list", "servers.detail"]


@pytest.mark.parametrize("route", QUERIES)
@pytest.mark.parametrize("version", [74, 75, 104])
async def test_unknown_query_keys_are_refused_from_2_75_on(api: Api, route: str, version: int) -> None:
    path = "/servers" if route == "servers.list" else "/servers/detail"
    assert facts.strict_since(route) == 75
    reply = await api("GET", f"{path}?colour=red", v=version)
    assert reply.status == (400 if version >= 75 else 200)
    joined = {"block_device_mapping", "services", "metadata", "system_metadata", "info_cache", "pci_devices"}
    for key, field in facts.facts("query")[route].items():
        if key == "*":
            continue
        values = {"limit": "1", "sort_key": "uuid", "sort_dir": "asc", "status": "active"}
        is_time = key.startswith("changes") or key.endswith("_at")
        value = values.get(key, "2026-01-01T00:00:00Z" if is_time else "1")
        given = f"{path}?{key}={value}"
        if key == "marker":
            continue
        reply = await api("GET", given + ("&sort_key=uuid" if key == "sort_dir" else ""), v=version)
        # a member's all_tenants is forbidden; filters that he may not use are ignored
        expected = 403 if key == "all_tenants" else 200
        if not field.exists(version) and version >= 75:
            expected = 400
        assert reply.status == expected, (key, reply.content)
        if key in joined:
            assert (await api("GET", given, v=version, who="admin")).status == 400


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/ips",
        "/ips/private",
        "/metadata",
        "/metadata/a",
        "/os-interface",
        "/diagnostics",
        "/os-instance-actions",
    ],
)
async def test_nothing_else_takes_unknown_query_keys_from_2_102_on(api: Api, cloud: Cloud, path: str) -> None:
    uuid = (await server(cloud, PROJECT, metadata={"a": "b"})).uuid
    strict = 58 if path == "/os-instance-actions" else 102
    for version in (strict - 1, strict):
        reply = await api("GET", f"/servers/{uuid}{path}?colour=red", v=version, who="admin")
        assert reply.status == (400 if version >= strict else 200)
