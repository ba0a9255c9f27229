"""An image service on each kind of database, and those who use it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kilonova.db.engine import Database
from kilonova.model.context import RequestContext
from kilonova.services.image.builtin import BuiltinImage


class Ticking:
    """Every look at this clock is a second later."""

    def __init__(self) -> None:
        self.moment = 1_700_000_000_000_000

    def now(self) -> int:
        self.moment += 1_000_000
        return self.moment

    async def sleep(self, seconds: float) -> None:
        raise AssertionError("nothing in the image service sleeps")


def caller(project: str | None, *roles: str) -> RequestContext:
    return RequestContext(
        request_id="req-1", user_id="u", project_id=project, roles=frozenset(roles or ("member", "reader"))
    )


ADMIN = caller("admin", "admin", "member")
ALICE = caller("alice")
BOB = caller("bob")
READER = caller("alice", "reader")
UNSCOPED = caller(None, "member")


async def chunks(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


@pytest.fixture
async def images(db: Database, tmp_path: Path) -> AsyncIterator[BuiltinImage]:
    service = BuiltinImage(db, Ticking(), tmp_path / "images", size_limit=8 << 20)
    await service.recover()
    yield service
    await service.close()
