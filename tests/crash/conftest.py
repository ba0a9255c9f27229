from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from kilonova.app import EmbeddedCloud
from kilonova.testing.embedded import embedded

Boot = Callable[[], AsyncIterator[EmbeddedCloud]]


@pytest.fixture
async def cloud(tmp_path: Path) -> AsyncIterator[EmbeddedCloud]:
    async with embedded(tmp_path / "state") as made:
        yield made
