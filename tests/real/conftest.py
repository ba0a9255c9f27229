"""What the tests with real guests share."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.real.l2lab import Lab


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    """A layer-2 agent on the sandbox's Open vSwitch."""
    lab = Lab(tmp_path / "l2")
    await lab.open()
    yield lab
    await lab.close()
