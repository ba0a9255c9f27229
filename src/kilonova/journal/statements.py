"""The journal's SQL.  A runner's every write carries its owner and epoch: who lost the lease writes
nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import and_, bindparam, case, delete, insert, literal, or_, select, true, update

from kilonova.db.engine import Row, Statement, Tx, db_now, insert_into
from kilonova.db.tables.journal import action_events, actions, signals
from kilonova.journal.model import ActionRow, StoredError

FOREVER = 1 << 62  # a wake_at that never comes

_json = msgspec.json.Encoder()
_outputs = msgspec.json.Decoder(dict[str, Any])
_plan = msgspec.json.Decoder(tuple[str, ...])
_error = msgspec.json.Decoder(StoredError)

_earlier = actions.alias("earlier")
_candidate = actions.alias("candidate")
_ready = (
    select(_candidate.c.id)
    .where(
        _candidate.c.open,
        _candidate.c.wake_at <= db_now(),
        or_(_candidate.c.owner.is_(None), _candidate.c.lease_until < db_now()),
        ~select(literal(1))
        .where(
            _earlier.c.open,
            _earlier.c.instance_uuid == _candidate.c.instance_uuid,
            _earlier.c.id < _candidate.c.id,
        )
        .exists(),
    )
    .order_by(_candidate.c.wake_at, _candidate.c.id)
    .limit(bindparam("limit"))
)
CLAIM = Statement(
    update(actions)
    .where(actions.c.id.in_(_ready.with_for_update(skip_locked=True)))
    .values(
        owner=bindparam("new_owner"),
        epoch=actions.c.epoch + 1,
        lease_until=db_now() + bindparam("lease"),
        state=case((actions.c.state == "waiting", "running"), else_=actions.c.state),
    )
    .returning(*actions.columns)
)
INSERT = Statement(
    insert(actions)
    .values(
        {
            **{column.name: bindparam(column.name) for column in actions.columns if column.name != "id"},
            "lease_until": db_now() + bindparam("lease"),
        }
    )
    .returning(actions.c.id)
)
OPEN_OF = Statement(
    select(literal(1)).where(actions.c.open, actions.c.instance_uuid == bindparam("uuid")).limit(1)
)
AWAITS = Statement(
    select(literal(1))
    .where(
        actions.c.open,
        actions.c.instance_uuid == bindparam("uuid"),
        actions.c.operation == bindparam("of_operation"),
    )
    .limit(1)
)
_mine = and_(
    actions.c.id == bindparam("action_id"),
    actions.c.owner == bindparam("me"),
    actions.c.epoch == bindparam("my_epoch"),
)
# Keeps a takeover out (CLAIM locks rows for itself), and nothing else: leases are renewed meanwhile.
HELD = Statement(select(actions.c.id).where(_mine).with_for_update(read=True, key_share=True))
LOCK = Statement(select(actions.c.cancel).where(_mine).with_for_update())
ADVANCE = Statement(
    update(actions)
    .where(_mine)
    .values(
        cursor=bindparam("new_cursor"),
        outputs=bindparam("new_outputs"),
        state=bindparam("new_state"),
        why=None,
        updated_at=bindparam("now"),
        lease_until=db_now() + bindparam("lease"),
    )
    .returning(actions.c.cancel)
)
SETTLE = Statement(
    update(actions)
    .where(_mine)
    .values(
        cursor=bindparam("new_cursor"),
        floor=bindparam("new_floor"),
        round=bindparam("new_round"),
        state=bindparam("new_state"),
        open=bindparam("still_open"),
        error=bindparam("new_error"),
        why=bindparam("new_why"),
        outputs=bindparam("new_outputs"),
        message=bindparam("new_message"),
        finish_time=bindparam("finished"),
        updated_at=bindparam("now"),
        owner=case((bindparam("keep") == true(), actions.c.owner), else_=None),
        lease_until=db_now() + bindparam("lease"),
        wake_at=bindparam("new_wake_at"),
    )
    .returning(actions.c.cancel)
)
EVENT = insert_into(action_events)
# What is locked is being committed by its step, which renews the lease too: nobody waits for it here.
HEARTBEAT = Statement(
    update(actions)
    .where(actions.c.id.in_(select(actions.c.id).where(_mine).with_for_update(skip_locked=True)))
    .values(lease_until=db_now() + bindparam("lease"))
)
RELEASE = Statement(
    update(actions)
    .where(actions.c.open, actions.c.owner == bindparam("me"))
    .values(owner=None, lease_until=0)
)
GIVE_BACK = Statement(update(actions).where(_mine, actions.c.open).values(owner=None, lease_until=0))
RELEASE_ALL = Statement(
    update(actions).where(actions.c.open, actions.c.owner.is_not(None)).values(owner=None, lease_until=0)
)
_wake_if_waiting = case((actions.c.state == "waiting", db_now()), else_=actions.c.wake_at)
CANCEL = Statement(
    update(actions)
    .where(
        actions.c.open, actions.c.instance_uuid == bindparam("uuid"), actions.c.operation != bindparam("but")
    )
    .values(cancel=True, wake_at=_wake_if_waiting)
    .returning(actions.c.id)
)
IS_CANCELLED = Statement(select(actions.c.cancel).where(actions.c.id == bindparam("action_id")))
SIGNAL = insert_into(signals)
# Of every state, so that it waits for a wait that is just being written down.
WAKE = Statement(
    update(actions)
    .where(actions.c.open, actions.c.instance_uuid == bindparam("uuid"))
    .values(wake_at=_wake_if_waiting)
)
SIGNALS_OF = Statement(
    select(signals.c.id, signals.c.name, signals.c.tag, signals.c.status)
    .where(signals.c.instance_uuid == bindparam("uuid"))
    .order_by(signals.c.id)
)
DROP_SIGNALS = Statement(delete(signals).where(signals.c.instance_uuid == bindparam("uuid")))
ATTENTION = Statement(
    select(*actions.columns).where(actions.c.open, actions.c.state == "attention").order_by(actions.c.id)
)
OPEN = Statement(select(*actions.columns).where(actions.c.open).order_by(actions.c.id))
SHOW = Statement(select(*actions.columns).where(actions.c.id == bindparam("action_id")))
OPERATOR = Statement(
    update(actions)
    .where(actions.c.id == bindparam("action_id"), actions.c.open, actions.c.state == "attention")
    .values(
        state=bindparam("new_state"),
        cursor=bindparam("new_cursor"),
        floor=bindparam("new_floor"),
        wake_at=0,
        owner=None,
        deadline_at=bindparam("new_deadline"),
        updated_at=bindparam("now"),
        error=bindparam("new_error"),
        why=None,
    )
)
REFUSE = Statement(
    update(actions)
    .where(_mine)
    .values(
        state=bindparam("new_state"),
        open=bindparam("still_open"),
        why=bindparam("new_why"),
        finish_time=bindparam("finished"),
        message=bindparam("new_message"),
        updated_at=bindparam("now"),
        owner=None,
        wake_at=bindparam("new_wake_at"),
    )
)


def row_to_action(row: Row) -> ActionRow:
    values = list(row)
    values[11] = _plan.decode(row[11])
    values[12] = row[12].encode()
    values[13] = _outputs.decode(row[13])
    values[15] = bool(row[15])
    values[19] = bool(row[19])
    values[20] = read_error(row[20])
    return ActionRow(**dict(zip(ActionRow.__struct_fields__, values, strict=True)))


def read_error(stored: str | None) -> StoredError | None:
    return None if stored is None else _error.decode(stored)


EPOCH = ActionRow.__struct_fields__.index("epoch")  # where it is in a row


def encode(value: Any) -> str:
    return _json.encode(value).decode()


@dataclass(slots=True, frozen=True, kw_only=True)
class Event:
    """What was done for an operation: one row of its log."""

    step: str
    phase: str  # do, undo, operator
    event: str  # the name that users see
    started: int
    finished: int
    result: str = "Success"
    traceback: str | None = None
    host: str | None = None
    details: str | None = None


def add_event(tx: Tx, action: ActionRow, event: Event) -> None:
    tx.run(
        EVENT,
        action_id=action.id,
        step=event.step,
        phase=event.phase,
        round=action.round,
        event=event.event,
        start_time=event.started,
        finish_time=event.finished,
        result=event.result,
        traceback=event.traceback,
        host=event.host,
        details=event.details,
    )
