"""Migrations as OpenStack's own clients list them: the openstack command and openstacksdk, unmodified."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from kilonova.db import migrations
from kilonova.db.engine import Tx
from kilonova.model.migration import Migration
from tests.api.served import Served

JSON = ("-f", "json")
SERVER = "5e4e0000-0000-4000-8000-000000000001"


def _move(number: int, **values: Any) -> Migration:
    defaults: dict[str, Any] = {
        "instance_uuid": SERVER,
        "project_id": "p",
        "user_id": "u",
        "migration_type": "resize",
        "status": "finished",
        "source_compute": "h1",
        "dest_compute": "h2",
        "created_at": 1_700_000_000_000_000 + number,
    }
    return Migration(uuid=f"313a0000-0000-4000-8000-00000000000{number}", **{**defaults, **values})


@pytest.fixture
def moves(served: Served) -> Iterator[list[Migration]]:
    made = [
        _move(1),
        _move(2, migration_type="live-migration", status="running"),
        _move(3, instance_uuid=SERVER[:-1] + "2", source_compute="h3"),
    ]

    def write(tx: Tx) -> None:
        for each in made:
            migrations.insert(tx, each)

    served.run(served.cloud.db.write(write))
    yield made
    served.run(served.cloud.db.write(lambda tx: tx.run(migrations.migrations.delete())))


def test_the_openstack_command(served: Served, moves: list[Migration]) -> None:
    listed = served.openstack("server", "migration", "list", *JSON)
    assert [each["UUID"] for each in listed] == [each.uuid for each in moves[::-1]]
    assert (listed[1]["Type"], listed[1]["Status"]) == ("live-migration", "running")
    assert (listed[1]["Source Compute"], listed[1]["Dest Compute"]) == ("h1", "h2")
    by_host = served.openstack("server", "migration", "list", "--host", "h3", *JSON)
    assert [each["UUID"] for each in by_host] == [moves[2].uuid]
    by_status = served.openstack("server", "migration", "list", "--status", "running", *JSON)
    assert [each["UUID"] for each in by_status] == [moves[1].uuid]
    page = served.openstack("server", "migration", "list", "--limit", "1", "--marker", moves[2].uuid, *JSON)
    assert [each["UUID"] for each in page] == [moves[1].uuid]


def test_openstacksdk(served: Served, moves: list[Migration]) -> None:
    with served.sdk() as connection:
        found = list(connection.compute.migrations(limit=1))  # in pages
    assert [each.uuid for each in found] == [each.uuid for each in moves[::-1]]
    assert found[0].server_id == moves[2].instance_uuid
