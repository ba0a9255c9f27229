"""Resizes to another cell, and their reverts: the process dies before and after each commit, and between any
two of the writes with which the server changes its cell."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kilonova.db.engine import Database
from kilonova.db.postgresql import PostgresqlDatabase
from kilonova.journal.model import ActionRow
from kilonova.model.migration import Status
from kilonova.model.states import Power, Vm
from kilonova.operations import revert_resize
from kilonova.operations.resize import RESIZE_SERVER
from kilonova.operations.revert_resize import REVERT_RESIZE
from kilonova.testing.embedded import member
from tests.conftest import _emptied
from tests.crash.broken import Crash
from tests.operations.between_points import POINTS, acting, runner_of
from tests.operations.two_cells import CELL, FIRST_CELL, Between, between

OPTIONS: dict[str, Any] = {"journal": {"lease": 1.0}, "DEFAULT": {"vif_plugging_timeout": 5}}
CELL_OF = {"h1": FIRST_CELL, "far": CELL}
AWAY = {"h1": "far", "far": "h1"}
STAGED: list[object] = [
    *(("sqlite", number, after) for number, after in POINTS),
    # before a commit the kind of database makes no difference
    *(
        pytest.param("postgresql", number, after, marks=pytest.mark.postgresql)
        for number, after in POINTS
        if after
    ),
]


@dataclass
class Stage:
    directory: Path
    database: Callable[[], Database] | None = None
    second: str | None = None

    def cells(self) -> AbstractAsyncContextManager[Between]:
        return between(self.directory, self.database, self.second, **OPTIONS)


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)])
def stage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stage]:
    if request.param == "sqlite":
        yield Stage(tmp_path)
        return
    server = request.getfixturevalue("postgresql_server")
    first = _emptied(server, "crash")
    _emptied(server, "crash_far")
    host = server.split()[0].removeprefix("host=")
    second = f"postgresql://kilonova@/crash_far?host={host}"
    yield Stage(tmp_path, lambda: PostgresqlDatabase(first), second)


@asynccontextmanager
async def dying(cells: Between, host: str, operation: str, step: str) -> AsyncIterator[None]:
    """The controller dies when a step of an operation in the cell of ``host`` has just been committed."""
    died = asyncio.Event()

    def look(row: ActionRow, at: str, happened: str) -> None:
        if (row.operation, at, happened) == (operation, step, "done"):
            died.set()
            raise Crash

    runner_of(cells, host).on_step = look
    yield
    async with asyncio.timeout(60):
        await died.wait()
    await cells.kill()


async def assert_resized(cells: Between, uuid: str, host: str) -> None:
    """It came from the other host, and waits to be confirmed."""
    found = await cells.settled(uuid)
    assert (found.vm_state, found.task_state, found.host) == (Vm.RESIZED, None, host), found.fault
    assert found.flavor.name == "m1.tiny"
    (migration,) = await cells.migrations(uuid)
    assert migration.status == Status.FINISHED
    assert cells.guests(uuid) == {host: Power.RUNNING} and cells.parked(uuid) == {AWAY[host]}
    assert await cells.held(uuid) == {host} and await cells.held(migration.uuid) == {AWAY[host]}
    assert await cells.used() == {"instances": 1, "cores": 1, "ram": 512}
    await cells.assert_has_volume(uuid, host)
    await cells.assert_only_in(uuid, CELL_OF[host])


async def assert_reverted(cells: Between, uuid: str, host: str) -> None:
    found = await cells.settled(uuid)
    assert (found.vm_state, found.task_state, found.host) == (Vm.ACTIVE, None, host), found.fault
    assert found.flavor.name == "m1.nano"
    (migration,) = await cells.migrations(uuid)
    assert migration.status == Status.REVERTED
    assert cells.guests(uuid) == {host: Power.RUNNING} and cells.parked(uuid) == set()
    assert await cells.held(uuid) == {host} and await cells.held(migration.uuid) == set()
    assert await cells.used() == {"instances": 1, "cores": 1, "ram": 128}
    await cells.assert_has_volume(uuid, host)
    await cells.assert_only_in(uuid, CELL_OF[host])


@pytest.mark.parametrize("stage", ["sqlite"], indirect=True)
@pytest.mark.parametrize("step", [step.name for step in RESIZE_SERVER.steps])
async def test_the_controller_dies_in_a_resize_to_another_cell(stage: Stage, step: str) -> None:
    async with stage.cells() as cells:
        uuid = await cells.boot_with_volume("h1")
        async with dying(cells, "h1", "resize", step):
            await cells.ask_resize(uuid)
    async with stage.cells() as cells:
        await assert_resized(cells, uuid, "far")


@pytest.mark.parametrize("stage", ["sqlite"], indirect=True)
@pytest.mark.parametrize("step", [step.name for step in REVERT_RESIZE.steps])
async def test_the_controller_dies_in_a_revert_from_another_cell(stage: Stage, step: str) -> None:
    async with stage.cells() as cells:
        uuid = await cells.boot_with_volume("h1")
        await cells.resized(uuid)
        async with dying(cells, "far", "revert_resize", step):
            await revert_resize.submit(await cells.home(uuid), member(cells.two.whole), uuid)
    async with stage.cells() as cells:
        await assert_reverted(cells, uuid, "h1")


@pytest.mark.capability("MG-XC-2", "MG-XC-5")
@pytest.mark.parametrize("host", ["h1", "far"])
@pytest.mark.parametrize(("stage", "number", "after"), STAGED, indirect=["stage"])
async def test_the_controller_dies_between_two_databases(
    stage: Stage, host: str, number: int, after: bool
) -> None:
    async def die() -> None:
        raise Crash

    async with stage.cells() as cells:
        uuid = await cells.boot_with_volume(host)
        async with acting(cells, host, number, after, die):
            await cells.ask_resize(uuid)
        await cells.kill()
    async with stage.cells() as cells:
        await assert_resized(cells, uuid, AWAY[host])
