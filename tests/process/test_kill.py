"""SIGKILL of the real process in the middle of fifty boots, of fifty deletes, and of its recovery.

After a restart every server that was accepted is ACTIVE, or ERROR with nothing left behind; what was asked
to be deleted is gone; and nobody has what he did not ask for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from tests.process.cloud import Cloud, Load, when
from tests.process.conftest import Make

MANY = 50
SLOW = "[fake]\ndelay = 0.05\n"
SLOWER = "[fake]\ndelay = 1\n"  # a killer on a busy machine is late, too
STUCK = "[fake]\ndelay = 5\n"  # nothing ends before it is killed
FAST = ""
ROUNDS = 6  # a killer that came when all was done comes again


def count(cloud: Cloud, least: int, state: int) -> bool:
    """Whether so many guests are in a state, by the hypervisor's own file."""
    return sum(each == state for each in cloud.guests().values()) >= least


async def boots_until(
    cloud: Cloud, load: Load, condition: Callable[[], bool], number: int = MANY, prefix: str = "s"
) -> None:
    """Ask for servers, and kill the process as soon as the condition holds."""
    image = await cloud.image()
    (await cloud.client()).close()
    boots = asyncio.create_task(load.boots(number, image, prefix=prefix))
    await when(condition)
    await asyncio.to_thread(cloud.kill)
    await boots


def mid_way(cloud: Cloud) -> int:
    """How many operations the killed process left open."""
    return sum(" is " in each and each.startswith("operation") for each in asyncio.run(cloud.stopped()).leaks)


async def assert_answers_kept(cloud: Cloud, load: Load) -> dict[str, dict[str, Any]]:
    """What the API says, once nothing is going on any more."""
    servers = await cloud.settled()
    assert set(load.accepted) - load.unwanted <= set(servers)
    assert not load.deleted & set(servers)
    names = [each["name"] for each in servers.values()]
    assert len(names) == len(set(names)), "an unanswered request was carried out twice"
    assert set(names) <= set(load.asked)
    assert {each["status"] for each in servers.values()} <= {"ACTIVE", "ERROR"}
    for each in servers.values():
        if each["status"] == "ERROR":
            assert each["fault"]["message"], each
    return servers


def assert_sound(cloud: Cloud, load: Load) -> None:
    """Through the API, and then in the state directory."""
    servers = asyncio.run(assert_answers_kept(cloud, load))
    cloud.stop()
    state = asyncio.run(cloud.stopped())
    assert state.leaks == []
    assert set(state.servers) == set(servers)


def killed_while_it_boots(cloud: Cloud, load: Load, number: int, least: int, state: int) -> int:
    """How many operations were open when it was killed, once so many more guests were in the state: it
    has started again, and finished them."""
    asked, there = len(load.accepted) + 7, sum(each == state for each in cloud.guests().values())

    def reached() -> bool:
        return len(load.accepted) >= asked and count(cloud, there + least, state)

    asyncio.run(boots_until(cloud, load, reached, number, f"s{len(load.asked)}-"))
    assert load.refused == []
    left = mid_way(cloud)
    cloud.start()
    asyncio.run(assert_answers_kept(cloud, load))
    return left


@pytest.mark.capability("MG-INIT-9", "MG-INIT-21")
def test_killed_in_the_middle_of_fifty_boots(make: Make) -> None:
    """Thrice, at other points: when half of the guests run, when the first are defined, and while requests
    come in.  What one kill left is there when the next comes."""
    cloud = make(SLOW)
    cloud.start()
    load = Load(cloud)
    for number, least, state in ((MANY, MANY // 2, 1), (20, 3, 3), (20, 0, 0)):
        tries = (killed_while_it_boots(cloud, load, number, least, state) for _ in range(ROUNDS))
        assert any(left >= 5 for left in tries)
    assert_sound(cloud, load)
    assert len(load.accepted) > MANY


def test_killed_again_and_again_while_it_recovers(make: Make) -> None:
    cloud = make(STUCK)
    cloud.start()
    load = Load(cloud)
    asyncio.run(boots_until(cloud, load, lambda: len(load.accepted) >= 25, 30))
    left = mid_way(cloud)
    assert left >= 15
    cloud.configure(SLOWER)
    for _ in range(2):  # each time as soon as it has done something
        running = sum(state == 1 for state in cloud.guests().values())
        cloud.spawn()
        asyncio.run(when(lambda least=running + 2: count(cloud, least, 1)))  # type: ignore[misc]
        cloud.kill()
    assert 0 < mid_way(cloud) <= left
    cloud.configure(FAST)
    cloud.start()
    assert_sound(cloud, load)


def killed_while_it_deletes(cloud: Cloud, load: Load) -> int:
    """How many operations were open when it was killed, as of fifty more servers fifteen were gone."""

    async def boot_and_delete_until() -> None:
        image = await cloud.image()
        (await cloud.client()).close()
        before = set(load.accepted)
        await load.boots(MANY, image, prefix=f"s{len(load.asked)}-")
        servers = await cloud.settled()
        assert {servers[each]["status"] for each in load.accepted.keys() - before} == {"ACTIVE"}
        there = len(cloud.guests())
        deletes = asyncio.create_task(load.deletes(sorted(load.accepted.keys() - before)))
        await when(lambda: len(cloud.guests()) <= there - 15)
        await asyncio.to_thread(cloud.kill)
        await deletes

    asyncio.run(boot_and_delete_until())
    assert load.deleted and load.refused == []
    left = mid_way(cloud)
    cloud.start()
    return left


@pytest.mark.capability("MG-INIT-12")
def test_killed_in_the_middle_of_fifty_deletes(make: Make) -> None:
    cloud = make(SLOW)
    cloud.start()
    load = Load(cloud)
    assert any(killed_while_it_deletes(cloud, load) >= 2 for _ in range(ROUNDS))
    assert_sound(cloud, load)


@pytest.mark.capability("MG-INIT-16", "MG-INIT-13")
def test_killed_while_servers_stop_start_and_reboot(make: Make) -> None:
    cloud = make(FAST)
    cloud.start()
    load = Load(cloud)
    verbs: list[object] = [{"os-stop": None}, {"reboot": {"type": "HARD"}}, {"os-start": None}]
    verbs.append({"reboot": {"type": "SOFT"}})

    async def act(uuid: str, body: object) -> int:
        client = cloud.connection()
        status, _, _ = await client.request("POST", f"/v2.1/servers/{uuid}/action", body)
        client.close()
        return status

    async def prepare() -> None:
        image = await cloud.image()
        (await cloud.client()).close()
        await load.boots(16, image)
        await cloud.settled()
        for uuid in sorted(load.accepted)[2::4]:
            assert await act(uuid, {"os-stop": None}) == 202
        await cloud.settled()

    async def begin_and_kill() -> None:
        (await cloud.client()).close()
        for index, uuid in enumerate(sorted(load.accepted)):
            assert await act(uuid, verbs[index % 4]) == 202
        await asyncio.to_thread(cloud.kill)

    asyncio.run(prepare())
    cloud.stop()
    cloud.configure(STUCK)
    cloud.start()
    asyncio.run(begin_and_kill())
    assert mid_way(cloud) == 16
    before = cloud.starts()
    cloud.configure(FAST)
    cloud.start()
    servers = asyncio.run(cloud.settled())
    after = cloud.starts()
    for index, uuid in enumerate(sorted(load.accepted)):
        assert servers[uuid]["status"] == ("SHUTOFF", "ACTIVE", "ACTIVE", "ACTIVE")[index % 4]
        # each went on once where it was: one start more, or none for what was stopped
        assert after[uuid] - before[uuid] == (0, 1, 1, 1)[index % 4]
    cloud.stop()
    assert asyncio.run(cloud.stopped()).leaks == []
