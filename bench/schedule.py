"""Measure the scheduler: decisions at 100, 1,000 and 10,000 hosts, looks at the database, durable claims.

    python -m bench.schedule [--claims 2000] [--decisions 2000] [--conninfo "host=... dbname=..."]

A decision is filter, weigh and pick on a view in memory, with the default filters and weighers; the claim is
not part of it.  Claims are the whole of a placement, decision and durable booking, on SQLite in a temporary
directory, and on the (empty) PostgreSQL database of ``--conninfo``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kilonova.clock import SECOND, SystemClock
from kilonova.db import hosts, placement_report
from kilonova.db.engine import Database, Tx
from kilonova.db.scheduling import OVERLAP
from kilonova.db.schema import bring_up
from kilonova.db.sqlite import SqliteDatabase
from kilonova.model.host import HostReport, Inventory, ProviderReport
from kilonova.scheduler.options import default_options
from kilonova.scheduler.request import Candidate, ServerRequest
from kilonova.scheduler.select import Scheduler
from kilonova.scheduler.wanted import Group, Wanted
from kilonova.services.placement.builtin import BuiltinPlacement

FLAVORS = [(1, 512, 1), (1, 2048, 20), (2, 4096, 40), (4, 8192, 80), (8, 16384, 160)]
TRAITS = tuple(
    f"HW_CPU_X86_{name}" for name in ("SSE", "SSE2", "SSE41", "SSE42", "AVX", "AVX2", "F16C", "FMA3")
)
FILL = 500  # hosts that one transaction makes


def percentiles(values: list[float]) -> dict[str, float]:
    """Milliseconds of seconds."""
    ordered = sorted(values)

    def at(part: float) -> float:
        return round(ordered[min(int(len(ordered) * part), len(ordered) - 1)] * 1000, 3)

    return {"p50 ms": at(0.5), "p95 ms": at(0.95), "p99 ms": at(0.99), "max ms": at(1)}


def request(number: int, chance: random.Random, **more: Any) -> ServerRequest:
    cpus, memory, disk = chance.choice(FLAVORS)
    wanted = Wanted(root=Group({"VCPU": cpus, "MEMORY_MB": memory, "DISK_GB": disk}))
    return ServerRequest(uuid=f"server-{number}", project_id="p", wanted=wanted, **more)


async def fill(db: Database, number: int) -> None:
    """Hosts of 64 CPUs in three zones, with traits; every hundredth is disabled."""
    now = SystemClock().now()
    stock = {
        "VCPU": Inventory(total=64, allocation_ratio=4.0),
        "MEMORY_MB": Inventory(total=262_144, reserved=512),
        "DISK_GB": Inventory(total=4000),
    }

    def make(tx: Tx, first: int) -> None:
        for each in range(first, min(first + FILL, number)):
            name = f"host-{each:05}"
            report = HostReport(
                host=name,
                compute_id=f"node-{each:05}",
                hypervisor_hostname=name,
                hypervisor_type="QEMU",
                hypervisor_version=7_002_000,
                host_ip="192.0.2.1",
                inventories=stock,
                cpu_info={"arch": "x86_64"},
            )
            hosts.upsert(tx, report, now)
            one = ProviderReport(uuid=report.compute_id, name=name, inventories=stock, traits=TRAITS)
            placement_report.report(tx, one)
            if each % 100 == 99:
                hosts.set_disabled(tx, name, True, "for the measurement", now)

    for first in range(0, number, FILL):
        await db.write(lambda tx, first=first: make(tx, first))


async def decisions(db: Database, number: int, times: int) -> dict[str, Any]:
    clock = SystemClock()
    # Nobody reports in this measurement, so no host may be taken for dead.
    options = default_options(service_down_time=86_400)
    scheduler = Scheduler(db, BuiltinPlacement(db, clock), clock, options, chance=random.Random(1))
    began = time.perf_counter()
    await scheduler.view.current()
    first_look = time.perf_counter() - began
    chance, took = random.Random(2), []
    decider = scheduler._decider
    for each in range(times):
        asked = request(each, chance, image_properties={"hw_architecture": "x86_64"})
        question = await scheduler._question(asked, False)
        began = time.perf_counter()
        verdict, candidates = decider.decide(question)
        candidate = next(candidates)
        took.append(time.perf_counter() - began)
        assert verdict.counts
        # As in life, every decision changes what the next one sees.
        scheduler.view.count(candidate.compute_id, candidate.allocations[candidate.compute_id])
    await asyncio.sleep(OVERLAP / SECOND)  # what was made lately is looked at again and again
    looks = []
    for _ in range(20):
        began = time.perf_counter()
        await scheduler.view.current(anew=True)
        looks.append(time.perf_counter() - began)
    return {
        "hosts": number,
        "decisions": times,
        **percentiles(took),
        "decisions/s": round(times / sum(took)),
        "first look ms": round(first_look * 1000, 1),
        "later look p50 ms": percentiles(looks)["p50 ms"],
    }


async def claims(db: Database, number: int, at_once: int) -> dict[str, Any]:
    """Place ``number`` servers with ``at_once`` in flight."""
    clock = SystemClock()
    placement = BuiltinPlacement(db, clock)
    options = default_options(service_down_time=86_400)
    scheduler = Scheduler(db, placement, clock, options, chance=random.Random(1))
    await scheduler.view.current()
    numbers, chance, lost = iter(range(number)), random.Random(3), 0
    took: list[float] = []

    async def claim(uuid: str, candidate: Candidate) -> str | None:
        nonlocal lost
        fitted = await placement.claim(uuid, candidate.allocations, "p", "u")
        lost += not fitted
        return None if fitted else "lost"

    async def work() -> None:
        for each in numbers:
            asked = request(each, chance)
            began = time.perf_counter()
            await scheduler.select(asked, lambda candidate, asked=asked: claim(asked.uuid, candidate))
            took.append(time.perf_counter() - began)

    began, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(work() for _ in range(at_once)))
    wall, used = time.perf_counter() - began, time.process_time() - cpu
    return {
        "claims": number,
        "in flight": at_once,
        "claims/s": round(number / wall),
        "lost": lost,
        "cpu ms of this process": round(used / number * 1000, 3),
        **percentiles(took),
    }


async def on(open_it: Callable[[], Database], sizes: list[int], times: int, number: int) -> None:
    db = open_it()
    try:
        await bring_up(db)
        made = 0
        for size in sizes:
            await fill(db, size)
            made = size
            print(json.dumps({f"decisions, {db.name}": await decisions(db, size, times)}), flush=True)
        print(json.dumps({f"claims, {db.name}, {made} hosts": await claims(db, number, 64)}), flush=True)
    finally:
        await db.close()


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--decisions", type=int, default=2000)
    parser.add_argument("--claims", type=int, default=2000)
    parser.add_argument("--hosts", type=int, nargs="*", default=[100, 1000, 10_000])
    parser.add_argument("--conninfo", help="of an empty PostgreSQL database")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kilonova-bench-") as directory:
        path = Path(directory) / "kilonova.db"
        await on(lambda: SqliteDatabase(path, SystemClock()), chosen.hosts, chosen.decisions, chosen.claims)
    if chosen.conninfo:
        from kilonova.db.postgresql import PostgresqlDatabase

        await on(
            lambda: PostgresqlDatabase(chosen.conninfo), chosen.hosts[-1:], chosen.decisions, chosen.claims
        )


if __name__ == "__main__":
    asyncio.run(main())
