"""Operations that are not finished, and what an operator decides about those that cannot go on."""

from __future__ import annotations

from kilonova.clock import SECOND
from kilonova.db.engine import Tx
from kilonova.errors import Conflict, NotFound
from kilonova.journal import statements as sql
from kilonova.journal.model import ActionRow

VERBS = ("retry", "skip", "abandon")
MORE_TIME = 600 * SECOND


def open_actions(tx: Tx) -> list[ActionRow]:
    """All operations that are not finished, the oldest first."""
    return [sql.row_to_action(row) for row in tx.all(sql.OPEN)]


def needing_attention(tx: Tx) -> list[ActionRow]:
    """Operations that stopped because an undo, or a step after the pivot, kept failing."""
    return [sql.row_to_action(row) for row in tx.all(sql.ATTENTION)]


def resolve(tx: Tx, action_id: int, verb: str, operator: str, now: int) -> None:
    """``retry`` the step, ``skip`` it, or ``abandon`` the operation as it stands; recorded as an event.

    A runner finds the operation at its next look.  Raises NotFound, or Conflict when the operation does
    not need attention.
    """
    found = tx.one(sql.SHOW, action_id=action_id)
    if found is None:
        raise NotFound(f"There is no operation {action_id}.")
    row = sql.row_to_action(found)
    unwinding = row.error is not None
    abandoned = verb == "abandon"
    changed = tx.run(
        sql.OPERATOR,
        action_id=action_id,
        new_state="failed" if abandoned else "unwinding" if unwinding else "running",
        new_cursor=row.cursor + (-1 if unwinding else 1) if verb == "skip" else row.cursor,
        new_deadline=now + MORE_TIME,
        now=now,
        still_open=not abandoned,
        finished=now if abandoned else None,
        new_message="Error" if abandoned else row.message,
    )
    if not changed:
        raise Conflict(f"The operation {action_id} is {row.state}: it goes on without you.")
    step = row.plan[row.cursor]
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
