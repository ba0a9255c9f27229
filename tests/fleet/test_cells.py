"""Three cells as processes: PostgreSQL with a database for each, two that share a NATS server and one with a
server of its own, a controller, hosts in every cell.  One cell's database is stopped meanwhile, and another's
bus."""

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
from kilonova.testing.fleet.servers import NatsServer

pytestmark = pytest.mark.postgresql

CELLS = ("second", "third")
OWN_BUS = "third"
RECOVERED = 30.0  # seconds in which all is done that waited for a bus
BUSY = 2  # times as long may it take on a busy machine
PATIENCE = 90.0
FLAVOR = "1"
ACROSS = "[filter_scheduler]\ncross_cell_move_weight_multiplier = -1000000\n"  # who moves leaves its cell


class Celled:
    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.image = ""
        self.bus = NatsServer(fleet.directory / f"nats-{OWN_BUS}")

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
        own = name == OWN_BUS
        bus = f"{self.bus.url if own else 'nats://'}/kilonova.{name}"
        await self.kilonova(
            "cell", "create", "--name", name, "--database-connection", url, "--transport-url", bus
        )
        config = self.fleet.directory / f"{name}.conf"
        text = self.fleet.host_config.read_text()
        text = text.replace("[nats]", f"[nats]\nsubject_prefix = kilonova.{name}")
        config.write_text(text.replace(self.fleet.nats.url, self.bus.url) if own else text)

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

    async def taken(self, path: str, body: Any) -> None:
        """Ask for it, and again while the server is on its way between two cells."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                await self.fleet.call("POST", path, body)
            except RuntimeError as error:
                assert "is moving to another cell" in str(error) and time.monotonic() < deadline, error
                await asyncio.sleep(0.2)
            else:
                return

    def used(self) -> int:
        ((count,),) = self.sql(DATABASE, "SELECT coalesce(max(instances), 0) FROM quota_usages")
        return int(count)


@pytest.fixture
async def celled() -> AsyncIterator[Celled]:
    # PostgreSQL runs as a user of its own, who may not look into pytest's directories
    directory = Path(tempfile.mkdtemp(prefix="kilonova-cells-", dir="/tmp"))
    fleet = Fleet(directory, controllers=1, safe=False, more=ACROSS)
    made = Celled(fleet)
    try:
        await fleet.up()
        await made.bus.up()
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
        await made.bus.kill()
        shutil.rmtree(directory, ignore_errors=True)


async def moved_and_confirmed(celled: Celled, uuid: str, cell: str) -> None:
    """A server leaves its cell, its guest and its files go from agent to agent over two buses."""
    policy = celled.fleet.directory / "controller-0" / "policy.yaml"
    policy.write_text('"compute:servers:resize:cross_cell": "role:admin"\n')
    path = f"/v2.1/servers/{uuid}/action"
    await celled.fleet.call("POST", path, {"migrate": None})
    found = await celled.until(lambda found: found[uuid]["status"] == "VERIFY_RESIZE")
    host = found[uuid]["OS-EXT-SRV-ATTR:host"]
    assert not host.startswith(f"{cell}-")
    await celled.taken(path, {"confirmResize": None})
    found = await celled.until(lambda found: found[uuid]["status"] == "ACTIVE")
    assert found[uuid]["OS-EXT-SRV-ATTR:host"] == host
    for query in ("SELECT uuid FROM instances", "SELECT instance_uuid FROM actions"):
        assert (uuid,) not in celled.sql(f"cell_{cell}", query)
    other = host.partition("-")[0]
    there = f"cell_{other}" if other in CELLS else DATABASE
    assert (uuid,) in celled.sql(there, "SELECT uuid FROM instances")
    policy.unlink()


async def rebooted_while_its_bus_was_away(celled: Celled, uuids: list[str]) -> None:
    """All are listed, and the other cells do what they are asked; this one does it afterwards."""
    found = await celled.active(uuids)
    asked = [uuid for uuid in uuids if found[uuid]["OS-EXT-SRV-ATTR:host"].startswith(f"{OWN_BUS}-")]
    assert asked
    await celled.bus.kill()
    try:
        for uuid in asked:
            await celled.fleet.call("POST", f"/v2.1/servers/{uuid}/action", {"reboot": {"type": "HARD"}})
        more = await celled.boot(3)
        found = await celled.until(lambda found: sum(found[uuid]["status"] == "ACTIVE" for uuid in more) > 0)
        assert {found[uuid]["status"] for uuid in asked} == {"HARD_REBOOT"}
        assert {found[uuid]["status"] for uuid in uuids if uuid not in asked} == {"ACTIVE"}
    finally:
        await celled.bus.up()
    begun = time.monotonic()
    await celled.active([*uuids, *more])
    assert time.monotonic() - begun < RECOVERED * BUSY
    for uuid in more:
        await celled.fleet.call("DELETE", f"/v2.1/servers/{uuid}")


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
    mover = next(
        uuid
        for uuid in uuids
        if found[uuid]["addresses"] and found[uuid]["OS-EXT-SRV-ATTR:host"].startswith("second-")
    )
    await moved_and_confirmed(celled, mover, "second")
    await rebooted_while_its_bus_was_away(celled, uuids)
    found = await celled.until(lambda found: len(found) == len(uuids))
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
