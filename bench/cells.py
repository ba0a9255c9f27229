"""Measure the detailed list of 1,000 servers over three cells against the same over one, in one run.

    python -m bench.cells [--servers 1000] [--rounds 40]

Starts a PostgreSQL on a scratch directory with a database for each cell.  The Compute API answers in this
process; CPU is the process's own (the API, the driver, the merge), without PostgreSQL's.  Rounds of the two
follow one another, so that both meet the same machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from kilonova.api.app import app
from kilonova.api.policy import Policy
from kilonova.clock import SECOND, SystemClock
from kilonova.db import instance_mappings, instances
from kilonova.db.cells import Cell, PatientDatabase
from kilonova.db.engine import Database, Tx
from kilonova.db.instance_mappings import MADE
from kilonova.db.postgresql import PostgresqlDatabase
from kilonova.db.schema import bring_up
from kilonova.model.context import RequestContext
from kilonova.model.flavor import Flavor
from kilonova.model.instance import ImageMeta, Instance
from kilonova.operations.cells import Cells
from kilonova.operations.cloud import Cloud
from kilonova.settings import Settings, read_options
from kilonova.testing.fleet.servers import PostgresServer

CELLS = 3
PROJECT = "p1"
FLAVOR = Flavor(id=1, flavorid="1", name="m1.tiny", vcpus=1, memory_mb=512, root_gb=1)
IMAGE = ImageMeta(id="70a599e0-31e7-49b7-b260-868f441e862b", name="cirros")


class Everybody:
    async def validate(self, token: str, request_id: str) -> RequestContext:
        return RequestContext(
            request_id=request_id, user_id="u1", project_id=PROJECT, roles=frozenset({"member", "reader"})
        )


def a_cloud(db: Database, directory: Path) -> Cloud:
    absent: Any = None
    options = read_options(None)
    options["DEFAULT"]["host"] = "controller"
    return Cloud(
        settings=Settings(state_dir=directory, options=options),
        clock=SystemClock(),
        new_uuid=lambda: "",
        db=db,
        identity=absent,
        image=absent,
        network=absent,
        placement=absent,
        hosts=absent,
        scheduler=absent,
        journal=absent,
        config_drive=absent,
    )


def server(number: int) -> Instance:
    return Instance(
        uuid=f"00000000-0000-4000-8000-{number:012}",
        project_id=PROJECT,
        user_id="u1",
        display_name=f"server-{number}",
        flavor=FLAVOR,
        image=IMAGE,
        vm_state="active",
        host=f"h{number % 50}",
        node=f"h{number % 50}",
        created_at=1_700_000_000 * SECOND + number,
        launched_at=1_700_000_000 * SECOND + number,
        metadata={"role": "web"},
    )


async def _put(db: Database, servers: list[Instance]) -> None:
    def write(tx: Tx) -> None:
        for each in servers:
            instances.insert(tx, each)

    await db.write(write)


async def _celled(dbs: list[Database], servers: list[Instance], directory: Path) -> Cloud:
    first = a_cloud(dbs[0], directory)
    cells = Cells(first)
    for number, db in enumerate(dbs):
        own = servers[number::CELLS]
        await _put(db, own)
        if number == 0:
            continue
        uuid = f"cell-{number}"
        patient = PatientDatabase(db, uuid, first.clock, 60.0)
        cells.add(Cell(uuid, uuid, patient), replace(first, db=patient))

        def write(tx: Tx, own: list[Instance] = own, uuid: str = uuid) -> None:
            for each in own:
                instance_mappings.insert(tx, instance_mappings.of_instance(each, uuid, MADE, None))

        await dbs[0].write(write)
    return first


async def _list(api: Any, query: bytes) -> int:
    """The number of servers in a detailed list."""
    scope = {
        "type": "http",
        "method": "GET",
        "scheme": "http",
        "path": "/v2.1/servers/detail",
        "query_string": query,
        "headers": [
            (b"host", b"cloud:8774"),
            (b"x-auth-token", b"t"),
            (b"openstack-api-version", b"compute 2.96"),
        ],
        "server": ("cloud", 8774),
    }
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    await api(scope, receive, send)
    assert sent[0]["status"] == 200, sent
    return len(json.loads(sent[1]["body"])["servers"])


async def measure(count: int, rounds: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="kilonova-bench-", dir="/tmp") as name:
        directory = Path(name)
        directory.chmod(0o777)
        postgresql = PostgresServer(directory / "pg", safe=False)
        await postgresql.up()
        try:
            return await _measured(postgresql, directory, count, rounds)
        finally:
            await postgresql.stop()


async def _measured(postgresql: PostgresServer, directory: Path, count: int, rounds: int) -> dict[str, Any]:
    dbs: list[Database] = []
    for name in ("one", *(f"cell{number}" for number in range(CELLS))):
        await postgresql.make(name)
        dbs.append(PostgresqlDatabase(postgresql.conninfo(name)))
        await bring_up(dbs[-1])
    servers = [server(number) for number in range(count)]
    await _put(dbs[0], servers)
    clouds = {"one cell": a_cloud(dbs[0], directory)}
    clouds[f"{CELLS} cells"] = await _celled(dbs[1:], servers, directory)
    apis = {name: app(cloud, Everybody(), Policy()) for name, cloud in clouds.items()}
    result: dict[str, Any] = {"servers": count, "rounds": rounds}
    for query in (b"", b"limit=50"):
        figures: dict[str, list[tuple[float, float]]] = {name: [] for name in apis}
        for number in range(rounds + 2):
            for name, api in apis.items():
                cpu, wall = time.process_time(), time.perf_counter()
                found = await _list(api, query)
                if number >= 2:  # statements are compiled by then
                    figures[name].append((time.process_time() - cpu, time.perf_counter() - wall))
                assert found == (50 if query else count)
        what = "a page of 50" if query else f"all {count}"
        result[what] = {
            name: {
                "CPU ms": round(1000 * statistics.median(cpu for cpu, _ in values), 2),
                "wall ms": round(1000 * statistics.median(wall for _, wall in values), 2),
            }
            for name, values in figures.items()
        }
    for db in dbs:
        await db.close()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--servers", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=40)
    given = parser.parse_args()
    print(json.dumps(asyncio.run(measure(given.servers, given.rounds)), indent=2))


if __name__ == "__main__":
    main()
