"""Tables of the journal: operations (users see them as instance actions), their events, and signals."""

from __future__ import annotations

from sqlalchemy import Index, Table, UniqueConstraint
from sqlalchemy import text as sql

from kilonova.db.tables import flag, json_text, metadata, number, serial, text

actions = Table(
    "actions",
    metadata,
    serial(),
    # what users see
    text("action"),
    text("instance_uuid"),
    text("request_id"),
    text("user_id", nullable=True),
    text("project_id", nullable=True),
    number("start_time"),
    number("updated_at", nullable=True),
    number("finish_time", nullable=True),
    text("message", nullable=True),
    # what runs it
    text("operation"),
    json_text("plan"),  # names of the steps, fixed at submit
    json_text("params"),
    json_text("outputs"),  # step -> what it left for later ones
    text("state"),  # running, waiting, unwinding, done, failed, attention
    flag("open"),
    number("cursor"),  # the step to do next, or to undo next
    number("floor"),  # unwinding: the last step to undo
    number("round"),  # of the retry group
    flag("cancel"),
    json_text("error", nullable=True),
    text("why", nullable=True),  # an operator is asked for a decision
    text("owner", nullable=True),
    number("epoch"),
    number("lease_until"),
    number("wake_at"),
    number("deadline_at"),
    Index("actions_by_instance", "instance_uuid", "id"),
    # SQLite uses a partial index only for a condition that is spelled like the index's
    Index("actions_open", "wake_at", sqlite_where=sql("open = 1"), postgresql_where=sql("open")),
)

action_events = Table(
    "action_events",
    metadata,
    serial(),
    number("action_id"),
    text("step"),
    text("phase"),  # do, undo, operator
    number("round"),
    text("event"),
    number("start_time"),
    number("finish_time"),
    text("result"),
    text("traceback", nullable=True),
    text("host", nullable=True),
    text("details", nullable=True),
    UniqueConstraint("action_id", "step", "phase", "round"),
)

signals = Table(
    "signals",
    metadata,
    serial(),
    text("instance_uuid"),
    text("name"),
    text("tag"),
    text("status"),
    number("created_at"),
    Index("signals_by_instance", "instance_uuid"),
)
