"""One placement service a module and kind of database."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from kilonova.clock import Clock, SystemClock
from kilonova.db.engine import Database
from kilonova.services.placement.api import app
from kilonova.services.placement.builtin import BuiltinPlacement
from tests.api.placement.face import Face, Tokens
from tests.conftest import opened


@pytest_asyncio.fixture(
    scope="module",
    loop_scope="module",
    params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)],
)
async def face(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Face]:
    clock = SystemClock()
    async with opened(request, request.param, tmp_path_factory.mktemp("placement"), clock, "module") as db:
        placement = BuiltinPlacement(db, clock)
        yield Face(app(placement, Tokens()), placement)


@pytest.fixture
async def empty(db: Database, clock: Clock) -> Face:
    """A placement service that knows no provider, for tests that look at all there are."""
    placement = BuiltinPlacement(db, clock)
    return Face(app(placement, Tokens()), placement)
