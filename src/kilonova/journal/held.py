"""Writing only what one may: a step's writes carry the check that its runner still holds the operation."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from kilonova.db.engine import Tx
from kilonova.db.fence import fenced
from kilonova.errors import LostLease
from kilonova.journal import statements as sql
from kilonova.journal.model import ActionRow

if TYPE_CHECKING:
    from kilonova.journal.runner import Runner


def while_held(runner: Runner, action: ActionRow) -> contextlib.AbstractContextManager[None]:
    """A block whose writes raise LostLease once another runner has the operation.

    A runner that is alone needs no check.
    """
    if runner.sole:
        return contextlib.nullcontext()

    def check(tx: Tx) -> None:
        held = tx.one(sql.HELD, action_id=action.id, me=runner.owner, my_epoch=action.epoch)
        if held is None:
            raise LostLease(f"Operation {action.id} has another owner.")

    return fenced(runner.db, check)
