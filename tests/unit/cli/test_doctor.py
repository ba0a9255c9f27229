"""``kilonova doctor``: on a real state directory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import insert

from kilonova.app import EmbeddedCloud
from kilonova.db.tables.placement import allocations, consumers
from kilonova.operations import create
from kilonova.operations.requests import CreateServer
from kilonova.testing.embedded import embedded, leaks, member, settled
from tests.unit.cli.conftest import Command, rows


@pytest.fixture
async def cloud(tmp_path: Path) -> AsyncIterator[EmbeddedCloud]:
    """With one server."""
    async with embedded(tmp_path / "state", DEFAULT={"host": "h1"}) as made:
        request = CreateServer(name="s", flavor_id="42", image_id=made.example_image)
        (server,) = await create.submit(made.cloud, member(made), request)
        await settled(made, server.uuid)
        yield made


async def plant(cloud: EmbeddedCloud) -> None:
    """An allocation of nobody, whose counter nobody has changed."""
    (provider,) = await cloud.placement.providers()

    def write(tx: object) -> None:
        for statement in (
            insert(consumers).values(uuid="x", generation=1, project_id="p", user_id="u", consumer_type=None),
            insert(allocations).values(consumer="x", provider=provider.uuid, resource_class="VCPU", amount=3),
        ):
            tx.run(statement)  # type: ignore[attr-defined]

    await cloud.db.write(write)


def first(output: str) -> list[str]:
    """The kinds of findings that are shown."""
    return [row[0] for row in rows(output) if row[0]]


async def test_all_is_well(cloud: EmbeddedCloud, command: Command) -> None:
    output = await command("doctor")
    assert "All is well: 1 servers hold what is booked for them." in output
    assert await leaks(cloud) == []


async def test_what_is_wrong_is_told_mended_and_left(cloud: EmbeddedCloud, command: Command) -> None:
    await plant(cloud)
    assert first(await command("doctor", fails=True)) == ["wrong used counter", "allocation without a server"]
    assert len([each for each in await leaks(cloud) if "x holds 3 VCPU" in each]) == 1
    repaired = [row[-1].split()[0] for row in rows(await command("doctor", "--repair", fails=True)) if row[0]]
    assert repaired == ["repaired", "Look"]
    assert first(await command("doctor", fails=True)) == ["allocation without a server"]
