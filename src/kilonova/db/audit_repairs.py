"""Mending what an audit found, where nobody can be harmed by it."""

from __future__ import annotations

from sqlalchemy import bindparam, func, select, update

from kilonova.db import host_resources, instances
from kilonova.db import placement as bookings
from kilonova.db.engine import Statement, Tx
from kilonova.db.placement import Difference
from kilonova.db.placement_providers import bump, lock
from kilonova.db.tables.compute import instances as instances_table
from kilonova.db.tables.journal import actions
from kilonova.db.tables.placement import allocations, inventories

_SUM = Statement(
    select(func.coalesce(func.sum(allocations.c.amount), 0)).where(
        allocations.c.provider == bindparam("provider"),
        allocations.c.resource_class == bindparam("resource_class"),
    )
)
_SET = Statement(
    update(inventories)
    .where(
        inventories.c.provider == bindparam("of_provider"),
        inventories.c.resource_class == bindparam("of_class"),
    )
    .values(used=bindparam("new_used"))
)
_LEFTOVERS = Statement(
    select(allocations.c.consumer)
    .join(instances_table, instances_table.c.uuid == allocations.c.consumer)
    .where(allocations.c.provider == bindparam("compute_id"), instances_table.c.deleted_at.is_not(None))
    .distinct()
)
_BUSY = Statement(
    select(actions.c.id).where(actions.c.instance_uuid == bindparam("uuid"), actions.c.open).limit(1)
)


def leftovers(tx: Tx, compute_id: str) -> list[str]:
    """The deleted servers that hold something of a host."""
    return [row[0] for row in tx.all(_LEFTOVERS, compute_id=compute_id)]


def recount(tx: Tx, wrong: Difference) -> bool:
    """Count what is used of a class anew; nobody books there meanwhile.  False: it has no inventory."""
    provider = lock(tx, wrong.provider)
    used = int(tx.scalar(_SUM, provider=wrong.provider, resource_class=wrong.resource_class))
    changed = tx.run(_SET, of_provider=wrong.provider, of_class=wrong.resource_class, new_used=used)
    bump(tx, provider)
    return changed == 1


def release_deleted(tx: Tx, consumer: str, instance_uuid: str) -> bool:
    """Take away what is still held for a deleted server; False when it is not deleted, or busy."""
    instance = instances.show_any(tx, instance_uuid)
    if instance is None or instance.deleted_at is None or tx.one(_BUSY, uuid=instance_uuid) is not None:
        return False
    bookings.release(tx, consumer)
    host_resources.drop(tx, consumer)
    return True
