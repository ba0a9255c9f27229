"""Whether a fleet has lost or doubled anything: what its hosts have, against what its database says."""

from __future__ import annotations

import contextlib
import sqlite3
from collections import defaultdict
from pathlib import Path

from sqlalchemy import select

from kilonova.db.engine import Tx
from kilonova.db.postgresql import PostgresqlDatabase
from kilonova.db.tables.cells import leftovers
from kilonova.testing import audit
from kilonova.testing.fleet.fleet import DATABASE, Fleet

_OWED = select(leftovers.c.host, leftovers.c.instance_uuid)


def guests(fleet: Fleet) -> dict[str, dict[str, int]]:
    """Guest -> the hosts that have it, each with its power state; PREPARED where only disks are."""
    found: dict[str, dict[str, int]] = defaultdict(dict)
    for file in fleet.directory.rglob("fake-guests.db"):
        for host, uuid, state in _rows(file):
            found[uuid][host or _agents_host(file)] = state
    return dict(found)


def _rows(file: Path) -> list[tuple[str, str, int]]:
    with contextlib.closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=10)) as connection:
        return connection.execute("SELECT host, uuid, state FROM guests").fetchall()


def _agents_host(file: Path) -> str:
    """An agent's state directory has the name of its host."""
    return file.parent.parent.name


async def complaints(fleet: Fleet) -> list[str]:
    """Everything that is not as it should be in a fleet where nothing goes on; empty in a sound one."""
    there = guests(fleet)
    database = PostgresqlDatabase(fleet.postgres.conninfo(DATABASE), threads=1)
    try:
        return await database.read(lambda tx: _compared(tx, there))
    finally:
        await database.close()


def _compared(tx: Tx, there: dict[str, dict[str, int]]) -> list[str]:
    servers = audit.living(tx)
    for host, uuid in tx.all(_OWED):  # which is taken from it when it can be asked
        there.get(uuid, {}).pop(host, None)
    there = {uuid: hosts for uuid, hosts in there.items() if hosts}
    states = {uuid: max(hosts.values()) for uuid, hosts in there.items()}
    result = audit.leaks(tx, states)
    for uuid, hosts in there.items():
        if len(hosts) > 1:
            result.append(f"guest {uuid} is on {len(hosts)} hosts: {', '.join(sorted(hosts))}")
        server = servers.get(uuid)
        if server is not None and set(hosts) != {server.host}:
            result.append(f"server {uuid} is on {server.host}, its guest on {', '.join(sorted(hosts))}")
    return result
