"""What the volume service keeps count of: quotas and their use."""

from __future__ import annotations

import msgspec
from sqlalchemy import bindparam, delete, func, select, update

from kilonova.db.engine import Statement, Tx, insert_into
from kilonova.db.tables.volume import volume_quotas, volume_usages, volumes

q, u, v = volume_quotas.c, volume_usages.c, volumes.c

_USE = Statement(
    update(volume_usages)
    .where(u.project_id == bindparam("the_project"), u.resource == bindparam("the_resource"))
    .values(used=u.used + bindparam("count"))
    .returning(u.used)
)
_FIRST_USE = insert_into(volume_usages)
_USAGES = Statement(select(u.resource, u.used).where(u.project_id == bindparam("the_project")))
_LIMITS = Statement(select(q.resource, q.hard_limit).where(q.project_id == bindparam("the_project")))
_INSERT_LIMIT = insert_into(volume_quotas)
_SET_LIMIT = Statement(
    update(volume_quotas)
    .where(q.project_id == bindparam("the_project"), q.resource == bindparam("the_resource"))
    .values(hard_limit=bindparam("limit"))
)
_RESET = Statement(delete(volume_quotas).where(q.project_id == bindparam("the_project")))
_COUNTED = Statement(
    select(v.project_id, func.count(), func.sum(v.size_gb))
    .where(v.status != "deleted")
    .group_by(v.project_id)
)
_KEPT = Statement(select(volume_usages))
_GROWING = Statement(
    select(v.project_id, func.sum(v.growing_to - v.size_gb))
    .where(v.status != "deleted", v.growing_to.is_not(None))
    .group_by(v.project_id)
)


class WrongUsage(msgspec.Struct, frozen=True):
    """A counter that is not what it counts."""

    project_id: str
    resource: str
    kept: int
    counted: int


def use(tx: Tx, project_id: str, resource: str, count: int) -> int:
    """Count ``count`` more (or fewer); the new number.

    Raises UniqueViolation when another transaction counts the project's first one; a repeat succeeds.
    """
    row = tx.one(_USE, the_project=project_id, the_resource=resource, count=count)
    if row is None:
        tx.run(_FIRST_USE, project_id=project_id, resource=resource, used=count)
        return count
    return int(row[0])


def usages(tx: Tx, project_id: str) -> dict[str, int]:
    return dict(tx.all(_USAGES, the_project=project_id))


def limits(tx: Tx, project_id: str) -> dict[str, int]:
    """The limits that were set for this project; others have the default."""
    return dict(tx.all(_LIMITS, the_project=project_id))


def set_limit(tx: Tx, project_id: str, resource: str, limit: int) -> None:
    """Raises UniqueViolation when another transaction sets it for the first time; a repeat succeeds."""
    if not tx.run(_SET_LIMIT, the_project=project_id, the_resource=resource, limit=limit):
        tx.run(_INSERT_LIMIT, project_id=project_id, resource=resource, hard_limit=limit)


def reset_limits(tx: Tx, project_id: str) -> int:
    return tx.run(_RESET, the_project=project_id)


def audit(tx: Tx) -> list[WrongUsage]:
    """Where counters differ from what they count."""
    counted: dict[tuple[str, str], int] = {}
    for project_id, number, gigabytes in tx.all(_COUNTED):
        counted[project_id, "volumes"] = int(number)
        counted[project_id, "gigabytes"] = int(gigabytes)
    for project_id, growth in tx.all(_GROWING):
        counted[project_id, "gigabytes"] += int(growth)
    kept = {(project_id, resource): used for project_id, resource, used in tx.all(_KEPT)}
    return [
        WrongUsage(*key, kept=kept.get(key, 0), counted=counted.get(key, 0))
        for key in sorted({*counted, *kept})
        if kept.get(key, 0) != counted.get(key, 0)
    ]
