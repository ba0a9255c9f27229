"""OpenStack's own clients, unmodified: openstacksdk and the openstack command."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openstack
import pytest

from tests.api.image.cloud import Cloud
from tests.api.served import Client

# What the SDK says of its own use of itself, and the file that it leaves open.
pytestmark = [
    pytest.mark.filterwarnings(f"ignore::{kind}")
    for kind in ("DeprecationWarning", "PendingDeprecationWarning", "ResourceWarning")
]


def credentials(cloud: Cloud, user: str) -> dict[str, str]:
    return {
        "auth_url": f"{cloud.url}/identity/v3",
        "username": user,
        "password": user,
        "project_name": "alice" if user == "reader" else user,
        "user_domain_name": "Default",
        "project_domain_name": "Default",
        "region_name": "R",
    }


@pytest.fixture
def connect(cloud: Cloud) -> Iterator[Callable[[str], Any]]:
    made = []

    def connection(user: str) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made.append(
                openstack.connect(load_yaml_config=False, load_envvars=False, **credentials(cloud, user))
            )
        return made[-1]

    yield connection
    for each in made:
        each.close()


Run = Callable[..., Any]


@pytest.fixture
def cli(cloud: Cloud, tmp_path: Path) -> Iterator[Run]:
    """Run ``openstack`` as a user; gives its JSON output, or its text when it has none."""
    client = Client(tmp_path)

    def run(user: str, *words: str, fails: bool = False) -> Any:
        environment = {f"OS_{name.upper()}": value for name, value in credentials(cloud, user).items()}
        code, out, err = client(list(words), environment)
        assert (code != 0) == fails, err
        if fails:
            return err
        return json.loads(out) if "json" in words else out

    yield run
    client.close()


def test_the_sdk_uploads_checks_and_downloads(connect: Callable[[str], Any], tmp_path: Path) -> None:
    alice = connect("alice")
    disk = tmp_path / "disk.qcow2"
    subprocess.run(["qemu-img", "create", "-f", "qcow2", str(disk), "10M"], check=True, capture_output=True)
    image = alice.create_image(
        "sdk disk",
        filename=str(disk),
        disk_format="qcow2",
        container_format="bare",
        wait=True,
        validate_checksum=True,
        hw_disk_bus="scsi",
    )
    found = alice.image.get_image(image.id)
    assert (found.status, found.size, found.virtual_size) == ("active", disk.stat().st_size, 10 << 20)
    assert found.hash_value == hashlib.sha512(disk.read_bytes()).hexdigest()
    assert found.hw_disk_bus == "scsi"
    assert (
        found.properties["owner_specified.openstack.sha256"] == hashlib.sha256(disk.read_bytes()).hexdigest()
    )
    # The same file again is seen to be there.
    assert (
        alice.create_image("sdk disk", filename=str(disk), validate_checksum=True, disk_format="qcow2").id
        == image.id
    )
    got = b"".join(alice.image.download_image(image.id, stream=True).iter_content(65536))
    assert got == disk.read_bytes()
    alice.image.update_image(image.id, name="renamed", hw_disk_bus="virtio")
    assert alice.image.find_image("renamed").hw_disk_bus == "virtio"
    alice.image.add_tag(image.id, "golden")
    assert [each.id for each in alice.image.images(tag="golden")] == [image.id]
    alice.image.remove_tag(image.id, "golden")
    alice.image.delete_image(image.id)
    assert alice.image.find_image("renamed") is None


def test_the_sdk_walks_pages(connect: Callable[[str], Any]) -> None:
    alice = connect("alice")
    ids = {alice.image.create_image(f"p{n}", allow_duplicates=True).id for n in range(7)}
    assert {each.id for each in alice.image.images(limit=3)} >= ids
    for each in ids:
        alice.image.delete_image(each)


def test_the_sdk_shares(connect: Callable[[str], Any]) -> None:
    alice, bob = connect("alice"), connect("bob")
    image = alice.image.create_image("shared", data=b"some bytes", disk_format="raw", container_format="bare")
    alice.image.add_member(image.id, member_id="bob")
    bob.image.update_member("bob", image.id, status="accepted")
    assert [each.status for each in alice.image.members(image.id)] == ["accepted"]
    assert bob.image.find_image("shared").id == image.id
    alice.image.remove_member("bob", image.id)
    assert bob.image.find_image("shared") is None
    alice.image.delete_image(image.id)


def test_the_sdk_hears_why_an_upload_is_refused(connect: Callable[[str], Any], tmp_path: Path) -> None:
    alice = connect("alice")
    disk = tmp_path / "evil"
    command = ["qemu-img", "create", "-f", "qcow2", "-u", "-b", "/etc/passwd", "-F", "raw", str(disk), "1M"]
    subprocess.run(command, check=True, capture_output=True)
    image = alice.image.create_image("evil", disk_format="qcow2", container_format="bare")
    with disk.open("rb") as file:
        answer = alice.image.get_image(image.id).upload(alice.image, data=file)
    assert (answer.status_code, "backing file" in answer.text) == (400, True)
    assert alice.image.get_image(image.id).status == "queued"
    alice.image.delete_image(image.id)


def test_the_command_line_from_create_to_delete(cli: Run, tmp_path: Path) -> None:
    data = tmp_path / "data.img"
    data.write_bytes(os.urandom(300_000))
    words = ["--property", "os_distro=cirros", "--property", "own=1", "--tag", "t1", "--min-disk", "1"]
    made = cli("alice", "image", "create", "--file", str(data), *words, "my image", "-f", "json")
    assert (made["status"], made["disk_format"], made["visibility"]) in (
        ("active", "raw", "shared"),
        ("queued", "raw", "shared"),
    )
    shown = cli("alice", "image", "show", "my image", "-f", "json")
    assert (shown["status"], shown["size"], shown["min_disk"], shown["tags"]) == (
        "active",
        300_000,
        1,
        ["t1"],
    )
    assert (shown["properties"]["own"], shown["properties"]["os_distro"]) == ("1", "cirros")
    assert shown["checksum"] == hashlib.md5(data.read_bytes()).hexdigest()
    listed = cli("alice", "image", "list", "--long", "--name", "my image", "-f", "json")
    assert [(each["ID"], each["Size"], each["Project"]) for each in listed] == [
        (made["id"], 300_000, "alice")
    ]
    assert cli("bob", "image", "list", "--name", "my image", "-f", "json") == []

    cli(
        "alice",
        "image",
        "set",
        "my image",
        "--name",
        "other",
        "--property",
        "own=2",
        "--tag",
        "t2",
        "--protected",
    )
    shown = cli("alice", "image", "show", made["id"], "-f", "json")
    assert (shown["name"], shown["properties"]["own"], shown["protected"]) == ("other", "2", True)
    assert sorted(shown["tags"]) == ["t1", "t2"]
    assert "protected" in cli("alice", "image", "delete", "other", fails=True)
    cli("alice", "image", "set", "other", "--unprotected", "--hidden")
    assert cli("alice", "image", "list", "--hidden", "-f", "json")[0]["ID"] == made["id"]
    cli("alice", "image", "set", made["id"], "--unhidden")
    cli("alice", "image", "unset", "other", "--property", "own", "--property", "os_distro", "--tag", "t1")
    shown = cli("alice", "image", "show", "other", "-f", "json")
    assert (shown["tags"], "own" in shown["properties"], "os_distro" in shown["properties"]) == (
        ["t2"],
        False,
        False,
    )

    saved = tmp_path / "saved"
    cli("alice", "image", "save", "other", "--file", str(saved))
    assert saved.read_bytes() == data.read_bytes()
    cli("alice", "image", "delete", "other")
    assert cli("alice", "image", "list", "--name", "other", "-f", "json") == []


def test_the_command_line_makes_public_and_shares(cli: Run, tmp_path: Path) -> None:
    data = tmp_path / "data.img"
    data.write_bytes(b"x" * 512)
    common = ["image", "create", "--file", str(data), "-f", "json"]
    assert "403" in cli("alice", *common, "--public", "pub", fails=True)
    public = cli("admin", *common, "--public", "pub")
    assert cli("bob", "image", "show", "pub", "-f", "json")["id"] == public["id"]
    shared = cli("alice", *common, "--shared", "shared")["id"]
    cli("alice", "image", "add", "project", "shared", "bob")
    members = cli("alice", "image", "member", "list", "shared", "-f", "json")
    assert [(each["Member ID"], each["Status"]) for each in members] == [("bob", "pending")]
    cli("bob", "image", "set", shared, "--accept")
    assert cli("bob", "image", "show", "shared", "-f", "json")["id"] == shared
    cli("alice", "image", "remove", "project", "shared", "bob")
    cli("bob", "image", "show", shared, fails=True)
    cli("alice", "image", "set", "shared", "--deactivate")
    assert cli("alice", "image", "show", "shared", "-f", "json")["status"] == "deactivated"
    cli("alice", "image", "set", "shared", "--activate")
    cli("alice", "image", "delete", "shared")
    cli("admin", "image", "delete", "pub")
