"""Measure the fake cloud on SQLite: boots, lists, one server, memory, start-up.

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
from pathlib import Path
from typing import Any

from bench.cloud import Cloud
from bench.http import Client

V21 = "/v2.1"


def percentile(values: list[float], part: float) -> float:
    return sorted(values)[min(int(len(values) * part), len(values) - 1)]


async def image_of(client: Client) -> str:
    status, body, _ = await Client(
        "127.0.0.1", client._port - 8774 + 9292, {"X-Auth-Token": client_token(client)}
    ).request("GET", "/v2/images")
    assert status == 200, body
    image: str = json.loads(body)["images"][0]["id"]
    return image


def client_token(client: Client) -> str:
    return client._headers.split("X-Auth-Token: ")[1].split("\r\n")[0]


async def boot(client: Client, image: str, name: str) -> tuple[str, float]:
    """Create a server and wait until it is ACTIVE; its id and the seconds."""
    began = time.perf_counter()
    request = {"server": {"name": name, "imageRef": image, "flavorRef": "42", "networks": "auto"}}
    request["server"]["networks"] = NETWORKS
    status, body, _ = await client.request("POST", f"{V21}/servers", request)
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


NETWORKS: Any = []


async def boots(cloud: Cloud, image: str, number: int, at_once: int) -> dict[str, Any]:
    """Boot ``number`` servers with ``at_once`` in flight."""
    clients = [cloud.another() for _ in range(at_once)]
    names = iter(range(number))
    times: list[float] = []

    async def work(client: Client) -> None:
        for index in names:
            times.append((await boot(client, image, f"b{index}"))[1])

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


async def measure(cloud: Cloud, number: int, servers: int) -> dict[str, Any]:
    result: dict[str, Any] = {}
    client = await cloud.client()
    result["memory at rest MiB"] = round(cloud.memory(), 1)
    image = await image_of(client)
    status, body, _ = await Client(
        "127.0.0.1", client._port - 8774 + 9696, {"X-Auth-Token": client_token(client)}
    ).request("GET", "/v2.0/networks")
    assert status == 200, body
    NETWORKS[:] = [{"uuid": json.loads(body)["networks"][0]["id"]}]
    await boots(cloud, image, 20, 4)
    result["single boots"] = await boots(cloud, image, 50, 1)
    result["boots, 64 in flight"] = await boots(cloud, image, number, 64)
    made = number + 70
    if servers > made:
        result[f"boots to {servers} servers"] = await boots(cloud, image, servers - made, 64)
    uuid, _ = await boot(client, image, "one")
    result["one server"] = await repeated(cloud, f"{V21}/servers/{uuid}", 2000)
    result["one server, 16 in flight"] = await repeated(cloud, f"{V21}/servers/{uuid}", 5000, 16)
    result["list of 1,000"] = await repeated(cloud, f"{V21}/servers/detail?limit=1000", 20)
    result["memory after MiB"] = round(cloud.memory(), 1)
    return result


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
        for name, value in asyncio.run(measure(cloud, chosen.boots, chosen.servers)).items():
            print(json.dumps({name: value}), flush=True)
        print(json.dumps({"stop s": round(cloud.stop(), 2)}))
    finally:
        if cloud.process is not None and cloud.process.poll() is None:
            cloud.kill()
        shutil.rmtree(state_dir)


if __name__ == "__main__":
    main()
