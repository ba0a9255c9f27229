"""Guests that are sent between two real hosts while they run."""

from __future__ import annotations

import asyncio
import os
import xml.etree.ElementTree as ET
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from msgspec.structs import replace

from kilonova.errors import Conflict, HostFault
from kilonova.model.numa import GuestCell, GuestTopology
from kilonova.model.port import Vif
from kilonova.rpc.messages import GuestSpec
from kilonova.rpc.moves import LivePlan, LiveWish, Presence
from tests.real import busy_guest
from tests.real.guests import eventually
from tests.real.libvirt_host import port
from tests.real.live_hosts import PATIENCE, End, Pair, backing_of, gone, pair, stayed

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

STORED = 2  # VIR_DOMAIN_XML_INACTIVE
NEVER = 4000  # pages a tick: more than any limit here lets through


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def hosts() -> AsyncIterator[Pair]:
    async with pair() as made:
        yield made


@pytest.mark.capability("MG-LM-8", "MG-LM-12", "MG-LM-16", "MG-LM-25", "MG-LM-27")
async def test_there_and_back_with_its_disks(hosts: Pair) -> None:
    drive = {"openstack/latest/meta_data.json": b"{}" * 1000}
    spec = hosts.spec(20, flavor={"ephemeral_gb": 1, "swap_mb": 4}, config_drive=drive)
    await hosts.running(spec)
    written = (hosts.one.files(spec) / "disk.config").read_bytes()
    for source, target in ((hosts.one, hosts.two), (hosts.two, hosts.one)):
        plan = await hosts.planned(spec, source, target)
        assert plan.block and not plan.shared_path
        assert plan.disks == {"disk": 1 << 20, "disk.eph0": 1 << 30, "disk.swap": 4 << 20}
        assert await target.presence(spec) == Presence.ABSENT
        outcome = await source.sends(spec, plan)
        assert outcome.state == "completed", outcome
        assert outcome.downtime is not None and outcome.memory_total
        before = await hosts.count(source, spec)
        await hosts.passed(spec, source, target, plan)
        assert await hosts.count(target, spec) > before > 0  # it has its disk, and writes to it
        assert backing_of(target.files(spec) / "disk") == "disk.base"
        assert (target.files(spec) / "disk.config").read_bytes() == written
        assert not (target.files(spec) / ".incoming").exists()
        for xml in (await target.xml(spec), await target.xml(spec, STORED)):
            assert str(source.instances) not in xml and source.host.address not in xml
            assert target.compute_id in xml and source.compute_id not in xml
        assert spec.uuid in await target.driver.guests()
        assert spec.uuid not in await source.driver.guests()
        console = await target.driver.console_output(spec.uuid, 1 << 20)
        assert console.startswith(busy_guest.UP)  # as it was before it came
    await gone(spec, hosts.one, hosts.two)


@pytest.mark.capability("MG-LM-23", "MG-LM-29")
async def test_one_that_is_called_back_goes_on_and_can_be_sent_again(hosts: Pair) -> None:
    spec = await hosts.running(hosts.spec(400))
    sent = await hosts.begun(spec, bandwidth=4)
    assert (await hosts.one.driver.live_progress(spec.uuid)).phase == "running"
    assert await hosts.one.driver.steer_live(spec.uuid, "abort")
    outcome = await sent
    assert outcome.state == "cancelled"  # libvirt may name what the destination said when it was left
    await stayed(spec, hosts.one, hosts.two)
    assert not await hosts.one.driver.steer_live(spec.uuid, "abort")
    assert (hosts.two.files(spec) / "disk").exists()  # of the operation, which has not cleared up yet
    await hosts.one.again(bandwidth=0)
    plan = await hosts.planned(spec, hosts.one, hosts.two)
    assert (await hosts.one.sends(spec, plan)).state == "completed"
    await hosts.passed(spec, hosts.one, hosts.two, plan)
    await gone(spec, hosts.one, hosts.two)


@pytest.mark.capability("MG-LM-12")
async def test_a_directory_that_is_there_is_left_alone(hosts: Pair) -> None:
    spec = await hosts.running(hosts.spec(20))
    there = hosts.two.files(spec)
    there.mkdir()
    (there / "disk").write_bytes(b"somebody's")
    with pytest.raises(HostFault, match="on host2 already"):
        await hosts.planned(spec, hosts.one, hosts.two)
    plan = LivePlan(destination="host2", shared_path=False, block=True, disks={"disk": 1 << 20})
    with pytest.raises(HostFault, match="left alone"):
        await hosts.two.driver.receive_live(spec, plan, hosts.images)
    assert (there / "disk").read_bytes() == b"somebody's"
    assert not list(hosts.two.instances.glob(".probe*")), "the probe is removed in every case"
    await gone(spec, hosts.one, hosts.two)


@pytest.mark.capability("MG-LM-18")
async def test_the_limit_of_bandwidth_holds_and_progress_is_told(hosts: Pair) -> None:
    limit = 4  # MiB a second
    spec = await hosts.running(hosts.spec(NEVER))
    sent = await hosts.begun(spec, bandwidth=limit)
    first = await hosts.one.driver.live_progress(spec.uuid)
    await asyncio.sleep(2)
    second = await hosts.one.driver.live_progress(spec.uuid)
    assert first.elapsed is not None and second.elapsed is not None
    assert first.memory_processed is not None and second.memory_processed is not None
    rate = (second.memory_processed - first.memory_processed) / (second.elapsed - first.elapsed) * 1000
    assert limit / 2 < rate / (1 << 20) < limit * 1.5
    assert second.memory_total and second.memory_remaining is not None
    assert 0 < second.percent < 100
    assert await hosts.one.driver.steer_live(spec.uuid, "abort")
    assert (await sent).state == "cancelled"
    assert (await hosts.one.driver.live_progress(spec.uuid)).phase == "none"
    await gone(spec, hosts.one, hosts.two)


@pytest.mark.capability("MG-LM-21", "MG-LM-22")
async def test_force_complete_by_post_copy(hosts: Pair) -> None:
    spec = await hosts.running(hosts.spec(NEVER))
    sent = await hosts.begun(spec, bandwidth=4, permit_post_copy=True)
    assert await hosts.one.driver.steer_live(spec.uuid, "force_complete")
    await hosts.one.comes_to(spec, Presence.POSTCOPY)
    await hosts.two.comes_to(spec, Presence.POSTCOPY)
    assert (await hosts.one.driver.live_progress(spec.uuid)).phase == "postcopy"
    with pytest.raises(Conflict, match="cannot be called back"):
        await hosts.one.driver.steer_live(spec.uuid, "abort")
    assert (await sent).state == "completed"
    await hosts.two.comes_to(spec, Presence.RUNNING)
    await hosts.two.says(spec, busy_guest.ALIVE, 1)
    await gone(spec, hosts.one, hosts.two)


@pytest.mark.capability("MG-LM-21")
async def test_force_complete_by_a_pause(hosts: Pair) -> None:
    spec = await hosts.running(hosts.spec(NEVER))
    sent = await hosts.begun(spec, bandwidth=16)
    await asyncio.sleep(1)
    assert not sent.done()
    assert await hosts.one.driver.steer_live(spec.uuid, "force_complete")
    assert (await sent).state == "completed"
    assert await hosts.two.presence(spec) == Presence.RUNNING
    await hosts.two.says(spec, busy_guest.ALIVE, 1)
    await gone(spec, hosts.one, hosts.two)


@pytest.mark.capability("MG-LM-21")
async def test_a_pause_for_nothing_is_undone(hosts: Pair) -> None:
    spec = await hosts.running(hosts.spec(NEVER))
    sent = await hosts.begun(spec, bandwidth=2)
    assert await hosts.one.driver.steer_live(spec.uuid, "force_complete")
    assert await hosts.one.driver.steer_live(spec.uuid, "abort")
    assert (await sent).state == "cancelled"
    await stayed(spec, hosts.one, hosts.two)
    await gone(spec, hosts.one, hosts.two)


@pytest.mark.capability("MG-LM-20")
@pytest.mark.parametrize(("action", "state"), [("abort", "cancelled"), ("force_complete", "completed")])
async def test_one_that_never_ends_runs_out_of_time(hosts: Pair, action: str, state: str) -> None:
    """The limit is a second for each of 2 GiB of memory and 2 of disk, at the least."""
    spec = await hosts.running(hosts.spec(NEVER))
    sent = await hosts.begun(spec, bandwidth=16, completion_timeout=1, timeout_action=action)
    outcome = await sent
    assert outcome.state == state
    await gone(spec, hosts.one, hosts.two)


async def test_auto_converge_slows_a_guest_that_is_too_fast(hosts: Pair) -> None:
    """It dirties 8 MiB a second, and 6 may be sent: only a guest that is slowed down comes to its end."""
    spec = await hosts.running(hosts.spec(112, megabytes=12))
    sent = await hosts.begun(spec, bandwidth=6, downtime=300, permit_auto_converge=True)

    async def is_slowed() -> bool:
        job = await hosts.one.driver._connection.call(
            lambda link: link.lookupByUUIDString(spec.uuid).jobStats()
        )
        return int(job.get("auto_converge_throttle", 0)) > 0

    await eventually(is_slowed, PATIENCE)
    await eventually(sent.done, PATIENCE)
    assert (await sent).state == "completed"
    await gone(spec, hosts.one, hosts.two)


@pytest.mark.capability("MG-LM-18")
async def test_a_guest_that_is_ended_meanwhile(hosts: Pair) -> None:
    spec = await hosts.running(hosts.spec(NEVER))
    sent = await hosts.begun(spec, bandwidth=4)
    await hosts.one.driver.power_off(spec.uuid)
    assert (await sent).state == "failed"
    assert await hosts.one.presence(spec) == Presence.OFF
    await hosts.two.comes_to(spec, Presence.ABSENT)
    with pytest.raises(HostFault, match="cannot be sent while it runs"):
        await hosts.planned(spec, hosts.one, hosts.two)
    await gone(spec, hosts.one, hosts.two)


@pytest.mark.parametrize("permitted", [False, True])
async def test_a_paused_guest_is_paused_there(hosts: Pair, permitted: bool) -> None:
    spec = await hosts.running(hosts.spec(2))
    await hosts.one.again(permit_post_copy=permitted)
    await hosts.one.driver._connection.call(lambda link: link.lookupByUUIDString(spec.uuid).suspend())
    assert await hosts.one.presence(spec) == Presence.PAUSED
    plan = await hosts.planned(spec, hosts.one, hosts.two)
    outcome = await hosts.one.sends(spec, plan)
    assert outcome.state == "completed", outcome
    assert await hosts.two.presence(spec) == Presence.PAUSED
    await gone(spec, hosts.one, hosts.two)


@pytest.mark.capability("MG-LM-8")
async def test_without_a_shared_directory_disks_have_to_travel(hosts: Pair) -> None:
    spec = await hosts.running(hosts.spec(2))
    with pytest.raises(HostFault, match="not on shared storage"):
        await hosts.planned(spec, hosts.one, hosts.two, block=False)
    await gone(spec, hosts.one, hosts.two)


def plug(end: End, vif: Vif) -> None:
    """What os-vif does for a port that is delegated to it."""
    end.host.run("ip", "tuntap", "add", "dev", vif.devname, "mode", "tap")
    end.host.run("ip", "link", "set", vif.devname, "up", "mtu", str(vif.mtu))
    end.host.run("ovs-vsctl", "--timeout=30", "add-port", vif.bridge, vif.devname)


def ports(end: End) -> list[str]:
    return end.host.run("ovs-vsctl", "--timeout=30", "list-ports", "br-int").split()


@pytest.mark.capability("OVS-17", "OVS-18", "OVS-20", "OVS-21")
async def test_a_port_of_libvirt_there_and_one_of_os_vif_here(hosts: Pair) -> None:
    """From a host whose libvirt makes the switch's port to one where os-vif has made it, and back."""
    for end in (hosts.one, hosts.two):
        bridge = ("--may-exist", "add-br", "br-int", "--", "set", "bridge", "br-int", "datapath_type=netdev")
        end.host.run("ovs-vsctl", "--timeout=30", *bridge)
    plain = port(1, delegate_create=False)
    made = replace(plain, delegate_create=True)
    spec = await hosts.running(hosts.spec(20, vifs=(plain,)))
    assert ports(hosts.one) == [plain.devname]
    before = ET.fromstring(await hosts.one.xml(spec)).find("devices/interface")
    assert before is not None and before.get("type") == "bridge"
    place = before.find("address")
    for source, target, there in ((hosts.one, hosts.two, made), (hosts.two, hosts.one, plain)):
        arriving = replace(spec, vifs=(there,))
        if there.delegate_create:
            plug(target, there)
        plan = await hosts.planned(spec, source, target, arriving)
        assert plan.old_vifs == spec.vifs and plan.new_vifs == arriving.vifs
        outcome = await source.sends(spec, plan)
        assert outcome.state == "completed", outcome
        after = ET.fromstring(await target.xml(spec)).find("devices/interface")
        assert after is not None and place is not None
        assert after.get("type") == ("ethernet" if there.delegate_create else "bridge")
        address = after.find("address")
        assert address is not None and address.attrib == place.attrib
        assert ports(target) == [there.devname]
        await hosts.passed(spec, source, target, plan)
        # libvirt takes its port with it; one of os-vif is unplugged as it was plugged
        assert ports(source) == ([] if there.delegate_create else [made.devname])
    await gone(spec, hosts.one, hosts.two)


@pytest.mark.capability("MG-LM-7", "MG-LM-12")
async def test_both_hosts_are_asked_first(hosts: Pair) -> None:
    """The processor, as libvirt tells features apart; space; and what is there of the guest."""
    spec = await hosts.running(hosts.spec(2))
    one, two = hosts.one.driver, hosts.two.driver
    facts = await two.check_arrival(spec, LiveWish())
    assert facts.host == "host2" and facts.migration_uri == f"tcp://{hosts.two.host.address}"
    assert facts.listen_address == hosts.two.host.address
    assert not await one.see_probe(facts.probe) and await two.see_probe(facts.probe)
    await one.check_departure(spec, LiveWish(), facts)
    poor = replace(facts, cpu_features=tuple(set(facts.cpu_features) - {"sse2", "apic"}))
    with pytest.raises(HostFault, match=r"does not have what guest .*: apic, sse2"):
        await one.check_departure(spec, LiveWish(), poor)
    with pytest.raises(HostFault, match="cannot be had on host2: it is another"):
        await one.check_departure(spec, LiveWish(), replace(facts, cpu="it is another"))
    full = replace(facts, disk_available=(1 << 20) - 1)
    with pytest.raises(HostFault, match="disk of host2 is too small"):
        await one.check_departure(spec, LiveWish(), full)
    await one.check_departure(spec, LiveWish(disk_over_commit=True), full)
    await two.remove_probe(facts.probe)
    await two.remove_probe(facts.probe)
    assert not await two.see_probe(facts.probe)
    with pytest.raises(HostFault, match="machine type"):
        await two.check_arrival(_with(spec, hw_machine_type="pc-q35-99.0"), LiveWish())
    plan = await hosts.planned(spec, hosts.one, hosts.two)
    assert await hosts.two.presence(spec) == Presence.ABSENT
    again = await two.receive_live(spec, plan, hosts.images)  # whoever asked has died
    assert replace(again, domain="") == replace(plan, domain="")
    with pytest.raises(HostFault, match="already: it is running"):
        await one.receive_live(spec, plan, hosts.images)
    await gone(spec, hosts.one, hosts.two)


def _with(spec: GuestSpec, **properties: str) -> GuestSpec:
    assert spec.image is not None
    return replace(spec, image=replace(spec.image, properties=properties))


@pytest.mark.capability("MG-LM-7")
async def test_a_guest_with_a_model_needs_what_that_has(hosts: Pair) -> None:
    spec = hosts.spec(2)
    end = hosts.one
    end.cpu = {"cpu_mode": "custom", "cpu_models": ("Nehalem",)}
    await end.again()
    try:
        await hosts.running(spec)
        facts = await hosts.two.driver.check_arrival(spec, LiveWish())
        without = {name: tuple(set(facts.cpu_features) - {name}) for name in ("avx2", "sse4.2")}
        assert "avx2" in facts.cpu_features, "the host has more than the model"
        await end.driver.check_departure(spec, LiveWish(), replace(facts, cpu_features=without["avx2"]))
        with pytest.raises(HostFault, match=r": sse4\.2\."):
            await end.driver.check_departure(spec, LiveWish(), replace(facts, cpu_features=without["sse4.2"]))
        plan = await hosts.planned(spec, hosts.one, hosts.two)
        assert (await end.sends(spec, plan)).state == "completed"
    finally:
        end.cpu = {}
        await end.again()
    await gone(spec, hosts.one, hosts.two)


@pytest.mark.capability("MG-LM-9", "MG-LM-16")
async def test_a_pinned_guest_runs_where_the_destination_has_claimed(hosts: Pair) -> None:
    if (os.cpu_count() or 1) < 2:
        pytest.skip("pins cannot be told apart on one CPU")

    def claimed(cpu: int) -> GuestTopology:
        cell = GuestCell(id=0, dedicated=(0,), memory_mib=64, host_cell=0, pinning={0: cpu})
        return GuestTopology(cells=(cell,))

    async def runs_on(end: End) -> tuple[bool, ...]:
        found = await end.driver._connection.call(lambda link: link.lookupByUUIDString(spec.uuid).vcpus())
        return tuple(found[1][0])

    await hosts.one.again(bandwidth=0)
    spec = await hosts.running(hosts.spec(2, numa=claimed(0)))
    assert (await runs_on(hosts.one))[:2] == (True, False)
    plan = await hosts.planned(spec, hosts.one, hosts.two, replace(spec, numa=claimed(1)))
    outcome = await hosts.one.sends(spec, plan)
    assert outcome.state == "completed", outcome
    assert (await runs_on(hosts.two))[:2] == (False, True)
    pin = ET.fromstring(await hosts.two.xml(spec, STORED)).find("cputune/vcpupin")
    assert pin is not None and pin.get("cpuset") == "1"
    await hosts.passed(spec, hosts.one, hosts.two, plan)
    await gone(spec, hosts.one, hosts.two)
