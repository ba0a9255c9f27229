from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path

import pytest

from kilonova.app import EmbeddedCloud
from kilonova.db.engine import Database
from kilonova.testing.embedded import embedded
from kilonova.testing.postgresql import LastingPostgresql
from tests.conftest import _emptied


@dataclass
class Stage:
    """Where clouds are started, killed, and started again: a state directory and a database."""

    state_dir: Path
    database: Callable[[], Database] | None = None

    def cloud(self, **options: dict[str, object]) -> AbstractAsyncContextManager[EmbeddedCloud]:
        return embedded(self.state_dir, database=self.database, **options)


def crash_points(*whats: str) -> list[object]:
    """(database, what) for each: before a commit the kind of database makes no difference."""
    on_sqlite: list[object] = [("sqlite", what) for what in whats]
    behind = [what for what in whats if what not in ("do", "undo")]
    return on_sqlite + [pytest.param("postgresql", what, marks=pytest.mark.postgresql) for what in behind]


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)])
def stage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stage]:
    if request.param == "sqlite":
        yield Stage(tmp_path / "state")
        return
    conninfo = _emptied(request.getfixturevalue("postgresql_server"), "crash")
    yield Stage(tmp_path / "state", lambda: LastingPostgresql(conninfo))


@pytest.fixture
async def cloud(tmp_path: Path) -> AsyncIterator[EmbeddedCloud]:
    async with Stage(tmp_path / "state").cloud() as made:
        yield made


@pytest.fixture
async def staged(stage: Stage) -> AsyncIterator[EmbeddedCloud]:
    """A cloud on each kind of database."""
    async with stage.cloud() as made:
        yield made
