"""Servers in the database: what goes in comes out, and changes are made under compare-and-set."""

from __future__ import annotations

from typing import Any

import pytest

from kilonova.db import instances
from kilonova.db.engine import Database, UniqueViolation
from kilonova.model.flavor import Flavor
from kilonova.model.instance import Fault, ImageMeta, Instance
from kilonova.model.port import FixedIp, Vif
from kilonova.model.states import Task, Vm


def server(uuid: str, **values: Any) -> Instance:
    flavor = Flavor(id=1, flavorid="1", name="tiny", vcpus=1, memory_mb=64, root_gb=1)
    defaults: dict[str, Any] = {
        "project_id": "p1",
        "user_id": "u1",
        "display_name": "one",
        "vm_state": Vm.BUILDING,
        "task_state": Task.SCHEDULING,
        "flavor": flavor,
        "created_at": 5,
    }
    return Instance(uuid=uuid, **{**defaults, **values})


FULL = server(
    "a",
    image=ImageMeta(id="i", properties={"hw_disk_bus": "virtio"}),
    config_drive=True,
    metadata={"k": "vä"},
    tags=("x", "y"),
    hints={"group": "g"},
    vifs=(
        Vif(
            port_id="p",
            mac="m",
            network_id="n",
            network_name="net",
            fixed_ips=(FixedIp(subnet_id="s", address="10.0.0.2"),),
        ),
    ),
    fault=Fault(code=500, message="no", created=3),
    locked="admin",
)


async def test_what_goes_in_comes_out(db: Database) -> None:
    number = await db.write(lambda tx: instances.insert(tx, FULL))
    found = await db.read(lambda tx: instances.show(tx, "a"))
    assert found == FULL.__class__(**{**{f: getattr(FULL, f) for f in FULL.__struct_fields__}, "id": number})
    with pytest.raises(UniqueViolation):
        await db.write(lambda tx: instances.insert(tx, FULL))


@pytest.mark.parametrize(
    ("expected", "matches"),
    [
        (None, False),
        (instances.ANY, True),
        ((Task.SCHEDULING,), True),
        ((None, Task.SCHEDULING), True),
        ((None, Task.DELETING), False),
        ((Task.DELETING, Task.SPAWNING), False),
    ],
)
async def test_a_change_needs_the_expected_task(db: Database, expected: Any, matches: bool) -> None:
    await db.write(lambda tx: instances.insert(tx, FULL))
    done = await db.write(
        lambda tx: instances.update(
            tx, "a", expect_task=expected, vm_state=Vm.ACTIVE, task_state=None, tags=("z",), fault=None
        )
    )
    assert done is matches
    found = await db.read(lambda tx: instances.show(tx, "a"))
    assert found is not None
    if matches:
        assert (found.vm_state, found.task_state, found.tags, found.fault) == ("active", None, ("z",), None)
        assert found.version == 2
        assert found.updated_at is not None and found.updated_at > 1_700_000_000_000_000
    else:
        assert (found.vm_state, found.version, found.updated_at) == ("building", 1, None)


async def test_a_change_may_also_need_a_vm_state(db: Database) -> None:
    await db.write(lambda tx: instances.insert(tx, FULL))

    def change(*states: str) -> Any:
        return lambda tx: instances.update(
            tx, "a", expect_task=instances.ANY, expect_vm=states, progress=7, updated_at=9
        )

    assert not await db.write(change(Vm.ACTIVE, Vm.STOPPED))
    assert await db.write(change(Vm.ACTIVE, Vm.BUILDING))
    found = await db.read(lambda tx: instances.show(tx, "a"))
    assert found is not None and (found.progress, found.updated_at) == (7, 9)


async def test_fields_that_a_server_has_not_are_a_fault_of_the_caller(db: Database) -> None:
    with pytest.raises(TypeError, match="colour"):
        await db.write(lambda tx: instances.update(tx, "a", expect_task=None, colour="red"))
    with pytest.raises(ValueError, match="task_state"):
        await db.write(lambda tx: instances.update(tx, "a", expect_task=(), progress=1))


async def test_a_deleted_server_is_found_only_when_asked_for(db: Database) -> None:
    await db.write(lambda tx: instances.insert(tx, server("a", host="h1")))
    await db.write(lambda tx: instances.insert(tx, server("b", host="h1")))
    assert await db.write(lambda tx: instances.mark_deleted(tx, "a", 99))
    assert not await db.write(lambda tx: instances.mark_deleted(tx, "a", 100))
    assert await db.read(lambda tx: instances.show(tx, "a")) is None
    gone = await db.read(lambda tx: instances.show_any(tx, "a"))
    assert gone is not None
    assert (gone.vm_state, gone.task_state, gone.deleted_at, gone.terminated_at) == ("deleted", None, 99, 99)
    assert not await db.write(lambda tx: instances.update(tx, "a", expect_task=instances.ANY, progress=1))
    assert [one.uuid for one in await db.read(lambda tx: instances.by_host(tx, "h1"))] == ["b"]
    assert await db.read(lambda tx: instances.uuids_by_host(tx, "h1")) == ["b"]
    asked = ["a", "b", "nobody"]
    assert await db.read(lambda tx: instances.those_of_host(tx, "h1", asked)) == {"b"}
    assert await db.read(lambda tx: instances.those_of_host(tx, "h2", asked)) == set()


async def test_an_old_report_of_the_power_state_is_dropped(db: Database) -> None:
    await db.write(lambda tx: instances.insert(tx, server("a")))
    assert await db.write(lambda tx: instances.observe(tx, "a", 1, 5)) == ("building", "scheduling")
    assert await db.write(lambda tx: instances.observe(tx, "a", 4, 5)) is None
    assert await db.write(lambda tx: instances.observe(tx, "a", 4, 4)) is None
    found = await db.read(lambda tx: instances.show(tx, "a"))
    assert found is not None and (found.power_state, found.power_generation) == (1, 5)


async def test_a_report_of_a_host_that_the_server_has_left_is_dropped(db: Database) -> None:
    await db.write(lambda tx: instances.insert(tx, server("b", host="h1")))
    assert await db.write(lambda tx: instances.observe(tx, "b", 3, 9, host="h2")) is None
    assert await db.write(lambda tx: instances.observe(tx, "b", 4, 2, host="h1")) is not None


async def test_a_report_that_tells_nothing_new_is_no_change_of_the_server(db: Database) -> None:
    await db.write(lambda tx: instances.insert(tx, server("a")))
    await db.write(lambda tx: instances.observe(tx, "a", 1, 5))
    before = await db.read(lambda tx: instances.show(tx, "a"))
    assert await db.write(lambda tx: instances.observe(tx, "a", 1, 8))
    after = await db.read(lambda tx: instances.show(tx, "a"))
    assert before is not None and after is not None
    assert (after.version, after.updated_at) == (before.version, before.updated_at)
    assert after.power_generation == 8
    assert await db.write(lambda tx: instances.observe(tx, "a", 4, 9))
    changed = await db.read(lambda tx: instances.show(tx, "a"))
    assert changed is not None and changed.version == before.version + 1
