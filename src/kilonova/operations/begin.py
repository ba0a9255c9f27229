"""What every operation on an existing server does first: guard, compare-and-set, and the action, in one
write.  A refused operation leaves no action behind, and of two at the same time one wins.
"""

from __future__ import annotations

from typing import Any

import msgspec

from kilonova.db import instances
from kilonova.db.engine import Tx
from kilonova.errors import Conflict, NotFound
from kilonova.journal.model import Operation
from kilonova.model.context import RequestContext
from kilonova.model.instance import Instance
from kilonova.operations import guards
from kilonova.operations.cloud import Cloud


def found(tx: Tx, uuid: str) -> Instance:
    """The server.  Raises NotFound in Nova's words."""
    instance = instances.show(tx, uuid)
    if instance is None:
        raise NotFound(f"Instance {uuid} could not be found.")
    return instance


async def begin(
    cloud: Cloud,
    context: RequestContext,
    uuid: str,
    guard_name: str,
    operation: Operation,
    params: msgspec.Struct,
) -> None:
    """Raises NotFound, or Conflict when the server's state does not allow it."""

    def write(tx: Tx) -> None:
        instance = found(tx, uuid)
        guard = guards.check(guard_name, instance, context)
        changes: dict[str, Any] = {"task_state": guard.sets, "progress": 0}
        if not instances.update(tx, uuid, expect_task=(instance.task_state,), **changes):
            raise Conflict(f"Instance {uuid} is being changed by another request; look again and repeat.")
        known = msgspec.structs.replace(instance, **changes)
        cloud.journal.submit(tx, context, operation, uuid, guard.action, params, {"instance": known})

    await cloud.db.write(write)
