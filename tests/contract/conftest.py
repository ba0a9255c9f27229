"""``rig``: the service that a suite is about, one after the other of each kind that there is."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.contract.rigs import PARAMS, RIGS, Rig


@pytest.fixture(params=PARAMS)
async def rig(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Rig]:
    service = request.module.__name__.rpartition("test_")[2].partition("_")[0]
    async with RIGS[request.param](request, tmp_path, service) as made:
        yield made
