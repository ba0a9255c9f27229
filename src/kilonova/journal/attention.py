"""Operations that are not finished, and what an operator decides about those that cannot go on."""

from __future__ import annotations

from kilonova.clock import SECOND
from kilonova.db.engine import Tx
from kilonova.errors import Conflict, NotFound
from kilonova.journal import statements as sql
from kilonova.journal.model import ABANDONED, ActionRow, StoredError

VERBS = ("retry", "skip", "abandon")
NOTHING_LEFT = -1  # a cursor from which nothing is undone
MORE_TIME = 600 * SECOND


def open_actions(tx: Tx) -> list[ActionRow]:
    """All operations that are not finished, the oldest first."""
    return [sql.row_to_action(row) for row in tx.all(sql.OPEN)]


def needing_attention(tx: Tx) -> list[ActionRow]:
    """Operations that stopped because an undo, or a step after the pivot, kept failing."""
    return [sql.row_to_action(row) for row in tx.all(sql.ATTENTION)]


def resolve(tx: Tx, action_id: int, verb: str, operator: str, now: int) -> None:
    """``retry`` the step, ``skip`` it, or ``abandon`` the operation as it stands; recorded as an event.

    A runner finds the operation at its next look.  One that is abandoned undoes nothing more: the runner
    leaves its server as a failure of it does, so that the server is not busy for ever.  Raises NotFound, or
    Conflict when the operation does not need attention.
    """
    found = tx.one(sql.SHOW, action_id=action_id)
    if found is None:
        raise NotFound(f"There is no operation {action_id}.")
    row = sql.row_to_action(found)
    step = row.plan[row.cursor] if 0 <= row.cursor < len(row.plan) else ""
    state, cursor, error = _resolved(row, verb, operator, step)
    changed = tx.run(
        sql.OPERATOR,
        action_id=action_id,
        new_state=state,
        new_cursor=cursor,
        new_floor=0 if verb == "abandon" else row.floor,
        new_error=None if error is None else sql.encode(error),
        new_deadline=now + MORE_TIME,
        now=now,
    )
    if not changed:
        raise Conflict(f"The operation {action_id} is {row.state}: it goes on without you.")
    sql.add_event(
        tx,
        row,
        sql.Event(
            step=f"{verb} {step} {now}",
            phase="operator",
            event=f"operator_{verb}",
            started=now,
            finished=now,
            details=f"{operator} chose to {verb} the step '{step}'.",
        ),
    )


def _resolved(row: ActionRow, verb: str, operator: str, step: str) -> tuple[str, int, StoredError | None]:
    """State, cursor and error from which a runner goes on."""
    if verb == "abandon":
        message = f"{operator} abandoned the operation '{row.operation}' at '{step}': {row.why}"
        return "unwinding", NOTHING_LEFT, row.error or StoredError(kind=ABANDONED, message=message, step=step)
    unwinding = row.error is not None
    onward = (-1 if unwinding else 1) if verb == "skip" else 0
    return "unwinding" if unwinding else "running", row.cursor + onward, row.error
