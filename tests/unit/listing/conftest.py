from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kilonova.clock import Clock
from kilonova.db.cells import Cell
from tests.conftest import opened


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)])
async def cells(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> AsyncIterator[list[Cell]]:
    """Three cells with empty databases of each kind; the first is the one with the mappings."""
    async with contextlib.AsyncExitStack() as stack:
        found = []
        for number, name in enumerate(("one", "two", "three")):
            directory = tmp_path / name
            directory.mkdir()
            db = await stack.enter_async_context(
                opened(request, request.param, directory, clock, f"cell_{name}")
            )
            found.append(Cell(f"cell-{number}", name, db))
        yield found
