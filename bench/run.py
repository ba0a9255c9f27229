"""Measure the fake cloud on SQLite: boots, deletes, lists, one server, memory, start-up.

    python -m bench.run [--boots 500] [--servers 10000]

Figures are CPU seconds of the server process by the kernel's account, and percentiles of the client's wall
clock.  The load runs on the same cores, so wall-clock figures are pessimistic.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

from bench.cloud import Cloud
from bench.http import Client

V21 = "/v2.1"


class Plan(NamedTuple):
    """What every server is made from."""

    image: str
    network: str


def percentile(values: list[float], part: float) -> float:
    return sorted(values)[min(int(len(values) * part), len(values) - 1)]


async def found(client: Client, path: str, kind: str) -> list[dict[str, Any]]:
    """The things of a list."""
    status, body, _ = await client.request("GET", path)
    assert status == 200, body
    things: list[dict[str, Any]] = json.loads(body)[kind]
    return things


async def lift_port_quota(cloud: Cloud) -> None:
    """As many ports as servers: the quota of the Compute API is lifted by the file of options."""
    await cloud.client()
    project = cloud.project
    await cloud.client(cloud="kilonova-admin")
    network = cloud.of_service(9696)
    status, body, _ = await network.request("PUT", f"/v2.0/quotas/{project}", {"quota": {"port": -1}})
    assert status == 200, body
    network.close()


async def boot(client: Client, plan: Plan, name: str) -> tuple[str, float]:
    """Create a server and wait until it is ACTIVE; its id and the seconds."""
    began = time.perf_counter()
    server = {"name": name, "imageRef": plan.image, "flavorRef": "42", "networks": [{"uuid": plan.network}]}
    status, body, _ = await client.request("POST", f"{V21}/servers", {"server": server})
    assert status == 202, body
    uuid: str = json.loads(body)["server"]["id"]
    pause = 0.02
    while True:
        status, body, _ = await client.request("GET", f"{V21}/servers/{uuid}")
        state = json.loads(body)["server"]["status"]
        if state == "ACTIVE":
            return uuid, time.perf_counter() - began
        if state == "ERROR":
            raise RuntimeError(body.decode())
        await asyncio.sleep(pause)
        pause = min(pause * 1.5, 0.5)


async def boots(cloud: Cloud, plan: Plan, number: int, at_once: int) -> dict[str, Any]:
    """Boot ``number`` servers with ``at_once`` in flight."""
    clients = [cloud.another() for _ in range(at_once)]
    names = iter(range(number))
    times: list[float] = []

    async def work(client: Client) -> None:
        for index in names:
            times.append((await boot(client, plan, f"b{index}"))[1])

    cpu, began = cloud.cpu(), time.perf_counter()
    await asyncio.gather(*(work(client) for client in clients))
    wall = time.perf_counter() - began
    used = cloud.cpu() - cpu
    for client in clients:
        client.close()
    return {
        "boots": number,
        "in flight": at_once,
        "succeeded": len(times),
        "boots/s": round(number / wall, 1),
        "cpu ms/boot": round(used / number * 1000, 2),
        "p50 ms": round(percentile(times, 0.5) * 1000, 1),
        "p95 ms": round(percentile(times, 0.95) * 1000, 1),
    }


async def repeated(cloud: Cloud, path: str, times: int, at_once: int = 1) -> dict[str, Any]:
    """GET a path again and again."""
    clients = [cloud.another() for _ in range(at_once)]
    for client in clients:
        status, body, _ = await client.request("GET", path)
        assert status == 200, body
    numbers = iter(range(times))
    took: list[float] = []

    async def work(client: Client) -> None:
        for _ in numbers:
            began = time.perf_counter()
            await client.request("GET", path)
            took.append(time.perf_counter() - began)

    cpu, began = cloud.cpu(), time.perf_counter()
    await asyncio.gather(*(work(client) for client in clients))
    wall = time.perf_counter() - began
    used = cloud.cpu() - cpu
    for client in clients:
        client.close()
    return {
        "requests": times,
        "in flight": at_once,
        "requests/s": round(times / wall, 1),
        "cpu ms": round(used / times * 1000, 3),
        "p50 ms": round(statistics.median(took) * 1000, 2),
        "p95 ms": round(percentile(took, 0.95) * 1000, 2),
        "bytes": len(body),
    }


async def deletes(cloud: Cloud, uuids: list[str], at_once: int) -> dict[str, Any]:
    """Delete servers and wait until they are gone."""
    waiting = iter(uuids)

    async def work(client: Client) -> None:
        for uuid in waiting:
            status, body, _ = await client.request("DELETE", f"{V21}/servers/{uuid}")
            assert status == 204, body
            pause = 0.02
            while (await client.request("GET", f"{V21}/servers/{uuid}"))[0] != 404:
                await asyncio.sleep(pause)
                pause = min(pause * 1.5, 0.5)
        client.close()

    cpu, began = cloud.cpu(), time.perf_counter()
    await asyncio.gather(*(work(cloud.another()) for _ in range(at_once)))
    wall, used = time.perf_counter() - began, cloud.cpu() - cpu
    number = len(uuids)
    return {
        "deletes": number,
        "in flight": at_once,
        "deletes/s": round(number / wall, 1),
        "cpu ms/delete": round(used / number * 1000, 2),
    }


async def measure(cloud: Cloud, number: int, servers: int) -> AsyncIterator[tuple[str, Any]]:
    yield "memory at rest, MiB", round(cloud.memory(), 1)
    await lift_port_quota(cloud)
    client = await cloud.client()
    (image,) = await found(cloud.of_service(9292), "/v2/images", "images")
    network = (await found(cloud.of_service(9696), "/v2.0/networks", "networks"))[0]
    plan = Plan(image["id"], network["id"])
    await boots(cloud, plan, 20, 4)
    yield "single boots", await boots(cloud, plan, 50, 1)
    yield "boots, 64 in flight", await boots(cloud, plan, number, 64)
    made = number + 71
    if servers > made:
        yield f"boots to {servers} servers", await boots(cloud, plan, servers - made, 64)
    uuid, _ = await boot(client, plan, "one")
    yield "one server", await repeated(cloud, f"{V21}/servers/{uuid}", 2000)
    yield "one server, 16 in flight", await repeated(cloud, f"{V21}/servers/{uuid}", 5000, 16)
    yield "list of 1,000", await repeated(cloud, f"{V21}/servers/detail?limit=1000", 20)
    yield "memory after, MiB", round(cloud.memory(), 1)
    some = await found(client, f"{V21}/servers?limit=500", "servers")
    yield "deletes, 64 in flight", await deletes(cloud, [each["id"] for each in some], 64)


async def report(cloud: Cloud, number: int, servers: int) -> None:
    """Say each figure as soon as it is known."""
    async for name, value in measure(cloud, number, servers):
        print(json.dumps({name: value}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--boots", type=int, default=500)
    parser.add_argument("--servers", type=int, default=10_000)
    chosen = parser.parse_args()
    state_dir = Path(tempfile.mkdtemp(prefix="kilonova-bench-"))
    cloud = Cloud(state_dir)
    try:
        starts = []
        for _ in range(3):
            starts.append(cloud.start())
            cloud.stop()
        starts.append(cloud.start())
        print(json.dumps({"start-up s, first": round(starts[0], 2)}))
        print(json.dumps({"start-up s, later": [round(each, 2) for each in starts[1:]]}))
        asyncio.run(report(cloud, chosen.boots, chosen.servers))
        print(json.dumps({"stop s": round(cloud.stop(), 2)}))
    finally:
        if cloud.process is not None and cloud.process.poll() is None:
            cloud.kill()
        shutil.rmtree(state_dir)


if __name__ == "__main__":
    main()
