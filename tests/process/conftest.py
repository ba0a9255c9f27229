from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.process.cloud import Cloud

Make = Callable[..., Cloud]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Makes clouds; none of their processes outlives the test."""
    made: list[Cloud] = []

    def new(config: str = "", **more: Any) -> Cloud:
        made.append(Cloud(tmp_path / f"state{len(made)}", config, **more))
        return made[-1]

    yield new
    for each in made:
        each.clear()
