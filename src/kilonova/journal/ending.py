"""Waiting for the end of an operation, for who has to answer with what came of it."""

from __future__ import annotations

import json
from collections.abc import Callable

from sqlalchemy import bindparam, select

from kilonova.clock import SECOND, Clock
from kilonova.db.engine import Database, Row, Statement
from kilonova.db.tables.journal import actions
from kilonova.journal import statements as sql
from kilonova.journal.model import StoredError

FIRST_PAUSE = 0.02  # seconds between looks, doubled up to
LONGEST_PAUSE = 0.5

_LOOK = Statement(
    select(actions.c.open, actions.c.error, actions.c.plan, actions.c.cursor).where(
        actions.c.id == bindparam("action_id")
    )
)


async def ended(db: Database, clock: Clock, action_id: int, patience: float) -> StoredError | None:
    """Why the operation has failed, None if it was done; whichever process runs it.

    Raises TimeoutError if it is not over after ``patience`` seconds; it goes on.
    """
    row = await _seen(db, clock, action_id, patience, lambda row: not row[0])
    return sql.read_error(row[1])


async def passed(
    db: Database, clock: Clock, action_id: int, step: str, patience: float
) -> StoredError | None:
    """Why the operation has failed at that step or before it began; None if it is past it, as far as is known
    after ``patience`` seconds."""
    try:
        row = await _seen(db, clock, action_id, patience, lambda row: _is_past(row, step))
    except TimeoutError:
        return None
    error = sql.read_error(row[1])
    return error if error is not None and (error.step == step or error.cancelled) else None


def _is_past(row: Row, step: str) -> bool:
    is_open, error, plan, cursor = row
    return not is_open or error is not None or cursor > list(json.loads(plan)).index(step)


async def _seen(
    db: Database, clock: Clock, action_id: int, patience: float, wanted: Callable[[Row], bool]
) -> Row:
    """The operation as soon as it is as wanted.  Raises TimeoutError."""
    until, pause = clock.now() + int(patience * SECOND), FIRST_PAUSE
    while True:
        row = await db.read(lambda tx: tx.one(_LOOK, action_id=action_id))
        if row is not None and wanted(row):
            return row
        if clock.now() >= until:
            raise TimeoutError
        await clock.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)
