"""``kilonova operation``: what is under way, and what an operator does about what cannot go on."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kilonova.app import EmbeddedCloud
from kilonova.clock import SECOND
from kilonova.errors import Failed
from kilonova.journal import actions, attention, failure, runner, walk
from kilonova.model.instance import Instance
from kilonova.model.states import Vm
from kilonova.operations import create, delete
from kilonova.operations.requests import CreateServer
from kilonova.testing.embedded import embedded, fake_driver, holdings, member, server
from tests.unit.cli.conftest import Command, rows

FAILING = 100_000  # so often as a test will ever try


@pytest.fixture
async def cloud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[EmbeddedCloud]:
    """A cloud that loses its patience within a second."""
    monkeypatch.setattr(failure, "PAUSE", 0.01)
    monkeypatch.setattr(failure, "LONGEST_PAUSE", 0.05)
    monkeypatch.setattr(walk, "UNDO_ATTEMPTS", 3)
    monkeypatch.setattr(runner, "SCAN", 0.02)
    monkeypatch.setattr(attention, "MORE_TIME", SECOND // 5)
    monkeypatch.setattr(delete, "DELETE", dataclasses.replace(delete.DELETE, deadline=0.2))
    async with embedded(tmp_path / "state", DEFAULT={"host": "h1"}) as made:
        yield made


async def boot(cloud: EmbeddedCloud) -> str:
    request = CreateServer(name="s", flavor_id="42", image_id=cloud.example_image)
    return (await create.submit(cloud.cloud, member(cloud), request))[0].uuid


async def state_of(cloud: EmbeddedCloud, uuid: str) -> str:
    """Of its newest operation."""
    from sqlalchemy import select

    from kilonova.db.tables.journal import actions as table

    query = select(table.c.state).where(table.c.instance_uuid == uuid).order_by(table.c.id.desc()).limit(1)
    return str(await cloud.db.read(lambda tx: tx.scalar(query)))


async def becomes(cloud: EmbeddedCloud, uuid: str, *states: str) -> Instance:
    """Wait until the newest operation is in one of these states."""
    async with asyncio.timeout(60):
        while await state_of(cloud, uuid) not in states:
            await asyncio.sleep(0.005)
    return await server(cloud, uuid)


async def stuck_delete(cloud: EmbeddedCloud) -> str:
    """A server whose disks cannot be removed."""
    uuid = await boot(cloud)
    await becomes(cloud, uuid, "done")
    fake_driver(cloud).faults.add("discard", Failed("disk [full] of sand"), times=FAILING)
    await delete.submit(cloud.cloud, member(cloud), uuid)
    await becomes(cloud, uuid, "attention")
    return uuid


async def stuck_undo(cloud: EmbeddedCloud) -> str:
    """A build that failed and whose disks cannot be removed."""
    driver = fake_driver(cloud)
    driver.faults.add("start", Failed("no kernel"))
    driver.faults.add("discard", Failed("disk full of sand"), times=3)
    uuid = await boot(cloud)
    await becomes(cloud, uuid, "attention")
    return uuid


async def listed(command: Command) -> list[list[str]]:
    return rows(await command("operation", "list"))


async def number(command: Command) -> str:
    ((identity, *_),) = await listed(command)
    return identity


async def operator_events(cloud: EmbeddedCloud, uuid: str) -> list[str]:
    (action, *_) = await cloud.db.read(lambda tx: actions.list_actions(tx, uuid))
    found = await cloud.db.read(lambda tx: actions.events(tx, action.id))
    return [each.event for each in found if each.event.startswith("operator_")]


async def test_what_cannot_go_on_is_listed_with_the_reason(cloud: EmbeddedCloud, command: Command) -> None:
    assert await listed(command) == []
    uuid = await stuck_delete(cloud)
    ((_, name, of, state, step, since, why),) = await listed(command)
    assert (name, of, state, step) == ("delete", uuid, "attention", "discard")
    assert since.endswith("Z") and "disk [full] of sand" in why


async def test_retry_does_the_step_again(cloud: EmbeddedCloud, command: Command) -> None:
    uuid = await stuck_delete(cloud)
    fake_driver(cloud).faults.mend("discard")
    identity = await number(command)
    assert await command("operation", "retry", identity) == f"Operation {identity}: retry.\n"
    assert (await becomes(cloud, uuid, "done")).vm_state == Vm.DELETED
    assert (await holdings(cloud, uuid)).nothing
    assert await listed(command) == []
    assert await operator_events(cloud, uuid) == ["operator_retry"]
    again = await command("operation", "retry", identity, fails=True)
    assert again == f"Error: The operation {identity} is done: it goes on without you.\n"


async def test_retry_of_what_still_fails_asks_again(cloud: EmbeddedCloud, command: Command) -> None:
    uuid = await stuck_delete(cloud)
    before = fake_driver(cloud).faults.left("discard")
    await command("operation", "retry", await number(command))
    async with asyncio.timeout(60):
        while fake_driver(cloud).faults.left("discard") == before:
            await asyncio.sleep(0.005)
    await becomes(cloud, uuid, "attention")
    assert len(await listed(command)) == 1


async def test_skip_goes_on_with_the_next_step(cloud: EmbeddedCloud, command: Command) -> None:
    uuid = await stuck_delete(cloud)
    await command("operation", "skip", await number(command))
    assert (await becomes(cloud, uuid, "done")).vm_state == Vm.DELETED
    left = await holdings(cloud, uuid)
    assert left.guest is not None  # the operator said that it was cared for
    assert not left.claims and not left.ports


async def test_skip_of_an_undo_undoes_the_rest(cloud: EmbeddedCloud, command: Command) -> None:
    uuid = await stuck_undo(cloud)
    await command("operation", "skip", await number(command))
    now = await becomes(cloud, uuid, "failed")
    assert (now.vm_state, now.task_state) == (Vm.ERROR, None)
    assert now.fault is not None and now.fault.message == "no kernel"
    left = await holdings(cloud, uuid)
    assert not left.claims and not left.ports


async def test_an_undo_that_is_retried_ends_clean(cloud: EmbeddedCloud, command: Command) -> None:
    uuid = await stuck_undo(cloud)
    ((_, name, _, state, step, _, why),) = await listed(command)
    assert (name, state, step) == ("create", "attention", "prepare") and "full of sand" in why
    await command("operation", "retry", await number(command))
    assert (await becomes(cloud, uuid, "failed")).vm_state == Vm.ERROR
    assert (await holdings(cloud, uuid)).nothing


async def test_abandon_ends_it_as_it_stands(cloud: EmbeddedCloud, command: Command) -> None:
    uuid = await stuck_delete(cloud)
    await command("operation", "abandon", await number(command))
    now = await becomes(cloud, uuid, "failed")
    assert (now.vm_state, now.task_state) == (Vm.ERROR, None)  # it is not busy for ever
    assert await listed(command) == []
    fake_driver(cloud).faults.mend("discard")
    await delete.submit(cloud.cloud, member(cloud), uuid)  # and may be deleted anew
    assert (await becomes(cloud, uuid, "done")).vm_state == Vm.DELETED
    assert (await holdings(cloud, uuid)).nothing


async def test_wrong_numbers(cloud: EmbeddedCloud, command: Command) -> None:
    for verb in ("retry", "skip", "abandon"):
        assert "There is no operation 999." in await command("operation", verb, "999", fails=True)
        for wrong in ("x", "0", "9" * 30):
            assert "Invalid value" in await command("operation", verb, wrong, fails=True)
