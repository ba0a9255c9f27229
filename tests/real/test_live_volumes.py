"""Guests with volumes that are sent between two real hosts while they run and write to them.

On these hosts QEMU is a user of its own, to whom libvirt gives files and from whom it takes them back.
"""

from __future__ import annotations

import pwd
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from msgspec.structs import replace

from kilonova.errors import HostFault
from kilonova.model.volume import Attachment
from kilonova.rpc.messages import GuestSpec
from kilonova.rpc.moves import Presence
from kilonova.testing.lab import host
from kilonova.virt.libvirt.live_sending import disks_to_send
from kilonova.virt.libvirt.xml.volume import volume_of
from tests.real import volume_writer
from tests.real.guests import eventually
from tests.real.libvirt_host import new_volume
from tests.real.live_hosts import PATIENCE, End, Pair, pair
from tests.real.volume_writer import written

pytestmark = [pytest.mark.real, pytest.mark.slow]

OWN_USER = """
user = "libvirt-qemu"
group = "kvm"
dynamic_ownership = 1
"""
STORED = 2  # VIR_DOMAIN_XML_INACTIVE


@pytest.fixture(autouse=True)
def own_user(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = [line.partition(" = ")[0] for line in OWN_USER.splitlines()]
    others = [line for line in host.QEMU.splitlines() if line.partition(" = ")[0] not in ours]
    monkeypatch.setattr(host, "QEMU", "\n".join(others) + OWN_USER)


def is_qemus(volume: Attachment) -> bool:
    """Its maker's still, and QEMU's."""
    found, user = path_of(volume).stat(), pwd.getpwnam("libvirt-qemu")
    return (found.st_uid, found.st_gid, found.st_mode & 0o777) == (0, user.pw_gid, 0o660)


def path_of(volume: Attachment) -> Path:
    assert volume.connection is not None
    return Path(volume.connection.path)


async def goes_on(volume: Attachment) -> None:
    """The guest writes to it, and was not booted anew."""
    before = written(path_of(volume))

    def more() -> bool:
        boots, times = written(path_of(volume))
        return boots == 1 and times > before[1] + 2

    await eventually(more, PATIENCE)


async def running(hosts: Pair, tmp_path: Path, one: Attachment, two: Attachment) -> GuestSpec:
    """A guest at host one that writes to two volumes; the second has come while it ran."""
    spec = volume_writer.writer(hosts.images, volume_writer.image(tmp_path), volumes=(one,))
    await hosts.one.driver.prepare(spec, hosts.images)
    await hosts.one.driver.start(spec, paused=False)
    await goes_on(one)
    await hosts.one.driver.attach_volume(spec, two)
    await goes_on(two)
    return replace(spec, volumes=(one, two))


async def gone_over(hosts: Pair, spec: GuestSpec, source: End, target: End) -> None:
    """Send it, and be sure that it is there with its volumes, which were not copied."""
    plan = await hosts.planned(spec, source, target)
    assert plan.block and set(plan.disks) == {"disk"}
    assert disks_to_send(await source.xml(spec), plan) == ["vda"]
    outcome = await source.sends(spec, plan)
    assert outcome.state == "completed", outcome
    await target.driver.settle_live(spec)
    await source.driver.leave_live(spec.uuid, plan)
    assert await source.presence(spec) == Presence.ABSENT
    for volume in spec.volumes:
        assert is_qemus(volume)
        await goes_on(volume)
        for xml in (await target.xml(spec), await target.xml(spec, STORED)):
            disk = volume_of(xml, volume.volume_id)
            assert disk is not None and disk.find("source[@file]") is not None
            assert ET.tostring(disk).count(path_of(volume).name.encode()) >= 2


async def refused(hosts: Pair, spec: GuestSpec, hidden: Attachment) -> None:
    """The destination does not see a volume: nobody touches the guest, or makes anything there."""
    path = path_of(hidden)
    aside = path.with_name("aside")
    path.rename(aside)
    try:
        with pytest.raises(HostFault, match=f"Volume {hidden.volume_id} .* there is no {path}"):
            await hosts.planned(spec, hosts.one, hosts.two)
    finally:
        aside.rename(path)
    assert not list(hosts.two.instances.glob(".probe*")) and not hosts.two.files(spec).exists()
    assert await hosts.two.presence(spec) == Presence.ABSENT
    await goes_on(hidden)


@pytest.mark.capability("MG-LM-12")
async def test_volumes_go_along_and_only_the_guests_own_disks_are_copied(tmp_path: Path) -> None:
    async with pair() as hosts:
        one, two = (new_volume(hosts.one.volumes, f"/dev/vd{letter}") for letter in "bc")
        spec = await running(hosts, tmp_path, one, two)
        await refused(hosts, spec, two)

        # libvirt does not know the directory as shared, and says so, unless it is told to go on.
        plan = await hosts.planned(spec, hosts.one, hosts.two)
        outcome = await hosts.one.sends(spec, plan)
        assert outcome.state == "failed" and "nsafe migration" in outcome.reason
        await hosts.two.driver.undefine(spec.uuid)
        await hosts.two.driver.discard(spec.uuid)
        await goes_on(one)

        # One that the destination would not give it stops it, too.
        plan = await hosts.planned(spec, hosts.one, hosts.two, replace(spec, volumes=(one,)))
        with pytest.raises(HostFault, match=f"volume {two.volume_id} is not on the destination"):
            await hosts.one.sends(spec, plan)
        await hosts.two.driver.discard(spec.uuid)
        assert is_qemus(one) and is_qemus(two)
        await goes_on(two)

        for source, target in ((hosts.one, hosts.two), (hosts.two, hosts.one)):
            await source.again(unsafe=True)
            await gone_over(hosts, spec, source, target)
        await hosts.one.driver.detach_volume(spec, two)
        last = written(path_of(two))
        await goes_on(one)
        assert written(path_of(two)) == last
