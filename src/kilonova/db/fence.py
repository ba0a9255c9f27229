"""Keeping a slow old owner from writing: what a step of an operation writes, it writes only while the step's
runner still holds the operation.

The check runs in the same transaction as the write, whichever part of the house makes it: a claim in
placement, a port of the network service.  It holds for what the step's own task awaits; a task that the
step has started goes by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, TypeVar

from kilonova.db.engine import Database, Tx

T = TypeVar("T")

Check = Callable[[Tx], None]
"""Raises LostLease when the operation has another owner by now, and keeps it from getting one until the
transaction ends."""

_Fence = tuple[asyncio.Task[Any] | None, Database, Check]
_fence: ContextVar[_Fence | None] = ContextVar("fence", default=None)


@contextlib.contextmanager
def fenced(db: Database, check: Check) -> Iterator[None]:
    """What the running task writes to ``db`` in this block is written only if ``check`` lets it."""
    token = _fence.set((asyncio.current_task(), db, check))
    try:
        yield
    finally:
        _fence.reset(token)


def within_fence(db: Database, fn: Callable[[Tx], T]) -> Callable[[Tx], T]:
    """``fn`` as it has to be run; for implementations of Database."""
    fence = _fence.get()
    if fence is None or fence[1] is not db or fence[0] is not asyncio.current_task():
        return fn
    check = fence[2]

    def checked(tx: Tx) -> T:
        check(tx)
        return fn(tx)

    return checked
