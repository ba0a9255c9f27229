from __future__ import annotations

import pytest

from kilonova.db.engine import Database
from kilonova.testing.clock import VirtualClock
from tests.unit.scheduler.town import Town


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
async def town(db: Database, clock: VirtualClock) -> Town:
    return Town(db, clock)
