"""``kilonova cell`` on real PostgreSQL databases."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from sqlalchemy import insert

from kilonova.cells_admin import masked
from kilonova.clock import SystemClock
from kilonova.db import cell_mappings, hosts, instance_mappings, instances, quotas
from kilonova.db.cell_mappings import FIRST_CELL, CellMapping
from kilonova.db.engine import Database, Tx
from kilonova.db.instance_mappings import GONE, MADE, PENDING
from kilonova.db.postgresql import PostgresqlDatabase
from kilonova.db.tables.journal import actions
from kilonova.model.host import HostReport
from tests.conftest import opened
from tests.unit.cli.conftest import Command, rows
from tests.unit.listing.cells import closed_port, server, silent_port

pytestmark = pytest.mark.postgresql

U1, U2, U3 = (f"00000000-0000-4000-8000-00000000000{number}" for number in (1, 2, 3))


@dataclass
class Place:
    command: Command
    config: Path
    server: str
    top: Database

    def url(self, name: str, password: str = "") -> str:
        directory = self.server.split()[0].removeprefix("host=")
        return f"postgresql://kilonova{password}@/{name}?host={directory}"

    async def __call__(self, *words: str, fails: bool = False) -> str:
        return await self.command("cell", *words, "--config-file", str(self.config), fails=fails)

    async def create(self, name: str, db: str | None = None, bus: str | None = None, **how: Any) -> str:
        words = ["--database-connection", db or self.url(f"cell_{name}")]
        words += ["--transport-url", bus or f"nats:///kilonova.{name}"]
        return (await self("create", "--name", name, *words, **how)).strip()

    async def mappings(self) -> list[CellMapping]:
        return await self.top.read(cell_mappings.list_all)


@pytest.fixture
async def place(
    request: pytest.FixtureRequest, command: Command, tmp_path: Path, postgresql_server: str
) -> AsyncIterator[Place]:
    with psycopg.connect(f"{postgresql_server} dbname=postgres", autocommit=True) as connection:
        for name in ("cell_second", "cell_third"):
            connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
            connection.execute(f"CREATE DATABASE {name}")
    async with opened(request, "postgresql", tmp_path, SystemClock(), "cell_one") as top:
        config = tmp_path / "kilonova.conf"
        made = Place(command, config, postgresql_server, top)
        config.write_text(
            f"[database]\nconnection = {made.url('cell_one')}\n[nats]\nservers = nats://bus:4222\n"
        )
        yield made


async def in_second(place: Place, fn: Any) -> Any:
    db = PostgresqlDatabase(f"{place.server} dbname=cell_second")
    try:
        return await db.write(fn)
    finally:
        await db.close()


async def test_a_cell_is_made_listed_and_shown(place: Place) -> None:
    first = rows(await place("list"))
    assert [row[:2] for row in first] == [["cell1", FIRST_CELL]]
    uuid = await place.create("second")
    (mapping,) = await place.mappings()
    assert (mapping.uuid, mapping.name, mapping.disabled) == (uuid, "second", False)
    listed = rows(await place("list"))
    assert [row[0] for row in listed] == ["cell1", "second"]
    for word in ("second", uuid):
        (row,) = rows(await place("show", word))
        assert row[:2] == ["second", uuid]
        assert row[3:] == ["nats:///kilonova.second", "yes", "0", "0", "up"]
    assert "no cell 'third'" in await place("show", "third", fails=True)


async def test_its_database_has_the_tables(place: Place) -> None:
    await place.create("second")
    assert await in_second(place, instances.count) == 0


@pytest.mark.parametrize(
    ("name", "db", "bus", "why"),
    [
        ("cell1", None, None, "no name for a cell"),
        ("a b", None, None, "no name for a cell"),
        ("x", "mysql://a/b", None, "A cell's database is postgresql://"),
        ("x", "sqlite:///tmp/x", None, "A cell's database is postgresql://"),
        ("x", None, "rabbit://a/b", "A cell's bus is nats://"),
        ("x", None, "nats://user:secret@a/b", "A cell's bus is nats://"),
        ("x", None, "nats://host", "A cell's bus is nats://"),
        ("x", None, "nats:///kilonova", "has the prefix 'kilonova' on its bus already"),
    ],
)
async def test_what_cannot_be_a_cell(
    place: Place, name: str, db: str | None, bus: str | None, why: str
) -> None:
    words = await place.create(name, db or place.url("cell_second"), bus or "nats:///other", fails=True)
    assert why in words
    assert "secret" not in words
    assert await place.mappings() == []


async def test_two_cells_share_nothing(place: Place) -> None:
    await place.create("second")
    assert "already" in await place.create("second", place.url("cell_third"), "nats:///third", fails=True)
    assert "has that database" in await place.create("third", place.url("cell_second"), fails=True)
    assert "has the prefix" in await place.create("third", bus="nats://x/kilonova.second", fails=True)
    assert len(await place.mappings()) == 1


async def test_the_top_database_is_no_other_cell(place: Place) -> None:
    assert "has that database" in await place.create("second", place.url("cell_one"), fails=True)
    other_name = place.url("cell_one") + "&application_name=x"
    assert "the top database itself" in await place.create("second", other_name, fails=True)
    assert await place.mappings() == []


async def test_a_database_that_is_not_there(place: Place) -> None:
    for port in (closed_port, silent_port):
        with port() as conninfo:
            number = conninfo.split("port=")[1].split()[0]
            url = f"postgresql://kilonova:secret@127.0.0.1:{number}/x?connect_timeout=2"
            words = await place.create("second", url, fails=True)
            assert "Cannot reach PostgreSQL" in words or "did not respond" in words
            assert "secret" not in words
    assert await place.mappings() == []


async def test_a_cell_is_changed(place: Place) -> None:
    uuid = await place.create("second")
    assert (await place("update", "second", "--name", "renamed", "--disable")).strip() == uuid
    (mapping,) = await place.mappings()
    assert (mapping.name, mapping.disabled, mapping.uuid) == ("renamed", True, uuid)
    assert mapping.updated_at is not None
    assert rows(await place("show", uuid))[0][4] == "no"
    await place("update", uuid, "--enable", "--transport-url", "nats://a:1,b:2/far")
    (mapping,) = await place.mappings()
    assert (mapping.disabled, mapping.transport_url) == (False, "nats://a:1,b:2/far")
    for words in (
        ("--name", "cell1"),
        ("--transport-url", "nats:///kilonova"),
        ("--database-connection", place.url("cell_one")),
        ("--database-connection", place.url("cell_third")),  # without tables
    ):
        await place("update", uuid, *words, fails=True)
    assert await place.mappings() == [mapping]
    assert "first cell is the top database" in await place("update", "cell1", "--disable", fails=True)


async def test_passwords_are_shown_to_who_asks(place: Place) -> None:
    await place.create("second", place.url("cell_second", ":sesame"))
    for words in (("list",), ("show", "second")):
        output = await place(*words)
        assert "sesame" not in output
        assert "kilonova:****@" in output
        assert "sesame" in await place(*words, "--verbose")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://u:pw@h/db", "postgresql://u:****@h/db"),
        ("postgresql://u:p@w@h/db", "postgresql://u:****@h/db"),
        ("postgresql://u@h/db", "postgresql://u@h/db"),
        ("postgresql://h/db?user=u&password=pw&x=y", "postgresql://h/db?user=u&password=****&x=y"),
        ("postgresql://h/db?sslpassword=pw", "postgresql://h/db?sslpassword=****"),
        ("nats://token@h:1/p", "nats://****@h:1/p"),
        ("nats://h:1/p", "nats://h:1/p"),
        ("Cannot reach h: password=pw failed", "Cannot reach h: password=**** failed"),
    ],
)
def test_masks(url: str, shown: str) -> None:
    assert masked(url) == shown


_secret = st.text("abc123:@/-_.!$%", min_size=1, max_size=12).map(lambda text: f"Q{text}Q")


@given(_secret, st.sampled_from(["postgresql", "nats", "tls", "postgresql+psycopg"]))
def test_no_password_is_ever_shown(secret: str, scheme: str) -> None:
    assert secret not in masked(f"{scheme}://user:{secret}@host:5/name?x=y")
    assert "host:5/name" in masked(f"{scheme}://user:{secret}@host:5/name?x=y")


async def test_hosts_of_cells(place: Place) -> None:
    uuid = await place.create("second")

    def register(tx: Tx) -> None:
        for name, cell in (("near", None), ("far", uuid)):
            report = HostReport(
                host=name,
                compute_id=name,
                hypervisor_hostname=f"{name}.example",
                hypervisor_type="fake",
                hypervisor_version=1,
                host_ip="192.0.2.1",
                inventories={},
            )
            hosts.upsert(tx, report, 1, cell_uuid=cell)

    await place.top.write(register)
    assert rows(await place("list-hosts")) == [
        ["cell1", "near", "near.example"],
        ["second", "far", "far.example"],
    ]
    assert rows(await place("list-hosts", "second")) == [["second", "far", "far.example"]]
    assert rows(await place("show", "second"))[0][5] == "1"
    assert "1 hosts are in the cell 'second' (far)" in await place("delete", "second", fails=True)
    await place("delete", "second", "--force")
    assert await place.mappings() == []
    assert [host.host for host in await place.top.read(hosts.list_all)] == ["near"]


async def test_a_cell_with_servers_is_not_removed(place: Place) -> None:
    uuid = await place.create("second")
    made = instance_mappings.of_instance(server(U1), uuid, MADE, None)
    await place.top.write(lambda tx: instance_mappings.insert(tx, made))
    for force in ((), ("--force",)):
        assert "1 servers are in the cell" in await place("delete", "second", *force, fails=True)
    await place.top.write(lambda tx: instance_mappings.mark_gone(tx, U1))
    await place("delete", "second")
    assert await place.mappings() == []
    assert await place.top.read(lambda tx: instance_mappings.show(tx, U1)) is None
    assert "no cell 'second'" in await place("delete", "second", fails=True)
    assert "first cell" in await place("delete", "cell1", fails=True)


async def test_servers_of_a_cell_are_mapped(place: Place) -> None:
    uuid = await place.create("second")

    def fill(tx: Tx) -> None:
        for each in (U1, U2, U3):
            instances.insert(tx, server(each))
        instances.mark_deleted(tx, U3, 5)

    await in_second(place, fill)
    words = ("map-instances", "second")
    assert "2 servers mapped, 1 left" in await place(*words, "--max-count", "2", fails=True)
    assert "1 servers mapped, 0 left" in await place(*words)
    assert "0 servers mapped, 0 left" in await place(*words)
    living, gone = await place.top.read(
        lambda tx: (instance_mappings.show(tx, U1), instance_mappings.show(tx, U3))
    )
    assert living is not None and gone is not None
    assert (living.state, living.cell_uuid, living.queued_for_delete) == (MADE, uuid, False)
    assert (gone.state, gone.queued_for_delete) == (GONE, True)
    assert await place.top.read(lambda tx: quotas.usage(tx, "p1")) == {"instances": 2, "cores": 2, "ram": 128}
    assert await place.top.read(quotas.audit) == []
    assert rows(await place("show", "second"))[0][6] == "2"


async def test_where_a_server_is(place: Place) -> None:
    uuid = await place.create("second")
    assert "Nobody knows" in await place("verify", U1, fails=True)
    await place.top.write(lambda tx: instances.insert(tx, server(U1)))
    assert "first cell" in await place("verify", U1)
    for each, state in ((U2, PENDING), (U3, MADE)):
        made = instance_mappings.of_instance(server(each), uuid, state, 1)
        await place.top.write(lambda tx, made=made: instance_mappings.insert(tx, made))  # type: ignore[misc]
    assert "not made yet" in await place("verify", U2, fails=True)
    assert "is not there" in await place("verify", U3, fails=True)
    await in_second(place, lambda tx: instances.insert(tx, server(U3)))
    assert "is in the cell 'second'" in await place("verify", U3)
    assert await place("verify", U3, "--quiet") == ""
    with closed_port() as conninfo:
        number = conninfo.split("port=")[1].split()[0]
        (mapping,) = await place.mappings()
        lost = replace(mapping, database_connection=f"postgresql://u:secret@127.0.0.1:{number}/x")
        await place.top.write(lambda tx: cell_mappings.update_to(tx, lost))
        words = await place("verify", U3, fails=True)
        assert "does not answer" in words
        shown = rows(await place("show", "second"))
        assert shown[0][6] == "?"
        state = " ".join(line[7] for line in shown)
        assert "Cannot reach" in state
        assert "secret" not in words + state


async def test_operations_and_stories_of_a_cell(place: Place) -> None:
    await place.create("second")
    await in_second(place, lambda tx: instances.insert(tx, server(U1)))
    await in_second(place, lambda tx: tx.run(insert(actions).values(**ACTION)))
    await place("map-instances", "second")
    conf = ("--config-file", str(place.config))
    assert rows(await place.command("operation", "list", *conf)) == []
    (row,) = rows(await place.command("operation", "list", "--cell", "second", *conf))
    assert row[:4] == ["1", "create", U1, "attention"]
    assert "no cell 'third'" in await place.command("operation", "list", "--cell", "third", *conf, fails=True)
    await place.command("operation", "retry", "1", *conf, fails=True)
    assert "retry" in await place.command("operation", "retry", "1", "--cell", "second", *conf)
    (row,) = rows(await place.command("operation", "list", "--cell", "second", *conf))
    assert row[3] != "attention"
    assert "h-1" in await place.command("explain", U1, *conf)
    assert "There is no server" in await place.command("explain", U2, *conf, fails=True)


ACTION = {
    "action": "create",
    "instance_uuid": U1,
    "request_id": "req-1",
    "start_time": 1,
    "operation": "create",
    "plan": '["place"]',
    "params": "{}",
    "outputs": '{"place": {"rejected": {"h-1": "it is full"}}}',
    "state": "attention",
    "open": True,
    "cursor": 0,
    "floor": 0,
    "round": 1,
    "cancel": False,
    "why": "nobody knows",
    "epoch": 1,
    "lease_until": 0,
    "wake_at": 2**60,
    "deadline_at": 1,
}


async def test_an_embedded_cloud_has_one_cell(command: Command, tmp_path: Path) -> None:
    assert "[database]connection" in await command("cell", "list", fails=True)
