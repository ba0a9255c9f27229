"""Resizes and cold migrations to a host of another cell."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kilonova.api import app as compute_api
from kilonova.api.policy import Policy
from kilonova.db import hosts, instances
from kilonova.desk import Desks
from kilonova.errors import HostFault, Invalid, NotFound
from kilonova.journal import actions as journal
from kilonova.journal import finished
from kilonova.model.migration import Status
from kilonova.model.states import Power, Vm
from kilonova.operations import delete, live_migrate, shelve, stop, unshelve
from kilonova.operations.resize import RESIZE_SERVER
from kilonova.rpc import versions
from kilonova.rpc.messages import Command, Observed
from kilonova.testing.embedded import member
from kilonova.testing.simulated_hosts import simulated_hosts
from tests.api.compute.asgi import Api, Tokens
from tests.operations.between_points import POINTS, acting
from tests.operations.two_cells import CELL, FIRST_CELL, Between, between

SMALL, LARGE = 128, 512


@pytest.fixture(name="cells")
async def _cells(tmp_path: Path) -> AsyncIterator[Between]:
    async with between(tmp_path) as made:
        yield made


cells = _cells


def other(host: str) -> tuple[str, str, str, str]:
    """(cell, host) where it is, and where it goes."""
    pair = (FIRST_CELL, "h1", CELL, "far")
    return pair if host == "h1" else (*pair[2:], *pair[:2])


@pytest.mark.capability("MG-XC-5", "MG-XC-8")
@pytest.mark.parametrize("host", ["h1", "far"])
async def test_a_resized_server_waits_in_the_other_cell_and_stays_when_it_is_confirmed(
    cells: Between, host: str
) -> None:
    _, _, new, away = other(host)
    uuid = await cells.boot(host)
    found = await cells.resized(uuid)
    assert (found.vm_state, found.task_state, found.host) == (Vm.RESIZED, None, away), found.fault
    await cells.assert_only_in(uuid, new)
    assert cells.guests(uuid) == {away: Power.RUNNING}
    assert cells.parked(uuid) == {host}
    (migration,) = await cells.migrations(uuid)
    assert (migration.status, migration.cross_cell_move) == (Status.FINISHED, True)
    assert await cells.held(uuid) == {away} and await cells.held(migration.uuid) == {host}
    assert await cells.used() == {"instances": 1, "cores": 1, "ram": LARGE}
    found = await cells.confirmed(uuid)
    assert (found.vm_state, found.host, found.flavor.name) == (Vm.ACTIVE, away, "m1.tiny"), found.fault
    await cells.assert_only_in(uuid, new)
    assert cells.parked(uuid) == set() and await cells.held(migration.uuid) == set()


@pytest.mark.capability("MG-XC-9")
@pytest.mark.parametrize("host", ["h1", "far"])
async def test_a_reverted_server_is_where_it_was(cells: Between, host: str) -> None:
    old, _, new, away = other(host)
    uuid = await cells.boot(host)
    await cells.resized(uuid)
    found = await cells.reverted(uuid)
    assert (found.vm_state, found.task_state, found.host) == (Vm.ACTIVE, None, host), found.fault
    assert found.residence == 2
    await cells.assert_only_in(uuid, old)
    assert cells.guests(uuid) == {host: Power.RUNNING} and cells.parked(uuid) == set()
    (migration,) = await cells.migrations(uuid)
    assert migration.status == Status.REVERTED
    assert await cells.held(uuid) == {host} and await cells.held(migration.uuid) == set()
    assert await cells.used() == {"instances": 1, "cores": 1, "ram": SMALL}
    again = await cells.resized(uuid)  # with all that was there before gone from there
    assert (again.host, again.residence) == (away, 3), again.fault
    await cells.assert_only_in(uuid, new)


# ---- when ----


@pytest.mark.capability("API-106", "MG-XC-1")
async def test_a_server_leaves_its_cell_only_if_its_owner_may_have_it_moved(cells: Between) -> None:
    uuid = await cells.boot("h1")
    await cells.ask_migrate(uuid, across=False)
    found = await cells.settled(uuid)
    assert (found.vm_state, found.host) == (Vm.ACTIVE, "h1") and found.fault is not None
    assert "far: it is in a cell to which the server may not go" in found.fault.message
    with pytest.raises(Invalid, match="Compute host far could not be found"):
        await cells.ask_migrate(uuid, "far", across=False)
    await cells.ask_migrate(uuid, "far")
    assert (await cells.settled(uuid)).host == "far"


@pytest.mark.capability("API-106", "API-9")
async def test_a_host_that_is_too_old_keeps_all_servers_in_their_cells(cells: Between) -> None:
    await cells.know_versions("1.1")
    uuid = await cells.boot("h1")
    with pytest.raises(Invalid, match="Compute host far could not be found"):
        await cells.ask_migrate(uuid, "far")
    await cells.ask_migrate(uuid)
    assert (await cells.settled(uuid)).host == "h1"


async def test_a_cell_that_takes_no_new_servers_takes_none_of_another(
    cells: Between, monkeypatch: pytest.MonkeyPatch
) -> None:
    uuid = await cells.boot("h1")
    found = cells.two.cells._cells[CELL]
    monkeypatch.setitem(
        cells.two.cells._cells, CELL, (msgspec.structs.replace(found[0], disabled=True), found[1])
    )
    await cells.ask_migrate(uuid)
    assert (await cells.settled(uuid)).host == "h1"


async def test_a_host_of_the_same_cell_is_preferred(cells: Between) -> None:
    async with simulated_hosts(cells.two.whole, "h2", memory_mb=2000):  # far has ten times as much
        await cells.know_versions(versions.VERSION)
        uuid = await cells.boot("h1")
        await cells.ask_migrate(uuid)
        found = await cells.settled(uuid)
        assert (found.vm_state, found.host) == (Vm.RESIZED, "h2"), found.fault
        assert found.residence == 0
        (migration,) = await cells.migrations(uuid)
        assert not migration.cross_cell_move


@pytest.mark.capability("MG-XC-1")
async def test_other_moves_stay_in_the_cell(cells: Between) -> None:
    uuid = await cells.boot("h1")
    home, context = await cells.home(uuid), cells.admin()
    with pytest.raises(Invalid, match="Compute host far could not be found"):
        await live_migrate.submit(home, context, uuid, host="far")
    await live_migrate.submit(home, context, uuid)
    assert (await cells.settled(uuid)).host == "h1"
    await shelve.submit(home, context, uuid)
    assert (await cells.settled(uuid)).host is None
    await cells.two.first.db.write(lambda tx: hosts.set_forced_down(tx, "h1", True, 1))
    cells.two.first.scheduler.forget()
    await unshelve.submit(home, context, uuid)
    found = await cells.settled(uuid)
    assert (found.vm_state, found.host) == (Vm.SHELVED_OFFLOADED, None) and found.fault is not None


# ---- what becomes of it ----


@pytest.mark.parametrize("host", ["h1", "far"])
async def test_one_that_is_off_stays_off(cells: Between, host: str) -> None:
    uuid = await cells.boot(host)
    await stop.submit(await cells.home(uuid), member(cells.two.whole), uuid)
    await cells.settled(uuid)
    found = await cells.resized(uuid)
    assert (found.vm_state, found.power_state) == (Vm.RESIZED, Power.SHUTDOWN)
    assert cells.guests(uuid) == {other(host)[3]: Power.SHUTDOWN}
    found = await cells.reverted(uuid)
    assert (found.vm_state, found.host) == (Vm.STOPPED, host)


@pytest.mark.capability("MG-XC-6", "MG-XC-7", "MG-XC-3")
@pytest.mark.parametrize("host", ["h1", "far"])
@pytest.mark.parametrize("verb", ["fit_disks", "start", "resume"])
async def test_what_fails_at_the_other_end_leaves_it_as_it_was(cells: Between, host: str, verb: str) -> None:
    old, _, new, away = other(host)
    uuid = await cells.boot(host)
    cells.drivers[away].faults.add(verb, HostFault("no"))
    found = await cells.resized(uuid)
    assert (found.vm_state, found.task_state, found.host) == (Vm.ACTIVE, None, host)
    assert found.fault is not None and found.flavor.name == "m1.nano" and found.residence == 0
    assert cells.guests(uuid) == {host: Power.RUNNING} and cells.parked(uuid) == set()
    (migration,) = await cells.migrations(uuid)
    assert (migration.status, migration.cross_cell_move) == (Status.ERROR, False)
    assert await cells.held(uuid) == {host} and await cells.held(migration.uuid) == set()
    assert await cells.used() == {"instances": 1, "cores": 1, "ram": SMALL}
    await cells.assert_only_in(uuid, old)
    assert new != old


@pytest.mark.capability("MG-XC-11")
@pytest.mark.parametrize("host", ["h1", "far"])
async def test_one_that_waits_in_the_other_cell_is_deleted(cells: Between, host: str) -> None:
    uuid = await cells.boot(host)
    await cells.resized(uuid)
    await delete.submit(await cells.home(uuid), member(cells.two.whole), uuid)
    found = await cells.settled(uuid)
    assert found.deleted_at is not None
    (migration,) = await cells.migrations(uuid)
    assert migration.status == Status.CONFIRMED
    assert cells.guests(uuid) == {} and cells.parked(uuid) == set()
    assert await cells.held(uuid) == set() and await cells.held(migration.uuid) == set()
    assert await cells.used() == {"instances": 0, "cores": 0, "ram": 0}
    await cells.assert_only_in(uuid, other(host)[2])


async def test_one_that_came_back_is_deleted_where_it_began(cells: Between) -> None:
    """Its mapping says that it is in the first cell, whose quota is counted by itself again."""
    uuid = await cells.boot("h1")
    await cells.resized(uuid)
    await cells.reverted(uuid)
    await delete.submit(await cells.home(uuid), member(cells.two.whole), uuid)
    assert (await cells.settled(uuid)).deleted_at is not None
    assert await cells.used() == {"instances": 0, "cores": 0, "ram": 0}
    mapping = await cells.two.mapping(uuid)
    assert mapping is not None and (mapping.state, mapping.residence) == ("gone", 2)
    await cells.assert_only_in(uuid, FIRST_CELL)


@pytest.mark.capability("MG-XC-2")
async def test_everything_goes_along(cells: Between) -> None:
    uuid = await cells.boot("h1")
    about: dict[str, Any] = {"display_name": "n", "tags": ("a", "b"), "metadata": {"k": "v"}}
    await cells.two.first.db.write(lambda tx: instances.update(tx, uuid, expect_task=instances.ANY, **about))
    before = await cells.server(uuid)
    log = await cells.two.first.db.read(lambda tx: journal.list_actions(tx, uuid))
    found = await cells.resized(uuid)
    kept = [name for name in found.__struct_fields__ if name not in CHANGES]
    assert {name: getattr(found, name) for name in kept} == {name: getattr(before, name) for name in kept}
    now = await cells.two.second.db.read(lambda tx: journal.list_actions(tx, uuid))
    assert [each.action for each in now] == ["resize", *(each.action for each in log)]
    assert [each.request_id for each in now[1:]] == [each.request_id for each in log]
    action = now[0]
    assert action.finish_time is not None and action.message is None
    events = await cells.two.second.db.read(lambda tx: journal.events(tx, action.id))
    assert [each.event for each in events] == [step.event for step in RESIZE_SERVER.steps]
    assert {each.result for each in events} == {"Success"}


CHANGES = frozenset(
    {
        *("id", "version", "vm_state", "task_state", "power_state", "power_generation", "progress", "host"),
        *("node", "availability_zone", "flavor", "vifs", "updated_at", "launched_at", "residence"),
    }
)


async def test_hosts_hear_rising_numbers_though_each_cell_counts_by_itself(cells: Between) -> None:
    """A host refuses what comes from an operation with a lower number than it has heard for the guest."""
    heard: list[tuple[int, int]] = []
    for driver in (cells.two.bus.hosts.agent("far"), cells.two.whole.local.agent("h1")):
        for verb in ("plug", "unplug", "destroy", "start"):
            own = getattr(driver, verb)

            async def told(command: Command, *more: Any, own: Any = own, **named: Any) -> Any:
                heard.append((command.action, command.epoch))
                return await own(command, *more, **named)

            setattr(driver, verb, told)
    for _ in range(30):  # the first cell has had more to do
        await cells.two.first.db.write(lambda tx: finished.record(tx, cells.admin(), "nobody", "lock", 1))
    uuid = await cells.boot("h1")
    for _ in range(2):
        await cells.resized(uuid)
        await cells.reverted(uuid)
    await delete.submit(await cells.home(uuid), cells.admin(), uuid)
    await cells.settled(uuid)
    assert len(heard) > 12 and heard == sorted(heard)


@pytest.mark.capability("MG-XC-8")
async def test_a_source_that_is_down_is_left_what_it_owes_in_the_other_cell(cells: Between) -> None:
    uuid = await cells.boot("far")
    await cells.resized(uuid)
    hands = cells.two.bus.hosts._hands.pop("far")
    await cells.two.first.db.write(lambda tx: hosts.set_forced_down(tx, "far", True, 1))
    found = await cells.confirmed(uuid)
    assert (found.vm_state, found.host) == (Vm.ACTIVE, "h1"), found.fault
    (migration,) = await cells.migrations(uuid)
    assert cells.parked(uuid) == {"far"} and await cells.held(migration.uuid) == {"far"}
    cells.two.bus.hosts.add("far", hands)
    assert cells.two.whole.clearing is not None
    assert await cells.two.whole.clearing.look() == 1  # of the cell where the server is
    assert cells.parked(uuid) == set() and await cells.held(migration.uuid) == set()
    await cells.assert_only_in(uuid, FIRST_CELL)


async def test_a_host_is_answered_about_a_server_that_comes_from_another_cell(cells: Between) -> None:
    """Its image, its metadata, what becomes of its guest."""
    uuid = await cells.boot("h1")
    desk = Desks().serve(cells.two.second, cells.two.whole.image, cells.two.whole.network).desk("far")
    server = await cells.server(uuid)
    assert server.image is not None
    with pytest.raises(NotFound):
        await desk.image(server.image.id, 0)
    answers: list[Any] = []

    async def ask() -> None:
        assert server.image is not None
        answers.append(await desk.image(server.image.id, 0))
        (vif,) = await cells.two.whole.network.vifs(uuid)
        answers.append(await desk.guest_at(vif.network_id, vif.fixed_ips[0].address))
        await desk.observed((Observed(uuid=uuid, power_state=Power.SHUTDOWN, generation=1 << 60),))

    async with acting(cells, "h1", 0, False, ask):
        await cells.ask_migrate(uuid)
        await cells.settled(uuid)
    assert answers[0] and answers[1].uuid == uuid
    assert (await cells.server(uuid)).power_state == Power.SHUTDOWN


# ---- the API ----


@pytest.mark.capability("API-106")
async def test_the_policy_decides(cells: Between, tmp_path: Path) -> None:
    whole = cells.two.whole
    context = cells.admin()
    tokens = Tokens(str(context.project_id), str(context.project_id), context.user_id, context.user_id)
    policy = Policy(tmp_path / "policy.yaml")
    api = Api(compute_api.app(whole.cloud, tokens, policy), version="2.87", who="admin")
    uuid = await cells.boot("h1")
    body = {"migrate": {"host": "far"}}
    refused = await api("POST", f"/servers/{uuid}/action", body)
    assert (refused.status, refused.fault) == (400, "Compute host far could not be found.")
    (tmp_path / "policy.yaml").write_text('"compute:servers:resize:cross_cell": "role:admin"\n')
    policy.refresh()
    assert (await api("POST", f"/servers/{uuid}/action", body)).status == 202
    assert (await cells.settled(uuid)).host == "far"
    shown = (await api("GET", f"/servers/{uuid}")).json["server"]
    assert (shown["status"], shown["OS-EXT-SRV-ATTR:host"]) == ("VERIFY_RESIZE", "far")
    assert (await api("POST", f"/servers/{uuid}/action", {"confirmResize": None})).status == 204
    await cells.settled(uuid)
    answers: list[int] = []

    async def ask() -> None:
        answers.append((await api("GET", f"/servers/{uuid}")).status)
        body = {"server": {"name": f"n{len(answers)}"}}
        answers.append((await api("PUT", f"/servers/{uuid}", body)).status)

    for number, after in POINTS:
        here = str((await cells.server(uuid)).host)
        async with acting(cells, here, number, after, ask):
            assert (await api("POST", f"/servers/{uuid}/action", {"migrate": None})).status == 202
            await cells.settled(uuid)
        await cells.confirmed(uuid)
    assert set(answers[::2]) == {200} and set(answers[1::2]) == {200, 409}
