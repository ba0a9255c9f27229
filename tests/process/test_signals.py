"""SIGTERM and SIGINT at any moment: the process ends in time, and nothing is lost."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import sqlite3

import pytest

from tests.process.cloud import BUSY, PROMISED, Cloud, Load, got, when
from tests.process.conftest import Make

SLOW = "[fake]\ndelay = 0.03\n"


def ended_well(cloud: Cloud, number: int = signal.SIGTERM) -> None:
    status, seconds = cloud.end(number)
    print(f"ended after {seconds:.2f} s")
    assert status == 0, (status, cloud.errors)
    assert seconds < BUSY * PROMISED
    assert not [line for line in cloud.errors if "Traceback" in line or "Error" in line]


async def assert_all_there(cloud: Cloud, load: Load) -> None:
    """What was accepted is there and comes to an end; nobody has what he did not ask for."""
    servers = await cloud.settled()
    assert set(load.accepted) <= set(servers)
    names = [each["name"] for each in servers.values()]
    assert len(names) == len(set(names)) and set(names) <= set(load.asked)
    assert {each["status"] for each in servers.values()} == {"ACTIVE"}


@pytest.mark.parametrize(("number", "seed"), [(signal.SIGTERM, 1), (signal.SIGINT, 2)])
def test_a_signal_in_the_middle_of_boots(make: Make, number: int, seed: int) -> None:
    cloud = make(SLOW)
    cloud.start()
    moment = random.Random(seed).randrange(1, 30)

    async def boot_until_the_signal() -> Load:
        image = await cloud.image()
        (await cloud.client()).close()
        load = Load(cloud)
        boots = asyncio.create_task(load.boots(30, image))
        await when(lambda: len(load.accepted) >= moment)
        await asyncio.to_thread(ended_well, cloud, number)
        await boots
        return load

    load = asyncio.run(boot_until_the_signal())
    assert len(load.accepted) >= moment
    assert {status for status, _ in load.refused} <= {503}
    cloud.start()
    asyncio.run(assert_all_there(cloud, load))
    cloud.stop()
    assert asyncio.run(cloud.stopped()).leaks == []


def test_what_does_not_end_is_left_and_repeated(make: Make) -> None:
    """Every verb of the hypervisor takes a minute, and somebody has sent half a request: no stop waits."""
    cloud = make("[fake]\ndelay = 60\n")
    cloud.start()

    async def boot() -> Load:
        image = await cloud.image()
        client = await cloud.client()
        load = Load(cloud)
        await load.boot("slow", image, client)
        client.close()
        _, writer = await asyncio.open_connection("127.0.0.1", 8774 + cloud.offset)
        writer.write(b"POST /v2.1/servers HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
        await writer.drain()
        await asyncio.to_thread(ended_well, cloud)
        writer.close()
        return load

    load = asyncio.run(boot())
    cloud.configure("")
    cloud.start()
    asyncio.run(assert_all_there(cloud, load))
    cloud.stop()
    assert asyncio.run(cloud.stopped()).leaks == []


async def numbers(cloud: Cloud) -> dict[str, int]:
    """How many there are of what a first start makes."""
    result = {}
    for service, path in (
        ("image", "/v2/images"),
        ("network", "/v2.0/networks"),
        ("compute", "/v2.1/os-hypervisors"),
    ):
        client = await cloud.client("kilonova-admin", service)
        name = path.rsplit("/", 1)[1].removeprefix("os-")
        result[name] = len((await got(client, path))[name])
        client.close()
    return result


def test_a_signal_while_it_starts(make: Make) -> None:
    """At once, when the kernel ends the interpreter perhaps; and at each thing that it says it does.

    What a first start makes is there once, however often it was begun.
    """
    cloud = make()
    cloud.spawn()
    status, seconds = cloud.end()
    assert status in (0, -signal.SIGTERM)
    assert seconds < BUSY * PROMISED
    for moment, number in (
        ("kilonova: accounts", signal.SIGKILL),
        ("kilonova: accounts", signal.SIGTERM),
        ("kilonova: the fake", signal.SIGKILL),
        ("kilonova: the fake", signal.SIGINT),
        ("kilonova: unfinished", signal.SIGKILL),
    ):
        cloud.spawn()
        cloud.wait_for(moment, of="errors")
        if number == signal.SIGKILL:
            cloud.kill()
        else:
            ended_well(cloud, number)
    cloud.start()
    assert asyncio.run(cloud.servers()) == {}
    assert asyncio.run(numbers(cloud)) == {"images": 1, "networks": 1, "hypervisors": 1}
    cloud.stop()
    assert asyncio.run(cloud.stopped()).leaks == []


def test_what_cannot_be_ended_in_order_is_left_behind_in_time(make: Make) -> None:
    """Somebody has the database locked, so that no lease can be given back: it ends all the same."""
    cloud = make("[fake]\ndelay = 1\n")
    cloud.start()

    async def boot() -> Load:
        image = await cloud.image()
        (await cloud.client()).close()
        load = Load(cloud)
        await load.boots(3, image)
        return load

    load = asyncio.run(boot())
    with contextlib.closing(sqlite3.connect(cloud.state_dir / "kilonova.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        status, seconds = cloud.end()
        other.execute("ROLLBACK")
    assert status == 1
    assert cloud.errors[-1] == "kilonova: something did not end in time and is left behind."
    assert seconds < BUSY * PROMISED
    cloud.configure("")
    cloud.start()
    asyncio.run(assert_all_there(cloud, load))
    cloud.stop()
    assert asyncio.run(cloud.stopped()).leaks == []
