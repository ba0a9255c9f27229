"""Three cells as processes: PostgreSQL with a database for each, NATS with a prefix for each, a controller,
hosts in every cell.  One cell's database is stopped meanwhile."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner

from kilonova.cli.main import main
from kilonova.testing.fleet.fleet import DATABASE, Fleet

pytestmark = pytest.mark.postgresql

CELLS = ("second", "third")
PATIENCE = 90.0
FLAVOR = "1"


class Celled:
    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.image = ""

    def sql(self, database: str, text: str) -> Any:
        with psycopg.connect(self.fleet.postgres.conninfo(database), autocommit=True) as connection:
            found = connection.execute(text)
            return found.fetchall() if found.description else None

    async def kilonova(self, *words: str) -> str:
        options = [
            "--config-file",
            str(self.fleet.config),
            "--state-dir",
            str(self.fleet.directory / "admin"),
        ]
        done = await asyncio.to_thread(CliRunner(env={"COLUMNS": "250"}).invoke, main, [*words, *options])
        assert done.exit_code == 0, done.output
        return done.output.strip()

    async def cell(self, name: str) -> None:
        await self.fleet.postgres.make(f"cell_{name}")
        url = f"postgresql://kilonova@/cell_{name}?host={self.fleet.postgres.directory}"
        bus = f"nats:///kilonova.{name}"
        await self.kilonova(
            "cell", "create", "--name", name, "--database-connection", url, "--transport-url", bus
        )
        config = self.fleet.directory / f"{name}.conf"
        text = self.fleet.host_config.read_text()
        config.write_text(text.replace("[nats]", f"[nats]\nsubject_prefix = kilonova.{name}"))

    async def hosts(self, name: str) -> None:
        config = str(self.fleet.directory / f"{name}.conf")
        await self.fleet.simulate(2, name=name, more=("--prefix", f"{name}-", "--config-file", config))

    def allow(self, name: str, allowed: bool) -> None:
        self.sql(DATABASE, f"ALTER DATABASE cell_{name} ALLOW_CONNECTIONS {str(allowed).lower()}")
        if not allowed:
            ending = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = "
            self.sql(DATABASE, f"{ending}'cell_{name}'")

    async def boot(self, count: int) -> list[str]:
        made = []
        for number in range(count):
            about = {"flavorRef": FLAVOR, "imageRef": self.image}
            server = {**about, "name": f"s{number}", "networks": "auto" if number % 2 else "none"}
            answer = await self.fleet.call("POST", "/v2.1/servers", {"server": server})
            made.append(str(answer["server"]["id"]))
        return made

    async def until(self, good: Any) -> dict[str, dict[str, Any]]:
        deadline = time.monotonic() + PATIENCE
        while True:
            found = await self.fleet.servers()
            if good(found):
                return found
            assert time.monotonic() < deadline, {key: one["status"] for key, one in found.items()}
            await asyncio.sleep(0.2)

    async def active(self, uuids: list[str]) -> dict[str, dict[str, Any]]:
        return await self.until(
            lambda found: all(uuid in found and found[uuid]["status"] == "ACTIVE" for uuid in uuids)
        )

    def used(self) -> int:
        ((count,),) = self.sql(DATABASE, "SELECT coalesce(max(instances), 0) FROM quota_usages")
        return int(count)


@pytest.fixture
async def celled() -> AsyncIterator[Celled]:
    # PostgreSQL runs as a user of its own, who may not look into pytest's directories
    directory = Path(tempfile.mkdtemp(prefix="kilonova-cells-", dir="/tmp"))
    fleet = Fleet(directory, controllers=1, safe=False)
    made = Celled(fleet)
    try:
        await fleet.up()
        for name in CELLS:
            await made.cell(name)
        await fleet.controllers[0].stop()  # it would look for cells within a minute
        await fleet.controllers[0].start(b"ready")
        await fleet.simulate(2)
        for name in CELLS:
            await made.hosts(name)
        made.image = await fleet.image()
        yield made
    finally:
        await fleet.down()
        shutil.rmtree(directory, ignore_errors=True)


@pytest.mark.capability("API-130", "MC-5", "RPC-9")
async def test_three_cells_one_of_which_is_lost_and_comes_back(celled: Celled) -> None:
    uuids = await celled.boot(12)
    found = await celled.active(uuids)
    where = Counter(found[uuid]["OS-EXT-SRV-ATTR:host"].partition("-")[0] for uuid in uuids)
    assert set(where) == {"sim", *CELLS}  # every cell has some
    wired = {
        found[uuid]["OS-EXT-SRV-ATTR:host"].partition("-")[0] for uuid in uuids if found[uuid]["addresses"]
    }
    assert wired & set(CELLS)
    for name in CELLS:
        ((count,),) = celled.sql(f"cell_{name}", "SELECT count(*) FROM instances")
        assert count == where[name]
        assert celled.sql(f"cell_{name}", "SELECT count(*) FROM hosts") == [(0,)]
    assert "up" in await celled.kilonova("cell", "show", "second")
    lost = {uuid for uuid in uuids if found[uuid]["OS-EXT-SRV-ATTR:host"].startswith("second-")}
    celled.allow("second", False)
    try:
        begun = time.monotonic()
        listed = await celled.fleet.call("GET", "/v2.1/servers/detail")
        assert time.monotonic() - begun < 5.0
        statuses = {each["id"]: each["status"] for each in listed["servers"]}
        assert {uuid for uuid, status in statuses.items() if status == "UNKNOWN"} == lost
        assert len(statuses) == 12
        more = await celled.boot(3)
        everything = await celled.active([uuid for uuid in (*uuids, *more) if uuid not in lost])
        assert not any(everything[uuid]["OS-EXT-SRV-ATTR:host"].startswith("second-") for uuid in more)
    finally:
        celled.allow("second", True)
    assert len(await celled.active([*uuids, *more])) == 15
    for uuid in (*uuids, *more):
        await celled.fleet.call("DELETE", f"/v2.1/servers/{uuid}")
    await celled.until(lambda found: not found)
    assert celled.used() == 0
    assert celled.sql(DATABASE, "SELECT count(*) FROM allocations") == [(0,)]
    assert celled.sql(DATABASE, "SELECT DISTINCT state FROM instance_mappings") == [("gone",)]
