"""The Compute API on a database of its own, in this process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from kilonova.api.app import app
from kilonova.api.policy import Policy
from kilonova.clock import SystemClock
from kilonova.db.engine import Database
from kilonova.db.sqlite import SqliteDatabase
from kilonova.operations.cloud import Cloud
from kilonova.testing.empty_database import have_tables
from tests.api.compute.asgi import Api, Tokens
from tests.api.compute.parts import small_cloud
from tests.api.compute.whole_cloud import Whole, whole_cloud

PROJECT = "pr0ject00000000000000000000000000"
ADMIN_PROJECT = "adm1n000000000000000000000000000"


@pytest.fixture
async def db(tmp_path: Path) -> AsyncIterator[Database]:
    await have_tables(tmp_path / "kilonova.db")
    database = SqliteDatabase(tmp_path / "kilonova.db", SystemClock())
    yield database
    await database.close()


@pytest.fixture
async def cloud(db: Database, tmp_path: Path) -> Cloud:
    return await small_cloud(db, tmp_path)


@pytest.fixture
def tokens() -> Tokens:
    return Tokens(PROJECT, ADMIN_PROJECT, "user1", "admin1")


@pytest.fixture
def policy_file(tmp_path: Path) -> Path:
    """Where the operator's file of rules would be."""
    return tmp_path / "policy.yaml"


@pytest.fixture
def api(cloud: Cloud, tokens: Tokens, policy_file: Path) -> Api:
    return Api(app(cloud, tokens, Policy(policy_file)))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def whole(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Whole]:
    """A whole fake cloud for all tests of a module, which run in its loop:
    ``pytestmark = pytest.mark.asyncio(loop_scope="module")``."""
    async with whole_cloud(tmp_path_factory.mktemp("whole")) as made:
        yield made
