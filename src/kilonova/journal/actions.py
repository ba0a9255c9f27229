"""Reading the journal as Nova's instance actions and their events."""

from __future__ import annotations

from sqlalchemy import bindparam, func, select, tuple_

from kilonova.db.engine import Statement, Tx
from kilonova.db.tables.journal import action_events, actions
from kilonova.errors import NotFound
from kilonova.model.action import Action, ActionEvent

_COLUMNS = tuple(actions.c[name] for name in Action.__struct_fields__)
_EVENT_COLUMNS = tuple(action_events.c[name] for name in ActionEvent.__struct_fields__)

SHOW = Statement(
    select(*_COLUMNS)
    .where(actions.c.instance_uuid == bindparam("uuid"), actions.c.request_id == bindparam("request_id"))
    .order_by(actions.c.id.desc())
    .limit(1)
)
EVENTS = Statement(
    select(*_EVENT_COLUMNS)
    .where(action_events.c.action_id == bindparam("action_id"))
    .order_by(action_events.c.start_time, action_events.c.id)
)


def list_actions(
    tx: Tx,
    instance_uuid: str,
    *,
    limit: int | None = None,
    marker: str | None = None,
    changes_since: int | None = None,
    changes_before: int | None = None,
) -> list[Action]:
    """The actions of a server, the newest first.

    ``marker`` is the request id after which the page begins; raises NotFound for one that is not there.
    """
    query = select(*_COLUMNS).where(actions.c.instance_uuid == instance_uuid)
    if marker is not None:
        found = show_action(tx, instance_uuid, marker)
        if found is None:
            raise NotFound(f"marker [{marker}] not found")
        query = query.where(tuple_(actions.c.start_time, actions.c.id) < tuple_(found.start_time, found.id))
    changed_at = func.coalesce(actions.c.updated_at, actions.c.start_time)  # null: nothing has come of it yet
    if changes_since is not None:
        query = query.where(changed_at >= changes_since)
    if changes_before is not None:
        query = query.where(changed_at <= changes_before)
    query = query.order_by(actions.c.start_time.desc(), actions.c.id.desc()).limit(limit)
    return [Action(**dict(zip(Action.__struct_fields__, row, strict=True))) for row in tx.all(query)]


def show_action(tx: Tx, instance_uuid: str, request_id: str) -> Action | None:
    """The action that a request caused, or None."""
    row = tx.one(SHOW, uuid=instance_uuid, request_id=request_id)
    return None if row is None else Action(**dict(zip(Action.__struct_fields__, row, strict=True)))


def events(tx: Tx, action_id: int) -> list[ActionEvent]:
    """What was done for an action, the oldest first."""
    return [
        ActionEvent(**dict(zip(ActionEvent.__struct_fields__, row, strict=True)))
        for row in tx.all(EVENTS, action_id=action_id)
    ]
