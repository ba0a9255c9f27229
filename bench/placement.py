"""Measure allocation candidates: groups of devices over hosts that have many of them, and claims beside.

    python -m bench.placement [--hosts 100] [--devices 8] [--requests 200] [--postgresql CONNINFO]

Placement is served by a process of its own on a database of its own.  Figures are percentiles of the client's
wall clock over HTTP (with all of the answer read), and CPU seconds of the serving process by the kernel's
account.  In ``changing`` scenarios a claim is made before every request, so that the view in memory is out of
date each time.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from bench.http import Client
from bench.run import percentile
from kilonova.clock import SystemClock
from kilonova.db.engine import Database
from kilonova.db.schema import bring_up
from kilonova.db.sqlite import SqliteDatabase
from kilonova.model.context import RequestContext
from kilonova.model.host import Inventory, ProviderReport
from kilonova.services.placement import api
from kilonova.services.placement.builtin import BuiltinPlacement
from kilonova.services.placement.options import Options
from kilonova.web.server import HttpServer, bind

NAMES = uuid.UUID("9f2c1f6e-6d39-4a5c-9d0f-2b6f7f8d3a11")
HEADERS = {"x-auth-token": "bench", "openstack-api-version": "placement 1.39"}


class Fleet(NamedTuple):
    """``hosts`` roots with ``devices`` children each."""

    hosts: int
    devices: int

    def root(self, host: int) -> str:
        return str(uuid.uuid5(NAMES, f"host-{host}"))

    def tree(self, host: int) -> list[ProviderReport]:
        root = self.root(host)
        stock = {"VCPU": 128, "MEMORY_MB": 1 << 20, "DISK_GB": 10_000}
        node = ProviderReport(
            uuid=root,
            name=f"host-{host}",
            inventories={name: Inventory(total=total) for name, total in stock.items()},
            traits=("COMPUTE_NODE", "HW_CPU_X86_AVX2"),
        )
        devices = [
            ProviderReport(
                uuid=str(uuid.uuid5(NAMES, f"host-{host}-{number}")),
                name=f"host-{host}-device-{number}",
                parent=root,
                inventories={"CUSTOM_GPU": Inventory(total=1)},
                traits=("CUSTOM_FAST",),
            )
            for number in range(self.devices)
        ]
        return [node, *devices]


class Everybody:
    """Takes every token for an administrator's."""

    async def validate(self, token: str, request_id: str) -> RequestContext:
        return RequestContext(
            request_id=request_id, user_id="bench", project_id="bench", roles=frozenset({"admin"})
        )


def opened(directory: Path, conninfo: str | None) -> Database:
    if conninfo is None:
        return SqliteDatabase(directory / "placement.db", SystemClock())
    from kilonova.db.postgresql import PostgresqlDatabase

    return PostgresqlDatabase(conninfo)


async def serve(directory: Path, conninfo: str | None, port: int, strategy: Any) -> None:
    """Until SIGTERM."""
    db, over = opened(directory, conninfo), asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, over.set)
    placement = BuiltinPlacement(db, SystemClock(), Options(strategy=strategy))
    server = HttpServer(api.app(placement, Everybody()), [bind("127.0.0.1", port)])
    await server.start()
    gc.freeze()  # as `kilonova` does when it is ready
    print("ready", flush=True)
    await over.wait()
    await server.stop()
    await db.close()


@contextlib.contextmanager
def served(directory: Path, conninfo: str | None, port: int, strategy: str) -> Iterator[int]:
    """The pid of a serving process."""
    command = [sys.executable, "-m", "bench.placement", "--serve", str(port), "--directory", str(directory)]
    command += ["--strategy", strategy, *(["--postgresql", conninfo] if conninfo else [])]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        yield process.pid
    finally:
        process.terminate()
        process.wait(20)


def cpu(pid: int) -> float:
    """Seconds that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def query(groups: int, policy: str, limit: int) -> str:
    parts = ["resources=VCPU:4,MEMORY_MB:8192,DISK_GB:20", f"group_policy={policy}", f"limit={limit}"]
    for number in range(1, groups + 1):
        parts += [f"resources{number}=CUSTOM_GPU:1", f"required{number}=CUSTOM_FAST"]
    return "/allocation_candidates?" + "&".join(parts)


async def measured(client: Client, pid: int, path: str, times: int, host: str | None) -> dict[str, Any]:
    """GET a path again and again; with a host, after a claim on it each time."""
    took, size, found = [], 0, 0
    await client.request("GET", path)
    before = cpu(pid)
    for _ in range(times):
        if host is not None:
            body = {
                "allocations": {host: {"resources": {"MEMORY_MB": 1}}},
                "project_id": "p",
                "user_id": "u",
                "consumer_generation": None,
                "consumer_type": "BENCH",
            }
            status, answer, _ = await client.request("PUT", f"/allocations/{uuid.uuid4()}", body)
            assert status == 204, answer
        began = time.perf_counter()
        status, answer, _ = await client.request("GET", path)
        took.append(time.perf_counter() - began)
        assert status == 200, answer
        size = len(answer)
        found = answer.count(b'"mappings"')
    return {
        "requests": times,
        "candidates": found,
        "bytes": size,
        "cpu ms": round((cpu(pid) - before) / times * 1000, 2),
        "p50 ms": round(percentile(took, 0.5) * 1000, 2),
        "p99 ms": round(percentile(took, 0.99) * 1000, 2),
    }


async def measure(
    directory: Path, conninfo: str | None, fleet: Fleet, port: int, times: int
) -> AsyncIterator[tuple[str, Any]]:
    """Name and figures of each scenario."""
    db = opened(directory, conninfo)
    await bring_up(db)
    placement = BuiltinPlacement(db, SystemClock())
    for host in range(fleet.hosts):
        await placement.report_tree(fleet.tree(host))
    count = fleet.devices
    scenarios = [
        (f"{count} groups, isolate, limit 1000", query(count, "isolate", 1000), False),
        (f"{count} groups, isolate, limit 1000, changing", query(count, "isolate", 1000), True),
        (f"{count} groups, isolate, limit 100", query(count, "isolate", 100), False),
        (f"{count} groups, none, limit 1000", query(count, "none", 1000), False),
        (f"{count} groups, isolate, limit 1", query(count, "isolate", 1), False),
        ("no groups, limit 1000", query(0, "isolate", 1000), False),
        (f"{count + 1} groups, isolate: none fits", query(count + 1, "isolate", 1000), False),
    ]
    for strategy in ("depth-first", "breadth-first"):
        with served(directory, conninfo, port, strategy) as pid:
            client = Client("127.0.0.1", port, HEADERS)
            for name, path, changing in scenarios:
                host = fleet.root(0) if changing else None
                yield f"{strategy}, {name}", await measured(client, pid, path, times, host)
            client.close()
    yield "claims, 32 in flight", await claims(placement, fleet, 2000)
    await db.close()


async def claims(placement: BuiltinPlacement, fleet: Fleet, number: int) -> dict[str, Any]:
    """Durable claims on several providers of a tree at once."""
    numbers = iter(range(number))
    fitted = 0

    async def work() -> None:
        nonlocal fitted
        for each in numbers:
            root = fleet.root(each % fleet.hosts)
            wanted = {root: {"VCPU": 1, "MEMORY_MB": 64, "DISK_GB": 1}}
            fitted += await placement.claim(str(uuid.uuid4()), wanted, "p", "u")

    began = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(32)))
    return {"claims": number, "fitted": fitted, "claims/s": round(number / (time.perf_counter() - began))}


async def report(directory: Path, conninfo: str | None, fleet: Fleet, port: int, times: int) -> None:
    async for name, value in measure(directory, conninfo, fleet, port, times):
        print(json.dumps({name: value}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hosts", type=int, default=100)
    parser.add_argument("--devices", type=int, default=8)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--postgresql", metavar="CONNINFO", help="an empty database; default: SQLite")
    parser.add_argument("--port", type=int, default=18778)
    parser.add_argument("--strategy", default="depth-first", help=argparse.SUPPRESS)
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--directory", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.serve is not None:
        asyncio.run(serve(chosen.directory, chosen.postgresql, chosen.serve, chosen.strategy))
        return
    with tempfile.TemporaryDirectory(prefix="kilonova-bench-") as directory:
        fleet = Fleet(chosen.hosts, chosen.devices)
        work = report(Path(directory), chosen.postgresql, fleet, chosen.port, chosen.requests)
        asyncio.run(work)


if __name__ == "__main__":
    main()
