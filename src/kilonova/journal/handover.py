"""The operations of one server, taken from one database into another with their log.

Each database numbers its operations, and hosts refuse what comes from one with a lower number than they have
heard for a guest.  So the new numbers are above all that the server's operations ever had: numbers are
clocks in Lamport's sense, and a server that moves sets the clock of where it goes.
"""

from __future__ import annotations

from typing import Any

import msgspec
from sqlalchemy import bindparam, delete, func, insert, select, text

from kilonova.db.belongings import Rows, as_stored
from kilonova.db.engine import Statement, Tx
from kilonova.db.tables.journal import action_events, actions
from kilonova.journal import statements as sql
from kilonova.journal.model import ActionRow

STRIDE = 10_000  # numbers: what is nearer is drawn one by one
_LOCK = 0x6B6E_6163  # of advisory locks, so that two who set the clock do so one after the other

_ACTIONS = Statement(
    select(*actions.columns).where(actions.c.instance_uuid == bindparam("of")).order_by(actions.c.id)
)
_EVENTS = Statement(
    select(*action_events.columns)
    .where(
        action_events.c.action_id.in_(select(actions.c.id).where(actions.c.instance_uuid == bindparam("of")))
    )
    .order_by(action_events.c.id)
)
_DROP_EVENTS = Statement(
    delete(action_events).where(
        action_events.c.action_id.in_(select(actions.c.id).where(actions.c.instance_uuid == bindparam("of")))
    )
)
_DROP_ACTIONS = Statement(delete(actions).where(actions.c.instance_uuid == bindparam("of")))
_INSERT_AT = Statement(
    insert(actions)
    .values({column.name: bindparam(column.name) for column in actions.columns})
    .returning(actions.c.id)
)
_INSERT = Statement(
    insert(actions)
    .values({column.name: bindparam(column.name) for column in actions.columns if column.name != "id"})
    .returning(actions.c.id)
)
_HIGHEST = Statement(select(func.max(actions.c.id)))
_MOVING = Statement(
    select(actions.c.cursor, actions.c.plan).where(actions.c.open, actions.c.instance_uuid == bindparam("of"))
)
_strings = msgspec.json.Decoder(tuple[str, ...]).decode


def read(tx: Tx, uuid: str) -> dict[str, Rows]:
    """Table -> its rows, as `db.belongings.read`."""
    return {
        table.name: [dict(zip(table.columns.keys(), row, strict=True)) for row in tx.all(statement, of=uuid)]
        for table, statement in ((actions, _ACTIONS), (action_events, _EVENTS))
    }


def remove(tx: Tx, uuid: str) -> None:
    """Also what was delivered to them: nobody here waits for it."""
    tx.run(_DROP_EVENTS, of=uuid)
    tx.run(_DROP_ACTIONS, of=uuid)
    tx.run(sql.DROP_SIGNALS, uuid=uuid)


def is_at(tx: Tx, uuid: str, step: str) -> bool:
    """Whether an operation of the server that is not finished is at that step."""
    rows = ((_strings(plan), cursor) for cursor, plan in tx.all(_MOVING, of=uuid))
    return any(0 <= cursor < len(plan) and plan[cursor] == step for plan, cursor in rows)


def ended(rows: dict[str, Rows], action: ActionRow, event: sql.Event) -> dict[str, Rows]:
    """The same with one operation finished by the step that ``event`` tells of."""
    done = {
        "state": "done",
        "open": False,
        "cursor": len(action.plan),
        "finish_time": event.finished,
        "updated_at": event.finished,
        "why": None,
    }
    log = {
        "id": 0,
        "action_id": action.id,
        "round": action.round,
        "start_time": event.started,
        "finish_time": event.finished,
        **{name: getattr(event, name) for name in _OF_EVENT},
    }
    return {
        actions.name: [{**row, **done} if row["id"] == action.id else row for row in rows[actions.name]],
        action_events.name: [*rows[action_events.name], log],
    }


_OF_EVENT = ("step", "phase", "event", "result", "traceback", "host", "details")


def write(tx: Tx, rows: dict[str, Rows], dialect: str) -> None:
    """They go on here, when this transaction is committed.  ``dialect``: the database's name."""
    numbers: dict[int, int] = {}
    floor = max((row["id"] for row in rows[actions.name]), default=0)
    first = _above(tx, floor, dialect)
    for row in rows[actions.name]:
        values = {**as_stored(actions, row), "owner": None, "lease_until": 0}
        if not numbers and first is not None:
            numbers[row["id"]] = int(tx.scalar(_INSERT_AT, id=first, **values))
        else:
            numbers[row["id"]] = int(tx.scalar(_INSERT, **values))
    for row in rows[action_events.name]:
        tx.run(sql.EVENT, **{**as_stored(action_events, row), "action_id": numbers[row["action_id"]]})


def _above(tx: Tx, floor: int, dialect: str) -> int | None:
    """Have the database count from above ``floor`` on; the number to begin with, where it must be told."""
    if dialect == "sqlite":  # it goes on after the highest that is there
        return max(int(tx.scalar(_HIGHEST) or 0), floor) + 1
    _draw(tx, floor)
    return None


def _draw(tx: Tx, floor: int) -> None:
    """Never back: others draw from the sequence meanwhile, though not as many as STRIDE at once."""

    def ask(statement: str, **values: Any) -> int:
        return int(tx.scalar(text(statement), **values) or 0)

    tx.one(text("SELECT pg_advisory_xact_lock(:key)"), key=_LOCK)
    missing = floor - ask("SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM actions_id_seq")
    if missing > STRIDE:
        ask("SELECT setval('actions_id_seq', :floor)", floor=floor)
    elif missing > 0:
        ask("SELECT count(nextval('actions_id_seq')) FROM generate_series(1, :missing)", missing=missing)
