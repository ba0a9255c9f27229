"""Servers in several cells: made where a host is best, finished there, counted once whatever ends early."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from msgspec.structs import replace
from sqlalchemy import update

from kilonova.clock import SECOND
from kilonova.db import cell_mappings, flavors, hosts, instance_mappings, instances, quotas
from kilonova.db.engine import DatabaseUnavailable, Tx
from kilonova.db.instance_mappings import GONE, MADE, PENDING
from kilonova.db.tables.cells import instance_mappings as table
from kilonova.errors import Conflict, HostFault, OverQuota, Unreachable
from kilonova.model.flavor import Flavor
from kilonova.operations import (
    attach_interface,
    create,
    create_in_cell,
    delete,
    detach_interface,
    reconcile_mappings,
    stop,
)
from kilonova.operations.attach_interface import AttachParams
from kilonova.operations.requests import CreateServer
from kilonova.registration import register
from kilonova.testing.embedded import audits, member
from tests.operations.second_cell import CELL, Two, two

__all__ = ["two"]


@pytest.mark.capability("API-125")
async def test_a_server_is_made_in_the_cell_with_the_best_host_and_stays_there(two: Two) -> None:
    (server,) = await two.boot()  # far has more memory than h1
    active = await two.settled(two.second, server.uuid)
    assert (active.vm_state, active.host) == ("active", "far")
    assert await two.first.db.read(lambda tx: instances.show_any(tx, server.uuid)) is None
    mapping = await two.mapping(server.uuid)
    assert mapping is not None
    assert (mapping.state, mapping.cell_uuid, mapping.queued_for_delete) == (MADE, CELL, False)
    assert (mapping.project_id, mapping.user_id) == (active.project_id, active.user_id)
    assert mapping.flavor == active.flavor
    assert await two.first.of_server(server.uuid) is two.second
    assert await two.used() == {"instances": 1, "cores": 1, "ram": active.flavor.memory_mb}
    assert await audits(two.whole) == []


@pytest.mark.capability("MG-DEV-7", "MG-DEV-8")
async def test_an_interface_comes_to_a_server_in_its_cell_and_goes(two: Two) -> None:
    """The network is that of all cells, the guest and its row are in this one."""
    (made,) = await two.boot(host="far")
    (vif,) = (await two.settled(two.second, made.uuid)).vifs
    params = AttachParams(port_id=two.first.new_uuid(), network_id=vif.network_id)
    await attach_interface.submit(two.second, member(two.whole), made.uuid, params)
    found = await two.settled(two.second, made.uuid)
    assert {each.port_id for each in found.vifs} == {vif.port_id, params.port_id}, found.fault
    assert two.driver.guest_file.macs(made.uuid) == tuple(each.mac for each in found.vifs)
    await detach_interface.submit(two.second, member(two.whole), made.uuid, params.port_id)
    found = await two.settled(two.second, made.uuid)
    assert found.vifs == (vif,), found.fault
    assert two.driver.guest_file.macs(made.uuid) == (vif.mac,)
    assert await audits(two.whole) == []


async def test_a_server_of_the_first_cell_needs_no_mapping(two: Two) -> None:
    (server,) = await two.boot(host="h1")
    active = await two.settled(two.first, server.uuid)
    assert (active.vm_state, active.host) == ("active", "h1")
    assert await two.mapping(server.uuid) is None
    assert await two.first.of_server(server.uuid) is two.first


@pytest.mark.parametrize(
    ("how", "cell"),
    [
        ({"host": "far"}, 1),
        ({"availability_zone": "nova:far"}, 1),
        ({"host": "h1"}, 0),
        ({"availability_zone": "nova:h1"}, 0),
    ],
)
async def test_a_host_that_is_named_decides_the_cell(two: Two, how: dict[str, Any], cell: int) -> None:
    (server,) = await two.boot(**how)
    cloud = (two.first, two.second)[cell]
    assert (await two.settled(cloud, server.uuid)).host == ("h1", "far")[cell]


async def test_a_retry_does_not_leave_the_cell(two: Two) -> None:
    """What fails on the only host of its cell fails, though another cell has room."""
    two.driver.faults.add("start", HostFault("the hypervisor is out of order"))
    (server,) = await two.boot()
    failed = await two.settled(two.second, server.uuid)
    assert failed.vm_state == "error"
    assert failed.fault is not None
    assert "out of order" in failed.fault.details
    assert await two.first.db.read(lambda tx: instances.show_any(tx, server.uuid)) is None


async def test_what_no_host_can_take_tells_so_in_the_first_cell(two: Two) -> None:
    large = Flavor(id=0, flavorid="large", name="large", vcpus=1, memory_mb=500_000, root_gb=1)
    await two.first.db.write(lambda tx: flavors.create(tx, large, 1))
    project = member(two.whole).project_id
    await two.first.db.write(lambda tx: quotas.set_limits(tx, quotas.PROJECT, str(project), {"ram": -1}))
    request = CreateServer(name="s", flavor_id="large", image_id=two.whole.example_image)
    (server,) = await create.submit(two.first, member(two.whole), request)
    failed = await two.settled(two.first, server.uuid)
    assert failed.vm_state == "error"


async def test_a_cell_that_is_disabled_takes_no_new_servers(two: Two) -> None:
    async def change(**values: Any) -> None:
        def write(tx: Tx) -> None:
            found = cell_mappings.find(tx, "second")
            assert found is not None
            cell_mappings.update_to(tx, replace(found, **values))

        await two.first.db.write(write)
        await two.parts.look()

    await change(disabled=True)
    (server,) = await two.boot()
    assert (await two.settled(two.first, server.uuid)).host == "h1"
    await change(disabled=False)
    (server,) = await two.boot()
    assert (await two.settled(two.second, server.uuid)).host == "far"


async def test_a_cell_that_does_not_answer_takes_no_new_servers(
    two: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    async def gone(fn: Any) -> Any:
        asked.append(fn)
        raise DatabaseUnavailable("down")

    with monkeypatch.context() as patch:
        patch.setattr(two.second.db, "read", gone)
        for _ in range(2):
            (server,) = await two.boot()
            assert (await two.settled(two.first, server.uuid)).host == "h1"
        assert len(asked) == 1  # and is left alone for a while
        with pytest.raises(DatabaseUnavailable):
            patch.setattr(two.second.db, "write", gone)
            await two.boot(host="far")  # for which there is no other
    assert (await two.used())["instances"] == 3  # of which one is found out about later


@pytest.mark.capability("API-98")
async def test_a_deletion_gives_everything_back_once(two: Two) -> None:
    server = await two.made()
    cloud = await two.first.of_server(server.uuid)
    await delete.submit(cloud, member(two.whole), server.uuid)
    mapping = await two.mapping(server.uuid)
    assert mapping is not None
    assert mapping.queued_for_delete
    gone = await two.settled(two.second, server.uuid)
    assert gone.vm_state == "deleted"
    assert await _is_gone(two, server.uuid)
    assert await two.used() == {"instances": 0, "cores": 0, "ram": 0}
    assert await two.whole.placement.held(server.uuid) == {}
    assert two.driver.guest_file.everything() == {}
    assert await audits(two.whole) == []


async def test_the_last_step_of_a_deletion_may_be_repeated(two: Two) -> None:
    server = await two.made()
    fail = [True]
    first_write = two.first.db.write

    async def above(fn: Any) -> Any:
        result = await first_write(fn)
        if fail and await _is_gone(two, server.uuid):
            fail.clear()
            raise DatabaseUnavailable("lost after the quota was given back")
        return result

    two.first.db.write = above  # type: ignore[method-assign]
    try:
        await delete.submit(two.second, member(two.whole), server.uuid)
        gone = await two.settled(two.second, server.uuid)
    finally:
        two.first.db.write = first_write  # type: ignore[method-assign]
    assert gone.vm_state == "deleted"
    assert not fail
    assert await two.used() == {"instances": 0, "cores": 0, "ram": 0}


async def _is_gone(two: Two, uuid: str) -> bool:
    mapping = await two.mapping(uuid)
    return mapping is not None and mapping.state == GONE


async def test_operations_run_in_the_servers_cell(two: Two) -> None:
    server = await two.made()
    await stop.submit(await two.first.of_server(server.uuid), member(two.whole), server.uuid)
    assert (await two.settled(two.second, server.uuid)).vm_state == "stopped"


async def test_quota_is_one_over_all_cells(two: Two) -> None:
    project = member(two.whole).project_id
    await two.first.db.write(lambda tx: quotas.set_limits(tx, quotas.PROJECT, str(project), {"instances": 2}))
    await two.boot(host="far")
    await two.boot(host="h1")
    for host in ("far", "h1"):
        with pytest.raises(OverQuota):
            await two.boot(host=host)
    assert (await two.used())["instances"] == 2


async def test_several_servers_of_a_request_are_in_one_cell(two: Two) -> None:
    made = await two.boot(min_count=3, max_count=3)
    assert len({server.uuid for server in made}) == 3
    for server in made:
        assert (await two.settled(two.second, server.uuid)).vm_state == "active"
    assert (await two.used())["instances"] == 3
    assert await audits(two.whole) == []


# ---- what ends between two databases ----


async def _cut_short(two: Two, monkeypatch: pytest.MonkeyPatch, *, before: bool) -> str:
    """Make a server and be cut off: the cell's write did not happen, or did and nobody heard; its id."""
    real = two.second.db.write
    seen: list[str] = []

    async def write(fn: Any) -> Any:
        if before:
            raise DatabaseUnavailable("cut off")
        result = await real(fn)
        seen.extend(server.uuid for server in result)
        raise DatabaseUnavailable("cut off")

    with monkeypatch.context() as patch:
        patch.setattr(two.second.db, "write", write)
        with pytest.raises(DatabaseUnavailable):
            await two.boot(host="far")
    (mapping,) = await two.first.db.read(lambda tx: instance_mappings.overdue(tx, -SECOND, 10))
    assert mapping.state == PENDING
    return mapping.instance_uuid


async def _later(two: Two, seconds: int, uuid: str) -> None:
    """As if the mapping were older."""
    await two.first.db.write(
        lambda tx: tx.run(update(table).values(updated_at=table.c.updated_at - seconds * SECOND))
    )


async def test_a_server_that_was_never_made_gives_its_quota_back(
    two: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    uuid = await _cut_short(two, monkeypatch, before=True)
    assert (await two.used())["instances"] == 1
    assert await audits(two.whole) == []
    await _later(two, 55, uuid)
    assert await reconcile_mappings.reconcile(two.cells) == 0  # it may be coming still
    await _later(two, 10, uuid)
    assert await reconcile_mappings.reconcile(two.cells) == 1
    assert await two.mapping(uuid) is None
    assert (await two.used())["instances"] == 0
    assert await reconcile_mappings.reconcile(two.cells) == 0
    assert await audits(two.whole) == []


async def test_a_server_that_was_made_unheard_is_found(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    uuid = await _cut_short(two, monkeypatch, before=False)
    await _later(two, 65, uuid)
    assert await reconcile_mappings.reconcile(two.cells) == 1
    mapping = await two.mapping(uuid)
    assert mapping is not None
    assert mapping.state == MADE
    assert (await two.used())["instances"] == 1
    assert (await two.settled(two.second, uuid)).vm_state == "active"


async def test_nothing_is_decided_about_a_cell_that_is_down(
    two: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    uuid = await _cut_short(two, monkeypatch, before=True)
    await _later(two, 65, uuid)

    async def gone(fn: Any) -> Any:
        raise DatabaseUnavailable("down")

    with monkeypatch.context() as patch:
        patch.setattr(two.second.db, "read", gone)
        assert await reconcile_mappings.reconcile(two.cells) == 0
    assert await two.mapping(uuid) is not None
    two.cells.forget(CELL)  # and about one that this process does not know
    assert await reconcile_mappings.reconcile(two.cells) == 0


async def test_a_write_that_comes_too_late_is_refused(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that no server comes to be whose booking was undone."""
    monkeypatch.setattr(create_in_cell, "HURRY", -1)
    with pytest.raises(Unreachable, match="could not be made in time"):
        await two.boot(host="far")
    assert (await two.used())["instances"] == 0
    assert await two.first.db.read(lambda tx: instance_mappings.overdue(tx, -SECOND, 10)) == []


async def test_what_was_made_is_not_given_up(two: Two) -> None:
    """By a controller that has not heard of it: the mapping says so by now."""
    server = await two.made()
    assert not await two.first.db.write(lambda tx: create_in_cell.give_up(tx, server))
    assert await two.mapping(server.uuid) is not None
    assert (await two.used())["instances"] == 1


async def test_two_controllers_reconcile_at_once(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    uuid = await _cut_short(two, monkeypatch, before=True)
    await _later(two, 65, uuid)
    await asyncio.gather(*(reconcile_mappings.reconcile(two.cells) for _ in range(4)))
    assert (await two.used())["instances"] == 0


# ---- hosts ----


async def test_a_host_belongs_to_its_cell(two: Two) -> None:
    found = await two.first.db.read(lambda tx: hosts.show(tx, "far"))
    assert found is not None
    assert found.cell_uuid == CELL
    own = await two.first.db.read(lambda tx: hosts.show(tx, "h1"))
    assert own is not None
    assert own.cell_uuid is None
    report = await two.driver.report()
    with pytest.raises(Conflict, match="belongs to the cell ce110000"):
        await register(two.first, report)
    assert await two.second.db.read(hosts.list_all) == []


async def test_the_scheduler_hears_which_hosts_of_other_cells_are_busy(two: Two) -> None:
    two.driver.faults.hold("start")
    (server,) = await two.boot(host="far")
    view = two.first.scheduler.view

    async def busy() -> int:
        await two.cells.look_at_loads()
        columns = await view.current(anew=True)
        return int(columns.io_ops[columns.row_of["far"]])

    async with asyncio.timeout(20):
        while await busy() != 1:  # it is on its way
            await asyncio.sleep(0.01)
    two.driver.faults.release("start")
    assert (await two.settled(two.second, server.uuid)).vm_state == "active"
    assert await busy() == 0


async def test_a_cell_that_was_removed_takes_no_part_any_more(two: Two) -> None:
    server = await two.made()
    await two.first.db.write(lambda tx: cell_mappings.remove(tx, CELL))
    await two.parts.look()
    assert two.bus.closed
    with pytest.raises(Unreachable, match=CELL):
        await two.first.of_server(server.uuid)
