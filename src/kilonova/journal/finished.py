"""Actions that are done in the transaction that records them: lock, unlock, reset of the state.

They stand in the journal only so that users see them; no runner ever takes them.
"""

from __future__ import annotations

from kilonova.db.engine import Tx
from kilonova.journal import statements as sql
from kilonova.model.context import RequestContext


def record(
    tx: Tx, context: RequestContext, instance_uuid: str, action: str, now: int, event: str | None = None
) -> None:
    """Write down an action, with its one ``event`` if it has one, as begun and finished ``now``."""
    action_id = tx.scalar(
        sql.INSERT,
        action=action,
        instance_uuid=instance_uuid,
        request_id=context.request_id,
        user_id=context.user_id,
        project_id=context.project_id,
        start_time=now,
        updated_at=now,
        finish_time=now,
        message=None,
        operation=action,
        plan="[]",
        params="{}",
        outputs="{}",
        state="done",
        open=False,
        cursor=0,
        floor=0,
        round=1,
        cancel=False,
        error=None,
        why=None,
        owner=None,
        epoch=0,
        lease=0,
        wake_at=0,
        deadline_at=now,
    )
    if event is not None:
        tx.run(
            sql.EVENT,
            action_id=action_id,
            step=event,
            phase="do",
            round=1,
            event=event,
            start_time=now,
            finish_time=now,
            result="Success",
            traceback=None,
            host=None,
            details=None,
        )
