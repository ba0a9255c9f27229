"""A volume by OpenStack's own API, at a guest that moves between two real hosts in every way and always finds
on it what it has written.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openstack.exceptions import BadRequestException

from tests.real.real_cloud import SDKS_OWN, wait_until
from tests.real.test_cloud import Project, image_file
from tests.real.two_hosts import PEACE, TwoHosts, ask, two_hosts

pytestmark = [pytest.mark.real, *SDKS_OWN]

__all__ = ["image_file"]

GIB = 1 << 30
KEEP = "dd if=/dev/urandom of=/dev/vdb bs=64k count=64 conv=fsync 2>/dev/null; "
SUM = "dd if=/dev/vdb bs=64k count=64 2>/dev/null | sha256sum"


@pytest.fixture(scope="module")
def cloud() -> Iterator[TwoHosts]:
    with two_hosts(libvirt="live_migration_unsafe = True") as made:  # libvirt does not know /tmp as shared
        yield made


@pytest.fixture(scope="module")
def project(cloud: TwoHosts, image_file: Path) -> Project:
    return Project(cloud, image_file)


@pytest.fixture(scope="module")
def volume(project: Project) -> Any:
    made = project.client.block_storage.create_volume(size=1, name="kept")
    return project.client.block_storage.wait_for_status(made, "available", interval=0.2, wait=PEACE)


@pytest.fixture(scope="module")
def guest(cloud: TwoHosts, project: Project, volume: Any) -> Any:
    made = cloud.boot_ready(project, "keeps")
    cloud.station(project.networks[0], cloud.host_of(made))
    project.client.compute.create_volume_attachment(made, volume_id=volume.id)
    cloud.wait_for_line(project.client, made, f"hotplug disk add vdb bytes={GIB} serial={volume.id[:20]}")
    return made


@pytest.fixture(scope="module")
def kept(cloud: TwoHosts, guest: Any) -> str:
    """The sum of what the guest has written to its volume."""
    return asked(cloud, guest, KEEP + SUM)


def asked(cloud: TwoHosts, server: Any, script: str) -> str:
    return ask(cloud.stations[0], server, script)


def is_attached(cloud: TwoHosts, server: Any, volume: Any) -> None:
    """Once, at the host at which the server is, by the word of the volume service and of the hosts."""

    def hosts() -> list[str]:
        found = cloud.admin.block_storage.get_volume(volume.id)
        assert found.status == "in-use" and [each["server_id"] for each in found.attachments] == [server.id]
        return [each["host_name"] for each in found.attachments]

    here = cloud.host_of(server)
    wait_until(lambda: hosts() == [here.name], PEACE, "the volume is attached at another host")
    have = {
        host.name: volume.id in host.run("virsh", "-c", "qemu:///system", "dumpxml", server.id)
        for host in cloud.hosts
        if host.name in cloud.presence(server)
    }
    assert have == {here.name: True}


@pytest.mark.capability("MG-LM-12")
def test_it_goes_along_while_the_guest_runs(cloud: TwoHosts, guest: Any, volume: Any, kept: str) -> None:
    target = cloud.cloud.other(cloud.host_of(guest).name)
    is_attached(cloud, guest, volume)
    cloud.admin.compute.live_migrate_server(guest.id, host=None, block_migration="auto")
    assert cloud.wait_migrated(guest, "completed", "error", "failed").status == "completed"
    cloud.at_rest(guest)
    cloud.is_only_on(guest, target)
    is_attached(cloud, guest, volume)
    assert asked(cloud, guest, SUM) == kept


def test_a_guest_stays_where_its_volume_is_seen(cloud: TwoHosts, guest: Any, volume: Any, kept: str) -> None:
    source = cloud.host_of(guest)
    target, where = cloud.cloud.other(source.name), str(cloud.cloud.volumes)
    target.run("mount", "-t", "tmpfs", "empty", where)
    try:
        with pytest.raises(BadRequestException, match=f"{target.name}: .* Volume {volume.id} cannot be had"):
            cloud.admin.compute.live_migrate_server(guest.id, host=None, block_migration="auto")
    finally:
        target.run("umount", where)
    cloud.is_only_on(guest, source)
    is_attached(cloud, guest, volume)
    assert asked(cloud, guest, SUM) == kept


@pytest.mark.capability("MG-RSZ-5", "MG-RSZ-7")
def test_it_goes_along_while_the_guest_is_off(cloud: TwoHosts, guest: Any, volume: Any, kept: str) -> None:
    source = cloud.host_of(guest)
    for back in (True, False):
        cloud.admin.compute.migrate_server(guest.id)
        wait_until(lambda: cloud.at_rest(guest).status == "VERIFY_RESIZE", PEACE)
        assert cloud.host_of(guest) is not source
        is_attached(cloud, guest, volume)
        assert asked(cloud, guest, SUM) == kept
        end = cloud.admin.compute.revert_server_resize if back else cloud.admin.compute.confirm_server_resize
        end(guest.id)
        wait_until(lambda: cloud.at_rest(guest).status == "ACTIVE", PEACE)
        assert (cloud.host_of(guest) is source) is back
        is_attached(cloud, guest, volume)
        assert asked(cloud, guest, SUM) == kept


@pytest.mark.capability("MG-DEV-3")
def test_it_goes_when_the_guest_has_let_go(
    cloud: TwoHosts, project: Project, guest: Any, volume: Any, kept: str
) -> None:
    project.client.compute.reboot_server(guest.id, "HARD")
    cloud.at_rest(guest)
    assert asked(cloud, guest, SUM) == kept
    project.client.compute.delete_volume_attachment(guest.id, volume.id)
    cloud.wait_for_line(project.client, guest, "hotplug disk remove vdb")
    wait_until(lambda: project.client.block_storage.get_volume(volume.id).status == "available", PEACE)
    path = cloud.cloud.volumes / volume.id
    with path.open("rb") as file:
        assert hashlib.sha256(file.read(64 * 65536)).hexdigest() == kept.split()[0]
    project.client.block_storage.delete_volume(volume)
    wait_until(lambda: not path.exists(), PEACE)
