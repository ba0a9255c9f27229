"""A host's figures: the sum of what there is."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from kilonova.db import host_report, host_resources, host_stats, hosts, instances
from kilonova.db.engine import Database
from kilonova.model.host import Inventory
from kilonova.model.host_resources import Claim, Wanted
from kilonova.model.instance import ImageMeta, Instance
from kilonova.model.states import Vm
from kilonova.resources.host_fit import fit_host
from kilonova.resources.tracker import Figures, Statistics, Tracked, figures, statistics, track
from kilonova.services.placement.port import ProviderSummary
from tests.unit.resources.numa import flavor_with, guest
from tests.unit.resources.test_claims import report

NAME = "host-1"  # test_claims calls its host so, too


@pytest.fixture
async def known(db: Database) -> Database:
    await db.write(lambda tx: hosts.upsert(tx, report(), 1))
    await db.write(lambda tx: host_report.take_over(tx, report()))
    return db


async def server(db: Database, uuid: str, **values: Any) -> None:
    defaults: dict[str, Any] = {
        "project_id": "p1",
        "user_id": "u",
        "display_name": uuid,
        "vm_state": Vm.ACTIVE,
        "host": NAME,
        "flavor": flavor_with({}),
    }
    await db.write(lambda tx: instances.insert(tx, Instance(uuid=uuid, **{**defaults, **values})))


async def change(db: Database, uuid: str, **values: Any) -> None:
    assert await db.write(lambda tx: instances.update(tx, uuid, expect_task=instances.ANY, **values))


async def tracked(db: Database) -> Tracked:
    found = await db.read(lambda tx: track(tx, NAME))
    assert found is not None
    return found


async def by_name(db: Database) -> dict[str, object]:
    return (await tracked(db)).statistics.by_name()


@pytest.mark.capability("ST-1")
async def test_servers_are_counted_by_what_they_are(known: Database) -> None:
    windows = ImageMeta(id="i", properties={"os_type": "windows"})
    await server(known, "a", image=windows)
    await server(known, "b", task_state="rebooting", project_id="p2")
    await server(known, "c", vm_state=Vm.STOPPED, image=ImageMeta(id="j"))
    await server(known, "elsewhere", host="host-2")
    assert await by_name(known) == {
        "num_instances": 3,
        "io_workload": 0,
        "failed_builds": 0,
        "num_vm_active": 2,
        "num_vm_stopped": 1,
        "num_task_None": 2,
        "num_task_rebooting": 1,
        "num_os_type_windows": 1,
        "num_os_type_None": 2,
        "num_proj_p1": 2,
        "num_proj_p2": 1,
    }


@pytest.mark.capability("ST-2", "RT-25")
async def test_a_server_that_changes_is_counted_once(known: Database) -> None:
    await server(known, "a", vm_state=Vm.BUILDING, task_state="spawning")
    await known.write(lambda tx: hosts.count_failed_build(tx, NAME))
    await change(known, "a", vm_state=Vm.ACTIVE, task_state=None)
    found = await by_name(known)
    assert found["num_vm_active"] == found["num_task_None"] == found["num_instances"] == 1
    assert "num_vm_building" not in found and "num_task_spawning" not in found
    assert found["failed_builds"] == 1  # survives what is counted anew


@pytest.mark.capability("ST-3")
async def test_who_is_gone_does_not_count(known: Database) -> None:
    await server(known, "a")
    await server(known, "b", vm_state=Vm.SHELVED_OFFLOADED)
    await known.write(lambda tx: instances.mark_deleted(tx, "a", 5))
    assert (await tracked(known)).statistics == Statistics()
    assert await known.read(host_stats.counts) == {}


@pytest.mark.capability("ST-4")
@pytest.mark.parametrize(
    ("vm_state", "task", "heavy"),
    [
        ("building", None, 1),
        ("building", "spawning", 1),
        *(
            ("active", task, 1)
            for task in ("resize_migrating", "rebuilding", "resize_prep", "image_snapshot", "image_backup")
        ),
        ("active", "rescuing", 1),
        ("shelved", "unshelving", 1),
        ("active", "rebooting", 0),
        ("active", None, 0),
    ],
)
async def test_what_keeps_disks_busy(known: Database, vm_state: str, task: str | None, heavy: int) -> None:
    await server(known, "a", vm_state=vm_state, task_state=task)
    assert (await tracked(known)).statistics.io_workload == heavy


@pytest.mark.capability("ST-5")
async def test_who_has_something_going_on(known: Database) -> None:
    for number, task in enumerate((None, "rebooting", "powering-off")):
        await server(known, str(number), task_state=task)
    assert (await tracked(known)).statistics.workload == 2
    assert await known.read(host_stats.counts) == {NAME: host_stats.Count(3, 2)}


@pytest.mark.capability("ST-7")
def test_a_drivers_own_statistics() -> None:
    empty = statistics([])
    assert empty.by_name({"gpus": 3})["gpus"] == 3
    assert empty.by_name(None) == {"num_instances": 0, "io_workload": 0, "failed_builds": 0}
    wrong: Any = "gpus=3"
    with pytest.raises(ValueError, match="mapping"):
        empty.by_name(wrong)


def provider(used: dict[str, int], **inventories: Inventory) -> ProviderSummary:
    return ProviderSummary(uuid="c", name="c", generation=1, inventories=inventories, used=used)


@pytest.mark.capability("RT-15")
def test_figures_count_what_the_host_keeps_for_itself() -> None:
    found = figures(
        provider(
            {"VCPU": 3, "PCPU": 2, "MEMORY_MB": 1000, "DISK_GB": 7},
            VCPU=Inventory(total=8, reserved=1, allocation_ratio=4.0),
            PCPU=Inventory(total=4),
            MEMORY_MB=Inventory(total=16000, reserved=512),
            DISK_GB=Inventory(total=100, reserved=10),
        ),
        host_stats.Count(2, 1),
    )
    assert found == Figures(
        vcpus=12,
        vcpus_used=6,
        memory_mb=16000,
        memory_mb_used=1512,
        local_gb=100,
        local_gb_used=17,
        running_vms=2,
        current_workload=1,
    )
    assert (found.free_ram_mb, found.free_disk_gb, found.disk_available_least) == (14488, 83, 83)
    assert figures(None, host_stats.Count()) == Figures()


@pytest.mark.capability("RT-20")
async def test_cells_and_pools_are_what_claims_leave(known: Database) -> None:
    assert await known.read(lambda tx: track(tx, "nobody")) is None
    resources = (await tracked(known)).resources
    fitted = fit_host(resources, Wanted(numa=guest(2, hw__cpu_policy="dedicated")))
    claim = Claim(
        consumer="s",
        instance_uuid="s",
        compute_id=NAME,
        numa=fitted.numa,
        devices=(resources.devices[0].device,),
    )
    await known.write(lambda tx: host_resources.add(tx, claim))
    found = await tracked(known)
    assert found.numa[0].pinned == {0, 1}
    assert [(pool.numa_cell, pool.count) for pool in found.pools] == [(1, 1)]
    await known.write(lambda tx: host_resources.drop(tx, "s"))
    found = await tracked(known)
    assert found.numa == {} and len(found.pools) == 2
    assert replace(found.resources, generation=0) == replace(resources, generation=0)
