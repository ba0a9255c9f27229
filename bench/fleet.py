"""Measure a cloud of many hosts: PostgreSQL, NATS, two controllers and simulated hosts, all on this machine.

    python -m bench.fleet [--hosts 100] [--boots 1000]          boots and deletes
    python -m bench.fleet --rest --hosts 1000 --servers 10000   what it costs at rest, and long lists

Figures are CPU seconds of each process by the kernel's account.  The load, the hosts, database and bus
run on the same cores, so wall-clock figures are pessimistic.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from bench.run import percentile
from kilonova.testing.fleet.daemon import Daemon
from kilonova.testing.fleet.fleet import DATABASE, Fleet, Pace
from kilonova.testing.fleet.load import Load

REST = 60.0  # seconds over which rest is looked at
MORE = """\
[fake]
vcpus = 100000
memory_mb = 100000000
disk_gb = 100000000
"""


class Costs:
    """CPU seconds of each process since ``begin``."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self.begin()

    def begin(self) -> None:
        self._at = {name: daemon.cpu() for name, daemon in self._daemons().items()}
        self._began = time.perf_counter()

    def so_far(self) -> dict[str, float]:
        return {name: daemon.cpu() - self._at[name] for name, daemon in self._daemons().items()}

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._began

    def _daemons(self) -> dict[str, Daemon]:
        fleet = self._fleet
        daemons = (fleet.nats, fleet.postgres, *fleet.controllers, *fleet.hosts)
        return {each.name: each for each in daemons}


def per(costs: dict[str, float], number: int) -> dict[str, float]:
    """Milliseconds of each process for one of ``number`` things; all controllers together."""
    controllers = sum(value for name, value in costs.items() if name.startswith("controller"))
    others = {name: value for name, value in costs.items() if not name.startswith("controller")}
    return {
        name: round(value * 1000 / number, 2)
        for name, value in {"controllers": controllers, **others}.items()
    }


async def boots(fleet: Fleet, load: Load, number: int, at_once: int) -> dict[str, Any]:
    """Boot that many through all controllers; nobody looks at them before all were accepted."""
    costs = Costs(fleet)
    await load.boot([f"b{index}" for index in range(number)], at_once=at_once)
    accepted = costs.seconds
    servers = await load.settled(seconds=3600)
    ended = costs.seconds
    active = sum(each["status"] == "ACTIVE" for each in servers.values())
    wrong = [each for each in servers.values() if each["status"] != "ACTIVE"]
    if wrong or load.refused:
        raise RuntimeError(f"{len(wrong)} servers failed, {len(load.refused)} were refused: {wrong[:1]}")
    return {
        "boots": number,
        "at once": at_once,
        "accepted a second": round(number / accepted, 1),
        "ACTIVE a second": round(number / ended, 1),
        "ACTIVE": active,
        "CPU ms each": per(costs.so_far(), number),
    }


async def deletes(fleet: Fleet, load: Load, ids: list[str], at_once: int) -> dict[str, Any]:
    costs = Costs(fleet)
    await load.delete(ids, at_once=at_once)
    while await load.servers():
        await asyncio.sleep(0.2)
    return {
        "deletes": len(ids),
        "a second": round(len(ids) / costs.seconds, 1),
        "CPU ms each": per(costs.so_far(), len(ids)),
    }


async def busy(fleet: Fleet, number: int) -> AsyncIterator[tuple[str, Any]]:
    load = Load(fleet, await fleet.image())
    await boots(fleet, load, 100, 32)  # so that nothing is the first of its kind
    await _without_port_quota(fleet, load)
    yield "boots", await boots(fleet, load, number, 64)
    yield "memory MiB", {each.name: round(each.memory()) for each in (*fleet.controllers, *fleet.hosts)}
    yield "deletes", await deletes(fleet, load, list(await load.servers()), 64)


async def _without_port_quota(fleet: Fleet, load: Load) -> None:
    """A project may have 500 ports, as in Neutron."""
    project = next(iter((await load.servers()).values()))["tenant_id"]
    await fleet.call("PUT", f"/v2.0/quotas/{project}", {"quota": {"port": -1}}, service="network")


def counters(fleet: Fleet) -> dict[str, int]:
    """Messages that the bus has taken, and transactions that the database has committed."""
    with urllib.request.urlopen(f"{fleet.nats.monitor}/varz", timeout=10) as answer:
        messages = json.load(answer)["in_msgs"]
    import psycopg

    with psycopg.connect(fleet.postgres.conninfo(DATABASE)) as connection:
        row = connection.execute(
            "SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()"
        ).fetchone()
    assert row is not None
    return {"messages": messages, "transactions": row[0]}


async def at_rest(fleet: Fleet) -> dict[str, Any]:
    """What all of it costs when nobody asks for anything."""
    await asyncio.sleep(15)
    before, costs = await asyncio.to_thread(counters, fleet), Costs(fleet)
    await asyncio.sleep(REST)
    after, seconds = await asyncio.to_thread(counters, fleet), costs.seconds
    return {
        "CPU percent of a core": {
            name: round(100 * cpu / seconds, 2) for name, cpu in costs.so_far().items()
        },
        "memory MiB": {each.name: round(each.memory()) for each in (*fleet.controllers, *fleet.hosts)},
        **{f"{name} a second": round((after[name] - before[name]) / seconds, 1) for name in before},
    }


async def listing(fleet: Fleet, path: str, repeats: int = 20) -> dict[str, Any]:
    """One list, again and again, at one controller."""
    client = await fleet.client()
    size, walls = 0, []
    before = fleet.controllers[0].cpu()
    for _ in range(repeats):
        began = time.perf_counter()
        status, body, _ = await client.request("GET", path)
        walls.append(time.perf_counter() - began)
        assert status == 200, body
        size = len(body)
    client.close()
    cpu = (fleet.controllers[0].cpu() - before) / repeats
    return {
        "p50 ms": round(percentile(walls, 0.5) * 1000, 1),
        "p95 ms": round(percentile(walls, 0.95) * 1000, 1),
        "CPU ms": round(cpu * 1000, 1),
        "bytes": size,
    }


async def resting(fleet: Fleet, servers: int) -> AsyncIterator[tuple[str, Any]]:
    yield "hypervisors in detail", await listing(fleet, "/v2.1/os-hypervisors/detail?limit=1000")
    load = Load(fleet, await fleet.image(), networks="none")
    yield "boots without network", await boots(fleet, load, servers, 64)
    yield (
        "hypervisors in detail, with servers",
        await listing(fleet, "/v2.1/os-hypervisors/detail?limit=1000"),
    )
    yield "1,000 servers in detail", await listing(fleet, "/v2.1/servers/detail?all_tenants=1&limit=1000")
    yield "at rest", await at_rest(fleet)


async def run(chosen: argparse.Namespace, directory: Path) -> None:
    interval = 10 if chosen.rest else 2
    fleet = Fleet(directory, pace=Pace(report_interval=interval, service_down_time=60, lease=10.0), more=MORE)
    try:
        await fleet.up()
        await fleet.simulate(chosen.hosts, processes=chosen.processes)
        figures = resting(fleet, chosen.servers) if chosen.rest else busy(fleet, chosen.boots)
        async for name, value in figures:
            print(json.dumps({name: value}), flush=True)
    finally:
        await fleet.down()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hosts", type=int, default=100)
    parser.add_argument("--boots", type=int, default=1000)
    parser.add_argument("--rest", action="store_true")
    parser.add_argument("--servers", type=int, default=10_000)
    parser.add_argument("--processes", type=int, default=1)
    chosen = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="kn-bench-"))
    try:
        asyncio.run(run(chosen, directory))
    finally:
        shutil.rmtree(directory)


if __name__ == "__main__":
    main()
