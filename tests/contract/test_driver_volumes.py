"""Volumes of guests on every hypervisor driver: one suite for the fake one and for libvirt."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from kilonova.errors import HostFault
from kilonova.model.states import Power
from kilonova.model.volume import Connection
from kilonova.rpc.messages import GuestSpec
from tests.contract.driver_rigs import FakeRig, LibvirtRig, Rig


@pytest.fixture(params=["fake", pytest.param("libvirt", marks=pytest.mark.real)])
async def rig(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Rig]:
    made: Rig = FakeRig(tmp_path) if request.param == "fake" else LibvirtRig(tmp_path)
    await made.open()
    yield made
    await made.close()


async def disks(rig: Rig, spec: GuestSpec) -> int:
    """How many the guest has besides its root disk."""
    return len((await rig.driver.diagnostics(spec.uuid)).disks) - 1


@pytest.mark.capability("MG-DEV-2")
@pytest.mark.parametrize("paused", [False, True])
async def test_volumes_come_and_are_there_at_each_start(rig: Rig, paused: bool) -> None:
    guest, one, two = await rig.prepared(), rig.volume("/dev/vdb"), rig.volume("/dev/vdd")
    await rig.driver.attach_volume(rig.guest(), one)  # one that is not there yet is started with it
    await rig.driver.attach_volume(guest, one)
    await rig.driver.start(guest, paused=paused)
    assert await disks(rig, guest) == 0  # it was not defined either
    state = await rig.driver.power_state(guest.uuid)
    for number, volume in enumerate((one, two), 1):
        for _ in range(2):
            await rig.driver.attach_volume(guest, volume)
            assert await disks(rig, guest) == number
            assert await rig.driver.power_state(guest.uuid) == state
    guest = replace(guest, volumes=(one, two))
    await rig.driver.power_off(guest.uuid)
    await rig.driver.start(guest, paused=paused)
    assert await disks(rig, guest) == 2
    await rig.reopen()
    await rig.driver.attach_volume(guest, one)
    assert await disks(rig, guest) == 2


@pytest.mark.capability("MG-DEV-3")
async def test_volumes_go_while_the_guest_is_off(rig: Rig) -> None:
    one, two = rig.volume("/dev/vdb"), rig.volume("/dev/vdc")
    guest = replace(await rig.prepared(), volumes=(one, two))
    await rig.driver.detach_volume(guest, one)  # nothing is defined
    await rig.driver.start(guest, paused=True)
    await rig.driver.power_off(guest.uuid)
    rig.hide(two)  # it goes all the same
    for volume in (two, one):
        for _ in range(2):
            await rig.driver.detach_volume(guest, volume)
    await rig.driver.attach_volume(guest, one)  # and comes back, also while the guest is off
    await rig.driver.start(replace(guest, volumes=(one,)), paused=True)
    assert await disks(rig, guest) == 1
    await rig.driver.undefine(guest.uuid)
    await rig.driver.start(replace(guest, volumes=()), paused=True)
    assert await disks(rig, guest) == 0


@pytest.mark.capability("MG-DEV-3")
async def test_a_guest_that_keeps_its_volume_has_it_still(rig: Rig) -> None:
    volume = rig.volume()
    guest = replace(await rig.prepared(), volumes=(volume,))
    await rig.driver.start(guest, paused=False)
    rig.keeps_devices(guest)
    for _ in range(2):
        with pytest.raises(HostFault, match=f"{guest.uuid} .* let go of volume {volume.volume_id}"):
            await rig.driver.detach_volume(guest, volume)
        assert await disks(rig, guest) == 1
    await rig.driver.power_off(guest.uuid)
    await rig.driver.detach_volume(guest, volume)
    await rig.driver.start(replace(guest, volumes=()), paused=True)
    assert await disks(rig, guest) == 0


@pytest.mark.capability("MG-DEV-2")
async def test_a_volume_that_the_host_does_not_see_is_named(rig: Rig) -> None:
    seen, hidden = rig.volume("/dev/vdb"), rig.volume("/dev/vdc")
    assert hidden.connection is not None
    bare = await rig.running()
    guest = replace(rig.guest(), volumes=(seen, hidden))
    await rig.driver.check_volumes(guest.volumes)
    rig.hide(hidden)
    what = f"Volume {hidden.volume_id} cannot be had on this host: there is no {hidden.connection.path}"
    with pytest.raises(HostFault, match=what):
        await rig.driver.attach_volume(bare, hidden)
    with pytest.raises(HostFault, match=what):
        await rig.driver.check_volumes(guest.volumes)
    with pytest.raises(HostFault, match=what):
        await rig.driver.check_room(guest)
    with pytest.raises(HostFault, match=what):
        await rig.driver.prepare(guest, rig.images)
    await rig.driver.prepare(replace(guest, volumes=()), rig.images)
    with pytest.raises(HostFault, match=what):
        await rig.driver.start(guest, paused=True)
    assert await rig.driver.guests() == {bare.uuid: Power.RUNNING}
    assert await disks(rig, bare) == 0


@pytest.mark.capability("MG-DEV-2")
async def test_what_cannot_be_attached_says_why(rig: Rig) -> None:
    one = rig.volume("/dev/vdb")
    guest = await rig.running()
    await rig.driver.attach_volume(guest, one)
    with pytest.raises(HostFault, match=r"/dev/vdb.*choose another device"):
        await rig.driver.attach_volume(guest, rig.volume("/dev/vdb"))
    with pytest.raises(HostFault, match=f"{one.volume_id} is not connected"):
        await rig.driver.attach_volume(guest, replace(one, connection=None))
    assert await disks(rig, guest) == 1


async def test_volumes_stay_when_all_of_the_guest_goes(rig: Rig) -> None:
    volume = rig.volume()
    guest = replace(await rig.prepared(), volumes=(volume,))
    await rig.driver.start(guest, paused=True)
    await rig.driver.snapshot(guest.uuid, str(uuid.uuid4()))
    await rig.driver.park(guest.uuid)
    await rig.driver.adopt_parked(guest)
    await rig.driver.fit_disks(guest)
    await rig.driver.drop_parked(guest.uuid)
    await rig.driver.start(guest, paused=True)
    assert await disks(rig, guest) == 1
    await rig.driver.undefine(guest.uuid)
    await rig.driver.discard(guest.uuid)
    await rig.driver.check_volumes((volume,))


async def test_a_connection_of_another_kind(rig: Rig) -> None:
    if isinstance(rig, FakeRig):
        return  # it takes all
    volume = rig.volume()
    for connection in (
        Connection(kind="rbd", path="pool/volume"),
        Connection(kind="file", path="/etc/shadow"),
        Connection(kind="file", path=f"{rig.volumes}/../volumes/{volume.volume_id}"),
        Connection(kind="file", path=str(rig.volumes / volume.volume_id), format="vmdk"),
    ):
        with pytest.raises(HostFault, match=volume.volume_id):
            await rig.driver.check_volumes((replace(volume, connection=connection),))
