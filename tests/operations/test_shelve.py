"""Shelving a server into an image, and taking it off its host."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from kilonova.agent import snapshots as agents
from kilonova.clock import SECOND, iso_micro
from kilonova.db import instances, quotas
from kilonova.errors import Conflict, Failed, HostFault, Invalid, NotFound, TryAgain
from kilonova.journal.model import Operation
from kilonova.model.states import Power, Task, Vm
from kilonova.operations import delete, offload, shelve, snapshot_steps, stop
from kilonova.operations.shelved_image import KEYS, name_of
from kilonova.testing.embedded import audits, embedded, holdings, leaks, member, server, settled
from kilonova.testing.simulated_hosts import first_host
from tests.crash.broken import Gate, failing
from tests.operations.conftest import Three
from tests.operations.shelf import CONTENT, boot, image_of, images, is_there, put_away, snapshots
from tests.operations.test_retry import bound_to


@pytest.fixture
async def staying(tmp_path: Path) -> AsyncIterator[Three]:
    """A cloud of one host, whose shelved servers stay where they are."""
    async with embedded(tmp_path / "state", DEFAULT={"host": "h1", "shelved_offload_time": -1}) as cloud:
        yield Three(cloud, [first_host(cloud)])


async def assert_as_before(three: Three, uuid: str, vm_state: str = Vm.STOPPED) -> None:
    """Nothing of the shelving is left, but that the guest is off."""
    found = await server(three.cloud, uuid)
    assert (found.vm_state, found.task_state) == (vm_state, None)
    assert not set(KEYS) & set(found.system_metadata)
    assert await images(three) == []
    assert snapshots(three) == []
    assert await leaks(three.cloud) == []


@pytest.mark.capability("MG-SHV-1", "MG-SHV-3", "API-109")
async def test_a_server_is_put_into_an_image_and_off_its_host(three: Three) -> None:
    made = await boot(three)
    quota = await three.cloud.db.read(lambda tx: quotas.usage(tx, made.project_id))
    found = await put_away(three, made.uuid)
    assert (found.vm_state, found.task_state, found.fault) == (Vm.SHELVED_OFFLOADED, None, None)
    assert (found.host, found.node, found.availability_zone) == (None, None, None)
    assert (found.power_state, found.progress) == (Power.NOSTATE, 0)
    assert found.system_metadata["shelved_host"] == "h1"
    image = await image_of(three, made.uuid)
    assert (image.name, image.status, image.owner) == ("s-shelved", "active", made.project_id)
    assert image.hash_value == hashlib.sha512(CONTENT).hexdigest()
    # The host has nothing of it, the server has its ports, and its project pays for it.
    assert all(host.empty for host in three.hosts)
    assert snapshots(three) == []
    assert await three.cloud.placement.held(made.uuid) == {}
    assert await bound_to(three, made.uuid) == {""}
    assert {vif.port_id for vif in found.vifs} == {vif.port_id for vif in made.vifs}
    assert {vif.fixed_ips for vif in found.vifs} == {vif.fixed_ips for vif in made.vifs}
    assert await three.cloud.db.read(lambda tx: quotas.usage(tx, made.project_id)) == quota
    assert await audits(three.cloud) == []


@pytest.mark.capability("MG-SHV-1", "MG-SHV-2")
async def test_the_states_on_the_way(three: Three) -> None:
    made = await boot(three)
    expected = {
        "shut_down": (Vm.ACTIVE, Task.SHELVING),
        "snapshot": (Vm.ACTIVE, Task.SHELVING_IMAGE_PENDING_UPLOAD),
        "upload": (Vm.ACTIVE, Task.SHELVING_IMAGE_UPLOADING),
        "destroy": (Vm.SHELVED, Task.SHELVING_OFFLOADING),
    }
    gates = {step: Gate(three.cloud, "shelve_and_offload", step) for step in expected}
    await shelve.submit(three.cloud.cloud, member(three.cloud), made.uuid)
    for step, states in expected.items():
        await gates[step].wait()
        found = await server(three.cloud, made.uuid)
        assert (found.vm_state, found.task_state) == states
        gates[step].open()
    assert (await settled(three.cloud, made.uuid)).vm_state == Vm.SHELVED_OFFLOADED


@pytest.mark.capability("MG-SHV-3")
async def test_its_room_is_free_before_it_says_that_it_is_off(three: Three) -> None:
    made = await boot(three)
    gate = Gate(three.cloud, "shelve_and_offload", "offloaded")
    await shelve.submit(three.cloud.cloud, member(three.cloud), made.uuid)
    await gate.wait()
    assert await three.cloud.placement.held(made.uuid) == {}
    assert (await server(three.cloud, made.uuid)).vm_state == Vm.SHELVED
    gate.open()
    await settled(three.cloud, made.uuid)


@pytest.mark.capability("MG-SHV-1")
@pytest.mark.parametrize(
    ("vm_state", "power", "clean"),
    [
        (Vm.ACTIVE, Power.RUNNING, True),
        (Vm.STOPPED, Power.SHUTDOWN, True),
        (Vm.PAUSED, Power.PAUSED, False),
        (Vm.SUSPENDED, Power.SHUTDOWN, True),
    ],
)
async def test_what_runs_is_asked_and_what_is_paused_is_cut(
    staying: Three, vm_state: str, power: int, clean: bool
) -> None:
    made = await boot(staying)
    agent, asked = staying.hosts[0].agent, []
    own = agent.shut_down

    async def shut_down(command, uuid, *, timeout, clean):  # type: ignore[no-untyped-def]
        asked.append(clean)
        return await own(command, uuid, timeout=timeout, clean=clean)

    agent.shut_down = shut_down  # type: ignore[method-assign]
    staying.hosts[0].driver.guest_file.put(made.uuid, power)
    await staying.cloud.db.write(
        lambda tx: instances.update(tx, made.uuid, expect_task=None, vm_state=vm_state)
    )
    found = await put_away(staying, made.uuid)
    assert (found.vm_state, found.task_state, found.host) == (Vm.SHELVED, None, "h1")
    assert (found.power_state, asked) == (Power.SHUTDOWN, [clean])
    assert await leaks(staying.cloud) == []


@pytest.mark.capability("MG-SHV-1")
async def test_what_the_image_says_of_itself(staying: Three) -> None:
    settings = staying.cloud.settings.options["DEFAULT"]
    settings["non_inheritable_image_properties"] = ["secret_recipe", "bittorrent"]
    made = await boot(staying)
    assert made.image is not None
    base = msgspec.structs.replace(
        made.image,
        min_disk=0,
        min_ram=32,
        properties={
            "hw_disk_bus": "scsi",
            "secret_recipe": "x",
            "bittorrent": "x",
            "img_signature": "x",
            "cinder_encryption_key_id": "x",
            "image_type": "theirs",
            "user_id": "theirs",
        },
    )
    await staying.cloud.db.write(lambda tx: instances.update(tx, made.uuid, expect_task=None, image=base))
    await put_away(staying, made.uuid)
    image = await image_of(staying, made.uuid)
    caller = member(staying.cloud)
    assert image.properties == {
        "hw_disk_bus": "scsi",
        "base_image_ref": base.id,
        "instance_uuid": made.uuid,
        "image_type": "snapshot",
        "image_location": "snapshot",
        "image_state": "available",
        "owner_id": made.project_id,
        "user_id": caller.user_id,
        "boot_roles": "member,reader",
    }
    assert (image.visibility, image.container_format) == ("private", "bare")
    assert (image.min_ram, image.min_disk) == (32, made.flavor.root_gb)


async def test_the_image_is_the_owners_whoever_shelves(staying: Three) -> None:
    made = await boot(staying)
    context = staying.cloud._administrator()
    assert context.project_id != made.project_id
    await shelve.submit(staying.cloud.cloud, context, made.uuid)
    await settled(staying.cloud, made.uuid)
    image = await image_of(staying, made.uuid)
    assert (image.owner, image.properties["user_id"]) == (made.project_id, context.user_id)


async def test_a_long_name_is_cut_and_not_its_end(staying: Three) -> None:
    made = await boot(staying, name="n" * 255)
    await put_away(staying, made.uuid)
    assert (await image_of(staying, made.uuid)).name == "n" * 247 + "-shelved" == name_of(made)


async def test_a_server_that_runs_from_an_iso_cannot_be_shelved(staying: Three) -> None:
    made = await boot(staying)
    assert made.image is not None
    iso = msgspec.structs.replace(made.image, disk_format="iso")
    await staying.cloud.db.write(lambda tx: instances.update(tx, made.uuid, expect_task=None, image=iso))
    with pytest.raises(Invalid, match="medium"):
        await shelve.submit(staying.cloud.cloud, member(staying.cloud), made.uuid)
    assert (await server(staying.cloud, made.uuid)).task_state is None


# ---- when the host is left ----


@pytest.mark.capability("MG-SHV-2")
async def test_it_stays_until_an_administrator_says_so(staying: Three) -> None:
    made = await boot(staying)
    found = await put_away(staying, made.uuid)
    assert (found.vm_state, found.host) == (Vm.SHELVED, "h1")
    held = await staying.cloud.placement.held(made.uuid)
    assert held and await bound_to(staying, made.uuid) == {"h1"}
    assert await offload.offload_aged(staying.cloud.cloud) == 0  # never by itself
    await offload.submit(staying.cloud.cloud, member(staying.cloud), made.uuid)
    found = await settled(staying.cloud, made.uuid)
    assert (found.vm_state, found.task_state, found.host) == (Vm.SHELVED_OFFLOADED, None, None)
    assert (await holdings(staying.cloud, made.uuid)).claims == {}
    assert staying.hosts[0].empty
    assert await leaks(staying.cloud) == []


@pytest.mark.capability("MG-SHV-2")
async def test_it_is_offloaded_when_it_has_been_shelved_for_long(staying: Three) -> None:
    cloud = staying.cloud
    cloud.settings.options["DEFAULT"]["shelved_offload_time"] = 100
    made, other = await boot(staying), await boot(staying, name="other")
    for uuid in (made.uuid, other.uuid):
        found = await put_away(staying, uuid)
        assert (found.vm_state, found.host) == (Vm.SHELVED, "h1")
    assert await offload.offload_aged(cloud.cloud) == 0
    await cloud.db.write(lambda tx: instances.update(tx, made.uuid, expect_task=None, locked="owner"))

    async def age(seconds: int) -> None:
        found = await server(cloud, made.uuid)
        at = iso_micro(cloud.clock.now() - seconds * SECOND)
        said = {**found.system_metadata, "shelved_at": at}
        await cloud.db.write(
            lambda tx: instances.update(tx, made.uuid, expect_task=None, system_metadata=said)
        )

    await age(98)
    assert await offload.offload_aged(cloud.cloud) == 0
    await age(101)
    # Controllers that look at the same time do it once, and a lock of its owner does not keep it there.
    assert sum(await asyncio.gather(*(offload.offload_aged(cloud.cloud) for _ in range(3)))) == 1
    assert (await settled(cloud, made.uuid)).vm_state == Vm.SHELVED_OFFLOADED
    assert (await server(cloud, other.uuid)).vm_state == Vm.SHELVED


@pytest.mark.capability("MG-SHV-2")
async def test_a_cloud_looks_for_them_by_itself(tmp_path: Path) -> None:
    options = {"host": "h1", "shelved_offload_time": 1, "shelved_poll_interval": 1}
    async with embedded(tmp_path / "state", DEFAULT=options) as cloud:
        three = Three(cloud, [first_host(cloud)])
        made = await boot(three)
        await put_away(three, made.uuid)
        async with asyncio.timeout(20):
            while (await server(cloud, made.uuid)).vm_state != Vm.SHELVED_OFFLOADED:
                await asyncio.sleep(0.05)


@pytest.mark.parametrize("step", ["destroy", "unplug"])
async def test_what_fails_before_files_are_removed_leaves_it_shelved(staying: Three, step: str) -> None:
    made = await boot(staying)
    await put_away(staying, made.uuid)
    failing(staying.cloud, "shelve_offload", step, HostFault("ordered"), after=True)
    await offload.submit(staying.cloud.cloud, member(staying.cloud), made.uuid)
    found = await settled(staying.cloud, made.uuid)
    assert (found.vm_state, found.task_state, found.host) == (Vm.SHELVED, None, "h1")
    assert found.fault is not None and found.fault.message == "ordered"
    assert await image_of(staying, made.uuid)


async def test_what_fails_later_is_repeated(staying: Three) -> None:
    made = await boot(staying)
    await put_away(staying, made.uuid)
    staying.hosts[0].driver.faults.add("discard", HostFault("busy"))
    await offload.submit(staying.cloud.cloud, member(staying.cloud), made.uuid)
    found = await settled(staying.cloud, made.uuid)
    assert (found.vm_state, found.task_state, found.fault) == (Vm.SHELVED_OFFLOADED, None, None)
    assert staying.hosts[0].empty


# ---- what goes wrong ----


@pytest.mark.capability("MG-SNP-5")
@pytest.mark.parametrize("step", ["snapshot", "upload"])
@pytest.mark.parametrize("after", [False, True], ids=["before its work", "after its work"])
async def test_a_failure_leaves_the_server_off_and_no_image(staying: Three, step: str, after: bool) -> None:
    made = await boot(staying)
    failing(staying.cloud, "shelve", step, Failed("ordered"), after=after)
    found = await put_away(staying, made.uuid)
    assert found.fault is not None and found.fault.message == "ordered"
    await assert_as_before(staying, made.uuid)


@pytest.mark.parametrize("verb", ["snapshot", "snapshot_data"])
async def test_a_host_that_cannot_do_it(staying: Three, verb: str) -> None:
    made = await boot(staying)
    staying.hosts[0].driver.faults.add(verb, HostFault("its disk is full"))
    found = await put_away(staying, made.uuid)
    assert found.fault is not None and found.fault.message == "its disk is full"
    await assert_as_before(staying, made.uuid)


async def test_an_upload_that_is_interrupted_goes_on(staying: Three) -> None:
    made = await boot(staying)
    store = staying.cloud.image
    own, sent = store.put_piece, []

    async def put_piece(image_id: str, host: str, offset: int, data: bytes) -> int:
        if len(sent) == 2:
            sent.append(-1)
            raise TryAgain("the controller is gone")
        sent.append(offset)
        return await own(image_id, host, offset, data)

    store.put_piece = put_piece  # type: ignore[method-assign]
    found = await put_away(staying, made.uuid)
    assert (found.vm_state, found.fault) == (Vm.SHELVED, None)
    piece = agents.IMAGE_PIECE
    # the first piece is sent again, and tells how much is there
    assert sent == [0, piece, -1, 0, 2 * piece, 3 * piece]
    assert (await image_of(staying, made.uuid)).hash_value == hashlib.sha512(CONTENT).hexdigest()


@pytest.mark.parametrize("gets_on", [True, False])
async def test_an_upload_that_gets_on_may_take_longer_than_an_operation(
    staying: Three, monkeypatch: pytest.MonkeyPatch, gets_on: bool
) -> None:
    monkeypatch.setattr(snapshot_steps, "LOOK", 0.01)
    values = {field: getattr(shelve.SHELVE, field) for field in shelve.SHELVE.__dataclass_fields__}
    monkeypatch.setattr(shelve, "SHELVE", Operation(**{**values, "deadline": 0.0}))  # no second try of a step
    made = await boot(staying)
    store = staying.cloud.image
    own, fails = store.put_piece, [True, True, True] if gets_on else [True] * 100

    async def put_piece(image_id: str, host: str, offset: int, data: bytes) -> int:
        if offset and fails and (gets_on or offset > agents.IMAGE_PIECE):
            await asyncio.sleep(0.05)  # so that it is seen how far it has come
            fails.pop()
            if not gets_on or len(fails) % 2 == 0:
                raise TryAgain("the controller is gone")
        return await own(image_id, host, offset, data)

    store.put_piece = put_piece  # type: ignore[method-assign]
    found = await put_away(staying, made.uuid)
    if gets_on:
        assert (found.vm_state, found.fault, fails) == (Vm.SHELVED, None, [])
    else:
        assert found.fault is not None and "before the deadline" in found.fault.message
        assert len(fails) == 98
        await assert_as_before(staying, made.uuid)


async def test_a_file_that_has_been_handed_in_does_not_stay_on_its_host(staying: Three) -> None:
    """Also when the agent dies as soon as all of it has come."""
    made = await boot(staying)
    driver = staying.hosts[0].driver
    driver.faults.add("drop_snapshot", TryAgain("the agent is gone"))
    found = await put_away(staying, made.uuid)
    assert (found.vm_state, found.fault) == (Vm.SHELVED, None)
    assert driver.faults.left("drop_snapshot") == 0
    assert snapshots(staying) == []


async def test_what_came_wrong_is_sent_again_from_its_beginning(staying: Three) -> None:
    made = await boot(staying)
    store = staying.cloud.image
    own, spoilt = store.put_piece, []

    async def put_piece(image_id: str, host: str, offset: int, data: bytes) -> int:
        if not spoilt:
            spoilt.append(offset)
            data = bytes(len(data))
        return await own(image_id, host, offset, data)

    store.put_piece = put_piece  # type: ignore[method-assign]
    await put_away(staying, made.uuid)
    assert spoilt == [0]
    assert (await image_of(staying, made.uuid)).hash_value == hashlib.sha512(CONTENT).hexdigest()


@pytest.mark.capability("MG-SNP-4")
async def test_a_user_deletes_the_image_while_it_is_made(staying: Three) -> None:
    made = await boot(staying)
    driver = staying.hosts[0].driver
    driver.faults.hold("snapshot_data")
    await shelve.submit(staying.cloud.cloud, member(staying.cloud), made.uuid)
    async with asyncio.timeout(20):
        while (await server(staying.cloud, made.uuid)).task_state != Task.SHELVING_IMAGE_UPLOADING:
            await asyncio.sleep(0.01)
        while not [status for _, status in await all_images(staying) if status == "saving"]:
            await asyncio.sleep(0.01)
    ((image_id, _),) = await all_images(staying)
    await staying.cloud.image.delete(member(staying.cloud), image_id)
    driver.faults.release("snapshot_data")
    found = await settled(staying.cloud, made.uuid)
    assert found.fault is not None and image_id in found.fault.message
    await assert_as_before(staying, made.uuid)


async def all_images(three: Three) -> list[tuple[str, str]]:
    from sqlalchemy import select

    from kilonova.db.tables.image import images as table

    rows = await three.cloud.db.read(lambda tx: tx.all(select(table.c.id, table.c.status)))
    return [(row[0], row[1]) for row in rows if row[0] != three.cloud.example_image]


async def test_how_far_an_upload_is_can_be_seen(staying: Three, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot_steps, "LOOK", 0.01)
    made = await boot(staying)
    store = staying.cloud.image
    own, half, on = store.put_piece, asyncio.Event(), asyncio.Event()

    async def put_piece(image_id: str, host: str, offset: int, data: bytes) -> int:
        if offset >= len(CONTENT) // 2:
            half.set()
            await on.wait()
        return await own(image_id, host, offset, data)

    store.put_piece = put_piece  # type: ignore[method-assign]
    await shelve.submit(staying.cloud.cloud, member(staying.cloud), made.uuid)
    await asyncio.wait_for(half.wait(), 20)
    async with asyncio.timeout(20):
        while (seen := (await server(staying.cloud, made.uuid)).progress) < 50:
            await asyncio.sleep(0.01)
    assert seen < 60
    on.set()
    assert (await settled(staying.cloud, made.uuid)).vm_state == Vm.SHELVED
    assert (await staying.hosts[0].agent.mover.progress(made.uuid)).phase == "none"


# ---- deletes ----


async def test_a_delete_takes_the_image_along(three: Three) -> None:
    cloud = three.cloud
    made = await boot(three)
    await put_away(three, made.uuid)
    image = await image_of(three, made.uuid)
    await delete.submit(cloud.cloud, member(cloud), made.uuid)
    assert (await settled(cloud, made.uuid)).vm_state == Vm.DELETED
    assert not await is_there(three, image.id)
    assert await images(three) == []
    assert await audits(cloud) == []
    assert await cloud.network.vifs(made.uuid) == ()


async def test_an_image_that_its_owner_protects_stays(staying: Three) -> None:
    cloud = staying.cloud
    made = await boot(staying)
    await put_away(staying, made.uuid)
    image = await image_of(staying, made.uuid)
    await cloud.image._change(
        member(cloud), image.id, lambda found: msgspec.structs.replace(found, protected=True)
    )
    await delete.submit(cloud.cloud, member(cloud), made.uuid)
    assert (await settled(cloud, made.uuid)).vm_state == Vm.DELETED
    assert await is_there(staying, image.id)


@pytest.mark.capability("MG-SNP-3")
@pytest.mark.parametrize("verb", ["power_off", "snapshot", "snapshot_data", "discard"])
async def test_a_delete_while_it_is_shelved(three: Three, verb: str) -> None:
    """A host that is slow with what is not wanted any more is interrupted."""
    cloud = three.cloud
    made = await boot(three)
    driver = three.host("h1").driver
    driver.faults.hold(verb)
    await shelve.submit(cloud.cloud, member(cloud), made.uuid)
    async with asyncio.timeout(20):
        reached = {"power_off": "shelving", "discard": "shelving_offloading"}
        while (found := await server(cloud, made.uuid)).task_state != reached.get(verb, found.task_state):
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
    await delete.submit(cloud.cloud, member(cloud), made.uuid)
    if verb == "discard":  # there is no way back from that, and a delete needs it, too
        driver.faults.release(verb)
    assert (await settled(cloud, made.uuid)).vm_state == Vm.DELETED
    assert await images(three) == []
    assert snapshots(three) == []
    assert all(host.empty for host in three.hosts)
    assert await audits(cloud) == []


async def test_a_stop_is_refused_meanwhile(staying: Three) -> None:
    cloud = staying.cloud
    made = await boot(staying)
    gate = Gate(cloud, "shelve", "upload")
    await shelve.submit(cloud.cloud, member(cloud), made.uuid)
    await gate.wait()
    for act in (stop.submit, shelve.submit, offload.submit):
        with pytest.raises(Conflict):
            await act(cloud.cloud, member(cloud), made.uuid)
    gate.open()
    assert (await settled(cloud, made.uuid)).vm_state == Vm.SHELVED
    with pytest.raises(NotFound):
        await shelve.submit(cloud.cloud, member(cloud), "11111111-1111-4111-8111-111111111111")
