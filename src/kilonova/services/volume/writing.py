"""Transactions that may meet another one which adds the same row."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from kilonova.db.engine import Database, Tx, UniqueViolation
from kilonova.errors import TryAgain

T = TypeVar("T")

ATTEMPTS = 5


async def repeated(db: Database, fn: Callable[[Tx], T]) -> T:
    """Run ``fn`` until it finds what another transaction has added, instead of adding it as well.

    Raises TryAgain when that does not end.
    """
    for _ in range(ATTEMPTS):
        try:
            return await db.write(fn)
        except UniqueViolation:
            continue
    raise TryAgain("Too many requests change the same volume or project at once: try again.")
