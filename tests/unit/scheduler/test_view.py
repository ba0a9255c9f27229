"""The view follows the database by its changes: what is read, what is not, and what is never missed."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import numpy as np
import pytest

from kilonova.db import aggregates, hosts, instances, placement_report, scheduling
from kilonova.db.engine import Tx
from kilonova.model.flavor import Flavor
from kilonova.model.host import Inventory, Metric, ProviderReport
from kilonova.model.instance import ImageMeta, Instance
from kilonova.model.states import Task, Vm
from kilonova.scheduler.columns import Columns
from kilonova.scheduler.options import default_options
from kilonova.scheduler.view import HostView
from kilonova.testing.clock import VirtualClock
from tests.unit.scheduler.town import Town, node


def told(columns: Columns) -> dict[str, Any]:
    """All that a view says, by host, in whatever rows they are."""
    result = {}
    for name, row in columns.row_of.items():
        host = msgspec.structs.replace(columns.record(row), report_count=0, last_seen_at=0, updated_at=None)
        numbers = ("instances", "io_ops", "failed_builds", "disabled", "forced_down", "last_seen")
        result[name] = (
            host,
            columns.zone_of(row),
            {each: int(getattr(columns, each)[row]) for each in numbers},
            {
                resource: (int(stock.capacity[row]), int(stock.used[row]), int(stock.max_unit[row]))
                for resource, stock in columns.stock.items()
                if stock.max_unit[row]
            },
            {trait for trait, mask in columns.traits.items() if mask[row]},
            {key: float(one[row]) for key, one in columns.metrics.items() if not np.isnan(one[row])},
            {one.name for one in columns.aggregates if columns.members(one)[row]},
        )
    return result


async def check(town: Town) -> None:
    """The view, brought up to date, says what one says that has read everything."""
    kept = told(await town.scheduler.view.current(anew=True))
    fresh = told(await town.another().view.current())
    assert kept == fresh


def server(number: int, host: str | None, **more: Any) -> Instance:
    values: dict[str, Any] = {
        "uuid": f"server-{number}",
        "project_id": "p1",
        "user_id": "u1",
        "display_name": "s",
        "vm_state": Vm.ACTIVE,
        "flavor": Flavor(id=1, flavorid="1", name="f", vcpus=1, memory_mb=1, root_gb=1),
        "host": host,
        **more,
    }
    return Instance(**values)


async def test_the_view_is_kept_for_a_second(town: Town, clock: VirtualClock) -> None:
    await town.add("h1")
    assert await town.seen() == {"h1"}
    await town.add("h2")
    clock.advance(0.999)
    assert await town.seen() == {"h1"}
    clock.advance(0.001)
    assert await town.seen() == {"h1", "h2"}
    await town.add("h3")
    town.scheduler.forget()
    assert await town.seen() == {"h1", "h2", "h3"}


async def test_a_clock_that_is_set_back_does_not_freeze_the_view(town: Town, clock: VirtualClock) -> None:
    await town.add("h1", "h3")
    await town.seen()
    if town.db.name == "sqlite":  # PostgreSQL has a clock of its own
        clock._now -= 3600_000_000
    else:
        clock._now -= 2_000_000
    await town.add("h2")
    await town.remove("h3")
    assert await town.seen() == {"h1", "h2"}
    await check(town)


async def test_a_change_during_a_look_is_not_lost(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    await town.add("h1")
    looking, goes_on = asyncio.Event(), asyncio.Event()
    read = town.db.read

    async def slow(fn: Any) -> Any:
        found = await read(fn)
        looking.set()
        await goes_on.wait()
        return found

    monkeypatch.setattr(town.db, "read", slow)
    first = asyncio.create_task(town.seen())
    await looking.wait()
    await town.add("h2")
    town.scheduler.forget()
    goes_on.set()
    assert await first == {"h1"}
    assert await town.seen() == {"h1", "h2"}


async def test_many_who_ask_share_a_look(town: Town) -> None:
    await town.add("h1")
    await asyncio.gather(*(town.scheduler.view.current() for _ in range(20)))
    assert town.scheduler.view.looks == 1
    await asyncio.gather(*(town.scheduler.view.current(anew=True) for _ in range(20)))
    assert town.scheduler.view.looks == 3  # the first one's, which the others had not asked for, and theirs


async def test_a_look_that_fails_leaves_the_view_as_it_was(
    town: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    await town.add("h1")
    await town.seen()
    read = town.db.read

    async def fail(fn: Any) -> Any:
        raise RuntimeError("no database")

    monkeypatch.setattr(town.db, "read", fail)
    await town.add("h2")
    town.scheduler.forget()
    with pytest.raises(RuntimeError):
        await town.seen()
    monkeypatch.setattr(town.db, "read", read)
    assert await town.seen() == {"h1", "h2"}


async def test_only_what_has_changed_is_read(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    await town.add("h1", "h2", "h3")
    await town.boot("u1", requested_host="h1")
    found: list[tuple[list[str], list[str]]] = []
    look_at_hosts, look_at_providers = scheduling.changed_hosts, scheduling.changed_providers

    def of_hosts(*args: Any, **more: Any) -> Any:
        news = look_at_hosts(*args, **more)
        found.append(([each.host for each in news.hosts], []))
        return news

    def of_providers(*args: Any, **more: Any) -> Any:
        news = look_at_providers(*args, **more)
        found[-1][1].extend(each.provider.uuid for each in news.providers)
        return news

    monkeypatch.setattr(scheduling, "changed_hosts", of_hosts)
    monkeypatch.setattr(scheduling, "changed_providers", of_providers)

    async def look() -> tuple[list[str], list[str]]:
        await town.scheduler.view.current(anew=True)
        return found[-1]

    assert await look() == ([], [])  # one's own booking is known
    await town.placement.claim("u2", {node("h2"): {"VCPU": 1}}, "p1", "u1")
    assert await look() == ([], [node("h2")])
    assert await look() == ([], [])
    await town.db.write(lambda tx: hosts.heartbeat(tx, "h1", town.clock.now() + 5))
    assert await look() == ([], [])
    await town.db.write(lambda tx: hosts.set_disabled(tx, "h3", True, None, 1))
    assert await look() == (["h3"], [])
    await check(town)


async def test_every_kind_of_change_is_seen(town: Town) -> None:
    """The clock stands still, so nothing can be told by its time alone."""
    db, now = town.db, town.clock.now()
    await town.add("h1", "h2", "h3")
    await check(town)
    await town.placement.claim("a", {node("h1"): {"VCPU": 2, "MEMORY_MB": 7}}, "p1", "u1")
    await town.placement.claim("b", {node("h1"): {"VCPU": 1}}, "p1", "u1")
    await check(town)
    await town.placement.release("a")
    await check(town)
    for change in (
        lambda tx: hosts.set_disabled(tx, "h1", True, "why", now),
        lambda tx: hosts.set_disabled(tx, "h1", False, None, now),
        lambda tx: hosts.set_forced_down(tx, "h2", True, now),
        lambda tx: hosts.heartbeat(tx, "h2", now + 9),
        lambda tx: hosts.count_failed_build(tx, "h3"),
        lambda tx: hosts.count_failed_build(tx, "h3"),
        lambda tx: hosts.forget_failed_builds(tx, "h3"),
        lambda tx: aggregates.create(tx, "agg", "a", "east", now),
        lambda tx: aggregates.add_host(tx, 1, "h2", now),
        lambda tx: aggregates.change(tx, 1, now, metadata={"ssd": "1"}),
        lambda tx: aggregates.change(tx, 1, now, zone=None),
        lambda tx: aggregates.remove_host(tx, 1, "h2", now),
        lambda tx: aggregates.remove(tx, 1),
    ):
        await db.write(change)
        await check(town)
    await town.add("h1", memory=1, cpus=99, details={"a": "b"}, metrics=(METRIC,))
    await check(town)
    await town.add("h1", memory=1, traits=("HW_CPU_X86_AVX",))
    await town.placement.set_trait(node("h2"), "CUSTOM_X", True)
    await check(town)
    await town.placement.set_trait(node("h2"), "CUSTOM_X", False)
    await check(town)


METRIC = Metric(name="cpu.idle", value=0.5, timestamp=1, source="test")


async def test_hosts_and_providers_that_go_and_come_again(town: Town) -> None:
    await town.add("h1", "h2", "h3")
    await check(town)
    await town.remove("h2")
    await check(town)
    assert await town.seen() == {"h1", "h3"}
    await town.add("h2", memory=77, cpus=3)  # it may get a row that another had
    await town.add("h4")
    await check(town)
    await town.placement.remove(node("h3"))
    await check(town)
    await town.remove("h1")
    await town.add("h1", memory=5)  # between two looks
    await check(town)


async def test_more_hosts_than_there_was_room_for(town: Town) -> None:
    await town.add("h0", traits=("HW_CPU_X86_AVX",), metrics=(METRIC,))
    await town.db.write(lambda tx: aggregates.create(tx, "agg", "a", None, 1))
    await town.db.write(lambda tx: aggregates.add_host(tx, 1, "h0", 1))
    await check(town)
    await town.add(*(f"h{number}" for number in range(1, 150)))
    await check(town)
    assert len(await town.seen()) == 150
    for number in range(0, 150, 2):
        await town.remove(f"h{number}")
    await check(town)


async def test_a_provider_that_is_known_before_its_host(town: Town) -> None:
    stock = {"VCPU": Inventory(total=8), "MEMORY_MB": Inventory(total=100)}
    await town.placement.report(node("h1"), "h1.example", stock, ("HW_CPU_X86_AVX",))
    assert await town.seen() == set()
    assert town.scheduler.view.elsewhere == {"VCPU", "MEMORY_MB", "HW_CPU_X86_AVX"}
    town.scheduler.forget()
    await town.add("h1", traits=("HW_CPU_X86_AVX",))
    await check(town)
    assert town.scheduler.view.elsewhere == frozenset()


async def test_what_other_providers_have(town: Town) -> None:
    await town.add("h1")
    child = ProviderReport(
        uuid="child", name="child", parent=node("h1"), inventories={"VGPU": Inventory(total=2)}
    )
    await town.db.write(lambda tx: placement_report.report(tx, child))
    await town.seen()
    await town.scheduler.view.current(anew=True)
    assert town.scheduler.view.elsewhere == {"VGPU"}
    await town.placement.set_trait("child", "CUSTOM_X", True)
    await town.scheduler.view.current(anew=True)
    assert town.scheduler.view.elsewhere == {"VGPU", "CUSTOM_X"}
    await town.placement.remove("child")
    await town.scheduler.view.current(anew=True)
    assert town.scheduler.view.elsewhere == frozenset()


@pytest.mark.capability("ST-4")
async def test_operations_that_keep_disks_busy(town: Town) -> None:
    await town.add("h1", "h2")
    heavy: list[tuple[str, str | None]] = [
        (Vm.BUILDING, Task.SPAWNING),
        *((Vm.ACTIVE, task) for task in (Task.RESIZE_MIGRATING, Task.REBUILDING, Task.RESIZE_PREP)),
        *((Vm.ACTIVE, task) for task in (Task.IMAGE_SNAPSHOT, Task.IMAGE_BACKUP, Task.RESCUING)),
        (Vm.SHELVED_OFFLOADED, Task.UNSHELVING),
    ]
    light: list[tuple[str, str | None]] = [
        (Vm.ACTIVE, None),
        (Vm.ACTIVE, Task.REBOOTING),
        (Vm.ERROR, Task.DELETING),
        (Vm.ACTIVE, Task.POWERING_OFF),
    ]

    def write(tx: Tx) -> None:
        for number, (vm, task) in enumerate((*heavy, *light)):
            instances.insert(tx, server(number, "h1", vm_state=vm, task_state=task))
        instances.insert(tx, server(90, "h2", vm_state=Vm.BUILDING, task_state=Task.SPAWNING))
        instances.insert(tx, server(91, None, vm_state=Vm.BUILDING, task_state=Task.SCHEDULING))
        instances.insert(tx, server(92, "gone", vm_state=Vm.BUILDING, task_state=Task.SPAWNING))

    await town.db.write(write)
    columns = await town.scheduler.view.current()
    assert {name: int(columns.io_ops[row]) for name, row in columns.row_of.items()} == {
        "h1": len(heavy),
        "h2": 1,
    }
    await town.db.write(lambda tx: instances.mark_deleted(tx, "server-90", 1))
    for number in range(3):
        await town.db.write(
            lambda tx, number=number: instances.update(
                tx, f"server-{number}", expect_task=instances.ANY, vm_state=Vm.ACTIVE, task_state=None
            )
        )
    await check(town)
    columns = await town.scheduler.view.current(anew=True)
    assert int(columns.io_ops[columns.row_of["h1"]]) == len(heavy) - 3
    assert int(columns.io_ops[columns.row_of["h2"]]) == 0


async def test_servers_are_counted_by_what_they_hold(town: Town) -> None:
    await town.add("h1", "h2")
    for uuid, host in (("a", "h1"), ("b", "h1"), ("c", "h2")):
        await town.placement.claim(uuid, {node(host): {"VCPU": 1, "MEMORY_MB": 1}}, "p1", "u1")
    columns = await town.scheduler.view.current()
    assert [int(columns.instances[columns.row_of[name]]) for name in ("h1", "h2")] == [2, 1]
    await town.boot("d", cpus=1, requested_host="h2")
    assert [int(columns.instances[columns.row_of[name]]) for name in ("h1", "h2")] == [2, 2]
    await check(town)


async def test_liveness_is_read_now_and_then(town: Town, clock: VirtualClock) -> None:
    """A heartbeat is not a change: 10,000 hosts have 1,000 of them a second."""
    await town.add("h1")
    await town.seen()
    for _ in range(20):
        clock.advance(5)
        await town.db.write(lambda tx: hosts.heartbeat(tx, "h1", clock.now()))
        columns = await town.scheduler.view.current()
        assert columns.alive(clock.now(), 60)[columns.row_of["h1"]]
    clock.advance(61)
    columns = await town.scheduler.view.current()
    assert not columns.alive(clock.now(), 60)[columns.row_of["h1"]]
    await town.db.write(lambda tx: hosts.heartbeat(tx, "h1", clock.now()))
    assert (await town.boot("u1")).host == "h1"  # before it says no, it looks


async def test_images_of_servers_are_counted_where_a_weigher_wants_it(town: Town) -> None:
    await town.add("h1")
    image = ImageMeta(id="i", properties={"os_distro": "debian"})

    def write(tx: Tx) -> None:
        for number in range(3):
            instances.insert(tx, server(number, "h1", image=image))
        instances.insert(tx, server(7, "gone", image=image))

    await town.db.write(write)
    assert (await town.scheduler.view.current()).images == {}
    multipliers = {**default_options().multipliers, "image_props_weight_multiplier": 1.0}
    view = HostView(town.db, town.clock, default_options(multipliers=multipliers))
    columns = await view.current()
    assert {key: int(one[columns.row_of["h1"]]) for key, one in columns.images.items()} == {
        ("os_distro", "debian"): 3
    }
