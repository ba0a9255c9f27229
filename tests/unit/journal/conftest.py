from __future__ import annotations

import pytest

from kilonova.testing.clock import VirtualClock


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()
