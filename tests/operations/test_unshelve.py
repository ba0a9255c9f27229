"""Bringing shelved servers back: where they are, or wherever there is room for them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from kilonova.db import aggregates, hosts, instances, quotas
from kilonova.errors import Conflict, Failed, HostFault, Invalid
from kilonova.journal.model import Done, Run, Wait
from kilonova.model.instance import Instance
from kilonova.model.states import Power, Task, Vm
from kilonova.operations import delete, unshelve
from kilonova.operations.shelved_image import KEYS
from kilonova.rpc.messages import Command, GuestSpec
from kilonova.testing.embedded import audits, member, server, settled
from tests.crash.broken import Gate, changed, failing, replaced
from tests.operations.conftest import Three
from tests.operations.shelf import CONTENT, back, boot, image_of, images, is_there, put_away
from tests.operations.test_retry import BROKEN, bound_to

STEPS = [step.name for step in unshelve.UNSHELVE_OFFLOADED.steps if step.name != "image"]


async def offloaded(three: Three, **more: Any) -> Instance:
    found = await put_away(three, (await boot(three, **more)).uuid)
    assert found.vm_state == Vm.SHELVED_OFFLOADED
    return found


async def assert_back(three: Three, uuid: str, host: str) -> None:
    """It runs there and nowhere else, with all that it had."""
    found = await server(three.cloud, uuid)
    assert (found.vm_state, found.task_state, found.fault) == (Vm.ACTIVE, None, None)
    assert (found.host, found.node, found.power_state) == (host, host, Power.RUNNING)
    assert not set(KEYS) & set(found.system_metadata)
    there = three.host(host)
    assert there.driver.guest_file.everything() == {uuid: Power.RUNNING}
    assert there.driver.disks.content(uuid) == CONTENT
    assert all(each.empty for each in three.hosts if each.name != host)
    assert list(await three.cloud.placement.held(uuid)) == [there.compute_id]
    assert await bound_to(three, uuid) == {host}
    assert await images(three) == []
    assert await audits(three.cloud) == []


async def assert_still_offloaded(three: Three, before: Instance) -> None:
    """Nothing is lost and nothing is left: it can be tried again."""
    found = await server(three.cloud, before.uuid)
    assert (found.vm_state, found.task_state, found.fault is None) == (Vm.SHELVED_OFFLOADED, None, False)
    same = {
        name: getattr(before, name)
        for name in Instance.__struct_fields__
        if name not in ("version", "updated_at", "fault", "task_state", "power_generation")
    }
    assert {name: getattr(found, name) for name in same} == same
    assert all(host.empty for host in three.hosts)
    assert await three.cloud.placement.held(before.uuid) == {}
    assert await bound_to(three, before.uuid) == {""}
    assert (await image_of(three, before.uuid)).status == "active"
    assert await audits(three.cloud) == []


async def zone_of(three: Three, name: str, *members: str) -> None:
    """Make an availability zone of hosts."""
    cloud = three.cloud
    now = cloud.clock.now()

    def make(tx: Any) -> None:
        number = aggregates.create(tx, cloud.cloud.new_uuid(), name, name, now).id
        for host in members:
            aggregates.add_host(tx, number, host, now)

    await cloud.db.write(make)
    cloud.scheduler.forget()


# ---- offloaded ----


@pytest.mark.capability("MG-SHV-5")
async def test_it_comes_back_on_another_host(three: Three) -> None:
    made = await offloaded(three)
    await three.cloud.db.write(lambda tx: hosts.set_disabled(tx, "h1", True, "fans", three.cloud.clock.now()))
    three.cloud.scheduler.forget()
    launched = made.launched_at
    found = await back(three, made.uuid)
    await assert_back(three, made.uuid, "h2")
    assert found.image == made.image  # what it was made of, not what it was shelved into
    assert found.launched_at is not None and launched is not None and found.launched_at > launched


@pytest.mark.capability("MG-SHV-5")
async def test_the_states_on_the_way(three: Three) -> None:
    made = await offloaded(three)
    expected = {"place": (None, Task.UNSHELVING), "prepare": ("h1", Task.SPAWNING)}
    gates = {step: Gate(three.cloud, "unshelve_offloaded", step) for step in expected}
    await unshelve.submit(three.cloud.cloud, member(three.cloud), made.uuid)
    for step, (host, task) in expected.items():
        await gates[step].wait()
        found = await server(three.cloud, made.uuid)
        assert (found.vm_state, found.task_state, found.host) == (Vm.SHELVED_OFFLOADED, task, host)
        gates[step].open()
    await settled(three.cloud, made.uuid)
    await assert_back(three, made.uuid, "h1")


@pytest.mark.capability("MG-SHV-8")
async def test_it_is_made_of_its_own_disk_and_gets_no_key_again(three: Three) -> None:
    made = await offloaded(three)
    await three.cloud.db.write(
        lambda tx: instances.update(
            tx, made.uuid, expect_task=None, key_name="k", key_data="ssh-ed25519 AAAA k", config_drive=True
        )
    )
    image = await image_of(three, made.uuid)
    agent, seen = three.host("h1").agent, []
    own = agent.prepare

    async def prepare(command: Command, guest: GuestSpec) -> None:
        seen.append(guest)
        await own(command, guest)

    agent.prepare = prepare  # type: ignore[method-assign]
    found = await back(three, made.uuid)
    (guest,) = seen
    assert guest.image is not None and guest.image.id == image.id
    assert guest.flat_root and guest.image.hash_value == image.hash_value
    drive = b"".join((guest.config_drive or {}).values())
    assert made.uuid.encode() in drive and b"ssh-ed25519" not in drive
    assert (found.key_name, found.key_data) == ("k", "ssh-ed25519 AAAA k")


@pytest.mark.capability("MG-SHV-5")
async def test_when_there_is_no_room_it_stays_and_can_be_tried_again(three: Three) -> None:
    made = await offloaded(three)
    now = three.cloud.clock.now()
    for host in three.hosts:
        await three.cloud.db.write(lambda tx, host=host: hosts.set_disabled(tx, host.name, True, "", now))
    three.cloud.scheduler.forget()
    await back(three, made.uuid)
    await assert_still_offloaded(three, made)
    await three.cloud.db.write(lambda tx: hosts.set_disabled(tx, "h3", False, None, now))
    three.cloud.scheduler.forget()
    await back(three, made.uuid)
    await assert_back(three, made.uuid, "h3")


@pytest.mark.capability("MG-SHV-6", "MG-SHV-7")
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("after", [False, True], ids=["before its work", "after its work"])
async def test_a_failure_leaves_it_as_it_was(three: Three, step: str, after: bool) -> None:
    made = await offloaded(three)
    own = {"key_name": "k", "key_data": "ssh-ed25519 AAAA k"}
    said = {**made.system_metadata, "disk_config": "AUTO"}
    await three.cloud.db.write(
        lambda tx: instances.update(tx, made.uuid, expect_task=None, system_metadata=said, **own)
    )
    made = await server(three.cloud, made.uuid)
    operation = three.cloud.runner.operations
    failing(three.cloud, "unshelve_offloaded", step, Failed("ordered"), after=after)
    found = await back(three, made.uuid)
    assert found.fault is not None and found.fault.message == "ordered"
    await assert_still_offloaded(three, made)
    three.cloud.runner.operations = operation
    await back(three, made.uuid)
    await assert_back(three, made.uuid, "h1")


@pytest.mark.capability("MG-SHV-6")
@pytest.mark.parametrize("step", list(BROKEN))
async def test_the_next_host_takes_it_when_one_cannot(three: Three, step: str) -> None:
    made = await offloaded(three)
    BROKEN[step](three.host("h1"), HostFault("ordered"))
    await back(three, made.uuid)
    await assert_back(three, made.uuid, "h2")


async def test_what_a_former_try_has_booked_is_given_back(three: Three) -> None:
    """Its process died before it was written down, and now another host is the best."""
    made = await offloaded(three)
    step = unshelve.UNSHELVE_OFFLOADED.step("place")

    async def twice(run: Run) -> Done | Wait:
        await step.do(run)
        now = three.cloud.clock.now()
        await three.cloud.db.write(lambda tx: hosts.set_disabled(tx, "h1", True, "fans", now))
        three.cloud.scheduler.forget()
        return await step.do(run)

    replaced(three.cloud, "unshelve_offloaded", changed(step, do=twice))
    await back(three, made.uuid)
    await assert_back(three, made.uuid, "h2")


async def test_when_no_host_can_it_stays_shelved(three: Three) -> None:
    made = await offloaded(three)
    for host in three.hosts:
        host.driver.faults.add("start", HostFault("no luck"))
    await back(three, made.uuid)
    await assert_still_offloaded(three, made)


@pytest.mark.capability("MG-SHV-5")
async def test_without_its_image_nothing_brings_it_back(three: Three) -> None:
    made = await offloaded(three)
    image = await image_of(three, made.uuid)
    await three.cloud.image.delete(member(three.cloud), image.id)
    found = await back(three, made.uuid)
    assert (found.vm_state, found.task_state, found.host) == (Vm.ERROR, None, None)
    assert found.fault is not None and f"Error during unshelve instance {made.uuid}" in found.fault.message
    await delete.submit(three.cloud.cloud, member(three.cloud), made.uuid)
    assert (await settled(three.cloud, made.uuid)).vm_state == Vm.DELETED


async def test_an_image_that_is_deactivated_is_not_used(three: Three) -> None:
    made = await offloaded(three)
    image = await image_of(three, made.uuid)
    await three.cloud.image.set_active(member(three.cloud), image.id, active=False)
    found = await back(three, made.uuid)
    assert found.fault is not None and "deactivated" in found.fault.message
    await three.cloud.image.set_active(member(three.cloud), image.id, active=True)
    await assert_still_offloaded(three, made)


async def test_hosts_get_no_images_of_servers_that_are_not_theirs(three: Three) -> None:
    """Not even one that had the server a moment ago."""
    from kilonova.errors import NotFound

    made = await offloaded(three)
    image = await image_of(three, made.uuid)
    for host in three.hosts:
        with pytest.raises(NotFound):
            async for _ in host.agent._snapshots._images.read(image.id):
                pass


async def test_a_server_without_ports_gets_none(three: Three) -> None:
    made = await offloaded(three, networks=())
    assert made.vifs == ()
    found = await back(three, made.uuid)
    assert (found.vm_state, found.vifs) == (Vm.ACTIVE, ())


async def test_ports_of_the_user_stay_his(three: Three) -> None:
    """And its quota is neither given back nor taken twice."""
    made = await offloaded(three)
    usage = await three.cloud.db.read(lambda tx: quotas.usage(tx, made.project_id))
    await back(three, made.uuid)
    assert await three.cloud.db.read(lambda tx: quotas.usage(tx, made.project_id)) == usage
    found = await server(three.cloud, made.uuid)
    assert [vif.port_id for vif in found.vifs] == [vif.port_id for vif in made.vifs]
    assert [vif.mac for vif in found.vifs] == [vif.mac for vif in made.vifs]


@pytest.mark.parametrize("step", [step.name for step in unshelve.UNSHELVE_OFFLOADED.steps])
async def test_a_delete_in_every_phase(three: Three, step: str) -> None:
    made = await offloaded(three)
    gate = Gate(three.cloud, "unshelve_offloaded", step)
    await unshelve.submit(three.cloud.cloud, member(three.cloud), made.uuid)
    await gate.wait()
    await delete.submit(three.cloud.cloud, member(three.cloud), made.uuid)
    gate.open()
    assert (await settled(three.cloud, made.uuid)).vm_state == Vm.DELETED
    assert all(host.empty for host in three.hosts)
    assert await images(three) == []
    assert await three.cloud.placement.held(made.uuid) == {}
    assert await three.cloud.network.vifs(made.uuid) == ()
    assert await audits(three.cloud) == []


# ---- where to ----


@pytest.mark.capability("API-31")
async def test_to_a_host_that_is_named(three: Three) -> None:
    made = await offloaded(three)
    await back(three, made.uuid, host="h3")
    await assert_back(three, made.uuid, "h3")


async def test_a_host_that_is_named_is_the_only_one(three: Three) -> None:
    made = await offloaded(three)
    three.host("h3").driver.faults.add("start", HostFault("no luck"))
    await back(three, made.uuid, host="h3")
    await assert_still_offloaded(three, made)
    with pytest.raises(Invalid, match="Compute host h9 could not be found"):
        await back(three, made.uuid, host="h9")
    assert (await server(three.cloud, made.uuid)).task_state is None


@pytest.mark.capability("API-110")
async def test_to_a_zone_and_it_is_kept_there(three: Three) -> None:
    made = await offloaded(three)
    await zone_of(three, "west", "h3")
    with pytest.raises(Invalid, match="The requested availability zone is not available"):
        await back(three, made.uuid, zone="north")
    found = await back(three, made.uuid, zone="west")
    await assert_back(three, made.uuid, "h3")
    assert (found.availability_zone, found.pinned_availability_zone) == ("west", "west")
    # From then on it comes back to that zone, until it is let go.
    await put_away(three, made.uuid)
    with pytest.raises(Conflict, match='Host "h1" is not in the availability zone "west"'):
        await back(three, made.uuid, host="h1")
    with pytest.raises(Conflict, match='Host "h1" is not in the availability zone "west"'):
        await back(three, made.uuid, host="h1", zone="west")
    assert (await server(three.cloud, made.uuid)).pinned_availability_zone == "west"
    await back(three, made.uuid)
    await assert_back(three, made.uuid, "h3")
    await put_away(three, made.uuid)
    await back(three, made.uuid, host="h3")
    await assert_back(three, made.uuid, "h3")
    await put_away(three, made.uuid)
    found = await back(three, made.uuid, zone=None)
    await assert_back(three, made.uuid, "h1")
    assert found.pinned_availability_zone is None
    await put_away(three, made.uuid)
    found = await back(three, made.uuid, zone="nova", host="h2")
    await assert_back(three, made.uuid, "h2")
    assert (found.availability_zone, found.pinned_availability_zone) == ("nova", "nova")
    await put_away(three, made.uuid)
    found = await back(three, made.uuid, zone=None, host="h3")
    await assert_back(three, made.uuid, "h3")
    assert found.pinned_availability_zone is None


@pytest.mark.capability("API-110")
@pytest.mark.parametrize("more", [{"zone": "nova"}, {"zone": None}, {"host": "h1"}])
async def test_only_what_is_off_its_host_can_be_sent_somewhere(three: Three, more: dict[str, Any]) -> None:
    three.cloud.settings.options["DEFAULT"]["shelved_offload_time"] = -1
    made = await put_away(three, (await boot(three)).uuid)
    with pytest.raises(Conflict, match="status 'SHELVED' is not supported, it must be 'SHELVED_OFFLOADED'"):
        await back(three, made.uuid, **more)
    assert (await server(three.cloud, made.uuid)).task_state is None


# ---- where it still is ----


async def shelved(three: Three) -> Instance:
    three.cloud.settings.options["DEFAULT"]["shelved_offload_time"] = -1
    return await put_away(three, (await boot(three)).uuid)


@pytest.mark.capability("MG-SHV-4")
async def test_one_that_is_still_on_its_host_is_started(three: Three) -> None:
    made = await shelved(three)
    image = await image_of(three, made.uuid)
    gate = Gate(three.cloud, "unshelve", "power_on")
    await unshelve.submit(three.cloud.cloud, member(three.cloud), made.uuid)
    await gate.wait()
    found = await server(three.cloud, made.uuid)
    assert (found.vm_state, found.task_state) == (Vm.SHELVED, Task.POWERING_ON)
    gate.open()
    await settled(three.cloud, made.uuid)
    await assert_back(three, made.uuid, "h1")
    assert not await is_there(three, image.id)


async def test_a_start_that_fails_leaves_it_shelved_and_off(three: Three) -> None:
    made = await shelved(three)
    failing(three.cloud, "unshelve", "power_on", Failed("ordered"), after=True)
    found = await back(three, made.uuid)
    assert (found.vm_state, found.task_state, found.host) == (Vm.SHELVED, None, "h1")
    assert three.host("h1").driver.guest_file.everything() == {made.uuid: Power.SHUTDOWN}
    assert found.system_metadata == made.system_metadata
    assert (await image_of(three, made.uuid)).status == "active"


async def test_it_needs_no_image_to_be_started(three: Three) -> None:
    made = await shelved(three)
    image = await image_of(three, made.uuid)
    await three.cloud.image.delete(member(three.cloud), image.id)
    await back(three, made.uuid)
    await assert_back(three, made.uuid, "h1")


async def test_what_others_note_with_the_server_meanwhile_is_kept(three: Three) -> None:
    """A guest may tell its password at any moment."""
    made = await shelved(three)
    gate = Gate(three.cloud, "unshelve", "power_on", after=True)
    await unshelve.submit(three.cloud.cloud, member(three.cloud), made.uuid)
    await gate.wait()
    said = {**made.system_metadata, "password_0": "secret"}
    await three.cloud.db.write(
        lambda tx: instances.update(tx, made.uuid, expect_task=instances.ANY, system_metadata=said)
    )
    gate.open()
    found = await settled(three.cloud, made.uuid)
    assert found.system_metadata == {"password_0": "secret"}


async def test_of_several_at_once_one_is_made(three: Three) -> None:
    made = await offloaded(three)
    asked = [unshelve.submit(three.cloud.cloud, member(three.cloud), made.uuid) for _ in range(5)]
    said = await asyncio.gather(*asked, return_exceptions=True)
    assert sorted(type(each).__name__ for each in said) == ["Conflict"] * 4 + ["NoneType"]
    await settled(three.cloud, made.uuid)
    await assert_back(three, made.uuid, "h1")
