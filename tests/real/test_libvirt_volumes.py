"""Volumes of guests on real libvirt: what a guest sees of them, what it writes to them, and what stays."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from msgspec.structs import replace

from kilonova.errors import Failed, HostFault
from kilonova.model.volume import Attachment
from kilonova.rpc.messages import GuestSpec
from kilonova.virt.libvirt.xml.volume import volume_of
from tests.real import volume_writer
from tests.real.guests import eventually
from tests.real.libvirt_host import PATIENCE, Host, kill_libvirtd, new_volume, opened, start_libvirtd
from tests.real.volume_writer import SERIAL, written

pytestmark = [pytest.mark.real, pytest.mark.asyncio(loop_scope="module")]

INACTIVE = 2  # VIR_DOMAIN_XML_INACTIVE
MAKER = 12345  # a user
QEMU_CONF = Path("/etc/libvirt/qemu.conf")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def host(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Host]:
    directory = tmp_path_factory.mktemp("host")
    async with opened(directory / "instances", detach_attempts=2, detach_timeout=5.0) as made:
        yield made


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return volume_writer.image(tmp_path_factory.mktemp("image"))


def path_of(volume: Attachment) -> Path:
    assert volume.connection is not None
    return Path(volume.connection.path)


async def described(host: Host, spec: GuestSpec, volume: Attachment, flags: int = 0) -> ET.Element:
    found = await looked_for(host, spec, volume, flags)
    assert found is not None
    return found


async def looked_for(host: Host, spec: GuestSpec, volume: Attachment, flags: int) -> ET.Element | None:
    text: str = await host.driver._connection.call(
        lambda link: link.lookupByUUIDString(spec.uuid).XMLDesc(flags)
    )
    return volume_of(text, volume.volume_id)


async def is_written(volume: Attachment, boots: int, times: int = 1) -> None:
    """Wait until the guest, at that boot of its, has written so often more."""
    before = written(path_of(volume))
    first = before[1] if before[0] == boots else 0

    def there() -> bool:
        now = written(path_of(volume))
        return now[0] == boots and now[1] >= first + times

    await eventually(there, PATIENCE)


@pytest.mark.capability("MG-DEV-2", "MG-DEV-3")
async def test_a_guest_gets_its_volumes_while_it_runs_and_lets_go_of_them(host: Host, image: bytes) -> None:
    spec = volume_writer.writer(host.images, image)
    one, two = new_volume(host.volumes, "/dev/vdb"), new_volume(host.volumes, "/dev/vdc", 2 << 20)
    path_of(one).write_bytes(b"0 7 from before\n".ljust(1 << 20, b"\0"))
    await host.driver.prepare(spec, host.images)
    await host.driver.start(spec, paused=False)
    await host.says(spec, b"user_data rc=0")
    for volume, name, size in ((one, b"vdb", 1 << 20), (two, b"vdc", 2 << 20)):
        for _ in range(2):
            await host.driver.attach_volume(spec, volume)
        serial = volume.volume_id[:SERIAL].encode()
        await host.says(spec, b"hotplug disk add %s bytes=%d serial=%s" % (name, size, serial))
        await is_written(volume, 1)
    output = await host.says(spec, b"holds", 2)
    assert b"volume vdb %s holds '0 7 from before'" % one.volume_id[:SERIAL].encode() in output
    spec = replace(spec, volumes=(one, two))

    # What was written stays, through a hard reboot, and the guest has them from its first moment.
    await host.driver.power_off(spec.uuid)
    assert written(path_of(two))[0] == 1
    kept = [(await described(host, spec, each, INACTIVE)).find("address") for each in (one, two)]
    await host.driver.start(spec, paused=False)
    output = await host.says(spec, b"holds", 4)
    assert b"volume vdc %s holds '1 " % two.volume_id[:SERIAL].encode() in output
    await is_written(one, 2)
    await is_written(two, 2)
    places = [(await described(host, spec, each)).find("address") for each in (one, two)]
    assert [each.attrib for each in places if each is not None] == [
        each.attrib for each in kept if each is not None
    ]

    # One goes while the guest writes to it; then the guest has forgotten it, and so has its definition.
    for _ in range(2):
        await host.driver.detach_volume(spec, one)
    await host.says(spec, b"hotplug disk remove vdb")
    last = written(path_of(one))
    assert last[0] == 2
    await is_written(two, 2, 5)
    assert written(path_of(one)) == last
    for flags in (0, INACTIVE):
        assert await looked_for(host, spec, one, flags) is None
    await host.driver.attach_volume(spec, one)  # it may come back
    await is_written(one, 2)
    await host.driver.undefine(spec.uuid)
    await host.driver.discard(spec.uuid)
    assert written(path_of(two))[0] == written(path_of(one))[0] == 2


@pytest.mark.capability("MG-DEV-2")
@pytest.mark.parametrize(
    ("bus", "machine", "name"),
    [("scsi", "pc", "sdb"), ("scsi", "q35", "sdb"), ("usb", "pc", "sdb"), ("virtio", "q35", "vdb")],
)
async def test_on_every_bus_that_takes_disks_at_any_time(
    host: Host, bus: str, machine: str, name: str
) -> None:
    properties = {"hw_disk_bus": bus, "hw_machine_type": machine}
    spec = await host.running(properties=properties)
    volume = new_volume(host.volumes, f"/dev/{name}")
    await host.driver.attach_volume(spec, volume)
    for flags in (0, INACTIVE):
        target = (await described(host, spec, volume, flags)).find("target")
        assert target is not None and dict(target.attrib) == {"dev": name, "bus": bus}
    await host.driver.power_off(spec.uuid)
    await host.driver.detach_volume(spec, volume)
    assert await looked_for(host, spec, volume, INACTIVE) is None
    await host.driver.start(replace(spec, volumes=(volume,)), paused=True)
    target = (await described(host, spec, volume)).find("target")
    assert target is not None and target.get("dev") == name
    await host.driver.undefine(spec.uuid)


@pytest.mark.capability("MG-DEV-2")
async def test_a_bus_that_takes_none_while_the_guest_runs(host: Host) -> None:
    spec = await host.running(properties={"hw_disk_bus": "ide"})
    volume = new_volume(host.volumes, "/dev/hdb")
    with pytest.raises(HostFault, match=f"does not take volume {volume.volume_id}.*hotplug"):
        await host.driver.attach_volume(spec, volume)
    with pytest.raises(Failed, match="no disk '/dev/hde' on the bus ide, which has 4 places"):
        await host.driver.attach_volume(spec, replace(volume, device="/dev/hde"))
    await host.driver.power_off(spec.uuid)
    await host.driver.attach_volume(spec, volume)
    await host.driver.start(replace(spec, volumes=(volume,)), paused=True)
    await host.driver.undefine(spec.uuid)


def whose(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_uid, found.st_gid, found.st_mode & 0o777


@contextlib.contextmanager
def another_user() -> Iterator[pwd.struct_passwd]:
    """libvirt runs QEMU as a user of its own and gives it what it is to open, as it is installed."""
    before = QEMU_CONF.read_text()
    user = pwd.getpwnam("libvirt-qemu")
    ours = {"user": '"libvirt-qemu"', "group": '"kvm"', "dynamic_ownership": "1"}
    lines = [line for line in before.splitlines() if line.partition(" ")[0] not in ours]
    try:
        _configure("\n".join([*lines, *(f"{key} = {value}" for key, value in ours.items())]))
        yield user
    finally:
        _configure(before)


def _configure(text: str) -> None:
    kill_libvirtd()
    QEMU_CONF.write_text(text)
    start_libvirtd()


async def test_a_volume_is_qemus_and_stays_so_for_the_next_host() -> None:
    """libvirt would take it from QEMU when the guest ends here, also while it is in use elsewhere."""
    directory = Path(tempfile.mkdtemp(prefix="kn-volumes-"))
    directory.chmod(0o711)
    try:
        with another_user() as user:
            async with opened(directory / "instances") as host:
                one, two = new_volume(host.volumes, "/dev/vdb"), new_volume(host.volumes, "/dev/vdc")
                spec = replace(await host.prepared(), volumes=(one,))
                await host.driver.check_volumes((one, two))
                assert whose(path_of(one)) == (0, 0, 0o600)
                os.chown(path_of(one), MAKER, MAKER)  # the controllers' user
                await host.driver.start(spec, paused=True)
                await host.driver.attach_volume(spec, two)
                disk = host.files(spec) / "disk"
                assert disk.stat().st_uid == user.pw_uid
                for _ in range(2):
                    assert whose(path_of(one)) == (MAKER, user.pw_gid, 0o660)
                    assert whose(path_of(two)) == (0, user.pw_gid, 0o660)
                    await host.driver.undefine(spec.uuid)
                assert disk.stat().st_uid == 0  # that is what libvirt does with others
    finally:
        shutil.rmtree(directory)


async def test_several_guests_share_a_volume_that_is_made_for_it(host: Host) -> None:
    shared = replace(new_volume(host.volumes), multiattach=True)
    alone = new_volume(host.volumes, "/dev/vdc")
    one, two = await host.running(), await host.running()
    for spec in (one, two):
        await host.driver.attach_volume(spec, shared)
    await host.driver.attach_volume(one, alone)
    with pytest.raises(HostFault, match=f"does not take volume {alone.volume_id}.*lock"):
        await host.driver.attach_volume(two, alone)
    for spec in (one, two):
        await host.driver.undefine(spec.uuid)
