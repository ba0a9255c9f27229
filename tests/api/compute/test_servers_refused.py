"""Creates that are refused, or that fail: what is said, and that nothing is left behind."""

from __future__ import annotations

import asyncio
import base64
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from kilonova.clock import SystemClock
from kilonova.db import flavors, instances, quotas
from kilonova.errors import HostFault
from kilonova.model.flavor import Flavor
from kilonova.testing.embedded import audits, holdings
from tests.api.compute.conftest import Whole
from tests.api.compute.whole_cloud import NOBODYS

pytestmark = pytest.mark.asyncio(loop_scope="module")

NOW = SystemClock().now()


async def flavor(whole: Whole, name: str, **values: Any) -> str:
    made = Flavor(
        **{"id": 0, "flavorid": name, "name": name, "vcpus": 1, "memory_mb": 64, "root_gb": 1, **values}
    )
    await whole.cloud.db.write(lambda tx: flavors.create(tx, made, NOW))
    return name


async def image(whole: Whole, who: str = "member", data: bytes = bytes(512), **values: Any) -> str:
    """The id of a new image; without data it stays queued."""
    values = {"name": "i", "disk_format": "raw", "container_format": "bare", **values}
    reply = await whole.images("POST", "/images", values, who=who)
    assert reply.status == 201, reply.content
    identity = str(reply.json["id"])
    if data:
        binary = {"content-type": "application/octet-stream"}
        reply = await whole.images("PUT", f"/images/{identity}/file", raw=data, who=who, headers=binary)
        assert reply.status == 204, reply.content
    return identity


@pytest.mark.capability("API-72")
async def test_images_that_do_not_fit_the_flavor(whole: Whole, tmp_path: Path) -> None:
    small = await flavor(whole, "small", memory_mb=64, root_gb=1)
    hungry = await image(whole, min_ram=65)
    assert "memory is too small" in await whole.refused(400, flavorRef=small, imageRef=hungry)
    wide = await image(whole, min_disk=2)
    reason = await whole.refused(400, flavorRef=small, imageRef=wide)
    assert "smaller than the minimum size specified in image metadata" in reason
    fits = await image(whole, min_ram=64, min_disk=1)
    assert (await whole.create(flavorRef=small, imageRef=fits)).status == 202
    disk = tmp_path / "disk.qcow2"
    subprocess.run(["qemu-img", "create", "-f", "qcow2", str(disk), "1025M"], check=True, capture_output=True)
    large = await image(whole, data=disk.read_bytes(), disk_format="qcow2")
    reason = await whole.refused(400, flavorRef=small, imageRef=large)
    assert reason.startswith("Flavor's disk is too small for requested image.")
    assert str(1025 << 20) in reason
    diskless = await flavor(whole, "unlimited", root_gb=0)
    assert (await whole.create(who="admin", flavorRef=diskless, imageRef=large)).status == 202


@pytest.mark.capability("API-72")
async def test_images_that_are_not_there(whole: Whole) -> None:
    queued = await image(whole, data=b"")
    assert await whole.refused(400, imageRef=queued) == f"Image {queued} is not active."
    theirs = await image(whole, "other")
    for missing in (NOBODYS, theirs):
        assert await whole.refused(400, imageRef=missing) == f"Image {missing} could not be found."
    gone = await image(whole)
    assert (await whole.images("DELETE", f"/images/{gone}")).status == 204
    assert await whole.refused(400, imageRef=gone) == f"Image {gone} could not be found."
    for malformed in ("x", "http://images/1", {"id": whole.image}, 1):
        assert "imageRef" in await whole.refused(400, imageRef=malformed)
    for nothing in (None, ""):
        assert "imageRef" in await whole.refused(400, imageRef=nothing)


@pytest.mark.capability("API-70", "API-73", "API-75")
async def test_images_whose_properties_forbid_it(whole: Whole) -> None:
    odd = await image(whole, img_config_drive="sometimes")
    assert await whole.refused(400, imageRef=odd) == "Image's config drive option 'sometimes' is invalid."
    encrypted = await image(whole, cinder_encryption_key_id=NOBODYS)
    assert "encrypted volume" in await whole.refused(400, imageRef=encrypted)
    fixed = await image(whole, auto_disk_config="Disabled")
    asked = {"OS-DCF:diskConfig": "AUTO"}
    assert "automatic disk resize disabled" in await whole.refused(400, imageRef=fixed, **asked)
    assert (await whole.create(imageRef=fixed, **{"OS-DCF:diskConfig": "MANUAL"})).status == 202
    assert (await whole.create(imageRef=fixed)).json["server"]["OS-DCF:diskConfig"] == "MANUAL"
    growing = await image(whole, auto_disk_config="True")
    for asked, expected in ((None, "AUTO"), ("AUTO", "AUTO"), ("MANUAL", "MANUAL")):
        reply = await whole.create(imageRef=growing, **{"OS-DCF:diskConfig": asked})
        made = reply.json["server"]
        assert made["OS-DCF:diskConfig"] == expected
        assert (await whole.shown(made["id"]))["OS-DCF:diskConfig"] == expected


@pytest.mark.capability("API-70")
async def test_an_image_that_must_have_a_config_drive(whole: Whole) -> None:
    wants = await image(whole, img_config_drive="mandatory")
    reply = await whole.create(imageRef=wants, config_drive=False)
    assert (await whole.shown(reply.json["server"]["id"]))["config_drive"] == "True"


@pytest.mark.capability("API-65")
@pytest.mark.parametrize("data", ["x", "####", "YQ", "YQ=", "Y Q==", "ü"])
async def test_user_data_that_is_not_base64(whole: Whole, data: str) -> None:
    assert await whole.refused(400, user_data=data) == "User data needs to be valid base 64."


@pytest.mark.capability("API-65")
async def test_user_data_has_a_limit(whole: Whole) -> None:
    assert (await whole.create(user_data="YWFh" * 16383)).status == 202
    assert "user_data" in await whole.refused(400, user_data="YWFh" * 16384)
    folded = base64.encodebytes(b"#cloud-config\n" * 20).decode()
    assert "\n" in folded.strip()
    reply = await whole.create(user_data=folded)
    assert (await whole.shown(reply.json["server"]["id"]))["OS-EXT-SRV-ATTR:user_data"] == folded


BLANK = {"source_type": "blank", "destination_type": "volume"}
VOLUME = {"source_type": "volume", "destination_type": "volume", "uuid": NOBODYS, "boot_index": 0}
LOCAL = {"source_type": "image", "destination_type": "local", "boot_index": 0}


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"block_device_mapping_v2": [VOLUME], "imageRef": None}, "boot from volumes"),
        ({"block_device_mapping_v2": [{**VOLUME, "source_type": "image"}]}, "boot from volumes"),
        ({"block_device_mapping_v2": [BLANK]}, "boot from volumes"),
        ({"block_device_mapping": [{"volume_id": NOBODYS, "device_name": "vda"}]}, "boot from volumes"),
        ({"block_device_mapping": [{}], "block_device_mapping_v2": [VOLUME]}, "together"),
        ({"block_device_mapping_v2": [{**LOCAL, "uuid": "x"}]}, "uuid"),
        ({"block_device_mapping_v2": [{**LOCAL, "uuid": NOBODYS}]}, "Two images"),
        ({"block_device_mapping_v2": [{**LOCAL, "uuid": NOBODYS, "boot_index": 1}]}, "boot_index"),
        ({"block_device_mapping_v2": [{**LOCAL, "colour": "red"}]}, "colour"),
        ({"block_device_mapping_v2": {}}, "block_device_mapping_v2"),
        ({"trusted_image_certificates": [NOBODYS]}, "trusted_image_certificates"),
        ({"trusted_image_certificates": []}, "trusted_image_certificates"),
    ],
)
async def test_what_this_cloud_cannot_do_is_refused(
    whole: Whole, fields: dict[str, Any], reason: str
) -> None:
    assert reason in await whole.refused(400, **fields)


async def test_the_image_as_a_block_device(whole: Whole) -> None:
    """What Horizon and Terraform send for a server that boots from its image."""
    device = {**LOCAL, "uuid": whole.image, "delete_on_termination": True}
    for image_ref in (whole.image, "", None):
        reply = await whole.create(imageRef=image_ref, block_device_mapping_v2=[device])
        assert reply.status == 202, reply.content
        assert (await whole.shown(reply.json["server"]["id"]))["image"]["id"] == whole.image


BAD_FIELDS: list[tuple[str, Any]] = [
    ("name", ""),
    ("name", " x"),
    ("name", "x "),
    ("name", "x" * 256),
    ("name", "a\tb"),
    ("name", "a\u200bb"),
    ("name", 1),
    ("name", {}),
    ("flavorRef", ""),
    ("flavorRef", "x" * 256),
    ("flavorRef", 1.5),
    ("flavorRef", True),
    ("flavorRef", 10**18),
    ("flavorRef", "http://flavors/1"),
    ("adminPass", 1),
    ("accessIPv4", "1.2.3"),
    ("accessIPv4", "::1"),
    ("accessIPv4", "1.2.3.4/8"),
    ("accessIPv4", 16909060),
    ("accessIPv6", "1.2.3.4"),
    ("accessIPv6", "fe80::1%eth0"),
    ("availability_zone", ""),
    ("availability_zone", 1),
    ("OS-DCF:diskConfig", "auto"),
    ("key_name", ""),
    ("key_name", ["mine"]),
    ("security_groups", [{}]),
    ("security_groups", [{"name": ""}]),
    ("security_groups", ["default"]),
    ("security_groups", "default"),
    ("description", "x" * 256),
    ("description", "a\x01b"),
    ("description", 1),
    ("tags", ["a,b"]),
    ("tags", ["a/b"]),
    ("tags", [""]),
    ("tags", ["x" * 61]),
    ("tags", ["a\x01b"]),
    ("tags", [str(n) for n in range(51)]),
    ("tags", "a"),
    ("host", ""),
    ("host", "a b"),
    ("hypervisor_hostname", "x" * 256),
    ("return_reservation_id", "maybe"),
    ("user_data", 1),
    ("colour", "red"),
    ("OS-EXT-SRV-ATTR:host", "x"),
]


@pytest.mark.parametrize(("field", "value"), BAD_FIELDS)
async def test_fields_that_are_wrong(whole: Whole, field: str, value: Any) -> None:
    body = whole.body()
    body["server"][field] = value
    before = await whole.everything()
    reply = await whole.api("POST", "/servers", body, v=104)
    assert reply.status == 400, reply.content
    assert list(reply.json) == ["badRequest"]
    assert field in reply.fault or str(value) in reply.fault
    assert await whole.everything() == before


NULLABLE = {"description", "trusted_image_certificates"}
ALL_FIELDS = sorted({name for name, _ in BAD_FIELDS} - {"colour", "OS-EXT-SRV-ATTR:host"})


@pytest.mark.parametrize("field", ALL_FIELDS)
async def test_null_is_a_value_only_where_nova_takes_it(whole: Whole, field: str) -> None:
    body = whole.body()
    body["server"][field] = None
    reply = await whole.api("POST", "/servers", body, v=104)
    assert reply.status == (202 if field in NULLABLE else 400), reply.content
    if reply.status == 400:
        assert field in reply.fault


@pytest.mark.parametrize("field", ["name", "flavorRef", "networks"])
async def test_fields_that_must_be_there(whole: Whole, field: str) -> None:
    assert field in await whole.refused(400, **{field: None})


@pytest.mark.parametrize("body", [{}, {"server": None}, {"server": []}, {"server": "x"}, {"servers": {}}])
async def test_bodies_without_a_server(whole: Whole, body: Any) -> None:
    reply = await whole.api("POST", "/servers", body, v=104)
    assert reply.status == 400
    assert "server" in reply.fault


@pytest.mark.parametrize(
    "hints",
    [
        {"group": "x"},
        {"group": None},
        {"different_host": 1},
        {"same_host": [1]},
        {"build_near_host_ip": "here"},
        {"cidr": "24"},
        [],
        "x",
        None,
    ],
)
async def test_hints_that_are_wrong(whole: Whole, hints: Any) -> None:
    for key in ("os:scheduler_hints", "OS-SCH-HNT:scheduler_hints"):
        reply = await whole.api("POST", "/servers", {**whole.body(), key: hints}, v=104)
        assert reply.status == 400, reply.content
        assert "scheduler_hints" in reply.fault


@pytest.mark.capability("API-85", "UT-10")
async def test_the_quota_lowers_the_count_or_refuses(whole: Whole) -> None:
    await whole.quiet()
    demo = whole.project
    used = await whole.cloud.db.read(lambda tx: quotas.usage(tx, demo))
    have = used["instances"]
    limits = {"instances": have + 3, "cores": used["cores"] + 100, "ram": used["ram"] + 100_000}
    await whole.cloud.db.write(lambda tx: quotas.set_limits(tx, quotas.PROJECT, demo, limits))
    try:
        reason = await whole.refused(403, min_count=4, max_count=9)
        words = f"Requested 4-9, but already used {have} of {have + 3} instances"
        assert reason == f"Quota exceeded for instances: {words}"
        reply = await whole.create(min_count=2, max_count=2**31 - 1, return_reservation_id=True)
        assert reply.status == 202
        made = await whole.api("GET", f"/servers?reservation_id={reply.json['reservation_id']}")
        assert len(made.json["servers"]) == 3
        reason = await whole.refused(403)
        words = f"Requested 1, but already used {have + 3} of {have + 3} instances"
        assert reason == f"Quota exceeded for instances: {words}"
        for each in made.json["servers"]:
            await whole.gone(each["id"])
        limits = {"instances": 1000, "cores": used["cores"] + 1, "ram": used["ram"] + 128}
        await whole.cloud.db.write(lambda tx: quotas.set_limits(tx, quotas.PROJECT, demo, limits))
        reason = await whole.refused(403, flavorRef="3")
        assert reason.startswith("Quota exceeded for cores, ram: Requested 2, 4096, but already used ")
        assert (await whole.create(max_count=5, flavorRef="42")).status == 202
        await whole.refused(403, flavorRef="42")
    finally:
        await whole.cloud.db.write(lambda tx: quotas.drop_limits(tx, demo))


@pytest.mark.capability("UT-11")
async def test_a_users_own_quota(whole: Whole) -> None:
    await whole.quiet()
    user = whole.tokens.users["member"]
    used = await whole.cloud.db.read(lambda tx: quotas.usage(tx, whole.project, user))
    scope = quotas.user_scope(whole.project, user)
    limits = {"instances": used["instances"] + 1}
    await whole.cloud.db.write(lambda tx: quotas.set_limits(tx, quotas.USER, scope, limits))
    try:
        assert "Quota exceeded for instances" in await whole.refused(403, min_count=2)
        assert (await whole.create(min_count=1, max_count=2)).status == 202
        assert "Quota exceeded for instances" in await whole.refused(403)
    finally:
        await whole.cloud.db.write(lambda tx: quotas.drop_limits(tx, whole.project, user))


async def test_the_quota_holds_in_a_race(whole: Whole) -> None:
    await whole.quiet()
    used = await whole.cloud.db.read(lambda tx: quotas.usage(tx, whole.project))
    limits = {"instances": used["instances"] + 5}
    await whole.cloud.db.write(lambda tx: quotas.set_limits(tx, quotas.PROJECT, whole.project, limits))
    try:
        replies = await asyncio.gather(*(whole.create() for _ in range(20)))
    finally:
        await whole.cloud.db.write(lambda tx: quotas.drop_limits(tx, whole.project))
    assert sorted(reply.status for reply in replies) == [202] * 5 + [403] * 15
    assert await audits(whole.cloud) == []


async def test_a_flavor_larger_than_any_host(whole: Whole) -> None:
    """The server is there and says of each host why it was not taken."""
    for name, values, reason in (
        ("huge", {"memory_mb": 2_000_000_000}, "2000000000 MiB of memory wanted"),
        ("broad", {"vcpus": 2_000_000_000}, "2000000000 vCPUs wanted"),
        ("deep", {"root_gb": 2_000_000_000}, "2000000000 GiB of disk wanted"),
    ):
        limits = {"cores": -1, "ram": -1}
        await whole.cloud.db.write(
            lambda tx, limits=limits: quotas.set_limits(tx, quotas.PROJECT, whole.project, limits)
        )
        instance = await whole.made(flavorRef=await flavor(whole, name, **values))
        assert (instance.vm_state, instance.task_state, instance.host) == ("error", None, None)
        mine = await whole.shown(instance.uuid, who="member")
        assert mine["status"] == "ERROR"
        assert mine["fault"]["code"] == 500
        assert mine["fault"]["message"].startswith(f"No valid host was found. {whole.host}: {reason}")
        assert "details" not in mine["fault"]
        assert reason in (await whole.shown(instance.uuid))["fault"]["details"]
        assert mine["hostId"] == ""
        assert (await holdings(whole.cloud, instance.uuid)).nothing
        actions = await whole.api("GET", f"/servers/{instance.uuid}/os-instance-actions", v=84)
        (action,) = actions.json["instanceActions"]
        assert (action["action"], action["message"]) == ("create", "Error")
        await whole.gone(instance.uuid, "member")
    await whole.cloud.db.write(lambda tx: quotas.drop_limits(tx, whole.project))
    assert await audits(whole.cloud) == []


async def test_a_host_that_fails(whole: Whole) -> None:
    whole.driver.faults.add("start", HostFault("the disk is full"))
    instance = await whole.made(networks="auto")
    assert instance.vm_state == "error"
    shown = await whole.shown(instance.uuid)
    assert "the disk is full" in shown["fault"]["message"]
    assert (await holdings(whole.cloud, instance.uuid)).nothing
    await whole.gone(instance.uuid)


@pytest.mark.capability("API-89")
async def test_all_servers_of_a_request_or_none(whole: Whole, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault while the third is written down: no server, no operation, no quota."""
    insert, made = instances.insert, []

    def failing(tx: Any, instance: Any) -> int:
        made.append(instance)
        if len(made) == 3:
            raise RuntimeError("the third one")
        return insert(tx, instance)

    monkeypatch.setattr(instances, "insert", failing)
    before = await whole.everything()
    reply = await whole.create(min_count=4)
    assert reply.status == 500
    assert "RuntimeError" in reply.fault
    assert "the third one" not in reply.fault
    assert list(reply.json) == ["computeFault"]
    assert len(made) == 3
    assert await whole.everything() == before


async def test_who_may_create(whole: Whole) -> None:
    for who in ("reader", "nobody", "service"):
        assert "os_compute_api:servers:create" in await whole.refused(403, who=who)


async def test_keys_that_stand_twice(whole: Whole) -> None:
    text = json.dumps(whole.body())
    for key in ('"server": {', '"name": "s", "server": {'):
        twice = text.replace('"server": {', key + '"name": "evil", ' if key.startswith('"server') else key, 1)
        reply = await whole.api("POST", "/servers", raw=twice.encode(), v=104)
        assert reply.status == 400
    reply = await whole.api("POST", "/servers", raw=(text[:-1] + ', "server": {}}').encode(), v=104)
    assert reply.status == 400
    assert "'server' stands twice" in reply.fault
