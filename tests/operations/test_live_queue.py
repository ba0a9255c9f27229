"""Turns of live migrations: how many a host sends at a time, in which order, and who hears of his turn."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from kilonova.errors import Failed
from kilonova.model.migration import Status
from kilonova.model.states import Vm
from kilonova.testing.embedded import kill, server, settled
from tests.crash.broken import failing
from tests.operations.live_hosts import SLOW, Live, live

Q, P, R = Status.QUEUED, Status.PREPARING, Status.RUNNING


async def statuses(three: Live, moves: list[str]) -> list[str]:
    return [(await three.migration(each)).status for each in moves]


async def becomes(three: Live, moves: list[str], *wanted: str) -> None:
    found: list[str] = []
    try:
        async with asyncio.timeout(15):
            while (found := await statuses(three, moves)) != list(wanted):
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise AssertionError(f"{found} instead of {list(wanted)}") from None


def let_on(three: Live) -> None:
    three.driver("h1").faults.release("arrive")


async def begun(three: Live, count: int) -> tuple[list[str], list[str]]:
    """So many servers, and the live migrations that were asked for them one after the other."""
    servers, moves = [await three.boot() for _ in range(count)], []
    three.driver("h1").faults.hold("arrive")
    for each in servers:
        moves.append(await three.begin(each))
        await three.at(moves[-1], Q, R)
    return servers, moves


@pytest.mark.capability("MG-LM-14")
@pytest.mark.parametrize(
    ("limit", "first"), [(1, (R, Q, Q, Q)), (2, (R, R, Q, Q)), (0, (R, R, R, R)), (4, (R, R, R, R))]
)
async def test_so_many_are_sent_at_a_time(tmp_path: Path, limit: int, first: tuple[str, ...]) -> None:
    async with live(tmp_path / "state", DEFAULT={"max_concurrent_live_migrations": limit}) as three:
        servers, moves = await begun(three, 4)
        await becomes(three, moves, *first)
        assert [(await three.migration(each)).in_progress for each in moves] == [True] * 4
        let_on(three)
        await becomes(three, moves, *[Status.COMPLETED] * 4)
        for each in servers:
            await settled(three.cloud, each)
            await three.assert_only_on(each, "h2")
        assert await three.nothing_left() == []


@pytest.mark.capability("MG-LM-14")
async def test_they_go_in_the_order_in_which_they_came(tmp_path: Path) -> None:
    async with live(tmp_path / "state") as three:
        three.live("h1").rate = SLOW
        servers, moves = await begun(three, 3)
        let_on(three)
        for done in range(3):
            await becomes(three, moves, *[Status.COMPLETED] * done, R, *[Q] * (2 - done))
            await three.force_complete(moves[done])
        await becomes(three, moves, *[Status.COMPLETED] * 3)
        assert {(await server(three.cloud, each)).host for each in servers} == {"h2"}


async def test_hosts_do_not_wait_for_each_other(tmp_path: Path) -> None:
    async with live(tmp_path / "state") as three:
        one, two = await three.boot(), await three.boot()
        await three.move(two, host="h3")
        three.driver("h1").faults.hold("arrive")
        three.driver("h3").faults.hold("arrive")
        moves = [await three.begin(one), await three.begin(two, host="h2")]
        await becomes(three, moves, R, R)
        three.driver("h3").faults.release("arrive")
        await three.at(moves[1], Status.COMPLETED)
        let_on(three)
        await three.at(moves[0], Status.COMPLETED)


@pytest.mark.parametrize("how", ["fails", "aborted", "deleted", "prepare", "source off"])
async def test_whoever_ends_in_whatever_way_gives_its_turn_on(tmp_path: Path, how: str) -> None:
    async with live(tmp_path / "state") as three:
        servers = [await three.boot() for _ in range(2)]
        three.driver("h1").faults.hold("arrive")
        if how == "fails":
            failing(three.cloud, "live_migrate", "wired", Failed("no"))
        if how == "prepare":
            three.driver("h2").faults.hold("receive_live")
            three.driver("h2").faults.add("receive_live", Failed("no"))
        moves = [await three.begin(servers[0])]
        await three.at(moves[0], P, R, Status.ERROR)
        moves.append(await three.begin(servers[1]))
        if how == "fails":
            await becomes(three, moves, Status.ERROR, Status.ERROR)
            return
        if how == "prepare":
            await becomes(three, moves, P, Q)
            three.driver("h2").faults.release("receive_live")
            await becomes(three, moves, Status.ERROR, R)
        else:
            await becomes(three, moves, R, Q)
            if how == "aborted":
                await three.abort(moves[0])
                await becomes(three, moves, Status.CANCELLED, R)
            elif how == "deleted":
                from kilonova.operations import delete

                await delete.submit(three.cloud.cloud, three.admin(), servers[0])
                await becomes(three, moves, Status.CANCELLED, R)
            else:
                three.driver("h1").turn_off(servers[0])
                await becomes(three, moves, Status.FAILED, R)
        let_on(three)
        await three.at(moves[1], Status.COMPLETED)
        for each in servers:
            await settled(three.cloud, each)
        assert await three.nothing_left() == []


@pytest.mark.capability("MG-LM-23", "MG-LM-24")
async def test_one_that_waits_is_aborted_at_once(tmp_path: Path) -> None:
    """Its bindings, its claim and its task go with it, other than in the Nova of the seed."""
    async with live(tmp_path / "state") as three:
        servers, moves = await begun(three, 3)
        await becomes(three, moves, R, Q, Q)
        await three.abort(moves[1])
        await becomes(three, moves, R, Status.CANCELLED, Q)
        found = await settled(three.cloud, servers[1])
        assert (found.vm_state, found.task_state, found.host, found.fault) == (Vm.ACTIVE, None, "h1", None)
        await three.assert_only_on(servers[1], "h1")
        let_on(three)
        await becomes(three, moves, Status.COMPLETED, Status.CANCELLED, Status.COMPLETED)
        await asyncio.gather(*(settled(three.cloud, each) for each in servers))
        assert await three.nothing_left() == []


async def test_turns_outlive_the_process(tmp_path: Path) -> None:
    async with live(tmp_path / "state") as three:
        three.live("h1").rate = SLOW
        servers = [await three.boot() for _ in range(3)]
        moves = []
        for each in servers:
            moves.append(await three.begin(each))
            await three.at(moves[-1], Q, R)
        await kill(three.cloud)
    async with live(tmp_path / "state") as three:
        await becomes(three, moves, R, Q, Q)
        await three.abort(moves[0])
        await becomes(three, moves, Status.CANCELLED, Status.COMPLETED, Status.COMPLETED)
        for each in servers:
            await settled(three.cloud, each)
        hosts = [(await server(three.cloud, each)).host for each in servers]
        assert hosts == ["h1", "h2", "h2"]
        assert await three.nothing_left() == []
