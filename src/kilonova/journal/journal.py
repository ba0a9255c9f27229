"""Submitting operations and telling them things.  Every function takes the caller's open transaction: an
operation begins, is cancelled or hears a signal together with whatever else that commit does.
"""

from __future__ import annotations

from typing import Any

import msgspec

from kilonova.clock import SECOND, Clock
from kilonova.db.engine import Tx
from kilonova.journal import statements as sql
from kilonova.journal.model import ActionRow, Operation, Run
from kilonova.journal.runner import Runner
from kilonova.model.context import RequestContext


class Journal:
    """The door to the journal for operations, API and operators."""

    def __init__(self, clock: Clock, runner: Runner) -> None:
        self._clock = clock
        self._runner = runner

    def submit(
        self,
        tx: Tx,
        context: RequestContext,
        operation: Operation,
        instance_uuid: str,
        action: str,
        params: msgspec.Struct,
        known: dict[str, Any] | None = None,
    ) -> int:
        """Write the operation down; it runs as soon as this transaction is committed.

        It waits for an earlier operation of the same instance.  The caller has changed the instance's row in
        this transaction: that is the lock which keeps two submitters of one instance apart.  ``known`` is
        what the first run need not read again.  Returns the id of the action.
        """
        now = self._clock.now()
        waits = tx.one(sql.OPEN_OF, uuid=instance_uuid) is not None
        mine = not waits and self._runner.takes_more()
        row = ActionRow(
            id=0,
            action=action,
            instance_uuid=instance_uuid,
            request_id=context.request_id,
            user_id=context.user_id,
            project_id=context.project_id,
            start_time=now,
            updated_at=None,
            finish_time=None,
            message=None,
            operation=operation.name,
            plan=tuple(step.name for step in operation.steps),
            params=msgspec.json.encode(params),
            outputs={},
            state="running",
            open=True,
            cursor=0,
            floor=0,
            round=1,
            cancel=False,
            error=None,
            why=None,
            owner=self._runner.owner if mine else None,
            epoch=1 if mine else 0,
            lease_until=0,
            wake_at=0,
            deadline_at=now + int(operation.deadline * SECOND),
        )
        row.id = self._insert(tx, row)
        if mine:
            run = Run(action=row, cloud=self._runner.cloud, params=params, known=known or {})
            tx.call_after_commit(lambda: self._runner.adopt(run))
        else:
            tx.call_after_commit(self._runner.wake)
        return row.id

    def _insert(self, tx: Tx, row: ActionRow) -> int:
        values = {name: getattr(row, name) for name in row.__struct_fields__ if name != "id"}
        del values["lease_until"]
        values["plan"] = sql.encode(row.plan)
        values["params"] = row.params.decode()
        values["outputs"] = "{}"
        inserted = tx.scalar(sql.INSERT, lease=self._runner.lease, **values)
        return int(inserted)

    def cancel(self, tx: Tx, instance_uuid: str, but: str = "") -> bool:
        """Have the open operations of an instance (those not named ``but``) undo themselves.

        One that is past its pivot finishes instead.  Returns whether there was any.
        """
        ids = [row[0] for row in tx.all(sql.CANCEL, uuid=instance_uuid, but=but)]
        if ids:
            tx.call_after_commit(lambda: self._runner.interrupt(ids))
        return bool(ids)

    def signal(self, tx: Tx, instance_uuid: str, name: str, tag: str, status: str = "completed") -> bool:
        """Deliver a fact to the open operations of an instance: one waits for it now or will.

        It is dropped when there is none, so that no later one takes it for its own: False.
        """
        if not tx.run(sql.WAKE, uuid=instance_uuid):
            return False
        tx.run(
            sql.SIGNAL,
            instance_uuid=instance_uuid,
            name=name,
            tag=tag,
            status=status,
            created_at=self._clock.now(),
        )
        tx.call_after_commit(self._runner.wake)
        return True

    def wake(self) -> None:
        """There may be work that was not submitted here."""
        self._runner.wake()

    def is_busy(self, tx: Tx, instance_uuid: str) -> bool:
        """Whether an operation of the instance is not finished."""
        return tx.one(sql.OPEN_OF, uuid=instance_uuid) is not None

    def awaits(self, tx: Tx, instance_uuid: str, operation: str) -> bool:
        """Whether an operation of that name is not finished, or has not even begun."""
        return tx.one(sql.AWAITS, uuid=instance_uuid, of_operation=operation) is not None

    def is_cancelled(self, tx: Tx, action_id: int) -> bool:
        """Whether an operation is to undo itself, which a step that must not be interrupted has to ask."""
        return bool(tx.scalar(sql.IS_CANCELLED, action_id=action_id))

    def drop_signals(self, tx: Tx, instance_uuid: str) -> None:
        """Forget what was delivered: nobody will wait for it any more."""
        tx.run(sql.DROP_SIGNALS, uuid=instance_uuid)
