"""A guest moves between two real hosts in every way: while it runs, and its peers see how; while it is off,
with what it has written; and grows.

Once with disks of each host's own, which are sent, once with a directory that both hosts have.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kilonova.testing.lab.host import Host
from kilonova.testing.lab.inside import STATE
from tests.real.real_cloud import SDKS_OWN, wait_until
from tests.real.test_cloud import Project, image_file
from tests.real.two_hosts import PEACE, TwoHosts, Watch, ask, two_hosts

pytestmark = [pytest.mark.real, *SDKS_OWN]

__all__ = ["image_file"]

GIB = 1 << 30
DOWNTIME = 5.0  # seconds of silence that a busy machine may make of a fraction of one
BOOT_ID = "cat /proc/sys/kernel/random/boot_id"


@pytest.fixture(scope="module", params=["block", "shared"])
def cloud(request: pytest.FixtureRequest) -> Iterator[TwoHosts]:
    with two_hosts(shared=request.param == "shared") as made:
        yield made


@pytest.fixture(scope="module")
def project(cloud: TwoHosts, image_file: Path) -> Project:
    return Project(cloud, image_file)


@pytest.fixture(scope="module")
def guest(cloud: TwoHosts, project: Project) -> Any:
    made = cloud.boot_ready(project, "moves", config_drive=True)
    cloud.station(project.networks[0], cloud.host_of(made))
    return made


def asked(cloud: TwoHosts, server: Any, script: str) -> str:
    """What a script in the guest says, as soon as it can be asked."""
    return ask(cloud.stations[0], server, script)


def files(host: Host, server: Any, suffix: str = "") -> list[str]:
    """Names of the guest's files on a host, as it sees them."""
    here = f"{STATE}/instances/{server.id}{suffix}/"
    found = host.run("find", f"{STATE}/instances/", "-path", f"{here}*", "-printf", "%P\n")
    return sorted(line.partition("/")[2] for line in found.split())


def settled(cloud: TwoHosts, server: Any, status: str) -> Any:
    found = cloud.at_rest(server)
    assert found.status == status, found.fault
    return found


def waits_for_decision(cloud: TwoHosts, server: Any, source: Host, target: Host) -> None:
    """The guest runs at the destination only, and the source keeps what it had."""
    settled(cloud, server, "VERIFY_RESIZE")
    assert cloud.host_of(server) is target
    assert cloud.presence(server) == {target.name: "running"}
    assert cloud.has_ports(server) == [target.name]
    assert "disk" in files(source, server, "_resize")
    assert files(source, server) == [] or cloud.shared


def is_confirmed(cloud: TwoHosts, server: Any, target: Host) -> None:
    settled(cloud, server, "ACTIVE")
    cloud.is_only_on(server, target, shared=cloud.shared)
    assert all(files(host, server, "_resize") == [] for host in cloud.hosts)


def boots(cloud: TwoHosts, server: Any) -> tuple[str, int, str]:
    """The disk's own id, how often it was booted from, and a sum of what is on it."""
    text = asked(cloud, server, "cat /data/disk-id; echo; cat /data/boots; sha256sum /data/kept")
    lines = text.splitlines()
    return lines[0], int(lines[1]), lines[2].split()[0]


def test_a_guest_goes_there_and_back_live(cloud: TwoHosts, project: Project, guest: Any) -> None:
    source = cloud.host_of(guest)
    watch = Watch(cloud.stations[0], guest)
    watch.begin()
    keep = "dd if=/dev/urandom of=/tmp/kept bs=64k count=64 2>/dev/null; cp /tmp/kept /data; sync; "
    script = f"sha256sum /tmp/kept /data/kept; {BOOT_ID}"
    before = asked(cloud, guest, keep + script)
    assert before.count("kept") == 2 and before.endswith("rc=0\n")
    for target in (cloud.cloud.other(source.name), source):
        cloud.admin.compute.live_migrate_server(guest.id, host=None, block_migration="auto")
        migration = cloud.wait_migrated(guest, "completed", "error", "failed", "cancelled")
        assert migration.status == "completed"
        assert migration.dest_compute == target.name
        assert cloud.at_rest(guest).status == "ACTIVE"
        assert cloud.host_of(guest) is target
        cloud.is_only_on(guest, target, shared=cloud.shared)
        assert asked(cloud, guest, script) == before
        assert cloud.console(project.client, guest).count(" ready") == 1, "the console's log goes along"
    ping, stream = watch.end()
    print(f"\n{'shared' if cloud.shared else 'block'}: pings {ping}; lines {stream}")
    assert stream.lost == 0
    assert max(ping.longest, stream.longest) < DOWNTIME
    assert ping.lost <= 2 * DOWNTIME / 0.02


@pytest.mark.capability("MG-RSZ-5", "MG-RSZ-7")
def test_a_guest_is_migrated_with_what_is_on_its_disk(cloud: TwoHosts, guest: Any) -> None:
    asked(cloud, guest, "dd if=/dev/urandom of=/data/kept bs=64k count=320 2>/dev/null; sync")
    before = boots(cloud, guest)
    source = cloud.host_of(guest)
    target = cloud.cloud.other(source.name)
    cloud.admin.compute.migrate_server(guest.id)
    migration = cloud.wait_migrated(guest, "finished", "error")
    assert (migration.status, migration.dest_compute) == ("finished", target.name)
    waits_for_decision(cloud, guest, source, target)
    assert boots(cloud, guest) == (before[0], before[1] + 1, before[2])
    said = cloud.console(cloud.connect(), guest)
    assert "configdrive dev=" in said and " ready" in said, "the console's log goes along"
    cloud.admin.compute.confirm_server_resize(guest.id)
    cloud.wait_migrated(guest, "confirmed", "error")
    is_confirmed(cloud, guest, target)


@pytest.mark.capability("MG-RSZ-11", "MG-RSZ-12")
def test_a_revert_has_the_disk_as_it_was_when_it_left(cloud: TwoHosts, guest: Any) -> None:
    before = boots(cloud, guest)
    source = cloud.host_of(guest)
    target = cloud.cloud.other(source.name)
    cloud.admin.compute.migrate_server(guest.id, host=target.name)
    cloud.wait_migrated(guest, "finished", "error")
    waits_for_decision(cloud, guest, source, target)
    asked(cloud, guest, "echo other >/data/kept; sync")
    cloud.admin.compute.revert_server_resize(guest.id)
    cloud.wait_migrated(guest, "reverted", "error")
    is_confirmed(cloud, guest, source)
    assert boots(cloud, guest) == (before[0], before[1] + 1, before[2])


@pytest.mark.capability("MG-RSZ-7", "MG-RSZ-9")
def test_a_resize_gives_the_guest_more_disk_and_memory(cloud: TwoHosts, guest: Any) -> None:
    before = boots(cloud, guest)
    old = cloud.admin.compute.get_server(guest.id).flavor
    flavor = cloud.admin.compute.create_flavor(
        name="larger", ram=192, vcpus=2, disk=old.disk + 1, ephemeral=1, swap=8
    )
    source = cloud.host_of(guest)
    target = cloud.cloud.other(source.name)
    client = cloud.connect()
    client.compute.resize_server(guest.id, flavor.id)
    cloud.wait_migrated(guest, "finished", "error")
    waits_for_decision(cloud, guest, source, target)
    seen = asked(
        cloud, guest, "nproc; cat /sys/block/vda/size; grep MemTotal /proc/meminfo; cat /proc/partitions"
    ).splitlines()
    assert seen[0] == "2"
    assert int(seen[1]) * 512 == (old.disk + 1) * GIB
    assert int(seen[2].split()[1]) > old.ram * 1024, "it has more memory than it could have had before"
    sizes = {line.split()[3]: int(line.split()[2]) * 1024 for line in seen if "vd" in line and " vd" in line}
    assert (sizes["vdb"], sizes["vdc"]) == (GIB, 8 << 20)
    assert boots(cloud, guest) == (before[0], before[1] + 1, before[2])
    client.compute.confirm_server_resize(guest.id)
    cloud.wait_migrated(guest, "confirmed", "error")
    is_confirmed(cloud, guest, target)
    assert client.compute.get_server(guest.id).flavor.name == "larger"


def test_a_guest_that_is_off_stays_off(cloud: TwoHosts, guest: Any) -> None:
    client = cloud.connect()
    before = boots(cloud, guest)
    client.compute.stop_server(guest.id)
    wait_until(lambda: cloud.at_rest(guest).status == "SHUTOFF", PEACE, "it does not stop")
    source = cloud.host_of(guest)
    target = cloud.cloud.other(source.name)
    cloud.admin.compute.migrate_server(guest.id)
    cloud.wait_migrated(guest, "finished", "error")
    settled(cloud, guest, "VERIFY_RESIZE")
    assert cloud.presence(guest) == {target.name: "shut off"}
    cloud.admin.compute.confirm_server_resize(guest.id)
    cloud.wait_migrated(guest, "confirmed", "error")
    settled(cloud, guest, "SHUTOFF")
    client.compute.start_server(guest.id)
    wait_until(lambda: cloud.at_rest(guest).status == "ACTIVE", PEACE, "it does not start")
    assert boots(cloud, guest) == (before[0], before[1] + 1, before[2])
    cloud.is_only_on(guest, target, shared=cloud.shared)


@pytest.mark.capability("API-95")
def test_a_delete_of_a_resized_server_leaves_nothing_on_either_host(cloud: TwoHosts, guest: Any) -> None:
    cloud.admin.compute.migrate_server(guest.id)
    cloud.wait_migrated(guest, "finished", "error")
    settled(cloud, guest, "VERIFY_RESIZE")
    client = cloud.connect()
    client.compute.delete_server(guest.id)
    client.compute.wait_for_delete(guest, wait=PEACE)
    assert cloud.presence(guest) == {}
    assert cloud.has_ports(guest) == []
    assert all(files(host, guest, suffix) == [] for host in cloud.hosts for suffix in ("", "_resize"))
