"""What every hypervisor driver does (virt/driver.py): one suite for the fake one and for libvirt."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from kilonova.errors import HostFault, NotFound
from kilonova.model.states import Power
from kilonova.rpc.messages import GuestSpec
from kilonova.virt.driver import SnapshotData
from tests.contract.driver_rigs import FakeRig, LibvirtRig, Rig
from tests.real.guests import eventually
from tests.real.libvirt_host import port
from tests.real.tiny_guest import DEAF, QUITS

PATIENCE = 60.0  # seconds; a guest needs a tenth of one on an idle machine


@pytest.fixture(params=["fake", pytest.param("libvirt", marks=pytest.mark.real)])
async def rig(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Rig]:
    made: Rig = FakeRig(tmp_path) if request.param == "fake" else LibvirtRig(tmp_path)
    await made.open()
    yield made
    await made.close()


async def comes_to(rig: Rig, guest_uuid: str, state: int) -> None:
    async def there() -> bool:
        return await rig.driver.power_state(guest_uuid) == state

    await eventually(there, PATIENCE)


async def has_started(rig: Rig, guest_: object, times: int = 1) -> None:
    async def there() -> bool:
        return await rig.starts(guest_) >= times  # type: ignore[arg-type]

    await eventually(there, PATIENCE)


@pytest.mark.capability("MG-GEN-12")
async def test_a_host_without_guests(rig: Rig) -> None:
    nobody = str(uuid.uuid4())
    assert await rig.driver.guests() == {}
    assert await rig.driver.power_state(nobody) == Power.NOSTATE
    for verb in (
        rig.driver.power_off,
        rig.driver.undefine,
        rig.driver.discard,
        rig.driver.request_shutdown,
    ):
        await verb(nobody)  # what is not there need not be ended
    for wants_it in (rig.driver.resume, rig.driver.request_reboot, rig.driver.diagnostics):
        with pytest.raises(NotFound, match=nobody):
            await wants_it(nobody)
    with pytest.raises(NotFound, match=nobody):
        await rig.driver.console_output(nobody, 100)
    assert rig.events == []


@pytest.mark.capability("MG-GEN-12")
async def test_start_and_resume_converge(rig: Rig) -> None:
    guest = rig.guest()
    with pytest.raises(HostFault, match=guest.uuid):
        await rig.driver.start(guest, paused=True)  # nothing is prepared
    assert await rig.driver.guests() == {}

    await rig.driver.prepare(guest, rig.images)
    await rig.driver.prepare(guest, rig.images)
    assert await rig.driver.power_state(guest.uuid) == Power.NOSTATE
    for _ in range(2):
        await rig.driver.start(guest, paused=True)
        assert await rig.driver.power_state(guest.uuid) == Power.PAUSED
    await rig.driver.start(guest, paused=False)  # the rest of a start that was interrupted
    assert await rig.driver.power_state(guest.uuid) == Power.RUNNING
    for _ in range(2):
        await rig.driver.resume(guest.uuid)
        await rig.driver.start(guest, paused=True)  # one that runs is left alone
        assert await rig.driver.guests() == {guest.uuid: Power.RUNNING}
    await has_started(rig, guest)
    assert await rig.starts(guest) == 1


async def test_power_off_keeps_the_definition_and_start_brings_it_back(rig: Rig) -> None:
    guest = await rig.running()
    for _ in range(2):
        await rig.driver.power_off(guest.uuid)
        assert await rig.driver.guests() == {guest.uuid: Power.SHUTDOWN}
    with pytest.raises(HostFault, match="is off"):
        await rig.driver.resume(guest.uuid)
    assert await rig.driver.request_reboot(guest.uuid) is False
    await rig.driver.request_shutdown(guest.uuid)
    assert await rig.driver.power_state(guest.uuid) == Power.SHUTDOWN
    await rig.driver.start(guest, paused=False)
    assert await rig.driver.power_state(guest.uuid) == Power.RUNNING


async def test_undefine_ends_it_and_leaves_the_disks_until_they_are_discarded(rig: Rig) -> None:
    guest = await rig.running()
    for _ in range(2):
        await rig.driver.undefine(guest.uuid)
        assert await rig.driver.guests() == {}
        assert await rig.driver.power_state(guest.uuid) == Power.NOSTATE
    await rig.driver.start(guest, paused=True)  # the disks are there still
    assert await rig.driver.power_state(guest.uuid) == Power.PAUSED
    await rig.driver.undefine(guest.uuid)
    for _ in range(2):
        await rig.driver.discard(guest.uuid)
    with pytest.raises(HostFault, match=guest.uuid):
        await rig.driver.start(guest, paused=True)
    with pytest.raises(NotFound):
        await rig.driver.console_output(guest.uuid, 100)


@pytest.mark.capability("MG-LCE-1")
async def test_the_power_button(rig: Rig) -> None:
    guest = await rig.running()
    await has_started(rig, guest)
    rig.events.clear()
    await rig.driver.request_shutdown(guest.uuid)
    await comes_to(rig, guest.uuid, Power.SHUTDOWN)
    await eventually(lambda: (guest.uuid, Power.SHUTDOWN) in rig.events, PATIENCE)


async def test_a_guest_that_is_deaf_goes_on_until_it_is_turned_off(rig: Rig) -> None:
    guest = await rig.running(DEAF)
    await has_started(rig, guest)
    await rig.driver.request_shutdown(guest.uuid)
    assert await rig.driver.request_reboot(guest.uuid) is False  # after a second at libvirt
    assert await rig.driver.power_state(guest.uuid) == Power.RUNNING
    assert await rig.starts(guest) == 1
    await rig.driver.power_off(guest.uuid)
    assert await rig.driver.power_state(guest.uuid) == Power.SHUTDOWN


async def test_a_soft_reboot_is_the_guests_own(rig: Rig) -> None:
    guest = await rig.running()
    await has_started(rig, guest)
    for number in (2, 3):
        # On a machine that is very busy the guest may miss its second; then the agent would reset it.
        while not await rig.driver.request_reboot(guest.uuid):
            assert await rig.driver.power_state(guest.uuid) == Power.RUNNING
        assert await rig.driver.power_state(guest.uuid) == Power.RUNNING
        await has_started(rig, guest, number)


@pytest.mark.capability("MG-LCE-1")
async def test_a_guest_that_turns_itself_off_is_reported(rig: Rig) -> None:
    guest = await rig.prepared(QUITS)
    await rig.driver.start(guest, paused=True)
    rig.events.clear()
    await rig.quit(guest)
    await eventually(lambda: (guest.uuid, Power.SHUTDOWN) in rig.events, PATIENCE)
    assert await rig.driver.power_state(guest.uuid) == Power.SHUTDOWN
    assert {uuid for uuid, _ in rig.events} == {guest.uuid}


async def test_guests_outlive_the_agent(rig: Rig) -> None:
    runs, waits, off = await rig.running(), await rig.prepared(), await rig.running()
    await has_started(rig, runs)
    await rig.driver.start(waits, paused=True)
    await rig.driver.power_off(off.uuid)
    await rig.reopen()
    assert await rig.driver.guests() == {
        runs.uuid: Power.RUNNING,
        waits.uuid: Power.PAUSED,
        off.uuid: Power.SHUTDOWN,
    }
    rig.events.clear()
    await rig.driver.request_shutdown(runs.uuid)
    await eventually(lambda: (runs.uuid, Power.SHUTDOWN) in rig.events, PATIENCE)
    await rig.driver.resume(waits.uuid)
    assert await rig.starts(runs) == 1


async def test_the_console_gives_its_end(rig: Rig) -> None:
    guest = await rig.running()
    await has_started(rig, guest)
    whole = await rig.driver.console_output(guest.uuid, 1 << 20)
    assert len(whole) >= 8
    assert await rig.driver.console_output(guest.uuid, 8) == whole[-8:]
    assert await rig.driver.console_output(guest.uuid, len(whole)) == whole


async def test_diagnostics_of_a_running_guest(rig: Rig) -> None:
    guest = await rig.running(flavor={"vcpus": 2, "memory_mb": 40})
    await has_started(rig, guest)
    found = await rig.driver.diagnostics(guest.uuid)
    assert (found.state, found.driver, found.hypervisor_os) == ("running", rig.driver.name, "linux")
    assert [cpu.id for cpu in found.cpus] == [0, 1]
    assert found.memory_maximum == 40
    assert found.uptime is not None and 0 <= found.uptime < 600
    assert len(found.disks) == 1
    assert found.config_drive is False


async def test_the_report_is_complete_and_stays_the_same(rig: Rig) -> None:
    report = await rig.driver.report()
    assert report.compute_id == rig.compute_id
    assert report.host == "here"
    assert report.hypervisor_type == rig.driver.hypervisor_type
    assert report.hypervisor_hostname
    assert report.hypervisor_version > 0
    assert set(report.inventories) == {"VCPU", "MEMORY_MB", "DISK_GB"}
    assert all(each.total > 0 for each in report.inventories.values())
    assert "COMPUTE_NODE" in report.traits
    assert report.cpu_info["arch"]
    await rig.reopen()
    again = await rig.driver.report()
    assert msgspec.structs.replace(again, started_at=report.started_at) == report


async def test_several_guests_at_once(rig: Rig) -> None:
    guests = [rig.guest() for _ in range(4)]
    await asyncio.gather(*(rig.driver.prepare(each, rig.images) for each in guests))
    await asyncio.gather(*(rig.driver.start(each, paused=True) for each in guests))
    assert await rig.driver.guests() == {each.uuid: Power.PAUSED for each in guests}
    await asyncio.gather(*(rig.driver.undefine(each.uuid) for each in guests))
    assert await rig.driver.guests() == {}


async def test_unused_images_may_be_forgotten_at_any_time(rig: Rig) -> None:
    guest = await rig.running()
    assert await rig.driver.remove_unused_images(0) == []  # it is in use
    await rig.driver.power_off(guest.uuid)
    await rig.driver.start(guest, paused=True)
    assert await rig.driver.power_state(guest.uuid) == Power.PAUSED


async def test_the_counters_of_the_processors_rise(rig: Rig) -> None:
    first = await rig.driver.cpu_stats()
    assert first["frequency"] > 0
    second = await rig.driver.cpu_stats()
    assert all(second[kind] >= first[kind] >= 0 for kind in ("user", "kernel", "idle", "iowait"))
    assert sum(first.values()) > first["frequency"]


async def whole_snapshot(rig: Rig, guest_: GuestSpec, image_id: str) -> bytes:
    data = await rig.driver.snapshot_data(guest_.uuid, image_id)
    assert await data.read(data.size, 10) == b""
    return b"".join([await data.read(at, 50_000) for at in range(0, data.size, 50_000)])


@pytest.mark.capability("MG-SNP-6", "MG-SHV-1")
@pytest.mark.parametrize("state", ["running", "paused", "off"])
async def test_a_snapshot_of_a_guest_in_any_state(rig: Rig, state: str) -> None:
    guest = await rig.prepared()
    image_id = str(uuid.uuid4())
    await rig.driver.start(guest, paused=state == "paused")
    if state == "running":
        await has_started(rig, guest)
    if state == "off":
        await rig.driver.power_off(guest.uuid)
    before = await rig.driver.power_state(guest.uuid)
    for _ in range(2):
        await rig.driver.snapshot(guest.uuid, image_id)
        assert await rig.driver.power_state(guest.uuid) == before
    made = await whole_snapshot(rig, guest, image_id)
    assert made
    for _ in range(2):
        await rig.driver.drop_snapshot(guest.uuid, image_id)
    with pytest.raises(HostFault, match=image_id):
        await rig.driver.snapshot_data(guest.uuid, image_id)
    # What was taken is what another guest can be made of, here or elsewhere.
    meta = rig.images.add(made, disk_format=(await fresh(rig, guest, image_id)).disk_format)
    back = msgspec.structs.replace(guest, uuid=str(uuid.uuid4()), image=meta, flat_root=True)
    await rig.driver.prepare(back, rig.images)
    await rig.driver.start(back, paused=False)
    assert await rig.driver.power_state(back.uuid) == Power.RUNNING
    await has_started(rig, back)
    assert await rig.driver.power_state(guest.uuid) == before


async def fresh(rig: Rig, guest_: GuestSpec, image_id: str) -> SnapshotData:
    await rig.driver.snapshot(guest_.uuid, image_id)
    return await rig.driver.snapshot_data(guest_.uuid, image_id)


async def test_a_snapshot_of_nothing(rig: Rig) -> None:
    nobody, image_id = str(uuid.uuid4()), str(uuid.uuid4())
    with pytest.raises(HostFault, match=nobody):
        await rig.driver.snapshot(nobody, image_id)
    await rig.driver.drop_snapshot(nobody, image_id)
    guest = await rig.running()
    await rig.driver.snapshot(guest.uuid, image_id)
    await rig.driver.undefine(guest.uuid)
    await rig.driver.discard(guest.uuid)  # and what was kept of it
    with pytest.raises(HostFault, match=image_id):
        await rig.driver.snapshot_data(guest.uuid, image_id)


@pytest.mark.capability("MG-DEV-7")
@pytest.mark.parametrize("paused", [False, True])
async def test_a_network_card_comes_and_goes(rig: Rig, paused: bool) -> None:
    vif = port()
    nobody = rig.guest()
    with rig.plugged(vif):
        await rig.driver.attach_interface(nobody, vif)  # one that is not there yet is started with it
        await rig.driver.detach_interface(nobody, vif)
        guest = await rig.prepared()
        await rig.driver.start(guest, paused=paused)
        state = await rig.driver.power_state(guest.uuid)
        for _ in range(2):
            await rig.driver.attach_interface(guest, vif)
            found = await rig.driver.diagnostics(guest.uuid)
            assert [nic.mac_address for nic in found.nics] == [vif.mac]
            assert await rig.driver.power_state(guest.uuid) == state
        await rig.driver.power_off(guest.uuid)
        for _ in range(2):
            await rig.driver.detach_interface(guest, vif)
        await rig.driver.start(guest, paused=paused)
        assert (await rig.driver.diagnostics(guest.uuid)).nics == ()
