"""Creating servers: every field that can be asked for, and that it is so in the end."""

from __future__ import annotations

import asyncio
import base64
import re
from typing import Any

import msgspec
import pytest

from kilonova.clock import SystemClock
from kilonova.db import flavors, keypairs
from kilonova.model.flavor import Flavor
from kilonova.rpc.messages import GuestSpec
from kilonova.virt.driver import ImageSource
from tests.api.compute.conftest import Whole
from tests.api.compute.whole_cloud import FLAVOR

pytestmark = pytest.mark.asyncio(loop_scope="module")

NOW = SystemClock().now()


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


@pytest.mark.capability("API-10", "API-90", "API-91")
async def test_the_answer_and_what_comes_of_it(whole: Whole) -> None:
    with whole.held("prepare"):
        reply = await whole.create(name="plain")
        assert reply.status == 202
        made = reply.json["server"]
        before = await whole.instance(made["id"])
    assert reply.headers["location"] == f"http://cloud.example:8774/v2.1/servers/{made['id']}"
    assert made["links"] == [
        {"rel": "self", "href": f"http://cloud.example:8774/v2.1/servers/{made['id']}"},
        {"rel": "bookmark", "href": f"http://cloud.example:8774/servers/{made['id']}"},
    ]
    assert made["OS-DCF:diskConfig"] == "MANUAL"
    assert made["security_groups"] == [{"name": "default"}]
    assert re.fullmatch(r"[A-Za-z0-9]{12}", made["adminPass"])
    assert (before.vm_state, before.power_state, before.progress) == ("building", 0, 0)
    assert (before.launch_index, before.launched_at) == (0, None)
    flavor = await whole.cloud.db.read(lambda tx: flavors.show(tx, FLAVOR))
    assert before.flavor == flavor
    assert before.image is not None
    assert (before.image.id, before.image.size) == (whole.image, 1 << 20)

    instance = await whole.settled(made["id"])
    assert (instance.vm_state, instance.task_state, instance.power_state) == ("active", None, 1)
    assert instance.launched_at is not None
    assert await whole.cloud.placement.held(instance.uuid) != {}
    assert whole.driver.guest_file.state(instance.uuid) == 1


async def test_the_least_that_can_be_asked_for(whole: Whole) -> None:
    instance = await whole.made(name="plain one")
    shown = await whole.shown(instance.uuid)
    expected = {
        "name": "plain one",
        "status": "ACTIVE",
        "tenant_id": whole.project,
        "user_id": whole.tokens.users["member"],
        "metadata": {},
        "accessIPv4": "",
        "accessIPv6": "",
        "addresses": {},
        "config_drive": "",
        "description": None,
        "key_name": None,
        "locked": False,
        "tags": [],
        "progress": 0,
        "OS-EXT-STS:vm_state": "active",
        "OS-EXT-STS:task_state": None,
        "OS-EXT-STS:power_state": 1,
        "OS-EXT-AZ:availability_zone": "nova",
        "OS-EXT-SRV-ATTR:host": whole.host,
        "OS-EXT-SRV-ATTR:hypervisor_hostname": whole.host,
        "OS-EXT-SRV-ATTR:hostname": "plain-one",
        "OS-EXT-SRV-ATTR:launch_index": 0,
        "OS-EXT-SRV-ATTR:instance_name": instance.uuid,
        "OS-EXT-SRV-ATTR:user_data": None,
        "OS-SRV-USG:terminated_at": None,
        "host_status": "UP",
        "pinned_availability_zone": None,
        "scheduler_hints": {},
        "trusted_image_certificates": None,
        "server_groups": [],
        "os-extended-volumes:volumes_attached": [],
    }
    assert {key: shown[key] for key in expected} == expected
    assert shown["image"]["id"] == whole.image
    assert shown["flavor"]["original_name"] == "m1.nano"
    assert shown["flavor"]["ram"] == 128
    assert shown["OS-EXT-SRV-ATTR:reservation_id"].startswith("r-")


async def test_texts_that_are_only_kept(whole: Whole, monkeypatch: pytest.MonkeyPatch) -> None:
    guests, prepare = [], whole.driver.prepare

    async def watched(guest: GuestSpec, images: ImageSource) -> None:
        guests.append(guest)
        await prepare(guest, images)

    monkeypatch.setattr(whole.driver, "prepare", watched)
    await whole.cloud.db.write(
        lambda tx: keypairs.create(
            tx,
            keypairs.Keypair(
                user_id=whole.tokens.users["member"],
                name="mine",
                type="ssh",
                public_key="ssh-ed25519 AAAA mine",
                fingerprint="aa:bb",
                created_at=NOW,
            ),
            100,
        )
    )
    user_data = b64("#!/bin/sh\necho hello\n")
    instance = await whole.made(
        name="texts",
        key_name="mine",
        user_data=user_data,
        config_drive=True,
        metadata={"role": "web", "a.b-c:d e_f": ""},
        description="two\nlines, ünïcode ☃",
        tags=["blue", "ünï", "blue"],
        hostname="web-1.example.org",
        accessIPv4="203.0.113.7",
        accessIPv6="2001:DB8::0007",
        adminPass="my own",
        **{"OS-DCF:diskConfig": "AUTO"},
    )
    shown = await whole.shown(instance.uuid)
    expected = {
        "key_name": "mine",
        "OS-EXT-SRV-ATTR:user_data": user_data,
        "config_drive": "True",
        "metadata": {"role": "web", "a.b-c:d e_f": ""},
        "description": "two\nlines, ünïcode ☃",
        "tags": ["blue", "ünï"],
        "OS-EXT-SRV-ATTR:hostname": "web-1.example.org",
        "accessIPv4": "203.0.113.7",
        "accessIPv6": "2001:db8::7",
        "OS-DCF:diskConfig": "AUTO",
    }
    assert {key: shown[key] for key in expected} == expected
    assert instance.key_data == "ssh-ed25519 AAAA mine"
    (guest,) = guests  # as the hypervisor is told of it
    assert guest.uuid == instance.uuid and guest.config_drive is not None
    assert guest.config_drive["openstack/latest/user_data"] == b"#!/bin/sh\necho hello\n"
    assert b"ssh-ed25519 AAAA mine" in guest.config_drive["openstack/latest/meta_data.json"]
    ec2 = msgspec.json.decode(guest.config_drive["ec2/latest/meta-data.json"])
    assert ec2["instance-id"] == f"i-{instance.id:08x}"


async def test_the_password_that_is_given_is_given_back(whole: Whole) -> None:
    reply = await whole.create(adminPass="my own")
    assert reply.json["server"]["adminPass"] == "my own"


@pytest.mark.capability("API-71")
async def test_a_key_is_the_callers_own(whole: Whole) -> None:
    """The project's other users cannot use it: keys belong to users."""
    key = keypairs.Keypair(
        user_id="somebody else", name="theirs", type="ssh", public_key="k", fingerprint="f", created_at=NOW
    )
    await whole.cloud.db.write(lambda tx: keypairs.create(tx, key, 100))
    assert await whole.refused(400, key_name="theirs") == "Invalid key_name provided."


@pytest.mark.parametrize("asked", [True, "True", "1", "yes", "on"])
@pytest.mark.capability("API-70")
async def test_a_config_drive_for_all_words_for_yes(whole: Whole, asked: Any) -> None:
    reply = await whole.create(config_drive=asked)
    assert (await whole.shown(reply.json["server"]["id"]))["config_drive"] == "True"


@pytest.mark.parametrize("asked", [False, "False", "0", "no"])
async def test_no_config_drive_for_all_words_for_no(whole: Whole, asked: Any) -> None:
    reply = await whole.create(config_drive=asked)
    assert (await whole.shown(reply.json["server"]["id"]))["config_drive"] == ""


@pytest.mark.parametrize("asked", ["maybe", "", " ", 2, [], None, 1.5])
@pytest.mark.capability("API-70")
async def test_no_config_drive_for_other_words(whole: Whole, asked: Any) -> None:
    body = whole.body()
    body["server"]["config_drive"] = asked
    reply = await whole.api("POST", "/servers", body, v=104)
    assert reply.status == 400
    assert "config_drive" in reply.fault


@pytest.mark.capability("API-86")
async def test_files_go_onto_the_config_drive(whole: Whole, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [{"path": "/etc/motd", "contents": b64("hello")}]
    prepared = []
    prepare = whole.driver.prepare

    async def watched(guest: GuestSpec, images: Any) -> None:
        prepared.append(guest)
        await prepare(guest, images)

    monkeypatch.setattr(whole.driver, "prepare", watched)
    instance = await whole.made(56, personality=files)
    assert instance.config_drive
    (drive,) = [guest.config_drive for guest in prepared if guest.uuid == instance.uuid]
    assert drive is not None
    files_there = msgspec.json.decode(drive["openstack/latest/meta_data.json"])["files"]
    assert [each["path"] for each in files_there] == ["/etc/motd"]
    assert drive["openstack" + files_there[0]["content_path"]] == b"hello"
    assert "personality" in await whole.refused(400, 57, personality=files)


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ([{"path": f"/{n}", "contents": ""} for n in range(6)], "Personality file limit exceeded"),
        ([{"path": "/a", "contents": b64("x" * 10241)}], "Personality file content exceeds maximum of 10240"),
    ],
)
@pytest.mark.capability("API-86")
async def test_files_have_limits(whole: Whole, files: Any, reason: str) -> None:
    assert await whole.refused(403, 56, personality=files) == reason


async def test_files_may_be_as_many_and_as_large_as_allowed(whole: Whole) -> None:
    files = [{"path": "/" + str(n) * 254, "contents": b64("x" * 10240)} for n in range(5)]
    reply = await whole.create(56, personality=files)
    assert reply.status == 202


@pytest.mark.capability("API-86")
async def test_metadata_has_a_limit(whole: Whole) -> None:
    many = {str(n): "x" for n in range(129)}
    reason = await whole.refused(403, metadata=many)
    assert reason == "Maximum number of metadata items exceeds 128"
    del many["0"]
    instance = await whole.made(metadata=many)
    assert (await whole.shown(instance.uuid))["metadata"] == many


@pytest.mark.parametrize(
    "metadata",
    [{"": "x"}, {"k" * 256: "x"}, {"k": "x" * 256}, {"a/b": "x"}, {"k": 1}, {"k": None}, {"ü": "x"}, []],
)
@pytest.mark.capability("API-86")
async def test_metadata_that_is_refused(whole: Whole, metadata: Any) -> None:
    assert "metadata" in await whole.refused(400, metadata=metadata)


@pytest.mark.capability("API-87")
async def test_names_of_several(whole: Whole) -> None:
    reply = await whole.create(name="Web Farm", min_count=3, max_count=3, return_reservation_id=True)
    assert reply.status == 202
    assert list(reply.json) == ["reservation_id"]
    assert "location" not in reply.headers
    reservation = reply.json["reservation_id"]
    listed = await whole.api("GET", f"/servers/detail?reservation_id={reservation}", v=104, who="admin")
    mine = await whole.api("GET", f"/servers?reservation_id={reservation}", v=104)
    assert len(mine.json["servers"]) == 3
    assert listed.json["servers"] == []  # the administrator's own project
    everything = (
        f"/servers/detail?all_tenants=1&reservation_id={reservation}&sort_key=launch_index&sort_dir=asc"
    )
    listed = await whole.api("GET", everything, v=104, who="admin")
    seen = [
        (
            each["name"],
            each["OS-EXT-SRV-ATTR:hostname"],
            each["OS-EXT-SRV-ATTR:launch_index"],
            each["OS-EXT-SRV-ATTR:reservation_id"],
        )
        for each in listed.json["servers"]
    ]
    assert seen == [(f"Web Farm-{n + 1}", f"web-farm-{n + 1}", n, reservation) for n in range(3)]
    for each in listed.json["servers"]:
        assert (await whole.settled(each["id"])).vm_state == "active"


@pytest.mark.parametrize(
    ("name", "hostname"),
    [
        ("Web_1", "web-1"),
        ("a.b.c", "a-b-c"),
        ("-x.", "x"),
        ("ünïcode", "ncode"),
        ("x" * 255, "x" * 63),
        ("☃", None),
        ("...", None),
    ],
)
@pytest.mark.capability("API-87")
async def test_host_names_are_made_of_names(whole: Whole, name: str, hostname: str | None) -> None:
    reply = await whole.create(name=name)
    shown = await whole.shown(reply.json["server"]["id"])
    assert shown["name"] == name
    assert shown["OS-EXT-SRV-ATTR:hostname"] == (hostname or f"Server-{shown['id']}")


@pytest.mark.capability("API-87")
async def test_a_long_name_leaves_room_for_the_number(whole: Whole) -> None:
    reply = await whole.create(name="n" * 255, min_count=2)
    assert (await whole.shown(reply.json["server"]["id"]))["name"] == "n" * 253 + "-1"


async def test_no_host_name_for_several(whole: Whole) -> None:
    assert "hostname" in await whole.refused(400, hostname="web", min_count=2)


@pytest.mark.parametrize(
    ("version", "hostname"),
    [(90, "a.b"), (93, "a" * 64), (90, "a"), (94, "-a"), (94, "a_b"), (94, "a" * 256), (94, "a-")],
)
async def test_host_names_that_are_none(whole: Whole, version: int, hostname: str) -> None:
    assert "hostname" in await whole.refused(400, version, hostname=hostname)


@pytest.mark.parametrize(
    ("least", "most"),
    [(2, 1), (0, None), (None, 0), (-1, None), ("x", None), (None, 2**31), (1.5, 2), (True, None)],
)
async def test_counts_that_make_no_sense(whole: Whole, least: Any, most: Any) -> None:
    assert "count" in await whole.refused(400, min_count=least, max_count=most)


async def test_more_servers_than_one_request_makes(whole: Whole) -> None:
    assert "1000" in await whole.refused(400, min_count=1001)


@pytest.mark.parametrize("flavor", ["42", 42])
async def test_a_flavor_by_text_or_number(whole: Whole, flavor: Any) -> None:
    assert (await whole.create(flavorRef=flavor)).status == 202


@pytest.mark.capability("API-64")
async def test_flavors_that_cannot_be_had(whole: Whole) -> None:
    hidden = {"vcpus": 1, "memory_mb": 64, "root_gb": 1}
    for flavor in (
        Flavor(id=0, flavorid="off", name="off", disabled=True, **hidden),
        Flavor(id=0, flavorid="theirs", name="theirs", is_public=False, projects=("p",), **hidden),
        Flavor(id=0, flavorid="ours", name="ours", is_public=False, projects=(whole.project,), **hidden),
        Flavor(id=0, flavorid="gone", name="gone", **hidden),
    ):
        await whole.cloud.db.write(lambda tx, flavor=flavor: flavors.create(tx, flavor, NOW))
    await whole.cloud.db.write(lambda tx: flavors.remove(tx, "gone"))
    for identity in ("off", "theirs", "gone", "nowhere", "m1.nano"):
        assert await whole.refused(400, flavorRef=identity) == f"Flavor {identity} could not be found."
    assert (await whole.create(flavorRef="ours")).status == 202


@pytest.mark.capability("API-72")
async def test_a_flavor_without_disk_is_for_administrators(whole: Whole) -> None:
    flavor = Flavor(id=0, flavorid="diskless", name="diskless", vcpus=1, memory_mb=64, root_gb=0)
    await whole.cloud.db.write(lambda tx: flavors.create(tx, flavor, NOW))
    assert "zero disk" in await whole.refused(403, flavorRef="diskless")
    assert (await whole.made(who="admin", flavorRef="diskless")).vm_state == "active"


@pytest.mark.capability("API-61", "API-62", "API-63")
async def test_where_a_server_is_to_be(whole: Whole) -> None:
    host = whole.host
    assert (await whole.made(availability_zone="nova")).pinned_availability_zone == "nova"
    for zone in (f"nova:{host}", f"nova:{host}:{host}", f"nova::{host}", f":{host}"):
        assert "forced_host" in await whole.refused(403, availability_zone=zone)
        assert (await whole.made(who="admin", availability_zone=zone)).host == host
    reason = await whole.refused(400, who="admin", availability_zone="a:b:c:d")
    assert "a:b:c:d" in reason
    assert "moon" in await whole.refused(400, availability_zone="moon")
    for field in ("host", "hypervisor_hostname"):
        assert "requested_destination" in await whole.refused(403, **{field: host})
        assert (await whole.made(who="admin", **{field: host})).host == host
        reason = await whole.refused(400, who="admin", **{field: "moon"})
        assert reason == "Compute host moon could not be found."
        await whole.refused(400, who="admin", availability_zone=f"nova:{host}", **{field: host})


async def test_a_forced_host_that_is_not_there(whole: Whole) -> None:
    instance = await whole.made(who="admin", availability_zone="nova:moon")
    assert instance.vm_state == "error"
    fault = (await whole.shown(instance.uuid))["fault"]
    assert fault["message"] == "No valid host was found. moon: there is no such host"
    assert await whole.cloud.placement.held(instance.uuid) == {}


async def test_hints_are_kept_and_shown(whole: Whole) -> None:
    hints = {"different_host": [whole.image], "query": "[1]", "own word": {"a": 1}, "big": 2**62}
    reply = await whole.create(hints=hints)
    shown = await whole.shown(reply.json["server"]["id"])
    assert shown["scheduler_hints"] == hints
    older = {**whole.body(), "OS-SCH-HNT:scheduler_hints": {"same_host": whole.image}}
    reply = await whole.api("POST", "/servers", older, v=104)
    shown = await whole.shown(reply.json["server"]["id"])
    assert shown["scheduler_hints"] == {"same_host": whole.image}


async def test_a_group_that_is_not_there(whole: Whole) -> None:
    """A promise to keep servers apart that nobody keeps would be worse than none."""
    reply = await whole.create(hints={"group": whole.image})
    assert reply.status == 400
    assert whole.image in reply.fault


async def test_two_creates_at_a_time_are_two_servers(whole: Whole) -> None:
    replies = await asyncio.gather(*(whole.create(name="twin") for _ in range(8)))
    uuids = {reply.json["server"]["id"] for reply in replies}
    assert len(uuids) == 8
    for uuid in uuids:
        assert (await whole.settled(uuid)).vm_state == "active"


async def test_the_legacy_endpoint(whole: Whole) -> None:
    """By /v2 unknown fields are let pass, and headers about microversions are not looked at."""
    body = whole.body(1, colour="red")
    reply = await whole.api("POST", "/servers", body, v=104)
    assert reply.status == 400
    api = type(whole.api)(whole.api.app, base="/v2")
    reply = await api("POST", "/servers", body, v=104)
    assert reply.status == 202
    assert "openstack-api-version" not in reply.headers
    assert reply.headers["location"].startswith("http://cloud.example:8774/v2/servers/")
    assert reply.json["server"]["links"][0]["href"] == reply.headers["location"]


async def test_addresses_that_have_the_project_in_them(whole: Whole) -> None:
    api = type(whole.api)(whole.api.app, base=f"/v2.1/{whole.project}")
    reply = await api("POST", "/servers", whole.body(), v=104)
    assert reply.headers["location"].startswith(f"http://cloud.example:8774/v2.1/{whole.project}/servers/")
    other = type(whole.api)(whole.api.app, base="/v2.1/pother")
    reply = await other("POST", "/servers", whole.body(), v=104)
    assert reply.status == 400
    assert "pother" in reply.fault
