"""Real guests are shelved and come back, with what they have written, where they were and on another host."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.real.real_cloud import SDKS_OWN, RealCloud, wait_until
from tests.real.test_cloud import Project, image_file
from tests.real.two_hosts import TwoHosts, address, two_hosts

pytestmark = [pytest.mark.real, *SDKS_OWN]

__all__ = ["image_file"]

WRITE = "dd if=/dev/urandom of=/data/kept bs=64k count=64 2>/dev/null; sha256sum /data/kept"  # and no sync
READ = "sha256sum /data/kept"
PEACE = 300.0


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealCloud]:
    made = RealCloud(tmp_path_factory.mktemp("cloud"))
    made.start()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def project(cloud: RealCloud, image_file: Path) -> Project:
    return Project(cloud, image_file)


def become(client: Any, server: Any, status: str) -> Any:
    return client.compute.wait_for_server(server, status=status, wait=PEACE, interval=0.2)


def shelved_images(client: Any) -> list[Any]:
    return [image for image in client.image.images() if image.name.endswith("-shelved")]


def info(path: Path) -> dict[str, Any]:
    command = ["qemu-img", "info", "-U", "--output=json", str(path)]
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return found


@pytest.mark.capability("MG-SHV-1", "MG-SHV-2", "MG-SHV-3", "MG-SHV-5", "API-109")
def test_a_guest_is_put_away_and_comes_back_with_what_it_has_written(
    cloud: RealCloud, project: Project, tmp_path: Path
) -> None:
    client, network = project.client, project.networks[0].id
    server = project.active(project.boot("away", project.networks[0], key_name="key", config_drive=True))
    cloud.wait_for_line(client, server, " ready")
    where = address(server)
    written = cloud.shell(network, where, WRITE)
    assert written.endswith("rc=0\n")

    client.compute.shelve_server(server)
    away = become(client, server, "SHELVED_OFFLOADED")
    assert away.addresses == server.addresses
    wait_until(lambda: not cloud.remains(), 60, f"left on the host: {cloud.remains()}")
    (image,) = shelved_images(client)
    assert (image.name, image.status, image.disk_format) == ("away-shelved", "active", "qcow2")
    assert image.properties["image_type"] == "snapshot"
    assert image.instance_uuid == server.id
    data = tmp_path / "image"
    client.image.download_image(image, output=str(data))
    found = info(data)
    assert found["format"] == "qcow2" and "backing-filename" not in found
    assert found["virtual-size"] == (server.flavor.disk << 30 or found["virtual-size"])
    usage = cloud.connect("kilonova-admin").placement
    (provider,) = usage.resource_providers()
    used = usage.get(f"/resource_providers/{provider.id}/usages").json()["usages"]
    assert set(used.values()) == {0}

    client.compute.unshelve_server(server)
    back = become(client, server, "ACTIVE")
    assert back.image.id == project.image.id
    console = cloud.wait_for_line(client, server, " ready")
    assert f"ip={where}/24" in console
    assert cloud.shell(network, where, READ) == written
    assert shelved_images(client) == []
    files = cloud.state / "instances" / server.id
    assert "backing-filename" not in info(files / "disk")
    assert not [path.name for path in files.iterdir() if path.name.startswith(("disk.base", "snapshot"))]
    assert "keys=0" in next(line for line in console.splitlines() if "metadata source=configdrive" in line)

    client.compute.reboot_server(server, "HARD")
    become(client, server, "ACTIVE")
    cloud.wait_for_line(client, server, " ready", times=2)
    assert cloud.shell(network, where, READ) == written

    client.compute.shelve_server(server)  # and once more: its disk has no base now
    become(client, server, "SHELVED_OFFLOADED")
    client.compute.delete_server(server)
    client.compute.wait_for_delete(server, wait=120, interval=0.2)
    assert shelved_images(client) == []
    wait_until(lambda: not cloud.remains(), 60, f"left on the host: {cloud.remains()}")


@pytest.mark.capability("MG-SHV-4")
def test_a_guest_that_stays_on_its_host_is_only_off(
    tmp_path_factory: pytest.TempPathFactory, cloud: RealCloud, project: Project
) -> None:
    client, network = project.client, project.networks[0].id
    cloud.stop()
    options = cloud.config.read_text()
    cloud.config.write_text("[DEFAULT]\nshelved_offload_time = -1\n" + options)
    cloud.start()
    server = project.active(project.boot("stays", project.networks[0]))
    cloud.wait_for_line(client, server, " ready")
    where = address(server)
    written = cloud.shell(network, where, WRITE)
    client.compute.shelve_server(server)
    become(client, server, "SHELVED")
    assert "acpi power button" in cloud.console(client, server)
    assert [image.status for image in shelved_images(client)] == ["active"]
    files = cloud.state / "instances" / server.id
    assert not [path.name for path in files.iterdir() if path.name.startswith("snapshot")]
    client.compute.unshelve_server(server)
    become(client, server, "ACTIVE")
    cloud.wait_for_line(client, server, " ready", times=2)
    assert cloud.shell(network, where, READ) == written
    wait_until(lambda: not shelved_images(client), 60, "its image is not needed any more")
    client.compute.shelve_server(server)
    become(client, server, "SHELVED")
    admin = cloud.connect("kilonova-admin")
    admin.compute.shelve_offload_server(server.id)
    become(client, server, "SHELVED_OFFLOADED")
    wait_until(lambda: not cloud.remains(), 60, f"left on the host: {cloud.remains()}")
    client.compute.unshelve_server(server)
    become(client, server, "ACTIVE")
    cloud.wait_for_line(client, server, " ready")
    assert cloud.shell(network, where, READ) == written
    client.compute.delete_server(server)
    client.compute.wait_for_delete(server, wait=120, interval=0.2)
    wait_until(lambda: not cloud.remains(), 60, f"left on the host: {cloud.remains()}")


@pytest.mark.capability("MG-SNP-1", "API-21")
def test_others_are_made_of_a_guest_that_runs(cloud: RealCloud, project: Project) -> None:
    client, network = project.client, project.networks[0].id
    server = project.active(project.boot("first", project.networks[0]))
    cloud.wait_for_line(client, server, " ready")
    boot_id = "cat /proc/sys/kernel/random/boot_id"
    written = cloud.shell(network, address(server), f"{WRITE}; sync")
    before = cloud.shell(network, address(server), boot_id)
    image = client.compute.create_server_image(server, "of-first", metadata={"made": "here"}, wait=True)
    assert (image.status, image.disk_format, image.properties["made"]) == ("active", "qcow2", "here")
    assert cloud.shell(network, address(server), boot_id) == before, "it has gone on"
    other = client.compute.create_server(
        name="other", image_id=image.id, flavor_id="42", networks=[{"uuid": network}]
    )
    other = project.active(other)
    cloud.wait_for_line(client, other, " ready")
    assert cloud.shell(network, address(other), READ) == written.partition("\nrc")[0] + "\nrc=0\n"
    for each in (server, other):
        client.compute.delete_server(each)
        client.compute.wait_for_delete(each, wait=120, interval=0.2)
    wait_until(lambda: not cloud.remains(), 60, f"left on the host: {cloud.remains()}")
    assert client.image.get_image(image.id).status == "active"


# ---- two hosts ----


@pytest.fixture(scope="module")
def pair() -> Iterator[TwoHosts]:
    with two_hosts() as made:
        yield made


@pytest.mark.capability("MG-SHV-5", "API-31")
def test_a_guest_comes_back_on_another_host(pair: TwoHosts, image_file: Path) -> None:
    """By way of a controller: agents have nothing but the bus."""
    project = Project(pair, image_file)
    server = pair.boot_ready(project, "wanders")
    source = pair.host_of(server)
    target = pair.cloud.other(source.name)

    def asked(script: str) -> str:
        station = pair.station(project.networks[0], pair.host_of(server))
        try:
            return station.page(address(server), "/cgi-bin/sh", script)
        finally:
            pair.remove_station(station)

    written = asked(WRITE)
    assert written.endswith("rc=0\n")
    project.client.compute.shelve_server(server)
    become(project.client, server, "SHELVED_OFFLOADED")
    assert (pair.has_files(server), pair.has_ports(server)) == ([], [])
    pair.admin.compute.unshelve_server(server.id, host=target.name)
    become(project.client, server, "ACTIVE")
    assert pair.host_of(server) is target
    pair.wait_for_line(project.client, server, " ready")
    assert asked(READ) == written
    pair.is_only_on(server, target)
    # Its disk is on no image any more, and goes live as it is.
    pair.admin.compute.live_migrate_server(server.id, host=source.name, block_migration="auto")
    assert pair.wait_migrated(server, "completed", "error", "failed").status == "completed"
    assert pair.at_rest(server).status == "ACTIVE"
    drop = "echo 3 >/proc/sys/vm/drop_caches; "
    assert asked(drop + READ) == written
    pair.is_only_on(server, source)
    project.client.compute.delete_server(server)
    project.client.compute.wait_for_delete(server, wait=120, interval=0.2)
    assert pair.has_files(server) == []
    assert shelved_images(project.client) == []
