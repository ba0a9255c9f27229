"""What a live migration is asked for with, and what its steps leave to each other."""

from __future__ import annotations

from typing import Any

import msgspec

from kilonova.journal.model import Run
from kilonova.operations.moving import MoveParams
from kilonova.rpc.moves import LivePlan


class LiveMigrateParams(MoveParams, frozen=True, kw_only=True):
    """``block``: with the disks; None: as the storage of the two hosts demands."""

    block: bool | None = None
    disk_over_commit: bool = False


def kept(record: msgspec.Struct) -> dict[str, Any]:
    """A record as a step's output."""
    made: dict[str, Any] = msgspec.to_builtins(record)
    return made


def plan_of(run: Run, step: str) -> LivePlan:
    """The plan as this step has left it.  Raises ValidationError for what no release has written."""
    return msgspec.convert(run.output(step), LivePlan)
