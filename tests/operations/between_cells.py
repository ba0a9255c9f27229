"""Two cells between which servers move, on each kind of database, and going through all moments of a move."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from kilonova.model.states import Power, Vm
from kilonova.operations import rehome
from kilonova.operations.cloud import Cloud
from kilonova.testing.postgresql import LastingPostgresql
from tests.conftest import _emptied
from tests.operations.between_points import POINTS, acting
from tests.operations.two_cells import CELL, FIRST_CELL, Between, between

OPTIONS: dict[str, Any] = {"journal": {"lease": 30.0}, "quota": {"instances": 100, "cores": 100}}
CELL_OF = {"h1": FIRST_CELL, "far": CELL}
AWAY = {"h1": "far", "far": "h1"}


@pytest.fixture(name="cells")
async def _cells(tmp_path: Path) -> AsyncIterator[Between]:
    async with between(tmp_path, **OPTIONS) as made:
        yield made


cells = _cells


@pytest.fixture(name="both", params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)])
async def _both(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Between]:
    """The same on each kind of database, with one for each cell."""
    if request.param == "sqlite":
        async with between(tmp_path, **OPTIONS) as made:
            yield made
        return
    server = request.getfixturevalue("postgresql_server")
    first = _emptied(server, "between")
    _emptied(server, "between_far")
    host = server.split()[0].removeprefix("host=")
    second = f"postgresql://kilonova@/between_far?host={host}"
    async with between(tmp_path, lambda: LastingPostgresql(first), second, **OPTIONS) as made:
        yield made


both = _both


async def every_point(
    cells: Between,
    act: Callable[[str, str], Awaitable[None]],
    end: Callable[[str, str, str], Awaitable[None]],
) -> None:
    """``act(uuid, host)`` at each of them; ``end(uuid, host, point)`` when the server has come to rest."""
    uuid, host = await cells.boot("h1"), "h1"
    for number, after in POINTS:
        for _ in range(2):

            async def at_it(uuid: str = uuid, host: str = host) -> None:
                await act(uuid, host)

            async with acting(cells, host, number, after, at_it):
                await cells.ask_migrate(uuid)
                await cells.settled(uuid)
            await cells.settled(uuid)
            point = f"{'after' if after else 'before'} write {number} from {host}"
            await end(uuid, AWAY[host], point)
            host = AWAY[host]
            if (await cells.server(uuid)).deleted_at is None:
                await cells.confirmed(uuid)
            else:
                uuid = await cells.boot(host)


async def assert_moved(cells: Between, uuid: str, host: str, point: str) -> None:
    found = await cells.server(uuid)
    assert (found.vm_state, found.task_state, found.host) == (Vm.RESIZED, None, host), (point, found.fault)
    assert cells.guests(uuid) == {host: Power.RUNNING}, point
    assert cells.parked(uuid) == {AWAY[host]}, point
    assert await cells.held(uuid) == {host}, point
    await cells.assert_only_in(uuid, CELL_OF[host])


async def in_its_cell(cells: Between, uuid: str, ask: Callable[[Cloud], Awaitable[Any]]) -> Any:
    """As the API does it."""
    return await rehome.in_its_cell(cells.two.cells, uuid, ask)
