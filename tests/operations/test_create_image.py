"""Images of servers, which go on meanwhile."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

import msgspec
import pytest

from kilonova.db import instances
from kilonova.errors import Conflict, Failed, HostFault, NotFound
from kilonova.model.instance import Instance
from kilonova.model.states import Power, Task, Vm
from kilonova.operations import create_image, delete, shelve
from kilonova.testing.embedded import leaks, member, server, settled
from tests.crash.broken import Gate, failing
from tests.operations.conftest import Three
from tests.operations.shelf import CONTENT, boot, images, snapshots
from tests.operations.test_shelve import all_images, staying

__all__ = ["staying"]


async def ask(three: Three, uuid: str, name: str = "snap", **metadata: str) -> str:
    cloud = three.cloud
    image_id = await create_image.submit(cloud.cloud, member(cloud), uuid, name, metadata)
    # Who has the id finds the image at once.
    assert (await cloud.image.show(member(cloud), image_id)).name == name
    return image_id


async def put(three: Three, uuid: str, **values: Any) -> None:
    await three.cloud.db.write(lambda tx: instances.update(tx, uuid, expect_task=instances.ANY, **values))


async def assert_untouched(three: Three, before: Instance) -> None:
    found = await server(three.cloud, before.uuid)
    assert (found.vm_state, found.task_state, found.power_state) == (
        before.vm_state,
        None,
        before.power_state,
    )
    assert found.system_metadata == before.system_metadata
    assert snapshots(three) == []
    assert await leaks(three.cloud) == []


@pytest.mark.capability("MG-SNP-1", "API-21")
async def test_a_server_that_runs_goes_on_and_there_is_its_image(staying: Three) -> None:
    made = await boot(staying)
    expected = {
        "snapshot": Task.IMAGE_SNAPSHOT,
        "upload": Task.IMAGE_UPLOADING,
    }
    driver = staying.hosts[0].driver
    first = Gate(staying.cloud, "create_image", "image")
    gates = {step: Gate(staying.cloud, "create_image", step) for step in expected}
    driver.faults.hold("snapshot")
    asked = asyncio.create_task(ask(staying, made.uuid, a="b"))
    await first.wait()
    assert (await server(staying.cloud, made.uuid)).task_state == Task.IMAGE_SNAPSHOT_PENDING
    first.open()
    image_id = await asked
    await gates["snapshot"].wait()
    assert (await server(staying.cloud, made.uuid)).task_state == Task.IMAGE_SNAPSHOT
    gates["snapshot"].open()
    async with asyncio.timeout(20):
        while (await server(staying.cloud, made.uuid)).task_state != Task.IMAGE_PENDING_UPLOAD:
            await asyncio.sleep(0.01)
    driver.faults.release("snapshot")
    await gates["upload"].wait()
    assert (await server(staying.cloud, made.uuid)).task_state == Task.IMAGE_UPLOADING
    gates["upload"].open()
    await settled(staying.cloud, made.uuid)
    await assert_untouched(staying, made)
    image = await staying.cloud.image.show(member(staying.cloud), image_id)
    assert (image.status, image.owner) == ("active", made.project_id)
    assert image.hash_value == hashlib.sha512(CONTENT).hexdigest()
    assert image.properties["image_type"] == "snapshot" and image.properties["a"] == "b"


@pytest.mark.capability("MG-SNP-6")
@pytest.mark.parametrize(
    ("vm_state", "power"),
    [(Vm.STOPPED, Power.SHUTDOWN), (Vm.PAUSED, Power.PAUSED), (Vm.SUSPENDED, Power.SHUTDOWN)],
)
async def test_in_whatever_state_it_is(staying: Three, vm_state: str, power: int) -> None:
    made = await boot(staying)
    staying.hosts[0].driver.guest_file.put(made.uuid, power)
    await put(staying, made.uuid, vm_state=vm_state, power_state=power, locked="owner")
    image_id = await ask(staying, made.uuid)
    found = await settled(staying.cloud, made.uuid)
    assert (found.vm_state, found.task_state, found.fault) == (vm_state, None, None)
    assert staying.hosts[0].driver.guest_file.state(made.uuid) == power
    assert (await staying.cloud.image.show(member(staying.cloud), image_id)).status == "active"


async def test_what_the_user_says_of_it_counts_before_the_base_image(staying: Three) -> None:
    made = await boot(staying)
    assert made.image is not None
    base = msgspec.structs.replace(made.image, properties={"hw_disk_bus": "scsi", "os_distro": "debian"})
    await put(staying, made.uuid, image=base)
    image_id = await ask(staying, made.uuid, os_distro="mine", image_type="theirs", instance_uuid="x")
    await settled(staying.cloud, made.uuid)
    said = (await staying.cloud.image.show(member(staying.cloud), image_id)).properties
    assert (said["hw_disk_bus"], said["os_distro"]) == ("scsi", "mine")
    assert (said["image_type"], said["instance_uuid"]) == ("snapshot", made.uuid)


@pytest.mark.capability("MG-SNP-5")
@pytest.mark.parametrize("step", ["image", "snapshot", "upload"])
async def test_a_failure_leaves_no_image_and_the_server_as_it_was(staying: Three, step: str) -> None:
    made = await boot(staying)
    failing(staying.cloud, "create_image", step, Failed("ordered"), after=step != "upload")
    cloud = staying.cloud
    await create_image.submit(cloud.cloud, member(cloud), made.uuid, "snap", {})
    found = await settled(cloud, made.uuid)
    assert found.fault is not None and found.fault.message == "ordered"
    assert await images(staying) == []
    await assert_untouched(staying, made)


@pytest.mark.capability("MG-SNP-4")
async def test_an_image_that_its_user_deletes_is_no_failure(staying: Three) -> None:
    made = await boot(staying)
    gate = Gate(staying.cloud, "create_image", "upload")
    image_id = await ask(staying, made.uuid)
    await gate.wait()
    await staying.cloud.image.delete(member(staying.cloud), image_id)
    gate.open()
    found = await settled(staying.cloud, made.uuid)
    assert found.fault is None
    assert await images(staying) == []
    await assert_untouched(staying, made)


@pytest.mark.capability("MG-SNP-4")
async def test_or_while_its_data_come(staying: Three) -> None:
    made = await boot(staying)
    driver = staying.hosts[0].driver
    driver.faults.hold("snapshot_data")
    image_id = await ask(staying, made.uuid)
    async with asyncio.timeout(20):
        while await all_images(staying) != [(image_id, "saving")]:
            await asyncio.sleep(0.01)
    await staying.cloud.image.delete(member(staying.cloud), image_id)
    driver.faults.release("snapshot_data")
    found = await settled(staying.cloud, made.uuid)
    assert found.fault is None
    await assert_untouched(staying, made)


async def test_a_host_that_fails_while_the_image_is_wanted_is_a_failure(staying: Three) -> None:
    made = await boot(staying)
    staying.hosts[0].driver.faults.add("snapshot_data", HostFault("its disk is broken"))
    await ask(staying, made.uuid)
    found = await settled(staying.cloud, made.uuid)
    assert found.fault is not None and found.fault.message == "its disk is broken"
    assert await images(staying) == []


@pytest.mark.capability("MG-SNP-3")
@pytest.mark.parametrize("step", ["image", "snapshot", "upload"])
async def test_a_delete_takes_along_what_is_not_complete(staying: Three, step: str) -> None:
    cloud = staying.cloud
    made = await boot(staying)
    gate = Gate(cloud, "create_image", step)
    asked = asyncio.create_task(create_image.submit(cloud.cloud, member(cloud), made.uuid, "snap", {}))
    await gate.wait()
    await delete.submit(cloud.cloud, member(cloud), made.uuid)
    gate.open()
    assert (await settled(cloud, made.uuid)).vm_state == Vm.DELETED
    await asked
    assert await images(staying) == []
    assert snapshots(staying) == []


@pytest.mark.capability("MG-SNP-3")
async def test_and_leaves_what_is(staying: Three) -> None:
    cloud = staying.cloud
    made = await boot(staying)
    gate = Gate(cloud, "create_image", "upload", after=True)
    image_id = await ask(staying, made.uuid)
    await gate.wait()
    await delete.submit(cloud.cloud, member(cloud), made.uuid)
    gate.open()
    assert (await settled(cloud, made.uuid)).vm_state == Vm.DELETED
    assert (await cloud.image.show(member(cloud), image_id)).status == "active"


async def test_one_at_a_time(staying: Three) -> None:
    cloud = staying.cloud
    made = await boot(staying)
    gate = Gate(cloud, "create_image", "upload")
    await ask(staying, made.uuid)
    await gate.wait()
    with pytest.raises(Conflict, match="image_uploading"):
        await create_image.submit(cloud.cloud, member(cloud), made.uuid, "two", {})
    gate.open()
    await settled(cloud, made.uuid)
    with pytest.raises(NotFound):
        await create_image.submit(cloud.cloud, member(cloud), "11111111-1111-4111-8111-111111111111", "x", {})
    assert [name for name in await images(staying) if name == "two"] == []


async def test_a_host_whose_agent_is_too_old_is_not_asked(staying: Three) -> None:
    """And no guest is turned off for what cannot be."""
    from sqlalchemy import update

    from kilonova.db.tables.compute import hosts as table

    cloud = staying.cloud
    made = await boot(staying)

    async def speaks(version: str) -> None:
        await cloud.db.write(lambda tx: tx.run(update(table).values(version=version)))

    await speaks("1.1")
    with pytest.raises(Conflict, match=r"version 1\.1, and 'upload_snapshot' needs 1\.2"):
        await shelve.submit(cloud.cloud, member(cloud), made.uuid)
    with pytest.raises(Conflict, match="upgrade it"):
        await create_image.submit(cloud.cloud, member(cloud), made.uuid, "snap", {})
    await assert_untouched(staying, made)
    await speaks("1.2")
    levels = cloud.settings.options["upgrade_levels"]
    levels["compute"] = "1.1"  # an operator is in the middle of an upgrade
    with pytest.raises(Conflict, match="upgrade_levels"):
        await shelve.submit(cloud.cloud, member(cloud), made.uuid)
    levels["compute"] = "auto"
    await ask(staying, made.uuid)


async def test_a_server_can_be_made_of_it(staying: Three) -> None:
    made = await boot(staying)
    image_id = await ask(staying, made.uuid)
    await settled(staying.cloud, made.uuid)
    other = await boot(staying, name="other", image_id=image_id)
    assert (other.vm_state, other.fault) == (Vm.ACTIVE, None)
