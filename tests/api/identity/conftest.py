"""One identity service a module and kind of database; time stands still until a test moves it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from kilonova.services.identity.api import app
from kilonova.services.identity.bootstrap import bootstrap
from kilonova.services.identity.builtin import BuiltinIdentity
from kilonova.services.identity.passwords import Cost, Passwords
from kilonova.testing.clock import VirtualClock
from tests.api.identity.face import ADMIN_PASSWORD, DEMO_PASSWORD, ROOT, URLS, Face
from tests.conftest import opened

CHEAP = Cost(log_n=4, r=8, p=1)


@pytest_asyncio.fixture(
    scope="module",
    loop_scope="module",
    params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)],
)
async def module_face(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Face]:
    directory, clock = tmp_path_factory.mktemp("identity"), VirtualClock()
    async with opened(request, request.param, directory, clock, "module") as db:
        passwords = Passwords(clock, CHEAP)
        identity = BuiltinIdentity(db, clock, directory / "keys", passwords=passwords)
        day = await bootstrap(db, clock, ADMIN_PASSWORD, DEMO_PASSWORD, passwords=passwords)
        yield Face(app(identity, URLS, ROOT), identity, clock, day)
        identity.close()


@pytest_asyncio.fixture(loop_scope="module")
async def face(module_face: Face) -> Face:
    """The service, with a fresh token of the administrator."""
    await module_face.renew()
    return module_face
