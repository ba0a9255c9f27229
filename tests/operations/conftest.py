from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from kilonova.app import EmbeddedCloud
from kilonova.testing.embedded import embedded
from kilonova.testing.simulated_hosts import SimulatedHost, first_host, simulated_hosts


@pytest.fixture
async def cloud(tmp_path: Path) -> AsyncIterator[EmbeddedCloud]:
    """A fake cloud of one host."""
    async with embedded(tmp_path / "state", DEFAULT={"host": "h1"}) as made:
        yield made


@dataclass
class Three:
    """A cloud of three hosts, which are chosen in the order h1, h2, h3."""

    cloud: EmbeddedCloud
    hosts: list[SimulatedHost]

    def host(self, name: str) -> SimulatedHost:
        return next(each for each in self.hosts if each.name == name)


@pytest.fixture
async def three(tmp_path: Path) -> AsyncIterator[Three]:
    options: dict[str, dict[str, object]] = {
        "DEFAULT": {"host": "h1", "vif_plugging_timeout": 1},
        "fake": {"vcpus": 1000, "memory_mb": 2_000_000, "disk_gb": 100_000},
    }
    async with (
        embedded(tmp_path / "state", **options) as cloud,
        simulated_hosts(cloud, "h2", "h3") as others,
    ):
        yield Three(cloud, [first_host(cloud), *others])
