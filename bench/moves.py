"""Measure moves in a cloud of simulated hosts: a host that dies with all of its servers, and moves a second.

    python -m bench.moves [--servers 20] [--moves 200] [--hosts 20]

Simulated guests have no memory and no disks to copy: what is measured is our own share.  Load, hosts,
database and bus run on the same cores, so wall-clock figures are pessimistic.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

from sqlalchemy import func, select

from bench.fleet import MORE, Costs, per
from kilonova.db.postgresql import PostgresqlDatabase
from kilonova.db.tables.cells import leftovers
from kilonova.testing.fleet.fleet import DATABASE, Fleet, Pace
from kilonova.testing.fleet.load import Load

VICTIM = "sim-00001"
LIVE = {"os-migrateLive": {"host": None, "block_migration": "auto"}}
COLD = {"migrate": None}
CONFIRM = {"confirmResize": None}
HOST = "OS-EXT-SRV-ATTR:host"
EVERY = 0.1  # seconds between looks
PATIENCE = 300.0  # seconds


async def act(fleet: Fleet, uuids: Iterable[str], body: dict[str, Any], at_once: int = 16) -> None:
    """Ask for it for each server, at both controllers.  Raises RuntimeError for a refusal."""
    waiting = iter(list(uuids))

    async def work(controller: int) -> None:
        client = await fleet.client(controller, version="2.90")
        for uuid in waiting:
            status, answer, _ = await client.request("POST", f"/v2.1/servers/{uuid}/action", body)
            if status >= 400:
                raise RuntimeError(f"{body}: {status} {answer!r}")
        client.close()

    await asyncio.gather(*(work(number % len(fleet.controllers)) for number in range(at_once)))


async def until(fine: Callable[[], Awaitable[bool]]) -> float:
    """Seconds until it is so.  Raises TimeoutError: something has failed without an error of the server."""
    began = time.perf_counter()
    async with asyncio.timeout(PATIENCE):
        while not await fine():
            await asyncio.sleep(EVERY)
    return time.perf_counter() - began


async def all_are(fleet: Fleet, uuids: list[str], status: str) -> bool:
    servers = await fleet.servers()
    wrong = [each for each in servers.values() if each["status"] == "ERROR"]
    if wrong:
        raise RuntimeError(f"{len(wrong)} servers are in error: {wrong[0].get('fault')}")
    idle = [servers[uuid] for uuid in uuids if servers[uuid]["OS-EXT-STS:task_state"] is None]
    return len(idle) == len(uuids) and all(each["status"] == status for each in idle)


async def evacuation(fleet: Fleet, number: int, hosts: int) -> dict[str, Any]:
    """One host has all servers, and dies; then it comes back."""
    victim = await fleet.simulate(1, name="victim")
    load = Load(fleet, await fleet.image())
    await load.boot([f"s{index}" for index in range(number)])
    uuids = list(await load.settled())
    await fleet.simulate(hosts, first=2, name="others")
    await victim.kill()

    async def down() -> bool:
        listed = await fleet.call("GET", f"/v2.1/os-services?host={VICTIM}")
        return bool(listed["services"][0]["state"] == "down")

    known = await until(down)
    fleet.hosts.remove(victim)  # which costs nothing now
    costs = Costs(fleet)
    await act(fleet, uuids, {"evacuate": {}})
    await until(lambda: all_are(fleet, uuids, "ACTIVE"))
    elsewhere, cpu = costs.seconds, per(costs.so_far(), number)
    left = [each for each in (await fleet.servers()).values() if each[HOST] == VICTIM]
    if left:
        raise RuntimeError(f"{len(left)} servers were not evacuated")
    fleet.hosts.append(victim)
    began = time.perf_counter()
    await victim.start(b"ready")
    ready = time.perf_counter() - began
    cleared = await until(lambda: nothing_owed(fleet))
    return {
        "servers": number,
        "s from its death until it is known to be down": round(known, 2),
        "s from then until all run elsewhere": round(elsewhere, 2),
        "CPU ms each": cpu,
        "s that the old host takes to start": round(ready, 2),
        "s from then until it is cleared": round(cleared, 2),
    }


async def nothing_owed(fleet: Fleet) -> bool:
    database = PostgresqlDatabase(fleet.postgres.conninfo(DATABASE), threads=1)
    try:
        return not await database.read(lambda tx: tx.scalar(select(func.count()).select_from(leftovers)))
    finally:
        await database.close()


async def moves(fleet: Fleet, number: int) -> dict[str, Any]:
    """So many servers, all of them moved at once: live, and cold with the confirmation."""
    load = Load(fleet, await fleet.image())
    await load.boot([f"m{index}" for index in range(number)], at_once=32)
    uuids = list(load.accepted.values())
    await until(lambda: all_are(fleet, uuids, "ACTIVE"))
    figures: dict[str, Any] = {"servers": number}
    costs = Costs(fleet)
    await act(fleet, uuids, LIVE)
    await until(lambda: all_are(fleet, uuids, "ACTIVE"))
    figures["live a second"] = round(number / costs.seconds, 1)
    figures["CPU ms of a live one"] = per(costs.so_far(), number)
    costs = Costs(fleet)
    await act(fleet, uuids, COLD)
    await until(lambda: all_are(fleet, uuids, "VERIFY_RESIZE"))
    await act(fleet, uuids, CONFIRM)
    await until(lambda: all_are(fleet, uuids, "ACTIVE"))
    figures["cold and confirmed a second"] = round(number / costs.seconds, 1)
    figures["CPU ms of a cold one"] = per(costs.so_far(), number)
    return figures


async def run(chosen: argparse.Namespace, directory: Path) -> None:
    fleet = Fleet(directory, pace=Pace(report_interval=1, service_down_time=5, lease=10.0), more=MORE)
    try:
        await fleet.up()
        found = await evacuation(fleet, chosen.servers, chosen.hosts)
        print(json.dumps({"evacuation": found}), flush=True)
        print(json.dumps({"moves": await moves(fleet, chosen.moves)}), flush=True)
    finally:
        await fleet.down()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--servers", type=int, default=20)
    parser.add_argument("--hosts", type=int, default=20)
    parser.add_argument("--moves", type=int, default=200)
    directory = Path(tempfile.mkdtemp(prefix="kn-moves-"))
    try:
        asyncio.run(run(parser.parse_args(), directory))
    finally:
        shutil.rmtree(directory)


if __name__ == "__main__":
    main()
