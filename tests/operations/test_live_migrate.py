"""Live migrations between simulated hosts: where they go, what they check, and what they leave behind."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kilonova.db import hosts, instances
from kilonova.errors import Conflict, Failed, HostFault, Invalid
from kilonova.journal import actions as journal
from kilonova.model.migration import Status
from kilonova.model.states import Power, Task, Vm
from kilonova.testing.embedded import server
from tests.crash.broken import failing
from tests.operations.live_hosts import Live, live


@pytest.fixture(name="three")
async def _three(tmp_path: Path) -> AsyncIterator[Live]:
    async with live(tmp_path / "state") as made:
        yield made


three = _three


# ---- that it moves ----


@pytest.mark.capability("MG-LM-2", "MG-LM-5", "MG-LM-25", "MG-LM-27", "OVS-21")
async def test_a_server_goes_on_at_another_host(three: Live) -> None:
    """All that it had at its old host is gone from there, and the new one has it for good."""
    uuid = await three.boot()
    found, migration = await three.move(uuid)
    await three.assert_moved(uuid, "h2")
    assert (migration.status, migration.migration_type) == (Status.COMPLETED, "live-migration")
    assert (migration.source_compute, migration.dest_compute, migration.dest_node) == ("h1", "h2", "h2")
    assert three.hosts["h1"].empty and three.hosts["h3"].empty
    assert found.availability_zone == "nova"


async def test_it_is_written_down_under_nova_s_names(three: Live) -> None:
    uuid = await three.boot()
    await three.move(uuid)
    (action, *_) = await three.cloud.db.read(lambda tx: journal.list_actions(tx, uuid))
    assert (action.action, action.message) == ("live-migration", None)
    events = await three.cloud.db.read(lambda tx: journal.events(tx, action.id))
    names = {each.event for each in events}
    assert {
        "conductor_live_migrate_instance",
        "compute_check_can_live_migrate_destination",
        "compute_pre_live_migration",
        "compute_live_migration",
        "compute_post_live_migration_at_destination",
    } <= names
    assert {each.result for each in events} == {"Success"}


async def test_it_goes_there_and_back(three: Live) -> None:
    uuid = await three.boot()
    for host in ("h2", "h1", "h3", "h1"):
        _, migration = await three.move(uuid, host=host)
        assert migration.status == Status.COMPLETED
        await three.assert_moved(uuid, host)


async def test_a_paused_server_stays_paused(three: Live) -> None:
    uuid = await three.paused()
    found, migration = await three.move(uuid)
    assert (found.vm_state, found.host, found.power_state) == (Vm.PAUSED, "h2", Power.PAUSED)
    assert migration.status == Status.COMPLETED
    await three.assert_only_on(uuid, "h2", Power.PAUSED)


async def test_it_is_listed_as_migrating_meanwhile(three: Live) -> None:
    uuid = await three.boot()
    three.driver("h2").faults.hold("receive_live")
    migration = await three.begin(uuid)
    assert (await three.at(migration, Status.PREPARING)).in_progress
    found = await server(three.cloud, uuid)
    assert (found.vm_state, found.task_state, found.host) == (Vm.ACTIVE, Task.MIGRATING, "h1")
    with pytest.raises(Conflict, match=r"Cannot 'live-migration' instance .* in task_state migrating"):
        await three.begin(uuid)
    three.driver("h2").faults.release("receive_live")
    await three.at(migration, Status.COMPLETED)


@pytest.mark.parametrize("shared", [False, True])
async def test_files_on_storage_that_both_share_stay(
    tmp_path: Path, shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with live(tmp_path / "state", shared=shared) as three:
        uuid = await three.boot()
        _, migration = await three.move(uuid)
        await three.assert_moved(uuid, "h2")
        disk = 0 if shared else 1 << 30
        assert migration.memory_total == (128 << 20) + disk
        discard, discarded = three.driver("h1").discard, []

        async def watched(uuid: str) -> None:
            discarded.append(uuid)
            await discard(uuid)

        monkeypatch.setattr(three.driver("h1"), "discard", watched)
        three.driver("h1").faults.add("receive_live", HostFault("no"))
        found, migration = await three.move(uuid, host="h1")
        assert (found.host, migration.status) == ("h2", Status.ERROR)
        assert discarded == ([] if shared else [uuid])
        await three.assert_only_on(uuid, "h2")
        assert await three.nothing_left() == []


# ---- where to ----


@pytest.mark.capability("API-114")
async def test_a_host_that_was_named_is_asked_of_the_scheduler_unless_forced(three: Live) -> None:
    uuid = await three.boot()
    h3 = await three.cloud.db.read(lambda tx: hosts.show(tx, "h3"))
    assert h3 is not None
    now = three.cloud.clock.now()
    await three.cloud.db.write(lambda tx: hosts.set_disabled(tx, "h3", True, "work", now))
    three.cloud.scheduler.forget()
    found, migration = await three.move(uuid, host="h3")
    assert (found.host, migration.status) == ("h1", Status.ERROR)
    assert found.fault is not None and "h3" in found.fault.message
    found, migration = await three.move(uuid, host="h3", forced=True)
    assert (migration.status, found.host) == (Status.COMPLETED, "h3"), found.fault


async def test_a_host_that_was_named_is_the_only_one_that_is_tried(three: Live) -> None:
    uuid = await three.boot()
    three.driver("h3").faults.add("check_arrival", HostFault("not here"))
    found, migration = await three.move(uuid, host="h3")
    assert migration.status == Status.ERROR
    assert found.fault is not None and found.fault.message == "not here"
    await three.assert_as_before(uuid)


@pytest.mark.capability("MG-LM-3")
async def test_a_forced_host_needs_more_free_memory_than_the_server(tmp_path: Path) -> None:
    """Strictly more, as in Nova: a host that it would just fill is not taken."""
    async with live(tmp_path / "state", "h2") as two:
        for free, status in ((128, Status.ERROR), (129, Status.COMPLETED)):
            uuid = await two.boot()
            report = await two.driver("h2").report()
            memory = report.inventories["MEMORY_MB"]
            from msgspec.structs import replace

            used = 0
            two.driver("h2").capacity["MEMORY_MB"] = replace(memory, total=free + used)
            await two.cloud.register(await two.driver("h2").report())
            found, migration = await two.move(uuid, host="h2", forced=True)
            assert migration.status == status, found.fault
            if status == Status.ERROR:
                assert found.fault is not None and "128 MiB of memory free" in found.fault.message
                await two.assert_as_before(uuid)


@pytest.mark.capability("MG-LM-3")
async def test_a_forced_host_must_be_alive_and_another_one(three: Live) -> None:
    uuid = await three.boot()
    await three.cut_off("h2")
    found, migration = await three.move(uuid, host="h2", forced=True)
    assert migration.status == Status.ERROR
    assert found.fault is not None and "h2 is unavailable" in found.fault.message
    for forced in (False, True):
        with pytest.raises(Invalid, match="to current host"):
            await three.begin(uuid, host="h1", forced=forced)
        with pytest.raises(Invalid, match="h9 could not be found"):
            await three.begin(uuid, host="h9", forced=forced)
    await three.assert_as_before(uuid)


@pytest.mark.capability("MG-LM-2")
@pytest.mark.parametrize("verb", ["check_arrival", "receive_live"])
async def test_when_a_host_will_not_do_the_next_one_is_taken(three: Live, verb: str) -> None:
    uuid = await three.boot()
    three.driver("h2").faults.add(verb, HostFault("not here"))
    _, migration = await three.move(uuid)
    assert (migration.status, migration.dest_compute) == (Status.COMPLETED, "h3")
    await three.assert_moved(uuid, "h3")
    assert three.hosts["h2"].empty


@pytest.mark.capability("MG-LM-2")
async def test_hosts_of_another_kind_and_older_ones_are_not_taken(three: Live) -> None:
    uuid = await three.boot()
    for name, change in (("h2", {"hypervisor_version": 1}), ("h3", {"hypervisor_type": "other"})):
        report = await three.driver(name).report()
        from msgspec.structs import replace

        await three.cloud.register(replace(report, **change))
    found, migration = await three.move(uuid)
    assert migration.status == Status.ERROR
    assert found.fault is not None
    assert "older" in found.fault.details and "other" in found.fault.details
    await three.assert_as_before(uuid)


@pytest.mark.capability("MG-LM-2")
@pytest.mark.parametrize(
    ("retries", "tried", "status"), [(-1, 2, "error"), (0, 1, "failed"), (1, 2, "failed")]
)
async def test_so_many_hosts_are_tried(tmp_path: Path, retries: int, tried: int, status: str) -> None:
    async with live(tmp_path / "state", DEFAULT={"migrate_max_retries": retries}) as three:
        uuid = await three.boot()
        for name in ("h2", "h3"):
            three.driver(name).faults.add("check_arrival", HostFault(f"no {name}"))
        found, migration = await three.move(uuid)
        assert migration.status == status
        left = sum(three.driver(name).faults.left("check_arrival") for name in ("h2", "h3"))
        assert left == 2 - tried
        assert found.fault is not None and "no h2" in found.fault.details
        await three.assert_as_before(uuid)


# ---- checks ----


@pytest.mark.capability("MG-LM-1")
@pytest.mark.parametrize("power", [Power.SHUTDOWN, Power.NOSTATE, Power.CRASHED])
async def test_a_guest_that_is_not_known_to_run_is_not_sent(three: Live, power: int) -> None:
    uuid = await three.boot()
    await three.cloud.db.write(lambda tx: instances.update(tx, uuid, expect_task=None, power_state=power))
    found, migration = await three.move(uuid)
    assert (found.task_state, found.host, migration.status) == (None, "h1", Status.ERROR)
    assert found.vm_state == (Vm.ACTIVE if power == Power.NOSTATE else Vm.STOPPED)  # as it is found to be
    assert (await three.everywhere(uuid)).held == {"h1"}


@pytest.mark.capability("MG-LM-1")
async def test_nothing_is_begun_when_the_source_is_down(three: Live) -> None:
    uuid = await three.boot()
    await three.cut_off("h1")
    found, migration = await three.move(uuid)
    assert (found.vm_state, found.task_state, migration.status) == (Vm.ACTIVE, None, Status.ERROR)
    assert found.fault is not None and "h1 is unavailable" in found.fault.message
    assert (await three.everywhere(uuid)).held == {"h1"}


@pytest.mark.capability("MG-LM-7")
@pytest.mark.parametrize("where", ["arrival", "departure", "cpu", "nowhere"])
async def test_the_probe_is_removed_in_every_case(three: Live, where: str) -> None:
    uuid = await three.boot()
    if where == "cpu":
        three.live("h2").cpu = three.live("h3").cpu = "it lacks vmx"
    elif where != "nowhere":
        host = "h2" if where == "arrival" else "h1"
        three.driver(host).faults.add(f"check_{where}", HostFault("no"))
    found, migration = await three.move(uuid)
    assert all(not host.driver.storage.probes for host in three.hosts.values())
    assert migration.status == (Status.ERROR if where == "cpu" else Status.COMPLETED)
    if where == "cpu":
        assert found.fault is not None and "it lacks vmx" in found.fault.details


@pytest.mark.parametrize("block", [True, False, None])
@pytest.mark.parametrize("shared", [True, False])
async def test_block_migration_has_to_suit_the_storage(
    tmp_path: Path, shared: bool, block: bool | None
) -> None:
    async with live(tmp_path / "state", "h2", shared=shared) as two:
        uuid = await two.boot()
        _, migration = await two.move(uuid, block=block)
        good = block is None or block != shared
        assert migration.status == (Status.COMPLETED if good else Status.ERROR)


@pytest.mark.capability("MG-LM-6", "MG-LM-30")
@pytest.mark.parametrize(
    ("step", "error", "vm_state", "status"),
    [
        ("place", Failed("no"), Vm.ACTIVE, "error"),
        ("check", Failed("no"), Vm.ACTIVE, "error"),
        ("bind", Conflict("no"), Vm.ACTIVE, "error"),
        ("prepare", Failed("no"), Vm.ACTIVE, "error"),
        ("migrate", Failed("no"), Vm.ACTIVE, "failed"),
        ("check", RuntimeError("a fault of ours"), Vm.ERROR, "error"),
        ("prepare", RuntimeError("a fault of ours"), Vm.ERROR, "error"),
        ("migrate", RuntimeError("a fault of ours"), Vm.ERROR, "error"),
    ],
)
async def test_what_was_foreseen_leaves_the_server_as_it_was(
    three: Live, step: str, error: Exception, vm_state: str, status: str
) -> None:
    uuid = await three.boot()
    failing(three.cloud, "live_migrate", step, error)
    found, migration = await three.move(uuid)
    assert (found.vm_state, found.task_state, found.host, found.progress) == (vm_state, None, "h1", 0)
    assert migration.status == status
    assert found.fault is not None
    await three.assert_only_on(uuid, "h1")
    found_errors = [
        each for each in await three.nothing_left() if vm_state == Vm.ACTIVE or "error" not in each
    ]
    assert found_errors == []


@pytest.mark.parametrize(
    ("specs", "error", "said"),
    [
        ({"hw:mem_encryption": "true"}, "Conflict", "SEV"),
        ({"hw:tpm_version": "2.0"}, "Conflict", "TPM"),
        ({"accel:device_profile": "gpu"}, "Forbidden", "accelerators"),
    ],
)
@pytest.mark.capability("API-6")
async def test_what_cannot_be_taken_along_is_refused_at_once(
    three: Live, specs: dict[str, str], error: str, said: str
) -> None:
    from msgspec.structs import replace

    uuid = await three.boot()
    flavor = replace((await server(three.cloud, uuid)).flavor, extra_specs=specs)
    await three.cloud.db.write(lambda tx: instances.update(tx, uuid, expect_task=None, flavor=flavor))
    with pytest.raises((Conflict, Failed, Invalid, Exception), match=said) as caught:
        await three.begin(uuid)
    assert type(caught.value).__name__ == error
    assert (await server(three.cloud, uuid)).task_state is None
    assert await three.migrations(uuid) == []
