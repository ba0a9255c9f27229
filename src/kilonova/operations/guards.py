"""Whether an operation may begin: the rows of ``model/states.py``, applied in Nova's order."""

from __future__ import annotations

from kilonova.errors import Conflict
from kilonova.model.context import RequestContext
from kilonova.model.instance import Instance
from kilonova.model.states import GUARDS, Guard


def check(operation: str, instance: Instance, context: RequestContext) -> Guard:
    """The guard of the operation.  Raises Conflict that names what stands in the way.

    The order is Nova's: lock, then host, then vm_state, task_state and launched_at.
    """
    guard = GUARDS[operation]
    if guard.lock and instance.locked and not context.is_admin:
        raise Conflict(f"Instance {instance.uuid} is locked")
    if guard.host and not instance.host:
        raise Conflict(f"Instance {instance.uuid} is not ready")
    for attribute, allowed in (("vm_state", guard.vm), ("task_state", guard.task)):
        value = getattr(instance, attribute)
        if allowed is not None and value not in allowed:
            raise invalid_state(guard, instance, attribute, value)
    if guard.launched and instance.launched_at is None:
        raise invalid_state(guard, instance, "launched_at", None)
    return guard


def invalid_state(guard: Guard, instance: Instance, attribute: str, value: object) -> Conflict:
    return Conflict(f"Cannot '{guard.action}' instance {instance.uuid} while it is in {attribute} {value}")
