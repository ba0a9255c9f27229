"""Instance actions as users see them.  The same rows are the journal's operations."""

from __future__ import annotations

import msgspec


class Action(msgspec.Struct, frozen=True, kw_only=True):
    """What somebody asked of a server."""

    id: int
    action: str  # Nova's name: create, stop, reboot ...
    instance_uuid: str
    request_id: str
    user_id: str | None
    project_id: str | None
    start_time: int
    updated_at: int | None
    finish_time: int | None
    message: str | None  # "Error" when it failed, as in Nova


class ActionEvent(msgspec.Struct, frozen=True, kw_only=True):
    """What was done for it, step by step.  ``result`` None: under way."""

    event: str  # with Nova's prefixes: compute_..., conductor_...
    start_time: int
    finish_time: int | None
    result: str | None  # "Success" or "Error"
    traceback: str | None = None
    host: str | None = None
    details: str | None = None
