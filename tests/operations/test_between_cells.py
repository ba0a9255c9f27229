"""A server that changes its cell, and all that may happen between two writes: each test goes through all of
them, before and after, on the way there and on the way back."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest
from sqlalchemy import update

from kilonova.db import arrivals, belongings, instances
from kilonova.db.cells import Cell
from kilonova.db.engine import Database, DatabaseUnavailable
from kilonova.db.instance_list import SUMMARY, ServerList
from kilonova.db.tables.journal import actions
from kilonova.errors import Conflict, NotFound
from kilonova.journal.runner import Runner
from kilonova.listing.instances import list_servers
from kilonova.listing.migrations import list_migrations
from kilonova.listing.options import ListOptions
from kilonova.model.instance import Instance
from kilonova.model.states import Vm
from kilonova.operations import begin, confirm_resize, delete, external_event, rehome
from kilonova.operations.cloud import Cloud
from kilonova.operations.registry import OPERATIONS
from kilonova.testing.embedded import member
from tests.operations.between_cells import (
    AWAY,
    CELL_OF,
    assert_moved,
    both,
    cells,
    every_point,
    in_its_cell,
)
from tests.operations.between_points import POINTS, WRITES, acting, runner_of
from tests.operations.two_cells import CELL, FIRST_CELL, Between

__all__ = ["both", "cells"]


def test_every_write_is_known() -> None:
    assert len(POINTS) == 2 * WRITES


async def test_a_database_that_fails_delays_the_move(cells: Between) -> None:
    """Before a write, or when it was made and nobody heard so."""

    async def fail(uuid: str, host: str) -> None:
        raise DatabaseUnavailable("A test has taken the database away.")

    async def end(uuid: str, host: str, point: str) -> None:
        await assert_moved(cells, uuid, host, point)

    await every_point(cells, fail, end)


@pytest.mark.capability("MG-XC-2", "MG-XC-5")
async def test_what_a_user_changes_meanwhile_is_refused_or_kept(cells: Between) -> None:
    told: dict[str, str] = {}

    async def rename(uuid: str, host: str) -> None:
        await shown(cells, uuid)  # at any moment
        name = f"named at {len(told)}"
        try:
            await rehome.in_its_cell(
                cells.two.cells, uuid, lambda cloud: cloud.db.write(lambda tx: changed(tx, uuid, name))
            )
        except Conflict:
            name = (await shown(cells, uuid)).display_name  # and it can be read all the time
        told[uuid] = name

    async def end(uuid: str, host: str, point: str) -> None:
        await assert_moved(cells, uuid, host, point)
        assert (await cells.server(uuid)).display_name == told[uuid], point
        assert (await cells.server(uuid)).tags == ("t",) * told[uuid].startswith("named"), point

    await every_point(cells, rename, end)


async def shown(cells: Between, uuid: str) -> Instance:
    async def show(cloud: Cloud) -> Instance:
        return await cloud.db.read(lambda tx: begin.found(tx, uuid))

    found: Instance = await in_its_cell(cells, uuid, show)
    return found


def changed(tx: Any, uuid: str, name: str) -> None:
    if not instances.update(tx, uuid, expect_task=instances.ANY, display_name=name, tags=("t",)):
        raise NotFound(uuid)


@pytest.mark.capability("MG-XC-11")
async def test_a_delete_meanwhile_is_refused_or_leaves_nothing_anywhere(cells: Between) -> None:
    asked: list[bool] = []

    async def remove(uuid: str, host: str) -> None:
        context = member(cells.two.whole)
        try:
            await in_its_cell(cells, uuid, lambda cloud: delete.submit(cloud, context, uuid))
            asked.append(True)
        except Conflict:
            asked.append(False)

    async def end(uuid: str, host: str, point: str) -> None:
        if not asked[-1]:
            await assert_moved(cells, uuid, host, point)
            return
        found = await cells.server(uuid)
        assert found.deleted_at is not None, point
        assert cells.guests(uuid) == {} and cells.parked(uuid) == set(), point
        assert await cells.held(uuid) == set(), point
        await cells.assert_only_in(uuid, CELL_OF[host])

    await every_point(cells, remove, end)
    assert set(asked) == {True, False}


@pytest.mark.capability("MG-XC-8")
async def test_a_confirmation_meanwhile_is_refused_or_goes_on_in_the_other_cell(cells: Between) -> None:
    asked: dict[str, bool] = {}

    async def confirm(uuid: str, host: str) -> None:
        context = member(cells.two.whole)
        try:
            await rehome.in_its_cell(
                cells.two.cells, uuid, lambda cloud: confirm_resize.submit(cloud, context, uuid)
            )
            asked[uuid] = True
        except Conflict:
            asked[uuid] = False

    async def end(uuid: str, host: str, point: str) -> None:
        if not asked[uuid]:
            await assert_moved(cells, uuid, host, point)
            return
        found = await cells.server(uuid)
        assert (found.vm_state, found.host) == (Vm.ACTIVE, host), (point, found.fault)
        assert cells.parked(uuid) == set(), point
        await cells.assert_only_in(uuid, CELL_OF[host])

    for number, after in POINTS:
        for host in ("h1", "far"):
            uuid = await cells.boot(host)

            async def at_it(uuid: str = uuid, host: str = host) -> None:
                await confirm(uuid, host)

            async with acting(cells, host, number, after, at_it):
                await cells.ask_migrate(uuid)
                await cells.settled(uuid)
            await cells.settled(uuid)
            await end(uuid, AWAY[host], f"{number} {after} {host}")
    assert set(asked.values()) == {True, False}


@pytest.mark.capability("API-132", "ML-3")
async def test_lists_show_it_once_at_any_moment(cells: Between) -> None:
    looks = 0

    async def look(uuid: str, host: str) -> None:
        nonlocal looks
        looks += 1
        assert await listed(cells) == [uuid]
        rows = await list_migrations(
            cells.two.cells.all, {"instance_uuid": uuid}, clock=cells.two.whole.clock, options=ListOptions()
        )
        assert len({row.uuid for row in rows}) == len(rows) > 0

    async def end(uuid: str, host: str, point: str) -> None:
        await assert_moved(cells, uuid, host, point)

    await every_point(cells, look, end)
    assert looks == 2 * len(POINTS)


class Late:
    """A cell's database that is asked for its part of a list when something else is over."""

    def __init__(self, db: Database, first: Callable[[], Awaitable[object]]) -> None:
        self.name, self.close, self.write = db.name, db.close, db.write
        self._db, self._first, self._asked = db, first, False

    async def read(self, fn: Any) -> Any:
        if "batch" in fn.__qualname__ and not self._asked:
            self._asked = True
            await self._first()
        return await self._db.read(fn)


@pytest.mark.parametrize("host", ["h1", "far"])
async def test_a_list_does_not_miss_what_moves_behind_its_back(cells: Between, host: str) -> None:
    """It has looked where the server comes to, before, and looks where it came from, afterwards."""
    uuid = await cells.boot(host)

    async def move() -> None:
        await asyncio.sleep(0.2)  # the other cell has been asked by then
        await cells.resized(uuid)

    some = [
        msgspec.structs.replace(cell, db=Late(cell.db, move)) if cell.uuid == CELL_OF[host] else cell
        for cell in cells.two.cells.all
    ]
    assert await listed(cells, some) == [uuid]
    assert (await cells.server(uuid)).host == AWAY[host]


async def listed(cells: Between, some: list[Cell] | None = None) -> list[str]:
    wanted = ServerList()
    found = await list_servers(
        some or cells.two.cells.all, wanted, SUMMARY, clock=cells.two.whole.clock, options=ListOptions()
    )
    return [row[0] for row in found.rows]


async def overtaken(cells: Between, uuid: str, host: str) -> None:
    """Another controller takes the operation over, and finishes it."""
    slow = runner_of(cells, host)
    other = Runner(slow.db, slow.clock, "another", OPERATIONS, lease=30.0)
    other.cloud, other.let_go = slow.cloud, slow.let_go
    slow.sole = False  # the first cell's believes that nobody else is there

    def expire(tx: Any) -> None:
        tx.run(update(actions).where(actions.c.open).values(lease_until=0))

    await slow.db.write(expire)
    await other.start(sole=False)
    try:
        await cells.settled(uuid)
    finally:
        await other.stop()


async def test_two_controllers_are_at_it(both: Between) -> None:
    """One is slow at each of the writes, is taken for dead, and wakes when the other has done all."""

    async def act(uuid: str, host: str) -> None:
        await overtaken(both, uuid, host)

    async def end(uuid: str, host: str, point: str) -> None:
        await assert_moved(both, uuid, host, point)

    await every_point(both, act, end)


async def test_two_find_it_mapped_and_not_yet_there(both: Between, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both at once: each would unpack it, and one does."""
    unpacked, written, together = 4, belongings.write, threading.Barrier(2, timeout=1)

    def write(*what: Any) -> None:
        with contextlib.suppress(threading.BrokenBarrierError):  # one waits for the other, as it shall
            together.wait()
        written(*what)

    monkeypatch.setattr(belongings, "write", write)
    for host in ("h1", "far"):
        uuid, heard = await both.boot(host), list[Any]()

        async def ask(uuid: str = uuid, heard: list[Any] = heard) -> None:
            asks = (rehome.has_come(both.two.cells, uuid) for _ in range(2))
            heard += await asyncio.gather(*asks, return_exceptions=True)

        async with acting(both, host, unpacked, False, ask):
            await both.ask_migrate(uuid)
            await both.settled(uuid)
        assert heard == [1, 1]
        await assert_moved(both, uuid, AWAY[host], f"from {host}")


async def test_who_comes_right_after_another_finds_it_too(both: Between) -> None:
    """It was not there when it was looked for; before it could be unpacked, somebody else had done that."""
    uuid = await both.boot("h1")
    known, asked = both.two.cells, list[str]()

    async def ask(cloud: Cloud) -> Instance:
        asked.append(uuid)
        if len(asked) == 1:
            with pytest.raises(NotFound):
                await cloud.db.read(lambda tx: begin.found(tx, uuid))
            assert await rehome.has_come(known, uuid) == 1
            raise NotFound(uuid)
        return await cloud.db.read(lambda tx: begin.found(tx, uuid))

    async def act() -> None:
        assert (await in_its_cell(both, uuid, ask)).uuid == uuid

    async with acting(both, "h1", 4, False, act):
        await both.ask_migrate(uuid)
        await both.settled(uuid)
    assert len(asked) == 2


async def test_what_is_not_there_is_looked_for_once_more_where_a_server_has_moved(cells: Between) -> None:
    moved, stays, asked = await cells.boot("h1"), await cells.boot("h1"), list[str]()
    await cells.ask_migrate(moved)
    await cells.settled(moved)
    for uuid in (moved, stays):

        async def ask(cloud: Cloud, uuid: str = uuid) -> None:
            asked.append(uuid)
            raise NotFound("its port")

        with pytest.raises(NotFound, match="its port"):
            await in_its_cell(cells, uuid, ask)
    assert asked == [moved, moved, stays]


@pytest.mark.parametrize("host", ["h1", "far"])
async def test_one_wakes_when_the_server_is_back(cells: Between, host: str) -> None:
    """It was about to remove what had left, and what is there by now is not that."""
    uuid = await cells.boot(host)

    async def act() -> None:
        await overtaken(cells, uuid, host)
        await cells.reverted(uuid)

    async with acting(cells, host, WRITES - 1, False, act):
        await cells.ask_migrate(uuid)
    await asyncio.sleep(0.1)
    found = await cells.settled(uuid)
    assert (found.vm_state, found.host, found.residence) == (Vm.ACTIVE, host, 2), found.fault
    await cells.assert_only_in(uuid, CELL_OF[host])


async def test_what_nobody_is_at_is_settled(cells: Between) -> None:
    """An operator has given the operation up, at each of the writes."""
    for number, after in POINTS:
        for host in ("h1", "far"):
            uuid = await cells.boot(host)
            runner = runner_of(cells, host)

            async def gone(uuid: str = uuid, runner: Runner = runner) -> None:
                await runner.db.write(
                    lambda tx: tx.run(
                        update(actions)
                        .where(actions.c.open, actions.c.instance_uuid == uuid)
                        .values(open=False, state="failed", owner=None)
                    )
                )
                raise asyncio.CancelledError

            async with acting(cells, host, number, after, gone):
                await cells.ask_migrate(uuid)
                async with asyncio.timeout(20):
                    while await cells.is_open(uuid):
                        await asyncio.sleep(0.005)
            for _ in range(3):
                await rehome.settle(cells.two.cells)
            found = await cells.settled(uuid)
            moved = CELL_OF[AWAY[host]] if (await cells.home(uuid)) is not runner.cloud else CELL_OF[host]
            assert (found.host, found.leaving) == (AWAY[host], None), (number, after, host)
            assert moved == (CELL_OF[AWAY[host]] if (number, after) >= (3, True) else CELL_OF[host])
            rows = await cells.rows(uuid)
            assert [cell for cell, tables in rows.items() if tables] == [moved], (number, after, host, rows)
            if moved == CELL_OF[AWAY[host]]:
                await cells.confirmed(uuid)
                await cells.assert_only_in(uuid, moved)


async def test_what_was_packed_by_one_who_comes_late_changes_nothing(cells: Between) -> None:
    uuid = await cells.boot("h1")
    there, kept = cells.two.second, []

    async def keep() -> None:
        kept.append(await there.db.read(lambda tx: arrivals.find(tx, uuid)))

    async with acting(cells, "h1", 2, True, keep):
        await cells.resized(uuid)
    (arrival,) = kept
    assert arrival is not None
    await there.db.write(lambda tx: changed(tx, uuid, "as it is now"))
    assert not await there.db.write(lambda tx: arrivals.put(tx, arrival))
    values = msgspec.structs.asdict(arrival)
    await there.db.write(lambda tx: tx.run(arrivals._INSERT, **values))  # it had looked before the other came
    assert await rehome.settle(cells.two.cells) == 1
    assert (await cells.settled(uuid)).display_name == "as it is now"
    await cells.assert_only_in(uuid, CELL)
    await cells.reverted(uuid)
    assert await there.db.write(lambda tx: arrivals.put(tx, arrival))  # it is not known there any more
    assert await rehome.settle(cells.two.cells) == 1
    assert (await cells.settled(uuid)).host == "h1"
    await cells.assert_only_in(uuid, FIRST_CELL)


async def test_it_can_be_changed_while_the_other_cell_is_away(
    cells: Between, monkeypatch: pytest.MonkeyPatch
) -> None:
    uuid = await cells.boot("h1")
    refused: list[str] = []

    async def away(fn: Any) -> Any:
        refused.append(fn)
        raise DatabaseUnavailable("A test has taken the database away.")

    with monkeypatch.context() as patch:
        patch.setattr(cells.two.second.db, "write", away)
        await cells.ask_resize(uuid)
        async with asyncio.timeout(20):
            while not refused:
                await asyncio.sleep(0.005)
            while (await cells.server(uuid)).leaving is not None:
                await asyncio.sleep(0.005)
        await cells.two.first.db.write(lambda tx: changed(tx, uuid, "meanwhile"))
        assert (await cells.server(uuid)).vm_state == Vm.RESIZED
    assert (await cells.settled(uuid)).display_name == "meanwhile"
    await assert_moved(cells, uuid, "far", "when it is back")


@pytest.mark.parametrize("host", ["h1", "far"])
async def test_a_move_that_was_called_off_is_not_made_by_who_does_not_know(cells: Between, host: str) -> None:
    """What it has packed is not what the server is by now."""
    uuid = await cells.boot(host)
    home = await cells.home(uuid)

    async def call_off() -> None:
        await rehome._call_off(cells.two.cells, home, await cells.server(uuid))
        await home.db.write(lambda tx: changed(tx, uuid, "changed since"))

    async with acting(cells, host, 3, False, call_off):
        await cells.ask_migrate(uuid)
        await cells.settled(uuid)
    found = await cells.server(uuid)
    assert (found.display_name, found.residence) == ("changed since", 2)
    await assert_moved(cells, uuid, AWAY[host], "called off")


async def test_news_of_its_ports_that_come_meanwhile_are_taken_over(cells: Between) -> None:
    uuid = await cells.boot("h1")
    told: list[asyncio.Task[None]] = []

    async def tell() -> None:
        home = await cells.home(uuid)
        before = await cells.server(uuid)
        wrong = tuple(msgspec.structs.replace(vif, mac="fa:16:3e:00:00:00") for vif in before.vifs)
        await home.db.write(
            lambda tx: instances.update(
                tx, uuid, expect_task=instances.ANY, even_leaving=True, security_groups=(), vifs=wrong
            )
        )
        told.append(asyncio.create_task(external_event.deliver(home, uuid, "network-changed", "")))
        await asyncio.sleep(0.05)

    async with acting(cells, "h1", 1, True, tell):
        await cells.resized(uuid)
    await asyncio.gather(*told)
    found = await cells.server(uuid)
    assert found.host == "far" and found.vifs == tuple(await cells.two.whole.network.vifs(uuid))
    assert found.security_groups == await cells.two.whole.network.security_groups(uuid)
