"""Three cells, each with a database of its own, and servers in them."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Any

from kilonova.db import instance_mappings, instances
from kilonova.db.cells import Cell
from kilonova.db.engine import Tx
from kilonova.db.instance_mappings import MADE
from kilonova.db.postgresql import PostgresqlDatabase
from kilonova.model.flavor import Flavor
from kilonova.model.instance import Instance

FLAVOR = Flavor(id=1, flavorid="f1", name="tiny", vcpus=1, memory_mb=64, root_gb=1)


def server(uuid: str, **values: Any) -> Instance:
    defaults: dict[str, Any] = {
        "project_id": "p1",
        "user_id": "u1",
        "display_name": uuid,
        "vm_state": "active",
        "flavor": FLAVOR,
        "created_at": 100,
        "updated_at": 100,
    }
    return Instance(uuid=uuid, **{**defaults, **values})


async def put(cells: list[Cell], number: int, *servers: Instance) -> None:
    """Put servers into a cell; the first cell's database has the mappings of the others'."""
    cell = cells[number]

    def make(tx: Tx) -> None:
        for each in servers:
            instances.insert(tx, each)

    def map_them(tx: Tx) -> None:
        for each in servers:
            instance_mappings.insert(
                tx, instance_mappings.of_instance(each, cell.uuid, MADE, each.created_at)
            )

    await cell.db.write(make)
    if number:
        await cells[0].db.write(map_them)


@contextlib.contextmanager
def closed_port() -> Iterator[str]:
    """The conninfo of a PostgreSQL that is not there."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
        yield f"host=127.0.0.1 port={port} user=kilonova dbname=nowhere"


@contextlib.contextmanager
def silent_port() -> Iterator[str]:
    """The conninfo of something that takes every connection and never says a word."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        found.listen(16)
        port = found.getsockname()[1]
        yield f"host=127.0.0.1 port={port} user=kilonova dbname=nowhere"


@contextlib.asynccontextmanager
async def far(conninfo: str) -> AsyncIterator[PostgresqlDatabase]:
    db = PostgresqlDatabase(f"{conninfo} connect_timeout=2")
    try:
        yield db
    finally:
        await asyncio.wait_for(db.close(), 10)
