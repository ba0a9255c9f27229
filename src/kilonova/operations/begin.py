"""What every operation on an existing server does first: guard, compare-and-set, and the action, in one
write.  A refused operation leaves no action behind, and of two at the same time one wins.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from kilonova.db import instances
from kilonova.db.engine import Tx
from kilonova.errors import Conflict, NotFound
from kilonova.journal.model import Operation
from kilonova.model.context import RequestContext
from kilonova.model.instance import Instance
from kilonova.model.states import Guard
from kilonova.operations import guards
from kilonova.operations.cloud import Cloud


def found(tx: Tx, uuid: str) -> Instance:
    """The server.  Raises NotFound in Nova's words."""
    instance = instances.show(tx, uuid)
    if instance is None:
        raise NotFound(f"Instance {uuid} could not be found.")
    return instance


def taken(
    tx: Tx,
    context: RequestContext,
    uuid: str,
    guard_name: str,
    *,
    also: Callable[[Tx, Instance], None] = lambda tx, instance: None,
    **changes: Any,
) -> tuple[Instance, Guard]:
    """The server, with the task_state of the operation that begins and with ``changes``; and its guard.

    ``also`` sees it as it was, and may refuse by raising.  Raises NotFound, or Conflict when its state does
    not allow it or another request is faster.
    """
    instance = found(tx, uuid)
    guard = guards.check(guard_name, instance, context)
    also(tx, instance)
    changes = {"task_state": guard.sets, "progress": 0, **changes}
    if not instances.update(tx, uuid, expect_task=(instance.task_state,), **changes):
        raise Conflict(f"Instance {uuid} is being changed by another request; look again and repeat.")
    return msgspec.structs.replace(instance, **changes), guard


async def begin(
    cloud: Cloud,
    context: RequestContext,
    uuid: str,
    guard_name: str,
    operation: Operation,
    params: msgspec.Struct,
) -> int:
    """The number of the action.  Raises NotFound, or Conflict when the server's state does not allow it."""

    def write(tx: Tx) -> int:
        instance, guard = taken(tx, context, uuid, guard_name)
        known = {"instance": instance}
        return cloud.journal.submit(tx, context, operation, uuid, guard.action, params, known)

    return await cloud.db.write(write)
